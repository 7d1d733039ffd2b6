"""A finished or running training run, opened for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bimact.config import Config, load_config
from bimact.errors import UserError, in_words
from bimact.files import expand_home
from bimact.policy.act import ActPolicy, build_act_policy
from bimact.train.checkpoint import RUN_CONFIG, checkpoint_path, load_weights
from bimact.train.device import choose_device
from bimact.train.resume import run_of


@dataclass(frozen=True)
class LoadedRun:
    """A run's config and the policy of one of its checkpoints, in evaluation mode on a device."""

    path: Path
    checkpoint: Path
    config: Config
    policy: ActPolicy
    device: torch.device


def run_folder(path: str | Path) -> Path:
    """A run's folder, given itself or by the folder of its checkpoints.

    Raises:
        UserError: if there is no run.
    """
    path = Path(expand_home(path))
    if path.is_file():
        raise UserError(f"{path} is a file: give the run's folder, and which of its checkpoints by --checkpoint")
    run = run_of(path)
    if not (run / RUN_CONFIG).is_file():
        raise UserError(f"{run.resolve()} is no run: it has no {RUN_CONFIG}")
    return run


def load_run(path: str | Path, checkpoint: str = "best", device: str = "auto") -> LoadedRun:
    """Load a run's policy.

    Args:
        path: as `run_folder` takes it.
        checkpoint: `best`, `last`, or an epoch's number.
        device: as in the config.

    Raises:
        UserError: if there is no such run or checkpoint, or the weights are not the policy's.
    """
    run = run_folder(path)
    config = load_config(run / RUN_CONFIG)
    weights = checkpoint_path(run, checkpoint)
    policy = build_act_policy(config)
    try:
        policy.load_state_dict(load_weights(weights))
    except RuntimeError as error:
        reason = in_words(error)
        raise UserError(f"{weights} does not fit {run / RUN_CONFIG}: {reason}") from error
    chosen = choose_device(device)
    return LoadedRun(run, weights, config, policy.to(chosen).eval(), chosen)
