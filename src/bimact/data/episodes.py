"""The one view of a dataset that all later code sees, and `open_dataset`, which makes it from any format."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bimact.errors import UserError


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


def known_formats() -> list[Format]:
    from bimact.data.guide_npy import FORMAT

    return [FORMAT, *(point.load() for point in entry_points(group="bimact.formats"))]


def open_dataset(path: str | Path, *, cache_dir: str | Path | None = None) -> Episodes:
    """Open demonstrations in any format that is known.

    Args:
        path: the dataset's folder.
        cache_dir: where a converted copy goes, if the format needs one.

    Raises:
        UserError: if there is no such folder, or no format recognises it, or its content is faulty.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(_not_found(path))
    for candidate in known_formats():
        if candidate.recognizes(path):
            return candidate.open(path, None if cache_dir is None else Path(cache_dir))
    names = ", ".join(candidate.name for candidate in known_formats())
    raise UserError(f"{path.resolve()} is no dataset in a format that bimact knows ({names})")


def _not_found(path: Path) -> str:
    """The absolute path that was looked at, and names that are near to it."""
    absolute = path.resolve()
    parent = absolute.parent
    siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    close = difflib.get_close_matches(absolute.name, siblings, n=3)
    hint = f"; near it there is {', '.join(str(parent / name) for name in close)}" if close else ""
    return f"dataset not found: {absolute}{hint}"
