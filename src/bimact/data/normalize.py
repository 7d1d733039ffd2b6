"""Statistics of states and actions; normalisation and its inverse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

STD_FLOOR = 1e-2  # of the original ACT: a joint that hardly moves must not be scaled to unit variance


QUANTILES = 0.01, 0.99  # of quantile normalisation, as in LeRobot


@dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation, lowest and highest value (D,) float32 of a vector, in the robot's units.

    `quantiles` are its 1% and 99% quantiles (2, D); None if not requested.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    quantiles: np.ndarray | None = None

    def normalization(self, mode: str) -> tuple[np.ndarray, np.ndarray]:
        """Offset and scale (D,): normalised = (x - offset) / scale, for a mode of `state_normalization`."""
        if mode == "identity":
            return np.zeros_like(self.mean), np.ones_like(self.std)
        if mode == "mean_std":
            return self.mean, self.std
        ends = (self.low, self.high) if mode == "min_max" else self.quantiles
        if ends is None:
            raise ValueError("these statistics have no quantiles")
        return (ends[0] + ends[1]) / 2, np.maximum((ends[1] - ends[0]) / 2, np.float32(STD_FLOOR))


def compute_statistics(parts: Iterable[np.ndarray], *, quantiles: bool = False) -> Statistics:
    """Statistics over the rows of arrays (N, D), in one pass and in float64.

    Parts are merged by the update of Chan, Golub and LeVeque, which is precise for large offsets and many rows; only
    one part is in memory at a time unless quantiles are requested.

    Args:
        parts: arrays such as the actions of each training episode.
        quantiles: whether to compute them.

    Raises:
        ValueError: if there is no row.
    """
    count = 0
    mean: np.ndarray = np.zeros(())
    spread: np.ndarray = np.zeros(())
    low: np.ndarray = np.array(np.inf)
    high: np.ndarray = np.array(-np.inf)
    all_parts = []
    for part in parts:
        part = np.asarray(part, dtype=np.float64)
        if len(part) == 0:
            continue
        part_mean = part.mean(axis=0)
        part_spread = ((part - part_mean) ** 2).sum(axis=0)
        total = count + len(part)
        difference = part_mean - mean
        mean = mean + difference * (len(part) / total)
        spread = spread + part_spread + difference**2 * (count * len(part) / total)
        count = total
        low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
        if quantiles:
            all_parts.append(part.astype(np.float32))
    if count == 0:
        raise ValueError("statistics need at least one row")
    std = np.sqrt(spread / count)
    floored = np.maximum(std, STD_FLOOR)
    ends = np.quantile(np.concatenate(all_parts), QUANTILES, axis=0).astype(np.float32) if quantiles else None
    mean, floored, low, high = (values.astype(np.float32) for values in (mean, floored, low, high))
    return Statistics(mean, floored, low, high, ends)


def relative_chunk_statistics(
    states: Sequence[np.ndarray],
    actions: Sequence[np.ndarray],
    relative_to: Sequence[int],
    chunk_size: int,
    *,
    quantiles: bool = False,
) -> list[Statistics]:
    """Statistics of each step of relative chunks: actions less the state at the chunk's beginning, without padding.

    Args:
        states: (N, S) of each training episode.
        actions: (N, A) likewise.
        relative_to: A dimensions of the state; -1: the action itself.
        chunk_size: C.
        quantiles: whether to compute them.

    Returns:
        C statistics; steps beyond all episodes have those of the last step that some episode reaches.
    """
    chosen = np.asarray(relative_to)
    bases = [np.where(chosen >= 0, np.asarray(state)[:, chosen], 0) for state in states]
    longest = max(map(len, actions))
    found = [
        compute_statistics(
            (np.asarray(action)[step:] - base[: max(0, len(base) - step)] for action, base in zip(actions, bases)),
            quantiles=quantiles,
        )
        for step in range(min(chunk_size, longest))
    ]
    return found + [found[-1]] * (chunk_size - len(found))


class Normalizer(nn.Module):
    """Robot's units ↔ the network's: (x - mean) / std; in other modes these are the mode's offset and scale.

    The statistics are buffers, saved in checkpoints.

    Args:
        shape: of the values: D; or C, D with separate statistics per step of a chunk.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def fit(self, statistics: Statistics | Sequence[Statistics], mode: str = "mean_std") -> None:
        """Set the buffers from statistics, or from those of each step of a chunk."""
        steps = [statistics] if isinstance(statistics, Statistics) else statistics
        center, scale = (np.stack(values) for values in zip(*(step.normalization(mode) for step in steps)))
        self.mean.copy_(torch.as_tensor(center).view_as(self.mean))
        self.std.copy_(torch.as_tensor(scale).view_as(self.std))

    def forward(self, values: Tensor) -> Tensor:
        """(..., D) in the robot's units → (..., D) normalised."""
        return (values - self.mean) / self.std

    def inverse(self, normalized: Tensor) -> Tensor:
        """(..., D) normalised → (..., D) in the robot's units."""
        return normalized * self.std + self.mean
