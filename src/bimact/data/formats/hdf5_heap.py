"""A check of what HDF5 does not check itself: global heaps, where it keeps texts of any length.

An object of no size in a heap makes the library (2.0 and before) go round in circles for ever.

Source: the HDF5 file format specification, version 3.0, section III.E, "Global Heap".
"""

from __future__ import annotations

import io
import os
import re
from typing import Any

_SIGNATURE = re.compile(rb"GCOL\x01")
_HEADER = 16  # bytes of a heap's header, and of each object's
_LARGEST = 64 << 20  # bytes of a heap: HDF5 makes one for each larger text


class FileWithSoundHeaps(io.FileIO):
    """A file, for h5py to read from, in which a damaged heap is an `OSError`."""

    def readinto(self, buffer: Any, /) -> int | None:
        start = self.tell()
        count = super().readinto(buffer)
        for match in _SIGNATURE.finditer(memoryview(buffer)[: count or 0]):
            self._check_heap(start + match.start())
        self.seek(start + (count or 0))
        return count

    def _check_heap(self, start: int) -> None:
        self.seek(start)
        size = int.from_bytes(self.read(_HEADER)[8:], "little")
        if size > min(_LARGEST, os.fstat(self.fileno()).st_size - start):
            raise OSError(f"a heap claims {size} bytes")
        heap = self.read(size - _HEADER)
        at = 0
        while at + _HEADER <= len(heap):
            number = int.from_bytes(heap[at : at + 2], "little")
            content = int.from_bytes(heap[at + 8 : at + _HEADER], "little")
            # Object 0 is the room that is left, its header included; those of others are padded to 8 bytes.
            taken = content if number == 0 else _HEADER + -(-content // 8) * 8
            if taken == 0 or at + taken > len(heap):
                raise OSError(f"a heap's object claims {content} bytes")
            at += taken
