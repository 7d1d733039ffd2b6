"""Files that appear whole or not at all: write beside, flush to disk, rename."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from bimact.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_POINTER = b"version https://git-lfs.github.com/spec/v1"
_LARGEST_POINTER = 1024  # bytes


def expand_home(path: str | os.PathLike[str]) -> str:
    """`~/x` → x in the user's home folder; any other path, and that of an unknown user, stays as it is."""
    return os.path.expanduser(path)  # noqa: PTH111


@contextmanager
def writing_to(folder: str | Path) -> Iterator[None]:
    """Tells of a folder that cannot be written, or a full disk, in one sentence.

    Raises:
        UserError: in the place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise UserError(
            f"cannot write to {Path(folder).absolute()} ({reason}): {advice}, or choose another place"
        ) from error


def check_writable(folder: str | Path) -> None:
    """See that files can be written in a folder, which need not exist yet; nothing is left behind.

    Raises:
        UserError: if the place cannot be written or its disk is full, or something other than a folder is there.
    """
    folder = Path(folder)
    with writing_to(folder):
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()  # raises for a name that is too long, say
        nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        if not nearest.is_dir():
            raise UserError(f"cannot write to {folder.absolute()}: {nearest} is not a folder: choose another place")
        # Not in `folder` itself if it is missing: another process may be about to make it.
        with tempfile.TemporaryDirectory(prefix=".bimact-", dir=nearest) as probe:
            write_bytes(Path(probe) / "probe", bytes(1 << 16))


def flush_to_disk(path: Path) -> None:
    """Ask the system to put a file's or a folder's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only when the block ends without an error.

    A reader, or a process that is killed in mid-write, sees the old file or the new one, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read; give the usual permissions.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any, default: Callable[[Any], Any] | None = None) -> None:
    write_text(path, json.dumps(content, indent=2, default=default) + "\n")


def lock_file(path: Path) -> BinaryIO | None:
    """Take a file's lock, which the system takes back when the handle is closed or this process ends.

    It is this process's alone: a loader's process that outlives a killed training does not keep it.

    Returns:
        the handle; None if another process has the lock. Where the file system has no locks, nobody has.
    """
    file = path.open("ab")
    if fcntl is not None:
        try:
            fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return None
        except OSError:
            pass
    return file


def refuse_pointer(path: Path, shown: Path | None = None) -> None:
    """A clone without git-lfs has small text files in the place of large ones.

    Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md.

    Args:
        shown: what the message calls the file, if not by its path.

    Raises:
        UserError: if the file is such a pointer.
    """
    try:
        if path.stat().st_size > _LARGEST_POINTER:
            return
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:  # whoever reads it is told
        return
    if is_pointer:
        raise UserError(
            f"{shown or path} is a git-lfs pointer, a note of where the file is, and not the file itself: run "
            "`git lfs pull` in its repository, or download the file"
        )
