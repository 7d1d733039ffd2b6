"""Histograms that can be joined: exact counts of a dataset that is read in parts, in any order, once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_FINEST = 1024  # bins of a histogram while it grows
_SHOWN = 48  # bins at most of one that is shown
_LOWEST_EXPONENT = -1000  # of a bin's width: a denormal number is as good as 0


@dataclass(frozen=True)
class Histogram:
    """Counts of finite values in bins of equal width.

    A bin's width is a power of two and its edges are multiples of it, so that bins of any two histograms become each
    other's by joining neighbours: counts stay exact whatever the order.

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
        """Of finite values (N,), N ≥ 1.

        Args:
            lowest_exponent: 0 for whole numbers, which bins narrower than 1 would tear apart.
        """
        values = values.astype(np.float64)
        low, high = float(values.min()), float(values.max())
        spread = high / _FINEST - low / _FINEST
        # Wide enough for as many bins; and for numbers of bins that float64 holds exactly.
        exponents = [math.frexp(spread)[1] if spread > 0 else lowest_exponent]
        exponents += [math.frexp(max(abs(low), abs(high)))[1] - 40 if low or high else lowest_exponent]
        exponent = max(lowest_exponent, *exponents)
        numbers = np.floor(np.ldexp(values, -exponent)).astype(np.int64)
        first = int(numbers.min())
        return cls(exponent, first, np.bincount(numbers - first))._narrowed(_FINEST)

    def joined(self, other: Histogram) -> Histogram:
        """Of the values of both."""
        exponent = max(self.exponent, other.exponent)
        parts = self._at(exponent), other._at(exponent)
        while _count_of_bins(*parts) > _FINEST:
            exponent += 1
            parts = self._at(exponent), other._at(exponent)
        first = min(part.first for part in parts)
        counts = np.zeros(_count_of_bins(*parts), np.int64)
        for part in parts:
            counts[part.first - first :][: len(part.counts)] += part.counts
        return Histogram(exponent, first, counts)

    def shown(self) -> Histogram:
        """With as few bins as a picture needs."""
        return self._narrowed(_SHOWN)

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    @property
    def begin(self) -> float:
        """Where the first bin begins."""
        return self.first * self.width

    def _narrowed(self, most: int) -> Histogram:
        histogram = self
        while len(histogram.counts) > most:
            histogram = histogram._at(histogram.exponent + 1)
        return histogram

    def _at(self, exponent: int) -> Histogram:
        """With bins as wide as 2**exponent, which are no narrower than these."""
        shift = min(exponent - self.exponent, 62)  # as far as an int64 goes; numbers of bins are below 2**41
        first = self.first >> shift
        numbers = (np.arange(len(self.counts)) + self.first) >> shift
        counts = np.zeros(int(numbers[-1]) - first + 1, np.int64)
        np.add.at(counts, numbers - first, self.counts)
        return Histogram(exponent, first, counts)


def _count_of_bins(*parts: Histogram) -> int:
    return max(part.first + len(part.counts) for part in parts) - min(part.first for part in parts)
