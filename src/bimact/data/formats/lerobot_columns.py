"""Columns of Parquet files as arrays: the files of LeRobotDataset's `data` and `meta` folders.

A column holds one number, a list of numbers or lists of such lists in each row. Its size is what the file holds;
lists of lists are laid out flat, the last index fastest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bimact.data.source import Column
from bimact.errors import UserError, first_line

_MAX_ROWS_PER_BYTE = 8  # of the whole file: a row takes a bit at least
_MAX_SIZE = 1 << 22  # numbers in a row
_MAX_BYTES = 1 << 30  # of a row group's columns as arrays
_CELLS = 16  # that are in memory at once: they may be images
_BUFFER = 1 << 20  # bytes


@dataclass(frozen=True)
class TableFile:
    """What a Parquet file says of itself.

    Attributes:
        rows: in it.
        columns: those of numbers, by name.
        others: all other columns: name → what its cells are, "images" or Arrow's name of their type.
    """

    rows: int
    columns: Mapping[str, Column]
    others: Mapping[str, str]


def describe_table(path: Path) -> TableFile:
    """What a file holds, from its footer and, where that leaves a column's size open, its first row.

    Raises:
        UserError: if it is no whole Parquet file.
    """
    with _parquet_errors(path):
        return _describe(path, _stamp(path))


def read_rows(path: Path, start: int, stop: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Some columns of numbers in the rows from `start` up to `stop`: key → (stop − start, size).

    Only the row groups are read in which these rows are. The last one read stays in memory, since it may hold the
    next episode too.

    Raises:
        UserError: if they cannot be read, are not there, or a row lacks numbers.
    """
    keys = tuple(dict.fromkeys(keys))
    parts: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    with _parquet_errors(path):
        stamp = _stamp(path)
        metadata = _read_metadata(path, stamp)
        first = 0  # row of a row group
        for number in range(metadata.num_row_groups):
            rows = metadata.row_group(number).num_rows
            if start < first + rows and stop > first:
                for key, array in _read_group(path, stamp, number, keys).items():
                    parts[key].append(array[max(0, start - first) : stop - first])
            first += rows
        return {key: np.concatenate(chunks) for key, chunks in parts.items()}


def read_cells(path: Path, rows: Sequence[int], key: str, shape: tuple[int, ...] | None = None) -> Iterator[Any]:
    """A column's cells in some rows, one after the other; few of them are in memory at once.

    Args:
        rows: ascending; a row may occur several times.
        shape: of the arrays that nested lists of numbers become; None: cells are Python objects.

    Raises:
        UserError: if they cannot be read, or have another size.
    """
    with _parquet_errors(path), _open(path) as file:
        first = given = 0
        for number in range(file.metadata.num_row_groups):
            row, end = first, first + file.metadata.row_group(number).num_rows
            if given < len(rows) and rows[given] < end:
                for batch in file.iter_batches(_CELLS, row_groups=[number], columns=[key], use_threads=False):
                    after = bisect_left(rows, row + len(batch), given)
                    wanted = [at - row for at in rows[given:after]]
                    column = batch.column(key)
                    if shape is None:
                        yield from (column[at].as_py() for at in wanted)
                    elif wanted:
                        size = int(np.prod(shape))
                        arrays = _numbers(pa.chunked_array([column]), len(batch), size, f"{path}: column {key}")
                        yield from (arrays[at].reshape(shape) for at in wanted)
                    given, row = after, row + len(batch)
                    if given == len(rows):
                        return
                if rows[given] < end:
                    raise UserError(f"{path} has fewer rows than it says: copy or record it again")
            first = end
    if given < len(rows):
        raise UserError(f"{path} has {first} rows, row {rows[-1]} is wanted: copy or record it again")


def read_table(path: Path, besides: str | None = None) -> list[dict[str, Any]]:
    """The rows of a table of metadata.

    Args:
        besides: what names of columns begin with that are not read.

    Raises:
        UserError: if it cannot be read.
    """
    with _parquet_errors(path), _open(path) as file:
        names = [name for name in file.schema_arrow.names if besides is None or not name.startswith(besides)]
        rows: list[dict[str, Any]] = file.read(columns=names, use_threads=False).to_pylist()
        return rows


# Files ---------------------------------------------------------------------------------------------


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow raises nearly any type on damaged files
        said = "it asks for too much memory" if isinstance(error, MemoryError) else first_line(error)
        reason = f"{path} cannot be read as Parquet ({said})"
        raise UserError(f"{reason}: copy or record it again", reason) from None


def _stamp(path: Path) -> tuple[int, int]:
    """What tells a file that was written anew: its size and time."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, metadata=_read_metadata(path, _stamp(path)), buffer_size=_BUFFER, pre_buffer=False)


@lru_cache(maxsize=4)
def _read_metadata(path: Path, stamp: tuple[int, int]) -> pq.FileMetaData:
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        raise UserError(f"{path} contradicts itself on the number of its rows: copy or record it again")
    if metadata.num_rows > _MAX_ROWS_PER_BYTE * stamp[0]:
        raise UserError(f"{path} claims {metadata.num_rows} rows in {stamp[0]} bytes: copy or record it again")
    return metadata


@lru_cache(maxsize=4)
def _describe(path: Path, stamp: tuple[int, int]) -> TableFile:
    metadata = _read_metadata(path, stamp)
    schema = metadata.schema.to_arrow_schema()
    types = {field.name: _numbers_in(field.type) for field in schema}
    if len(types) != len(schema):
        raise UserError(f"{path} has several columns of one name: write it again")
    first_row: dict[str, Any] = {}
    open_sizes = [name for name, (dtype, size) in types.items() if dtype is not None and size is None]
    if open_sizes:
        # The footer counts them too, but pyarrow 26 ends the process when it is asked for that of a damaged file.
        with _open(path) as file:
            for batch in file.iter_batches(1, columns=open_sizes, use_threads=False):
                first_row = {name: batch.column(name)[0].as_py() for name in open_sizes}
                break
    columns: dict[str, Column] = {}
    for name, (dtype, size) in types.items():
        size = _count(first_row.get(name)) if size is None else size
        if dtype is not None and 0 < size <= _MAX_SIZE:
            columns[name] = Column(size, dtype=dtype.name)
    others: dict[str, str] = {}
    for field in schema:
        if field.name not in columns:
            # Encoded images are bytes, or structs that hold them.
            kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
            holds = [part.type for part in kind] if pa.types.is_struct(kind) else [kind]
            is_bytes = any(pa.types.is_binary(its) or pa.types.is_large_binary(its) for its in holds)
            others[field.name] = "images" if is_bytes else str(kind)[:60]
    return TableFile(metadata.num_rows, columns, others)


@lru_cache(maxsize=2)
def _read_group(path: Path, stamp: tuple[int, int], number: int, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of a row group: key → (rows, size), not writable."""
    rows = _read_metadata(path, stamp).row_group(number).num_rows
    known = _describe(path, stamp).columns
    for key in keys:
        if key not in known:
            raise UserError(f"{path} has no column {key} of numbers: record it again")
    if rows * sum(known[key].size * np.dtype(known[key].dtype).itemsize for key in keys) > _MAX_BYTES:
        raise UserError(f"{path} claims {rows} rows in one row group, so it is damaged: copy or record it again")
    with _open(path) as file:
        table = file.read_row_group(number, columns=list(keys), use_threads=False)
    arrays = {key: _numbers(table.column(key), rows, known[key].size, f"{path}: column {key}") for key in keys}
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


# Numbers -------------------------------------------------------------------------------------------


def _numbers_in(kind: pa.DataType) -> tuple[np.dtype[Any] | None, int | None]:
    """The dtype of the numbers in a column of numbers or of nested lists of them, and how many a row has.

    Returns:
        dtype, None: it holds something else; size, None: the type leaves it open.
    """
    size: int | None = 1
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif _is_list(kind):
            is_fixed = size is not None and pa.types.is_fixed_size_list(kind)
            size, kind = size * kind.list_size if is_fixed else None, kind.value_type
        else:
            break
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return pa.array([], kind).to_numpy(zero_copy_only=False).dtype if is_number else None, size


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _count(cell: Any) -> int:
    """Numbers in a number or in nested lists of them."""
    return sum(map(_count, cell)) if isinstance(cell, list) else int(cell is not None)


def _numbers(column: pa.ChunkedArray, rows: int, size: int, where: str) -> np.ndarray:
    """A column of numbers or nested lists of them → (rows, size)."""
    array = column.combine_chunks()
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif _is_list(array.type):
            lengths = pc.list_value_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
            odd = np.flatnonzero((lengths != lengths[:1]) | (lengths < 0))
            if len(odd):
                row = odd[0] * rows // len(lengths)
                raise UserError(f"{where} has another number of values in row {row}: record it again")
            array = array.flatten()
        else:
            break
    if array.null_count:
        step = array.is_null().to_numpy(zero_copy_only=False).argmax() // max(1, size)
        raise UserError(f"{where} has no value in row {step}: record it again")
    if len(array) != rows * size:
        raise UserError(f"{where} has {len(array)} values instead of {rows} × {size}: copy or record it again")
    return array.to_numpy(zero_copy_only=False).reshape(rows, size)
