"""The cache of converted data: where folders of arrays are stored, and the lock for writing to them.

Decoded images and features of a frozen encoder are folders of .npy files, named by a hash of their description. A
folder gets its name when it is complete; until then finished parts are recorded in it, so that interrupted or killed
work is resumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bimact.errors import UserError
from bimact.files import flush_to_disk, write_json, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CACHE = ".bimact_cache"
DESCRIPTION = "description.json"
_LOCK, _KNOWN = "lock", "places.txt"
_JOURNAL, _UNFINISHED = "done.txt", ".unfinished"
_FETCHED = ".fetched.jsonl"  # in a downloaded dataset
_FORMER, _FORMER_PREFIX = "source.json", "observations-"  # of converted observations of earlier versions
_ABANDONED = 24 * 3600  # seconds after which, without locks, unfinished work counts as abandoned

Arrays = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]  # file name → type and shape

# Folders for datasets ------------------------------------------------------------------------------


def users_cache() -> Path:
    """The user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bimact"


def places(source: Path, cache_dir: Path | None) -> list[Path]:
    """Candidate folders for the copies of a dataset (given as its folder or a file in it), in order of preference."""
    dataset = (source if source.is_dir() else source.parent).resolve()
    name = hashlib.sha256(os.fsencode(dataset)).hexdigest()[:16]
    if cache_dir is not None:
        return [cache_dir.absolute() / name]
    return [dataset / CACHE, users_cache() / name]


def first_writable(source: Path, candidates: list[Path]) -> Path:
    """The first writable folder; it is created if necessary.

    Raises:
        UserError: if none is writable.
    """
    for place in candidates:
        if _is_writable(place):
            _remember(place)
            return place
    tried = " or ".join(str(place) for place in candidates)
    raise UserError(
        f"{source} has to be converted once, but the copy cannot be written to {tried}: "
        "give a writable folder as cache_dir=..."
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
    """Wait until no other process converts into a folder; yields whether the lock is held.

    On file systems without locks two processes may do the same work, but both copies are complete, and the first one is
    kept. The system releases the lock when its holder dies.
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
    """Whether a process is writing to a folder, as far as locks show it."""
    try:
        with (place / _LOCK).open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, AttributeError):  # no lock was ever taken, or there are no locks
        return False
    return False


def check_space(source: Path, place: Path, needed: int) -> None:
    """Check that there is disk space for a copy.

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
    """List a folder, so that `bimact cache` finds it without its dataset."""
    if place.is_relative_to(users_cache()):
        return
    with contextlib.suppress(OSError):  # the list is a convenience
        known = [folder for folder in known_places() if folder.is_dir()]
        if place not in known:
            write_text(users_cache() / _KNOWN, "".join(f"{folder}\n" for folder in [*known, place]))


def known_places() -> list[Path]:
    """Cache folders next to datasets, or given as `cache_dir`, that were written to."""
    try:
        return [Path(line) for line in (users_cache() / _KNOWN).read_text().splitlines()]
    except OSError:
        return []


# Folders of arrays ---------------------------------------------------------------------------------


class ArrayFolder:
    """A folder of .npy files that is complete as soon as it has its name, a hash of its description.

    Args:
        place: its parent folder.
        prefix: of its name.
        description: of its content, written next to the arrays.
        has_lock: whether this process holds the lock.
    """

    def __init__(self, place: Path, prefix: str, description: Mapping[str, Any], *, has_lock: bool = True) -> None:
        self.prefix = prefix
        self.description: dict[str, Any] = json.loads(json.dumps(description))  # as it is read back
        name = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:20]
        self.path = place / f"{prefix}{name}"
        self.unfinished = place / f"{prefix}{name}{_UNFINISHED}{'' if has_lock else f'-{os.getpid()}'}"

    @property
    def is_whole(self) -> bool:
        return read_description(self.path) == self.description

    def done(self) -> set[str] | None:
        """The finished parts; None if nothing was begun."""
        try:
            text = (self.unfinished / _JOURNAL).read_text()
        except OSError:
            return None
        return set(text[: text.rfind("\n") + 1].splitlines())

    def reserve(self, arrays: Arrays) -> None:
        """Create the files in their full size, so that a full disk is noticed immediately."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir()
        for name, (dtype, shape) in arrays.items():
            np.lib.format.open_memmap(self.unfinished / name, "w+", dtype, shape).flush()
            with (self.unfinished / name).open("r+b") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
                os.fsync(file.fileno())
        write_json(self.unfinished / DESCRIPTION, self.description)
        (self.unfinished / _JOURNAL).touch()

    def note(self, piece: str) -> None:
        """Record that a part is on disk; several processes may do so concurrently."""
        with (self.unfinished / _JOURNAL).open("a") as file:
            file.write(f"{piece}\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Give the folder its final name: all parts are on disk."""
        (self.unfinished / _JOURNAL).unlink()
        try:
            self.unfinished.rename(self.path)
        except OSError:
            if not self.is_whole:  # without locks, another process may have been first
                raise
            self.discard()
        flush_to_disk(self.path.parent)

    def discard(self) -> None:
        """Remove the unfinished folder."""
        shutil.rmtree(self.unfinished, ignore_errors=True)


def size_of(arrays: Arrays) -> int:
    """Size of arrays in bytes."""
    return sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in arrays.values())


def read_description(folder: Path) -> dict[str, Any] | None:
    """The description of a folder, finished or not; None if it has none."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError):
        return None
    return description if isinstance(description, dict) else None


class RowWriter:
    """Writes rows of a .npy file that exists in its full size; they are on disk when the block ends."""

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
        """Write rows (n, …) from row `first` on."""
        assert rows.shape[1:] == self._row and rows.dtype == self._dtype
        self._file.seek(self._offset + first * self._dtype.itemsize * int(np.prod(self._row)))
        self._file.write(np.ascontiguousarray(rows).data)


def build_once(
    source: Path,
    cache_dir: Path | None,
    prefix: str,
    description: Mapping[str, Any],
    make: Callable[[ArrayFolder], None],
) -> Path:
    """A complete folder of arrays: the existing one, or a new one.

    Args:
        source: the dataset's folder or file.
        cache_dir: a folder for the caches of datasets. None: `.bimact_cache` next to the dataset or, if that is not
            writable, the user's cache folder.
        prefix: of the folder's name.
        description: everything that determines the content. `dataset` and `origin` identify the files and their state:
            folders of the same prefix and dataset with another origin are removed.
        make: fills the folder and calls its `finish`.

    Raises:
        UserError: if no folder is writable, and as `make`.
    """
    candidates = places(source, cache_dir)
    for place in candidates:
        if ArrayFolder(place, prefix, description).is_whole:
            return ArrayFolder(place, prefix, description).path
    place = first_writable(source, candidates)
    with one_at_a_time(source, place) as has_lock:
        folder = ArrayFolder(place, prefix, description, has_lock=has_lock)
        if not folder.is_whole:  # else made by another process meanwhile
            _remove_outdated(folder, has_lock)
            try:
                make(folder)
            except OSError as error:
                raise UserError(
                    f"cannot write the converted copy of {source} to {place}: {error.strerror or error}"
                ) from None
    return folder.path


def _remove_outdated(folder: ArrayFolder, has_lock: bool) -> None:
    """Remove folders (also unfinished ones) of the dataset in another state, and a damaged folder of the same name."""
    wanted = folder.description
    for other in folder.path.parent.iterdir():
        if not other.is_dir():
            continue
        found = read_description(other) or {}
        is_same = found.get("dataset") in (None, wanted["dataset"]) and found.get("origin") == wanted["origin"]
        is_damaged = other == folder.path
        is_former = (other / _FORMER).is_file() or other.name.startswith(_FORMER_PREFIX)
        is_outdated = other.name.startswith(folder.prefix) and found.get("dataset") in (None, wanted["dataset"])
        # Without locks, unfinished work may belong to another process.
        is_nobodys = has_lock or _UNFINISHED not in other.name or time.time() - other.stat().st_mtime > _ABANDONED
        if is_nobodys and (is_damaged or is_former or (is_outdated and not is_same)):
            shutil.rmtree(other, ignore_errors=True)


# Listing -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CacheEntry:
    """A cached folder or file, which can be recreated.

    Attributes:
        kind: "decoded images", "encoded images", "converted file" or "download".
        dataset: that it belongs to; None if unknown.
        bytes: on disk.
    """

    path: Path
    kind: str
    dataset: str | None
    detail: str
    bytes: int


def find_caches(dataset: Path | None = None) -> list[CacheEntry]:
    """All cache entries, or those of a dataset's folder or file."""
    users = users_cache()
    folders = [*known_places(), *(sorted(users.iterdir()) if users.is_dir() else []), *(users / "remote").glob("*")]
    if dataset is not None:
        folders.append((dataset if dataset.is_dir() else dataset.parent) / CACHE)
    places = dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir())
    entries = [entry for place in places for entry in _entries(place)]
    if dataset is None:
        return entries
    wanted = {str(dataset.resolve()), str(dataset.resolve().parent)} if dataset.is_file() else {str(dataset.resolve())}
    return [entry for entry in entries if entry.dataset in wanted]


def _entries(place: Path) -> Iterator[CacheEntry]:
    for folder in sorted(place.iterdir()):
        if folder.is_dir():
            kind, dataset, detail = _described(folder)
            if kind is not None:
                yield CacheEntry(folder, kind, dataset, detail, _size(folder))


def _described(folder: Path) -> tuple[str | None, str | None, str]:
    beside = str(folder.parent.parent) if folder.parent.name == CACHE else None
    description = read_description(folder)
    if description is not None:
        part = " (unfinished)" if _UNFINISHED in folder.name else ""
        dataset = description.get("dataset", beside)
        if "file" in description:
            return "converted file", dataset, f"{Path(description['file']).stem}{part}"
        if "encoder" in description:
            encoder = description["encoder"]
            name = encoder.get("model_name") or encoder["class"].rpartition(".")[2]
            return "encoded images", dataset, f"{description['camera']} by {name}, {description['dtype']}{part}"
        return "decoded images", dataset, f"{', '.join(description['cameras']) or 'no cameras'}{part}"
    if (folder / _FORMER).is_file():
        return "converted file", beside, folder.name.partition("-")[0]
    if (folder.parent / _FETCHED).is_file():
        return "download", str(folder), folder.name
    return None, None, ""


def _size(folder: Path) -> int:
    """Size of its files on disk in bytes."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.lstat().st_blocks * 512
    return total


def clear(entries: list[CacheEntry]) -> None:
    """Remove entries.

    Raises:
        UserError: if a process is writing to one of their folders; nothing is removed then.
    """
    for entry in entries:
        if is_busy(entry.path.parent):
            raise UserError(f"a process is writing to {entry.path.parent}: wait for it, nothing was removed")
    for entry in entries:
        shutil.rmtree(entry.path)
