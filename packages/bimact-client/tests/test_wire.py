"""The form of messages is openpi's, and malformed ones give one ValueError."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bimact_client.wire import pack, unpack

ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(10)[::2],
    np.float16([1.5, -2]),
    np.arange(3, dtype=">i4"),
    np.zeros((0, 14), np.float32),
    np.array(3.25),
    np.array(["left", "right"]),
    np.array([b"a", b"bcd"]),
    np.array([True, False]),
    np.array(["2024-01-01", "NaT"], "M8[ns]"),
    np.array([1, 2], "m8[25us]"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}{array.shape}")
def test_arrays_come_back(array: np.ndarray) -> None:
    back = unpack(pack({"x": [array]}))["x"][0]
    assert back.dtype == array.dtype and back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    assert not back.flags.writeable


@pytest.mark.parametrize("scalar", [np.float32(1.5), np.int8(-3), np.bool_(True), np.float16(0.1), np.uint64(2**63)])
def test_scalars_come_back(scalar: np.generic) -> None:
    back = unpack(pack(scalar))
    assert type(back) is type(scalar) and back == scalar


def test_the_bytes_are_those_of_openpi() -> None:
    array = np.array([[1.0, 2.0]], np.float32)
    expected = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<f4", b"shape": [1, 2]}
    assert msgpack.unpackb(pack(array)) == expected
    assert msgpack.unpackb(pack(np.float32(0.5))) == {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}
    assert msgpack.unpackb(pack(np.float64(0.5))) == 0.5  # it is a Python float too


@pytest.mark.parametrize("value", [np.array([None]), np.zeros(1, "i4,f4"), np.zeros(2, complex), np.complex64(1)])
def test_arrays_that_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="cannot hold arrays of dtype"):
        pack(value)


def test_types_that_are_refused() -> None:
    with pytest.raises(TypeError, match="a message cannot hold set"):
        pack({"x": {1}})


ARRAY = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}
SCALAR = {b"__npgeneric__": True, b"data": 1, b"dtype": "<i4"}


@pytest.mark.parametrize(
    "content",
    [
        {**ARRAY, b"shape": [3]},
        {**ARRAY, b"shape": [-2]},
        {**ARRAY, b"shape": [2.0]},
        {**ARRAY, b"shape": [True, 2]},
        {**ARRAY, b"shape": 2},
        {**ARRAY, b"shape": [2**62, 2**62, 0], b"data": b""},
        {**ARRAY, b"shape": [0] * 100, b"data": b""},
        {**ARRAY, b"data": "\0" * 8},
        {**ARRAY, b"data": [0.0, 0.0]},
        {**ARRAY, b"dtype": "O"},
        {**ARRAY, b"dtype": "|V8", b"shape": [1]},
        {**ARRAY, b"dtype": "i4,f4", b"shape": [1]},
        {**ARRAY, b"dtype": "<c8", b"shape": [1]},
        {**ARRAY, b"dtype": "<U0", b"data": b"", b"shape": [2**40]},
        {**ARRAY, b"dtype": "f3"},
        {**ARRAY, b"dtype": "no dtype"},
        {**ARRAY, b"dtype": None},
        {b"__ndarray__": True},
        {b"__npgeneric__": True},
        {**SCALAR, b"data": [1, 2]},
        {**SCALAR, b"data": "left"},
        {**SCALAR, b"data": 2**40, b"dtype": "<M8[ns]x"},
        {**SCALAR, b"data": "a", b"dtype": "<U500000000"},
        {1: 2},
        msgpack.ExtType(5, b"x"),
    ],
)
def test_malformed_messages(content: object) -> None:
    with pytest.raises(ValueError, match="^the message is malformed: "):
        unpack(msgpack.packb({"x": content}))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81", b"\x91" * 100000, pack(1) + b"\0", b"\xdf\xff\xff\xff\xff"])
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match="^the message is malformed: "):
        unpack(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_messages_give_a_value_or_a_value_error(data: st.DataObject) -> None:
    images = {"top": np.zeros((2, 2, 3), np.uint8)}
    message = bytearray(pack({"state": np.arange(3.0), "images": images, "n": np.int8(1)}))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(message[: data.draw(st.integers(0, len(message)))]))
    except ValueError as error:
        assert str(error).startswith("the message is malformed: ")
