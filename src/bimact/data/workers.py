"""Runs functions in child processes: in parallel, and protected against crashes of libraries on damaged files.

A child has a memory limit, ignores Ctrl-C (the main process handles it) and ends with its parent process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as JobTimeout
from typing import Any

import psutil
from pebble import ProcessExpired, ProcessPool

from bimact.data.formats import MODULES
from bimact.errors import UserError
from bimact.machine import usable_cores

_MEMORY = 8 << 30  # bytes that a child may allocate: far above what an episode needs
# What readers import, all of it: otherwise each child of each call would import it anew, which takes 0.2 to 0.4 s.
_PRELOADED = ["bimact.data.opening", *MODULES, "zarr", "PIL.Image"]
_SECONDS_TO_LOOK_FOR_PARENT = 2.0


def run_apart(function: Callable[..., Any], *args: Any, what: str, timeout: float = 300.0) -> Any:
    """Call a function in a child process.

    Args:
        function: at the top level of a module other than the main program; its arguments and result are pickled.
        what: subject of the error message if the child fails, such as a file's name.
        timeout: seconds after which the child counts as hanging.

    Raises:
        UserError: raised by the function; or if the child crashes, hangs or runs out of memory.
    """
    ((_, result),) = run_jobs(function, [args], describe=lambda *_: what, timeout=timeout, workers=1)
    return result


def run_jobs(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    *,
    describe: Callable[..., str],
    timeout: float,
    workers: int | None = None,
    keep_going: bool = False,
) -> Iterator[tuple[int, Any]]:
    """Call a function for each of many jobs in child processes.

    Args:
        function: at the top level of a module other than the main program; its arguments and results are pickled.
        jobs: the arguments of each call.
        describe: takes a job's arguments; returns the subject of the error message if the child fails.
        timeout: seconds after which a job counts as hanging.
        workers: number of child processes; None: one per core.
        keep_going: yield a `UserError` as the result of its job and continue with the others.

    Yields:
        (number of the job, its result) in order of completion.

    Raises:
        UserError: the first one of a job, or if a child crashes, hangs or runs out of memory; all jobs are stopped
            then.
    """
    if multiprocessing.current_process().daemon:  # a daemon may not have child processes
        for place, job in enumerate(jobs):
            try:
                done = function(*job)
            except UserError as error:
                if not keep_going:
                    raise
                done = error
            yield place, done
        return
    workers = min(workers or usable_cores(), max(1, len(jobs)))
    pool = ProcessPool(max_workers=workers, context=_context(), initializer=_start_child, initargs=(os.getpid(),))
    waiting = iter(range(len(jobs)))
    running: dict[Future[Any], int] = {}
    try:
        while True:
            while len(running) < 2 * workers and (number := next(waiting, None)) is not None:
                future: Future[Any] = pool.schedule(_guarded, args=(function, *jobs[number]), timeout=timeout)
                running[future] = number
            if not running:
                break
            finished = wait(running, return_when=FIRST_COMPLETED).done
            for future in sorted(finished, key=_has_failed):  # finished results first
                number = running.pop(future)
                try:
                    result = _result_of(future, describe(*jobs[number]), timeout)
                except UserError as error:
                    if not keep_going:
                        raise
                    result = error
                yield number, result
    finally:
        pool.stop()
        pool.join()


def _has_failed(future: Future[Any]) -> bool:
    return future.exception() is not None


def _result_of(future: Future[Any], what: str, timeout: float) -> Any:
    try:
        return future.result()
    except JobTimeout:
        raise UserError(
            f"{what}: reading takes more than {timeout:.0f} s; the file is damaged, or the disk slow"
        ) from None
    except MemoryError:
        raise UserError(
            f"{what}: reading asks for more than {_MEMORY / 1e9:.0f} GB of memory; the file is damaged"
        ) from None
    except ProcessExpired:
        raise UserError(f"{what}: reading it crashes the library of its format; the file is damaged") from None


def _guarded(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except UserError as error:
        # Without its cause, which may not be picklable.
        raise UserError(str(error), error.reason) from None


def _context() -> Any:
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    from bimact.data.fork_server import fork_server

    return fork_server(_PRELOADED)


def _start_child(main_process: int) -> None:
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "win32":
        # Locks created by libraries (numcodecs) are then unnamed; named ones would outlive a killed child.
        multiprocessing.set_start_method("fork", force=True)
    threading.Thread(target=_end_with, args=(main_process,), daemon=True).start()
    if sys.platform == "linux":
        import resource

        # Limits allocations only: memory-mapped files may be larger.
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with(main_process: int) -> None:
    """End this child when the main process has ended."""
    while psutil.pid_exists(main_process):
        time.sleep(_SECONDS_TO_LOOK_FOR_PARENT)
    os._exit(1)
