"""YAML files: what is written, and where; what cannot be read is one sentence with the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bimact.errors import UserError
from bimact.yaml_file import Written, read_yaml


def read(folder: Path, content: str | bytes) -> Written:
    (folder / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    written = read_yaml(folder / "c.yaml", "config file")
    assert written is not None
    return written


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("007", 7),
        ("1e-6", 1e-6),
        ("-1E+3", -1000.0),
        ("1.5e3", 1500.0),
        ("2024_10_05", 20241005),
        ("12:30:45", 45045),
        ("2024-10-05", "2024-10-05"),
        ("0x_", "0x_"),
        ("yes", True),
        ("~", None),
        ("<<", "<<"),
        ("=", "="),
        ("a\tb", "a\tb"),
    ],
)
def test_values_keep_their_text(text: str, value: Any, tmp_path: Path) -> None:
    written = read(tmp_path, f"a: 1\nb: {text}  # why\n").value["b"]
    assert (written.value, written.text, written.line) == (value, text, 2)
    assert type(written.value) is type(value)


def test_groups_and_lists(tmp_path: Path) -> None:
    written = read(tmp_path, "a:\n  - 1\n  - x: [no]\nb: {c: 007}\n")
    assert written.plain() == {"a": [1, {"x": [False]}], "b": {"c": 7}}
    assert (written.value["a"].line, written.value["b"].value["c"].text) == (1, "007")


def test_aliases_and_merged_groups(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\nmore: &more {b: 3, c: 4}\nx:\n  b: 0\n  <<: [*base, *more]\ny: *base\n"
    content = read(tmp_path, text).plain()
    assert content["x"] == {"a": 1, "b": 0, "c": 4} and content["y"] == content["base"]
    assert read(tmp_path, "a: &a 007\nb: *a\n").value["b"].text == "007"


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa: 1\n", b"a: 1\r\n", b"--- \na: 1\n...\n", b"a:\t1\t# why\n"])
def test_what_editors_leave_in_files(content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path, content).plain() == {"a": 1}


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "c.yaml", "config file") is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: 1\nb: caf\xe9\n", "line 2: the file is not UTF-8 (byte 0xe9): save it as UTF-8"),
        ("a: 1".encode("utf-16"), "line 1: the file is UTF-16: save it as UTF-8"),
        (b"a: 1\nb: \x00\n", "line 2: the character '\\x00' is not allowed in YAML"),
        (b"a: 1\nb:\n\tc: 1\n", "line 3: the line is indented by a tab"),
        (b"a: 1\n\na: 2\n", "line 3: 'a' is given twice, before in line 1: remove one"),
        (b"a: b: c\n", "line 1: this cannot be read as YAML (mapping values are not allowed"),
        (b"a: 1\nb: [1\n", "this cannot be read as YAML"),
        (b"a: 1\nb: 'x\n", "this cannot be read as YAML"),
        (b"a: @x\n", "line 1: this cannot be read as YAML"),
        (b"a: *x\n", "line 1: this cannot be read as YAML (found undefined alias"),
        (b"a: 1\n---\na: 2\n", "line 2: this cannot be read as YAML (expected a single document"),
        (b"? [a]\n: 1\n", "line 1: a key has to be a name"),
        (b"a: 1\nb: !!python/object/apply:os.getcwd []\n", None),
        (
            b"a: !!python/name:os.getcwd x\n",
            "line 1: the tag tag:yaml.org,2002:python/name:os.getcwd is not understood",
        ),
        (b"a: !!binary aGk=\n", "line 1: the tag tag:yaml.org,2002:binary is not understood"),
        (b"a: &a\n  b: *a\n", "refers to itself"),
        (b"a: &a\n  <<: *a\n", "refers to itself"),
        (b"a: {<<: 1}\n", "line 1: `<<` needs a group of keys"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(content: bytes, sentence: str | None, tmp_path: Path) -> None:
    if sentence is None:  # a list is a list, whatever its tag says: nothing is run
        assert read(tmp_path, content).plain() == {"a": 1, "b": []}
        return
    with pytest.raises(UserError) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path}/c.yaml") and sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    with pytest.raises(UserError, match="with its aliases resolved it has more than 10000 values"):
        read(tmp_path, "\n".join(lines))
    lines = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30)]
    assert read(tmp_path, "\n".join(lines)).plain()["a29"] == {"x": 1}


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"config file not found: {tmp_path}/none.yaml"):
        read_yaml(tmp_path / "none.yaml", "config file")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path, "config file")
    with pytest.raises(UserError, match="is a git-lfs pointer, .* run `git lfs pull`"):
        read(tmp_path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
