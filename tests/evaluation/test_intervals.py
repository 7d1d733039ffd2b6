"""Wilson's interval against published values, and what any interval of a proportion has to keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bimact.evaluation.intervals import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 857–872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_z_sets_the_confidence() -> None:
    low, high = wilson_interval(45, 50)
    assert low < wilson_interval(45, 50, z=1.0)[0] < 0.9 < wilson_interval(45, 50, z=1.0)[1] < high
    assert wilson_interval(45, 50, z=0.0) == pytest.approx((0.9, 0.9))


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    trials = draw(st.integers(1, 100_000))
    return draw(st.integers(0, trials)), trials


@given(counts())
def test_holds_the_rate_and_stays_a_share(count: tuple[int, int]) -> None:
    successes, trials = count
    low, high = wilson_interval(successes, trials)
    assert 0 <= low < high <= 1
    assert low - 1e-12 <= successes / trials <= high + 1e-12


@given(counts(), st.integers(2, 50))
def test_more_trials_narrow_it(count: tuple[int, int], factor: int) -> None:
    successes, trials = count
    low, high = wilson_interval(successes, trials)
    narrow_low, narrow_high = wilson_interval(factor * successes, factor * trials)
    assert narrow_high - narrow_low < high - low


@given(counts())
def test_failures_mirror_successes(count: tuple[int, int]) -> None:
    successes, trials = count
    low, high = wilson_interval(trials - successes, trials)
    assert wilson_interval(successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5), (1, -3)])
def test_no_proportion_is_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="is no proportion"):
        wilson_interval(successes, trials)
