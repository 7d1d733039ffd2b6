"""Temporal ensembling: the average of overlapping chunks."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

Array = TypeVar("Array", bound=np.ndarray)  # or a tensor of PyTorch, which this module does without


class TemporalEnsemble:
    """Temporal ensembling (ACT paper, section IV-B and algorithm 2), for a batch of rollouts.

    At each step a new chunk is predicted; the action is the average of all chunks' actions for this step, with
    the weight exp(-m i) for the i-th oldest, i = 0 being the oldest.

    Args:
        chunk_size: C.
        coefficient: m; 0 is the plain mean, a smaller m gives new observations more weight (paper, IV-B).
        window: average only this many of the newest chunks; None: all that reach this step.
    """

    def __init__(self, chunk_size: int, coefficient: float = 0.01, window: int | None = None) -> None:
        if window is not None and window < 1:
            raise ValueError(f"the ensemble's window is {window}, it has to be at least 1")
        self.depth = min(chunk_size, window or chunk_size)
        self.coefficient = coefficient
        self._chunks: list[Any] = []  # the newest `depth` chunks (B, C, A), oldest first

    def reset(self) -> None:
        """Forget all chunks: a new episode begins."""
        self._chunks = []

    def update(self, chunk: Array) -> Array:
        """The chunk (B, C, A) predicted at this step → the action (B, A) to execute at this step."""
        self._chunks = [*self._chunks[-(self.depth - 1) :], chunk] if self.depth > 1 else [chunk]
        count = len(self._chunks)
        weights = [math.exp(-self.coefficient * age) for age in range(count)]
        total = sum(weights)
        # A chunk that is k steps old has its action for this step at index k.
        terms = [
            (weight / total) * old[:, count - 1 - age] for age, (weight, old) in enumerate(zip(weights, self._chunks))
        ]
        action: Array = sum(terms[1:], start=terms[0])
        return action
