"""Replay buffers of diffusion_policy: all of them is read, nothing of theirs runs, and each fault is told."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import read_as_training_does, skipped
from zarr_files import replay_arrays, write_replay, zipped

from bimact.data.formats.zarr_replay import ZarrReplay, is_zarr_replay, open_zarr_replay
from bimact.data.opening import open_dataset, open_source
from bimact.data.selection import Selection
from bimact.data.workers import run_apart
from bimact.errors import UserError

numcodecs = pytest.importorskip("numcodecs")
zarr = pytest.importorskip("zarr")
HAS_V3 = int(zarr.__version__.partition(".")[0]) >= 3
VERSIONS = [2, 3] if HAS_V3 else [2]
LENGTHS = [5, 7, 3]
needs_v3 = pytest.mark.skipif(not HAS_V3, reason="zarr before 3 reads version 2 alone")


def opened(path: Path) -> ZarrReplay:
    """A source as a child process gets it."""
    source = pickle.loads(pickle.dumps(open_zarr_replay(path, None)))
    assert isinstance(source, ZarrReplay)
    return source


def read_all(source: ZarrReplay) -> dict[str, np.ndarray]:
    """All that a source holds: key → (N, ...)."""
    episodes = range(len(source.episodes))
    columns = [source.read_columns(number, tuple(source.columns)) for number in episodes]
    found = {key: np.concatenate([part[key] for part in columns]) for key in source.columns}
    for camera in source.cameras:
        found[camera] = np.stack(
            [frame for e in episodes for frame in source.read_frames(e, camera, range(source.episodes[e].length))]
        )
    for number in episodes:
        source.read_timestamps(number)
    return found


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_as_training_does(opened(path))
    sentence = str(caught.value)
    assert "\n" not in sentence and str(path) in sentence and len(sentence) < 1000
    return sentence


def edit(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def buffer(tmp_path: Path) -> Path:
    return write_replay(tmp_path / "x.zarr", LENGTHS)


# What is read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["folder", "in a folder", "zip", "zip with a folder", "compressed zip"])
@pytest.mark.parametrize("version", VERSIONS)
def test_episodes_are_those_that_were_written(tmp_path: Path, version: int, place: str) -> None:
    arrays = replay_arrays(LENGTHS)
    path = write_replay(tmp_path / "d" / "x.zarr", LENGTHS, arrays, version=version)
    if "zip" in place:
        compression = zipfile.ZIP_DEFLATED if place.startswith("compressed") else zipfile.ZIP_STORED
        prefix = "x.zarr/" if place.endswith("folder") else ""
        path = zipped(path, tmp_path / "x.zarr.zip", prefix, compression)
    elif place == "in a folder":
        path = path.parent
    assert is_zarr_replay(path)
    source = opened(path)
    assert (source.path, source.format) == (path, f"zarr v{version} replay buffer")
    assert [(episode.name, episode.length) for episode in source.episodes] == [
        ("episode 0", 5),
        ("episode 1", 7),
        ("episode 2", 3),
    ]
    assert {key: (camera.height, camera.width) for key, camera in source.cameras.items()} == {
        "camera_0": (16, 24),
        "camera_1": (16, 24),
    }
    assert {key: (column.size, column.dtype) for key, column in source.columns.items()} == {
        "state": (14, "float32"),
        "action": (14, "float32"),
        "timestamp": (1, "float64"),
    }
    assert (source.state_keys, source.action_keys, source.fps) == (("state",), ("action",), 10.0)
    for key, values in read_all(source).items():
        np.testing.assert_array_equal(values, arrays[key].reshape(values.shape), err_msg=key)
    times = source.read_timestamps(1)
    assert times is not None and times.dtype == np.float64
    np.testing.assert_array_equal(times, arrays["timestamp"][5:12])
    for name in source.files:
        assert (path / name).exists(), name
    needed = "." if path.is_file() else f"{'x.zarr/' if place == 'in a folder' else ''}data/action/"
    assert any(name.startswith(needed) for name in source.files)


def test_frames_come_in_the_order_of_their_steps_with_repetitions(buffer: Path) -> None:
    expected = replay_arrays(LENGTHS)["camera_1"][5:12]
    frames = list(opened(buffer).read_frames(1, "camera_1", [0, 0, 2, 6, 6]))
    np.testing.assert_array_equal(frames, expected[[0, 0, 2, 6, 6]])
    assert all(frame.flags.c_contiguous and frame.dtype == np.uint8 for frame in frames)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    chunk=st.integers(1, 9),
    version=st.sampled_from(VERSIONS),
    kind=st.sampled_from(["f2", "<f4", ">f4", "<f8", "i1", "<i8", ">u2", "u1", "?"]),
    shape=st.sampled_from([(), (1,), (5,)]),
)
def test_any_chunks_and_types_are_read(
    tmp_path: Path, lengths: list[int], chunk: int, version: int, kind: str, shape: tuple[int, ...]
) -> None:
    values = np.random.default_rng(chunk).integers(0, 100, (sum(lengths), *shape)).astype(kind)
    arrays = {"qpos": values, "action": values[::-1]}
    path = tmp_path / "x.zarr"
    shutil.rmtree(path, ignore_errors=True)
    source = opened(write_replay(path, lengths, arrays, version=version, chunk=chunk))
    assert source.lengths.tolist() == lengths
    for key, found in read_all(source).items():
        np.testing.assert_array_equal(found, arrays[key].reshape(len(values), -1))
        assert found.dtype == values.dtype.newbyteorder("=")


CODECS_V2: dict[str, dict[str, Any]] = {
    "none": {"compressor": None},
    "blosc": {"compressor": numcodecs.Blosc("zstd", 5, numcodecs.Blosc.BITSHUFFLE)},
    "blosc lz4": {"compressor": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.NOSHUFFLE)},
    "zstd": {"compressor": numcodecs.Zstd()},
    "lz4": {"compressor": numcodecs.LZ4()},
    "zlib": {"compressor": numcodecs.Zlib()},
    "gzip": {"compressor": numcodecs.GZip()},
    "bz2": {"compressor": numcodecs.BZ2()},
    "lzma": {"compressor": numcodecs.LZMA()},
    "delta and shuffle": {
        "filters": [numcodecs.Delta("f4"), numcodecs.Shuffle(4), numcodecs.CRC32()],
        "compressor": numcodecs.Zstd(),
    },
    "filters alone": {"filters": [numcodecs.BitRound(23)], "compressor": None},
    "Fortran order": {"order": "F"},
}


@pytest.mark.parametrize("name", CODECS_V2)
def test_codecs_of_v2_that_run_no_code_are_read(tmp_path: Path, name: str) -> None:
    state = np.rint(100 * replay_arrays(LENGTHS)["state"])  # of which differences are exact
    arrays = {"state": state, "action": replay_arrays(LENGTHS)["action"]}
    path = write_replay(tmp_path / "x.zarr", LENGTHS, arrays, codecs={"state": CODECS_V2[name]})
    np.testing.assert_array_equal(read_all(opened(path))["state"], arrays["state"])


@needs_v3
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize("name", ["none", "blosc", "zstd", "gzip", "crc32c", "numcodecs", "shards", "keys of v2"])
def test_codecs_of_v3_are_read(tmp_path: Path, name: str) -> None:
    from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec
    from zarr.codecs.numcodecs import LZMA

    arrays = {"state": replay_arrays(LENGTHS)["state"], "action": replay_arrays(LENGTHS)["action"]}
    more: dict[str, dict[str, Any]] = {
        "none": {"compressors": None},
        "blosc": {"compressors": BloscCodec()},
        "zstd": {"compressors": ZstdCodec()},
        "gzip": {"compressors": GzipCodec()},
        "crc32c": {"compressors": [ZstdCodec(), Crc32cCodec()]},
        "numcodecs": {"compressors": LZMA()},
        "shards": {"chunks": (2, 14), "shards": (6, 14)},
        "keys of v2": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    }
    path = write_replay(tmp_path / "x.zarr", LENGTHS, arrays, version=3, codecs={"state": more[name]})
    np.testing.assert_array_equal(read_all(opened(path))["state"], arrays["state"])


@pytest.mark.parametrize("layout", ["channels last", "channels first"])
@pytest.mark.parametrize(("kind", "white"), [("u1", 255), ("f4", 255), ("f8", 255), ("f4", 1), ("f2", 1)])
def test_images_are_told_by_shape_and_range(tmp_path: Path, layout: str, kind: str, white: int) -> None:
    colors = replay_arrays(LENGTHS)["camera_0"]
    images = colors if kind == "u1" else (colors * (white / 255)).astype(kind)
    if layout == "channels first":
        images = np.moveaxis(images, -1, 1)
    source = opened(
        write_replay(tmp_path / "x.zarr", LENGTHS, {"img": images, "action": replay_arrays(LENGTHS)["action"]})
    )
    assert {key: (camera.height, camera.width) for key, camera in source.cameras.items()} == {"img": (16, 24)}
    np.testing.assert_array_equal(read_all(source)["img"], colors)


def test_chunks_that_divide_images_are_joined(tmp_path: Path) -> None:
    arrays = replay_arrays(LENGTHS)
    path = write_replay(tmp_path / "x.zarr", LENGTHS, arrays)
    group = zarr.open_group(str(path), mode="r+")
    del group["data/camera_0"]
    more = {"zarr_format": 2} if HAS_V3 else {}
    written = zarr.open_array(
        str(path / "data" / "camera_0"),
        mode="w",
        shape=arrays["camera_0"].shape,
        chunks=(2, 7, 10, 3),
        dtype="u1",
        **more,
    )
    written[:] = arrays["camera_0"]
    np.testing.assert_array_equal(read_all(opened(path))["camera_0"], arrays["camera_0"])


def test_arrays_of_other_kinds_are_left_out_and_named(tmp_path: Path) -> None:
    steps = sum(LENGTHS)
    arrays = {
        "action": np.ones((steps, 2), np.float32),
        "keypoint": np.ones((steps, 9, 2), np.float32),
        "depth": np.ones((steps, 16, 24, 1), np.uint16),
        "rotations": np.ones((steps, 2, 3, 3), np.float32),
        "label": np.array(["reach"] * steps),
    }
    source = opened(write_replay(tmp_path / "x.zarr", LENGTHS, arrays))
    assert list(source.columns) == ["action"] and not source.cameras
    assert {entry.name: entry.reason for entry in source.left_out if entry.kind == "column"} == {
        "keypoint": "is (15, 9, 2) of <f4",
        "label": "is (15,) of <U5",
        "rotations": "is (15, 2, 3, 3) of <f4",
    }
    assert [entry.name for entry in source.left_out if entry.kind == "depth"] == ["depth"]


@pytest.mark.parametrize(
    ("keys", "state", "action"),
    [
        (["action", "state", "agent_pos"], ["state"], ["action"]),
        (["actions", "robot_joint", "robot_joint_vel", "robot_eef_pose", "stage"], ["robot_eef_pose"], ["actions"]),
        (
            [f"robot{i}_{part}" for i in (0, 1) for part in ("eef_pos", "eef_rot_axis_angle", "gripper_width")]
            + ["robot0_demo_start_pose", "robot0_demo_end_pose"],
            [f"robot{i}_{part}" for i in (0, 1) for part in ("eef_pos", "eef_rot_axis_angle", "gripper_width")],
            [],
        ),
        (
            ["action", "left_arm", "right_arm", "reward", "timestamp", "stage", "done"],
            ["left_arm", "right_arm"],
            ["action"],
        ),
        (["action", "action_mode"], [], ["action"]),
    ],
)
def test_state_and_action_are_chosen_by_name(
    tmp_path: Path, keys: list[str], state: list[str], action: list[str]
) -> None:
    arrays = {key: np.ones((sum(LENGTHS), 2), np.float32) for key in keys}
    source = opened(write_replay(tmp_path / "x.zarr", LENGTHS, arrays))
    assert (list(source.state_keys), list(source.action_keys)) == (state, action)
    assert sorted(source.columns) == sorted(keys)


@pytest.mark.parametrize("version", VERSIONS)
def test_fps_is_an_attribute_before_it_is_the_distance_of_times(tmp_path: Path, version: int) -> None:
    path = write_replay(tmp_path / "x.zarr", LENGTHS, version=version, attributes={"fps": 29.97})
    assert opened(path).fps == 29.97


def test_fps_and_times_are_unknown_where_nothing_tells_them(tmp_path: Path) -> None:
    arrays = {key: values for key, values in replay_arrays(LENGTHS).items() if key != "timestamp"}
    source = opened(write_replay(tmp_path / "x.zarr", LENGTHS, arrays))
    assert source.fps is None and source.read_timestamps(0) is None


def test_empty_episodes_are_named_and_left_out(tmp_path: Path) -> None:
    source = opened(write_replay(tmp_path / "x.zarr", [4, 0, 3]))
    assert [episode.name for episode in source.episodes] == ["episode 0", "episode 2"]
    assert skipped(source) == ("episode 1: it has no steps",)
    np.testing.assert_array_equal(source.read_columns(1, ["state"])["state"], replay_arrays([4, 0, 3])["state"][4:])


def test_steps_after_the_last_episode_belong_to_none(tmp_path: Path) -> None:
    source = opened(write_replay(tmp_path / "x.zarr", [4, 3], replay_arrays([4, 6])))
    assert len(read_all(source)["state"]) == 7
    assert source.notes[0].endswith("up to 3 rows after the last episode belong to no episode and are not used")


def test_open_source_reads_a_buffer_in_a_process_of_its_own(buffer: Path) -> None:
    source = open_source(buffer)
    assert isinstance(source, ZarrReplay) and source.num_steps == 15


def test_a_folder_of_several_buffers_has_to_be_told_which(tmp_path: Path) -> None:
    for name in ("a.zarr", "b.zarr"):
        write_replay(tmp_path / name, [2])
    assert f"choose one of them, such as {tmp_path / 'a.zarr'}" in refusal(tmp_path)


def test_other_folders_and_files_are_no_buffers(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK")
    assert not is_zarr_replay(dataset) and not is_zarr_replay(tmp_path / "x.zip")


# Images that are compressed as images --------------------------------------------------------------


def with_image_codec(path: Path, codec: str) -> Path:
    """A buffer that names a codec of imagecodecs, as UMI writes them."""
    write_replay(path, LENGTHS, chunk=1, codecs={"camera_0": {"compressor": None}})
    settings_of_writer = {"id": codec, "level": 50, "numthreads": 1, "tile": None, "a_setting_of_another_version": 1}
    edit(path / "data" / "camera_0" / ".zarray", compressor=settings_of_writer)
    return path


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs is installed")
def test_a_missing_image_codec_names_the_package_to_install(tmp_path: Path) -> None:
    sentence = refusal(with_image_codec(tmp_path / "x.zarr", "imagecodecs_jpeg2k"))
    assert sentence.endswith(
        "compressed by imagecodecs_jpeg2k, which needs the package imagecodecs: pip install imagecodecs"
    )


@pytest.mark.parametrize("codec", ["jpeg2k", "jpegxl", "png", "webp"])
def test_image_codecs_are_read(tmp_path: Path, codec: str) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    path = with_image_codec(tmp_path / "x.zarr", f"imagecodecs_{codec}")
    images = replay_arrays(LENGTHS)["camera_0"]
    lossless = {"jpeg2k": {"reversible": True}, "jpegxl": {"lossless": True}, "webp": {"lossless": True}}.get(codec, {})
    for row, image in enumerate(images):
        encoded = getattr(imagecodecs, f"{codec}_encode")(image, **lossless)
        (path / "data" / "camera_0" / f"{row}.0.0.0").write_bytes(encoded)
    np.testing.assert_array_equal(read_all(opened(path))["camera_0"], images)


# Faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "key", "chunk"),
    [(2, "camera_1", "2.0.0.0"), (2, "action", "2.0"), (3, "camera_1", "c/2/0/0/0"), (3, "action", "c/2/0")],
)
def test_a_missing_chunk_is_named_with_its_episode_and_step(tmp_path: Path, version: int, key: str, chunk: str) -> None:
    if version not in VERSIONS:
        pytest.skip("zarr before 3")
    path = write_replay(tmp_path / "x.zarr", LENGTHS, version=version)
    (path / "data" / key / chunk).unlink()
    assert f"data/{key}/{chunk} is missing (episode 1, step 3)" in refusal(path)


@pytest.mark.parametrize("cut", [0, 1, 12, 16, 40, -1])
@pytest.mark.parametrize("codec", ["none", "blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma"])
def test_a_chunk_that_is_cut_off_is_named_with_its_episode_and_step(tmp_path: Path, codec: str, cut: int) -> None:
    arrays = {"action": replay_arrays(LENGTHS)["action"]}
    path = write_replay(tmp_path / "x.zarr", LENGTHS, arrays, codecs={"action": CODECS_V2[codec]})
    chunk = path / "data" / "action" / "2.0"
    chunk.write_bytes(chunk.read_bytes()[:cut])
    sentence = refusal(path)
    assert "data/action/2.0 is damaged (episode 1, step 3" in sentence and "copy the dataset again" in sentence


@pytest.mark.parametrize("value", [np.nan, 300.0, -2.0])
def test_values_that_are_no_colours_are_named_with_their_episode_and_step(tmp_path: Path, value: float) -> None:
    images = replay_arrays(LENGTHS)["camera_0"].astype(np.float32)
    images[6, 3, 3, 1] = value
    path = write_replay(tmp_path / "x.zarr", LENGTHS, {"img": images})
    assert (
        "data/img (episode 1, step 1) has values that are no colours: clip them, they have to be from 0 to 255"
        in refusal(path)
    )


@pytest.mark.parametrize("version", [2, 3] if HAS_V3 else [2])
def test_arrays_outside_of_data_are_left_out_with_the_reason(buffer: Path, version: int) -> None:
    more = {"zarr_format": version} if HAS_V3 else {}
    zarr.save_array(str(buffer / "wrenches" / "left"), np.ones((9, 2)), **more)
    left_out = open_zarr_replay(buffer, None).left_out
    assert [(entry.name, entry.reason) for entry in left_out] == [("wrenches/left", "is outside of data")]


def test_an_episode_that_ends_behind_an_array_is_damaged(tmp_path: Path) -> None:
    arrays = {**replay_arrays([5, 7]), "state": np.ones((9, 2), np.float32)}
    path = write_replay(tmp_path / "x.zarr", [5, 7], arrays)
    sentence = refusal(path)
    assert "1 of 2 episodes cannot be used: episode 1: state has 9 rows" in sentence
    assert "meta/episode_ends says that the episode ends at row 12" in sentence
    assert open_dataset(path, selection=Selection(skip_unreadable=True)).lengths.tolist() == [5]


def test_an_array_that_is_too_short_for_most_episodes_has_no_row_for_each_step(tmp_path: Path) -> None:
    goals = np.zeros((3, 16, 16, 3), np.uint8)  # one for each episode
    source = open_zarr_replay(
        write_replay(tmp_path / "x.zarr", [2, 3, 4], {**replay_arrays([2, 3, 4]), "goal": goals}), None
    )
    assert "goal" not in source.cameras
    assert [(entry.name, entry.reason) for entry in source.left_out] == [
        ("goal", "has 3 steps, meta/episode_ends lists 9")
    ]


@pytest.mark.parametrize(
    ("ends", "sentence"),
    [
        (np.array([5, 3, 15]), "episode 1 ends at row 3 and begins at row 5"),
        (np.array([-1, 15]), "episode 0 ends at row -1"),
        (np.array([0]), "lists 0 steps"),
        (np.array([2**62]), "lists 4611686018427387904 steps"),
        (np.array([], np.int64), "lists 0 episodes"),
        (np.array([5.0, 15.0]), "has to be (episodes,) of int64"),
        (np.array([[5, 15]]), "has to be (episodes,) of int64"),
        (np.array(["5", "15"]), "has to be (episodes,) of int64"),
    ],
)
def test_episode_ends_that_cannot_be_are_refused(buffer: Path, ends: np.ndarray, sentence: str) -> None:
    more = {"zarr_format": 2} if HAS_V3 else {}
    chunks = tuple(max(1, size) for size in ends.shape)
    array = zarr.open_array(
        str(buffer / "meta" / "episode_ends"), mode="w", shape=ends.shape, chunks=chunks, dtype=ends.dtype, **more
    )
    array[:] = ends
    if not (buffer / "meta" / "episode_ends" / "0").exists() and ends.tolist() == [0]:
        (buffer / "meta" / "episode_ends" / "0").write_bytes(
            numcodecs.get_codec(array.compressors[0].get_config()).encode(ends)
        )
    assert sentence in refusal(buffer)


def test_a_buffer_without_ends_or_arrays_is_refused(buffer: Path) -> None:
    shutil.move(buffer / "data", buffer / "elsewhere")
    assert "contains no numeric arrays" in refusal(buffer)
    shutil.rmtree(buffer / "meta")
    assert "meta/episode_ends is missing" in refusal(buffer)


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b"{", b'{"zarr_format": 2}', b'{"shape": 7}', b"[" * 100_000, b"\xff\xfe", b" " * (2 << 20)],
)
def test_damaged_metadata_are_refused(buffer: Path, content: bytes) -> None:
    (buffer / "data" / "state" / ".zarray").write_bytes(content)
    assert f"{buffer}/data/state/.zarray" in refusal(buffer)


@pytest.mark.parametrize(
    "changes",
    [
        {"chunks": [10**9, 14]},
        {"chunks": [4, 10**12]},
        {"chunks": [0, 14]},
        {"chunks": [-4, 14]},
        {"chunks": [4]},
        {"chunks": [4.0, 14]},
        {"shape": [15] * 100_000, "chunks": [1] * 100_000},
        {"shape": [15, 10**9], "chunks": [1, 1]},
        {"shape": [-15, 14]},
        {"shape": [10**30, 99_999], "chunks": [10**30, 1]},
        {"order": "X"},
        {"dimension_separator": "../"},
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(buffer: Path, changes: dict[str, Any]) -> None:
    edit(buffer / "data" / "state" / ".zarray", **changes)
    assert f"{buffer}/data/state" in refusal(buffer)


def test_more_steps_than_there_are_chunks_end_at_the_first_that_is_missing(buffer: Path) -> None:
    edit(buffer / "data" / "state" / ".zarray", shape=[10**8, 14])
    edit(buffer / "data" / "action" / ".zarray", shape=[10**8, 14])
    source = opened(buffer)
    assert len(source.read_columns(2, ["state"])["state"]) == 3


# What is hostile -----------------------------------------------------------------------------------


class Payload:
    """What would be seen if its pickle was loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def assert_payload_works(tmp_path: Path) -> bytes:
    pickle.loads(pickle.dumps(Payload(tmp_path / "proof")))
    assert (tmp_path / "proof").is_dir()
    return pickle.dumps(Payload(tmp_path / "mark"))


@pytest.mark.parametrize("role", ["filters", "compressor"])
@pytest.mark.parametrize("kind", ["|O", "<f4", "|u1"])
def test_pickled_arrays_run_nothing(buffer: Path, tmp_path: Path, kind: str, role: str) -> None:
    payload = assert_payload_works(tmp_path)
    codec = {"id": "pickle", "protocol": 4}
    edit(
        buffer / "data" / "state" / ".zarray",
        dtype=kind,
        **{"compressor": None, role: [codec] if role == "filters" else codec},
    )
    for chunk in (buffer / "data" / "state").glob("?.*"):
        chunk.write_bytes(payload)
    if kind == "|O":
        source = opened(buffer)
        read_all(source)
        left_out = {entry.name: entry.reason for entry in source.left_out}
        assert "state" not in source.columns and "|O" in left_out["state"]
    else:
        assert "names the codec 'pickle', which bimact does not run" in refusal(buffer)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "codec", ["pickle", "json2", "msgpack2", "vlen-utf8", "categorize", "imagecodecs_lzma", "", None, 7]
)
def test_codecs_outside_of_the_list_are_refused(buffer: Path, codec: Any) -> None:
    edit(buffer / "meta" / "episode_ends" / ".zarray", compressor={"id": codec})
    assert "which bimact does not run" in refusal(buffer)


@needs_v3
@pytest.mark.parametrize("place", ["array", "shard"])
def test_codecs_of_v3_outside_of_the_list_are_refused(tmp_path: Path, place: str) -> None:
    path = write_replay(tmp_path / "x.zarr", LENGTHS, version=3)
    codecs = [{"name": "bytes"}, {"name": "numcodecs.pickle", "configuration": {}}]
    if place == "shard":
        inside = {"chunk_shape": [2, 14], "codecs": codecs, "index_codecs": [{"name": "bytes"}]}
        codecs = [{"name": "sharding_indexed", "configuration": inside}]
    edit(path / "data" / "state" / "zarr.json", codecs=codecs)
    assert "names the codec 'numcodecs.pickle', which bimact does not run" in refusal(path)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("setting", ["dtype", "astype"])
def test_codecs_that_make_objects_are_refused(tmp_path: Path, setting: str, version: int) -> None:
    path = write_replay(tmp_path / "x.zarr", LENGTHS, version=version)
    codec = {"dtype": "<f4", setting: "|O"}
    if version == 2:
        edit(path / "data" / "state" / ".zarray", filters=[{"id": "delta", **codec}])
    else:
        codecs = [{"name": "numcodecs.delta", "configuration": codec}, {"name": "bytes"}]
        edit(path / "data" / "state" / "zarr.json", codecs=codecs)
    assert f"{setting} of the codec" in refusal(path)


@pytest.mark.parametrize("name", ["data/state/1.0", "data/state/.zarray", "meta/episode_ends/0", "data/state"])
def test_links_out_of_the_folder_are_not_followed(buffer: Path, tmp_path: Path, name: str) -> None:
    shutil.move(buffer / name, tmp_path / "secret")
    (buffer / name).symlink_to(tmp_path / "secret")
    if name == "data/state":  # a folder: nothing in it is part of the dataset
        assert "state" not in opened(buffer).columns
    else:
        assert f"{name} is a link that leaves the dataset" in refusal(buffer)


def test_links_inside_the_folder_and_a_link_to_it_are_followed(buffer: Path, tmp_path: Path) -> None:
    shutil.move(buffer / "data" / "state" / "1.0", buffer / "moved")
    (buffer / "data" / "state" / "1.0").symlink_to("../../moved")
    (tmp_path / "link.zarr").symlink_to(buffer)
    np.testing.assert_array_equal(read_all(opened(tmp_path / "link.zarr"))["state"], replay_arrays(LENGTHS)["state"])


def test_the_snapshot_of_a_hugging_face_cache_is_read_through_its_links(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "datasets--someone--x"
    snapshot = repository / "snapshots" / "0123"
    written = write_replay(tmp_path / "x.zarr", LENGTHS)
    (repository / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(file for file in written.rglob("*") if file.is_file())):
        link = snapshot / "x.zarr" / file.relative_to(written)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, repository / "blobs" / str(number))
        link.symlink_to(os.path.relpath(repository / "blobs" / str(number), link.parent))
    np.testing.assert_array_equal(read_all(opened(snapshot))["state"], replay_arrays(LENGTHS)["state"])


def test_a_pipe_in_place_of_a_chunk_does_not_hang(buffer: Path) -> None:
    (buffer / "data" / "state" / "1.0").unlink()
    os.mkfifo(buffer / "data" / "state" / "1.0")
    assert "data/state/1.0 is no file" in refusal(buffer)


def zstd_frame(size: int) -> bytes:
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"


@pytest.mark.parametrize(
    ("codec", "content"),
    [
        ("blosc", struct.pack("<4B3I", 2, 1, 33, 1, 1 << 31, 1 << 20, 64) + bytes(48)),
        ("lz4", struct.pack("<i", 1 << 30) + bytes(64)),
        ("zstd", zstd_frame(1 << 40)),
    ],
)
def test_chunks_that_announce_too_much_end_in_a_sentence(buffer: Path, codec: str, content: bytes) -> None:
    edit(buffer / "data" / "state" / ".zarray", compressor={"id": codec})
    for chunk in (buffer / "data" / "state").glob("?.*"):
        chunk.write_bytes(content)
    told = run_apart(refusal, buffer, what="the buffer")  # its limit on memory is the one that counts
    assert "data/state/0.0 is damaged (episode 0, step 0; " in told


def test_files_larger_than_a_chunk_can_be_are_refused_unread(buffer: Path) -> None:
    with (buffer / "data" / "state" / "1.0").open("wb") as file:
        file.truncate(1 << 40)
    assert "data/state/1.0 is larger than its content can be" in refusal(buffer)


def test_bombs_in_zip_files_are_refused_unread(buffer: Path, tmp_path: Path) -> None:
    (buffer / "data" / "state" / "1.0").write_bytes(bytes(50 << 20))
    path = zipped(buffer, tmp_path / "x.zarr.zip", compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "data/state/1.0 in" in (sentence := refusal(path)) and "is larger than its content can be" in sentence


def test_names_in_zip_files_lead_nowhere(buffer: Path, tmp_path: Path) -> None:
    path = zipped(buffer, tmp_path / "x.zarr.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../data/evil/.zarray", "{}")
        archive.writestr("/data/evil/.zarray", "{}")
    before = sorted(tmp_path.rglob("*"))
    assert sorted(opened(path).columns) == ["action", "state", "timestamp"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fault", ["empty", "no zip", "cut short", "no buffer", "two buffers"])
def test_zip_files_that_hold_no_buffer_are_refused(buffer: Path, tmp_path: Path, fault: str) -> None:
    path = zipped(buffer, tmp_path / "x.zarr.zip")
    if fault == "empty":
        path.write_bytes(b"")
    elif fault == "no zip":
        path.write_bytes(b"not a zip file at all" * 9)
    elif fault == "cut short":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        with zipfile.ZipFile(path, "w" if fault == "no buffer" else "a") as archive:
            archive.writestr("other/meta/episode_ends/.zarray" if fault == "two buffers" else "a.txt", "{}")
    assert "zip" in refusal(path)


# (an AES-encrypted .zip file, which only other programs write: its flag alone is set here)
def test_encrypted_zip_files_are_refused(buffer: Path, tmp_path: Path) -> None:
    path = zipped(buffer, tmp_path / "x.zarr.zip")
    content = bytearray(path.read_bytes())
    begin = 0
    while (begin := content.find(b"PK\x01\x02", begin)) >= 0:
        content[begin + 8] |= 1
        begin += 4
    path.write_bytes(content)
    assert "is encrypted: unpack it" in refusal(path)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_damaged_buffers_end_in_a_sentence_or_are_read(tmp_path: Path, version: int, form: str) -> None:
    arrays = {key: values for key, values in replay_arrays([3, 2], size=(8, 8)).items() if key != "camera_1"}
    codecs: dict[str, Any] = {"state": {"compressor": numcodecs.Blosc()}, "action": {"compressor": numcodecs.LZ4()}}
    path = write_replay(tmp_path / "x.zarr", [3, 2], arrays, version=version, codecs=codecs if version == 2 else {})
    if form == "zip":
        path = zipped(path, tmp_path / "x.zarr.zip", compression=zipfile.ZIP_DEFLATED)
    files = [path] if form == "zip" else [file for file in path.rglob("*") if file.is_file()]
    draw = random.Random(version)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(200):
        file = draw.choice(files)
        whole = file.read_bytes()
        content = bytearray(whole)
        for _ in range(draw.choice([1, 1, 4])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        if draw.random() < 0.3:
            content = content[: draw.randrange(len(content))]
        file.write_bytes(content)
        try:
            read_all(opened(path))
            outcomes["read"] += 1
        except UserError:
            outcomes["refused"] += 1
        file.write_bytes(whole)
    assert min(outcomes.values()) > 10, outcomes
