"""Distributions of the values of state and action over a dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bimact.data.source import Source
from bimact.data.workers import run_jobs
from bimact.view.content import read_vectors

_FINEST = 1024  # bins of a histogram while it grows
_SHOWN = 48  # maximum number of displayed bins
_LOWEST_EXPONENT = -1000  # of a bin's width: a denormal number counts as 0

_EPISODES_PER_JOB = 16  # at least
_JOBS = 64  # at most: each sends the whole list of episodes to a child process
_SECONDS_PER_JOB = 600.0


@dataclass(frozen=True)
class Histogram:
    """Counts of finite values in bins of equal width, of a dataset that is read in parts, in any order, once.

    A bin's width is a power of two and its edges are multiples of it, so the bins of any two histograms can be made
    equal by merging neighbours: counts are exact in any order.

    Attributes:
        exponent: bins are 2**exponent wide.
        first: number of the first bin; bin n begins at n · 2**exponent.
        counts: (B,) int64.
    """

    exponent: int
    first: int
    counts: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, lowest_exponent: int = _LOWEST_EXPONENT) -> Histogram:
        """Histogram of finite values (N,), N ≥ 1.

        Args:
            lowest_exponent: 0 for whole numbers, for which bins narrower than 1 make no sense.
        """
        values = values.astype(np.float64)
        low, high = float(values.min()), float(values.max())
        spread = high / _FINEST - low / _FINEST
        # Wide enough for that many bins, and for bin numbers that float64 represents exactly.
        exponents = [math.frexp(spread)[1] if spread > 0 else lowest_exponent]
        exponents += [math.frexp(max(abs(low), abs(high)))[1] - 40 if low or high else lowest_exponent]
        exponent = max(lowest_exponent, *exponents)
        numbers = np.floor(np.ldexp(values, -exponent)).astype(np.int64)
        first = int(numbers.min())
        return cls(exponent, first, np.bincount(numbers - first)).narrowed(_FINEST)

    def joined(self, other: Histogram) -> Histogram:
        """Histogram of the values of both."""
        exponent = max(self.exponent, other.exponent)
        while True:
            parts = self._at(exponent), other._at(exponent)
            first = min(part.first for part in parts)
            bins = max(part.first + len(part.counts) for part in parts) - first
            if bins <= _FINEST:
                break
            exponent += 1
        counts = np.zeros(bins, np.int64)
        for part in parts:
            counts[part.first - first :][: len(part.counts)] += part.counts
        return Histogram(exponent, first, counts)

    def narrowed(self, most: int = _SHOWN) -> Histogram:
        """The histogram with neighbouring bins merged down to a maximum number of bins."""
        histogram = self
        while len(histogram.counts) > most:
            histogram = histogram._at(histogram.exponent + 1)
        return histogram

    def _at(self, exponent: int) -> Histogram:
        """The same with bins of width 2**exponent, at least the present width."""
        shift = min(exponent - self.exponent, 62)  # the limit of int64; numbers of bins are below 2**41
        first = self.first >> shift
        numbers = (np.arange(len(self.counts)) + self.first) >> shift
        counts = np.zeros(int(numbers[-1]) - first + 1, np.int64)
        np.add.at(counts, numbers - first, self.counts)
        return Histogram(exponent, first, counts)

    def content(self) -> dict[str, Any]:
        """For the page."""
        shown = self.narrowed()
        width = math.ldexp(1.0, shown.exponent)
        return {"begin": shown.first * width, "width": width, "counts": shown.counts.tolist()}


@dataclass(frozen=True)
class Distribution:
    """Distribution of one dimension.

    Attributes:
        count: number of finite values.
        nonfinite: number of values that are NaN or Inf.
        low, high, total, squares: minimum, maximum, sum, and sum of squares of the finite values.
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
        """Distribution of values (N,)."""
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
        """Distribution of the values of both."""
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
            **self.histogram.content(),
        }


Distributions = dict[str, list[Distribution]]  # "state" and "action" → of each dimension


def read_distributions(source: Source) -> Iterator[tuple[int, Distributions]]:
    """Read state and action of all episodes in child processes.

    Yields:
        (number of episodes read so far, their distributions).

    Raises:
        UserError: if an episode cannot be read.
    """
    count = len(source.episodes)
    each = max(_EPISODES_PER_JOB, math.ceil(count / _JOBS))
    jobs = [(source, begin, min(begin + each, count)) for begin in range(0, count, each)]
    done, total = 0, None
    for number, part in run_jobs(_read_part, jobs, describe=_describe, timeout=_SECONDS_PER_JOB):
        if total is None:
            total = part
        else:
            total = {what: [one.joined(more) for one, more in zip(of, part[what])] for what, of in total.items()}
        done += jobs[number][2] - jobs[number][1]
        yield done, total


def _read_part(source: Source, begin: int, end: int) -> Distributions:
    parts = [read_vectors(source, episode) for episode in range(begin, end)]
    joined = (np.concatenate(vectors) for vectors in zip(*parts))
    return {what: [Distribution.of(values) for values in of.T] for what, of in zip(("state", "action"), joined)}


def _describe(source: Source, begin: int, end: int) -> str:
    return f"{source.path}, episodes {begin} to {end - 1}"
