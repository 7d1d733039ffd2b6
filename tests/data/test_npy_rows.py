"""Rows that are read are the rows that a plain array has, in any order and as often as asked."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bimact.data.npy_rows import NpyRows
from bimact.errors import UserError

IMAGE = (40, 36, 3)  # 4,320 bytes: enough to be read instead of mapped


def write_columns(path: Path, steps: int) -> np.ndarray:
    """A structured array, as the training guide's observations are."""
    draw = np.random.default_rng(0)
    columns = np.empty(steps, [("left", np.uint8, IMAGE), ("state", np.float32, (3,)), ("right", np.uint8, IMAGE)])
    columns["left"], columns["right"] = draw.integers(0, 256, (2, steps, *IMAGE), np.uint8)
    columns["state"] = draw.random((steps, 3))
    np.save(path, columns)
    return columns


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 8), max_size=12), field=st.sampled_from(["right", "state", None]))
def test_rows_are_the_arrays(tmp_path: Path, rows: list[int], field: str | None) -> None:
    columns = write_columns(tmp_path / "columns.npy", 9)
    whole = columns[field or "left"]
    read = NpyRows(tmp_path / "columns.npy", field)
    if field is None:
        np.save(tmp_path / "array.npy", whole)
        read = NpyRows(tmp_path / "array.npy")
    wanted = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(read[wanted], whole[wanted])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(read))[wanted], whole[wanted])


def test_other_ways_to_index(tmp_path: Path) -> None:
    columns = write_columns(tmp_path / "columns.npy", 9)
    for field in ("left", "state"):
        read = NpyRows(tmp_path / "columns.npy", field)
        slices = (slice(2, 7), slice(None), slice(-3, None), slice(8, 2, -2), slice(4, 4))
        for rows in (3, *slices, np.array([-1, 2]), np.array([[0, 1], [2, 3]]), [4, 4]):
            np.testing.assert_array_equal(read[rows], columns[field][rows])
        with pytest.raises(IndexError):
            read[np.array([9])]


def test_types_are_converted(tmp_path: Path) -> None:
    columns = write_columns(tmp_path / "columns.npy", 9)
    rows = np.array([5, 0])
    read = NpyRows(tmp_path / "columns.npy", "left", np.float64)[rows]
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, columns["left"][rows])


def test_columns_before_rows_in_the_file(tmp_path: Path) -> None:
    array = np.asfortranarray(np.random.default_rng(0).random((5, 40, 30)))
    np.save(tmp_path / "fortran.npy", array)
    np.testing.assert_array_equal(NpyRows(tmp_path / "fortran.npy")[np.array([3, 1])], array[[3, 1]])


def test_rows_that_are_read_are_not_mapped(tmp_path: Path) -> None:
    """What was mapped would count as this process's memory until the file is closed."""
    large = np.zeros(64, [("image", np.uint8, (1 << 10, 1 << 10)), ("state", np.float32, (3,))])
    np.save(tmp_path / "large.npy", large)
    images, states = (NpyRows(tmp_path / "large.npy", field) for field in ("image", "state"))
    for row in range(64):
        images[np.array([row])]
    assert not states[:].any()
    assert _mapped_kilobytes(tmp_path / "large.npy") < 1024


def _mapped_kilobytes(path: Path) -> int:
    lines = Path("/proc/self/smaps").read_text().splitlines() if Path("/proc/self/smaps").exists() else []
    of_file, kilobytes = False, 0
    for line in lines:
        if "-" in line.split()[0]:
            of_file = line.endswith(str(path))
        elif of_file and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return kilobytes


def test_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.ones((9, *IMAGE), np.uint8))
    rows = NpyRows(path)
    assert rows[np.array([8])].all()
    with path.open("r+b") as file:
        file.truncate(9000)
    with pytest.raises(UserError, match=r"array\.npy has become shorter since it was opened"):
        rows[np.array([8])]
