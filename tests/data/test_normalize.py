"""Statistics in one pass against NumPy's over everything at once; the transform and its inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bimact.data.normalize import STD_FLOOR, Normalizer, compute_statistics, relative_chunk_statistics


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


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile", "identity"])
def test_modes(mode: str) -> None:
    parts = [np.random.default_rng(seed).normal(seed, 2, (100 + seed, 3)).astype(np.float32) for seed in range(3)]
    rows = np.concatenate(parts)
    normalizer = Normalizer(3)
    normalizer.fit(compute_statistics(parts, quantiles=mode == "quantile"), mode)
    found = normalizer(torch.from_numpy(rows)).numpy()
    if mode == "mean_std":
        expected = (rows - rows.mean(0)) / rows.std(0)
    elif mode == "identity":
        expected = rows
    else:
        low, high = np.quantile(rows, (0.0, 1.0) if mode == "min_max" else (0.01, 0.99), axis=0)
        expected = 2 * (rows - low) / (high - low) - 1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalizer.inverse(torch.from_numpy(found)), torch.from_numpy(rows))


def test_a_joint_that_does_not_move_keeps_a_floor_in_each_mode() -> None:
    statistics = compute_statistics([np.full((10, 1), 3.0)], quantiles=True)
    for mode in ("min_max", "quantile"):
        center, scale = statistics.normalization(mode)
        assert center == pytest.approx(3) and scale == pytest.approx(STD_FLOOR)


def test_statistics_of_relative_chunks_are_those_of_all_windows() -> None:
    draw = np.random.default_rng(0)
    states = [draw.normal(size=(length, 4)).astype(np.float32) for length in (7, 3, 9)]
    actions = [draw.normal(size=(length, 3)).astype(np.float32) for length in (7, 3, 9)]
    relative_to, chunk_size = [2, -1, 0], 12
    windows: list[list[np.ndarray]] = [[] for _ in range(chunk_size)]
    for state, action in zip(states, actions):
        for now in range(len(action)):
            for step in range(min(chunk_size, len(action) - now)):
                future = action[now + step]
                windows[step].append(
                    np.array([future[0] - state[now][2], future[1], future[2] - state[now][0]], dtype=np.float64)
                )
    found = relative_chunk_statistics(states, actions, relative_to, chunk_size, quantiles=True)
    assert len(found) == chunk_size
    for step in range(9):
        rows = np.stack(windows[step])
        np.testing.assert_allclose(found[step].mean, rows.mean(0), atol=1e-6)
        np.testing.assert_allclose(found[step].std, np.maximum(rows.std(0), STD_FLOOR), atol=1e-6)
        np.testing.assert_allclose(found[step].quantiles, np.quantile(rows, (0.01, 0.99), axis=0), atol=1e-6)
    assert found[-1] is found[8]  # no episode has more steps
    normalizer = Normalizer(chunk_size, 3)
    normalizer.fit(found)
    assert torch.equal(normalizer.mean[4], torch.from_numpy(found[4].mean))
