"""What a run saves, so that it can be used and exactly resumed: each file appears whole or not at all.

`checkpoint/act-train-N.pth` is the policy's plain state dict after epoch N. What resuming needs besides stands
in `act-train-N.state` beside it. `best` and `last` are further names of such a pair.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimact.errors import UserError
from bimact.files import atomic_write, flush_to_disk

FOLDER = "checkpoint"
WEIGHTS, STATE = ".pth", ".state"


def checkpoint_path(run: str | Path, which: str | int) -> Path:
    """The weights file of a run's checkpoint: `best`, `last` or an epoch's number.

    Raises:
        UserError: if the run has no such checkpoint; the sentence lists those it has.
    """
    folder = Path(run) / FOLDER
    path = folder / f"act-train-{which}{WEIGHTS}"
    if not path.exists():
        found = sorted(folder.glob(f"act-train-*{WEIGHTS}"), key=_epoch_of)
        names = ", ".join(entry.stem.removeprefix("act-train-") for entry in found) or "none"
        raise UserError(f"{Path(run).resolve()} has no checkpoint '{which}'; it has: {names}")
    return path


def _epoch_of(path: Path) -> tuple[int, str]:
    number = re.search(r"act-train-(\d+)$", path.stem)
    return (int(number[1]) if number else -1, path.stem)


def save_checkpoint(run: str | Path, name: str | int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Save a policy's state dict and the trainer's state under a name.

    The state is written first: weights that can be seen always have theirs.

    Returns:
        the path of the weights.
    """
    path = Path(run) / FOLDER / f"act-train-{name}{WEIGHTS}"
    for content, target in ((state, path.with_suffix(STATE)), (weights, path)):
        with atomic_write(target) as file:
            torch.save(dict(content), file)
    return path


def copy_checkpoint(path: Path, name: str) -> None:
    """Give a saved checkpoint a further name, without a second copy on disk where links are possible."""
    for suffix in (STATE, WEIGHTS):
        source, target = path.with_suffix(suffix), path.with_name(f"act-train-{name}{suffix}")
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(source, temporary)
        temporary.replace(target)
    flush_to_disk(path.parent)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """A policy's state dict, on the CPU; nothing in the file is run.

    Raises:
        UserError: if the file is missing, cut short, or not a state dict.
    """
    content = _load(Path(path))
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not the state dict of a policy")
    return content


def load_state(path: str | Path) -> dict[str, Any] | None:
    """The trainer's state beside a weights file; None if there is none."""
    state = Path(path).with_suffix(STATE)
    return _load(state) if state.exists() else None


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"checkpoint not found: {path.resolve()}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no state dict but a {type(content).__name__}")
    return content
