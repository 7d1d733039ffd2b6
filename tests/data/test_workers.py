"""Functions in child processes, also such that crash, hang, or ask for too much memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import time

import numpy as np
import pytest

from bimact.data.workers import run_apart, run_jobs
from bimact.errors import UserError


def double(number: int) -> tuple[int, int]:
    time.sleep(0.01)
    return 2 * number, os.getpid()


def crash() -> None:
    ctypes.string_at(0)


def hang() -> None:
    time.sleep(60)


def take_memory() -> None:
    np.ones(1 << 40, np.uint8)


def refuse(number: int) -> None:
    raise UserError(f"file {number} is bad")


def err() -> None:
    raise ValueError("a fault of ours")


def test_all_jobs_are_done_by_several_children() -> None:
    results = dict(run_jobs(double, [(number,) for number in range(30)], describe=str, timeout=30, workers=2))
    assert {number: result for number, (result, _) in results.items()} == {n: 2 * n for n in range(30)}
    assert len({process for _, process in results.values()}) == 2
    assert os.getpid() not in {process for _, process in results.values()}


def test_no_jobs() -> None:
    assert list(run_jobs(double, [], describe=str, timeout=30)) == []


@pytest.mark.parametrize(
    "function, words",
    [
        (crash, "a.hdf5: reading it crashes the library of its format; the file is damaged"),
        (hang, "a.hdf5: reading takes more than 1 s"),
        (take_memory, "a.hdf5: reading asks for more than 9 GB of memory"),
    ],
)
def test_what_a_child_can_do_wrong(function: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run_apart(function, what="a.hdf5", timeout=1)  # type: ignore[arg-type]


def test_errors_come_through() -> None:
    with pytest.raises(UserError, match="file 3 is bad"):
        run_apart(refuse, 3, what="a.hdf5")
    with pytest.raises(ValueError, match="a fault of ours"):
        run_apart(err, what="a.hdf5")


def test_leaving_early_ends_the_children() -> None:
    jobs = run_jobs(double, [(number,) for number in range(1000)], describe=str, timeout=30, workers=2)
    _, (_, child) = next(jobs)
    jobs.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def _in_a_daemon(results: multiprocessing.Queue[object]) -> None:
    results.put(list(run_jobs(double, [(1,), (2,)], describe=str, timeout=30)))


def test_a_process_that_may_have_no_children_does_the_jobs_itself() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    daemon = context.Process(target=_in_a_daemon, args=(results,), daemon=True)
    daemon.start()
    assert results.get(timeout=60) == [(0, (2, daemon.pid)), (1, (4, daemon.pid))]
    daemon.join()


def _reader() -> int:
    ((_, (_, process)),) = run_jobs(double, [(1,)], describe=str, timeout=30)
    return process


def test_a_fork_of_a_process_that_had_children_has_its_own() -> None:
    """As a program that forks after it has opened a dataset."""
    own = _reader()
    context = multiprocessing.get_context("fork")
    readers = context.SimpleQueue()
    fork = context.Process(target=lambda: readers.put(_reader()))
    fork.start()
    fork.join(60)
    assert fork.exitcode == 0 and readers.get() not in (own, fork.pid, os.getpid())
