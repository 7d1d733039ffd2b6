"""Folders of arrays that are made piece by piece: what is done survives a kill; the folder gets its name when whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bimact.files import flush_to_disk, write_json

DESCRIPTION = "description.json"
_JOURNAL, _UNFINISHED = "done.txt", ".unfinished"


class ArrayFolder:
    """A folder of .npy files that is complete as soon as it has its name.

    Args:
        path: the folder.
        arrays: file name → type and shape.
        description: what the folder holds, written beside the arrays.
    """

    def __init__(
        self,
        path: Path,
        arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
        description: Mapping[str, Any],
    ) -> None:
        self.path = path
        self.arrays = arrays
        self.description = description
        self.unfinished = path.with_name(path.name + _UNFINISHED)

    @property
    def bytes(self) -> int:
        return sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in self.arrays.values())

    @property
    def is_whole(self) -> bool:
        return (self.path / DESCRIPTION).is_file()

    def done(self) -> set[str] | None:
        """The pieces that were noted; None if nothing was begun."""
        try:
            text = (self.unfinished / _JOURNAL).read_text()
        except OSError:
            return None
        return set(text[: text.rfind("\n") + 1].splitlines())

    def reserve(self) -> None:
        """Make the files in their full size, so that a full disk is noticed now."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir()
        for name, (dtype, shape) in self.arrays.items():
            np.lib.format.open_memmap(self.unfinished / name, "w+", dtype, shape).flush()
            with (self.unfinished / name).open("r+b") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
                os.fsync(file.fileno())
        write_json(self.unfinished / DESCRIPTION, dict(self.description))
        (self.unfinished / _JOURNAL).touch()

    def note(self, piece: str) -> None:
        """Remember that a piece is on the disk; several processes may do so at once."""
        with (self.unfinished / _JOURNAL).open("a") as file:
            file.write(f"{piece}\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Give the folder its name: all pieces are there."""
        (self.unfinished / _JOURNAL).unlink()
        self.unfinished.rename(self.path)
        flush_to_disk(self.path.parent)


def read_description(folder: Path) -> dict[str, Any] | None:
    """What a folder holds, finished or not; None if it does not tell."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError):
        return None
    return description if isinstance(description, dict) else None


class RowWriter:
    """Writes rows of a .npy file that is there in its full size; they are on the disk when the block ends."""

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        self._offset: int = array.offset
        self._row, self._dtype = array.shape[1:], array.dtype
        self._file = path.open("r+b", buffering=0)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            os.fsync(self._file.fileno())
        self._file.close()

    def write(self, first: int, rows: np.ndarray) -> None:
        """Put rows (n, …) at the numbers from `first` on."""
        assert rows.shape[1:] == self._row and rows.dtype == self._dtype
        self._file.seek(self._offset + first * self._dtype.itemsize * int(np.prod(self._row)))
        self._file.write(np.ascontiguousarray(rows).data)
