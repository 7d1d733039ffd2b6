"""A policy of bimact → a LeRobot ACT policy's folder, in the layout of late 2025 on.

Written as LeRobot 0.4.4 writes it (`policies/pretrained.py`, `processor/pipeline.py`) and 0.6.0 still reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from bimact.config import Config, save_config
from bimact.errors import UserError
from bimact.files import atomic_write, write_bytes, write_json
from bimact.interop.assembly import Converted
from bimact.interop.lerobot_reader import (
    ACTION,
    CONFIG,
    NORMALIZER,
    POSTPROCESSOR,
    PREPROCESSOR,
    RENAMER,
    STATE,
    UNNORMALIZER,
    WEIGHTS,
)
from bimact.interop.lerobot_weights import to_lerobot
from bimact.policy.act import ActPolicy
from bimact.policy.metadata import PolicyMetadata
from bimact.run_directory import Run, recorded

_EPSILON = 1e-8  # which LeRobot adds to each standard deviation
_MODES = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "MEAN_STD")
_DEVICE = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}


def refuse_inexpressible(policy: ActPolicy) -> None:
    """Check that LeRobot's ACT, which is the paper's network, can express a policy.

    Raises:
        UserError: listing everything that it cannot express.
    """
    config, encoder = policy.config, policy.config.encoder
    # One camera's tokens are their own mean.
    keeps_tokens = encoder.fuse == "tokens" or (encoder.fuse in ("mean", "gated") and len(policy.cameras) == 1)
    resizes = encoder.image_size is not None and encoder.image_size != config.image_size
    has_positions = bool(policy.cameras) and not bool((policy.camera_positions == policy.camera_positions[0]).all())
    found = {
        f"temporal_context is {config.temporal_context}, not 1": config.temporal_context != 1,
        "action_mode is relative": config.action_mode == "relative",
        "max_delay is above 0": config.max_delay > 0,
        "it sees no camera": not policy.cameras,
        "it has a depth camera": bool(policy.depth_cameras),
        f"encoder.name is {encoder.name}, not pri3d or resnet": encoder.name not in ("pri3d", "resnet"),
        f"encoder.fuse is {encoder.fuse}, not tokens": not keeps_tokens,
        "encoder.spatial is false": encoder.spatial is False,
        "encoder.crop is set": encoder.crop is not None,
        f"encoder.image_size is {encoder.image_size}, to which LeRobot would not resize": resizes,
        "the size of its images is not known (give --image_size)": config.image_size is None,
        "it has learned camera positions": has_positions,
        "it is told its task": config.task_conditioning != "none",
    }
    obstacles = [sentence for sentence, holds in found.items() if holds]
    if obstacles:
        raise UserError(f"this policy cannot become one of LeRobot: {'; '.join(obstacles)}")


def write_lerobot(converted: Converted, folder: Path) -> None:
    """Write a policy's files into a folder.

    Args:
        converted: with a policy that `refuse_inexpressible` accepts.
        folder: an empty one.
    """
    policy = converted.policy
    cameras = [f"observation.images.{camera}" for camera in policy.cameras]
    statistics = _statistics(policy, cameras)
    size = policy.config.image_size or ()
    inputs: dict[str, Any] = {camera: {"type": "VISUAL", "shape": [3, *size]} for camera in cameras}
    inputs[STATE] = {"type": "STATE", "shape": [policy.config.state_dim]}
    outputs = {ACTION: {"type": "ACTION", "shape": [policy.config.action_dim]}}
    write_json(folder / CONFIG, _settings(policy.config, inputs, outputs))
    positions = None if policy.posterior is None else policy.posterior.positions
    _save(to_lerobot(_with_folded_position(policy), positions), folder / WEIGHTS)
    rename = {"registry_name": RENAMER, "config": {"rename_map": {}}}
    batch = {"registry_name": "to_batch_processor", "config": {}}
    before = [rename, batch, _DEVICE, _normalizer(NORMALIZER, {**inputs, **outputs})]
    after = [_normalizer(UNNORMALIZER, outputs), _DEVICE]
    _write_processor(folder / PREPROCESSOR, before, statistics)
    inverse = {f"{ACTION}.mean": policy.action_normalizer.mean, f"{ACTION}.std": policy.action_normalizer.std}
    _write_processor(folder / POSTPROCESSOR, after, inverse)


def write_lerobot_plugin(network: ActPolicy, metadata: PolicyMetadata, folder: Path) -> None:
    """Write what `--policy.path` takes with packages/lerobot-policy-bimact: a run directory, with LeRobot's files.

    Args:
        network: the weights, not prepared for inference.
        metadata: of the same policy.
        folder: an empty one.

    Raises:
        UserError: if the size of a camera is not known.
    """
    inputs: dict[str, Any] = {STATE: {"type": "STATE", "shape": [metadata.state_dim]}}
    for camera, size in metadata.interface.cameras.items():
        if size is None:
            raise UserError(f"the size of camera '{camera}' is not known: give --image_size, as 480x640")
        inputs[f"observation.images.{camera}"] = {"type": "VISUAL", "shape": [3, *size]}
    settings = {
        "type": "bimact",
        "n_obs_steps": metadata.temporal_context,
        "input_features": inputs,
        "output_features": {ACTION: {"type": "ACTION", "shape": [metadata.action_dim]}},
        "device": None,
        "push_to_hub": False,
        "chunk_size": metadata.chunk_size,
    }
    write_json(folder / CONFIG, settings)
    rename = {"registry_name": RENAMER, "config": {"rename_map": {}}}
    before = [rename, {"registry_name": "to_batch_processor", "config": {}}, _DEVICE]
    write_json(folder / PREPROCESSOR, {"name": "policy_preprocessor", "steps": before})
    write_json(folder / POSTPROCESSOR, {"name": "policy_postprocessor", "steps": [_DEVICE]})
    run = Run(folder / "run")
    run.checkpoints.mkdir(parents=True)
    save_config(recorded(network.config), run.config_path)
    metadata.interface.write(run.interface_path)
    with atomic_write(run.checkpoints / "act-train-best.pth") as file:
        torch.save(network.state_dict(), file)


def _settings(config: Config, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
    """`config.json`."""
    ensemble = config.temporal_ensemble
    return {
        "type": "act",
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "device": "cpu",
        "use_amp": False,
        "push_to_hub": False,
        "chunk_size": config.chunk_size,
        "n_action_steps": 1 if ensemble else config.execute_steps or config.chunk_size,
        "normalization_mapping": _MODES,
        "vision_backbone": config.encoder.model_name or "resnet18",
        "pretrained_backbone_weights": None,
        "replace_final_stride_with_dilation": False,
        "pre_norm": config.pre_norm,
        "dim_model": config.hidden_dim,
        "n_heads": config.nheads,
        "dim_feedforward": config.dim_feedforward,
        "feedforward_activation": "relu",
        "n_encoder_layers": config.num_encoder_layers,
        "n_decoder_layers": config.num_decoder_layers,
        "use_vae": config.use_vae,
        "latent_dim": config.latent_dim,
        "n_vae_encoder_layers": config.n_vae_encoder_layers,
        "temporal_ensemble_coeff": config.ensemble_coefficient if ensemble else None,
        "dropout": config.dropout,
        "kl_weight": config.kl_weight,
        "optimizer_lr": config.lr,
        "optimizer_weight_decay": config.weight_decay,
        "optimizer_lr_backbone": config.lr_backbone or config.lr,
    }


def _statistics(policy: ActPolicy, cameras: list[str]) -> dict[str, Tensor]:
    """The preprocessor's statistics, less what LeRobot adds."""
    images = policy.image_encoder.mean / 255, policy.image_encoder.std / 255  # (3, 1, 1) each
    states = policy.state_normalizer.mean, policy.state_normalizer.std
    actions = policy.action_normalizer.mean, policy.action_normalizer.std
    found: dict[str, Tensor] = {}
    for name, (mean, std) in {**dict.fromkeys(cameras, images), STATE: states, ACTION: actions}.items():
        found |= {f"{name}.mean": mean, f"{name}.std": (std - _EPSILON).clamp(min=0)}
    return found


@torch.no_grad()
def _with_folded_position(policy: ActPolicy) -> dict[str, Tensor]:
    """The weights without the position that all tokens of all images share, which LeRobot does not have.

    Positions enter through queries and keys only. So that position is added to every token there, through the biases,
    and subtracted from the positions of latent and state, which do not have it.
    """
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    shared = policy.step_positions[0] + policy.camera_positions[0]  # (D,)
    dim = len(shared)
    weights["vector_positions.weight"] -= shared
    for number in range(policy.config.num_encoder_layers):
        attention = f"encoder.layers.{number}.self_attn.in_proj"
        weights[f"{attention}_bias"][: 2 * dim] += weights[f"{attention}_weight"][: 2 * dim] @ shared
    for number in range(policy.config.num_decoder_layers):
        attention = f"decoder.layers.{number}.cross_attn.in_proj"
        keys = slice(dim, 2 * dim)
        weights[f"{attention}_bias"][keys] += weights[f"{attention}_weight"][keys] @ shared
    return weights


def _normalizer(kind: str, features: dict[str, Any]) -> dict[str, Any]:
    return {"registry_name": kind, "config": {"eps": _EPSILON, "features": features, "norm_map": _MODES}}


def _write_processor(path: Path, steps: list[dict[str, Any]], statistics: dict[str, Tensor]) -> None:
    """Write a processor's JSON file, and the statistics of its normalising step."""
    number, step = next(pair for pair in enumerate(steps) if pair[1]["registry_name"] in (NORMALIZER, UNNORMALIZER))
    state = f"{path.stem}_step_{number}_{step['registry_name']}.safetensors"
    _save(statistics, path.with_name(state))
    steps = [*steps[:number], {**step, "state_file": state}, *steps[number + 1 :]]
    write_json(path, {"name": path.stem, "steps": steps})


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    # Copies: safetensors refuses tensors that share memory.
    own = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    write_bytes(path, save(own, {"format": "pt"}))
