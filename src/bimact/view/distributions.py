"""How the values of state and action are distributed over a dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bimact.data.source import Source
from bimact.data.workers import run_jobs
from bimact.view.content import read_vectors
from bimact.view.histogram import Histogram

_EPISODES_A_JOB = 16  # at least
_JOBS = 64  # at most: each takes the whole list of episodes to a child
_SECONDS_A_JOB = 600.0


@dataclass(frozen=True)
class Distribution:
    """Of one dimension.

    Attributes:
        count: finite values.
        nonfinite: values that are NaN or infinite.
        low, high, total, squares: of the finite values: smallest, largest, sum, sum of squares.
        histogram: of the finite values; None: there are none.
    """

    count: int
    nonfinite: int
    low: float
    high: float
    total: float
    squares: float
    histogram: Histogram | None

    @classmethod
    def of(cls, values: np.ndarray) -> Distribution:
        """Of values (N,)."""
        finite = values[np.isfinite(values)].astype(np.float64)
        if len(finite) == 0:
            return cls(0, len(values), math.inf, -math.inf, 0.0, 0.0, None)
        return cls(
            count=len(finite),
            nonfinite=len(values) - len(finite),
            low=float(finite.min()),
            high=float(finite.max()),
            total=float(finite.sum()),
            squares=float((finite**2).sum()),
            histogram=Histogram.of(finite),
        )

    def joined(self, other: Distribution) -> Distribution:
        """Of the values of both."""
        if self.histogram is None or other.histogram is None:
            histogram = self.histogram or other.histogram
        else:
            histogram = self.histogram.joined(other.histogram)
        return Distribution(
            count=self.count + other.count,
            nonfinite=self.nonfinite + other.nonfinite,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            total=self.total + other.total,
            squares=self.squares + other.squares,
            histogram=histogram,
        )

    def content(self) -> dict[str, Any]:
        """For the page."""
        if self.histogram is None:
            return {"count": 0, "nonfinite": self.nonfinite}
        mean = self.total / self.count
        return {
            "count": self.count,
            "nonfinite": self.nonfinite,
            "low": self.low,
            "high": self.high,
            "mean": mean,
            "deviation": math.sqrt(max(0.0, self.squares / self.count - mean**2)),
            **histogram_content(self.histogram),
        }


def histogram_content(histogram: Histogram) -> dict[str, Any]:
    """For the page."""
    shown = histogram.shown()
    return {"begin": shown.begin, "width": shown.width, "counts": shown.counts.tolist()}


@dataclass(frozen=True)
class Distributions:
    """Of each dimension of the state and of the action."""

    state: list[Distribution]
    action: list[Distribution]

    def joined(self, other: Distributions) -> Distributions:
        return Distributions(
            [one.joined(more) for one, more in zip(self.state, other.state)],
            [one.joined(more) for one, more in zip(self.action, other.action)],
        )

    def content(self) -> dict[str, Any]:
        """For the page."""
        return {
            "state": [distribution.content() for distribution in self.state],
            "action": [distribution.content() for distribution in self.action],
        }


def read_distributions(source: Source) -> Iterator[tuple[int, Distributions]]:
    """Read state and action of all episodes in child processes.

    Yields:
        (episodes that are read by now, the distributions of them).

    Raises:
        UserError: if one cannot be read.
    """
    count = len(source.episodes)
    each = max(_EPISODES_A_JOB, math.ceil(count / _JOBS))
    jobs = [(source, begin, min(begin + each, count)) for begin in range(0, count, each)]
    done, whole = 0, None
    for number, part in run_jobs(_read_part, jobs, describe=_describe, timeout=_SECONDS_A_JOB):
        whole = part if whole is None else whole.joined(part)
        done += jobs[number][2] - jobs[number][1]
        yield done, whole


def _read_part(source: Source, begin: int, end: int) -> Distributions:
    parts = [read_vectors(source, episode) for episode in range(begin, end)]
    state, action = (np.concatenate(vectors) for vectors in zip(*parts))
    return Distributions(*([Distribution.of(values) for values in vectors.T] for vectors in (state, action)))


def _describe(source: Source, begin: int, end: int) -> str:
    return f"{source.path}, episodes {begin} to {end - 1}"
