"""Fusion of cameras against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bimact.errors import UserError
from bimact.policy.fusion import ConcatMlpFusion, GatedFusion, build_fusion

BATCH, CAMERAS, PLACES, DIM = 2, 3, 4, 5


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(BATCH, CAMERAS, PLACES, DIM, generator=torch.Generator().manual_seed(0))


def test_mean(tokens: Tensor) -> None:
    fused = build_fusion("mean", CAMERAS, DIM)(tokens)
    assert fused.shape == (BATCH, PLACES, DIM)
    for b in range(BATCH):
        for k in range(PLACES):
            for d in range(DIM):
                expected = sum(float(tokens[b, v, k, d]) for v in range(CAMERAS)) / CAMERAS
                assert float(fused[b, k, d]) == pytest.approx(expected, abs=1e-6)


def test_tokens_are_not_fused() -> None:
    assert build_fusion("tokens", CAMERAS, DIM) is None


def test_concat_mlp(tokens: Tensor) -> None:
    fusion = build_fusion("concat_mlp", CAMERAS, DIM)
    assert isinstance(fusion, ConcatMlpFusion)
    fused = fusion(tokens)
    assert fused.shape == (BATCH, PLACES, DIM)
    first, last = fusion.mlp[0], fusion.mlp[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    for b in range(BATCH):
        for k in range(PLACES):
            row = torch.cat([tokens[b, v, k] for v in range(CAMERAS)])
            hidden = (first.weight @ row + first.bias).clamp(min=0)
            torch.testing.assert_close(fused[b, k], last.weight @ hidden + last.bias)


def test_gated(tokens: Tensor) -> None:
    fusion = build_fusion("gated", CAMERAS, DIM)
    assert isinstance(fusion, GatedFusion)
    fused = fusion(tokens)
    assert fused.shape == (BATCH, PLACES, DIM)
    for b in range(BATCH):
        for k in range(PLACES):
            scores = [fusion.score(tokens[b, v, k]).item() for v in range(CAMERAS)]
            weights = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
            assert sum(weights) == pytest.approx(1)
            expected = sum(weight * tokens[b, v, k] for v, weight in enumerate(weights))
            torch.testing.assert_close(fused[b, k], expected)


def test_gated_weights_sum_to_one(tokens: Tensor) -> None:
    same = tokens[:, :1].expand(-1, CAMERAS, -1, -1)  # any weights that sum to 1 give the same token
    torch.testing.assert_close(GatedFusion(DIM)(same), same[:, 0])


@pytest.mark.parametrize("name", ["mean", "concat_mlp", "gated"])
def test_gradient_reaches_every_camera(name: str, tokens: Tensor) -> None:
    tokens.requires_grad_()
    fusion = build_fusion(name, CAMERAS, DIM)
    fusion(tokens).square().sum().backward()
    assert tokens.grad is not None and (tokens.grad.abs().sum(dim=(0, 2, 3)) > 0).all()
    assert all(p.grad is not None for p in fusion.parameters())


def test_unknown_fusion() -> None:
    with pytest.raises(UserError, match="no fusion named 'max'; there is mean, concat_mlp, gated, tokens"):
        build_fusion("max", CAMERAS, DIM)
