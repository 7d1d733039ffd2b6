"""Loading a run's policy from one of its checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bimact.config import Config
from bimact.device import choose_device
from bimact.errors import UserError, in_words
from bimact.policy.act import ActPolicy, build_act_policy
from bimact.policy.metadata import Interface
from bimact.policy.weights import BIMACT, read_policy_weights
from bimact.run_directory import Run


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy's network in evaluation mode on a device, and its source.

    Attributes:
        network: the policy itself.
        config: complete.
        device: of the network.
        run: the run directory.
        checkpoint: the weights file.
        interface: of the training data.
        folder: where results of its evaluation and videos go; None: the run directory.
    """

    network: ActPolicy
    config: Config
    device: torch.device
    run: Run
    checkpoint: Path
    interface: Interface
    folder: Path | None = None

    @property
    def results(self) -> Path:
        return self.folder or self.run.path


def load_run(path: str | Path, checkpoint: str | int = "best", device: str = "auto") -> LoadedPolicy:
    """Load a run's policy.

    Args:
        path: the run directory, or that of its checkpoints.
        checkpoint: `best`, `last`, or an epoch's number.
        device: cuda, cuda:1, mps, cpu, or auto.

    Raises:
        UserError: if there is no such run or checkpoint, or the weights are not the policy's.
    """
    run = Run.existing(path)
    weights = run.checkpoint(checkpoint)
    network = build_act_policy(run.config)
    try:
        network.load_state_dict(load_weights(weights))
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit {run.config_path}: {in_words(error)}") from error
    has_interface = run.interface_path.is_file()
    interface = Interface.read(run.interface_path) if has_interface else Interface.of_config(run.config)
    chosen = choose_device(device)
    return LoadedPolicy(network.to(chosen).eval(), run.config, chosen, run, weights, interface)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """A policy's state dict, on the CPU; no code in the file is run.

    It may also lie under a key such as `model_state_dict`, have names that begin with `module.`, or be a file of
    safetensors; the main process prints what else was chosen there.

    Raises:
        UserError: if the file is missing, cut short, or holds no policy of bimact; the sentence says what it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint not found: {path.resolve()}")
    found = read_policy_weights(path, BIMACT)
    if os.environ.get("RANK", "0") == "0":
        for note in found.notes:
            print(f"Note: {path}: {note}", flush=True)
    return found.tensors
