"""The guide's files as NumPy reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conversions import SmoothSource, converted, images_of, notes_of, same_bits, smooth_source

from bimact.convert import writer
from bimact.data.source import Column
from bimact.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SmoothSource:
    return smooth_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def folder(source: SmoothSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(source, tmp_path_factory.mktemp("converted") / "dataset", "guide")


def all_of(source: SmoothSource, key: str) -> np.ndarray:
    return np.concatenate([source.read_columns(episode, [key])[key] for episode in range(3)])


def test_arrays_are_equal(source: SmoothSource, folder: Path) -> None:
    observations = np.load(folder / "observations.npy", allow_pickle=False)
    assert observations.dtype.names == ("image_top", "image_wrist", "state")
    assert same_bits(np.ascontiguousarray(observations["state"]), all_of(source, "qpos"))
    assert same_bits(np.load(folder / "actions.npy", allow_pickle=False), all_of(source, "action"))
    assert same_bits(np.load(folder / "rollout_length.npy", allow_pickle=False), np.array([5, 8, 3]))
    for camera in ("top", "wrist"):
        expected = np.concatenate([images_of(source, camera, episode) for episode in range(3)])
        assert np.array_equal(observations[f"image_{camera}"], expected)


def test_a_long_episode_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_STEPS_PER_SPAN", 3)
    source = smooth_source(tmp_path / "source")
    folder = converted(source, tmp_path / "out", "guide")
    observations = np.load(folder / "observations.npy", allow_pickle=False)
    assert np.array_equal(observations["state"], all_of(source, "qpos"))
    assert np.array_equal(observations["image_top"], np.concatenate([images_of(source, "top", e) for e in range(3)]))
    assert np.array_equal(np.load(folder / "actions.npy"), all_of(source, "action"))


def test_metadata_tell_rate_names_and_task(tmp_path: Path) -> None:
    source = smooth_source(
        tmp_path / "source", [2], metadata={"robot_type": "aloha", "sim": True, "columns_left_out": {"rgb": 1}}
    )
    content = json.loads((converted(source, tmp_path / "out", "guide") / "metadata.json").read_text())
    names = ["left_waist", "left_gripper", "right_waist", "right_gripper"]
    assert content == {
        "robot_type": "aloha",
        "sim": True,
        "fps": 10.0,
        "cameras": ["top", "wrist"],
        "joint_names": names,
        "state_names": names,
        "task": "pour tea",
    }


def test_what_has_no_place_is_told(tmp_path: Path) -> None:
    columns = {"qpos": Column(2, dtype="float64"), "action": Column(2), "qvel": Column(2)}
    notes = notes_of(smooth_source(tmp_path / "source", columns=columns), tmp_path / "out", "guide")
    assert "left out: qvel, which the format cannot store" in notes
    assert "rounded to float32, the format's dtype: state (float64)" in notes
    assert "action" not in notes


def test_a_dataset_without_cameras_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no camera, but the guide's format needs one"):
        converted(smooth_source(tmp_path / "source", cameras={}), tmp_path / "out", "guide")
