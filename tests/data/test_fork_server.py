"""What children of the fork server have of the process that starts them: nothing that it does not send."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hdf5_files import write_aloha

_PROGRAM = """
from bimact.data.opening import open_dataset
print("lengths", open_dataset({dataset!r}, cache_dir={cache!r}).lengths.tolist())
"""


@pytest.mark.parametrize("way", ["file", "standard input", "-c"])
def test_programs_need_no_main_guard(way: str, tmp_path: Path) -> None:
    dataset = write_aloha(tmp_path / "aloha", (3, 2))
    program = _PROGRAM.format(dataset=str(dataset), cache=str(tmp_path / "cache"))
    (tmp_path / "program.py").write_text(program)
    command = {"file": ["program.py"], "standard input": ["-"], "-c": ["-c", program]}[way]
    result = subprocess.run(
        [sys.executable, *command], input=program, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "lengths [3, 2]"
    assert result.stdout.count("lengths") == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python always looks in the current folder")
def test_modules_that_lie_in_the_current_folder_are_not_run(tmp_path: Path) -> None:
    dataset = write_aloha(tmp_path / "aloha", (3, 2))
    trace = tmp_path / "trace"
    for name in ("inspect", "warnings", "multiprocessing", "numpy", "h5py", "json", "pickle", "bimact"):
        (dataset / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write('{name} ')\n")
    bimact = Path(sys.executable).parent / "bimact"
    command = [str(bimact), "convert", ".", str(tmp_path / "out"), "--to", "guide"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=dataset, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not trace.exists(), trace.read_text()


@pytest.mark.slow
def test_locks_of_libraries_leave_nothing_behind(tmp_path: Path) -> None:
    dataset = write_aloha(tmp_path / "aloha", (3, 2))
    bimact = Path(sys.executable).parent / "bimact"
    command = [str(bimact), "convert", str(dataset), str(tmp_path / "out"), "--to", "zarr"]  # numcodecs makes a lock
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "semaphore" not in result.stderr and "resource_tracker" not in result.stderr
