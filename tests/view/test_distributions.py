"""Histograms that are joined: the counts are those of all values at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bimact.view.distributions import Histogram

VALUES = st.one_of(
    st.floats(-1e150, 1e150).filter(lambda value: value == 0 or abs(value) > 1e-150),  # so that none underflows
    st.floats(-1, 1, width=32),
    st.integers(-1000, 1000).map(float),
    st.sampled_from([0.0, 0.1, -1e-150]),
)


def assert_counts(histogram: Histogram, values: np.ndarray, most: int) -> None:
    edges = [np.ldexp(float(histogram.first + n), histogram.exponent) for n in range(len(histogram.counts) + 1)]
    expected = [int(((low <= values) & (values < high)).sum()) for low, high in pairwise(edges)]
    assert histogram.counts.tolist() == expected
    assert sum(expected) == len(values)
    assert len(expected) <= most
    assert expected[0] > 0 and expected[-1] > 0


@settings(max_examples=60)
@given(st.lists(st.lists(VALUES, min_size=1, max_size=8), min_size=1, max_size=5))
def test_joined_histograms_count_each_value_once(parts: list[list[float]]) -> None:
    arrays = [np.array(part) for part in parts]
    histograms = [Histogram.of(array) for array in arrays]
    whole = histograms[0]
    for histogram in histograms[1:]:
        whole = whole.joined(histogram)
    values = np.concatenate(arrays)
    assert_counts(whole, values, 1024)
    assert_counts(whole.narrowed(), values, 48)


def test_bins_are_fine_where_values_differ() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    shown = Histogram.of(values[:100]).joined(Histogram.of(values[100:])).narrowed()
    assert 20 < len(shown.counts) <= 48


def test_whole_numbers_have_bins_of_whole_numbers() -> None:
    histogram = Histogram.of(np.array([3, 4, 4, 9]), lowest_exponent=0)
    assert histogram.content() == {"begin": 3, "width": 1, "counts": [1, 2, 0, 0, 0, 0, 1]}
