"""What `make setup` does about OpenGL: nothing where it works, install where it may, say how elsewhere."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "setup_opengl.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_opengl", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ran(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the script would have run; sudo without a password is refused."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=int(command == ["sudo", "-n", "true"]))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(script.shutil, "which", lambda name: f"/usr/bin/{name}")
    return commands


def _works(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *answers: bool) -> None:
    results = iter(answers)
    monkeypatch.setattr(script, "opengl_works", lambda: next(results))


def test_nothing_to_do(script: ModuleType, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    _works(script, monkeypatch, True)
    script.main()
    assert ran == []


def test_root_installs(script: ModuleType, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    _works(script, monkeypatch, False, True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    script.main()
    assert [command[2] for command in ran] == ["apt-get", "apt-get"]
    assert ran[-1][-3:] == ["libegl1", "libgl1-mesa-dri", "libopengl0"]


@pytest.mark.parametrize("has_apt", [True, False])
def test_others_are_told_how(
    script: ModuleType,
    ran: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_apt: bool,
) -> None:
    _works(script, monkeypatch, False, False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    if not has_apt:
        monkeypatch.setattr(script.shutil, "which", lambda name: None)
    script.main()
    assert not [command for command in ran if "apt-get" in command]
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "sudo apt-get install -y --no-install-recommends libegl1 libgl1-mesa-dri libopengl0" in said
