"""A Python that has PyTorch and bimact loaded: what would take seconds to start is forked from it in a moment.

`WarmPython` serves a folder with the commands `python`, `bimact`, `torchrun` and `accelerate`. They pass their
arguments, environment, working directory and open files on to a process that is forked for them, and end with its
status.
"""

from __future__ import annotations

import atexit
import importlib
import json
import multiprocessing.util
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_COMMANDS = {
    "bimact": "bimact.cli",
    "torchrun": "torch.distributed.run",
    "accelerate": "accelerate.commands.accelerate_cli",
}
_PRELOADED = (
    *_COMMANDS.values(),
    "bimact.cli.train",
    "bimact.encoder.clip_vit",
    "bimact.encoder.conv",
    "bimact.encoder.pri3d",
    "bimact.encoder.timm_backbone",
    "bimact.evaluation.report",
    "bimact.evaluation.rollout",
    "bimact.sweep.run",
    "bimact.training.act_trainer",
    "torch.utils.tensorboard",
)

_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
arguments = sys.argv[1:]
if sys.argv[0].endswith("python"):
    while arguments[:1] == ["-u"]:
        arguments = arguments[1:]
    known = arguments and (arguments[0] in ("-c", "-m", "-") or not arguments[0].startswith("-"))
    if not known:
        os.execv("{python}", ["{python}", *arguments])
server = socket.socket(socket.AF_UNIX)
server.connect("\\0{address}")
request = dict(name=os.path.basename(sys.argv[0]), arguments=arguments, cwd=os.getcwd(), environment=dict(os.environ))
socket.send_fds(server, [b"."], [0, 1, 2])
server.sendall(json.dumps(request).encode())
server.shutdown(socket.SHUT_WR)
pid = int.from_bytes(server.recv(4), "big")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.killpg(pid, number))
status = server.recv(1)
sys.exit(status[0] if status else 1)
"""


class WarmPython:
    """Starts the process that is forked from, and writes the commands.

    Args:
        folder: gets `bin` with the commands.
    """

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        address = f"warm-python-{os.getpid()}-{id(self)}"  # abstract: the length of a path would be limited
        for name in ("python", *_COMMANDS):
            (self.bin / name).write_text(_CLIENT.format(python=sys.executable, address=address))
            (self.bin / name).chmod(0o755)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0{address}")
        listener.listen()  # who comes early waits
        alive, self._alive = os.pipe()  # ends with this process, however that ends
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno()), str(alive), str(self.bin / "python")],
            pass_fds=[listener.fileno(), alive],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        listener.close()
        os.close(alive)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that finds the commands, and whose `torchrun` starts others by them."""
        return {
            "PATH": f"{self.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHON_EXEC": str(self.bin / "python"),  # what torchrun starts
            "PET_STANDALONE": "1",  # torchrun's default port may be taken
        }

    def close(self) -> None:
        """End the process, and the commands that are still running."""
        os.close(self._alive)
        self._server.wait()


def _serve(listener: socket.socket, alive: int, shim: str) -> None:
    """Fork for each request: one process that carries it out, and one that waits to tell its status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the commands, which pass it on
    while alive not in _ready({listener.fileno(): select.POLLIN, alive: 0}):
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _attend(connection, alive, shim)
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _ready(events: dict[int, int]) -> set[int]:
    """Wait for one of the descriptors; the end of the other side is an event of each."""
    poll = select.poll()
    for descriptor, event in events.items():
        poll.register(descriptor, event)
    return {descriptor for descriptor, _ in poll.poll()}


def _attend(connection: socket.socket, alive: int, shim: str) -> NoReturn:
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as file:
        request = json.load(file)
    worker = os.fork()
    if worker == 0:
        os.setpgid(0, 0)  # a signal reaches what the command starts too, as from a terminal or torchrun
        signal.signal(signal.SIGINT, signal.default_int_handler)
        connection.close()
        os.close(alive)
        _carry_out(request, descriptors, shim)
    for descriptor in descriptors:
        os.close(descriptor)
    with suppress(OSError):
        connection.sendall(worker.to_bytes(4, "big"))
    ended = os.pidfd_open(worker)
    if ended not in _ready({ended: select.POLLIN, connection.fileno(): 0, alive: 0}):
        with suppress(ProcessLookupError):
            os.killpg(worker, signal.SIGKILL)  # as the command was, or with the tests
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    with suppress(OSError):
        connection.sendall(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def _carry_out(request: dict[str, Any], descriptors: list[int], shim: str) -> NoReturn:
    """Run a command to its end. What this process has inherited, such as temporary folders, it does not clean up."""
    atexit._clear()
    status: Any = 1
    try:
        _become(request, descriptors, shim)
        status = 0
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]
        sys.stdout.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def _become(request: dict[str, Any], descriptors: list[int], shim: str) -> None:
    """Take over what belongs to the command, and run it as Python would."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.executable = shim  # what the command starts is warm too; multiprocessing keeps the real one
    name, arguments = request["name"], request["arguments"]
    sys.path[0] = str(Path(shim).parent)
    if name in _COMMANDS:
        sys.argv = [name, *arguments]
        sys.exit(importlib.import_module(_COMMANDS[name]).main())
    form, rest = arguments[0], arguments[1:]
    if form == "-m":
        sys.argv, sys.path[0] = rest, request["cwd"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif form in ("-c", "-"):
        code = rest.pop(0) if form == "-c" else sys.stdin.read()
        sys.argv, sys.path[0] = [form, *rest], request["cwd"]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = arguments, str(Path(form).resolve().parent)
        runpy.run_path(form, run_name="__main__")


def _main() -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in _PRELOADED:
        importlib.import_module(name)
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])


if __name__ == "__main__":
    _main()
