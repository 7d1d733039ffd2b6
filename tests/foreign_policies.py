"""Small policies in the files of LeRobot and of the original ACT, written as those write them.

The layouts of 2024 and early 2025 are those that LeRobot d585c73f9, 3c0a209f9^ and v0.3.3 saved when they were run.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bimact.config import to_config
from bimact.interop.lerobot_weights import to_lerobot
from bimact.interop.original_act_weights import to_original
from bimact.policy.act import ActPolicy

STATE_DIM, ACTION_DIM, SIZE = 6, 4, (40, 64)
Statistics = dict[str, dict[str, Tensor]]


def small_policy(cameras: Sequence[str] = ("top", "left"), seed: int = 0, **settings: Any) -> ActPolicy:
    """A network as the paper's with random numbers everywhere; states and actions are not normalised."""
    encoder = {"name": "pri3d", "pretrained": None, "freeze": False, "fuse": "tokens", **settings.pop("encoder", {})}
    config = {
        "state_dim": STATE_DIM,
        "action_dim": ACTION_DIM,
        "cameras": list(cameras),
        "image_size": list(SIZE),
        "temporal_context": 1,
        "hidden_dim": 32,
        "nheads": 4,
        "dim_feedforward": 48,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
        "n_vae_encoder_layers": 2,
        "chunk_size": 7,
        "latent_dim": 5,
    }
    torch.manual_seed(seed)
    policy = ActPolicy(to_config({**config, **settings, "encoder": encoder}))
    for name, value in policy.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            value.uniform_(-0.3, 0.3)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return policy.eval()


def observation(policy: ActPolicy, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    obs = {
        f"image_{camera}": torch.randint(0, 256, (2, 1, 3, *size_of(policy)), generator=draw, dtype=torch.uint8)
        for camera in policy.cameras
    }
    return {**obs, "state": torch.randn(2, 1, policy.config.state_dim or 0, generator=draw)}


def size_of(policy: ActPolicy) -> list[int]:
    return list(policy.config.image_size or SIZE)


@torch.inference_mode()
def chunk_of(policy: ActPolicy, obs: Mapping[str, Tensor]) -> Tensor:
    return policy(dict(obs))[0]


def statistics_of(policy: ActPolicy, images: Mapping[str, Tensor] | None = None, seed: int = 0) -> Statistics:
    """Of all kinds; the first number of state and action was always 1.3. Images: ImageNet's, or as given."""
    draw = torch.Generator().manual_seed(seed)

    def of_vector(size: int) -> dict[str, Tensor]:
        bounds = torch.rand(8, size, generator=draw).cumsum(dim=0) - 4
        bounds[:, 0] = 1.3
        names = ("min", "q01", "q10", "mean", "q90", "q99", "max")
        return {**dict(zip(names, bounds)), "std": 0.3 + torch.rand(size, generator=draw)}

    of_images = images or {"mean": torch.tensor([0.485, 0.456, 0.406]), "std": torch.tensor([0.229, 0.224, 0.225])}
    of_images = {name: value.view(3, 1, 1) for name, value in of_images.items()}
    cameras = {f"observation.images.{camera}": of_images for camera in policy.cameras}
    config = policy.config
    return {
        **cameras,
        "observation.state": of_vector(config.state_dim or 0),
        "action": of_vector(config.action_dim or 0),
    }


BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}


def taken_back(normalized: Tensor, statistics: Mapping[str, Tensor], mode: str) -> Tensor:
    """What becomes `normalized` when it is normalised; where nothing ever changed, the one value."""
    if mode == "IDENTITY":
        return normalized
    if mode == "MEAN_STD":
        return normalized.double() * statistics["std"].double() + statistics["mean"]
    low, high = (statistics[name].double() for name in BOUNDS[mode])
    return (normalized + 1) / 2 * (high - low) + low


def beside_an_optimizer(key: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """A checkpoint for resuming as many trainers write it; NumPy's numbers are there by accident mostly."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "val_loss": np.float64(0.25),
        "history": np.arange(3.0),
        "args": argparse.Namespace(lr=1e-4),
        "ckpt_dir": Path("ckpt"),
        key: dict(weights),
    }


def write_pointer(path: Path) -> None:
    """What a clone without git-lfs has in the place of a large file."""
    oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n")


def write_shards(folder: Path, weights: Mapping[str, Tensor], stem: str = "model", ending: str = "safetensors") -> Path:
    """Weights in two files with an index, as Hugging Face's libraries save large models; gives the index."""
    names = sorted(weights)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05d}-of-00002.{ending}"
        tensors = {name: weights[name] for name in part}
        if ending == "safetensors":
            save_file(tensors, folder / file)
        else:
            torch.save(tensors, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{ending}.index.json"
    write_json(index, {"metadata": {"total_size": 1}, "weight_map": weight_map})
    return index


# LeRobot -------------------------------------------------------------------------------------------


def lerobot_config(policy: ActPolicy, modes: Mapping[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """`config.json` since 2025."""
    config = policy.config
    images = {f"observation.images.{c}": {"type": "VISUAL", "shape": [3, *size_of(policy)]} for c in policy.cameras}
    return {
        "type": "act",
        "n_obs_steps": 1,
        "normalization_mapping": dict(modes or dict.fromkeys(("VISUAL", "STATE", "ACTION"), "MEAN_STD")),
        "input_features": {**images, "observation.state": {"type": "STATE", "shape": [config.state_dim]}},
        "output_features": {"action": {"type": "ACTION", "shape": [config.action_dim]}},
        "device": "cuda",
        "use_amp": False,
        **_network(policy),
        "optimizer_lr": 3e-05,
        "optimizer_weight_decay": 0.0002,
        "optimizer_lr_backbone": 2e-05,
        "n_action_steps": config.chunk_size,
        "temporal_ensemble_coeff": None,
        **changes,
    }


def lerobot_config_of_2024(policy: ActPolicy, modes: Mapping[str, str], **changes: Any) -> dict[str, Any]:
    images = [f"observation.images.{camera}" for camera in sorted(policy.cameras)]
    of_images = {name: modes["VISUAL"].lower() for name in images if modes["VISUAL"] != "IDENTITY"}
    of_state = {} if modes["STATE"] == "IDENTITY" else {"observation.state": modes["STATE"].lower()}
    return {
        **_network(policy),
        "input_shapes": {
            **{name: [3, *size_of(policy)] for name in images},
            "observation.state": [policy.config.state_dim],
        },
        "input_normalization_modes": {**of_images, **of_state},
        "output_shapes": {"action": [policy.config.action_dim]},
        "output_normalization_modes": {} if modes["ACTION"] == "IDENTITY" else {"action": modes["ACTION"].lower()},
        "n_action_steps": policy.config.chunk_size,
        "n_obs_steps": 1,
        "temporal_ensemble_momentum": None,
        **changes,
    }


def _network(policy: ActPolicy) -> dict[str, Any]:
    config = policy.config
    return {
        "chunk_size": config.chunk_size,
        "vision_backbone": config.encoder.model_name or "resnet18",
        "pretrained_backbone_weights": "ResNet18_Weights.IMAGENET1K_V1",
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
        "dropout": 0.2,
        "kl_weight": 20.0,
    }


def lerobot_weights(policy: ActPolicy) -> dict[str, Tensor]:
    positions = None if policy.posterior is None else policy.posterior.positions
    return {name: value.clone() for name, value in to_lerobot(policy.state_dict(), positions).items()}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4))


def write_lerobot_with_buffers(
    folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], statistics: Statistics
) -> Path:
    """As until September 2025: statistics are buffers among the weights, of those kinds that the modes need."""
    write_json(folder / "config.json", config)
    inputs = {name: value for name, value in statistics.items() if name != "action"}
    owners = {"normalize_inputs": inputs, "normalize_targets": ["action"], "unnormalize_outputs": ["action"]}
    buffers = {}
    for owner, names in owners.items():
        for name in names:
            mode = _mode_of(config, name)
            for kind in {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "IDENTITY": ()}[mode]:
                buffers[f"{owner}.buffer_{name.replace('.', '_')}.{kind}"] = statistics[name][kind].clone()
    save_file({**weights, **buffers}, folder / "model.safetensors")
    return folder


def _mode_of(config: Mapping[str, Any], name: str) -> str:
    if "input_shapes" in config:
        modes = {**config["input_normalization_modes"], **config["output_normalization_modes"]}
        return str(modes.get(name, "identity")).upper()
    features = {**config["input_features"], **config["output_features"]}
    return str(config["normalization_mapping"][features[name]["type"]])


def write_lerobot_with_processors(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    statistics: Statistics,
    rename_map: Mapping[str, str] | None = None,
) -> Path:
    """As since September 2025."""
    write_json(folder / "config.json", config)
    save_file(dict(weights), folder / "model.safetensors")
    flat = {f"{name}.{kind}": v.clone() for name, values in statistics.items() for kind, v in values.items()}
    norm_map = config["normalization_mapping"]

    def normalizer(kind: str, features: Any, file: str) -> dict[str, Any]:
        save_file(flat, folder / file)
        settings = {"eps": 1e-08, "features": features, "norm_map": norm_map}
        return {"registry_name": kind, "config": settings, "state_file": file}

    device = {"registry_name": "device_processor", "config": {"device": "cuda", "float_dtype": None}}
    both = {**config["input_features"], **config["output_features"]}
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": dict(rename_map or {})}},
        {"registry_name": "to_batch_processor", "config": {}},
        device,
        normalizer("normalizer_processor", both, "policy_preprocessor_step_3_normalizer_processor.safetensors"),
    ]
    file = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    after = [normalizer("unnormalizer_processor", config["output_features"], file), device]
    write_json(folder / "policy_preprocessor.json", {"name": "policy_preprocessor", "steps": before})
    write_json(folder / "policy_postprocessor.json", {"name": "policy_postprocessor", "steps": after})
    return folder


# The original ACT ----------------------------------------------------------------------------------


def original_weights(policy: ActPolicy, decoder_layers: int = 7) -> dict[str, Tensor]:
    """The state dict of its `ACTPolicy`; what nothing uses there is random."""
    weights = {name: value.clone() for name, value in to_original(policy.state_dict()).items()}
    first = "model.transformer.decoder.layers.0."
    for number in range(1, decoder_layers):
        other = f"model.transformer.decoder.layers.{number}."
        weights |= {
            name.replace(first, other): torch.randn(value.shape)
            for name, value in weights.items()
            if name.startswith(first)
        }
    dim = policy.config.hidden_dim
    weights |= {"model.is_pad_head.weight": torch.randn(1, dim), "model.is_pad_head.bias": torch.randn(1)}
    weights["model.pos_table"] = torch.randn(1, 2 + policy.config.chunk_size, dim)
    return weights


def original_statistics(state_dim: int = STATE_DIM, action_dim: int = ACTION_DIM) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    found = {"example_qpos": draw.normal(size=(30, state_dim)).astype(np.float32)}
    for kind, size in (("qpos", state_dim), ("action", action_dim)):
        found[f"{kind}_mean"] = draw.normal(size=size).astype(np.float32)
        found[f"{kind}_std"] = draw.uniform(0.01, 2, size).astype(np.float32)
    return found


def write_original(folder: Path, weights: Mapping[str, Tensor], statistics: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True)
    torch.save(dict(weights), folder / "policy_best.ckpt")
    (folder / "dataset_stats.pkl").write_bytes(pickle.dumps(dict(statistics)))
    return folder
