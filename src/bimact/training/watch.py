"""Monitoring of a run: divergence of the loss, times, the live display, requests to stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from bimact.errors import UserError

Item = TypeVar("Item")

# SLURM announces a preemption by SIGTERM, or by the signal that `--signal` names. Windows has the first two alone.
STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]

_FLOOR, _OVER_FIRST, _OVER_LOWEST = 10.0, 3.0, 100.0


class LossWatch:
    """Stops a run whose loss is NaN or Inf, or has exploded.

    Exploded means: over 10, over 3 times the first step's and over 100 times the lowest mean of some steps.
    """

    def __init__(self) -> None:
        self.first = self.lowest = math.inf

    def check(self, losses: list[Tensor], last_step: int) -> None:
        """Check the losses (3,) of some consecutive steps, the last of which is `last_step`.

        Raises:
            UserError: naming the first bad step and what to try.
        """
        if not losses:
            return
        totals = torch.stack(losses)[:, 0].tolist()
        advice = "try a lower lr, check the data for wrong values, or a larger batch_size; the last checkpoint is kept"
        for offset, loss in enumerate(totals):
            step = last_step - len(totals) + 1 + offset
            if not math.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {step}: {advice}")
        mean = sum(totals) / len(totals)
        if math.isinf(self.first):
            self.first = self.lowest = totals[0]
        if mean > max(_FLOOR, _OVER_FIRST * self.first, _OVER_LOWEST * self.lowest):
            raise UserError(
                f"the loss has exploded to {mean:.3g} at step {last_step} (lowest {self.lowest:.3g}): {advice}"
            )
        self.lowest = min(self.lowest, mean)

    def state_dict(self) -> dict[str, float]:
        return {"first": self.first, "lowest": self.lowest}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.first, self.lowest = state["first"], state["lowest"]


class StopRequest:
    """Whether the training was requested to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_at_step_end(insist: bool = True) -> Iterator[StopRequest]:
    """Ctrl-C, SIGTERM or the loss of the terminal requests a stop, which takes effect between two steps.

    Signals that are ignored, as under `nohup`, stay ignored.

    Args:
        insist: a second signal raises KeyboardInterrupt immediately. Not with several processes: their launcher
            forwards a signal that the terminal has already sent to each.
    """
    stop = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested and insist:
            raise KeyboardInterrupt
        stop.requested = True

    if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
        yield stop
        return
    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, ask) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StepTimes:
    """Seconds per step and the fraction of time spent waiting for data, since the last `take`."""

    def __init__(self) -> None:
        self._began = self._since = time.perf_counter()
        self._waited = 0.0
        self._steps = 0

    def measure_waiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            yield batch

    def step_done(self) -> None:
        self._steps += 1

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    def rates(self) -> dict[str, float]:
        passed = max(time.perf_counter() - self._since, 1e-9)
        return {
            "steps_per_second": self._steps / passed,
            "time_per_batch": passed / max(1, self._steps),
            "data_wait_share": self._waited / passed,
        }

    def take(self) -> dict[str, float]:
        """The rates since the last call, and reset them."""
        rates = self.rates()
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0
        return rates


class TrainingDisplay:
    """On a terminal, a live line below the log: progress, time left, steps per second, time spent waiting for data."""

    def __init__(self, step: int, total_steps: int, is_main_process: bool) -> None:
        console = Console()
        self._live: Progress | None = None
        if console.is_terminal and is_main_process:
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps ·"),
                TimeElapsedColumn(),
                TextColumn("· left"),
                TimeRemainingColumn(),
                TextColumn("· {task.fields[rate]}"),
            )
            self._live = Progress(*columns, console=console)
            self._task = self._live.add_task("training", total=total_steps, completed=step, rate="")

    def step_done(self, times: StepTimes) -> None:
        if self._live is not None:
            rates = times.rates()
            self._live.update(
                self._task,
                advance=1,
                rate=f"{rates['steps_per_second']:.2f} steps/s, {rates['data_wait_share']:.0%} waiting for data",
            )

    def __enter__(self) -> TrainingDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
