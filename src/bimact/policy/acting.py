"""A trained policy made ready to act: a chunk takes as little time as the device allows."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bimact.policy.act import ActPolicy, Observation
from bimact.policy.image_memory import ImageMemory
from bimact.policy.transformer import Attention


class Actor:
    """Chunks from a policy's copy whose weights are cast once instead of at each call.

    Batch norms that no longer learn are part of the convolutions before them, of a history of observations each
    frame goes through the image encoder once, and what the decoder does before it sees an observation is done once.

    Args:
        policy: in evaluation mode; it stays as it is.
        dtype: number format of matrix products: float32, bfloat16 or float16. All else is computed in float32.
    """

    def __init__(self, policy: ActPolicy, dtype: torch.dtype = torch.float32) -> None:
        self._policy = copy.deepcopy(policy).requires_grad_(False)
        self._dtype = dtype
        self._policy.settle()
        if dtype != torch.float32:
            _cast_matrices(self._policy, dtype)
        self._memory = ImageMemory(self._policy)
        self._device = self._policy.state_normalizer.mean.device.type

    def reset(self) -> None:
        """Forget all frames: a new episode begins."""
        self._memory.reset()

    @torch.inference_mode()
    def chunk(self, obs: Observation, new: int) -> Tensor:
        """Predict a chunk.

        Args:
            obs: with `image_<camera>` (B, T, 3, H, W) uint8, oldest frame first, and `state` (B, T, S), on the
                policy's device.
            new: how many of the T observations, the newest ones, no call since `reset` has seen.

        Returns:
            (B, C, A) actions in the robot's units.
        """
        with torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32):
            chunk: Tensor = self._policy(self._memory.encoded(obs, new))[0]
        return chunk


def _cast_matrices(policy: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights that autocast would cast at each call."""
    for module in policy.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, Attention)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
