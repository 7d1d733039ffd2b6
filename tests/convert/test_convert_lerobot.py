"""LeRobotDataset v3.0 as it stands in the files: read by pyarrow and av, not by bimact."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversions import COLUMNS, NAMES, SmoothSource, converted, images_of, notes_of, psnr, same_bits, smooth_source

from bimact.convert import lerobot_v30, writer
from bimact.convert.lerobot_stats import image_stats, pixel_counts, sampled_steps, vector_stats
from bimact.data.selection import Selection
from bimact.data.source import Camera, Column
from bimact.errors import UserError

KEYS = {
    "qpos": "observation.state",
    "action": "action",
    "qvel": "observation.qvel",
    "tau": "observation.tau",
    "count": "observation.count",
    "is_held": "observation.is_held",
}
FLOATS = {"float": np.float32, "double": np.float64, "int64": np.int64, "bool": np.bool_}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SmoothSource:
    return smooth_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def folder(source: SmoothSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(source, tmp_path_factory.mktemp("converted") / "dataset", "lerobot")


def info_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "meta" / "info.json").read_text()))


def steps_of(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((folder / "data").rglob("*.parquet")))


def episodes_of(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "meta" / "episodes").rglob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def column_of(table: pa.Table, key: str) -> np.ndarray:
    """(N, D)."""
    column = table[key].combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), column.type.list_size)
    return np.asarray(column.to_numpy(zero_copy_only=False))[:, None]


def decoded(folder: Path, episode: dict[str, Any], key: str) -> np.ndarray:
    """(T, H, W, 3): the frame at each step's time, as LeRobot looks for it."""
    info = info_of(folder)
    place = {name: episode[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
    with av.open(str(folder / info["video_path"].format(video_key=key, **place))) as container:
        frames = {round(frame.time, 4): frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    start = episode[f"videos/{key}/from_timestamp"]
    return np.stack([frames[round(start + step / info["fps"], 4)] for step in range(episode["length"])])


# Columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", COLUMNS)
def test_columns_are_kept_to_the_last_bit(key: str, source: SmoothSource, folder: Path) -> None:
    expected = np.concatenate([source.read_columns(episode, [key])[key] for episode in range(3)])
    assert same_bits(column_of(steps_of(folder), KEYS[key]), expected)


def test_features_tell_types_sizes_and_names(folder: Path) -> None:
    features = info_of(folder)["features"]
    assert features["action"] == {"dtype": "float32", "shape": [4], "names": list(NAMES)}
    assert features["observation.tau"] == {"dtype": "float64", "shape": [2], "names": None}
    assert features["observation.is_held"] == {"dtype": "bool", "shape": [1], "names": None}


def test_steps_are_counted_and_timed(source: SmoothSource, folder: Path) -> None:
    table = steps_of(folder)
    lengths = source.lengths
    steps = np.concatenate([np.arange(length) for length in lengths])
    assert table["index"].to_pylist() == list(range(16))
    assert table["frame_index"].to_pylist() == steps.tolist()
    assert table["episode_index"].to_pylist() == np.repeat([0, 1, 2], lengths).tolist()
    assert same_bits(column_of(table, "timestamp")[:, 0], (steps / 10).astype(np.float32))


def test_an_episode_is_a_row_group(folder: Path) -> None:
    (path,) = (folder / "data").rglob("*.parquet")
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [5, 8, 3]


def test_tables_tell_the_datasets_library_their_features(folder: Path) -> None:
    described = json.loads(steps_of(folder).schema.metadata[b"huggingface"])["info"]["features"]
    assert described["observation.state"] == {
        "feature": {"dtype": "float32", "_type": "Value"},
        "length": 4,
        "_type": "List",
    }
    assert described["task_index"] == {"dtype": "int64", "_type": "Value"}


def test_keys_that_are_lerobots_already_stay(tmp_path: Path) -> None:
    columns = {name: Column(2) for name in ("observation.state", "action", "next.reward", "observation.velocity")}
    lerobot = smooth_source(
        tmp_path / "source",
        [3],
        columns=columns,
        cameras={"observation.image": Camera(32, 32)},
        state_keys=("observation.state",),
        action_keys=("action",),
    )
    features = info_of(converted(lerobot, tmp_path / "out", "lerobot"))["features"]
    assert {*columns, "observation.image"} <= set(features)
    assert len(features) == 5 + 5


def test_two_columns_of_the_same_key_are_refused(tmp_path: Path) -> None:
    columns = {**COLUMNS, "obs/tau": Column(1)}
    with pytest.raises(UserError, match="would have the same key"):
        converted(smooth_source(tmp_path / "source", columns=columns), tmp_path / "out", "lerobot")


# Images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "name"), [(None, "av1"), ("h264", "h264"), ("hevc", "hevc")])
def test_videos_show_each_step_at_its_time(
    codec: str | None, name: str, source: SmoothSource, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = converted(source, tmp_path / "out", "lerobot", codec=codec)
    key = "observation.images.top"
    assert info_of(folder)["features"][key]["info"]["video.codec"] == name
    for episode in episodes_of(folder):
        expected = images_of(source, "top", episode["episode_index"])
        images = decoded(folder, episode, key)
        assert psnr(images, expected) > 35
        nearest = [int(np.argmax([psnr(image, step) for step in expected])) for image in images]
        assert nearest == list(range(episode["length"]))
    said = capfd.readouterr().err.lower()
    assert "x265" not in said
    assert "svt" not in said


def test_a_key_frame_is_never_far(folder: Path) -> None:
    (path,) = (folder / "videos" / "observation.images.top").rglob("*.mp4")
    with av.open(str(path)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.dts is not None]
    assert len(keys) == 16
    assert all(first or second for first, second in pairwise(keys))


def test_episodes_follow_each_other_in_a_video(folder: Path) -> None:
    episodes = episodes_of(folder)
    times = [
        (row["videos/observation.images.top/from_timestamp"], row["videos/observation.images.top/to_timestamp"])
        for row in episodes
    ]
    assert times == [(0.0, 0.5), (0.5, 1.3), (1.3, 1.6)]


def test_a_long_episode_is_encoded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_STEPS_PER_SPAN", 4)
    source = smooth_source(tmp_path / "source", (11, 4, 9))
    folder = converted(source, tmp_path / "out", "lerobot")
    whole = smooth_source(tmp_path / "source", (11, 4, 9))
    for episode in episodes_of(folder):
        number = episode["episode_index"]
        assert psnr(decoded(folder, episode, "observation.images.wrist"), images_of(whole, "wrist", number)) > 35
        assert episode["stats/observation.images.wrist/count"] == [whole.episodes[number].length]


@pytest.mark.parametrize("fps", [29.97, 30000 / 1001, 7.3])
def test_steps_keep_their_times_at_any_rate(fps: float, tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source", (5, 8), fps=fps)
    folder = converted(source, tmp_path / "out", "lerobot")
    assert info_of(folder)["fps"] == fps
    for episode in episodes_of(folder):
        expected = images_of(source, "top", episode["episode_index"])
        assert psnr(decoded(folder, episode, "observation.images.top"), expected) > 35


def test_lossless_images_are_equal(source: SmoothSource, tmp_path: Path) -> None:
    folder = converted(source, tmp_path / "out", "lerobot", lossless=True)
    info = info_of(folder)
    assert info["video_path"] is None
    assert not (folder / "videos").exists()
    assert info["features"]["observation.images.top"] == {
        "dtype": "image",
        "shape": [64, 96, 3],
        "names": ["height", "width", "channels"],
    }
    cells = steps_of(folder)["observation.images.top"].to_pylist()
    expected = np.concatenate([images_of(source, "top", episode) for episode in range(3)])
    assert [cell["path"] for cell in cells[:6]] == [f"frame-{step:06d}.png" for step in (0, 1, 2, 3, 4, 0)]
    assert np.array_equal(np.stack([read_png(cell["bytes"]) for cell in cells]), expected)


def read_png(content: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)))


def test_large_lossless_episodes_are_several_row_groups(
    source: SmoothSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bimact.convert import lerobot_tables

    monkeypatch.setattr(lerobot_tables, "_ROW_GROUP_BYTES", 1)
    path = tmp_path / "episode.parquet"
    features = {"action": {"dtype": "float32", "shape": [4]}, "image": {"dtype": "image", "shape": [64, 96, 3]}}
    actions = source.read_columns(0, ["action"])["action"]
    schema = lerobot_tables.schema_of(features)
    lerobot_tables.write_rows(path, schema, {"action": actions}, {"image": source.read_frames(0, "top", range(5))})
    assert pq.ParquetFile(path).metadata.num_row_groups == 5
    assert same_bits(column_of(pq.read_table(path), "action"), actions)


def test_cameras_of_odd_size_become_images(tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source", [4], cameras={"top": Camera(48, 64), "odd": Camera(33, 48)})
    folder = converted(source, tmp_path / "out", "lerobot")
    features = info_of(folder)["features"]
    assert features["observation.images.top"]["dtype"] == "video"
    assert features["observation.images.odd"]["dtype"] == "image"
    cells = steps_of(folder)["observation.images.odd"].to_pylist()
    assert np.array_equal(np.stack([read_png(cell["bytes"]) for cell in cells]), images_of(source, "odd", 0))
    assert "PNG images instead of video, which needs an even height and width of at least 16 pixels: odd" in notes_of(
        source, tmp_path / "other", "lerobot"
    )


def test_a_dataset_without_cameras_has_no_videos(tmp_path: Path) -> None:
    folder = converted(smooth_source(tmp_path / "source", cameras={}), tmp_path / "out", "lerobot")
    assert info_of(folder)["video_path"] is None
    assert len(steps_of(folder)) == 16


# Files and metadata --------------------------------------------------------------------------------------


def test_files_stay_below_their_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_DATA_MB": 0, "_VIDEO_MB": 0, "FILES_PER_CHUNK": 2, "_EPISODES_PER_TABLE": 1}.items():
        monkeypatch.setattr(lerobot_v30, name, value)
    source = smooth_source(tmp_path / "source")
    folder = converted(source, tmp_path / "out", "lerobot")
    names = ["chunk-000/file-000", "chunk-000/file-001", "chunk-001/file-000"]
    for place, suffix in (
        ("data", ".parquet"),
        ("videos/observation.images.top", ".mp4"),
        ("meta/episodes", ".parquet"),
    ):
        found = sorted(str(path.relative_to(folder / place)) for path in (folder / place).rglob("*.*"))
        assert found == [name + suffix for name in names]
    episodes = episodes_of(folder)
    assert [(row["data/chunk_index"], row["data/file_index"]) for row in episodes] == [(0, 0), (0, 1), (1, 0)]
    assert [row["meta/episodes/file_index"] for row in episodes] == [0, 1, 0]
    assert [row["dataset_from_index"] for row in episodes] == [0, 5, 13]
    for number, episode in enumerate(episodes):
        assert psnr(decoded(folder, episode, "observation.images.top"), images_of(source, "top", number)) > 35


def test_episodes_fill_files_up_to_the_limit() -> None:
    megabyte = 1 << 20
    assert list(lerobot_v30._files([megabyte, megabyte, megabyte - 1, 9 * megabyte, 5], 3)) == [[0, 1, 2], [3], [4]]


def test_no_parts_are_left(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"data", "meta", "videos"}
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".parquet", ".json", ".mp4"}


def test_info_has_the_keys_that_lerobot_writes(folder: Path) -> None:
    info = info_of(folder)
    sample = Path(__file__).parents[3] / "shared" / "data" / "lerobot_v30_aloha_sim"
    if not sample.exists():
        pytest.skip("no shared samples")
    theirs = info_of(sample)
    assert list(info) == list(theirs)
    assert list(info["features"]["observation.images.top"]["info"]) == list(
        theirs["features"]["observation.images.top"]["info"]
    )
    assert {info[key] for key in ("codebase_version", "data_path", "video_path")} == {
        theirs[key] for key in ("codebase_version", "data_path", "video_path")
    }
    (mine, *_), (other, *_) = episodes_of(folder), episodes_of(sample)
    assert {key.replace("stats/observation.images.wrist", "") for key in other} - set(mine) == set()
    for key in ("stats/observation.images.top/mean", "stats/observation.images.top/q10", "stats/timestamp/mean"):
        assert np.shape(mine[key]) == np.shape(other[key])


def test_tasks_are_an_index_for_pandas(tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source")
    tasks = ("pour tea", None, "pour tea")
    episodes = tuple(dataclasses.replace(episode, task=task) for episode, task in zip(source.episodes, tasks))
    folder = converted(dataclasses.replace(source, episodes=episodes), tmp_path / "out", "lerobot", task="drink")
    table = pq.read_table(folder / "meta" / "tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "task": ["pour tea", "drink"]}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert [row["tasks"] for row in episodes_of(folder)] == [["pour tea"], ["drink"], ["pour tea"]]
    assert steps_of(folder)["task_index"].to_pylist() == [0] * 5 + [1] * 8 + [0] * 3


def test_episodes_without_a_task_are_told(tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source", (2, 3))
    bare = dataclasses.replace(source, episodes=tuple(dataclasses.replace(e, task=None) for e in source.episodes))
    assert "2 episodes have no task description: pass one by --task" in notes_of(bare, tmp_path / "out", "lerobot")


def test_robot_type_is_kept(tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source", [2], metadata={"robot_type": "aloha"})
    assert info_of(converted(source, tmp_path / "out", "lerobot"))["robot_type"] == "aloha"


def test_a_source_without_steps_a_second_is_refused(tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source", [2], fps=None)
    with pytest.raises(UserError, match=r"has no fps.*: pass --fps N"):
        converted(source, tmp_path / "out", "lerobot")
    folder = converted(source, tmp_path / "out", "lerobot", selection=Selection(fps=25))
    assert info_of(folder)["fps"] == 25


# Statistics ------------------------------------------------------------------------------------------------


def test_statistics_of_columns_are_those_of_all_steps(source: SmoothSource, folder: Path) -> None:
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    actions = np.concatenate([source.read_columns(episode, ["action"])["action"] for episode in range(3)])
    for name, expected in (("mean", actions.mean(0)), ("std", actions.std(0)), ("min", actions.min(0))):
        assert stats["action"][name] == pytest.approx(expected.tolist(), rel=1e-5)
    assert stats["action"]["count"] == [16]
    assert stats["index"]["max"] == [15]
    assert set(stats) == set(info_of(folder)["features"])


def test_statistics_of_images_are_those_of_the_sampled_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 30, 40, 3), dtype=np.uint8)
    stats = image_stats(sum(pixel_counts(image) for image in images), len(images))
    pixels = images.reshape(-1, 3) / 255
    expected = {"min": pixels.min(0), "max": pixels.max(0), "mean": pixels.mean(0), "std": pixels.std(0)}
    shares = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
    expected |= {name: np.quantile(pixels, share, axis=0, method="inverted_cdf") for name, share in shares.items()}
    assert set(stats) == {*expected, "count"}
    for name, value in expected.items():
        assert stats[name].shape == (3, 1, 1)
        assert stats[name].reshape(3) == pytest.approx(value, abs=1e-12), name
    assert stats["count"].tolist() == [7]


def test_large_images_are_reduced_as_lerobot_does() -> None:
    assert pixel_counts(np.zeros((480, 640, 3), np.uint8)).sum() == 3 * 120 * 160
    assert pixel_counts(np.zeros((299, 299, 3), np.uint8)).sum() == 3 * 299 * 299


def test_few_images_of_a_long_episode_count() -> None:
    assert sampled_steps(3) == {0, 1, 2}
    assert len(sampled_steps(400)) == 100
    assert len(sampled_steps(1000)) == 177
    assert {0, 999} <= sampled_steps(1000)


def test_values_that_are_not_finite_are_no_error() -> None:
    values = np.array([[0.0, 1.0], [np.nan, np.inf]], np.float32)
    stats = vector_stats(values)
    assert np.isnan(stats["mean"][0])
    assert np.isinf(stats["max"][1])
