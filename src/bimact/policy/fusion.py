"""Fusion of the cameras' tokens before the transformer.

Letters: N images per camera, V cameras, K tokens per image, D hidden_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bimact.errors import UserError


class MeanFusion(nn.Module):
    """The mean over cameras, per spatial location."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


class ConcatMlpFusion(nn.Module):
    """The cameras' tokens of a location concatenated, and mixed by an MLP."""

    def __init__(self, num_cameras: int, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(num_cameras * dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(tokens.transpose(1, 2).flatten(2))


class GatedFusion(nn.Module):
    """A weighted mean over cameras; the weights are a softmax over a score of each token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        weights = torch.softmax(self.score(tokens), dim=1)  # (N, V, K, 1), sums to 1 over cameras
        return (weights * tokens).sum(dim=1)


def build_fusion(name: str, num_cameras: int, dim: int) -> nn.Module | None:
    """Make the module (N, V, K, D) → (N, K, D); None for `tokens`, which keeps each camera's tokens separate.

    Raises:
        UserError: if there is no such fusion.
    """
    if name == "mean":
        return MeanFusion()
    if name == "concat_mlp":
        return ConcatMlpFusion(num_cameras, dim)
    if name == "gated":
        return GatedFusion(dim)
    if name == "tokens":
        return None
    raise UserError(f"no fusion named '{name}'; there is mean, concat_mlp, gated, tokens")
