"""What this machine has."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """CPU cores that this process may use: fewer than there are, under `taskset` or a cluster's scheduler."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
