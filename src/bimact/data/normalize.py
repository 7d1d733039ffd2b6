"""Mean and standard deviation of states and actions; the transform and its inverse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

STD_FLOOR = 1e-2  # of the original ACT: a joint that hardly moves must not be blown up to unit variance


@dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation, lowest and highest value (D,) float32 of a vector, in the robot's units."""

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray


def compute_statistics(parts: Iterable[np.ndarray]) -> Statistics:
    """Statistics over the rows of arrays (N, D), in one pass and in float64.

    Parts are merged by Chan, Golub and LeVeque's update, so that neither large offsets nor many rows cost
    precision, and no more than one part is in memory.

    Args:
        parts: arrays such as the actions of each training episode.

    Raises:
        ValueError: if there is no row.
    """
    count, mean, spread = 0, np.zeros(()), np.zeros(())
    low, high = np.array(np.inf), np.array(-np.inf)
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
    if count == 0:
        raise ValueError("statistics need at least one row")
    std = np.sqrt(spread / count)
    floored = np.maximum(std, STD_FLOOR)
    return Statistics(*(values.astype(np.float32) for values in (mean, floored, low, high)))


class Normalizer(nn.Module):
    """Robot's units ↔ zero mean and unit variance. The statistics are buffers: a checkpoint carries them."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, statistics: Statistics) -> None:
        self.mean.copy_(torch.as_tensor(statistics.mean))
        self.std.copy_(torch.as_tensor(statistics.std))

    def forward(self, values: Tensor) -> Tensor:
        """(..., D) in the robot's units → (..., D) normalised."""
        return (values - self.mean) / self.std

    def inverse(self, normalized: Tensor) -> Tensor:
        """(..., D) normalised → (..., D) in the robot's units."""
        return normalized * self.std + self.mean
