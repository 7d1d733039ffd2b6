"""Finding a dataset's format, and saying what is wrong where there is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bimact.data.episodes import Episodes, Format
from bimact.data.formats import open_dataset
from bimact.errors import UserError


def test_format_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = Episodes(tmp_path, np.array([2, 3]), {}, np.zeros((5, 1)), np.zeros((5, 1)))
    mine = Format("mine", recognizes=lambda path: (path / "mine").exists(), open=lambda path, cache: episodes)
    point = SimpleNamespace(load=lambda: mine)
    monkeypatch.setattr("bimact.data.formats.entry_points", lambda group: [point] if group == "bimact.formats" else [])
    with pytest.raises(UserError, match=r"no dataset in a format that bimact knows \(.*, mine\)"):
        open_dataset(tmp_path)
    (tmp_path / "mine").touch()
    assert open_dataset(tmp_path) is episodes


def test_rows_of_episodes() -> None:
    episodes = Episodes(Path("p"), np.array([2, 3, 1]), {}, np.zeros((6, 1)), np.zeros((6, 1)))
    assert episodes.starts.tolist() == [0, 2, 5]
    assert [episodes.rows_of(number) for number in range(3)] == [slice(0, 2), slice(2, 5), slice(5, 6)]
    assert (episodes.num_steps, episodes.cameras) == (6, ())


def test_not_found_shows_the_absolute_path_and_near_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cube_50").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"dataset not found: {tmp_path}/cube50; near it there is {tmp_path}/cube_50"):
        open_dataset("cube50")
    with pytest.raises(UserError, match=f"dataset not found: {tmp_path}/a/b/c$"):
        open_dataset("a/b/c")
