"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bimact.errors import UserError
from bimact.files import atomic_write, check_writable, expand_home, write_json, write_text, writing_to


def test_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    write_json(tmp_path / "file.json", {"a": 1})
    assert (tmp_path / "file.json").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_kill_in_mid_write(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    code = f"""
import os, signal
from bimact.files import atomic_write
with atomic_write({str(path)!r}) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_whether_a_folder_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    for good in (tmp_path, tmp_path / "new", tmp_path / "a" / "b" / "c"):
        check_writable(good)
    for place in ("file", "file/x", "file/x/y", "lost"):
        with pytest.raises(UserError, match=f"cannot write to {tmp_path}/{place}: .* is not a folder"):
            check_writable(tmp_path / place)
    with pytest.raises(UserError, match=r"cannot write to /proc/x/y \(.*\): make it writable, or choose another place"):
        check_writable("/proc/x/y")
    with pytest.raises(UserError, match="File name too long"):
        check_writable(tmp_path / ("x" * 300))

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        monkeypatch.context() as patched,
        pytest.raises(UserError, match=r"No space left on device\): make room there"),
    ):
        patched.setattr("bimact.files.write_bytes", full)
        check_writable(tmp_path / "new")
    with monkeypatch.context() as patched, pytest.raises(UserError, match="No space left on device"):
        patched.setattr(tempfile, "mkdtemp", full)
        check_writable(tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_fault_of_writing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write to /runs/x"), writing_to("/runs/x"):
        (tmp_path / "nowhere" / "file").write_text("")


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/x") == expand_home(Path("~/x")) == "/home/me/x"
    assert expand_home("a/~/x") == "a/~/x" and expand_home("~nobody-here") == "~nobody-here"
