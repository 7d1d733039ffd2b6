"""LeRobotDatasets of every version: each step's vectors and images as they were written, or a sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot_files import (
    ACTION,
    LEFT,
    LENGTHS,
    SIZE,
    STATE,
    TOP,
    V2,
    V2_IMAGES,
    V3,
    V3_IMAGES,
    VARIANTS,
    Variant,
    assert_as_written,
    change_feature,
    change_info,
    change_table,
    shows,
    vectors,
    write_lerobot,
)

from bimact.data.formats import lerobot
from bimact.data.formats.lerobot import FORMAT, open_lerobot
from bimact.errors import UserError

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
DATA_V3 = "data/chunk-000/file-000.parquet"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, VARIANTS[name])
    assert FORMAT.recognizes(folder)
    source = open_lerobot(folder)
    assert source.format == f"LeRobotDataset {VARIANTS[name].version}"
    assert [episode.name for episode in source.episodes] == ["episode 0", "episode 1", "episode 2"]
    assert source.lengths.tolist() == list(LENGTHS)
    assert source.fps == 10 and source.unusable == () and source.color_order is None
    assert source.metadata == {"robot_type": "aloha"}
    assert [episode.task for episode in source.episodes] == ["hand the cube over", "insert the peg"] + [
        "hand the cube over"
    ]
    assert {name: (camera.height, camera.width) for name, camera in source.cameras.items()} == {
        "top": SIZE,
        "left_wrist": SIZE,
    }
    assert source.state_keys == (STATE,) and source.action_keys == (ACTION,)
    assert source.columns[STATE].names == tuple(f"joint {number}" for number in range(14))
    assert list(source.columns) == [STATE, ACTION, "next.reward", "next.done"]
    times = source.read_timestamps(1)
    assert times is not None and times.dtype == np.float64
    np.testing.assert_allclose(times, np.arange(4) / 10, atol=1e-6)
    assert_as_written(source)


@pytest.mark.parametrize("variant", [V2, V3, V3_IMAGES])
def test_a_source_is_read_in_another_process(tmp_path: Path, variant: Variant) -> None:
    source = pickle.loads(pickle.dumps(open_lerobot(write_lerobot(tmp_path / "set", LENGTHS, variant))))
    assert_as_written(source)


@pytest.mark.parametrize("variant", [V2, V3])
def test_frames_are_matched_once_for_their_note_and_their_images(
    tmp_path: Path, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_lerobot(write_lerobot(tmp_path / "set", variant=variant))
    matched = []
    match = lerobot.match_frames
    monkeypatch.setattr(lerobot, "match_frames", lambda *args, **named: matched.append(args) or match(*args, **named))
    for _ in range(2):
        assert source.frames_note(1, "top") is None
        first, last = source.read_frames(1, "top", [0, 3])
        assert shows(first, 0, 1, 0) and shows(last, 0, 1, 3)
    assert len(matched) == 1


def test_arrays_are_read_from_the_row_groups_of_their_episode_alone(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", (4, 4), Variant("v3.0", None), cameras=[TOP])
    values = np.random.default_rng(0).integers(0, 256, (8, 48 * 64 * 3), dtype=np.uint8)
    arrays = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    path = folder / DATA_V3
    change_table(path, lambda table: table.set_column(table.schema.get_field_index(TOP), TOP, arrays), row_group=4)
    change_feature(folder, TOP, dtype="uint8", shape=[48, 64, 3])
    metadata = pq.read_metadata(path)
    (column,) = (
        number for number in range(metadata.num_columns) if metadata.schema.column(number).path.startswith(TOP)
    )
    with path.open("r+b") as file:  # the first episode's images
        file.seek(metadata.row_group(0).column(column).data_page_offset)
        file.write(b"\xff" * 64)
    source = open_lerobot(folder)
    images = np.stack(list(source.read_frames(1, "top", [0, 2, 2])))
    np.testing.assert_array_equal(images, values[[4, 6, 6]].reshape(3, 48, 64, 3))
    with pytest.raises(UserError, match=r"file-000\.parquet cannot be read as Parquet"):
        next(source.read_frames(0, "top", [0]))


def test_images_of_an_episode_that_lacks_the_camera_are_told(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", variant=V2_IMAGES)
    change_table(folder / "data/chunk-000/episode_000001.parquet", lambda table: table.drop_columns([TOP]))
    source = open_lerobot(folder)
    with pytest.raises(UserError, match=r"episode_000001\.parquet cannot be read .*observation\.images\.top"):
        next(source.read_frames(1, "top", [0]))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), variant=st.sampled_from([V2, V3, V2_IMAGES, V3_IMAGES]))
def test_any_steps_of_any_episode(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, variant: Variant
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    folder = write_lerobot(tmp_path_factory.mktemp("any") / "set", lengths, variant, cameras=(TOP,), size=(32, 48))
    source = open_lerobot(folder)
    assert source.lengths.tolist() == lengths
    episode = data.draw(st.integers(0, len(lengths) - 1))
    steps = sorted(data.draw(st.lists(st.integers(0, lengths[episode] - 1), max_size=12)))
    images = list(source.read_frames(episode, "top", steps))
    assert len(images) == len(steps)
    assert all(shows(image, 0, episode, step) for step, image in zip(steps, images))


# What others' software wrote -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lerobot_v30_aloha_sim", "lerobot_v21_g1_bottle"])
def test_samples_are_what_their_files_hold(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip("the samples are not here")
    source = open_lerobot(SHARED / name)
    place, length = source.places[1], source.episodes[1].length
    table = pq.read_table(SHARED / name / place.file).slice(place.start, length)
    read = source.read_columns(1, [STATE, ACTION])
    for key in (STATE, ACTION):
        np.testing.assert_array_equal(read[key], np.array(table[key].to_pylist(), dtype=np.float32))
    (camera,) = source.cameras
    video = place.videos[source.features[camera].key]
    first = round(video.start * source.fps)
    steps = [0, 1, 2, 50, length - 1]
    wanted = []
    with av.open(str(SHARED / name / video.file)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number - first in steps:
                wanted.append(frame.to_ndarray(format="rgb24"))
            if len(wanted) == len(steps):
                break
    for image, frame in zip(source.read_frames(1, camera, steps), wanted):
        np.testing.assert_array_equal(image, frame)


# Names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (("observation.images.cam_high", "observation.image"), ("cam_high", "image")),
        (("observation.images.wrist.left", "observation.images.wrist.right"), ("wrist.left", "wrist.right")),
        (("observation.images.top", "observation.image.top"), ("observation.images.top", "observation.image.top")),
        (("top", "pixels"), ("top", "pixels")),
        (("observation.images..hidden", "observation.images.a b"), ("_hidden", "a b")),
    ],
)
def test_cameras_are_called_by_the_end_of_their_keys(
    tmp_path: Path, keys: tuple[str, ...], names: tuple[str, ...]
) -> None:
    source = open_lerobot(write_lerobot(tmp_path / "set", LENGTHS, V3, cameras=keys))
    assert tuple(source.cameras) == names
    assert_as_written(source, names)


def test_a_key_with_a_slash_becomes_a_name_without(tmp_path: Path) -> None:
    source = open_lerobot(write_lerobot(tmp_path / "set", (3,), V2_IMAGES, cameras=("cam/left", "cam/right")))
    assert tuple(source.cameras) == ("cam_left", "cam_right")


def test_cameras_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", (3,), V2_IMAGES, cameras=("cam/left", "cam_left"))
    with pytest.raises(UserError, match="cam/left, cam_left cannot be told apart"):
        open_lerobot(folder)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ("a", "b")),
        ([["a", "b"]], ("a", "b")),
        ({"motors": ["a", "b"]}, ("a", "b")),
        ({"left": ["a"], "right": ["b"]}, ("a", "b")),
        (["a"], None),
        (None, None),
        ("ab", None),
        ({"a": 0, "b": 1}, None),
        ([], None),
        ([1, 2], None),
    ],
)
def test_names_of_joints_come_in_many_forms(tmp_path: Path, names: Any, expected: tuple[str, ...] | None) -> None:
    folder = write_lerobot(tmp_path / "set", (3,), V2_IMAGES, dim=2)
    change_feature(folder, ACTION, names=names)
    assert open_lerobot(folder).columns[ACTION].names == expected


def test_depth_is_no_camera(tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"info": {"video.is_depth_map": True}},
        {"video_info": {"is_depth_map": True}},
        {"is_depth_map": True},
    ]
    for number, details in enumerate(forms):
        folder = write_lerobot(tmp_path / str(number), (3,), V3)
        change_feature(folder, LEFT, info=None)
        change_feature(folder, LEFT, **details)
        shutil.rmtree(folder / "videos" / LEFT)  # it is not looked at
        assert tuple(open_lerobot(folder).cameras) == ("top",)


def test_info_of_ported_datasets(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2)
    change_feature(
        folder,
        TOP,
        names=["height", "width", "channel"],
        shape=[3, 999, 999],
        info=None,
        video_info={"video.fps": 10.0, "video.codec": "av1", "video.is_depth_map": False, "has_audio": False},
    )
    change_info(folder, total_chunks=None, splits=None, robot_type=None, codebase_version="v2.0")
    source = open_lerobot(folder)
    assert (source.cameras["top"].height, source.cameras["top"].width) == SIZE
    assert source.metadata == {}
    assert_as_written(source)


def test_paths_that_are_not_told_are_lerobots(tmp_path: Path) -> None:
    for variant in (V2, V3):
        folder = write_lerobot(tmp_path / variant.version, LENGTHS, variant)
        change_info(folder, data_path=None, video_path=None, codebase_version=None, chunks_size=2)
        assert_as_written(open_lerobot(folder))


# Columns -------------------------------------------------------------------------------------------


def _lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.array(values.tolist(), kind)


COLUMNS: dict[str, tuple[Callable[[np.ndarray], pa.Array], str]] = {
    "fixed lists": (lambda v: _lists(v, pa.list_(pa.float32(), v.shape[1])), "float32"),
    "lists": (lambda v: _lists(v, pa.list_(pa.float32())), "float32"),
    "lists of double": (lambda v: _lists(v, pa.list_(pa.float64())), "float64"),
    "large lists": (lambda v: _lists(v, pa.large_list(pa.float32())), "float32"),
    "half": (
        lambda v: pa.FixedSizeListArray.from_arrays(pa.array(v.astype(np.float16).ravel()), v.shape[1]),
        "float16",
    ),
    "integers": (lambda v: _lists(v.astype(np.int32), pa.list_(pa.int32())), "int32"),
    "truth": (lambda v: _lists(v > 2, pa.list_(pa.bool_(), v.shape[1])), "bool"),
    "lists of lists": (
        lambda v: _lists(v.reshape(-1, 2, v.shape[1] // 2), pa.list_(pa.list_(pa.float32()))),
        "float32",
    ),
    "fixed lists of lists": (
        lambda v: _lists(v.reshape(-1, 2, v.shape[1] // 2), pa.list_(pa.list_(pa.float32(), v.shape[1] // 2), 2)),
        "float32",
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("variant", [V2_IMAGES, V3_IMAGES])
def test_vectors_of_any_type(tmp_path: Path, name: str, variant: Variant) -> None:
    make, dtype = COLUMNS[name]
    folder = write_lerobot(tmp_path / "set", LENGTHS, variant, dim=6, cameras=())

    def changed(table: pa.Table) -> pa.Table:
        values = np.array(table[ACTION].to_pylist(), dtype=np.float32)
        return table.set_column(table.schema.names.index(ACTION), ACTION, make(values))

    for path in folder.glob("data/*/*.parquet"):
        change_table(path, changed)
    source = open_lerobot(folder)
    assert (source.columns[ACTION].size, source.columns[ACTION].dtype) == (6, dtype)
    for episode, length in enumerate(LENGTHS):
        values = vectors(episode, length, 6)[ACTION]
        expected = values > 2 if dtype == "bool" else values.astype(dtype)
        read = source.read_columns(episode, [ACTION])[ACTION]
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, expected)


def test_numbers_without_a_list_are_vectors_of_one(tmp_path: Path) -> None:
    source = open_lerobot(write_lerobot(tmp_path / "set", LENGTHS, V3))
    read = source.read_columns(0, ["next.reward", "next.done"])
    np.testing.assert_allclose(read["next.reward"], np.arange(6)[:, None] / 6, atol=1e-6)
    assert read["next.done"].dtype == bool and read["next.done"][:, 0].tolist() == [False] * 5 + [True]


def test_a_state_in_parts_is_all_of_them(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2_IMAGES, cameras=())

    def divided(table: pa.Table) -> pa.Table:
        parts = {f"{STATE}.joints": STATE, f"{STATE}.gripper": "next.reward", f"{ACTION}.arm": ACTION}
        for key, source in parts.items():
            table = table.append_column(key, table[source])
        return table.drop([STATE, ACTION])

    for path in folder.glob("data/*/*.parquet"):
        change_table(path, divided)
    for key in (f"{STATE}.joints", f"{STATE}.gripper", f"{ACTION}.arm", "action_is_pad"):
        change_feature(folder, key, dtype="float32", shape=[1], names=None)
    source = open_lerobot(folder)
    assert source.state_keys == (f"{STATE}.joints", f"{STATE}.gripper")
    assert source.action_keys == (f"{ACTION}.arm",)
    read = source.read_columns(1, source.state_keys)
    np.testing.assert_array_equal(read[f"{STATE}.joints"], vectors(1, 4)[STATE])


def test_a_key_that_begins_like_another_is_not_mixed_up_with_it(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V3, cameras=())
    change_feature(folder, f"{STATE}.velocity", dtype="float32", shape=[1], names=None)
    for path in folder.glob("data/*/*.parquet"):
        change_table(path, lambda table: table.add_column(0, f"{STATE}.velocity", table["next.reward"]))
    source = open_lerobot(folder)
    assert source.state_keys == (STATE,)
    np.testing.assert_array_equal(source.read_columns(2, [STATE])[STATE], vectors(2, 5)[STATE])


@pytest.mark.parametrize("dropped", [["index", "task_index"], ["timestamp"], ["timestamp", "frame_index"]])
@pytest.mark.parametrize("variant", [V2, V3])
def test_columns_of_bookkeeping_may_be_missing(tmp_path: Path, dropped: list[str], variant: Variant) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, variant)
    for path in folder.glob("data/*/*.parquet"):
        change_table(path, lambda table: table.drop(dropped))
    source = open_lerobot(folder)
    assert (source.read_timestamps(0) is None) == ("timestamp" in dropped)
    assert_as_written(source)


@pytest.mark.parametrize("row_group", [None, 1, 3, 100])
def test_rows_are_found_in_any_row_groups(tmp_path: Path, row_group: int | None) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, Variant("v3.0", None, episodes_per_file=3))
    change_table(folder / "data/chunk-000/file-000.parquet", lambda table: table, row_group)
    assert_as_written(open_lerobot(folder))


def test_without_episode_numbers_rows_are_found_by_the_listed_indices(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V3)
    for path in folder.glob("data/*/*.parquet"):
        change_table(path, lambda table: table.drop(["episode_index"]))
    assert_as_written(open_lerobot(folder))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: [*v[:2], v[2][:5], *v[3:]], "column action has another number of values in row 2"),
        (lambda v: [*v[:2], None, *v[3:]], "column action has another number of values in row 2"),
        (lambda v: [*v[:2], [None, *v[2][1:]], *v[3:]], "column action has no value in row 2"),
    ],
)
def test_rows_that_lack_numbers_are_told(tmp_path: Path, change: Callable[[list], list], sentence: str) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2_IMAGES, cameras=())
    change_table(
        folder / "data/chunk-000/episode_000000.parquet",
        lambda table: table.set_column(1, ACTION, pa.array(change(table[ACTION].to_pylist()), pa.list_(pa.float32()))),
    )
    source = open_lerobot(folder)
    with pytest.raises(UserError, match=rf"episode_000000\.parquet: {sentence}"):
        source.read_columns(0, [ACTION])
    assert source.read_columns(0, [STATE])[STATE].shape == (6, 14)


# Tasks and files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [V2, V3])
def test_tasks_that_episodes_do_not_list_are_found_by_their_numbers(tmp_path: Path, variant: Variant) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, variant)
    if variant is V2:
        path = folder / "meta/episodes.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("\n".join(json.dumps({**record, "tasks": None}) for record in records))
    else:
        change_table(folder / "meta/episodes/chunk-000/file-000.parquet", lambda table: table.drop(["tasks"]))
    tasks = [episode.task for episode in open_lerobot(folder).episodes]
    assert tasks == ["hand the cube over", "insert the peg", "hand the cube over"]
    (folder / ("meta/tasks.jsonl" if variant is V2 else "meta/tasks.parquet")).unlink()
    assert [episode.task for episode in open_lerobot(folder).episodes] == [None] * 3


def test_several_tasks_of_an_episode_are_all_told(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2)
    path = folder / "meta/episodes.jsonl"
    path.write_text('{"episode_index": 1, "tasks": ["reach", "grasp", "reach"], "length": 4}\n')
    assert open_lerobot(folder).episodes[0].task == "reach; grasp"


@pytest.mark.parametrize("variant", [V2, V3])
def test_all_files_that_the_content_depends_on_are_named(tmp_path: Path, variant: Variant) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, variant)
    source = open_lerobot(folder)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(source.files) == present - {"meta/stats.json", "meta/episodes_stats.jsonl"}
    assert len(set(source.files)) == len(source.files)
    assert set(source.episodes[1].files) < set(source.files)


def test_episodes_are_listed_in_several_files(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V3)
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 1), path)
    (folder / "meta/episodes/chunk-001").mkdir()
    pq.write_table(table.slice(1), folder / "meta/episodes/chunk-001/file-000.parquet")
    source = open_lerobot(folder)
    assert_as_written(source)
    assert "meta/episodes/chunk-001/file-000.parquet" in source.files


# Images in the tables ------------------------------------------------------------------------------


def _set_images(folder: Path, cells: list[Any], kind: pa.DataType) -> None:
    change_table(
        folder / "data/chunk-000/episode_000000.parquet",
        lambda table: table.set_column(table.schema.names.index(TOP), TOP, pa.array(cells, kind)),
    )


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def _written_images(folder: Path) -> list[bytes]:
    table = pq.read_table(folder / "data/chunk-000/episode_000000.parquet")
    return [cell["bytes"] for cell in table[TOP].to_pylist()]


def test_images_may_be_files_of_the_dataset_or_bytes_alone(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", (3,), V2_IMAGES)
    images = _written_images(folder)
    _set_images(folder, images, pa.binary())
    assert_as_written(open_lerobot(folder))
    (folder / "images").mkdir()
    for step, content in enumerate(images):
        (folder / f"images/frame_{step}.png").write_bytes(content)
    _set_images(folder, [{"bytes": None, "path": f"images/frame_{step}.png"} for step in range(3)], STRUCT)
    assert_as_written(open_lerobot(folder))


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ({"bytes": None, "path": "../secret.png"}, "leaves the dataset"),
        ({"bytes": None, "path": "{secret}"}, "leaves the dataset"),
        ({"bytes": None, "path": "link.png"}, "leaves the dataset"),
        ({"bytes": None, "path": "missing.png"}, "missing.png is missing"),
        ({"bytes": None, "path": "data"}, "is no file"),
        ({"bytes": None, "path": None}, "episode 0, step 1, observation.images.top holds no image"),
        ({"bytes": b"no image", "path": None}, "episode 0, step 1, .* is no PNG, JPEG or WebP file"),
        ({"bytes": b"cut", "path": None}, "episode 0, step 1, .* damaged"),
        (None, "episode 0, step 1, .* holds no image"),
    ],
)
def test_cells_without_a_proper_image_are_told(tmp_path: Path, cell: Any, sentence: str) -> None:
    folder = write_lerobot(tmp_path / "set", (3,), V2_IMAGES)
    images = _written_images(folder)
    secret = tmp_path / "secret.png"
    secret.write_bytes(images[0])
    (folder / "link.png").symlink_to(secret)
    if cell is not None and cell["bytes"] == b"cut":
        cell = {**cell, "bytes": images[1][:-30]}
    if cell is not None and cell["path"] == "{secret}":
        cell = {**cell, "path": str(secret)}
    _set_images(folder, [{"bytes": images[0], "path": None}, cell, {"bytes": images[2], "path": None}], STRUCT)
    frames = open_lerobot(folder).read_frames(0, "top", range(3))
    assert shows(next(frames), 0, 0, 0)
    with pytest.raises(UserError, match=sentence):
        next(frames)
