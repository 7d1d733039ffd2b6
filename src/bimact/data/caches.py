"""What was put on the disk besides what anyone asked for: converted copies, encoded images, downloads."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bimact.data.array_folder import read_description
from bimact.data.cache_places import CACHE, is_busy, known_places, users_cache
from bimact.errors import UserError

_IDENTITY = "source.json"  # in a converted copy of a file
_FETCHED = ".fetched.jsonl"  # in a downloaded dataset


@dataclass(frozen=True)
class CacheEntry:
    """One thing that can be made again.

    Attributes:
        kind: "decoded images", "encoded images", "converted file" or "download".
        dataset: whose; None if that is not written down.
        bytes: on the disk.
    """

    path: Path
    kind: str
    dataset: str | None
    detail: str
    bytes: int


def find_caches(dataset: Path | None = None) -> list[CacheEntry]:
    """All that there is, or what belongs to a dataset's folder or file."""
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
        part = " (unfinished)" if folder.suffix == ".unfinished" else ""
        dataset = description.get("dataset", beside)
        if "encoder" in description:
            encoder = description["encoder"]
            name = encoder.get("model_name") or encoder["class"].rpartition(".")[2]
            return "encoded images", dataset, f"{description['camera']} by {name}, {description['dtype']}{part}"
        return "decoded images", dataset, f"{', '.join(description['cameras']) or 'no cameras'}{part}"
    if (folder / _IDENTITY).is_file():
        return "converted file", beside, folder.name.partition("-")[0]
    if (folder.parent / _FETCHED).is_file():
        return "download", str(folder), folder.name
    return None, None, ""


def _size(folder: Path) -> int:
    """Bytes that its files take on the disk."""
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
