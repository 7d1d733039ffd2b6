"""What this machine has."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # of glibc's mallopt(3)


def usable_cores() -> int:
    """CPU cores that this process may use: fewer than there are, under `taskset` or a cluster's scheduler."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors give back, for those of the next training step.

    glibc asks the system for each large tensor anew, which hands out pages that it has to clear first. Elsewhere
    nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_TOP_PAD, 2**26)
        mallopt(_M_ARENA_MAX, 1)  # what a loading thread has freed, the next one may take
