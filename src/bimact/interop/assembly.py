"""Weights in bimact's names, statistics and settings → a policy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimact.config import to_config
from bimact.errors import UserError, in_words
from bimact.policy.act import ActPolicy, build_act_policy
from bimact.policy.weights import PolicyWeights, Software, read_policy_weights
from bimact.weights_file import size_of

# By whether blocks have a bottleneck, and the number of blocks of the third stage.
_RESNETS = {(False, 2): "resnet18", (False, 6): "resnet34", (True, 6): "resnet50"}


_NOT_IN_THE_PAPER = ("step_positions", "camera_positions")


@dataclass(frozen=True)
class Affine:
    """How a vector is normalised: (x - mean) / std + shift.

    Attributes:
        mean: (D,), in the robot's units.
        std: (D,), in the robot's units, more than 0.
        shift: -1 where [mean, mean + 2 std] becomes [-1, 1]. Separate, since a mean that includes it would be rounded
            to the lowest value where the range is small.
    """

    mean: Tensor
    std: Tensor
    shift: float = 0.0

    @property
    def center(self) -> Tensor:
        """(D,): the value that becomes 0."""
        return self.mean - self.shift * self.std


@dataclass(frozen=True)
class Converted:
    """A policy with notes on its conversion.

    Attributes:
        policy: in evaluation mode on the CPU; its config is complete.
        origin: its source, such as "LeRobot policy of 2025".
        notes: sentences on what was left out or assumed.
    """

    policy: ActPolicy
    origin: str
    notes: tuple[str, ...] = ()


def read_policy(path: Path, software: Software) -> PolicyWeights:
    """The weights of a policy of other software; no code in the file is run.

    Raises:
        UserError: if the file cannot be read, holds no such policy, or declares larger tensors than it holds.
    """
    found = read_policy_weights(path, software)
    # A file of few bytes can declare tensors of any size, and a network of that size would be created.
    if sum(value.numel() * value.element_size() for value in found.tensors.values()) > size_of(path):
        raise UserError(f"{path} declares larger tensors than it holds: do not trust this file")
    return found


def checked_cameras(names: Sequence[str]) -> list[str]:
    """Names of cameras, if they are valid.

    Raises:
        UserError: if one is not, or two are the same.
    """
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"{ascii(name)[:80]} is not a valid camera name: pass names by --cameras, such as top,left")
    if len(set(names)) < len(names):
        raise UserError(f"cameras have the same name ({', '.join(names)}): give names by --cameras, such as top,left")
    return list(names)


def network_settings(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The settings of a network as in the paper, from the shapes of its weights in bimact's names.

    Args:
        weights: without the statistics.
        path: of their file, for messages.

    Raises:
        UserError: if they are not the weights of such a network.
    """
    backbone = "image_encoder.backbone."
    kind = (f"{backbone}layer1.0.conv3.weight" in weights, _count(weights, f"{backbone}layer3."))
    try:
        chunk_size, hidden_dim = weights["queries.weight"].shape
        settings = {
            "temporal_context": 1,
            "chunk_size": chunk_size,
            "hidden_dim": hidden_dim,
            "dim_feedforward": len(weights["encoder.layers.0.feed_forward.linear1.weight"]),
            "num_encoder_layers": _count(weights, "encoder.layers."),
            "num_decoder_layers": _count(weights, "decoder.layers."),
            "n_vae_encoder_layers": _count(weights, "posterior.encoder.layers.") or 4,
            "pre_norm": "encoder.norm.weight" in weights,
            "use_vae": "posterior.cls" in weights,
            "latent_dim": weights["latent_proj.weight"].shape[1],
            "state_dim": weights["state_proj.weight"].shape[1],
            "action_dim": len(weights["action_head.weight"]),
            "encoder": {
                "name": "pri3d",
                "model_name": _RESNETS.get(kind),
                "pretrained": None,
                "freeze": False,
                "fuse": "tokens",
                "weights_from_checkpoint": True,
            },
        }
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"{path} does not hold the network of ACT, or not all of it ({error})") from None
    if kind not in _RESNETS:
        raise UserError(f"{path} has another image backbone than bimact knows ({', '.join(_RESNETS.values())})")
    return settings


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Number of different components after a prefix."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})


def assemble(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], state: Affine, action: Affine, path: Path
) -> ActPolicy:
    """Build the policy.

    Args:
        settings: of `network_settings`, with cameras and other known settings.
        weights: in bimact's names; the missing positions of steps and cameras are zero.
        state: normalisation of the proprioceptive state.
        action: normalisation of actions.
        path: of the weights, for messages.

    Raises:
        UserError: if settings are out of range, or weights are missing, too many or of other shapes.
    """
    statistics = {
        "state_normalizer.mean": state.mean,
        "state_normalizer.std": state.std,
        "action_normalizer.mean": action.center,
        "action_normalizer.std": action.std,
    }
    try:
        config = to_config(dict(settings))
        with torch.device("meta"):  # without memory for weights, to find what does not fit first
            empty = build_act_policy(config)
        positions = {
            name: torch.zeros(value.shape) for name, value in empty.state_dict().items() if name in _NOT_IN_THE_PAPER
        }
        complete = {**positions, **statistics, **{name: value.float() for name, value in weights.items()}}
        empty.load_state_dict(complete, assign=True)
    except UserError as error:
        raise UserError(f"{path.parent}: {error}") from None
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the network: {in_words(error)}") from None
    policy = build_act_policy(config)
    policy.load_state_dict(complete)
    readers = [policy.state_proj] if policy.posterior is None else [policy.state_proj, policy.posterior.state_proj]
    with torch.no_grad():
        for linear in readers:  # let these layers see their input + shift
            linear.bias.add_(linear.weight.sum(dim=1), alpha=state.shift)
    return policy.eval()
