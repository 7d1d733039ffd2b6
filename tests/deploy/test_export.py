"""Exported models, in a process of their own: after an export PyTorch's autograd cannot run in forked children."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("export_cases.py")


@pytest.mark.slow
def test_exported_models() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--show-capture=no", str(CASES)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=CASES.parents[2])
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
