"""Arrays of a zarr folder or .zip file; damaged and malicious ones end in a `UserError`.

zarr itself reads a small store in memory, with metadata that were checked here and the chunks of one block. Only
ordinary files inside the dataset are read, none larger than its content can be, and only the codecs listed here are
run, since others execute code (numcodecs' pickle).

zarr reads a missing chunk as zeros. Here it is an error, since an incomplete copy looks the same.

Source: the specifications of zarr v2 and v3 (https://zarr-specs.readthedocs.io).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bimact.errors import UserError, in_words
from bimact.files import real_file

_LARGEST_METADATA = 1 << 20  # bytes
_ENCRYPTED = 0x1  # bit of a .zip member's flags
_BLOCK_BYTES = 32 << 20
_LARGEST_CHUNK = 2 << 30  # bytes
_MOST_CHUNKS_A_STEP = 4096
_MOST_ADDED = 65_536  # bytes of headers and checksums of a chunk
_NUMBERS_V2 = re.compile(r"\|b1|[<>|][iu]1|[<>]([iu][248]|f[248])")
_NUMBERS_V3 = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")
_IMAGE_CODECS = {f"imagecodecs_{name}" for name in ("jpeg", "jpeg2k", "jpegls", "jpegxl", "png", "qoi", "webp")}
# Their settings concern writing only, and differ between library versions.
_WITHOUT_SETTINGS = {"blosc", "bz2", "gzip", "lz4", "zlib", "zstd", *_IMAGE_CODECS}
_CODECS_V2 = {"bitround", "crc32", "crc32c", "delta", "fletcher32", "lzma", "shuffle", *_WITHOUT_SETTINGS}
_CODECS_V3 = {"blosc", "bytes", "crc32c", "endian", "gzip", "sharding_indexed", "transpose", "zstd"} | {
    f"numcodecs.{name}" for name in _CODECS_V2 - _IMAGE_CODECS
}
Place = Callable[[int], str]  # row of an array → its name in messages, such as "episode 3, step 12"


# Files ---------------------------------------------------------------------------------------------


class ZarrFiles(ABC):
    """The files of one zarr hierarchy; small and picklable."""

    @abstractmethod
    def names(self) -> tuple[list[str], dict[str, list[str]]]:
        """All files, such as "data/img/.zarray", sorted; and links to folders, or broken links → names in that
        folder."""

    @abstractmethod
    def where(self, name: str) -> str:
        """A file's name in messages."""

    @abstractmethod
    def read(self, name: str, limit: int) -> bytes | None:
        """The content of a file; None: there is no such file.

        Args:
            limit: maximum size in bytes.

        Raises:
            UserError: if it is larger, cannot be read, or is outside the dataset.
        """

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file; None: there is no such file."""
        content = self.read(name, _LARGEST_METADATA)
        if content is None:
            return None
        parsed = None
        with suppress(ValueError, RecursionError):
            parsed = json.loads(content)
        if not isinstance(parsed, dict):
            raise UserError(f"{self.where(name)} is no readable JSON: copy the dataset again")
        return parsed


@dataclass(frozen=True)
class FolderFiles(ZarrFiles):
    """Files in a folder."""

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
    """Files in a .zip file.

    Attributes:
        path: the .zip file.
        prefix: folder of the hierarchy inside it, such as "dataset.zarr/"; "": none.
    """

    path: Path
    prefix: str

    @classmethod
    def open(cls, path: Path) -> ZipFiles:
        """Find the hierarchy inside a .zip file: the folder that contains `meta/episode_ends`."""
        names = _archive(path).namelist()
        found = {
            name.rpartition("meta/episode_ends/")[0]
            for name in names
            if name.endswith(("meta/episode_ends/.zarray", "meta/episode_ends/zarr.json"))
        }
        if len(found) != 1:
            raise UserError(
                f"{path} holds {len(found) or 'no'} replay buffers (meta/episode_ends): it has to contain one"
            )
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
        except Exception as error:
            raise UserError(f"{self.where(name)} is damaged ({in_words(error)}): copy the file again") from None


def open_files(path: Path) -> ZarrFiles:
    return FolderFiles(path) if path.is_dir() else ZipFiles.open(path)


def _too_large(where: str, limit: int) -> UserError:
    return UserError(f"{where} is larger than its content can be ({limit} bytes): it is damaged, copy it again")


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        status = path.stat()
        return _open_archive(path, status.st_size, status.st_mtime_ns)
    except Exception as error:
        raise UserError(f"{path} is not a readable .zip file ({in_words(error)}): copy it again") from None


@lru_cache(maxsize=2)
def _open_archive(path: Path, size: int, mtime_ns: int) -> zipfile.ZipFile:
    """An archive stays open while it is read: its table of contents may have an entry per image."""
    return zipfile.ZipFile(path)


# Arrays --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ZarrArray:
    """An array whose first axis is time.

    Attributes:
        name: in the hierarchy, such as "data/img".
        kind: the dtype, as in the metadata.
        dtype: in this machine's byte order; None: it is not numeric and never read.
        chunks: shape of a chunk's file.
        version: 2 or 3.
        document: the metadata passed to zarr.
        key_prefix, separator: of the names of chunks.
        codec: the first one applied to a chunk's file; None: there is none.
    """

    files: ZarrFiles
    name: str
    kind: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    version: int
    document: bytes
    key_prefix: str
    separator: str
    codec: str | None

    @classmethod
    def open(cls, files: ZarrFiles, name: str) -> ZarrArray | None:
        """Read and check an array's metadata; None: there is no array of this name.

        Raises:
            UserError: if the metadata are damaged, have absurd sizes or name a codec that may be unsafe.
        """
        for document, parse in (("zarr.json", _parse_v3), (".zarray", _parse_v2)):
            where = files.where(f"{name}/{document}")
            content = files.read_json(f"{name}/{document}")
            if content is None or content.get("node_type") == "group":
                continue
            try:
                array = cls(files=files, name=name, **parse(content, where))
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"{where} is damaged ({type(error).__name__} {in_words(error, 120)}): copy the dataset again"
                ) from None
            if array.dtype is not None:
                array._check_sizes(where)
            return array
        return None

    def read(self, start: int, stop: int, place: Place) -> np.ndarray:
        """(stop - start, ...) rows, stop > start.

        Raises:
            UserError: naming array, chunk and place, if a chunk is missing or damaged.
        """
        assert self.dtype is not None
        step = self.chunks[0]
        first, last = start // step, (stop - 1) // step
        chunks = {}
        for index in itertools.product(range(first, last + 1), *(range(count) for count in self._chunks_beside())):
            key = self.key_prefix + self.separator.join(map(str, index))
            chunks[key] = self._chunk(key, place(max(start, index[0] * step)))
        try:
            rows = _decoded(self.version, self.document, chunks, start, stop)
            return np.ascontiguousarray(rows.astype(self.dtype, copy=False))
        except Exception as error:  # zarr, numcodecs and the codecs raise nearly any type
            for chunk in range(first, last + 1) if last > first else ():  # find out which chunk
                self.read(max(start, chunk * step), min(stop, (chunk + 1) * step), place)
            raise UserError(
                f"{self.files.where(f'{self.name}/{next(iter(chunks))}')} is damaged ({place(start)}; "
                f"{type(error).__name__} {in_words(error, 120)}): copy the dataset again"
            ) from None

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        assert self.dtype is not None
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def rows_at_once(self) -> int:
        """Number of rows, in whole chunks, that are read together."""
        return self.chunks[0] * max(1, _BLOCK_BYTES // max(1, self.chunk_bytes * math.prod(self._chunks_beside())))

    def _chunks_beside(self) -> list[int]:
        """Number of chunks along each axis except the first."""
        return [-(-size // chunk) for size, chunk in zip(self.shape[1:], self.chunks[1:], strict=True)]

    def _check_sizes(self, where: str) -> None:
        sizes = (*self.shape, *self.chunks)
        if len(self.shape) != len(self.chunks) or not all(type(size) is int and size >= 0 for size in sizes):
            raise UserError(
                f"{where} is damaged (shape {self.shape!s:.80}, chunks {self.chunks!s:.80}): copy the dataset again"
            )
        is_absurd = 0 in self.chunks or self.chunk_bytes > _LARGEST_CHUNK
        if is_absurd or math.prod(self._chunks_beside()) > _MOST_CHUNKS_A_STEP:
            raise UserError(
                f"{where} has chunks of {self.chunks!s:.80} numbers in an array of {self.shape!s:.80}, too many to "
                "read: copy the dataset again, or write it with larger chunks"
            )

    def _chunk(self, key: str, place: str) -> bytes:
        where = self.files.where(f"{self.name}/{key}")
        content = self.files.read(f"{self.name}/{key}", self.chunk_bytes + self.chunk_bytes // 8 + _MOST_ADDED)
        if content is None:
            raise UserError(
                f"{where} is missing ({place}), and zarr would read it as zeros: copy the dataset again; if "
                "they are zeros, write it with zarr's setting array.write_empty_chunks"
            )
        # A Blosc chunk has its size in bytes 12 to 16, and the library reads beyond the end of a shorter one.
        size = 16 if self.codec == "blosc" else 1
        if len(content) < size or (self.codec == "blosc" and int.from_bytes(content[12:16], "little") > len(content)):
            raise UserError(f"{where} is damaged ({place}): it is cut off; copy the dataset again")
        return content


def _zarr_version() -> int:
    import zarr

    return int(zarr.__version__.partition(".")[0])


def _decoded(version: int, document: bytes, chunks: Mapping[str, bytes], start: int, stop: int) -> np.ndarray:
    """Rows of an array, decoded by zarr from a store in memory."""
    import zarr

    store: dict[str, Any] = {".zarray" if version == 2 else "zarr.json": document, **chunks}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as that numcodecs' codecs are not part of the v3 specification
        if _zarr_version() < 3:
            return np.asarray(zarr.open_array(store=store, mode="r")[start:stop])
        from zarr.core.buffer import default_buffer_prototype

        as_buffer = default_buffer_prototype().buffer.from_bytes
        store = {name: as_buffer(content) for name, content in store.items()}
        return np.asarray(zarr.open_array(store=store, mode="r", zarr_format=2 if version == 2 else 3)[start:stop])


# Metadata ------------------------------------------------------------------------------------------


def _parse_v2(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `ZarrArray` in a `.zarray`."""
    kind = content["dtype"]
    is_number = isinstance(kind, str) and _NUMBERS_V2.fullmatch(kind) is not None
    dtype = np.dtype(kind).newbyteorder("=") if is_number else None
    separator = content.get("dimension_separator") or "."
    if separator not in (".", "/"):
        raise ValueError(f"dimension_separator {separator!r}")
    codecs = [*(content.get("filters") or ()), *([content["compressor"]] if content.get("compressor") else ())]
    if is_number:
        for codec in codecs:
            _check_codec(codec["id"], codec, _CODECS_V2, where)
            if codec["id"] in _IMAGE_CODECS:
                try:
                    from imagecodecs.numcodecs import register_codecs
                except ImportError:
                    raise UserError(
                        f"{where}: the images are compressed by {codec['id']}, which needs the package imagecodecs: "
                        "pip install imagecodecs"
                    ) from None
                register_codecs(list(_IMAGE_CODECS), verbose=False)
        codecs = [{"id": codec["id"]} if codec["id"] in _WITHOUT_SETTINGS else dict(codec) for codec in codecs]
    seen = {
        "zarr_format": 2,
        "shape": content["shape"],
        "chunks": content["chunks"],
        "dtype": kind,
        "order": content["order"],
        "fill_value": None,
        "filters": codecs[: -1 if content.get("compressor") else None] or None,
        "compressor": codecs[-1] if content.get("compressor") else None,
        "dimension_separator": separator,
    }
    return {
        "kind": str(kind),
        "dtype": dtype,
        "shape": tuple(content["shape"]),
        "chunks": tuple(content["chunks"]),
        "version": 2,
        "document": json.dumps(seen).encode(),
        "key_prefix": "",
        "separator": separator,
        "codec": codecs[-1]["id"] if codecs and is_number else None,
    }


def _parse_v3(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `ZarrArray` in a `zarr.json`."""
    if _zarr_version() < 3:
        raise UserError(
            f"{where} is of zarr's version 3, which needs the package zarr 3 and with it Python 3.11 or newer"
        )
    kind = content["data_type"]
    is_number = isinstance(kind, str) and _NUMBERS_V3.fullmatch(kind) is not None
    encoding = content["chunk_key_encoding"]
    separators = {"default": "/", "v2": "."}
    separator = encoding.get("configuration", {}).get("separator", separators[encoding["name"]])
    if separator not in (".", "/"):
        raise ValueError(f"separator {separator!r}")
    grid = content["chunk_grid"]
    if grid["name"] != "regular" or content.get("storage_transformers"):
        raise ValueError(f"chunk_grid {grid['name']!r} or storage_transformers are unknown")
    codecs = [{"name": codec} if isinstance(codec, str) else codec for codec in content["codecs"]]
    if is_number:
        _check_codecs_v3(codecs, where)
    seen = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": content["shape"],
        "data_type": kind,
        "chunk_grid": grid,
        "chunk_key_encoding": encoding,
        "fill_value": False if kind == "bool" else 0,
        "codecs": codecs,
        "attributes": {},
    }
    return {
        "kind": str(kind),
        "dtype": np.dtype(kind) if is_number else None,
        "shape": tuple(content["shape"]),
        "chunks": tuple(grid["configuration"]["chunk_shape"]),
        "version": 3,
        "document": json.dumps(seen).encode(),
        "key_prefix": f"c{separator}" if encoding["name"] == "default" else "",
        "separator": separator,
        "codec": codecs[-1]["name"].removeprefix("numcodecs.") if codecs else None,
    }


def _check_codecs_v3(codecs: list[Mapping[str, Any]], where: str) -> None:
    for codec in codecs:
        settings = codec.get("configuration") or {}
        _check_codec(codec["name"], settings, _CODECS_V3, where)
        for inside in ("codecs", "index_codecs"):  # of a shard
            _check_codecs_v3(settings.get(inside, []), where)


def _check_codec(name: Any, settings: Mapping[str, Any], known: set[str], where: str) -> None:
    """Refuse a codec that is not listed here, and one that creates objects."""
    if name not in known:
        raise UserError(
            f"{where} names the codec {name!r:.60}, which bimact does not run, since some codecs execute code "
            "from the dataset: write the array with blosc or zstd"
        )
    for setting in ("dtype", "astype"):
        kind = settings.get(setting)
        if kind is not None and not (_NUMBERS_V2.fullmatch(kind) or _NUMBERS_V3.fullmatch(kind)):
            raise ValueError(f"{setting} of the codec {name}")
