"""Acting with a history of observations: each camera image goes through the encoder once, when it is new."""

from __future__ import annotations

import torch
from torch import Tensor

from bimact.policy.act import ActPolicy, Observation


class ImageMemory:
    """Keeps the encoder's tokens of the frames that a policy will see again.

    Args:
        policy: in evaluation mode, so that a frame always has the same tokens.
    """

    def __init__(self, policy: ActPolicy) -> None:
        self._policy = policy
        self._tokens: dict[str, Tensor] = {}  # camera → (B, T, rows, columns, E)

    def reset(self) -> None:
        """Forget all frames: a new episode begins."""
        self._tokens = {}

    def encoded(self, obs: Observation, new: int) -> Observation:
        """An observation with tokens in the images' stead, as `ActPolicy` takes it.

        Args:
            obs: with `image_<camera>` (B, T, 3, H, W), oldest frame first.
            new: how many of the T frames, the newest ones, no earlier call has seen; all of them count as new in the
                first call.
        """
        cameras = self._policy.cameras
        context = self._policy.config.temporal_context
        new = min(new, context) if self._tokens else context
        newest = self._policy.encode_images([obs[f"image_{camera}"][:, context - new :] for camera in cameras])
        for camera, tokens in zip(cameras, newest):
            known = self._tokens[camera][:, new:] if new < context else tokens[:, :0]
            self._tokens[camera] = torch.cat([known, tokens], dim=1)
        rest = {name: value for name, value in obs.items() if not name.startswith("image_")}
        return rest | {f"tokens_{camera}": self._tokens[camera] for camera in cameras}
