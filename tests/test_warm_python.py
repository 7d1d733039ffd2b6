"""Commands of `WarmPython` end with what has started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import LONG
from warm_python import WarmPython

# The number of its process, and a long wait.
CODE = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


def ends(pid: int) -> bool:
    for _ in range(600):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_killed_command(warm: WarmPython) -> None:
    with subprocess.Popen([warm.bin / "python", "-c", CODE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    assert ends(pid)


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="starts PyTorch three times in each case: make test-long")
@pytest.mark.parametrize("options", ["", "-n 1"])
@pytest.mark.parametrize("sent", ["SIGINT", "SIGKILL"])
def test_interrupted_tests(tmp_path: Path, options: str, sent: str) -> None:
    """A test that waits for a command, in a session of its own, when Ctrl-C comes, or its process is killed."""
    folder = Path(__file__).parent
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(folder)!r})\nexec(open({str(folder / 'conftest.py')!r}).read())\n"
    )
    (tmp_path / "test_long.py").write_text(
        "import os, subprocess\n"
        "def test_long(warm):\n"
        f"    command = [warm.bin / 'python', '-c', {CODE!r}]\n"
        "    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:\n"
        "        pid = process.stdout.readline().strip()\n"
        f"        open({str(tmp_path / 'new')!r}, 'w').write(f'{{os.getpid()}} {{warm._server.pid}} {{pid}}')\n"
        f"        os.rename({str(tmp_path / 'new')!r}, {str(tmp_path / 'started')!r})\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options.split(), str(tmp_path)]
    output = (tmp_path / "output").open("w")
    process = psutil.Popen(command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True)
    while not (tmp_path / "started").exists():
        assert process.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.05)
    started = process.children(recursive=True)
    (os.killpg if sent == "SIGINT" else os.kill)(process.pid, signal.Signals[sent])
    process.wait(60)
    pids = {*map(int, (tmp_path / "started").read_text().split()), *(child.pid for child in started)}
    assert [pid for pid in pids if not ends(pid)] == []
