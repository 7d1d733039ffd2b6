"""Frozen batch norms folded into the preceding convolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

if TYPE_CHECKING:
    from torchvision.ops import FrozenBatchNorm2d


class _AppliedNorm(nn.Module):
    """Keeps a frozen norm's tensors under their names in checkpoints; the preceding convolution applies them."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: FrozenBatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name, tensor in norm.named_buffers():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # weights of a norm that was trained have it
        super()._load_from_state_dict(state_dict, prefix, *args)


class _NormedConv(nn.Module):
    """A convolution with the norm that follows: scale · (w * x) + shift = (scale · w) * x + shift.

    Training is the same: the gradient of w comes through the product with the scale.
    """

    def __init__(self, conv: nn.Conv2d, norm: _AppliedNorm) -> None:
        super().__init__()
        self.weight = conv.weight
        self._parts = (conv, norm)  # in a tuple, so that they are not registered as submodules

    @property
    def conv(self) -> nn.Conv2d:
        return self._parts[0]

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self._parts
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        weight = self.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def fold_frozen_norms(network: nn.Module) -> None:
    """Let each convolution apply the frozen norm after it, in training too; names and values of tensors are kept.

    For networks that call their modules in the order of their names, as torchvision's ResNets do.
    """
    from torchvision.ops import FrozenBatchNorm2d  # takes seconds, which encoders without it do not spend

    for parent, (conv_name, conv), (norm_name, norm) in _neighbours(network):
        if isinstance(conv, nn.Conv2d) and conv.padding_mode == "zeros" and type(norm) is FrozenBatchNorm2d:
            done = _AppliedNorm(norm)
            setattr(parent, conv_name, _NormedConv(conv, done))
            setattr(parent, norm_name, done)


@torch.no_grad()
def fold_norms_for_inference(network: nn.Module) -> None:
    """Write all norms, as in evaluation mode, into the weights of the preceding convolutions, irreversibly.

    For networks as above; names and values of their tensors change.
    """
    for parent, (conv_name, conv), (norm_name, norm) in _neighbours(network):
        if isinstance(conv, (nn.Conv2d, _NormedConv)) and isinstance(norm, (_AppliedNorm, nn.BatchNorm2d)):
            folded = copy.deepcopy(conv.conv if isinstance(conv, _NormedConv) else conv)
            folded.weight, folded.bias = fuse_conv_bn_weights(
                conv.weight,
                folded.bias,
                norm.running_mean,  # type: ignore[arg-type]
                norm.running_var,  # type: ignore[arg-type]
                norm.eps,
                norm.weight,
                norm.bias,
            )
            folded.to(memory_format=torch.channels_last)  # the memory format of images
            setattr(parent, conv_name, folded)
            setattr(parent, norm_name, nn.Identity())


def _neighbours(network: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, nn.Module], tuple[str, nn.Module]]]:
    """(module, name and module of one child, of the next) of all modules in a network."""
    for parent in list(network.modules()):
        for one, next_one in pairwise(list(parent.named_children())):
            yield parent, one, next_one
