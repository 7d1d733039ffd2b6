"""Real processes that start at once: children of the test process, which has all modules loaded."""

from __future__ import annotations

import functools
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

ROOT = Path(__file__).parents[1]
P = ParamSpec("P")


def in_child(work: Callable[[], object], output: Path | None = None) -> int:
    """Do something in a child process.

    Args:
        work: what to do; the child's status is 0 if it returns, that of `sys.exit`, or 1 after an error.
        output: file for what it prints; None: nowhere.

    Returns:
        the child's number, for `os.waitpid`.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        target = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def in_own_process(test: Callable[P, None]) -> Callable[P, None]:
    """A test that runs in a child, since what it does to its process would be felt by later tests."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with tempfile.NamedTemporaryFile() as output:
            child = in_child(lambda: test(*args, **kwargs), Path(output.name))
            assert os.waitpid(child, 0)[1] == 0, output.read().decode()

    return run


def start_script(
    arguments: list[str], cwd: Path, output: Path, environment: dict[str, str] | None = None, group: bool = False
) -> int:
    """Start `python scripts/train_act.py arguments…`, or another script, from a folder, as a child process.

    With `group` it leads a process group of its own.
    """

    def work() -> None:
        if group:
            os.setpgid(0, 0)
        os.chdir(cwd)
        os.environ.update(environment or {})
        sys.argv = arguments
        sys.path.insert(0, str((cwd / arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")

    return in_child(work, output)


def run_script(arguments: list[str], cwd: Path, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a script to its end; gives its exit status and all that it printed."""
    output = cwd / f".output-{len(list(cwd.glob('.output-*')))}"
    _, status = os.waitpid(start_script(arguments, cwd, output, environment), 0)
    return os.waitstatus_to_exitcode(status), output.read_text()


def project_copy(folder: Path) -> Path:
    """A folder that looks like the project's root, in which commands may write."""
    for name in ("scripts", "policy", "train", "configs", "demo_training.sh"):
        (folder / name).symlink_to(ROOT / name)
    return folder
