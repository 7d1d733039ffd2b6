"""Dropout with cheap random numbers on a CPU, where PyTorch's take longer than the model's computation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 256  # of a random byte
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes per element → integer dtype


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p and scale the rest by 1 / (1 - p).

    On a CPU one random 64-bit number decides over eight elements, one byte each: p is rounded to 1/256ths, and
    the scale is that of the rounded p, so that the expectation is exact. Elsewhere, and where `torch.compile` makes one
    kernel of it and its neighbours, PyTorch's own is cheap enough.
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    dropped: Tensor = _DropByBytes.apply(x, round(p * _LEVELS))
    return dropped


class _DropByBytes(torch.autograd.Function):
    """Mask the bits of dropped elements: integer operations, which are the fastest."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape).to(_BITS[x.element_size()])
        # A byte that is at least `dropped` becomes negative, and its sign fills the integer: all bits set, or none.
        keep.neg_().add_(dropped - 1).bitwise_right_shift_(8 * x.element_size() - 1)
        ctx.save_for_backward(keep)
        ctx.scale = _LEVELS / (_LEVELS - dropped)
        return _masked(x, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _masked(grads[0], ctx.saved_tensors[0], ctx.scale), None


def _masked(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    return (x.view(keep.dtype) & keep).view(x.dtype).mul_(scale)


class Dropout(nn.Module):
    """`dropout` in training mode, nothing in evaluation mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
