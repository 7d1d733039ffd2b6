"""Rows of a .npy file, through a memory map or, if rows are far apart in the file, by reads."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bimact.data.safe_pickle import read_npy_header
from bimact.errors import UserError, in_words

# Row stride in bytes from which rows are read instead of mapped: the system maps several pages at a time, which takes
# longer than copying, and counts all touched pages as this process's memory.
_READ_FROM = 4096


class NpyRows:
    """Rows of a .npy file, or of one field of it; they stay on disk until they are indexed.

    Pickling it (to a loader's worker) passes the path, not the data.

    Args:
        path: the file, without Python objects.
        field: one field of a structured array; None: the whole array.
        dtype: that rows are converted to; None: unchanged.
    """

    def __init__(self, path: Path, field: str | None = None, dtype: Any = None) -> None:
        self.path = path
        self.field = field
        self._dtype = None if dtype is None else np.dtype(dtype)
        self._array: np.ndarray | None = None
        self._start = 0  # where the first row is in the file, in bytes
        self._file: int | None = None  # descriptor

    @property
    def array(self) -> np.ndarray:
        """The memory map, in the file's own type."""
        if self._array is None:
            whole = np.load(self.path, mmap_mode="r", allow_pickle=False)
            self._array = whole if self.field is None else whole[self.field]
            self._start = int(whole.offset) + self._array.ctypes.data - whole.ctypes.data
        return self._array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype or self.array.dtype

    def __len__(self) -> int:
        return len(self.array)

    @property
    def identity(self) -> dict[str, Any]:
        """The file and its state."""
        status = self.path.stat()
        return {
            "file": str(self.path.resolve()),
            "field": self.field,
            "dtype": str(self._dtype),
            "state": [status.st_size, status.st_mtime_ns],
        }

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = self._to_read(rows)
        chosen = self.array[rows] if numbers is None else self._read(numbers)
        if self._dtype is None or chosen.dtype == self._dtype:
            return chosen
        with np.errstate(over="ignore"):  # becomes inf, which `reading.find_nonfinite` finds
            return chosen.astype(self._dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None, "_file": None}

    def _to_read(self, rows: Any) -> np.ndarray | None:
        """The row numbers to read; None if the memory map is to be used."""
        array = self.array
        is_one_piece = array.ndim > 1 and array.size > 0 and array[:1].flags.c_contiguous
        if not (hasattr(os, "preadv") and is_one_piece and array.strides[0] >= _READ_FROM):
            return None
        if isinstance(rows, slice) and array[:1].nbytes < _READ_FROM:  # a column beside images; of images it is a view
            rows = np.arange(len(array))[rows]
        if not (isinstance(rows, np.ndarray) and rows.dtype.kind in "iu" and rows.ndim == 1 and rows.size > 0):
            return None
        return rows if rows.min() >= 0 and rows.max() < len(array) else None

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """(n, …) in the file's own type."""
        array = self.array
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
        chosen = np.empty((len(rows), *array.shape[1:]), array.dtype)
        stride = array.strides[0]
        for first, end in _runs(rows, joined=stride == array[:1].nbytes):
            self._fill(chosen[first:end], self._start + int(rows[first]) * stride)
        return chosen

    def _fill(self, into: np.ndarray, position: int) -> None:
        assert self._file is not None
        left = into.reshape(-1).view(np.uint8).data
        while left:
            count = os.preadv(self._file, [left], position)
            if count == 0:
                raise UserError(f"{self.path} has become shorter since it was opened: restore it and start again")
            left, position = left[count:], position + count


def open_array(path: Path) -> np.ndarray:
    """The memory map of a .npy file without Python objects, once it is known to be whole.

    Raises:
        UserError: if it cannot be read, is cut off, or holds Python objects.
    """
    header = read_npy_header(path)
    if header.is_pickled:
        raise UserError(f"{path} holds Python objects instead of numbers: save it as a plain array")
    promised = header.offset + math.prod(header.shape) * header.dtype.itemsize
    size = path.stat().st_size
    if size < promised:
        raise UserError(f"{path} is cut off: it has {size} of {promised} bytes; copy or record it again")
    try:
        return NpyRows(path).array
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {path}: {in_words(error)}") from None


def _runs(rows: np.ndarray, joined: bool) -> Iterator[tuple[int, int]]:
    """Ranges (first, end) in `rows` of rows that are consecutive in the file, if rows are contiguous (`joined`)."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1 if joined else np.arange(1, len(rows))
    places = [0, *cuts.tolist(), len(rows)]
    yield from pairwise(places)
