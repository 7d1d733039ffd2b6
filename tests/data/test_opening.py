"""Finding a dataset's format, and saying what is wrong where there is none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from guide_files import write_dataset
from synthetic import synthetic_source

from bimact.data.episodes import Episodes, SelectedRows
from bimact.data.opening import open_dataset, open_source
from bimact.data.selection import Selection
from bimact.data.source import Format
from bimact.errors import UserError


def test_format_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Format(
        "mine",
        recognizes=lambda path: (path / "mine").exists(),
        open=lambda path, cache: synthetic_source(path),
        in_process=True,  # a module of this test cannot be imported by a child
    )
    point = SimpleNamespace(load=lambda: mine)
    monkeypatch.setattr("bimact.data.opening.entry_points", lambda group: [point] if group == "bimact.formats" else [])
    (tmp_path / "mine").touch()
    assert open_dataset(tmp_path, cache_dir=tmp_path / "cache").lengths.tolist() == [5, 8, 3]


def test_a_folder_of_no_known_format_is_refused_with_the_formats_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").touch()
    with pytest.raises(UserError, match=r"no dataset in a format that bimact knows \(.*observations.npy.*"):
        open_source(tmp_path)


def test_the_guides_files_are_used_where_they_are(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data", [4, 6])
    episodes = open_dataset(path, image_size=(8, 8))
    assert not (path / ".bimact_cache").exists()
    assert episodes.images["left"].shape == (10, 16, 24, 3)


def test_a_part_of_the_guides_files(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data", [4, 6, 5])
    whole = open_dataset(path)
    selection = Selection(cameras=("right",), state_dims="3:5", action_dims="7:14", max_episodes=2, fps=25)
    part = open_dataset(path, selection=selection)
    assert part.cameras == ("right",) and part.fps == 25
    assert part.lengths.tolist() == [2, 3]
    rows = [0, 2, 4, 6, 8]
    assert np.array_equal(part.state[:], whole.state[rows][:, 3:5])
    assert np.array_equal(part.actions[np.array([1, 4])], whole.actions[[2, 8]][:, 7:])
    assert np.array_equal(part.images["right"][part.rows_of(1)], whole.images["right"][[4, 6, 8]])
    assert part.actions.shape == (5, 7) and len(part.images["right"]) == 5
    frames = list(Selection(fps=25).applied_to(open_source(path)).read_frames(1, "left", [0, 2]))
    assert np.array_equal(frames, whole.images["left"][[4, 8]])


@pytest.mark.parametrize("form", ["dictionaries", "columns"])
def test_pickled_observations_are_read_in_child_processes(tmp_path: Path, form: str) -> None:
    path = write_dataset(tmp_path / "data", [4, 6])
    mapped = open_dataset(write_dataset(tmp_path / "mapped", [4, 6]))
    arrays = {name: np.load(path / "observations.npy")[name] for name in ("image_left", "image_right", "state")}
    steps = [{name: array[row] for name, array in arrays.items()} for row in range(10)]
    np.save(path / "observations.npy", np.array(arrays if form == "columns" else steps, dtype=object))
    program = f"""
import sys
from pathlib import Path
import numpy as np
from bimact.data import safe_pickle
from bimact.data.opening import open_dataset
safe_pickle._load = None  # nothing is unpickled in this process
np.save({str(tmp_path / "state.npy")!r}, open_dataset({str(path)!r}).state[:])
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    assert np.array_equal(np.load(tmp_path / "state.npy"), mapped.state[:])
    episodes = open_dataset(path)
    for camera in mapped.cameras:
        assert np.array_equal(episodes.images[camera][:], mapped.images[camera][:])


def test_rows_of_episodes() -> None:
    episodes = Episodes(Path("p"), np.array([2, 3, 1]), {}, np.zeros((6, 1)), np.zeros((6, 1)))
    assert episodes.starts.tolist() == [0, 2, 5]
    assert [episodes.rows_of(number) for number in range(3)] == [slice(0, 2), slice(2, 5), slice(5, 6)]
    assert (episodes.num_steps, episodes.cameras) == (6, ())


def test_all_rows_and_columns_are_the_rows_themselves() -> None:
    values = np.arange(6.0).reshape(3, 2)
    assert SelectedRows.of(values, None, (0, 1)) is values
    assert SelectedRows.of(values, None, (1, 0))[1].tolist() == [3, 2]


def test_not_found_shows_the_absolute_path_and_near_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cube_50").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"dataset not found: {tmp_path}/cube50; near it there is {tmp_path}/cube_50"):
        open_dataset("cube50")
    with pytest.raises(UserError, match=f"dataset not found: {tmp_path}/a/b/c$"):
        open_dataset("a/b/c")


def test_a_source_can_be_replaced(tmp_path: Path) -> None:
    assert replace(synthetic_source(tmp_path), color_order="bgr").color_order == "bgr"
