"""Converted copies of source files: made once, whole or not at all, and renewed when the source changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from bimact.data.cache_places import check_space, first_writable, one_at_a_time, places
from bimact.errors import UserError
from bimact.files import flush_to_disk, write_json

IDENTITY = "source.json"
_TEMPORARY = ".unfinished-"
_ABANDONED = 24 * 3600  # seconds after which an unfinished copy is nobody's work
_VERSION = 4  # of what copies look like: another number makes them anew


class Conversion(Protocol):
    """A source file that has been opened and is ready to be converted."""

    @property
    def size(self) -> int:
        """Bytes that the copy takes."""
        ...

    def write(self, folder: Path) -> None:
        """Write the copy into an empty folder."""
        ...


@dataclass(frozen=True)
class _Identity:
    """Which source a copy was made of; a source that changes gets another one.

    Attributes:
        beside: of what the copy depends on besides.
    """

    size: int
    mtime_ns: int
    beside: str
    version: int = _VERSION

    @classmethod
    def of(cls, source: Path, beside: bytes) -> _Identity:
        status = source.stat()
        return cls(status.st_size, status.st_mtime_ns, hashlib.sha256(beside).hexdigest()[:12])


def converted_copy(
    source: Path, cache_dir: Path | None, prepare: Callable[[], Conversion], *, beside: bytes = b""
) -> Path:
    """The folder that holds the converted copy of a dataset's file; it is made if there is none yet.

    Args:
        source: the file.
        cache_dir: a folder for the copies of any datasets. None: `.bimact_cache` beside the source or, where
            that cannot be written, the user's cache folder.
        prepare: opens the source for conversion; only called if the copy has to be made.
        beside: what the copy depends on besides the file: another one has a copy of its own.

    Raises:
        UserError: if the copy cannot be written, and what `prepare` and the conversion raise. No part of a
            copy is left then.
    """
    identity = _Identity.of(source, beside)
    candidates = places(source, cache_dir)
    for place in candidates:
        if _is_whole(_folder_of(source, place, identity), identity):
            return _folder_of(source, place, identity)
    place = first_writable(source, candidates)
    copy = _folder_of(source, place, identity)
    with one_at_a_time(source, place) as is_alone:
        if _is_whole(copy, identity):  # made by the process that this one has waited for
            return copy
        conversion = prepare()
        _clean_up(copy, is_alone)
        check_space(source, place, conversion.size)
        try:
            _write_whole(source, copy, identity, conversion, beside)
        except OSError as error:
            raise UserError(
                f"cannot write the converted copy of {source} to {place}: {error.strerror or error}"
            ) from None
    return copy


def _folder_of(source: Path, place: Path, identity: _Identity) -> Path:
    return place / f"{source.stem}-{identity.size}-{identity.mtime_ns}-{identity.beside}"


def _is_whole(copy: Path, identity: _Identity) -> bool:
    """Whether a copy is there. It got its name when it was whole; its file tells what it is a copy of."""
    try:
        return bool(json.loads((copy / IDENTITY).read_text()) == asdict(identity))
    except (OSError, ValueError):
        return False


def _clean_up(copy: Path, is_alone: bool) -> None:
    """Remove copies of what the source was before, and what conversions that were killed have left."""
    stem, _, _ = copy.name.partition("-")
    for folder in copy.parent.iterdir():
        is_old_copy = folder.name.startswith(f"{stem}-") and (is_alone or folder != copy)
        is_unfinished = folder.name.startswith(_TEMPORARY)
        # Without locks an unfinished copy may be another process's work.
        if is_old_copy or (is_unfinished and (is_alone or time.time() - folder.stat().st_mtime > _ABANDONED)):
            shutil.rmtree(folder, ignore_errors=True)


def _write_whole(source: Path, copy: Path, identity: _Identity, conversion: Conversion, beside: bytes) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=copy.parent))
    try:
        conversion.write(temporary)
        for file in temporary.iterdir():
            flush_to_disk(file)
        if _Identity.of(source, beside) != identity:
            raise UserError(f"{source} was changed while it was converted: try again when it is written")
        write_json(temporary / IDENTITY, asdict(identity))
        # mkdtemp makes folders that only their owner can read; give the usual permissions.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        _take_name(temporary, copy, identity)
        flush_to_disk(copy.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_name(temporary: Path, copy: Path, identity: _Identity) -> None:
    try:
        temporary.rename(copy)
    except OSError:
        if not _is_whole(copy, identity):  # without locks, another process may have been first
            raise
