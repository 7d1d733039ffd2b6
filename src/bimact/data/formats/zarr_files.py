"""The files of a zarr dataset, in a folder or in a .zip file, by their names inside it."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bimact.data.formats.inside import real_file
from bimact.errors import UserError, in_words

_LARGEST_METADATA = 1 << 20  # bytes
_ENCRYPTED = 0x1  # bit of a .zip member's flags


class ZarrFiles(ABC):
    """The files of one zarr hierarchy. It is small and picklable."""

    @abstractmethod
    def names(self) -> tuple[list[str], dict[str, list[str]]]:
        """All files, such as "data/img/.zarray", sorted; and links to folders, or to nothing → names in that folder."""

    @abstractmethod
    def where(self, name: str) -> str:
        """What messages call a file."""

    @abstractmethod
    def read(self, name: str, limit: int) -> bytes | None:
        """The content of a file; None: there is no such file.

        Args:
            limit: bytes that it may have.

        Raises:
            UserError: if it has more, cannot be read, or lies outside the dataset.
        """

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file; None: there is no such file."""
        content = self.read(name, _LARGEST_METADATA)
        if content is None:
            return None
        try:
            parsed = json.loads(content)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise UserError(f"{self.where(name)} is no readable JSON: copy the dataset again")
        return parsed


@dataclass(frozen=True)
class FolderFiles(ZarrFiles):
    """Those in a folder."""

    root: Path

    def names(self) -> tuple[list[str], dict[str, list[str]]]:
        names: list[str] = []
        links: dict[str, list[str]] = {}
        folders = [""]
        for inside in folders:  # which grows
            try:
                entries = list(os.scandir(self.root / inside))
            except OSError as error:
                raise UserError(f"cannot read {self.where(inside)}: {error.strerror}") from None
            for entry in entries:
                name = f"{inside}{entry.name}"
                if entry.is_symlink():
                    target = Path(entry.path)
                    if target.is_file():
                        names.append(name)
                        continue
                    links[name] = []
                    with suppress(OSError):
                        links[name] = sorted(inner.name for inner in target.iterdir())
                elif entry.is_dir():
                    folders.append(f"{name}/")
                else:
                    names.append(name)
        return sorted(names), links

    def where(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str, limit: int) -> bytes | None:
        real = real_file(self.root, name)
        if real is None:
            return None
        try:
            with real.open("rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise UserError(f"cannot read {self.where(name)}: {error.strerror}") from None
        if len(content) > limit:
            raise _too_large(self.where(name), limit)
        return content


@dataclass(frozen=True)
class ZipFiles(ZarrFiles):
    """Those in a .zip file.

    Attributes:
        path: the .zip file.
        prefix: folder inside it that the hierarchy is in, such as "dataset.zarr/"; "": none.
    """

    path: Path
    prefix: str

    @classmethod
    def open(cls, path: Path) -> ZipFiles:
        """Find the hierarchy inside a .zip file: the folder that holds `meta/episode_ends`."""
        names = _archive(path).namelist()
        found = {
            name.rpartition("meta/episode_ends/")[0]
            for name in names
            if name.endswith(("meta/episode_ends/.zarray", "meta/episode_ends/zarr.json"))
        }
        if len(found) != 1:
            raise UserError(f"{path} holds {len(found) or 'no'} replay buffers (meta/episode_ends): it has to hold one")
        return cls(path, found.pop())

    def names(self) -> tuple[list[str], dict[str, list[str]]]:
        inside = (name for name in _archive(self.path).namelist() if name.startswith(self.prefix))
        return sorted(name[len(self.prefix) :] for name in inside if not name.endswith("/")), {}

    def where(self, name: str) -> str:
        return f"{self.prefix}{name} in {self.path}"

    def read(self, name: str, limit: int) -> bytes | None:
        archive = _archive(self.path)
        try:
            member = archive.getinfo(self.prefix + name)
        except KeyError:
            return None
        if member.file_size > limit:
            raise _too_large(self.where(name), limit)
        if member.flag_bits & _ENCRYPTED:
            raise UserError(f"{self.where(name)} is encrypted: unpack it")
        try:
            return archive.read(member)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, zlib.error) as error:
            raise UserError(f"{self.where(name)} is damaged ({in_words(error)}): copy the file again") from None


def open_files(path: Path) -> ZarrFiles:
    return FolderFiles(path) if path.is_dir() else ZipFiles.open(path)


def _too_large(where: str, limit: int) -> UserError:
    return UserError(f"{where} is larger than its content can be ({limit} bytes): it is damaged, copy it again")


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        status = path.stat()
        return _open_archive(path, status.st_size, status.st_mtime_ns)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is no readable .zip file ({in_words(error)}): copy it again") from None


@lru_cache(maxsize=2)
def _open_archive(path: Path, size: int, mtime_ns: int) -> zipfile.ZipFile:
    """An archive stays open for as long as it is read: its table of contents may have a line for each image."""
    return zipfile.ZipFile(path)
