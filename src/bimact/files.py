"""Files that appear complete or not at all (written next to the target, flushed, renamed); files of a dataset."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
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
    """`~/x` → x in the user's home directory; any other path, and that of an unknown user, is unchanged."""
    return os.path.expanduser(path)  # noqa: PTH111


@contextmanager
def writing_to(folder: str | Path) -> Iterator[None]:
    """Turn errors of a folder that cannot be written, or a full disk, into one sentence.

    Raises:
        UserError: instead of an `OSError`.
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
    """Check that files can be written in a folder, which need not exist yet; nothing is left behind.

    Raises:
        UserError: if it cannot be written, its disk is full, or it is something other than a folder.
    """
    folder = Path(folder)
    with writing_to(folder):
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()  # raises for a name that is too long, say
        nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        if not nearest.is_dir():
            raise UserError(f"cannot write to {folder.absolute()}: {nearest} is not a folder: choose another place")
        # Not in `folder` itself if it is missing: another process may be about to create it.
        with tempfile.TemporaryDirectory(prefix=".bimact-", dir=nearest) as probe:
            write_bytes(Path(probe) / "probe", bytes(1 << 16))


def flush_to_disk(path: Path) -> None:
    """Flush a file's or a folder's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only when the block ends without an error.

    A reader, or a process that is killed while writing, sees the old file or the new one, never a part.
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
        temporary.chmod(0o666 & ~_umask())  # mkstemp creates files that only their owner can read
        temporary.replace(path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Create a folder that takes the name `target` only when the block ends without an error.

    Raises:
        UserError: if the disk is full or cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp creates folders that only their owner can read
        temporary.rename(target)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # PyTorch's writer hides it
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {target}: {cause.strerror or cause}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: str | Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any, default: Callable[[Any], Any] | None = None) -> None:
    write_text(path, json.dumps(content, indent=2, default=default) + "\n")


def lock_file(path: Path) -> BinaryIO | None:
    """Take a file's lock, which the system releases when the handle is closed or this process ends.

    Child processes do not inherit it: a data loading process that outlives a killed training does not hold it.

    Returns:
        the handle; None if another process holds the lock. On a file system without locks, nobody does.
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
    """Refuse the small text files that a clone without git-lfs has instead of large files.

    Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md.

    Args:
        shown: the file's name in the message, if not its path.

    Raises:
        UserError: if the file is such a pointer.
    """
    try:
        if path.stat().st_size > _LARGEST_POINTER:
            return
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:  # reading it will report the error
        return
    if is_pointer:
        raise UserError(
            f"{shown or path} is a git-lfs pointer, a note of where the file is, and not the file itself: run "
            "`git lfs pull` in its repository, or download the file"
        )


def real_file(root: Path, name: str) -> Path | None:
    """The file of a dataset's folder that has a name; None: there is none.

    Links may lead anywhere into the folder, and from a snapshot in a Hugging Face cache to the `blobs` beside it.

    Raises:
        UserError: if it is a link out of the dataset, or no ordinary file.
    """
    try:
        real = (root / name).resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise UserError(f"cannot read {root / name}: {getattr(error, 'strerror', None) or error}") from None
    if not any(real.is_relative_to(place) for place in _places(root)):
        raise UserError(f"{root / name} is a link that leaves the dataset: put the file itself there")
    if not real.is_file():
        raise UserError(f"{root / name} is no file: put the dataset's file there")
    refuse_pointer(real, root / name)
    return real


def _places(root: Path) -> list[Path]:
    """Where the files of a folder may really be."""
    real = root.resolve()
    caches = [folder.parent for folder in real.parents if folder.name == "snapshots"]
    return [real, *(cache / "blobs" for cache in caches if cache.name.startswith("datasets--"))]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
