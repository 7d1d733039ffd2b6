"""Temporal ensembling against a slow reference that keeps everything."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bimact.policy.ensembling import TemporalEnsemble


def _reference(chunks: list[torch.Tensor], step: int, coefficient: float, window: int | None) -> torch.Tensor:
    """The action at a step, from all chunks (C, A) predicted at steps 0, 1, …, as the paper's algorithm 2 says."""
    said = [chunk[step - at] for at, chunk in enumerate(chunks[: step + 1]) if step - at < len(chunk)]
    said = said[-window:] if window else said
    weights = [math.exp(-coefficient * i) for i in range(len(said))]
    return sum(w * a for w, a in zip(weights, said)) / sum(weights)


@given(
    chunk_size=st.integers(1, 6),
    steps=st.integers(1, 12),
    coefficient=st.floats(-0.5, 0.5),
    window=st.none() | st.integers(1, 8),
    batch=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_reference(chunk_size: int, steps: int, coefficient: float, window: int | None, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Zeros are values like any other: the original takes a zero for an empty place.
    chunks = torch.randint(-1, 2, (steps, batch, chunk_size, 2), generator=generator).double()
    ensemble = TemporalEnsemble(chunk_size, coefficient, window)
    for step in range(steps):
        actions = ensemble.update(chunks[step])
        for rollout in range(batch):
            expected = _reference(list(chunks[:, rollout]), step, coefficient, window)
            torch.testing.assert_close(actions[rollout], expected)


def test_reset_forgets() -> None:
    ensemble = TemporalEnsemble(4)
    ensemble.update(torch.full((1, 4, 2), 9.0))
    ensemble.reset()
    assert torch.equal(ensemble.update(torch.ones(1, 4, 2)), torch.ones(1, 2))


def test_window_is_checked() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TemporalEnsemble(4, window=0)
