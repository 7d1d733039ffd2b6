"""ALOHA's HDF5 files: all of them is read, colours come out right, and each fault is told in a sentence."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_files import (
    COLD,
    GREY,
    WARM,
    aloha_columns,
    jpeg,
    mutated,
    noise,
    scene,
    vectors,
    write_aloha,
    write_aloha_episode,
    write_jpegs,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import read_as_training_does, skipped

from bimact.data.formats.aloha_hdf5 import AlohaHdf5, is_aloha_hdf5, open_aloha_hdf5
from bimact.data.formats.robomimic_hdf5 import is_robomimic_hdf5
from bimact.data.opening import open_source
from bimact.data.selection import Selection
from bimact.data.source import Camera, Fault
from bimact.data.workers import run_apart
from bimact.errors import UserError

SAMPLES = Path(__file__).parents[4] / "shared" / "data"
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="the sample datasets are not there")


def opened(path: Path) -> AlohaHdf5:
    """A source as a child process gets it."""
    source = pickle.loads(pickle.dumps(open_aloha_hdf5(path, None)))
    assert isinstance(source, AlohaHdf5)
    return source


def frames(source: AlohaHdf5, camera: str = "top", episode: int = 0) -> np.ndarray:
    """(T, H, W, 3): all images of a camera in an episode."""
    return np.stack(list(source.read_frames(episode, camera, range(source.episodes[episode].length))))


def read_all(source: AlohaHdf5) -> None:
    for number in range(len(source.episodes)):
        source.read_columns(number, tuple(source.columns))
        for camera in source.cameras:
            frames(source, camera, number)


def refusal(path: Path) -> str:
    """The sentence about a dataset that has to be recognised and cannot be read."""
    assert is_aloha_hdf5(path)
    with pytest.raises(UserError) as caught:
        read_as_training_does(opened(path))
    sentence = str(caught.value)
    assert "\n" not in sentence and str(path) in sentence
    return sentence


def decoded(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


# What is read ---------------------------------------------------------------------------------------


def test_an_episode_reads_back_as_it_was_written(tmp_path: Path) -> None:
    columns = {
        **aloha_columns(6, base=True),
        "observations/extra": vectors(6, 1, 9)[:, 0],
        "steering": vectors(6, 3, 8),
    }
    images = {"top": noise(6, (16, 24), 1), "left_wrist": noise(6, (12, 20), 2)}
    attributes = {"task": "hand the cube over", "fps": 30}
    write_aloha_episode(tmp_path / "episode_0.hdf5", 6, columns=columns, images=images, attributes=attributes)
    source = opened(tmp_path)
    assert source.cameras == {"left_wrist": Camera(12, 20), "top": Camera(16, 24)}
    assert list(source.columns) == ["qpos", "qvel", "effort", "action", "base_action", "extra", "steering"]
    read = source.read_columns(0, tuple(source.columns))
    for name, values in columns.items():
        np.testing.assert_array_equal(read[name.rpartition("/")[2]], values.reshape(6, -1))
    for name, values in images.items():
        np.testing.assert_array_equal(frames(source, name), values)
    (episode,) = source.episodes
    assert (episode.name, episode.length, episode.task) == ("episode_0.hdf5", 6, "hand the cube over")
    assert (source.fps, source.color_order, source.metadata) == (30.0, None, {"sim": True})
    assert (source.state_keys, source.action_keys) == (("qpos",), ("action", "base_action"))


def test_fourteen_numbers_are_two_arms_the_left_one_first(tmp_path: Path) -> None:
    columns = aloha_columns(3) | {"observations/other": vectors(3, 14, 0)}
    write_aloha_episode(tmp_path / "episode_0.hdf5", 3, columns=columns)
    source = opened(tmp_path)
    names = source.columns["action"].names
    assert names is not None and names == source.columns["qpos"].names
    assert (names[0], names[6], names[7], names[13]) == ("left_waist", "left_gripper", "right_waist", "right_gripper")
    assert source.columns["other"].names is None


def test_a_recording_by_the_first_act_has_neither_attributes_nor_velocities(tmp_path: Path) -> None:
    columns = {"action": vectors(4, 6, 0), "observations/qpos": vectors(4, 6, 1)}
    file = write_aloha_episode(tmp_path / "episode_0.hdf5", 4, columns=columns)
    with h5py.File(file, "a") as handle:
        del handle.attrs["sim"]
    source = opened(tmp_path)
    assert list(source.columns) == ["qpos", "action"] and source.columns["action"].names is None
    assert (source.fps, source.metadata, source.action_keys) == (50.0, {}, ("action",))


def test_without_joint_positions_the_user_chooses_the_state(tmp_path: Path) -> None:
    columns = {"action": vectors(4, 6, 0), "observations/eef": vectors(4, 6, 1)}
    write_aloha_episode(tmp_path / "episode_0.hdf5", 4, columns=columns)
    assert opened(tmp_path).state_keys == ()


def test_episodes_stand_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        write_aloha_episode(tmp_path / f"episode_{number}.hdf5", number + 1)
    write_aloha_episode(tmp_path / "statistics.hdf5", 5)
    source = opened(tmp_path)
    assert [episode.name for episode in source.episodes] == ["episode_0.hdf5", "episode_2.hdf5", "episode_10.hdf5"]
    assert source.lengths.tolist() == [1, 3, 11] and source.files == tuple(e.name for e in source.episodes)


@pytest.mark.parametrize("names", [["a.h5", "b.HDF5"], ["monday/episode_0.hdf5", "tuesday/episode_0.hdf5"]])
def test_other_names_and_folders_in_the_folder_are_read_too(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_aloha_episode(tmp_path / name, 2)
    assert is_aloha_hdf5(tmp_path)
    assert [episode.name for episode in opened(tmp_path).episodes] == names


def test_one_file_is_a_dataset(tmp_path: Path) -> None:
    file = write_aloha_episode(tmp_path / "demo.hdf5", 3)
    source = opened(file)
    assert is_aloha_hdf5(file) and source.files == (".",) and source.episodes[0].name == "demo.hdf5"
    assert frames(source).shape == (3, 16, 24, 3)


def test_the_way_through_all_formats_ends_here(tmp_path: Path) -> None:
    source = open_source(write_aloha(tmp_path / "dataset", jpegs="rows"))
    assert isinstance(source, AlohaHdf5) and source.num_steps == 10


@pytest.mark.parametrize(
    "storage", [{}, {"chunks": True}, {"chunks": (4, 8, 8, 3), "compression": "gzip"}, {"chunks": None}]
)
def test_images_are_read_however_they_are_stored(tmp_path: Path, storage: dict[str, Any]) -> None:
    images = {"top": noise(11, (16, 24), 0)}
    write_aloha_episode(tmp_path / "episode_0.hdf5", 11, images=images, **storage)
    source = opened(tmp_path)
    np.testing.assert_array_equal(frames(source), images["top"])
    steps = [0, 0, 3, 7, 7, 7, 10]
    np.testing.assert_array_equal(list(source.read_frames(0, "top", steps)), images["top"][steps])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_numbers_read_back_in_their_type(tmp_path: Path, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 40))
    size = data.draw(st.integers(1, 20))
    dtype = data.draw(st.sampled_from(["<f4", ">f4", "<f8", "<f2", "|u1", ">i2", "<i8", "|b1"]))
    chunks = data.draw(st.sampled_from([None, True, (min(3, length), size)]))
    values = np.random.default_rng(0).normal(0, 50, (length, size)).astype(dtype)
    file = tmp_path / "episode_0.hdf5"
    write_aloha_episode(file, length, columns={"observations/qpos": vectors(length, 14, 0)}, images={})
    with h5py.File(file, "a") as handle:
        handle.create_dataset("action", data=values, chunks=chunks, compression="gzip" if chunks else None)
    source = opened(tmp_path)
    read = source.read_columns(0, ["action"])["action"]
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.dtype(source.columns["action"].dtype) == np.dtype(dtype).newbyteorder("=")


# JPEG -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jpegs", ["rows", "strings"])
def test_jpeg_files_are_decoded_in_both_ways_of_storing_them(tmp_path: Path, jpegs: str) -> None:
    write_aloha_episode(tmp_path / "episode_0.hdf5", 6, jpegs=jpegs)
    source = opened(tmp_path)
    assert source.cameras == {"left_wrist": Camera(32, 48), "top": Camera(32, 48)}
    wanted = np.stack([decoded(jpeg(scene((32, 48), step))) for step in range(6)])
    np.testing.assert_array_equal(frames(source), wanted)
    np.testing.assert_array_equal(list(source.read_frames(0, "top", [1, 1, 5])), wanted[[1, 1, 5]])


@pytest.mark.parametrize("swapped", [False, True])
def test_strong_colours_tell_the_order_of_jpeg_files(tmp_path: Path, swapped: bool) -> None:
    write_aloha(tmp_path, (4, 3, 4, 4), jpegs="rows", swapped=swapped)
    source = opened(tmp_path)
    assert source.color_order == ("bgr" if swapped else "rgb")
    assert source.metadata["color_order"]["is_sure"] and abs(source.metadata["color_order"]["warmth"]) == 1
    np.testing.assert_allclose(frames(source)[0, 16, 24], WARM, atol=12)


def test_the_colour_order_can_be_replaced(tmp_path: Path) -> None:
    source = opened(write_aloha(tmp_path, (2,), jpegs="rows"))
    other = dataclasses.replace(source, color_order="bgr")
    np.testing.assert_array_equal(frames(other), frames(source)[..., ::-1])


@pytest.mark.parametrize("color", [GREY, None], ids=["grey", "red and blue"])
def test_images_that_do_not_tell_are_taken_as_act_plus_plus_writes_them(tmp_path: Path, color: Any) -> None:
    images = [scene((32, 48), step, color or (220, 20, 20)) for step in range(3)]
    for image in images:
        image[:8] = image[0, 0] if color else (20, 20, 220)
    write_aloha_episode(tmp_path / "episode_0.hdf5", 3, images={"top": images}, jpegs="rows")
    source = opened(tmp_path)
    assert source.color_order == "bgr" and not source.metadata["color_order"]["is_sure"]


def test_an_attribute_tells_the_order_whatever_the_images_show(tmp_path: Path) -> None:
    images = {"top": [scene((32, 48), 0, COLD)] * 3}
    write_aloha(tmp_path, (3, 3), images=images, jpegs="rows", attributes={"color_order": "rgb"})
    source = opened(tmp_path)
    assert source.color_order == "rgb" and "color_order" not in source.metadata
    np.testing.assert_allclose(frames(source)[0, 16, 24], COLD, atol=12)


@pytest.mark.parametrize("lengths", [[[-1.0, 1e30, np.nan]], [[0.0, 0.0, 0.0]], None])
def test_nonsense_about_the_lengths_of_jpeg_files_does_not_matter(tmp_path: Path, lengths: Any) -> None:
    file = write_aloha_episode(tmp_path / "episode_0.hdf5", 3, jpegs="rows")
    with h5py.File(file, "a") as handle:
        del handle["compress_len"]
        if lengths is not None:
            handle["compress_len"] = lengths
    assert frames(opened(tmp_path)).shape == (3, 32, 48, 3)


def test_jpeg_rows_in_parts_that_were_never_written_are_padding(tmp_path: Path) -> None:
    file = write_aloha_episode(tmp_path / "episode_0.hdf5", 2, images={}, jpegs=None)
    content = jpeg(scene((32, 48), 0))
    with h5py.File(file, "a") as handle:
        rows = handle["observations/images"].create_dataset("top", (2, 100_000), np.uint8, chunks=(1, 5000))
        for step in range(2):
            rows[step, : len(content)] = np.frombuffer(content, np.uint8)
    np.testing.assert_array_equal(frames(opened(tmp_path))[1][..., ::-1], decoded(content)[..., ::-1])


def _replace_jpeg(file: Path, change: Callable[[bytes], bytes]) -> None:
    with h5py.File(file, "a") as handle:
        group = handle["observations/images"]
        files = [row.tobytes().rstrip(b"\0") for row in group["top"]]
        files[4] = change(files[4])
        del group["top"]
        write_jpegs(group, "top", files)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file[: len(file) // 2], "damaged"),
        (lambda file: b"", "no PNG, JPEG"),
        (lambda file: b"\xff\xd8" + bytes(range(120)), "an image is"),
        (lambda file: jpeg(scene((16, 48), 0)), "16×48 pixels"),
        (lambda file: file[:163] + b"\xff\xff\xff\xff" + file[167:], "image"),
    ],
    ids=["cut off", "empty", "garbage", "another size", "claims a huge size"],
)
def test_a_jpeg_file_that_is_damaged_is_named(tmp_path: Path, change: Any, said: str) -> None:
    file = write_aloha_episode(tmp_path / "episode_0.hdf5", 6, jpegs="rows")
    _replace_jpeg(file, change)
    sentence = refusal(tmp_path)
    assert file.name in sentence and "camera top" in sentence and "step 4" in sentence and said in sentence


# What is left out -----------------------------------------------------------------------------------


def test_images_that_are_no_colour_images_are_left_out_with_a_reason(tmp_path: Path) -> None:
    images = {
        "top": noise(3, (16, 24), 0),
        "top_depth": noise(3, (16, 24), 0)[..., 0].astype(np.uint16),
        "grey": noise(3, (16, 24), 0)[..., 0],
        "with_alpha": np.zeros((3, 16, 24, 4), np.uint8),
        "float": np.zeros((3, 16, 24, 3), np.float32),
    }
    write_aloha_episode(tmp_path / "episode_0.hdf5", 3, images=images)
    source = opened(tmp_path)
    assert sorted(source.cameras) == ["float", "grey", "top", "with_alpha"]
    assert [(entry.name, entry.kind) for entry in source.left_out] == [("top_depth", "depth")]


def test_a_column_that_only_some_episodes_have_is_left_out(tmp_path: Path) -> None:
    write_aloha(tmp_path, (3, 3))
    with h5py.File(tmp_path / "episode_1.hdf5", "a") as handle:
        del handle["observations/effort"]
    source = opened(tmp_path)
    assert source.column_forms["effort"] == {1: Fault("is not there")}
    with pytest.raises(UserError, match="episode_1.hdf5: effort is not there"):
        Selection(state_keys=("effort",)).applied_to(source).refuse_damaged()


def test_an_episode_without_steps_is_skipped_and_told(tmp_path: Path) -> None:
    write_aloha(tmp_path, (3, 0, 2))
    source = opened(tmp_path)
    assert source.lengths.tolist() == [3, 2] and skipped(source) == ("episode_1.hdf5: it has no steps",)
    np.testing.assert_array_equal(frames(source, episode=1), noise(2, (16, 24), 21))


# What differs or is missing -------------------------------------------------------------------------


def _delete(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def _put(name: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_delete("action"), ["action is not there"]),
        (_delete("observations/images/top"), ["top is not there"]),
        (_delete("observations/qpos"), ["qpos is not there"]),
        (_put("observations/images/top", noise(4, (8, 8), 0)), ["top is 8×8", "16×24"]),
        (_put("action", vectors(4, 16, 0)), ["action is of size 16", "of size 14"]),
        (_put("observations/qpos", vectors(3, 14, 0)), ["qpos", "has 3 rows", "action 4"]),
        (_put("observations/images/top", noise(5, (16, 24), 0)), ["top", "has 5 rows", "action 4"]),
        (_put("observations/qpos", np.zeros((4, 14), "S3")), ["qpos holds |S3 instead of numbers"]),
        (_put("action", 3.0), ["/action", "holds no rows"]),
        (_put("observations/images/top", noise(4, (16, 24), 0).astype(np.int32)), ["top has", "int32"]),
    ],
)
def test_an_episode_that_differs_is_named_with_what_differs(tmp_path: Path, change: Any, said: list[str]) -> None:
    write_aloha(tmp_path, (4, 4, 4, 4))
    with h5py.File(tmp_path / "episode_2.hdf5", "a") as file:
        change(file)
    sentence = refusal(tmp_path)
    assert "episode_2.hdf5" in sentence and all(part in sentence for part in said)


def test_files_of_two_rates_are_refused(tmp_path: Path) -> None:
    write_aloha(tmp_path, (3, 3), attributes={"fps": 30})
    with h5py.File(tmp_path / "episode_1.hdf5", "a") as file:
        file.attrs["fps"] = 25
    assert "episode_1.hdf5: was recorded at 25.0 Hz, most episodes at 30.0" in refusal(tmp_path)


@pytest.mark.parametrize("value", [-1, 0, np.nan, np.inf, "fast", b"\xff", [30, 30], True, h5py.Empty("f")])
def test_an_impossible_rate_is_not_believed(tmp_path: Path, value: Any) -> None:
    write_aloha(tmp_path, (3,), attributes={"fps": value})
    assert opened(tmp_path).fps == 50


@pytest.mark.parametrize("task", ["put it\non the shelf\x1b[31m", np.bytes_(b"put it on the shelf [31m")])
def test_a_task_is_one_line_without_what_terminals_obey(tmp_path: Path, task: Any) -> None:
    write_aloha(tmp_path, (3,), attributes={"language_instruction": task})
    assert opened(tmp_path).episodes[0].task == "put it on the shelf [31m"


# Damaged and hostile files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"no HDF5" * 100, "damaged or cut off"), (None, "damaged or cut off")],
    ids=["empty", "text", "cut off"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    write_aloha(tmp_path, (3, 3, 3))
    bad = tmp_path / "episode_1.hdf5"
    bad.write_bytes(bad.read_bytes()[:-2000] if content is None else content)
    assert bad.name in refusal(tmp_path) and said in refusal(tmp_path)


def test_a_folder_of_damaged_files_alone_is_recognised_by_their_names(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"episode_{number}.hdf5").write_bytes(b"broken")
    assert "episode_0.hdf5: it is damaged" in refusal(tmp_path)


def test_a_sound_file_among_damaged_ones_of_any_name_is_enough(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.hdf5").write_bytes(b"broken")
    write_aloha_episode(tmp_path / "f.hdf5")
    assert "5 of 6 episodes" in refusal(tmp_path) and "a.hdf5" in refusal(tmp_path)


def test_what_is_no_aloha_dataset_is_not_recognised(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        file["observations"], file["actions"] = np.zeros((3, 4)), np.zeros((3, 2))
    (tmp_path / "text.hdf5").write_text("no HDF5")
    (tmp_path / "empty").mkdir()
    for name in ("", "d4rl.hdf5", "text.hdf5", "empty"):
        assert not is_aloha_hdf5(tmp_path / name)
        assert not is_robomimic_hdf5(tmp_path / name)
    assert not is_robomimic_hdf5(write_aloha_episode(tmp_path / "aloha.hdf5"))


def _external_link(file: h5py.File, name: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "elsewhere.bin", "w") as other:
        other["data"] = file[name][()]
    del file[name]
    file[name] = h5py.ExternalLink("../elsewhere.bin", "/data")


def _soft_link(file: h5py.File, name: str, tmp_path: Path) -> None:
    del file[name]
    file[name] = h5py.SoftLink("/elsewhere")
    file["elsewhere"] = h5py.SoftLink(f"/{name}")


def _external_storage(file: h5py.File, name: str, tmp_path: Path) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    (tmp_path / "elsewhere.bin").write_bytes(bytes(10**6))
    del file[name]
    file.create_dataset(name, shape, dtype, external=[(str(tmp_path / "elsewhere.bin"), 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File, name: str, tmp_path: Path) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource("../elsewhere.bin", "data", shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def _never_written(file: h5py.File, name: str, tmp_path: Path) -> None:
    shape = (file[name].shape[0], *(10**4 for _ in file[name].shape[1:-1]), 3)
    del file[name]
    file.create_dataset(name, shape, np.uint8 if "images" in name else np.float32)


def _partly_written(file: h5py.File, name: str, tmp_path: Path) -> None:
    values = file[name][()]
    del file[name]
    dataset = file.create_dataset(name, values.shape, values.dtype, chunks=(1, *values.shape[1:]))
    dataset[:2] = values[:2]


def _huge_chunks(file: h5py.File, name: str, tmp_path: Path) -> None:
    """Ten bytes that claim to be hundreds of megabytes."""
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    claimed = (4, 8000, 8000, 3) if len(shape) == 4 else (4, 10**7)
    dataset = file.create_dataset(name, claimed, dtype, chunks=claimed, compression="gzip")
    dataset.id.write_direct_chunk((0,) * len(claimed), b"0123456789")


@pytest.mark.parametrize("name", ["observations/qpos", "observations/images/top", "action"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_external_link, "is a link"),
        (_soft_link, "is a link"),
        (_external_storage, "other files"),
        (_virtual, "other files"),
        (_never_written, "never written|has shape"),
        (_partly_written, "never written"),
    ],
)
def test_data_that_lie_elsewhere_or_nowhere_are_refused(tmp_path: Path, name: str, change: Any, said: str) -> None:
    folder = write_aloha(tmp_path / "dataset", (4,))
    with h5py.File(folder / "episode_0.hdf5", "a") as file:
        change(file, name, tmp_path)
    sentence = refusal(folder)
    assert name.split("/")[-1] in sentence and re.search(said, sentence)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("observations/qpos", r"qpos \(has shape"),
        ("observations/images/top", "cannot read .*episode_0.hdf5: it is damaged"),
        ("action", r"action .*has shape"),
    ],
)
def test_ten_bytes_that_claim_to_be_hundreds_of_megabytes_are_refused(tmp_path: Path, name: str, said: str) -> None:
    folder = write_aloha(tmp_path / "dataset", (4,))
    with h5py.File(folder / "episode_0.hdf5", "a") as file:
        _huge_chunks(file, name, tmp_path)
    assert re.search(said, refusal(folder))


def test_a_filter_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = write_aloha_episode(tmp_path / "episode_0.hdf5", 4)
    with h5py.File(file, "a") as handle:
        del handle["action"]
        handle.create_dataset("action", data=vectors(4, 14, 0), chunks=(4, 14), compression="gzip")
    content = file.read_bytes()
    at = content.index(b"deflate\0") - 8  # in HDF5's first version of the message: number, length, flags, values
    assert content[at : at + 2] == b"\1\0"
    file.write_bytes(content[:at] + (32001).to_bytes(2, "little") + content[at + 2 :])
    assert "needs the HDF5 filter 32001" in refusal(tmp_path)


@pytest.mark.parametrize(
    "dtype",
    [h5py.ref_dtype, h5py.vlen_dtype(np.int32), "V8", [("x", "f4"), ("y", "f4")], "c8", h5py.string_dtype()],
    ids=["references", "lists", "opaque", "records", "complex", "texts"],
)
def test_what_is_no_number_is_left_out_or_refused(tmp_path: Path, dtype: Any) -> None:
    folder = write_aloha(tmp_path / "dataset", (4,))
    with h5py.File(folder / "episode_0.hdf5", "a") as file:
        file["observations"].create_dataset("odd", (4,), dtype)
    assert "odd" in [entry.name for entry in opened(folder).left_out]
    with h5py.File(folder / "episode_0.hdf5", "a") as file:
        del file["observations/qpos"]
        file["observations/qpos"] = file["observations/odd"]
    assert "instead of numbers" in refusal(folder)


def test_a_group_that_holds_itself_does_no_harm(tmp_path: Path) -> None:
    folder = write_aloha(tmp_path / "dataset", (4,))
    with h5py.File(folder / "episode_0.hdf5", "a") as file:
        file["observations/again"] = file["observations"]
        file["observations/images/again"] = file["/"]
    assert sorted(opened(folder).cameras) == ["left_wrist", "top"]
    assert set(opened(folder).columns) == {"qpos", "qvel", "effort", "action"}


def test_names_that_cannot_be_shown_are_no_columns(tmp_path: Path) -> None:
    folder = write_aloha(tmp_path / "dataset", (4,))
    with h5py.File(folder / "episode_0.hdf5", "a") as file:
        for name in (b"\xff\xfe", b"a\x1b[31m", b".hidden", b"new\nline"):
            space = h5py.h5s.create_simple((4,))
            h5py.h5d.create(file["observations"].id, name, h5py.h5t.NATIVE_INT32, space)
    assert set(opened(folder).columns) == {"qpos", "qvel", "effort", "action"}


def test_a_link_that_leaves_the_dataset_is_not_followed(tmp_path: Path) -> None:
    folder = write_aloha(tmp_path / "dataset", (4, 4))
    (folder / "episode_1.hdf5").rename(tmp_path / "other.hdf5")
    (folder / "episode_1.hdf5").symlink_to(tmp_path / "other.hdf5")
    assert "leaves the dataset" in refusal(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_aloha(tmp_path / "dataset", (4,))
    os.mkfifo(folder / "episode_1.hdf5")
    assert "episode_1.hdf5" in refusal(folder)


def test_a_file_that_is_being_written_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    folder = write_aloha(tmp_path / "dataset", (4,))
    program = "import h5py, sys; f = h5py.File(sys.argv[1], 'a', locking=True); print('open', flush=True); input()"
    file = str(folder / "episode_0.hdf5")
    with subprocess.Popen(
        [sys.executable, "-c", program, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        try:
            assert "another program is writing to it" in refusal(folder)
        finally:
            writer.communicate("\n", timeout=60)
    read_all(opened(folder))


def test_a_file_that_changes_after_it_was_opened_is_told(tmp_path: Path) -> None:
    folder = write_aloha(tmp_path / "dataset", (4,))
    source = opened(folder)
    write_aloha_episode(folder / "episode_0.hdf5", 2, columns={"action": vectors(2, 14, 0)}, images={})
    with pytest.raises(UserError, match="no longer has .*images/top"):
        frames(source)
    (folder / "episode_0.hdf5").unlink()
    with pytest.raises(UserError, match="no longer exists"):
        source.read_columns(0, ["action"])


def outcomes(folder: Path, seeds: range) -> tuple[int, int]:
    """In a child: how many changed files are read and how many refused."""
    file = folder / "episode_0.hdf5"
    content = file.read_bytes()
    read = 0
    for seed in seeds:
        file.write_bytes(mutated(content, seed))
        try:
            is_aloha_hdf5(folder)
            read_all(open_aloha_hdf5(folder, None))
            read += 1
        except UserError as error:
            assert "\n" not in str(error)
    return read, len(seeds) - read


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"jpegs": "rows"}, {"chunks": True, "compression": "gzip", "shuffle": True}])
def test_a_changed_file_is_read_or_refused_in_a_sentence(tmp_path: Path, kind: dict[str, Any]) -> None:
    write_aloha_episode(tmp_path / "episode_0.hdf5", 3, **kind)
    read, refused = run_apart(outcomes, tmp_path, range(120), what="the changed files", timeout=120)
    assert read > 20 and refused > 20


# Files that others wrote ----------------------------------------------------------------------------


@needs_samples
@pytest.mark.parametrize("kind", ["raw", "compressed"])
def test_sample_values_are_those_that_h5py_reads(kind: str) -> None:
    folder = SAMPLES / "aloha_hdf5" / kind
    source = opened(folder)
    with h5py.File(folder / "episode_1.hdf5") as file:
        read = source.read_columns(1, ["qpos", "action"])
        np.testing.assert_array_equal(read["action"], file["action"][()])
        np.testing.assert_array_equal(read["qpos"], file["observations/qpos"][()])
        stored = file["observations/images/top"][7]
    image = next(source.read_frames(1, "top", [7]))
    np.testing.assert_array_equal(image, stored if kind == "raw" else decoded(stored.tobytes()))


@needs_samples
def test_sample_colours_are_those_of_the_same_episodes_as_video() -> None:
    av = pytest.importorskip("av")
    video = SAMPLES / "lerobot_v30_aloha_sim/videos/observation.images.top/chunk-000/file-000.mp4"
    with av.open(str(video)) as container:
        wanted = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    red = (wanted[..., 0] - wanted[..., 2]) > 60
    assert red.any()
    for kind in ("raw", "compressed"):
        image = next(opened(SAMPLES / "aloha_hdf5" / kind).read_frames(0, "top", [0])).astype(int)
        assert np.abs(image - wanted).mean() < 2
        assert (image[red][:, 0] - image[red][:, 2]).mean() > 60
