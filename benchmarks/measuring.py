"""Timings of two sides in turn, their ratios, and what the machine can do at most."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "benchmarks"  # recordings and environments of peers


@dataclass(frozen=True)
class Figure:
    """The median of some measurements, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)} to {short(self.high)})"


def short(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@dataclass
class Row:
    """One line of the table of results.

    Attributes:
        what: the two things that are compared, or the thing that is measured.
        figure: their ratio, or a share.
        goal: what it should be, as "≥ 3"; None: nothing is asked.
        details: sentences with the absolute figures.
    """

    what: str
    figure: Figure
    goal: str | None = None
    details: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool | None:
        if self.goal is None:
            return None
        sign, number = self.goal.split()
        return self.figure.median >= float(number) if sign == "≥" else self.figure.median <= float(number)


class Side:
    """A process that sets itself up and then does a piece of work each time it is asked.

    It reads a line of JSON for each piece of work and answers with a line of JSON; in between it waits.

    Args:
        program: a script that calls `answer`.
        setup: what it needs to know, given as its only argument.
        python: the interpreter of its environment.
    """

    def __init__(self, program: Path, setup: Mapping[str, Any], python: str = sys.executable) -> None:
        self._process = subprocess.Popen(
            [python, str(program), json.dumps(dict(setup))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.setup_answer = self._answer()

    def do(self, **work: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(work) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print other things
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"{self._process.args} ended with status {self._process.wait()}")

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def in_turn(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Measurements of each side, taken one after the other in each round, so that a slow minute slows all."""
    results: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, values in zip(sides, results):
            values.append(side())
    return results


def ratios(over: Sequence[float], under: Sequence[float]) -> Figure:
    """Of each round."""
    return Figure.of([a / b for a, b in zip(over, under)])


def matrix_peak(seconds: float = 0.5, device: str = "cpu") -> float:
    """FLOP per second that this machine, or its GPU, sustains in large bf16 matrix products."""
    rates = []
    for size in (2048, 3072) if device == "cpu" else (4096, 8192):
        a, b = torch.randn(2, size, size, device=device).bfloat16()
        out = a @ b
        synchronize(device)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(1 if device == "cpu" else 20):
                torch.mm(a, b, out=out)
                count += 1
            synchronize(device)
        rates.append(2 * size**3 * count / (time.perf_counter() - began))
    return max(rates)


def synchronize(device: str) -> None:
    """Wait for what a GPU still computes."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
