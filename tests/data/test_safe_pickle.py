"""The loader of pickled .npy files: what is honest loads at every protocol, what is not runs nothing."""

from __future__ import annotations

import functools
import io
import os
import pickle
import random
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bimact.data import safe_pickle
from bimact.data.safe_pickle import load_pickle, load_pickled_npy, read_npy_header
from bimact.errors import UserError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def examples(count: int) -> settings:
    """That many, each with the same temporary folder."""
    return settings(max_examples=count, suppress_health_check=[HealthCheck.function_scoped_fixture])


def npy_of(program: bytes, shape: tuple[int, ...] = ()) -> bytes:
    """A .npy file with a pickle as its content."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + program


def write_pickled(path: Path, content: Any, protocol: int = 4) -> Path:
    """What np.save writes of Python objects, at any protocol."""
    array = np.asanyarray(content) if not isinstance(content, np.ndarray) else content
    path.write_bytes(npy_of(pickle.dumps(array, protocol=protocol), array.shape))
    return path


def objects(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, np.ndarray) and expected.dtype == object:
        assert found.dtype == object and found.shape == expected.shape
        for one, other in zip(found.flat, expected.flat, strict=True):
            assert_same(one, other)
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_same(one, other)
    else:
        assert type(found) is type(expected) and found == expected


def observation(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {
        "image_left": rng.integers(0, 256, (24, 32, 3), dtype=np.uint8),
        "image_small": rng.integers(0, 256, (4, 5, 3), dtype=np.uint8),
        "state": rng.normal(size=14).astype(np.float32),
    }


# What is honest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_array_of_dictionaries(tmp_path: Path, protocol: int) -> None:
    content = objects([observation(step) for step in range(5)])
    assert_same(load_pickled_npy(write_pickled(tmp_path / "a.npy", content, protocol)), content)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dictionary_of_arrays(tmp_path: Path, protocol: int) -> None:
    content = {key: np.stack([observation(step)[key] for step in range(5)]) for key in observation(0)}
    loaded = load_pickled_npy(write_pickled(tmp_path / "a.npy", content, protocol))
    assert loaded.shape == ()
    assert_same(loaded.item(), content)


@pytest.mark.parametrize("allow_pickle_file", ["array", "dictionary"])
def test_what_np_save_itself_writes(tmp_path: Path, allow_pickle_file: str) -> None:
    content: Any = objects([observation(0), observation(1)]) if allow_pickle_file == "array" else observation(2)
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    assert_same(load_pickled_npy(tmp_path / "a.npy"), np.load(tmp_path / "a.npy", allow_pickle=True))


VALUES: list[Any] = [
    np.float32(1.5),
    np.float64(-0.0),
    np.int8(-3),
    np.uint64(2**63),
    np.bool_(True),
    np.complex64(1 + 2j),
    np.str_("größe"),
    np.str_(""),
    np.bytes_(b"\xff\x00a"),
    np.bytes_(b""),
    np.arange(24.0).reshape(2, 3, 4),
    np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    np.asfortranarray(np.arange(4000.0).reshape(40, 100)),
    np.arange(2000.0).reshape(10, 20, 10).transpose(1, 0, 2),
    np.arange(24.0).reshape(4, 6)[::2, ::3],
    np.arange(5, dtype=">i4"),
    np.arange(5, dtype=">f8"),
    np.arange(5, dtype="<u2"),
    np.arange(700, dtype=">f8"),
    np.array([1.0, 2.0], dtype=np.float16),
    np.array([True, False]),
    np.array(["ab", "c"]),
    np.array(["ab", "ç"], dtype=">U7"),
    np.array([b"ab", b"c"]),
    np.array(3.0),
    np.zeros((0, 3), dtype=np.float32),
    np.zeros((2, 0)),
    objects([[1, "x"], None, {"k": np.ones(3)}]),
    objects([1, 2, 3, 4]).reshape(2, 2),
    np.asfortranarray(objects([1, 2, 3, 4, 5, 6]).reshape(2, 3)),
    None,
    True,
    2**100,
    -1,
    1.25,
    float("inf"),
    1 - 2j,
    "text",
    b"",
    b"bytes\xff\x00",
    b"\xfe" * 5000,
    bytearray(b"array of bytes\xff"),
    bytearray(),
    ["list", ["in", ["list"]]],
    ("tuple", 1),
    {1, 2, 3},
    frozenset({"a"}),
    {"a": {"b": ({"c": b"d"},)}},
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_value(tmp_path: Path, value: Any, protocol: int) -> None:
    loaded = load_pickled_npy(write_pickled(tmp_path / "a.npy", {"value": value, "again": value}, protocol))
    assert_same(loaded.item(), {"value": value, "again": value})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ordered_dictionary_becomes_a_dictionary(tmp_path: Path, protocol: int) -> None:
    content = objects([OrderedDict(b=1, a=np.ones(2))])
    loaded = load_pickled_npy(write_pickled(tmp_path / "a.npy", content, protocol))
    assert_same(loaded[0], {"b": 1, "a": np.ones(2)})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_text_as_key(tmp_path: Path, protocol: int) -> None:
    loaded = load_pickled_npy(write_pickled(tmp_path / "a.npy", {np.str_("state"): 1}, protocol))
    assert loaded.item() == {"state": 1}


@pytest.mark.parametrize("protocol", [0, 2])
def test_module_paths_of_numpy_1(tmp_path: Path, protocol: int) -> None:
    content = objects([observation(0), {"scalar": np.float32(2)}])
    path = write_pickled(tmp_path / "a.npy", content, protocol)
    written = path.read_bytes()
    assert b"numpy._core" in written or np.__version__.startswith("1.")
    path.write_bytes(written.replace(b"numpy._core", b"numpy.core"))
    assert_same(load_pickled_npy(path), content)


def test_text_and_bytes_as_python_2_wrote_them(tmp_path: Path) -> None:
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02%bK\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = array + b"(K\x01(K\x02t" + dtype % b"u1" + b"\x89U\x02\xff\x07tb"
    program = array + b"(K\x01(K\x01t" + dtype % b"O8" + b"\x89](}U\x05state" + state + b"setb."
    (tmp_path / "a.npy").write_bytes(npy_of(b"\x80\x02" + program, (1,)))
    assert_same(load_pickled_npy(tmp_path / "a.npy"), objects([{"state": np.array([255, 7], np.uint8)}]))


def test_large_arrays_stay_in_the_file(tmp_path: Path) -> None:
    loaded = load_pickled_npy(write_pickled(tmp_path / "a.npy", {"image": np.zeros((64, 64, 3), np.uint8)}))
    image = loaded.item()["image"]
    assert not image.flags.writeable and not image.flags.owndata
    base = image
    while isinstance(base, np.ndarray):
        base = base.base
    assert type(base.obj).__name__ == "mmap"
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_value_in_a_pickle_of_its_own(tmp_path: Path, value: Any, protocol: int) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"value": value, "again": [value]}, protocol=protocol))
    assert_same(load_pickle(tmp_path / "a.pkl"), {"value": value, "again": [value]})


# What is not honest --------------------------------------------------------------------------------


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def payloads(victim: Path) -> dict[str, tuple[Any, str]]:
    """Name → what is pickled, and the function that it wants, whose module depends on the protocol."""
    code = f"open({str(victim)!r}, 'w').write('x')"
    return {
        "os.system": (Call(os.system, f"touch {victim}"), "system"),
        "subprocess": (Call(subprocess.check_call, ["touch", str(victim)]), "check_call"),
        "pathlib": (Call(Path.write_text, victim, "x"), "Path.write_text|getattr"),
        "open": (Call(open, str(victim), "w"), "open"),
        "eval": (Call(eval, code), "eval"),
        "exec": (Call(exec, code), "exec"),
        "getattr": (Call(getattr, Call(__import__, "os"), "system"), "getattr"),
        "import": (Call(__import__, "os"), "__import__"),
        "numpy.savetxt": (Call(np.savetxt, str(victim), [1.0]), "savetxt"),
        "numpy.load": (Call(np.load, str(victim), None, True), "load"),
        "partial": (Call(functools.partial, eval, code), "partial"),
        "type": (Call(type, "T", (), {}), "type"),
        "memory map": (Call(np.memmap, str(victim), "u1", "w+", 0, (1,)), "memmap"),
    }


PAYLOADS = sorted(payloads(Path("x")))


def place_alone(payload: Any) -> np.ndarray:
    return objects([payload])


def place_in_observation(payload: Any) -> np.ndarray:
    return objects([observation(0), {**observation(1), "extra": [1, (payload,)]}])


def place_in_image(payload: Any) -> np.ndarray:
    return objects([observation(0), {**observation(1), "image_left": objects([payload])}])


def place_in_dictionary(payload: Any) -> np.ndarray:
    return np.asanyarray({"state": np.zeros((3, 2)), "image_left": payload})


def place_as_key(payload: Any) -> np.ndarray:
    return np.asanyarray({payload: 1})


PLACES = [place_alone, place_in_observation, place_in_image, place_in_dictionary, place_as_key]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", PAYLOADS)
def test_hostile_call_is_named_and_does_not_run(
    tmp_path: Path, name: str, place: Callable[[Any], np.ndarray], protocol: int
) -> None:
    victim = tmp_path / "victim"
    payload, wanted = payloads(victim)[name]
    path = write_pickled(tmp_path / "a.npy", place(payload), protocol)
    with pytest.raises(UserError, match=rf"wants \w[\w.]*\.({wanted}), which was refused") as caught:
        load_pickled_npy(path)
    assert str(path) in str(caught.value)
    assert not victim.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", PAYLOADS)
def test_hostile_call_in_a_pickle_of_its_own(tmp_path: Path, name: str, protocol: int) -> None:
    victim = tmp_path / "victim"
    payload, wanted = payloads(victim)[name]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"mean": np.ones(3), "std": payload}, protocol=protocol))
    with pytest.raises(UserError, match=rf"a.pkl wants \w[\w.]*\.({wanted}), which was refused"):
        load_pickle(tmp_path / "a.pkl")
    assert not victim.exists()


def test_the_payloads_are_real(tmp_path: Path) -> None:
    """That they would write their file if they ran."""
    for name in ("os.system", "eval", "exec", "numpy.savetxt"):
        victim = tmp_path / name
        path = write_pickled(tmp_path / "a.npy", place_alone(payloads(victim)[name][0]))
        np.load(path, allow_pickle=True)
        assert victim.exists()


def global_of(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


DTYPE = global_of("numpy", "dtype") + b"X\x02\x00\x00\x00u1\x89\x88\x87R"  # not yet given its byte order
NDARRAY = global_of("numpy", "ndarray")
RECONSTRUCT = global_of("numpy.core.multiarray", "_reconstruct") + NDARRAY + b")C\x01b\x87R"
ONE_BYTE = b"(K\x01K\x01\x85" + DTYPE + b"\x89C\x01atb"  # the state of an array
PROGRAMS: dict[str, tuple[bytes, str]] = {
    "attribute of an attribute": (
        b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__doc__\x93.",
        r"wants numpy\.ndarray\.__doc__",
    ),
    "INST": (b"(X\x01\x00\x00\x00xios\nsystem\n.", r"wants os\.system"),
    "OBJ": (b"(" + global_of("os", "system") + b"X\x01\x00\x00\x00xo.", r"wants os\.system"),
    "NEWOBJ of a stand-in": (NDARRAY + b")\x81.", "damaged"),
    "NEWOBJ_EX of a stand-in": (NDARRAY + b")}\x92.", "damaged"),
    "state of a function": (
        global_of("numpy", "dtype") + b"N}X\x09\x00\x00\x00_functionX\x01\x00\x00\x00xs\x86b.",
        "wants to change",
    ),
    "state of ndarray": (NDARRAY + b"}b.", "wants to change"),
    "state of OrderedDict": (global_of("collections", "OrderedDict") + b"}b.", "wants to change"),
    "state of bytes": (b"C\x01a}X\x01\x00\x00\x00aK\x01sb.", "damaged"),
    "ndarray called": (NDARRAY + b"K\x01\x85\x85R.", "damaged"),
    "other class": (
        global_of("numpy.core.multiarray", "_reconstruct") + global_of("builtins", "set") + b")C\x01b\x87R.",
        "damaged",
    ),
    "array without content": (RECONSTRUCT + b".", "damaged"),
    "stand-in as a value": (b"]" + NDARRAY + b"a.", "something else than arrays"),
    "type as a value": (b"]" + DTYPE + b"a.", "something else than arrays"),
    "persistent id": (b"Pname\n.", "objects outside"),
    "binary persistent id": (b"K\x01Q.", "objects outside"),
    "next buffer": (b"\x80\x05\x97.", "buffers outside"),
    "read-only buffer": (b"\x80\x05C\x01a\x98.", "buffers outside"),
    "extension": (b"\x82\x01.", "extension registry"),
    "no such operation": (b"\xff.", "damaged"),
    "no end": (b"N", "damaged"),
    "empty": (b"", "damaged"),
    "long bytes": (b"\x8e" + struct.pack("<Q", 2**62) + b".", "damaged"),
    "long bytearray": (b"\x96" + struct.pack("<Q", 2**40) + b".", "damaged"),
    "long text": (b"X" + struct.pack("<I", 2**32 - 1) + b".", "damaged"),
    "long frame": (
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        "header announces",
    ),  # frames are not used
    "table of the memo": (b"Nr\xff\xff\xff\xff.", "damaged"),
    "table of the memo as text": (b"Np4000000000\n.", "damaged"),
    "bytes of a number": (global_of("builtins", "bytes") + b"J\xff\xff\xff\x7f\x85R.", "damaged"),
    "bytearray of a number": (global_of("builtins", "bytearray") + b"J\xff\xff\xff\x7f\x85R.", "damaged"),
    "other encoding": (
        global_of("_codecs", "encode") + b"X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        "damaged",
    ),
    "decoding": (
        global_of("_codecs", "decode") + b"C\x01aX\x03\x00\x00\x00zip\x86R.",
        r"wants _codecs\.decode",
    ),
    "array larger than its bytes": (
        RECONSTRUCT + b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86" + DTYPE + b"\x89C\x01atb.",
        "damaged",
    ),
    "negative size": (
        RECONSTRUCT + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86" + DTYPE + b"\x89C\x01atb.",
        "damaged",
    ),
    "content twice": (RECONSTRUCT + ONE_BYTE + ONE_BYTE + b".", "damaged"),
    "contains itself": (b"]\x94h\x00a.", "deep"),
    "deep": (b"]" * 100 + b"a" * 99 + b".", "deep"),
    "terminal control": (global_of("os", "\x1b[2Jx"), r"wants os\.\\x1b\[2Jx"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_program(tmp_path: Path, name: str) -> None:
    program, sentence = PROGRAMS[name]
    path = tmp_path / "a.npy"
    path.write_bytes(npy_of(program + (b"." if name == "terminal control" else b"")))
    with pytest.raises(UserError, match=sentence) as caught:
        load_pickled_npy(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_stand_ins_are_unchanged_by_hostile_programs(tmp_path: Path) -> None:
    before = {key: (type(value), getattr(value, "_function", None)) for key, value in safe_pickle._ALLOWED.items()}
    for program, _ in PROGRAMS.values():
        (tmp_path / "a.npy").write_bytes(npy_of(program))
        with pytest.raises(UserError):
            load_pickled_npy(tmp_path / "a.npy")
    after = {key: (type(value), getattr(value, "_function", None)) for key, value in safe_pickle._ALLOWED.items()}
    assert after == before


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.zeros(2, dtype=[("a", "i4")]), "structured"),
        (np.zeros(2, dtype="M8[s]"), "'M8'"),
        (np.void(b"abc"), "structured"),
        (np.timedelta64(1, "s"), "'m8'"),
    ],
)
def test_other_types_of_arrays_are_refused(tmp_path: Path, value: Any, kind: str) -> None:
    with pytest.raises(UserError, match=f"whose type is {kind}"):
        load_pickled_npy(write_pickled(tmp_path / "a.npy", {"value": value}))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_subclasses_of_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recarray"):
        load_pickled_npy(
            write_pickled(tmp_path / "a.npy", {"value": np.zeros(2, dtype=[("a", "i4")]).view(np.recarray)})
        )
    with pytest.raises(UserError, match="matrix"):
        load_pickled_npy(write_pickled(tmp_path / "a.npy", {"value": np.matrix([[1.0]])}))


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """Each program that asks for memory by a number alone, with little memory allowed."""
    paths = []
    for number, (program, _) in enumerate(PROGRAMS.values()):
        paths.append(tmp_path / f"{number}.npy")
        paths[-1].write_bytes(npy_of(program))
    script = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from bimact.data.safe_pickle import load_pickled_npy\nfrom bimact.errors import UserError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_pickled_npy(Path(path))\n"
        "    except UserError as error: assert 'does not fit' not in str(error), error\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000  # kB


# What is damaged -----------------------------------------------------------------------------------


def whole_file(protocol: int) -> bytes:
    values = {f"value {number}": value for number, value in enumerate(VALUES)}
    array = objects([observation(0), values, observation(1)])
    return npy_of(pickle.dumps(array, protocol=protocol), array.shape)


WHOLE = {protocol: whole_file(protocol) for protocol in PROTOCOLS}


def try_to_load(path: Path, content: bytes) -> np.ndarray | None:
    path.write_bytes(content)
    try:
        return load_pickled_npy(path)
    except UserError as error:
        assert str(path) in str(error)
        return None


@examples(200)
@given(protocol=st.sampled_from(PROTOCOLS), share=st.floats(0, 1, exclude_max=True))
def test_truncated_file_is_refused(tmp_path: Path, protocol: int, share: float) -> None:
    whole = WHOLE[protocol]
    assert try_to_load(tmp_path / "a.npy", whole[: int(share * len(whole))]) is None


@examples(400)
@given(data=st.data(), protocol=st.sampled_from(PROTOCOLS))
def test_mutated_file_is_refused_or_valid(tmp_path: Path, data: st.DataObject, protocol: int) -> None:
    content = bytearray(WHOLE[protocol])
    places = st.integers(0, len(content) - 1)
    for at in data.draw(st.lists(places, min_size=1, max_size=8)):
        content[at] = data.draw(st.integers(0, 255))
    loaded = try_to_load(tmp_path / "a.npy", bytes(content))
    assert loaded is None or loaded.dtype == object


@examples(200)
@given(program=st.lists(st.sampled_from([bytes([code]) for code in range(256)]), max_size=60))
def test_random_program_is_refused_or_valid(tmp_path: Path, program: list[bytes]) -> None:
    try_to_load(tmp_path / "a.npy", npy_of(b"".join(program)))


@examples(200)
@given(seed=st.integers(0, 2**32))
def test_shuffled_program_is_refused_or_valid(tmp_path: Path, seed: int) -> None:
    """Pieces of an honest program in another order: more of it runs than of random bytes."""
    shuffler = random.Random(seed)
    program = pickle.dumps(objects([observation(0), {"scalar": np.float32(1), "set": {1}}]), protocol=seed % 6)
    cuts = sorted(shuffler.sample(range(len(program)), 6))
    pieces = [program[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(program)])]
    middle = pieces[1:-1]
    shuffler.shuffle(middle)
    try_to_load(tmp_path / "a.npy", npy_of(b"".join([pieces[0], *middle, pieces[-1]]), (2,)))


def test_damaged_pickle_of_its_own(tmp_path: Path) -> None:
    whole = pickle.dumps({"mean": np.arange(900.0)})
    for content in (b"", whole[:-1], whole[:3000], b"not a pickle", b"."):
        (tmp_path / "a.pkl").write_bytes(content)
        with pytest.raises(UserError, match="a.pkl is damaged or cut off"):
            load_pickle(tmp_path / "a.pkl")
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        load_pickle(tmp_path / "none.pkl")


# Headers -------------------------------------------------------------------------------------------


def test_header(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4), dtype=">f4"))
    header = read_npy_header(tmp_path / "a.npy")
    assert (header.shape, header.dtype, header.offset, header.is_pickled) == (
        (3, 4),
        np.dtype(">f4"),
        128,
        False,
    )


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_headers(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, np.zeros(3, dtype=[("a", "f4", (2,))]), version=version)
    header = read_npy_header(tmp_path / "a.npy")
    assert header.shape == (3,) and header.dtype == np.dtype([("a", "f4", (2,))])
    assert header.offset + 3 * 8 == (tmp_path / "a.npy").stat().st_size


def test_array_of_numbers_is_not_for_this_module(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(UserError, match="holds an array of float64, not pickled"):
        load_pickled_npy(tmp_path / "a.npy")
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, np.zeros(1, dtype=[("a", "O")]))
    with pytest.raises(UserError, match="not pickled Python objects"):
        load_pickled_npy(tmp_path / "a.npy")


HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a .npy file"),
    "other file": (b"PK\x03\x04 and so on", "not a .npy file"),
    "pickle alone": (pickle.dumps([1]), "not a .npy file"),
    "cut off in magic": (b"\x93NUM", "not a .npy file"),
    "cut off after magic": (b"\x93NUMPY", "damaged header"),
    "unknown version": (b"\x93NUMPY\x09\x00" + b" " * 50, r"unknown version 9\.0"),
    "cut off": (npy_of(b"")[:50], "damaged header"),
    "huge": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * 100, "more than 10000 bytes"),
    "no dictionary": (b"\x93NUMPY\x01\x00\x04\x00[1]\n", "damaged header"),
    "code": (b"\x93NUMPY\x01\x00\x18\x00__import__('os').abort()", "damaged header"),
    "deep": (b"\x93NUMPY\x01\x00\x88\x13" + b"(" * 5000, "damaged header"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_header(tmp_path: Path, name: str) -> None:
    content, sentence = HEADERS[name]
    (tmp_path / "a.npy").write_bytes(content)
    for load in (read_npy_header, load_pickled_npy):
        with pytest.raises(UserError, match=sentence):
            load(tmp_path / "a.npy")


def test_negative_shape_in_header(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy_of(b"N.", (-1,)))
    with pytest.raises(UserError, match="damaged header"):
        read_npy_header(tmp_path / "a.npy")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        load_pickled_npy(tmp_path / "none.npy")
    with pytest.raises(UserError, match=r"cannot read .*directory"):
        load_pickled_npy(tmp_path)


@examples(300)
@given(at=st.integers(6, 79), value=st.integers(0, 255))
@pytest.mark.filterwarnings("ignore")
def test_mutated_header_is_refused_or_valid(tmp_path: Path, at: int, value: int) -> None:
    content = bytearray(npy_of(pickle.dumps(objects([1])), (1,)))
    content[at] = value
    try_to_load(tmp_path / "a.npy", bytes(content))
