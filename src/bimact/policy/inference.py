"""Inference by a network of PyTorch.

Letters: N environments, T observations (temporal_context), C chunk_size, A action_dim, E encoder tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bimact.encoder.base import Float32Conv2d, Float32Linear
from bimact.files import sha256_of
from bimact.policy.act import ActPolicy
from bimact.policy.acting import GIVEN, TASK, ActingPolicy
from bimact.policy.metadata import Execution, Interface, PolicyMetadata
from bimact.policy.transformer import Attention


class Policy(ActingPolicy):
    """A trained policy that acts (see `ActingPolicy`).

    The network is copied and prepared for inference: weights are cast once, frozen batch norms are folded into
    convolutions, and each camera frame goes through the encoder once.

    Args:
        network: the weights; it is not changed.
        execution: how chunks are executed; None: by its config.
        interface: of its training data; None: by its config.
        dtype: of matrix products: float32, bfloat16 or float16. All else is computed in float32.
        name: for `metadata`.
        checkpoint: for `metadata`.
        weights: the file that the network was read from; None: none.
    """

    def __init__(
        self,
        network: ActPolicy,
        execution: Execution | None = None,
        interface: Interface | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        name: str = "policy",
        checkpoint: str = "",
        weights: Path | None = None,
    ) -> None:
        self.config = config = network.config
        self._weights = weights
        self.device = network.state_normalizer.mean.device
        cameras = (interface or Interface.of_config(config)).cameras
        interface = dataclasses.replace(
            interface or Interface.of_config(config),
            cameras={name: cameras.get(name) for name in network.cameras},
            tasks=None if config.tasks is None else tuple(config.tasks),
            depth_cameras=tuple(config.depth_cameras or ()),
        )
        metadata = PolicyMetadata(
            name,
            checkpoint,
            config.state_dim or 0,
            config.action_dim or 0,
            config.chunk_size,
            config.temporal_context,
            interface,
            execution or Execution.of(config),
            max_delay=config.max_delay,
        )
        self._dtype = dtype
        self._network = copy.deepcopy(network).eval().requires_grad_(False)
        self._network.prepare_for_inference()
        if dtype != torch.float32:
            for module in self._network.modules():
                is_product = isinstance(module, (nn.Linear, nn.Conv2d, Attention))
                if is_product and not isinstance(module, (Float32Linear, Float32Conv2d)):
                    for parameter in module.parameters(recurse=False):
                        parameter.data = parameter.data.to(dtype)
        super().__init__(metadata)

    def _begin_episode(self) -> None:
        super()._begin_episode()
        self._tokens: dict[str, Tensor] = {}  # camera → (N, T, rows, columns, E) of the last prediction

    @torch.inference_mode()
    def chunks(self, histories: Mapping[str, np.ndarray], new: int) -> np.ndarray:
        """As `ActingPolicy.chunks`; only the new images go to the device and through the encoder."""
        network, context = self._network, self.metadata.temporal_context
        new = min(new, context) if self._tokens else context
        newest = {
            camera: torch.from_numpy(histories[f"image_{camera}"][:, context - new :])
            .to(self.device)
            .permute(0, 1, 4, 2, 3)
            for camera in network.cameras
        }
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            for camera, tokens in network.encode_images(newest).items() if newest else ():
                known = self._tokens[camera][:, new:] if new < context else tokens[:, :0]
                self._tokens[camera] = torch.cat([known, tokens], dim=1)
            encoded = {f"tokens_{camera}": tokens for camera, tokens in self._tokens.items()}
            state = torch.from_numpy(histories["state"]).to(self.device)
            obs = {"state": state, **encoded}
            told = self._told(histories)
            for name in (GIVEN | {TASK}) & told.keys():
                obs[name] = torch.from_numpy(told[name]).to(self.device)
            chunk: np.ndarray = network(obs)[0].cpu().numpy()
        return chunk

    @property
    def network(self) -> ActPolicy:
        """The prepared copy of the network: to predict with, not to train or save."""
        return self._network

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file; of the weights themselves where they have no file."""
        if self._weights is not None:
            return sha256_of(self._weights)
        digest = hashlib.sha256()
        for name, tensor in sorted(self._network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()
