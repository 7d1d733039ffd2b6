"""Messages between a robot and a policy server: msgpack with numpy arrays, as openpi's `msgpack_numpy` writes them.

An array is the map {b"__ndarray__": true, b"data": its bytes in C order, b"dtype": its `dtype.str`, b"shape": [...]}; a
scalar is {b"__npgeneric__": true, b"data": its value, b"dtype": ...}. Nothing in a message can run code.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

_DTYPE = re.compile(r"[<>|=]?([biufSU]\d{1,9}|\?|[mM]8(\[\d{0,9}[A-Za-z]{1,2}\])?)")


def keep_freed_blocks() -> None:
    """Let this process keep the memory of messages that it has freed, for those to come.

    glibc may return blocks of a camera frame's size to the system with each message, and the pages of the next one are
    cleared again: 5 ms for two frames of 480×640. It keeps blocks up to the size of the largest one that was freed
    (mallopt(3), M_MMAP_THRESHOLD; at most 32 MB).
    """
    bytes(31 << 20)


def pack(message: Any) -> bytes:
    """A message of dictionaries, lists, text, bytes, numbers, None, numpy arrays and scalars → bytes.

    Raises:
        ValueError: for arrays of objects, structures (dtype kind V) or complex numbers.
        TypeError: for other types.
    """
    packed: bytes = msgpack.packb(message, default=_pack_numpy)
    return packed


def unpack(data: bytes) -> Any:
    """The inverse of `pack`; tuples come back as lists. Arrays are read-only.

    Raises:
        ValueError: if the bytes are not such a message, whatever is wrong with them.
    """
    try:
        return msgpack.unpackb(data, object_hook=_unpack_numpy, ext_hook=_refuse_extension)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise ValueError(f"the message is malformed: {str(error) or type(error).__name__}") from error


def _pack_numpy(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"a message cannot hold {type(value).__name__}")
    if value.dtype.kind in "VOc":
        raise ValueError(f"a message cannot hold arrays of dtype {value.dtype}")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _unpack_numpy(content: dict[Any, Any]) -> Any:
    if b"__ndarray__" in content:
        data, shape = content.get(b"data"), content.get(b"shape")
        dtype = _dtype(content.get(b"dtype"))
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("an array's shape has to be a list of sizes")
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {tuple(shape)} and dtype {dtype.str} has data of another size")
        return np.ndarray(shape, dtype, data)
    if b"__npgeneric__" in content:
        value = content.get(b"data")
        dtype = _dtype(content.get(b"dtype"))
        if not isinstance(value, (bool, int, float, str, bytes)):
            raise ValueError("a scalar's data has to be one value")
        if dtype.kind in "SU" and (not isinstance(value, (str, bytes)) or dtype.itemsize > 4 * max(len(value), 1)):
            raise ValueError(f"a scalar of dtype {dtype.str} has data of another size")
        return np.array(value, dtype)[()]
    return content


def _dtype(text: Any) -> np.dtype[Any]:
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ValueError("an array's dtype has to be one of booleans, numbers, text, dates or times")
    dtype = np.dtype(text)
    if dtype.itemsize == 0:
        raise ValueError(f"an array's dtype {text} has no size")
    return dtype


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"msgpack extension {code} is not used here")
