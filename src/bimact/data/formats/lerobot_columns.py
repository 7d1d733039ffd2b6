"""Columns of Parquet files as arrays: the files of LeRobotDataset's `data` and `meta` folders.

A column holds one number, a list of numbers or lists of such lists in each row. Its size is what the file holds;
lists of lists are laid out flat, the last index fastest.
"""

from __future__ import annotations

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
from bimact.errors import UserError

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
        for number, first, last in _row_groups(path, start, stop):
            arrays = _read_group(path, _stamp(path), number, keys)
            for key in keys:
                parts[key].append(arrays[key][first:last])
    return {key: np.concatenate(chunks) for key, chunks in parts.items()}


def read_cells(path: Path, rows: Sequence[int], key: str) -> Iterator[Any]:
    """A column's cells in some rows, as Python objects; few of them are in memory at once.

    Args:
        rows: ascending; a row may occur several times.

    Raises:
        UserError: if they cannot be read.
    """
    with _parquet_errors(path):
        offset = given = 0
        for number in range(_metadata(path).num_row_groups):
            count = _metadata(path).row_group(number).num_rows
            wanted = [row - offset for row in rows if offset <= row < offset + count]
            if wanted:
                yield from _cells_of_group(path, number, wanted, key)
            given += len(wanted)
            offset += count
    if given < len(rows):
        raise UserError(f"{path} has {offset} rows, row {rows[-1]} is wanted: copy or record it again")


def read_arrays(path: Path, rows: Sequence[int], key: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A column of nested lists in some rows, each as an array of a shape; few of them are in memory at once.

    Args:
        rows: ascending; a row may occur several times.

    Raises:
        UserError: if they cannot be read, or have another size.
    """
    size = int(np.prod(shape))
    with _parquet_errors(path):
        offset = given = 0
        with _open(path) as file:
            for batch in file.iter_batches(_CELLS, columns=[key], use_threads=False):
                wanted: list[int] = []
                while given + len(wanted) < len(rows) and rows[given + len(wanted)] < offset + len(batch):
                    wanted.append(rows[given + len(wanted)] - offset)
                if wanted:
                    column = pa.chunked_array([batch.column(key)])
                    arrays = _numbers(column, len(batch), size, f"{path}: column {key}")
                    yield from (arrays[row].reshape(shape) for row in wanted)
                given += len(wanted)
                offset += len(batch)
                if given == len(rows):
                    return
    raise UserError(f"{path} has {offset} rows, row {rows[-1]} is wanted: copy or record it again")


def read_table(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a table of metadata, with those of the columns that it has.

    Raises:
        UserError: if it cannot be read.
    """
    with _parquet_errors(path):
        with _open(path) as file:
            names = file.schema_arrow.names
            table = file.read(columns=[key for key in keys if key in names], use_threads=False)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows


def column_names(path: Path) -> list[str]:
    """Names of all columns of a file.

    Raises:
        UserError: if it cannot be read.
    """
    with _parquet_errors(path):
        names: list[str] = _metadata(path).schema.to_arrow_schema().names
        return names


@lru_cache(maxsize=4)
def _describe(path: Path, stamp: tuple[int, int]) -> TableFile:
    metadata = _read_metadata(path, stamp)
    schema = metadata.schema.to_arrow_schema()
    dtypes = {field.name: _number_type(field.type) for field in schema}
    if len(dtypes) != len(schema):
        raise UserError(f"{path} has several columns of one name: write it again")
    sizes = {field.name: _fixed_size(field.type) for field in schema if dtypes[field.name] is not None}
    sizes.update(_sizes_of_first_row(path, [name for name, size in sizes.items() if size is None]))
    columns = {
        name: Column(size, dtype=dtype.name)
        for name, dtype in dtypes.items()
        if dtype is not None and 0 < (size := sizes[name] or 0) <= _MAX_SIZE
    }
    others = {field.name: _told_type(field.type) for field in schema if field.name not in columns}
    return TableFile(metadata.num_rows, columns, others)


# Row groups ----------------------------------------------------------------------------------------


def _row_groups(path: Path, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(row group, its first wanted row, the end of them) of rows from `start` up to `stop`."""
    metadata = _metadata(path)
    offset = 0
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        if start < offset + rows and stop > offset:
            yield number, max(0, start - offset), min(rows, stop - offset)
        offset += rows


@lru_cache(maxsize=2)
def _read_group(path: Path, stamp: tuple[int, int], number: int, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of a row group: key → (rows, size), not writable."""
    rows = _metadata(path).row_group(number).num_rows
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


def _cells_of_group(path: Path, number: int, rows: Sequence[int], key: str) -> Iterator[Any]:
    offset = given = 0
    with _open(path) as file:
        for batch in file.iter_batches(_CELLS, row_groups=[number], columns=[key], use_threads=False):
            cells = batch.column(key)
            while given < len(rows) and rows[given] < offset + len(cells):
                yield cells[rows[given] - offset].as_py()
                given += 1
            if given == len(rows):
                return
            offset += len(cells)
    raise UserError(f"{path} has fewer rows than it says: copy or record it again")


def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, metadata=_metadata(path), buffer_size=_BUFFER, pre_buffer=False)


def _metadata(path: Path) -> pq.FileMetaData:
    return _read_metadata(path, _stamp(path))


@lru_cache(maxsize=4)
def _read_metadata(path: Path, stamp: tuple[int, int]) -> pq.FileMetaData:
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        raise UserError(f"{path} contradicts itself on the number of its rows: copy or record it again")
    if metadata.num_rows > _MAX_ROWS_PER_BYTE * stamp[0]:
        raise UserError(f"{path} claims {metadata.num_rows} rows in {stamp[0]} bytes: copy or record it again")
    return metadata


def _stamp(path: Path) -> tuple[int, int]:
    """What tells a file that was written anew: its size and time."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    # ArrowException covers most; a damaged file also makes names that are no UTF-8 and numbers out of range.
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = str(error).strip().partition("\n")[0][:200] or "it asks for too much memory"
        raise UserError(f"{path} cannot be read as Parquet ({reason}): copy or record it again") from None


# Types and values ----------------------------------------------------------------------------------


def _number_type(kind: pa.DataType) -> np.dtype[Any] | None:
    """The type of the numbers in a column of numbers or of nested lists of them; None: it holds something else."""
    while (inner := _inner(kind)) is not None:
        kind = inner
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return np.dtype(kind.to_pandas_dtype()) if is_number else None


def _told_type(kind: pa.DataType) -> str:
    """What cells are that are not numbers: encoded images are bytes, or structs that hold them."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    holds = [field.type for field in kind] if pa.types.is_struct(kind) else [kind]
    is_bytes = any(pa.types.is_binary(its) or pa.types.is_large_binary(its) for its in holds)
    return "images" if is_bytes else str(kind)[:60]


def _inner(kind: pa.DataType) -> pa.DataType | None:
    """What a list or an extension type is made of."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return kind.value_type if _is_list(kind) else None


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _fixed_size(kind: pa.DataType) -> int | None:
    """Numbers in a row of a column of numbers; None: the type leaves it open."""
    size = 1
    while (inner := _inner(kind)) is not None:
        if _is_list(kind):
            if not pa.types.is_fixed_size_list(kind):
                return None
            size *= kind.list_size
        kind = inner
    return size


def _sizes_of_first_row(path: Path, keys: Sequence[str]) -> dict[str, int]:
    """Numbers in the first row of columns of numbers."""
    # The footer counts them too, but pyarrow 26 ends the process when it is asked for that of a damaged file.
    if not keys:
        return {}
    with _open(path) as file:
        for batch in file.iter_batches(1, columns=list(keys), use_threads=False):
            return {key: _count(batch.column(key)[0].as_py()) for key in keys}
    return dict.fromkeys(keys, 0)


def _count(cell: Any) -> int:
    """Numbers in a number or in nested lists of them."""
    return sum(map(_count, cell)) if isinstance(cell, list) else int(cell is not None)


def _numbers(column: pa.ChunkedArray, rows: int, size: int, where: str) -> np.ndarray:
    """A column of numbers or nested lists of them → (rows, size)."""
    array = column.combine_chunks()
    while (is_extension := isinstance(array, pa.ExtensionArray)) or _is_list(array.type):
        if is_extension:
            array = array.storage
            continue
        _check_lengths(array, rows, where)
        array = array.flatten()
    if array.null_count:
        step = array.is_null().to_numpy(zero_copy_only=False).argmax() // max(1, size)
        raise UserError(f"{where} has no value in row {step}: record it again")
    if len(array) != rows * size:
        raise UserError(f"{where} has {len(array)} values instead of {rows} × {size}: copy or record it again")
    return array.to_numpy(zero_copy_only=False).reshape(rows, size)


def _check_lengths(array: pa.Array, rows: int, where: str) -> None:
    """See that all lists are there and equally long."""
    lengths = pc.list_value_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
    odd = np.flatnonzero((lengths != lengths[:1]) | (lengths < 0))
    if len(odd):
        row = odd[0] * rows // len(lengths)
        raise UserError(f"{where} has another number of values in row {row}: record it again")
