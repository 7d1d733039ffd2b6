"""One trial: a training process, monitored through its `metrics.jsonl`."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import psutil

from bimact.run_directory import CHECKPOINTS, METRICS, read_metrics
from bimact.sweep.study import HEARTBEAT, process_mark

LOG = "train.log"
_TO_SAVE = 120.0  # seconds until a training that saves its checkpoint is killed


@dataclass(frozen=True)
class Outcome:
    """How a training has ended: its exit status and the last line of its log."""

    status: int
    last_line: str

    @property
    def reason(self) -> str:
        if self.status >= 0:
            return self.last_line or f"it ended with status {self.status} and printed nothing"
        name = signal.Signals(-self.status).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"it was ended by {name}{hint}" + (f", its last line: {self.last_line}" if self.last_line else "")


class RunningTrial:
    """A trial with a running training.

    Args:
        trial: of Optuna.
        command: of the training.
        folder: of the trial.
        metric: its name in `metrics.jsonl`.
        environment: variables of the training besides those of this process.
    """

    def __init__(
        self, trial: optuna.Trial, command: Sequence[str], folder: Path, metric: str, environment: Mapping[str, str]
    ) -> None:
        self.trial = trial
        self.folder = folder
        self.values: list[float] = []
        self.is_pruned = False
        self._metric = metric
        self._size_seen = -1
        self._to_be_killed = math.inf
        self._next_beat = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},  # no output is lost
                start_new_session=True,  # Ctrl-C goes to the sweep, which passes it on
            )
        trial.set_user_attr("folder", folder.name)
        trial.set_user_attr("process", process_mark(psutil.Process(self._process.pid)))

    def new_values(self) -> list[tuple[int, float]]:
        """Values of the metric since the last call: (number of the value from 1, value)."""
        path = self.folder / METRICS
        if not path.exists() or path.stat().st_size == self._size_seen:
            return []
        self._size_seen = path.stat().st_size
        logged = [record[self._metric] for record in read_metrics(path) if record.get(self._metric) is not None]
        new = list(enumerate(logged, 1))[len(self.values) :]
        self.values += [value for _, value in new]
        return new

    def beat(self) -> None:
        """Write a heartbeat for the other processes of the study, from time to time."""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + HEARTBEAT
            self.trial.set_user_attr("alive", time.time())

    @property
    def is_stopping(self) -> bool:
        return not math.isinf(self._to_be_killed)

    def stop(self, is_bad: bool = False) -> None:
        """Ask the training to save a checkpoint and end; it is killed if that takes too long.

        Args:
            is_bad: it is pruned.
        """
        if not self.is_stopping:
            self.is_pruned = is_bad
            self._to_be_killed = time.monotonic() + _TO_SAVE
            self._process.terminate()

    def kill(self) -> None:
        """Kill the training and its child processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def outcome(self) -> Outcome | None:
        """How the training has ended; None while it runs."""
        if time.monotonic() > self._to_be_killed:
            self.kill()
        status = self._process.poll()
        return None if status is None else Outcome(status, self._last_line())

    def _last_line(self) -> str:
        with (self.folder / LOG).open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 10_000))
            lines = log.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def training_command(
    program: Path | None, config: Path, folder: Path, settings: Mapping[str, str], resume: bool
) -> list[str]:
    """The command of one training.

    Args:
        program: a Python script; None: `bimact train`.
        config: YAML.
        folder: run directory.
        settings: on top of the config.
        resume: whether to resume from the last checkpoint in the folder.
    """
    start = [sys.executable, str(program)] if program else [sys.executable, "-m", "bimact", "train"]
    options = ["--config", str(config), "--output_dir", str(folder)]
    resumed = ["--resume_from", str(folder)] if resume else []
    return [*start, *options, *resumed, *(f"--{name}={value}" for name, value in settings.items())]


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder has a checkpoint to resume from."""
    return any((folder / CHECKPOINTS).glob("act-train-*.pth"))
