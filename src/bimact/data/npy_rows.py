"""Rows of a .npy file, read through a memory map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class NpyRows:
    """Rows of a .npy file, or of one field of it, read through a memory map.

    Pickling it (to a loader's worker) passes the path, not the data.

    Args:
        path: the file; no pickled one.
        field: one field of a structured array; None: the whole array.
        dtype: type that rows are converted to; None: as they are.
    """

    def __init__(self, path: Path, field: str | None = None, dtype: Any = None) -> None:
        self.path = path
        self.field = field
        self._dtype = None if dtype is None else np.dtype(dtype)
        self._array: np.ndarray | None = None

    @property
    def array(self) -> np.ndarray:
        """The memory map, in the file's own type."""
        if self._array is None:
            whole = np.load(self.path, mmap_mode="r", allow_pickle=False)
            self._array = whole if self.field is None else whole[self.field]
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
        """Which file, in which state."""
        status = self.path.stat()
        return {
            "file": str(self.path.resolve()),
            "field": self.field,
            "dtype": str(self._dtype),
            "state": [status.st_size, status.st_mtime_ns],
        }

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = self.array[rows]
        if self._dtype is None or chosen.dtype == self._dtype:
            return chosen
        with np.errstate(over="ignore"):  # becomes inf, which `checks.find_nonfinite` finds
            return chosen.astype(self._dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}
