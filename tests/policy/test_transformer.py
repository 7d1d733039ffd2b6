"""The transformer's parts against PyTorch's own and against plain references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bimact.policy.transformer import (
    Attention,
    TransformerDecoder,
    TransformerEncoder,
    attend,
    sinusoidal_positions_1d,
    sinusoidal_positions_2d,
    xavier_init,
)


def test_attention_is_multihead_attention() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    ours = Attention(16, 4, dropout=0.0).eval()
    ours.load_state_dict(theirs.state_dict())
    query, key, value = torch.randn(3, 5, 16), torch.randn(3, 7, 16), torch.randn(3, 7, 16)
    is_pad = torch.zeros(3, 7, dtype=torch.bool)
    is_pad[1, 4:] = True
    expected, _ = theirs(query, key, value, key_padding_mask=is_pad)
    torch.testing.assert_close(ours(query, key, value, is_pad), expected, atol=1e-6, rtol=1e-5)
    # The packed projection, where queries and keys are the same tensor.
    expected, _ = theirs(key, key, value)
    torch.testing.assert_close(ours(key, key, value), expected, atol=1e-6, rtol=1e-5)


def test_attend_against_loops() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    is_pad = torch.tensor([[False, False, True, False, True], [False] * 5])
    result = attend(q, k, v, is_pad, 0.0)
    for b in range(2):
        keys = [m for m in range(5) if not is_pad[b, m]]
        for h in range(3):
            for query in range(4):
                scores = [float(q[b, h, query] @ k[b, h, m]) / math.sqrt(8) for m in keys]
                total = sum(math.exp(score) for score in scores)
                expected = sum(math.exp(score) / total * v[b, h, m] for score, m in zip(scores, keys))
                torch.testing.assert_close(result[b, h, query], expected, atol=1e-5, rtol=1e-5)


def test_written_out_attention_is_the_fused_one() -> None:
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    is_pad = torch.tensor([[False, False, True, False, True], [False] * 5])
    fused = nn.functional.scaled_dot_product_attention(q, k, v, ~is_pad[:, None, None])
    torch.testing.assert_close(attend(q, k, v, is_pad, 0.0), fused, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_all_layers_are_used(pre_norm: bool) -> None:
    """The original ACT's decoder returned its first layer (tonyzhaozh/act issue 25)."""
    encoder = TransformerEncoder(3, 16, 2, 32, 0.0, pre_norm)
    decoder = TransformerDecoder(4, 16, 2, 32, 0.0, pre_norm)
    positions = torch.randn(1, 6, 16)
    memory = encoder(torch.randn(2, 6, 16), positions)
    decoder(torch.randn(1, 5, 16), memory, positions).square().sum().backward()
    for module in (encoder, decoder):
        for number, layer in enumerate(module.layers):
            gradient = layer.feed_forward.linear2.weight.grad
            assert gradient is not None and gradient.abs().sum() > 0, number


def test_positions_1d() -> None:
    table = sinusoidal_positions_1d(7, 10)
    for position in range(7):
        for column in range(10):
            angle = position / 10000 ** (2 * (column // 2) / 10)
            expected = math.sin(angle) if column % 2 == 0 else math.cos(angle)
            assert table[position, column] == pytest.approx(expected, abs=1e-6)


def test_positions_2d() -> None:
    rows, columns, dim = 3, 5, 16
    table = sinusoidal_positions_2d(rows, columns, dim)
    assert table.shape == (rows * columns, dim)
    for row in range(rows):
        for column in range(columns):
            for half, (place, length) in enumerate(((row, rows), (column, columns))):
                for entry in range(dim // 2):
                    angle = (place + 1) / length * 2 * math.pi / 10000 ** (2 * (entry // 2) / (dim // 2))
                    expected = math.sin(angle) if entry % 2 == 0 else math.cos(angle)
                    found = table[row * columns + column, half * dim // 2 + entry]
                    assert found == pytest.approx(expected, abs=1e-5)


def test_padding_does_not_leak() -> None:
    encoder = TransformerEncoder(2, 16, 2, 32, 0.0, pre_norm=False)
    x, positions = torch.randn(1, 6, 16), torch.zeros(1, 6, 16)
    is_pad = torch.tensor([[False, False, False, False, True, True]])
    changed = x.clone()
    changed[:, 4:] += 5
    before, after = encoder(x, positions, is_pad), encoder(changed, positions, is_pad)
    torch.testing.assert_close(before[:, :4], after[:, :4])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_tokens_that_are_not_wanted_change_nothing(pre_norm: bool) -> None:
    torch.manual_seed(0)
    encoder = TransformerEncoder(3, 16, 4, 24, 0.0, pre_norm)
    x, positions = torch.randn(2, 6, 16), torch.randn(1, 6, 16)
    is_pad = torch.zeros(2, 6, dtype=torch.bool)
    is_pad[0, 4:] = True
    torch.testing.assert_close(encoder(x, positions, is_pad, wanted=2), encoder(x, positions, is_pad)[:, :2])
    torch.testing.assert_close(encoder(x, positions, wanted=1), encoder(x, positions)[:, :1])


def test_gradients_in_half_precision_reach_all_projections() -> None:
    """The packed weights are cast as a whole: each part's gradient has to come back to its place."""
    torch.manual_seed(0)
    attention = Attention(16, 4, dropout=0.0)
    xavier_init(attention)
    query, key = torch.randn(3, 5, 16), torch.randn(3, 7, 16)

    def gradient(precise: bool, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            attention(query, key, key).float().square().sum().backward()
        assert attention.in_proj_weight.grad is not None
        return attention.in_proj_weight.grad.clone()

    for q, k in ((query, key), (key, key)):
        precise, rounded = gradient(True, q, k), gradient(False, q, k)
        assert rounded.dtype == torch.float32
        assert (rounded - precise).norm() < 0.02 * precise.norm()
