"""Replay buffers as zarr reads them, and as the specification of zarr 2 says that they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from conversions import COLUMNS, SmoothSource, converted, images_of, same_bits, smooth_source

from bimact.convert import zarr_replay
from bimact.data.source import Camera, Column
from bimact.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SmoothSource:
    return smooth_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def folder(source: SmoothSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(source, tmp_path_factory.mktemp("converted") / "dataset", "zarr")


def array_of(folder: Path, name: str) -> np.ndarray:
    array = zarr.open_array(str(folder / name), mode="r")
    return np.asarray(array[:])


@pytest.mark.parametrize("key", COLUMNS)
def test_columns_are_kept_to_the_last_bit(key: str, source: SmoothSource, folder: Path) -> None:
    expected = np.concatenate([source.read_columns(episode, [key])[key] for episode in range(3)])
    assert same_bits(array_of(folder, f"data/{'state' if key == 'qpos' else key}"), expected)


@pytest.mark.parametrize("camera", ["top", "wrist"])
def test_images_are_equal(camera: str, source: SmoothSource, folder: Path) -> None:
    expected = np.concatenate([images_of(source, camera, episode) for episode in range(3)])
    assert same_bits(array_of(folder, f"data/{camera}"), expected)


def test_episodes_end_where_they_end(folder: Path) -> None:
    assert same_bits(array_of(folder, "meta/episode_ends"), np.array([5, 13, 16]))


def test_files_are_those_of_zarr_2(folder: Path) -> None:
    described = json.loads((folder / "data" / "top" / ".zarray").read_text())
    assert described["zarr_format"] == 2
    assert described["shape"] == [16, 64, 96, 3]
    assert described["dtype"] == "|u1"
    assert described["chunks"] == [1, 64, 96, 3]
    assert described["compressor"]["id"] == "blosc"
    assert described["filters"] is None
    assert described["order"] == "C"
    assert json.loads((folder / ".zgroup").read_text()) == {"zarr_format": 2}
    assert not list(folder.rglob("zarr.json"))
    assert json.loads((folder / "data" / "tau" / ".zarray").read_text())["dtype"] == "<f8"


@pytest.mark.slow
def test_black_images_are_written_too(tmp_path: Path) -> None:
    source = BlackSource(**vars(smooth_source(tmp_path / "source", [3])))
    folder = converted(source, tmp_path / "out", "zarr")
    assert {path.name for path in (folder / "data" / "top").glob("[0-9]*")} == {f"{row}.0.0.0" for row in range(3)}


class BlackSource(SmoothSource):
    def frame(self, episode: int, camera: str, step: int) -> np.ndarray:
        return super().frame(episode, camera, step) * np.uint8(0)


def test_vectors_are_in_chunks_of_many_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_replay, "_CHUNK_BYTES", 7 * 16)
    source = smooth_source(tmp_path / "source")
    folder = converted(source, tmp_path / "out", "zarr")
    assert json.loads((folder / "data" / "action" / ".zarray").read_text())["chunks"] == [7, 4]
    expected = np.concatenate([source.read_columns(episode, ["action"])["action"] for episode in range(3)])
    assert same_bits(array_of(folder, "data/action"), expected)


def test_rate_and_tasks_are_attributes(folder: Path) -> None:
    assert json.loads((folder / ".zattrs").read_text()) == {"fps": 10.0, "tasks": ["pour tea"] * 3}


def test_names_are_short_and_stay_apart(tmp_path: Path) -> None:
    columns = {"obs/state": Column(2), "actions": Column(2), "obs/top": Column(1)}
    cameras = {"top": Camera(16, 16), "observation.images.wrist": Camera(16, 16)}
    source = smooth_source(
        tmp_path / "source", [2], columns=columns, cameras=cameras, state_keys=("obs/state",), action_keys=("actions",)
    )
    with pytest.raises(UserError, match="would both be named 'top'"):
        converted(source, tmp_path / "out", "zarr")
    columns["obs/lid"] = columns.pop("obs/top")
    folder = converted(source, tmp_path / "out", "zarr")
    assert {path.name for path in (folder / "data").glob("[a-z]*")} == {"state", "action", "lid", "top", "wrist"}
