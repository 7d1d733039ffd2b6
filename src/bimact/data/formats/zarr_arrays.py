"""Arrays of a zarr folder or .zip file, read so that a damaged or hostile one ends in a sentence.

What zarr gets to see is a small store in memory: metadata that were checked here, and the chunks of one block. Nothing
of the dataset is read but ordinary files inside it, none larger than its content can be, and no codec runs but those
listed here, since others run code (numcodecs' pickle).

Zarr reads a chunk that is missing as zeros. Here it is an error, since a copy that was cut short looks just so.

Source: the specifications of zarr v2 and v3 (https://zarr-specs.readthedocs.io).
"""

from __future__ import annotations

import itertools
import json
import lzma
import math
import re
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bimact.data.formats.zarr_files import ZarrFiles
from bimact.errors import UserError

_BLOCK_BYTES = 32 << 20
_LARGEST_CHUNK = 2 << 30  # bytes
_MOST_CHUNKS_A_STEP = 4096
_MOST_ADDED = 65_536  # bytes that headers and checksums may add to a chunk
_NUMBERS_V2 = re.compile(r"\|b1|[<>|][iu]1|[<>]([iu][248]|f[248])")
_NUMBERS_V3 = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")
_IMAGE_CODECS = {f"imagecodecs_{name}" for name in ("jpeg", "jpeg2k", "jpegls", "jpegxl", "png", "qoi", "webp")}
# Settings of these concern writing alone, and differ between versions of the libraries.
_WITHOUT_SETTINGS = {"blosc", "bz2", "gzip", "lz4", "zlib", "zstd", *_IMAGE_CODECS}
_CODECS_V2 = {"bitround", "crc32", "crc32c", "delta", "fletcher32", "lzma", "shuffle", *_WITHOUT_SETTINGS}
_CODECS_V3 = {"blosc", "bytes", "crc32c", "endian", "gzip", "sharding_indexed", "transpose", "zstd"} | {
    f"numcodecs.{name}" for name in _CODECS_V2 - _IMAGE_CODECS
}
_DAMAGE = (  # what zarr, numcodecs and the libraries of codecs raise on what is damaged
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    OSError,
    EOFError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    MemoryError,
    zlib.error,
    lzma.LZMAError,
)

Place = Callable[[int], str]  # a row of an array → where that is, such as "episode 3, step 12"


@dataclass(frozen=True)
class ZarrArray:
    """An array whose first axis is time.

    Attributes:
        name: in the hierarchy, such as "data/img".
        kind: the type of its content, as the metadata have it.
        dtype: that of its numbers, in this machine's byte order; None: it holds no numbers and is never read.
        chunks: size of a chunk's file along each axis.
        version: 2 or 3.
        document: the metadata that zarr sees.
        key_prefix, separator: of the names of chunks.
        codec: the first one that runs on a chunk's file; None: none does.
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
            UserError: if the metadata are damaged, ask for absurd sizes or name a codec that may not be safe.
        """
        for document, parse in (("zarr.json", _parse_v3), (".zarray", _parse_v2)):
            where = files.where(f"{name}/{document}")
            content = files.read_json(f"{name}/{document}")
            if content is None or content.get("node_type") == "group":
                continue
            try:
                array = cls(files=files, name=name, **parse(content, where))
            except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
                raise UserError(f"{where} is damaged ({_in_words(error)}): copy the dataset again") from None
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
        except _DAMAGE as error:
            for chunk in range(first, last + 1) if last > first else ():  # which one is it?
                self.read(max(start, chunk * step), min(stop, (chunk + 1) * step), place)
            raise UserError(
                f"{self.files.where(f'{self.name}/{next(iter(chunks))}')} is damaged ({place(start)}; "
                f"{_in_words(error)}): copy the dataset again"
            ) from None

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        assert self.dtype is not None
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def rows_at_once(self) -> int:
        """Rows of whole chunks that are read together: enough to be worth it, few enough for any memory."""
        return self.chunks[0] * max(1, _BLOCK_BYTES // max(1, self.chunk_bytes * math.prod(self._chunks_beside())))

    def _chunks_beside(self) -> list[int]:
        """How many chunks there are along each axis but the first."""
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
                f"{where} tells of chunks of {self.chunks!s:.80} numbers in an array of {self.shape!s:.80}, with which "
                "nothing can work: copy the dataset again, or write it with other chunks"
            )

    def _chunk(self, key: str, place: str) -> bytes:
        where = self.files.where(f"{self.name}/{key}")
        content = self.files.read(f"{self.name}/{key}", self.chunk_bytes + self.chunk_bytes // 8 + _MOST_ADDED)
        if content is None:
            raise UserError(
                f"{where} is missing ({place}), and zarr would take its numbers for zeros: copy the dataset again; if "
                "they are zeros, write it with zarr's setting array.write_empty_chunks"
            )
        fault = _header_fault(self.codec, content, self.chunk_bytes)
        if fault:
            raise UserError(f"{where} is damaged ({place}): it {fault}; copy the dataset again")
        return content


def _zarr_version() -> int:
    import zarr

    return int(zarr.__version__.partition(".")[0])


def _decoded(version: int, document: bytes, chunks: Mapping[str, bytes], start: int, stop: int) -> np.ndarray:
    """Rows of an array, decoded by zarr from a store in memory."""
    import zarr

    store: dict[str, Any] = {".zarray" if version == 2 else "zarr.json": document, **chunks}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as that numcodecs' codecs are no part of the v3 specification
        if _zarr_version() < 3:
            return np.asarray(zarr.open_array(store=store, mode="r")[start:stop])
        from zarr.core.buffer import default_buffer_prototype

        as_buffer = default_buffer_prototype().buffer.from_bytes
        store = {name: as_buffer(content) for name, content in store.items()}
        return np.asarray(zarr.open_array(store=store, mode="r", zarr_format=2 if version == 2 else 3)[start:stop])


# Metadata ------------------------------------------------------------------------------------------


def _parse_v2(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What `ZarrArray` takes of a `.zarray`."""
    kind = content["dtype"]
    is_number = isinstance(kind, str) and _NUMBERS_V2.fullmatch(kind) is not None
    dtype = np.dtype(kind).newbyteorder("=") if is_number else None
    separator = content.get("dimension_separator") or "."
    if separator not in (".", "/"):
        raise ValueError(f"dimension_separator {separator!r}")
    codecs = [*(content.get("filters") or ()), *([content["compressor"]] if content.get("compressor") else ())]
    if is_number:
        codecs = [_safe_codec_v2(codec, where) for codec in codecs]
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


def _safe_codec_v2(codec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A codec's settings as far as reading needs them."""
    name = codec["id"]
    _refuse_unknown(name, _CODECS_V2, where)
    _refuse_objects(name, codec)
    if name in _IMAGE_CODECS:
        _register_image_codecs(name, where)
    return {"id": name} if name in _WITHOUT_SETTINGS else dict(codec)


def _register_image_codecs(name: str, where: str) -> None:
    try:
        from imagecodecs.numcodecs import register_codecs
    except ImportError:
        raise UserError(
            f"{where}: the images are compressed by {name}, which needs the package imagecodecs: "
            "pip install imagecodecs"
        ) from None
    register_codecs(list(_IMAGE_CODECS), verbose=False)


def _parse_v3(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What `ZarrArray` takes of a `zarr.json`."""
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
        _refuse_unknown(codec["name"], _CODECS_V3, where)
        settings = codec.get("configuration") or {}
        _refuse_objects(codec["name"], settings)
        for inside in ("codecs", "index_codecs"):  # of a shard
            _check_codecs_v3(settings.get(inside, []), where)


def _refuse_unknown(codec: Any, known: set[str], where: str) -> None:
    if codec not in known:
        raise UserError(
            f"{where} names the codec {codec!r:.60}, which bimact does not run, since some codecs run code of the "
            "dataset: write the array with blosc or zstd"
        )


def _refuse_objects(codec: str, settings: Mapping[str, Any]) -> None:
    for name in ("dtype", "astype"):
        kind = settings.get(name)
        if kind is not None and not (_NUMBERS_V2.fullmatch(kind) or _NUMBERS_V3.fullmatch(kind)):
            raise ValueError(f"{name} of the codec {codec}")


def _header_fault(codec: str | None, content: bytes, chunk_bytes: int) -> str | None:
    """What is wrong with the sizes that a compressed chunk begins with: the libraries take memory by their word."""
    if not content:
        return "is cut off"
    announced = 0
    if codec == "blosc":  # which would read on behind the end
        if len(content) < 16 or int.from_bytes(content[12:16], "little") > len(content):
            return "is cut off"
        announced = int.from_bytes(content[4:8], "little")
    elif codec == "lz4":
        announced = int.from_bytes(content[:4], "little")
    elif codec == "zstd":
        announced = _announced_by_zstd(content)
    return "announces more than a chunk holds" if announced > chunk_bytes + _MOST_ADDED else None


def _announced_by_zstd(frame: bytes) -> int:
    """Frame_Content_Size of a zstd frame (RFC 8878, 3.1.1.1)."""
    if len(frame) < 6:
        return 0
    descriptor = frame[4]
    is_single_segment = descriptor >> 5 & 1
    size = (is_single_segment, 2, 4, 8)[descriptor >> 6]
    begin = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    return int.from_bytes(frame[begin : begin + size], "little") + (256 if size == 2 else 0)


def _in_words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:160]
