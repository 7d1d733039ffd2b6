"""What this machine has, and how the process uses it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bimact import machine
from bimact.machine import usable_cores
from bimact.video import VideoWriter

_PROGRAM = """
import resource, sys
import torch
from bimact.machine import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(10):
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back at once")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 0.01 * faults["given back"]


_V2 = "0::{}\n"
_V1 = "4:memory:/docker/a1\n2:cpu,cpuacct:{}\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        (_V2.format("/"), {"cpu.max": "300000 100000"}, 3),
        (_V2.format("/"), {"cpu.max": "max 100000"}, 8),
        (_V2.format("/"), {"cpu.max": "150000 100000"}, 2),
        (_V2.format("/"), {"cpu.max": "10000 100000"}, 1),
        (_V2.format("/"), {"cpu.max": "3200000 100000"}, 8),
        (_V2.format("/"), {}, 8),
        (_V2.format("/"), {"cpu.max": "damaged"}, 8),
        (_V2.format("/a/b"), {"a/b/cpu.max": "400000 100000"}, 4),
        (_V2.format("/a/b"), {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        (_V2.format("/a/b"), {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2),
        (_V2.format("/a/b"), {"a/cpu.max": "600000 100000", "other/cpu.max": "100000 100000"}, 6),
        (_V2.format("/host/container"), {"cpu.max": "500000 100000"}, 5),
        (_V2.format("/../.."), {"cpu.max": "500000 100000"}, 5),
        (_V1.format("/docker/a1"), {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "50000"}, 5),
        (_V1.format("/docker/a1"), {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        (
            _V1.format("/docker/a1"),
            {f"cpu,cpuacct/docker/a1/cpu.cfs_{name}_us": value for name, value in (("quota", "20"), ("period", "10"))},
            2,
        ),
        ("1:name=systemd:/\n", {"cpu/cpu.cfs_quota_us": "100", "cpu/cpu.cfs_period_us": "100"}, 8),
        (
            "1:cpu:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "300", "cpu/cpu.cfs_period_us": "100", "unified/cpu.max": "max 100"},
            3,
        ),
        (None, {"cpu.max": "100000 100000"}, 8),
    ],
)
def test_cores_under_a_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str | None, files: dict[str, str], cores: int
) -> None:
    for name, content in files.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(f"{content}\n")
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "sys")
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    assert usable_cores() == cores


def test_cores_by_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "missing")
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux")
def test_writing_av1_leaves_the_scheduling_ordinary(tmp_path: Path) -> None:
    """SVT-AV1 makes the threads of a process that root runs real-time ones."""
    with VideoWriter(tmp_path / "a.mp4", 10, "libsvtav1", {"preset": "12"}) as video:
        for _ in range(3):
            video.add(np.zeros((64, 64, 3), np.uint8))
            assert {os.sched_getscheduler(int(t.name)) for t in Path("/proc/self/task").iterdir()} == {os.SCHED_OTHER}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
