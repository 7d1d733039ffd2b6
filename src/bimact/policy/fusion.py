"""How the cameras' tokens are joined before the transformer sees them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bimact.errors import UserError


class MeanFusion(nn.Module):
    """The average over cameras, place by place."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


class ConcatMlpFusion(nn.Module):
    """The cameras' tokens of a place side by side, mixed by an MLP."""

    def __init__(self, num_cameras: int, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(num_cameras * dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(tokens.transpose(1, 2).flatten(2))


class GatedFusion(nn.Module):
    """A weighted average over cameras; the weights are a softmax of what each token says of itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        weights = torch.softmax(self.score(tokens), dim=1)  # (N, V, K, 1), sums to 1 over cameras
        return (weights * tokens).sum(dim=1)


class TokenFusion(nn.Module):
    """No fusion: each camera's tokens stay apart, one camera after the other, as in the ACT paper."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.flatten(1, 2)


def build_fusion(name: str, num_cameras: int, dim: int) -> nn.Module:
    """Make the module (N, V, K, D) → (N, K', D), with K' = V · K for `tokens` and K' = K otherwise."""
    if name == "mean":
        return MeanFusion()
    if name == "concat_mlp":
        return ConcatMlpFusion(num_cameras, dim)
    if name == "gated":
        return GatedFusion(dim)
    if name == "tokens":
        return TokenFusion()
    raise UserError(f"no fusion named '{name}'; there is mean, concat_mlp, gated, tokens")
