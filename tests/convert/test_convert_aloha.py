"""ALOHA's files as h5py and Pillow read them, as ACT's and ACT++'s own loaders do."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from conversions import COLUMNS, SmoothSource, converted, images_of, notes_of, psnr, same_bits, smooth_source
from PIL import Image

from bimact.data.source import Camera, Column
from bimact.errors import UserError

PLACES = {
    "qpos": "/observations/qpos",
    "action": "/action",
    "qvel": "/observations/qvel",
    "tau": "/observations/tau",
    "count": "/observations/count",
    "is_held": "/observations/is_held",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SmoothSource:
    return smooth_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def folder(source: SmoothSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(source, tmp_path_factory.mktemp("converted") / "dataset", "aloha_hdf5")


@pytest.fixture(scope="module")
def compressed(source: SmoothSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(source, tmp_path_factory.mktemp("compressed") / "dataset", "aloha_hdf5", compress=True)


@pytest.mark.parametrize("key", COLUMNS)
def test_columns_are_kept_to_the_last_bit(key: str, source: SmoothSource, folder: Path, compressed: Path) -> None:
    for made in (folder, compressed):
        for episode in range(3):
            with h5py.File(made / f"episode_{episode}.hdf5") as file:
                assert same_bits(file[PLACES[key]][()], source.read_columns(episode, [key])[key])


def test_images_are_equal(source: SmoothSource, folder: Path) -> None:
    for episode in range(3):
        with h5py.File(folder / f"episode_{episode}.hdf5") as file:
            assert list(file["/observations/images"]) == ["top", "wrist"]
            for camera, dataset in file["/observations/images"].items():
                assert dataset.chunks == (1, *dataset.shape[1:])
                assert np.array_equal(dataset[()], images_of(source, camera, episode))


def test_there_is_a_file_for_each_episode_and_nothing_else(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [f"episode_{number}.hdf5" for number in range(3)]


def test_jpegs_are_read_as_act_plus_plus_reads_them(source: SmoothSource, compressed: Path) -> None:
    for episode in range(3):
        with h5py.File(compressed / f"episode_{episode}.hdf5") as file:
            assert file.attrs["compress"]
            lengths = file["/compress_len"][()]
            assert lengths.dtype == np.float32
            for row, (camera, dataset) in enumerate(file["/observations/images"].items()):
                expected = images_of(source, camera, episode)
                assert dataset.shape == (len(expected), int(lengths[row].max()))
                images = [opencv_decoded(content[: int(size)]) for content, size in zip(dataset[()], lengths[row])]
                assert psnr(np.stack(images), expected) > 35
                for content, size in zip(dataset[()], lengths[row]):
                    assert not content[int(size) :].any()
                    assert content[int(size) - 2 : int(size)].tobytes() == b"\xff\xd9"


def opencv_decoded(content: np.ndarray) -> np.ndarray:
    """What cv2.imdecode gives: red and blue the other way round than the JPEG standard says."""
    return np.asarray(Image.open(io.BytesIO(content.tobytes())).convert("RGB"))[..., ::-1]


def test_joint_velocities_that_are_missing_are_zero_and_told(tmp_path: Path) -> None:
    columns = {name: COLUMNS[name] for name in ("qpos", "action")}
    source = smooth_source(tmp_path / "source", [4], columns=columns)
    folder = converted(source, tmp_path / "out", "aloha_hdf5")
    with h5py.File(folder / "episode_0.hdf5") as file:
        assert same_bits(file["/observations/qvel"][()], np.zeros((4, 4), np.float32))
        assert file["/observations/qvel"].attrs["is_placeholder"]
    assert "/observations/qvel is zero" in notes_of(source, tmp_path / "other", "aloha_hdf5")


def test_lerobots_columns_go_to_their_places(tmp_path: Path) -> None:
    columns = {name: Column(3) for name in ("observation.state", "action", "observation.qvel", "observation.effort")}
    source = smooth_source(
        tmp_path / "source", [4], columns=columns, state_keys=("observation.state",), action_keys=("action",)
    )
    with h5py.File(converted(source, tmp_path / "out", "aloha_hdf5") / "episode_0.hdf5") as file:
        assert set(file["/observations"]) == {"qpos", "qvel", "effort", "images"}
        assert "is_placeholder" not in file["/observations/qvel"].attrs
        expected = source.read_columns(0, ["observation.qvel"])["observation.qvel"]
        assert same_bits(file["/observations/qvel"][()], expected)


def test_velocities_of_wheels_go_back_to_their_place(tmp_path: Path) -> None:
    columns = {
        "qpos": Column(2),
        "action": Column(2, ("left", "right")),
        "base_action": Column(2, ("base_linear_velocity", "base_angular_velocity")),
    }
    source = smooth_source(tmp_path / "source", [4], columns=columns, action_keys=("action", "base_action"))
    with h5py.File(converted(source, tmp_path / "out", "aloha_hdf5") / "episode_0.hdf5") as file:
        for key in ("action", "base_action"):
            assert same_bits(file[key][()], source.read_columns(0, [key])[key])


def test_whole_numbers_of_the_state_become_floats_without_loss(tmp_path: Path) -> None:
    columns = {"qpos": Column(2, dtype="int64"), "action": Column(2)}
    source = smooth_source(tmp_path / "source", [4], columns=columns)
    with h5py.File(converted(source, tmp_path / "out", "aloha_hdf5") / "episode_0.hdf5") as file:
        qpos = file["/observations/qpos"][()]
        assert qpos.dtype == np.float64
        assert np.array_equal(qpos, source.read_columns(0, ["qpos"])["qpos"].astype(np.float64))


@pytest.mark.parametrize(("metadata", "expected"), [({}, True), ({"sim": False}, False), ({"sim": True}, True)])
def test_sim_is_as_the_source_tells(metadata: dict[str, bool], expected: bool, tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source", [2], metadata=metadata)
    with h5py.File(converted(source, tmp_path / "out", "aloha_hdf5") / "episode_0.hdf5") as file:
        assert bool(file.attrs["sim"]) is expected
        assert file.attrs["fps"] == 10
        assert file.attrs["task"] == "pour tea"
    assert ("sim is true" in notes_of(source, tmp_path / "other", "aloha_hdf5")) is (not metadata)


def test_what_acts_own_loader_cannot_take_is_told(tmp_path: Path) -> None:
    even = smooth_source(tmp_path / "source", [3, 3], cameras={"top": Camera(16, 16)})
    assert "ACT's own loader cannot" not in notes_of(even, tmp_path / "out", "aloha_hdf5")
    uneven = dataclasses.replace(even, cameras={"top": Camera(16, 16), "wrist": Camera(16, 8)})
    assert "differ in size" in notes_of(uneven, tmp_path / "out", "aloha_hdf5")
    assert "differ in length" in notes_of(smooth_source(tmp_path / "source", [3, 4]), tmp_path / "out", "aloha_hdf5")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = {"qpos": Column(2), "action": Column(2), "images": Column(1), "obs/images": Column(1)}
    with pytest.raises(UserError, match="would both be named"):
        converted(
            smooth_source(tmp_path / "source", columns={**columns, "obs.images": Column(1)}),
            tmp_path / "out",
            "aloha_hdf5",
        )
