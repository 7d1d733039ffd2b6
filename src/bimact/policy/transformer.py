"""The transformer of DETR (Carion et al. 2020), as ACT uses it: positions are added to queries and keys.

Letters: B batch, L or M tokens, D width, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimact.policy.dropout import Dropout
from bimact.policy.dropout import dropout as drop


def attend(q: Tensor, k: Tensor, v: Tensor, is_pad: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention.

    On a CPU it is computed step by step: the backward pass of PyTorch's fused kernel dominates a training step there.

    Args:
        q: (B, H, L, D/H).
        k: (B, H, M, D/H).
        v: (B, H, M, D/H).
        is_pad: (B, M) bool, keys that are masked; None: none.
        dropout: dropout probability of attention weights.

    Returns:
        (B, H, L, D/H).
    """
    mask = None if is_pad is None else ~is_pad[:, None, None, :]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, dropout)
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return drop(scores.softmax(dim=-1).to(v.dtype), dropout) @ v


def in_autocast_dtype(x: Tensor) -> Tensor:
    """x in autocast's dtype of matrix products, if autocast is enabled."""
    device = x.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return x.to(torch.get_autocast_dtype(device)) if is_on else x


class Attention(nn.Module):
    """Multi-head attention with the parameters of `torch.nn.MultiheadAttention`, batch first."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # filled by xavier_init
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, is_pad: Tensor | None = None) -> Tensor:
        """query (B or 1, L, D), key and value (B, M, D) → (B, L, D)."""
        dim = query.shape[-1]
        # Cast first, then split: the other way round each part's gradient is cast and put into a tensor of zeros.
        weight, bias = (in_autocast_dtype(p) for p in (self.in_proj_weight, self.in_proj_bias))
        sizes = [2 * dim, dim] if query is key else [dim, dim, dim]
        weights, biases = weight.split(sizes), bias.split(sizes)
        if query is key:
            q, k = F.linear(query, weights[0], biases[0]).chunk(2, dim=-1)
        else:
            q, k = (F.linear(x, w, b) for x, w, b in zip((query, key), weights, biases))
        v = F.linear(value, weights[-1], biases[-1])
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q.expand(k.shape[0], -1, -1), k, v))
        attended = attend(q, k, v, is_pad, self.dropout if self.training else 0.0)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual; normalised before (`pre_norm`) or after."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = Attention(dim, heads, dropout)
        self.feed_forward = FeedForward(dim, feedforward, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, is_pad: Tensor | None = None, wanted: int | None = None) -> Tensor:
        """x (B, L, D), positions (1 or B, L, D), is_pad (B, L) → the first `wanted` tokens, or all (B, L, D)."""
        if self.pre_norm:
            x = x[:, :wanted] + self.dropout(self._attend(self.norm1(x), positions, is_pad, wanted))
            return x + self.dropout(self.feed_forward(self.norm2(x)))
        x = self.norm1(x[:, :wanted] + self.dropout(self._attend(x, positions, is_pad, wanted)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))

    def _attend(self, x: Tensor, positions: Tensor, is_pad: Tensor | None, wanted: int | None) -> Tensor:
        placed = x + positions
        queries = placed if wanted is None else placed[:, :wanted]
        return self.self_attn(queries, placed, x, is_pad)


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the memory, feed-forward."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = Attention(dim, heads, dropout)
        self.cross_attn = Attention(dim, heads, dropout)
        self.feed_forward = FeedForward(dim, feedforward, dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, placed_memory: Tensor) -> Tensor:
        """x (B or 1, C, D), queries (1, C, D), memory and the same with positions (B, M, D) → (B, C, D)."""

        def self_attended(x: Tensor) -> Tensor:
            placed = x + queries
            return self.dropout(self.self_attn(placed, placed, x))

        def cross_attended(x: Tensor) -> Tensor:
            return self.dropout(self.cross_attn(x + queries, placed_memory, memory))

        if self.pre_norm:
            x = x + self_attended(self.norm1(x))
            x = x + cross_attended(self.norm2(x))
            return x + self.dropout(self.feed_forward(self.norm3(x)))
        x = self.norm1(x + self_attended(x))
        x = self.norm2(x + cross_attended(x))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class TransformerEncoder(nn.Module):
    """A stack of `EncoderLayer`; with `pre_norm` a last normalisation follows."""

    def __init__(self, layers: int, dim: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, feedforward, dropout, pre_norm) for _ in range(layers))
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()
        xavier_init(self)

    def forward(self, x: Tensor, positions: Tensor, is_pad: Tensor | None = None, wanted: int | None = None) -> Tensor:
        """x (B, L, D), positions (1 or B, L, D), is_pad (B, L) → the first `wanted` tokens, or all (B, L, D).

        The last layer computes only the wanted tokens.
        """
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, positions, is_pad, wanted if number == len(self.layers) else None)
        return self.norm(x[:, :wanted])


class TransformerDecoder(nn.Module):
    """A stack of `DecoderLayer` and a last normalisation; all layers count.

    Without dropout the queries are the same for all samples until they have attended to the memory, so up to there they
    are computed once: a third of what a first layer takes.
    """

    def __init__(self, layers: int, dim: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, feedforward, dropout, pre_norm) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        xavier_init(self)

    def forward(self, queries: Tensor, memory: Tensor, positions: Tensor) -> Tensor:
        """queries (1, C, D), memory (B, M, D) and its positions (1, M, D) → (B, C, D)."""
        drops = self.training and self.dropout > 0
        x = queries.new_zeros(memory.shape[0] if drops else 1, *queries.shape[1:])
        placed_memory = memory + positions
        for layer in self.layers:
            x = layer(x, queries, memory, placed_memory)
        return self.norm(x)


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform initial values for all matrices, as in the original ACT."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def sinusoidal_positions_1d(length: int, dim: int) -> Tensor:
    """(length, dim) sine and cosine positions of "Attention Is All You Need", section 3.5."""
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim].float()


def sinusoidal_positions_2d(rows: int, columns: int, dim: int) -> Tensor:
    """(rows · columns, dim) positions on a grid, as in DETR: half of the width for the row, half for the column.

    Coordinates run from 1/rows (1/columns) to 1, times 2π.
    """

    def along(length: int) -> Tensor:
        half = dim // 2
        coordinates = torch.arange(1, length + 1, dtype=torch.float32) / (length + 1e-6) * (2 * math.pi)
        frequencies = 10000.0 ** (2 * (torch.arange(0, half, 2, dtype=torch.float32) // 2) / half)
        angles = coordinates[:, None] / frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (length, half)

    vertical = along(rows)[:, None].expand(rows, columns, -1)
    horizontal = along(columns)[None].expand(rows, columns, -1)
    return torch.cat([vertical, horizontal], dim=-1).flatten(0, 1)
