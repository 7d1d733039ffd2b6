"""Statistics of pairs: published values, plain references, and simulated experiments for what has to hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln

from bimact.evaluation.paired import (
    Pairs,
    anytime_interval,
    evidence_against,
    holm,
    mcnemar_exact,
    newcombe_interval,
)

COUNTS = st.builds(Pairs, *[st.integers(0, 60)] * 4).filter(lambda pairs: pairs.scenes > 0)


def simulated(rate_a: float, rate_b: float, scenes: int, experiments: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Successes (experiments, scenes) of A and B; scenes differ in difficulty, so that pairs are correlated."""
    draw = np.random.default_rng(seed)
    common, own = draw.random((experiments, scenes, 1)), draw.random((experiments, scenes, 2))
    numbers = np.where(draw.random((experiments, scenes, 1)) < 0.5, common, own)
    return numbers[..., 0] < rate_a, numbers[..., 1] < rate_b


def test_counts() -> None:
    pairs = Pairs.of([True, True, False, False, True], [True, False, True, False, False])
    assert pairs == Pairs(both=1, only_a=2, only_b=1, neither=1)
    assert (pairs.scenes, pairs.difference) == (5, pytest.approx(0.2))
    with pytest.raises(ValueError, match="no pairs"):
        Pairs.of([True], [])


def test_newcombe_published() -> None:
    # Fagerland, Lydersen and Laake (2013), Statistics in Medicine 32, 2850-2875: airway hyper-responsiveness.
    assert newcombe_interval(Pairs(1, 1, 7, 12)) == pytest.approx((-0.507, -0.026), abs=5e-4)


@given(COUNTS)
def test_newcombe_is_an_interval_of_the_difference(pairs: Pairs) -> None:
    low, high = newcombe_interval(pairs)
    assert -1 <= low <= pairs.difference <= high <= 1
    swapped = newcombe_interval(Pairs(pairs.both, pairs.only_b, pairs.only_a, pairs.neither))
    assert swapped == pytest.approx((-high, -low))


def test_newcombe_covers() -> None:
    a, b = simulated(0.9, 0.8, 100, 1000, seed=0)
    intervals = [newcombe_interval(Pairs.of(one, other)) for one, other in zip(a, b)]
    covered = np.mean([low <= 0.1 <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.99


def test_mcnemar_is_a_fair_coin() -> None:
    assert mcnemar_exact(Pairs(50, 0, 0, 50)) == 1.0
    assert mcnemar_exact(Pairs(10, 5, 0, 3)) == pytest.approx(2 / 2**5)
    more = sum(math.comb(12, k) for k in range(9, 13)) / 2**12
    assert mcnemar_exact(Pairs(1, 9, 3, 7)) == pytest.approx(2 * more) == mcnemar_exact(Pairs(0, 3, 9, 0))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 200))
def test_evidence_is_robbins_mixture(only_a: int, only_b: int, concordant: int) -> None:
    closed = (only_a + only_b) * math.log(2) + betaln(only_a + 1, only_b + 1)
    pairs = Pairs(concordant, only_a, only_b, concordant)
    assert math.log(evidence_against(pairs)) == pytest.approx(closed, abs=1e-6)


@pytest.mark.parametrize("difference", [-0.6, 0.0, 0.35])
def test_evidence_is_a_martingale(difference: float) -> None:
    """After any start, the mean of the next wealth is the present one, whatever the share of concordant pairs."""
    start = Pairs(3, 4, 1, 2)
    steps = [Pairs(3, 5, 1, 2), Pairs(3, 4, 2, 2), Pairs(4, 4, 1, 2)]
    for concordant in (0.0, 0.2, 0.6 * (1 - abs(difference))):
        only_a = (1 - concordant + difference) / 2
        chances = (only_a, only_a - difference, concordant)
        following = sum(p * evidence_against(pairs, difference) for p, pairs in zip(chances, steps))
        assert following == pytest.approx(evidence_against(start, difference), rel=1e-9)


def _first_stops(a: np.ndarray, b: np.ndarray, rejects: Callable[[Pairs], bool]) -> np.ndarray:
    """At which scene a test first says that A and B differ, if it is looked at after each; 0: never."""
    only_a, only_b = np.cumsum(a & ~b, axis=1), np.cumsum(b & ~a, axis=1)
    seen = np.unique(np.stack([only_a.ravel(), only_b.ravel()]), axis=1)
    rejected = np.zeros(seen.max(axis=1) + 1, dtype=bool)
    for one, other in seen.T:
        rejected[one, other] = rejects(Pairs(0, int(one), int(other), 0))
    stops = rejected[only_a, only_b]
    return np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, 0)


def _is_evident(pairs: Pairs) -> bool:
    return evidence_against(pairs) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_sequential_false_positives(rate: float) -> None:
    """2,000 experiments of two equal policies, looked at after each of up to 200 scenes."""
    experiments = simulated(rate, rate, 200, 2000, seed=1)
    assert (_first_stops(*experiments, _is_evident) > 0).mean() <= 0.05
    # Looking again and again at a test for a fixed number of scenes is not valid.
    assert (_first_stops(*experiments, lambda pairs: mcnemar_exact(pairs) <= 0.05) > 0).mean() > 0.05


def test_sequential_stops_early() -> None:
    stops = _first_stops(*simulated(0.9, 0.6, 200, 500, seed=2), _is_evident)
    assert (stops > 0).mean() > 0.95
    assert np.median(stops[stops > 0]) < 80


def test_anytime_interval_covers_at_the_worst_time() -> None:
    """The difference is in the interval after each scene at once, in 95% of experiments."""
    a, b = simulated(0.8, 0.6, 100, 500, seed=3)
    difference, missed = 0.2, 0
    for one, other in zip(a, b):
        counts = np.cumsum([one & other, one & ~other, other & ~one, ~one & ~other], axis=1).T
        missed += any(evidence_against(Pairs(*map(int, count)), difference) >= 20 for count in counts[::5])
    assert missed / 500 <= 0.05
    low, high = anytime_interval(Pairs(60, 25, 5, 10))
    assert 0 < low < 0.2 < high < 0.5
    fixed_low, fixed_high = newcombe_interval(Pairs(60, 25, 5, 10))
    assert low < fixed_low and fixed_high < high


def test_anytime_interval_and_test_agree() -> None:
    for pairs in (Pairs(20, 9, 0, 20), Pairs(20, 9, 3, 20), Pairs(20, 0, 0, 20)):
        low, high = anytime_interval(pairs)
        assert (evidence_against(pairs) >= 20) == (not low <= 0 <= high)
    with pytest.raises(ValueError, match="below 1"):
        evidence_against(Pairs(1, 1, 1, 1), 1.0)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.6]) == [1.0, 1.0]
