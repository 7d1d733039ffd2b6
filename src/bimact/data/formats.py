"""Which dataset formats there are, and `open_dataset`, which recognises them."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from pathlib import Path

from bimact.data import guide_npy
from bimact.data.episodes import Episodes, Format
from bimact.errors import UserError


def known_formats() -> list[Format]:
    """Those of bimact, then those that other packages' entry points in the group `bimact.formats` name."""
    return [guide_npy.FORMAT, *(point.load() for point in entry_points(group="bimact.formats"))]


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
