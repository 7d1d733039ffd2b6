"""Loads pickles and pickled .npy files, and constructs nothing but arrays, numbers, text and containers from them.

A pickle is a program, and `np.load(allow_pickle=True)` executes it, whatever it does. Here the same program runs, but
every function that it can call is one of the placeholders below, which only check and store their arguments; NumPy's
own unpickling is not used. When the program has ended, the placeholders are replaced by arrays and values.

Before that, the file's operations are parsed once without executing them. This pass replaces large byte strings (the
images) by views of the memory-mapped file, so that a dataset may be larger than memory, and it refuses operations that
allocate memory by a number alone.

A malicious file can still waste time. It cannot run code, write files or allocate much more than its own size.
"""

from __future__ import annotations

import io
import itertools
import math
import mmap
import pickle
import pickletools
import re
import struct
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bimact.errors import UserError

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # bytes, NumPy's own bound
_LARGE = 1024  # bytes: larger byte strings stay in the file
_DEEPEST = 32  # nesting of containers
_DAMAGE = (  # raised by NumPy's header reader, the unpickler and the placeholders on a damaged file
    pickle.UnpicklingError,
    EOFError,
    ValueError,  # and UnicodeDecodeError
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    BufferError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
)


@dataclass(frozen=True)
class NpyHeader:
    """The header of a .npy file: shape and dtype of the array, and the offset of its content in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def is_pickled(self) -> bool:
        return self.dtype.hasobject


def read_npy_header(path: Path) -> NpyHeader:
    """Read the header of a .npy file.

    Field names are correct for ASCII only: NumPy has no public reader of version 3.0 headers.

    Raises:
        UserError: if the file cannot be read, is not a .npy file or has a damaged header.
    """
    try:
        with path.open("rb") as file:
            return _read_header(file, path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except _DAMAGE:
        raise UserError(f"{path} has a damaged header: copy it again from where it came from") from None


def _read_header(file: BinaryIO, path: Path) -> NpyHeader:
    if not file.read(len(_MAGIC)) == _MAGIC:
        raise UserError(f"{path} is not a .npy file: write it with np.save")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise UserError(f"{path} is a .npy file of the unknown version {version[0]}.{version[1]}")
    begin = file.tell()
    width = 2 if version == (1, 0) else 4
    # NumPy reads the whole header before checking its length.
    if int.from_bytes(file.read(width), "little") > _MAX_HEADER:
        raise UserError(f"{path} has a header of more than {_MAX_HEADER} bytes: it is damaged")
    file.seek(begin)
    # Version 3.0 differs from 2.0 only in the encoding of field names.
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("sizes are whole numbers")
    return NpyHeader(tuple(shape), dtype, file.tell())


def load_pickled_npy(path: Path) -> np.ndarray:
    """Load Python objects saved by `np.save` without executing anything in the file.

    Args:
        path: a .npy file whose header says dtype object.

    Returns:
        the object array; of shape () for an object that is not an array, such as one dictionary. Arrays in it are
        read-only and possibly not aligned; large ones stay in the file until they are read. Large bytearrays become
        bytes.

    Raises:
        UserError: if the file is not such a file, is damaged, or contains anything but arrays of plain types, numbers,
            text, bytes, lists, tuples, dictionaries and sets; the sentence names it.
    """
    header = read_npy_header(path)
    if header.dtype != object:
        raise UserError(f"{path} holds an array of {header.dtype}, not pickled Python objects")
    array = _load(path, header.offset)
    if not isinstance(array, np.ndarray) or array.dtype != object or array.shape != header.shape:
        raise UserError(f"{path} is damaged: its content is not the array that its header announces")
    return array


def load_pickle(path: Path) -> Any:
    """Load arrays, numbers, text and containers saved by `pickle.dump` without executing anything in the file.

    Args:
        path: a pickle file, such as the `dataset_stats.pkl` of the original ACT.

    Returns:
        the object, with arrays as in `load_pickled_npy`.

    Raises:
        UserError: as `load_pickled_npy` does.
    """
    return _load(path, 0)


def _load(path: Path, offset: int) -> Any:
    """The object in a pickle that begins at an offset in a file."""
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        program, payloads = _divide(content, offset)
        stored = _Unpickler(io.BytesIO(program), buffers=iter(payloads), encoding="latin1").load()
        return _Resolver().resolve(stored)
    except _Refused as refusal:
        raise UserError(f"{path} {refusal}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into this machine's memory") from None
    except _DAMAGE:
        raise UserError(
            f"{path} is damaged or cut off in its pickled content: copy it again from where it came from"
        ) from None


class _Refused(Exception):
    """The file contains something forbidden: the predicate of a sentence about it."""


# Parsing the operations ----------------------------------------------------------------------------

_STOP, _FRAME, _PUT, _LONG_BINPUT = pickle.STOP[0], pickle.FRAME[0], pickle.PUT[0], pickle.LONG_BINPUT[0]
_TWO_LINES = (pickle.GLOBAL[0], pickle.INST[0])
_BYTES = {pickle.BINBYTES[0]: 4, pickle.BINBYTES8[0]: 8, pickle.BYTEARRAY8[0]: 8}  # → bytes of their length
_FORBIDDEN = {
    pickle.PERSID[0]: "refers to objects outside of the file",
    pickle.BINPERSID[0]: "refers to objects outside of the file",
    pickle.EXT1[0]: "refers to Python's extension registry",
    pickle.EXT2[0]: "refers to Python's extension registry",
    pickle.EXT4[0]: "refers to Python's extension registry",
    pickle.NEXT_BUFFER[0]: "refers to buffers outside of the file",
    pickle.READONLY_BUFFER[0]: "refers to buffers outside of the file",
}
_NEEDS_LOOK = {_STOP, _FRAME, _PUT, _LONG_BINPUT, *_FORBIDDEN}
_ARGUMENT = {ord(entry.code): 0 if entry.arg is None else entry.arg.n for entry in pickletools.opcodes}
# Operation → its size in bytes with its argument, or 0 where that takes a look at it.
_SIZE = [0 if code in _NEEDS_LOOK else max(0, 1 + _ARGUMENT.get(code, -1)) for code in range(256)]
_LENGTH_WIDTH = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def _divide(content: mmap.mmap, start: int) -> tuple[bytes, list[memoryview]]:
    """Split a pickle into a small one and its large byte strings, which become its out-of-band buffers.

    Frames are removed: they are only hints for reading ahead, and their lengths would be wrong.
    """
    program, payloads = bytearray(), []
    window = memoryview(content)
    copied = at = start
    for count in itertools.count():
        code = content[at]  # IndexError where the file ends early
        size = _SIZE[code]
        if size:
            at += size
            continue
        if code == _STOP:
            break
        begin, at = at, _end_of_operation(content, at, code, count)
        if code == _FRAME:
            program += window[copied:begin]
            copied = at
        elif code in _BYTES and at - begin > _LARGE:
            program += window[copied:begin]
            program += pickle.NEXT_BUFFER
            payloads.append(window[begin + 1 + _BYTES[code] : at])
            copied = at
    program += window[copied : at + 1]
    return bytes(program), payloads


def _end_of_operation(content: mmap.mmap, at: int, code: int, count: int) -> int:
    """The end of an operation of variable size; `count` operations precede it."""
    if code in _FORBIDDEN:
        raise _Refused(f"{_FORBIDDEN[code]}, which no dataset needs: save it with np.save")
    if code == _FRAME:
        return at + 9
    if code == _LONG_BINPUT:
        # The unpickler makes a table as long as the number says; writers count from 0.
        _check_memo(int.from_bytes(content[at + 1 : at + 5], "little"), count)
        return at + 5
    argument = _ARGUMENT.get(code)
    if argument == pickletools.UP_TO_NEWLINE:
        end = _end_of_line(content, at + 1)
        if code == _PUT:
            _check_memo(int(content[at + 1 : end]), count)
        return _end_of_line(content, end) if code in _TWO_LINES else end
    if argument is None:
        raise pickle.UnpicklingError("no such operation")
    width = _LENGTH_WIDTH[argument]
    end = at + 1 + width + int.from_bytes(content[at + 1 : at + 1 + width], "little")
    if end > len(content):
        raise EOFError
    return end


def _end_of_line(content: mmap.mmap, at: int) -> int:
    found = content.find(b"\n", at)
    if found < 0:
        raise EOFError
    return found + 1


def _check_memo(number: int, count: int) -> None:
    if number > count:
        raise pickle.UnpicklingError("a number in the memo that no writer gives")


# Placeholders --------------------------------------------------------------------------------------


class _StandIn:
    """What a pickle gets to hold. `__setstate__` is there so that the unpickler sets no attribute of it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise _Refused("wants to change what bimact loads it with: save it with np.save")


class _Function(_StandIn):
    """A function that a pickle may call."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class _Dtype(_StandIn):
    """An array's type: a plain kind, a size and a byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufc][0-9]{1,2}|[SU][0-9]*|O[0-9]?", code):
            raise _Refused(_only_plain_types("structured" if str(code).startswith("V") else ascii(code)[:40]))
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        if any(part is not None for part in (subarray, names, fields)):
            raise _Refused(_only_plain_types("structured"))
        if order not in ("<", ">", "|", "="):
            raise ValueError("no such byte order")
        self.order = order

    @property
    def is_object(self) -> bool:
        return self.code.startswith("O")

    def resolve(self) -> np.dtype[Any]:
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


def _only_plain_types(kind: str) -> str:
    return (
        f"holds an array whose type is {kind}, and in pickled files only arrays of plain numbers, truth "
        "values and text are read: save such arrays"
    )


class _Array(_StandIn):
    """An array or a NumPy scalar: `value` for plain types; for objects their list and the shape."""

    __slots__ = ("items", "shape", "value")

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.items: list[Any] | None = None
        self.shape: tuple[int, ...] = ()

    def __setstate__(self, state: Any) -> None:
        if self.value is not None or self.items is not None:
            raise ValueError("an array is given its content once")
        _, shape, dtype, is_fortran, content = state
        if _checked(dtype, _Dtype).is_object:
            if len(_checked(content, list)) != _count(shape):
                raise ValueError("as many objects as the shape says")
            self.items, self.shape = content, shape
        else:
            self.value = _array_from(content, dtype, shape).reshape(shape, order="F" if is_fortran else "C")


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected")
    return value


def _count(shape: Any) -> int:
    if any(type(size) is not int or size < 0 for size in _checked(shape, tuple)):
        raise ValueError("sizes are whole numbers")
    return math.prod(shape)


def _array_from(content: Any, dtype: _Dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes → a flat, read-only view of them. Nothing is allocated by what `shape` says."""
    if isinstance(content, str):  # Python 2 wrote bytes so
        content = content.encode("latin1")
    content = memoryview(_checked(content, (bytes, bytearray, memoryview))).toreadonly()  # type: ignore[arg-type]
    resolved = dtype.resolve()
    if dtype.is_object or resolved.itemsize == 0 or _count(shape) * resolved.itemsize != content.nbytes:
        raise ValueError("as many bytes as shape and type say")
    if content.nbytes == 0:  # np.frombuffer refuses it
        return np.zeros(0, resolved)
    return np.frombuffer(content, resolved)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _NDARRAY:
        raise TypeError("an array is an ndarray")
    return _Array()  # empty: its content follows by __setstate__


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    flat = _array_from(content, _checked(dtype, _Dtype), shape)
    if order == "K" and axes is not None:
        return _Array(flat.reshape(shape).transpose(axes))
    return _Array(flat.reshape(shape, order="F" if order == "F" else "C"))


def _scalar(dtype: Any, content: Any) -> _Array:
    if _checked(dtype, _Dtype).code in ("S", "S0", "U", "U0") and len(content) == 0:
        return _Array(np.bytes_(b"") if dtype.code.startswith("S") else np.str_(""))
    return _Array(_array_from(content, dtype, ())[0])


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes are written as latin1")
    return bytes(_checked(text, str).encode("latin1"))


def _no_bytes() -> bytes:
    return b""


def _bytearray(content: Any = b"") -> bytearray:
    return bytearray(_checked(content, (bytes, memoryview)))  # type: ignore[arg-type]  # of a number: it allocates


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    return dict(items)


_NDARRAY = _StandIn()
_ALLOWED: dict[tuple[str, str], _StandIn] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Function(_Dtype),
    ("numpy._core.numeric", "_frombuffer"): _Function(_from_buffer),
    ("numpy.core.numeric", "_frombuffer"): _Function(_from_buffer),
    ("numpy._core.multiarray", "_reconstruct"): _Function(_reconstruct),
    ("numpy.core.multiarray", "_reconstruct"): _Function(_reconstruct),
    ("numpy._core.multiarray", "scalar"): _Function(_scalar),
    ("numpy.core.multiarray", "scalar"): _Function(_scalar),
    ("collections", "OrderedDict"): _Function(_ordered_dict),
    ("_codecs", "encode"): _Function(_encode),
}
_BUILTINS: dict[str, Callable[..., Any]] = {
    "bytes": _no_bytes,
    "bytearray": _bytearray,
    "complex": complex,
    "set": set,
    "frozenset": frozenset,
}
for _module in ("builtins", "__builtin__"):  # of Python 3; of Python 2 and of protocols up to 2
    _ALLOWED |= {(_module, name): _Function(function) for name, function in _BUILTINS.items()}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            # ascii: a name in an untrusted file must not control the terminal.
            wanted = ascii(f"{module}.{name}"[:200])[1:-1]
            raise _Refused(
                f"wants {wanted}, which was refused and did not run: a dataset needs only arrays, numbers, "
                "text and containers, so do not trust this file, or save such values as plain arrays"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("refers to objects outside of the file, which no dataset needs: save it with np.save")


# Stand-ins → values --------------------------------------------------------------------------------


class _Resolver:
    """Exchanges stand-ins for arrays and values, and visits each object once, however often it is used."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}
        self._depth = 0

    def resolve(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, bytearray)):
            return value
        if isinstance(value, memoryview):
            return bytes(value)
        if id(value) in self._done:
            return self._done[id(value)]
        if self._depth == _DEEPEST:  # also where something contains itself
            raise _Refused(f"nests containers more than {_DEEPEST} deep: save plain arrays")
        self._depth += 1
        resolved = self._done[id(value)] = self._resolve_new(value)
        self._depth -= 1
        return resolved

    def _resolve_new(self, value: Any) -> Any:
        if isinstance(value, _Array):
            return self._resolve_array(value)
        if isinstance(value, dict):
            return {self.resolve(key): self.resolve(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return type(value)(self.resolve(entry) for entry in value)
        raise _Refused("holds something else than arrays, numbers, text and containers: save plain arrays")

    def _resolve_array(self, stored: _Array) -> Any:
        if stored.items is None:
            if stored.value is None:
                raise ValueError("an array without content")
            return stored.value
        array = np.empty(stored.shape, dtype=object)
        flat = array.reshape(-1)
        for number, item in enumerate(stored.items):
            flat[number] = self.resolve(item)
        array.flags.writeable = False
        return array
