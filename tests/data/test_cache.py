"""What `bimact cache` finds and removes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from conftest import tiny_config
from guide_files import write_dataset
from hdf5_files import write_aloha

from bimact.cli import main
from bimact.data.cache import clear, find_caches, one_at_a_time
from bimact.data.opening import open_dataset
from bimact.encoder.base import build_encoder
from bimact.errors import UserError
from bimact.training.feature_cache import FeatureCache


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def datasets(tmp_path: Path) -> tuple[Path, Path]:
    """One with encoded images beside it, one with decoded ones in a `cache_dir`."""
    guide, aloha = write_dataset(tmp_path / "guide", [4, 3]), write_aloha(tmp_path / "aloha", (3, 2))
    encoder = build_encoder(tiny_config(encoder={"freeze": True}).encoder)
    FeatureCache(encoder, open_dataset(guide), ["left"]).fill(contextlib.nullcontext)
    open_dataset(aloha, cache_dir=tmp_path / "elsewhere")
    return guide, aloha


def bimact(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_everything_is_found_wherever_it_lies(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    encoded, decoded = find_caches()
    assert (encoded.kind, encoded.dataset) == ("encoded images", str(datasets[0]))
    assert encoded.detail == "left by ConvEncoder, float32" and encoded.bytes > 0
    assert (decoded.kind, decoded.dataset) == ("decoded images", str(datasets[1]))
    assert decoded.path.is_relative_to(tmp_path / "elsewhere")


def test_those_of_one_dataset(datasets: tuple[Path, Path]) -> None:
    for number, dataset in enumerate(datasets):
        assert find_caches(dataset) == [find_caches()[number]]


def test_listing_and_clearing(datasets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    guide, aloha = datasets
    assert bimact("cache") == 0
    listed = capsys.readouterr().out
    assert str(guide) in listed and str(aloha) in listed and "2 in all" in listed
    assert bimact("cache", guide, "--clear") == 0
    assert "Removed: 1 in all" in capsys.readouterr().out
    assert [entry.dataset for entry in find_caches()] == [str(aloha)]
    assert bimact("cache", "--clear") == 0
    assert bimact("cache", "--list") == 0
    assert capsys.readouterr().out.endswith("Nothing is cached\n")
    assert open_dataset(guide).num_steps == 7  # the demonstrations themselves are no cache


def test_what_is_being_written_stays(datasets: tuple[Path, Path]) -> None:
    entries = find_caches(datasets[0])
    refused = pytest.raises(UserError, match="a process is writing to .* nothing was removed")
    with one_at_a_time(datasets[0], entries[0].path.parent), refused:
        clear(entries)
    assert entries[0].path.exists()


def test_folders_of_others_are_not_touched(datasets: tuple[Path, Path]) -> None:
    mine = datasets[0] / ".bimact_cache" / "mine"
    mine.mkdir()
    clear(find_caches())
    assert mine.is_dir()


def test_a_dataset_that_there_is_not(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert bimact("cache", tmp_path / "none") == 2
    assert "there is no" in capsys.readouterr().err
