"""Statistics in one pass against NumPy's over everything at once; the transform and its inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bimact.data.normalize import STD_FLOOR, Normalizer, compute_statistics


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any),
    st.floats(-1e4, 1e4),
    st.floats(1e-3, 1e3),
    st.integers(0, 100),
)
def test_statistics(sizes: list[int], offset: float, scale: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    parts = [(draw.normal(size=(size, 3)) * scale + offset).astype(np.float32) for size in sizes]
    everything = np.concatenate(parts).astype(np.float64)
    statistics = compute_statistics(parts)
    np.testing.assert_allclose(statistics.mean, everything.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics.std, np.maximum(everything.std(axis=0), STD_FLOOR), rtol=1e-4, atol=1e-7)


def test_a_joint_that_does_not_move_keeps_a_floor() -> None:
    statistics = compute_statistics([np.full((10, 1), 3.0)])
    assert statistics.std == pytest.approx(STD_FLOOR)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        compute_statistics([np.zeros((0, 2))])


def test_inverse_and_state_dict() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (50, 4))
    normalizer = Normalizer(4)
    normalizer.fit(compute_statistics([rows]))
    values = torch.as_tensor(rows, dtype=torch.float32)
    normalized = normalizer(values)
    torch.testing.assert_close(normalized.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std(dim=0, correction=0), torch.ones(4))
    torch.testing.assert_close(normalizer.inverse(normalized), values)
    assert set(normalizer.state_dict()) == {"mean", "std"}
