"""Resources of this machine."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # of glibc's mallopt(3)

_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16", "avx512f": "AVX-512", "avx2": "AVX2"}


def usable_cores() -> int:
    """CPU cores that this process may use: fewer than there are under `taskset`, a scheduler or a container's quota."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13, which also takes -X cpu_count
        cores = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(quota)) for quota in _cpu_quotas(_CGROUPS, _OWN_CGROUPS))])


def cpu_name() -> str:
    """The CPU's own name, as the system tells it, and its fastest instructions for matrix products."""
    known: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            known.setdefault(name.strip(), value.strip())
    name = known.get("model name") or platform.processor() or platform.machine()
    flags = known.get("flags", "").split()
    return name + next((f" with {told}" for flag, told in _INSTRUCTIONS.items() if flag in flags), "")


def _cpu_quotas(root: Path, own: Path) -> Iterator[float]:
    """CPU quotas, in cores, of this process's control group and of all groups around it.

    Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and
    https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us and cpu.cfs_period_us of version 1).

    Args:
        root: where control groups are mounted, /sys/fs/cgroup.
        own: /proc/self/cgroup, a line `id:controllers:path` for each hierarchy; version 2 has no controllers there.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "cpu", root / controllers, root / "cpu,cpuacct"]
        else:
            continue
        # A container sees the host's path, and its own group mounted as the root: then only the root exists.
        group = PurePosixPath(path.lstrip("/")) if ".." not in path else PurePosixPath()
        for folder in {mount / part for mount in mounts for part in (group, *group.parents)}:
            try:
                if controllers == "":
                    quota, period = (folder / "cpu.max").read_text().split()
                else:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                if quota != "max" and int(quota) > 0:  # -1: no limit
                    yield int(quota) / int(period)
            except (OSError, ValueError, ZeroDivisionError):
                continue


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_scheduling() -> None:
    """Give all threads of this process the ordinary scheduling.

    SVT-AV1, when root runs it, gives its threads and the one that calls it real-time scheduling, which starves other
    processes and which child processes inherit.
    """
    if sys.platform != "linux":
        return
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208
        with suppress(OSError):  # it has ended
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors, for those of the next training step.

    By default, glibc returns it to the system, which clears each page before it hands it out again. Without glibc,
    nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_TOP_PAD, 2**26)
        mallopt(_M_ARENA_MAX, 1)  # memory that one loading thread has freed is available to the next
