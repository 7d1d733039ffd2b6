"""Folders for what is made of datasets and can be made again: where they are, and who writes to them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bimact.errors import UserError
from bimact.files import write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CACHE = ".bimact_cache"
_LOCK, _KNOWN = "lock", "places.txt"


def users_cache() -> Path:
    """The folder for what has no other place."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bimact"


def places(source: Path, cache_dir: Path | None) -> list[Path]:
    """Folders for the copies of a dataset, given as its folder or a file in it, in the order of preference."""
    dataset = (source if source.is_dir() else source.parent).resolve()
    name = hashlib.sha256(os.fsencode(dataset)).hexdigest()[:16]
    if cache_dir is not None:
        return [cache_dir.absolute() / name]
    return [dataset / CACHE, users_cache() / name]


def first_writable(source: Path, candidates: list[Path]) -> Path:
    """The first folder that can be written; it is made if need be.

    Raises:
        UserError: if none can.
    """
    for place in candidates:
        if _is_writable(place):
            _remember(place)
            return place
    tried = " or ".join(str(place) for place in candidates)
    raise UserError(
        f"{source} has to be converted once, and the copy cannot be written to {tried}: "
        "give a folder that can be written as cache_dir=..."
    )


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def one_at_a_time(source: Path, place: Path) -> Iterator[bool]:
    """Wait until no other process converts into a folder; yields whether that is certain.

    Where the file system has no locks two processes may do the same work, but both copies are whole, and the
    first one stays. The system takes the lock back when its holder dies.
    """
    with (place / _LOCK).open("a") as file:
        try:
            _lock(source, file.fileno())
        except OSError:
            yield False
        else:
            yield True


def _lock(source: Path, descriptor: int) -> None:
    if fcntl is None:
        raise OSError("no locks")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another process is converting {source}: waiting for it", flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def is_busy(place: Path) -> bool:
    """Whether a process is writing to a folder, as far as can be known."""
    try:
        with (place / _LOCK).open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, AttributeError):  # no lock was ever taken; no locks here
        return False
    return False


def check_space(source: Path, place: Path, needed: int) -> None:
    """See that a copy of so many bytes fits.

    Raises:
        UserError: with both sizes.
    """
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"the converted copy of {source} needs {needed / 1e9:.3f} GB and {place} has {free / 1e9:.3f} GB "
            "free: free some space or give another folder as cache_dir=..."
        )


def _remember(place: Path) -> None:
    """Note a folder, so that it can be found without its dataset."""
    if place.is_relative_to(users_cache()):
        return
    with contextlib.suppress(OSError):  # the note is a convenience
        known = [folder for folder in known_places() if folder.is_dir()]
        if place not in known:
            write_text(users_cache() / _KNOWN, "".join(f"{folder}\n" for folder in [*known, place]))


def known_places() -> list[Path]:
    """Folders beside datasets, or that were given as `cache_dir`, that something was written to."""
    try:
        return [Path(line) for line in (users_cache() / _KNOWN).read_text().splitlines()]
    except OSError:
        return []
