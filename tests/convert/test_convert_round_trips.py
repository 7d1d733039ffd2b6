"""From each format to each other one, read by bimact's own readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import COLUMNS, NAMES, converted, images_of, psnr, same_bits, smooth_source

from bimact.convert.content import short_names
from bimact.data.opening import open_source
from bimact.data.selection import Selection
from bimact.data.source import Source

SAMPLES = Path(__file__).parents[3] / "shared" / "data"
LOSSLESS: dict[str, dict[str, Any]] = {"lerobot": {"lossless": True}, "aloha_hdf5": {}, "guide": {}, "zarr": {}}


def content_of(source: Source, episode: int) -> dict[str, np.ndarray]:
    """All columns of an episode, by names that the formats share."""
    names = short_names(source.columns)
    read = source.read_columns(episode, list(names))
    (state,), (action,) = source.state_keys, source.action_keys
    return {{state: "state", action: "action"}.get(key, name): read[key] for key, name in names.items()}


def assert_same(source: Source, other: Source, *, without: tuple[str, ...] = ()) -> None:
    assert other.lengths.tolist() == source.lengths.tolist()
    assert short_names(other.cameras).keys() == short_names(source.cameras).keys()
    for episode in range(len(source.episodes)):
        expected, found = content_of(source, episode), content_of(other, episode)
        for key in expected.keys() - set(without):
            assert same_bits(np.ascontiguousarray(found[key]), np.ascontiguousarray(expected[key])), key
        for camera in source.cameras:
            assert np.array_equal(images_of(other, camera, episode), images_of(source, camera, episode)), camera


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Source]:
    """The same dataset in each format, without what is no float or is not in float32, which not all can hold."""
    folder = tmp_path_factory.mktemp("written")
    columns = {key: column for key, column in COLUMNS.items() if column.dtype == "float32"}
    source = smooth_source(folder / "source", columns=columns)
    return {to: open_source(converted(source, folder / to, to, **options)) for to, options in LOSSLESS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("to", LOSSLESS)
@pytest.mark.parametrize("start", LOSSLESS)
def test_nothing_is_lost_on_the_way(start: str, to: str, written: Mapping[str, Source], tmp_path: Path) -> None:
    source = written[start]
    other = open_source(converted(source, tmp_path / "out", to, **LOSSLESS[to]))
    assert_same(source, other, without=("qvel",) if to == "guide" else ())
    if to == "guide":
        assert set(other.columns) == {"state", "action"}
    if to in ("lerobot", "guide"):  # the others have no place for names
        assert other.columns[other.action_keys[0]].names == source.columns[source.action_keys[0]].names


def test_readers_find_what_was_told_of_the_dataset(written: Mapping[str, Source]) -> None:
    assert {source.fps for source in written.values()} == {10.0}
    for to in ("lerobot", "aloha_hdf5"):
        assert {episode.task for episode in written[to].episodes} == {"pour tea"}
    for to in ("lerobot", "guide"):
        assert written[to].columns[written[to].action_keys[0]].names == NAMES


@pytest.mark.parametrize("to", ["lerobot", "aloha_hdf5", "zarr"])
def test_columns_of_all_types_come_back(to: str, tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source")
    other = open_source(converted(source, tmp_path / "out", to, **LOSSLESS[to]))
    assert_same(source, other)
    assert len(other.columns) == len(COLUMNS)


@pytest.mark.parametrize(
    ("to", "options"), [("lerobot", {}), ("lerobot", {"codec": "h264"}), ("aloha_hdf5", {"compress": True})], ids=str
)
def test_compressed_images_are_close(to: str, options: dict[str, Any], tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source")
    other = open_source(converted(source, tmp_path / "out", to, **options))
    for episode in range(3):
        for camera in ("top", "wrist"):
            assert psnr(images_of(other, camera, episode), images_of(source, camera, episode)) > 33


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLES.exists(), reason="no shared samples")
@pytest.mark.parametrize("name", ["aloha_hdf5/raw", "lerobot_v21_g1_bottle"])
@pytest.mark.parametrize(
    ("to", "options", "least"),
    [
        ("lerobot", {}, 38),
        ("lerobot", {"codec": "hevc"}, 35),
        ("lerobot", {"lossless": True}, float("inf")),
        ("aloha_hdf5", {"compress": True}, 43),
        ("zarr", {}, float("inf")),
    ],
    ids=str,
)
def test_images_of_cameras_are_kept_as_well_as_promised(
    name: str, to: str, options: dict[str, Any], least: float, tmp_path: Path
) -> None:
    source = open_source(SAMPLES / name, selection=Selection(max_episodes=1, fps=2))
    other = open_source(converted(source, tmp_path / "out", to, **options))
    (camera,), (own,) = other.cameras, source.cameras
    found = psnr(images_of(other, camera, 0), images_of(source, own, 0))
    print(f"{name} as {to} {options}: {found:.1f} dB")
    assert found >= least
    for key in ("state", "action"):
        assert same_bits(
            np.ascontiguousarray(content_of(other, 0)[key]), np.ascontiguousarray(content_of(source, 0)[key])
        )
