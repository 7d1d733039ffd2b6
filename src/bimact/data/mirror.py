"""Copies of datasets at URLs that fsspec knows: s3://, gs://, https://, file:// and others.

    <cache>/remote/<hash of the URL>/<name>           the dataset, as at the URL
    <cache>/remote/<hash of the URL>/.fetched.jsonl   a line per downloaded file, with its version

A file is downloaded under a temporary name, then renamed and listed: an interrupted download is resumed, and a file is
downloaded again only when it has changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote

from fsspec.callbacks import Callback
from fsspec.core import url_to_fs
from rich.filesize import decimal

from bimact.data.cache import users_cache
from bimact.errors import UserError, library_errors
from bimact.files import flush_to_disk, lock_file
from bimact.progress import ProgressBar, progress_bar

_JOURNAL, _LOCK, _UNFINISHED = ".fetched.jsonl", ".lock", ".unfinished"
_DRIVERS = {  # protocol → the package required by fsspec
    "abfs": "adlfs",
    "az": "adlfs",
    "gcs": "gcsfs",
    "gs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "s3a": "s3fs",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
_VERSIONS = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "last_modified", "mtime", "updated", "created")
_AT_ONCE = 8
_MOST_FILES, _MOST_FOLDERS = 2_000_000, 100_000
_SECONDS_OF_SILENCE = 60
_MB = 1_000_000


@dataclass(frozen=True)
class _Remote:
    """A file at a URL.

    Attributes:
        path: in its file system.
        name: inside the dataset; "": the dataset is this file.
        size: in bytes; None: unknown.
        version: changes with the content.
    """

    path: str
    name: str
    size: int | None
    version: str

    def below(self, copy: Path) -> Path:
        return copy / self.name if self.name else copy

    @property
    def shown(self) -> str:
        return _without_secrets(self.path)


def mirrored(url: str, cache_dir: Path | None) -> Path:
    """The local copy of a dataset at a URL, created or updated.

    Args:
        cache_dir: folder of the copies; None: the user's cache folder.

    Returns:
        the copy's folder or file.

    Raises:
        UserError: if there is nothing at the URL, it cannot be read, or does not fit on the disk.
    """
    shown = _without_secrets(url).rstrip("/")
    place = (
        (cache_dir or users_cache()).absolute() / "remote" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    )
    with _in_sentences(shown):
        system, root = _file_system(url, shown)
        files = _listed(system, root, shown, is_folder=url.endswith("/"))
    if not files:
        raise UserError(f"there is nothing at {shown}")
    copy = place / _name_of(root)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _exclusive(place, shown):
            _update_copy(system, files, copy, place, shown)
    except OSError as error:
        raise UserError(f"cannot write the copy of {shown} to {place}: {error.strerror or error}") from None
    return copy


def _without_secrets(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


# Remote files --------------------------------------------------------------------------------------


def _file_system(url: str, shown: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    protocol = url.partition(":")[0].lower()
    try:
        system, root = url_to_fs(url, **(_http_options() if protocol.startswith("http") else {}))
    except ImportError as error:
        package = _DRIVERS.get(protocol)
        todo = f"the package {package}: pip install {package}" if package else f"a package ({error})"
        raise UserError(f"{shown} needs {todo}") from None
    system.invalidate_cache()
    return system, root.rstrip("/")


def _http_options() -> dict[str, Any]:
    """Without aiohttp's limit on the total time, which large files exceed."""
    import aiohttp

    silence = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=_SECONDS_OF_SILENCE)
    return {"client_kwargs": {"timeout": silence, "trust_env": True}}


def _listed(system: Any, root: str, shown: str, is_folder: bool) -> list[_Remote]:
    """All files of a dataset, or its only file."""
    if root.startswith(("http://", "https://")):
        info = {"mimetype": "text/html"} if is_folder else system.info(root)
        if info.get("mimetype") != "text/html":
            return [_remote(info, "")]
        return list(_listed_by_pages(system, root, shown))
    if system.isfile(root):
        return [_remote(system.info(root), "")]
    found = []
    for path, info in system.find(root, detail=True).items():
        if info.get("islink"):
            raise UserError(f"{path} is a link: put the file itself there")
        if info["type"] == "file" and not path.endswith("/"):  # S3 represents folders by empty objects
            found.append(_remote(info, _name_inside(root, path)))
    return found


def _listed_by_pages(system: Any, root: str, shown: str) -> Iterator[_Remote]:
    """The files that a web server lists on one page per folder."""
    folders, files = [root], []
    for folder in folders:  # grows inside the loop
        for path in sorted(entry["name"] for entry in system.ls(f"{folder}/", detail=True)):
            if "?" in path or "#" in path or path.rstrip("/") in (folder, f"{folder}/."):
                continue  # such as links for sorting
            name = _name_inside(root, path.rstrip("/"), unquote)
            if path.endswith("/"):
                folders.append(path.rstrip("/"))
            else:
                files.append((path, name))
        if len(folders) > _MOST_FOLDERS or len(files) > _MOST_FILES:
            raise UserError(f"{shown} lists too many files: give the folder of one dataset")
    with ThreadPoolExecutor(_AT_ONCE) as pool, progress_bar("requesting file sizes", len(files)) as bar:
        infos = pool.map(system.info, [path for path, _ in files])
        for info, (_, name) in zip(infos, files, strict=True):
            bar.advance()
            yield _remote(info, name)


def _remote(info: Mapping[str, Any], name: str) -> _Remote:
    tag = next((info[key] for key in _VERSIONS if info.get(key)), None)
    return _Remote(info["name"], name, info.get("size"), f"{info.get('size')} {tag}")


def _name_inside(root: str, path: str, decode: Callable[[str], str] = str) -> str:
    """A file's name inside the dataset.

    Raises:
        UserError: if its path leads outside.
    """
    name = decode(path.removeprefix(f"{root}/"))
    is_outside = not path.startswith(f"{root}/") or any(part in ("", ".", "..") for part in name.split("/"))
    if is_outside or "\\" in name or "\0" in name:
        raise UserError(
            f"the server names a file {path!r:.200}, which is outside of the dataset: do not use this server"
        )
    return name


def _name_of(root: str) -> str:
    """The copy's name, from which formats are recognised, such as x.zarr."""
    name = unquote(root.partition("?")[0].rpartition("/")[2])
    is_plain = re.fullmatch(r"[^/\\\0]{1,200}", name) is not None and not name.startswith(".")
    return name if is_plain else "dataset"


@contextmanager
def _in_sentences(what: str) -> Iterator[None]:
    """Turn errors of fsspec and its drivers into `UserError`s."""
    try:
        yield
    except library_errors() as error:
        # fsspec reports unreachable web servers as "file not found".
        reason = (error.__cause__ or error) if isinstance(error, FileNotFoundError) else error
        status = getattr(reason, "status", None)
        if isinstance(reason, FileNotFoundError) or status == 404:
            raise UserError(f"there is nothing at {what}") from None
        words = " ".join(f"{type(reason).__name__}: {reason}".split())[:200]
        is_refused = isinstance(reason, PermissionError) or status in (401, 403) or "Credentials" in words
        todo = "check the credentials of its driver" if is_refused else "run the same command again, it resumes"
        public = " (a public bucket: set FSSPEC_S3_ANON=true)" if is_refused and what.startswith("s3") else ""
        raise UserError(f"cannot read {what} ({words}): {todo}{public}") from None


# Local files ---------------------------------------------------------------------------------------


@contextmanager
def _exclusive(place: Path, shown: str) -> Iterator[None]:
    """Wait until no other process is making the same copy."""
    handle = lock_file(place / _LOCK)
    if handle is None:
        print(f"another process is downloading {shown}: waiting for it", flush=True)
    while handle is None:
        time.sleep(0.5)
        handle = lock_file(place / _LOCK)
    with handle:
        yield


def _update_copy(system: Any, files: list[_Remote], copy: Path, place: Path, shown: str) -> None:
    fetched = _read_journal(place)
    names = {file.name for file in files}
    for name in fetched.keys() - names:  # only files that were downloaded and no longer exist remotely
        (copy / name if name else copy).unlink(missing_ok=True)
    missing = [file for file in files if not _is_downloaded(file.below(copy), fetched.get(file.name), file.version)]
    if not missing:
        return
    size = sum(file.size or 0 for file in missing)
    free = shutil.disk_usage(place).free
    if size > free:
        raise UserError(
            f"{shown} needs {decimal(size)} and {place} has {decimal(free)} free: free some space, or give a folder on "
            "another disk as cache_dir"
        )
    print(f"downloading {len(missing)} of {len(files)} files ({decimal(size)}) of {shown} to {copy}", flush=True)
    shutil.rmtree(place / _UNFINISHED, ignore_errors=True)
    (place / _UNFINISHED).mkdir()
    title = f"downloading {_name_of(shown)}, MB"
    with (place / _JOURNAL).open("a") as journal, progress_bar(title, -(-size // _MB)) as bar:
        _Download(system, copy, place / _UNFINISHED, journal, bar).run(missing, shown)


def _read_journal(place: Path) -> dict[str, tuple[str, int]]:
    """name → version and size in bytes of each downloaded file."""
    fetched = {}
    try:
        lines = (place / _JOURNAL).read_text().splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        lines = []
    for line in lines:
        try:
            name, version, size = json.loads(line)
        except (ValueError, TypeError):  # the last line of a killed process
            continue
        fetched[str(name)] = (version, size)
    return fetched


def _is_downloaded(path: Path, fetched: tuple[str, int] | None, version: str) -> bool:
    return fetched is not None and fetched[0] == version and path.is_file() and path.stat().st_size == fetched[1]


class _Download:
    """Downloads several files at a time."""

    def __init__(self, system: Any, copy: Path, unfinished: Path, journal: TextIO, bar: ProgressBar) -> None:
        self._system = system
        self._copy = copy
        self._unfinished = unfinished
        self._journal = journal
        self._bar = bar
        self._bytes = 0
        self._lock = threading.Lock()
        self._ends = threading.Event()

    def run(self, files: list[_Remote], shown: str) -> None:
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            running = {pool.submit(self._fetch, file): file for file in files}
            for done in as_completed(running):
                with _in_sentences(f"{shown}/{running[done].name}".rstrip("/")):
                    done.result()
        finally:
            self._ends.set()  # on Ctrl-C too, the others end at their next block
            pool.shutdown(cancel_futures=True)

    def _fetch(self, file: _Remote) -> None:
        temporary = self._unfinished / hashlib.sha256(file.name.encode()).hexdigest()
        counted = _Counted(self, file)
        self._system.get_file(file.path, str(temporary), callback=counted)
        size = temporary.stat().st_size
        if file.size is not None and size != file.size:
            raise UserError(f"{file.shown} was cut off at {size} of {file.size} bytes: run the same command again")
        target = file.below(self._copy)
        flush_to_disk(temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
        counted.relative_update(size - counted.bytes)  # some drivers do not report progress
        with self._lock:
            # A killed process may have left half a line.
            self._journal.write("\n" + json.dumps([file.name, file.version, size]) + "\n")
            self._journal.flush()

    def count(self, size: int) -> None:
        """Report downloaded bytes."""
        if self._ends.is_set():
            raise UserError("the download was stopped")
        with self._lock:
            self._bytes += size
            done = min(-(-self._bytes // _MB), self._bar.total)
            if done > self._bar.done:
                self._bar.advance(done - self._bar.done)


class _Counted(Callback):
    """Counts the bytes of one file as they arrive, and stops if there are more than announced."""

    def __init__(self, download: _Download, file: _Remote) -> None:
        super().__init__()
        self._download = download
        self._file = file
        self.bytes = 0

    def relative_update(self, inc: int = 1) -> None:
        self.bytes += inc
        if self._file.size is not None and self.bytes > self._file.size:
            raise UserError(f"{self._file.shown} is longer than the announced {self._file.size} bytes: try again")
        self._download.count(inc)

    def absolute_update(self, value: int) -> None:
        self.relative_update(value - self.bytes)
