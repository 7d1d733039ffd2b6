"""Small policies and trainings for the tests of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import tiny_config
from torch import Tensor

from bimact.config import Config, load_config
from bimact.policy.act import ActPolicy
from bimact.run_directory import read_metrics
from bimact.training.act_trainer import ActTrainer, train_run
from bimact.training.prepare import PreparedRun, prepare_run

ROOT = Path(__file__).parents[2]
SIZES: dict[str, Any] = {"state_dim": 14, "action_dim": 14, "cameras": ["left", "right"], "dropout": 0.0}
LENGTHS = [9, 12, 7, 10]  # of the fixture `dataset`


def make_policy(seed: int = 0, **changes: Any) -> ActPolicy:
    torch.manual_seed(seed)
    return ActPolicy(tiny_config(**{**SIZES, **changes})).eval()


def make_batch(config: Config, size: int = 2) -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(0)
    steps = (size, config.temporal_context)
    obs = {
        f"image_{camera}": torch.randint(0, 256, (*steps, 3, 16, 24), dtype=torch.uint8, generator=draw)
        for camera in ("left", "right")
    }
    obs["state"] = torch.randn(*steps, 14, generator=draw)
    obs["action_is_pad"] = torch.zeros(size, config.chunk_size, dtype=torch.bool)
    return obs, torch.randn(size, config.chunk_size, 14, generator=draw)


@torch.no_grad()
def predict(policy: ActPolicy) -> Tensor:
    return policy(make_batch(policy.config)[0])[0]


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def guides_policy(*changes: str) -> ActPolicy:
    """The policy of configs/policy_act.yaml, without memory: shapes and counts alone."""
    of_data = ["state_dim=14", "cameras=[left,right]", "encoder.pretrained=null"]
    with torch.device("meta"):
        return ActPolicy(load_config(ROOT / "configs" / "policy_act.yaml", [*of_data, *changes])).eval()


def train(dataset: Path, run: Path, **changes: Any) -> ActTrainer:
    return train_run(prepare(dataset, run, **changes))


def prepare(dataset: Path, run: Path, **changes: Any) -> PreparedRun:
    settings = {"mixed_precision": "no", "log_frequency": 1, "checkpoint_frequency": 100, **changes}
    return prepare_run(tiny_config(dataset_dir=str(dataset), output_dir=str(run), **settings))


def step_records(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run / "metrics.jsonl") if "total_loss" in record]


def weights(run: Path) -> dict[str, Tensor]:
    return torch.load(run / "checkpoint" / "act-train-last.pth")


def expected_count(config: Config, of_encoder: int, encoder_width: int) -> int:
    """Numbers in a policy with fused cameras (`mean`), counted layer by layer from its definition."""
    dim, forward, latent = config.hidden_dim, config.dim_feedforward, config.latent_dim
    actions, states = 14, 14
    attention, norm = 4 * dim * dim + 4 * dim, 2 * dim
    feed_forward = 2 * dim * forward + forward + dim
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    posterior = dim + (states + 1) * dim + (actions + 1) * dim + (dim + 1) * 2 * latent
    posterior += config.n_vae_encoder_layers * encoder_layer
    inputs = (latent + 1) * dim + (states + 1) * dim + (encoder_width + 1) * dim
    positions = (1 + config.temporal_context) * dim + config.temporal_context * dim + dim  # vectors, steps, camera
    layers = config.num_encoder_layers * encoder_layer + config.num_decoder_layers * decoder_layer + norm
    outputs = config.chunk_size * dim + (dim + 1) * actions
    return of_encoder + posterior + inputs + positions + layers + outputs
