"""The one view of a dataset that all later code sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Rows(Protocol):
    """Something that is indexed like an array by an array of row numbers: a memory map, or a column of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class Episodes:
    """Demonstrations, one after the other along the first axis of each array.

    All quantities are in the robot's own units. Images stay where they are on disk until rows are asked for.
    """

    path: Path
    lengths: np.ndarray  # (E,) int64: steps of each episode
    images: Mapping[str, Rows]  # camera → (N, H, W, 3) uint8 RGB, N = lengths.sum()
    state: Rows  # (N, S) float32
    actions: Rows  # (N, A) float32
    fps: float | None = None
    joint_names: tuple[str, ...] | None = None  # of the actions
    task: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.images)

    @property
    def num_steps(self) -> int:
        return int(self.lengths.sum())

    @property
    def starts(self) -> np.ndarray:
        """(E,) int64: the row of each episode's first step."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    def rows_of(self, episode: int) -> slice:
        start = int(self.starts[episode])
        return slice(start, start + int(self.lengths[episode]))


Opener = Callable[[Path, "Path | None"], Episodes]
Recognizer = Callable[[Path], bool]


@dataclass(frozen=True)
class Format:
    """A dataset format: how it is recognised and how it is opened.

    `open` takes the dataset's path and a folder for converted copies (None: the format's own choice).
    Packages outside bimact add formats by an entry point in the group `bimact.formats` that names one.
    """

    name: str
    recognizes: Recognizer
    open: Opener
