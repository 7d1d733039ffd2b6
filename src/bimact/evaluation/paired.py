"""Statistics of two policies on the same scenes: exact McNemar test, Newcombe's interval, a test that may stop early.

Each pair of rollouts is of one scene; discordant pairs, in which one policy alone succeeds, decide between the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bimact.evaluation.intervals import wilson_interval

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)


@dataclass(frozen=True)
class Pairs:
    """Counts of scenes by which policy succeeded.

    Attributes:
        both: scenes in which A and B succeeded.
        only_a: those in which A alone did.
        only_b: those in which B alone did.
        neither: those in which none did.
    """

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def of(cls, a: Sequence[bool], b: Sequence[bool]) -> Pairs:
        """Counts of two lists over the same scenes.

        Raises:
            ValueError: if they differ in length.
        """
        if len(a) != len(b):
            raise ValueError(f"{len(a)} and {len(b)} rollouts are no pairs")
        first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
        counts = (first & second, first & ~second, ~first & second, ~first & ~second)
        return cls(*(int(count.sum()) for count in counts))

    @property
    def scenes(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Success rate of A minus that of B."""
        return (self.only_a - self.only_b) / self.scenes


def mcnemar_exact(pairs: Pairs) -> float:
    """Two-sided p-value of McNemar's exact test (1947): a fair coin for each discordant pair; 1 without any."""
    from scipy.stats import binomtest  # takes a second to import, which rollouts do not spend

    discordant = pairs.only_a + pairs.only_b
    return float(binomtest(pairs.only_a, discordant).pvalue) if discordant else 1.0


def newcombe_interval(pairs: Pairs, z: float = 1.959964) -> tuple[float, float]:
    """Interval of the difference of two paired success rates, A minus B, 95% by default.

    Source: Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10: Wilson's intervals of both rates, combined
    by the correlation of the pairs with its continuity correction.

    Raises:
        ValueError: without a scene.
    """
    n = pairs.scenes
    succeeded_a, succeeded_b = pairs.both + pairs.only_a, pairs.both + pairs.only_b
    rate_a, rate_b = succeeded_a / max(n, 1), succeeded_b / max(n, 1)
    low_a, high_a = wilson_interval(succeeded_a, n, z)
    low_b, high_b = wilson_interval(succeeded_b, n, z)
    margins = succeeded_a * (n - succeeded_a) * succeeded_b * (n - succeeded_b)
    covariance: float = pairs.both * pairs.neither - pairs.only_a * pairs.only_b
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    correlation = covariance / math.sqrt(margins) if margins else 0.0

    def half(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    low = pairs.difference - half(rate_a - low_a, high_b - rate_b)
    high = pairs.difference + half(high_a - rate_a, rate_b - low_b)
    return max(low, -1.0), min(high, 1.0)


def evidence_against(pairs: Pairs, difference: float = 0.0) -> float:
    """Evidence against a difference of the success rates, as an e-value: below 1 on average if it is the true one.

    Source: Waudby-Smith and Ramdas (2024), Journal of the Royal Statistical Society B 86, 1-27 (arXiv:2010.09686),
    section 4: the wealth of a gambler who bets on x = (1 + A's success - B's success) / 2, in [0, 1], against the
    mean (1 + difference) / 2. The bets are a uniform mixture over all that cannot go bankrupt, which for a
    difference of 0 is Robbins' mixture for a fair coin (Annals of Mathematical Statistics 41, 1397-1409, 1970). With a
    true mean the wealth is a non-negative martingale that starts at 1: the probability that it ever reaches 1/α is at
    most α (Ville's inequality), so it may be looked at after each pair, and an experiment may stop when it is reached.

    Args:
        pairs: so far.
        difference: above -1 and below 1.

    Raises:
        ValueError: for another difference.
    """
    if not -1 < difference < 1:
        raise ValueError(f"the difference is {difference}, it has to be above -1 and below 1")
    mean = (1 + difference) / 2
    lowest, highest = -1 / (1 - mean), 1 / mean
    # A mixture over the nodes of Gauss's quadrature: its weights are positive, so it is a mixture in its own right, and
    # equal to the uniform one up to 127 pairs.
    bets = (lowest + highest) / 2 + (highest - lowest) / 2 * _NODES
    counts = ((pairs.only_a, 1.0), (pairs.both + pairs.neither, 0.5), (pairs.only_b, 0.0))
    log_wealth = sum(count * np.log1p(bets * (value - mean)) for count, value in counts)
    largest = float(np.max(log_wealth))
    return float(np.exp(min(largest, 700.0)) * (_WEIGHTS / 2 * np.exp(log_wealth - largest)).sum())


def anytime_interval(pairs: Pairs, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference that holds whenever the experiment stops: what there is little evidence against.

    It is wider than `newcombe_interval`, which holds for a number of scenes that was fixed before.
    """
    candidates = np.linspace(-0.9995, 0.9995, 4000)
    kept = [value for value in candidates if evidence_against(pairs, float(value)) < 1 / (1 - confidence)]
    return (float(kept[0]), float(kept[-1])) if kept else (pairs.difference, pairs.difference)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that all of them hold together (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
