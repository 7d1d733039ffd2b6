"""Starts child processes quickly; they inherit nothing from this process: no threads, no GPU, no main program."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

_LOCK = threading.Lock()

# A forked child is not the parent of this process's server, which it could neither watch nor end: it starts its own.
os.register_at_fork(after_in_child=forkserver.ensure_running.__self__.__init__)  # type: ignore[attr-defined]


def fork_server(modules: Sequence[str]) -> ForkServerContext:
    """The fork server of this process; it is started if necessary.

    Args:
        modules: imported before its children start.
    """
    context = _Context()
    context.set_forkserver_preload(list(modules))
    with _LOCK, _no_modules_of_the_current_folder():
        forkserver.ensure_running()
    return context


@contextmanager
def _no_modules_of_the_current_folder() -> Iterator[None]:
    """Python processes started inside the block import nothing from the working directory, which may be untrusted.

    Effective from Python 3.11.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextmanager
def without_main_program() -> Iterator[None]:
    """Processes started inside the block do not run the main program again: it needs no `if __name__ == "__main__"`.

    `multiprocessing` takes the program from `sys.modules["__main__"]`.
    """
    with _LOCK:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


class _Process(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        with without_main_program():
            return ForkServerProcess._Popen(process_obj)


class _Context(ForkServerContext):
    Process = _Process
