"""AdamW, its learning-rate schedule, and the scaling with the number of processes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bimact.config import Config
from bimact.policy.act import ActPolicy


def make_optimizer(policy: ActPolicy, config: Config, batches_per_step: int = 1) -> torch.optim.Optimizer:
    """AdamW with a group for the image backbone; parameters without gradient have no state.

    Args:
        policy: whose parameters.
        config: for the learning rates and the weight decay.
        batches_per_step: over all processes and accumulated batches; `scale_lr` scales the learning rates by it.
    """
    backbone: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("image_encoder.") else rest).append(parameter)
    scale = {"none": 1.0, "linear": batches_per_step, "sqrt": math.sqrt(batches_per_step)}[config.scale_lr]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": scale * config.lr}]
    if backbone:
        groups.append({"params": backbone, "lr": scale * (config.lr_backbone or config.lr)})
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, config: Config, step: int, total_steps: int) -> None:
    """Set the learning rates of the next step."""
    factor = learning_rate_factor(config, step, total_steps)
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]


def learning_rate_factor(config: Config, step: int, total_steps: int) -> float:
    """Factor of the learning rate at an optimizer step: a linear warm-up, then constant or a cosine to 0."""
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> bool:
    """Load the moments of a saved `optimizer.state_dict()`, but the settings of this run.

    Returns:
        False if they are of other parameters (an encoder that was frozen before, or is now): nothing is loaded.
    """
    current = optimizer.state_dict()
    if [len(group["params"]) for group in saved["param_groups"]] != [len(g["params"]) for g in current["param_groups"]]:
        return False
    optimizer.load_state_dict({"state": saved["state"], "param_groups": current["param_groups"]})
    return True
