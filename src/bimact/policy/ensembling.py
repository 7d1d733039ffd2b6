"""What is executed of the chunks that a policy predicts: averages over time, or the first steps of each."""

from __future__ import annotations

import torch
from torch import Tensor


class TemporalEnsemble:
    """Temporal ensembling (ACT paper, section IV-B and algorithm 2), for several rollouts at once.

    At each step a new chunk is predicted; the action is the average of what all chunks say of this step, with
    the weight exp(-m i) for the i-th oldest, i = 0 being the oldest.

    Args:
        chunk_size: C.
        coefficient: m; 0 is the plain mean, a small m lets new observations count sooner.
        window: average only this many of the newest chunks; None: all that reach this step.
    """

    def __init__(self, chunk_size: int, coefficient: float = 0.01, window: int | None = None) -> None:
        if window is not None and window < 1:
            raise ValueError(f"the ensemble's window is {window}, it has to be at least 1")
        self.depth = min(chunk_size, window or chunk_size)
        self.coefficient = coefficient
        self._chunks: list[Tensor] = []  # the newest `depth` chunks (B, C, A), oldest first

    def reset(self) -> None:
        """Forget all chunks: a new episode begins."""
        self._chunks = []

    def update(self, chunk: Tensor) -> Tensor:
        """The chunk (B, C, A) predicted at this step → the action (B, A) to execute at this step."""
        self._chunks = [*self._chunks[-(self.depth - 1) :], chunk] if self.depth > 1 else [chunk]
        count = len(self._chunks)
        # The chunk that is k steps old speaks of this step in its k-th action.
        said = torch.stack([old[:, count - 1 - age] for age, old in enumerate(self._chunks)])  # (count, B, A)
        weights = torch.exp(-self.coefficient * torch.arange(count, dtype=said.dtype, device=said.device))
        return (said * (weights / weights.sum())[:, None, None]).sum(dim=0)
