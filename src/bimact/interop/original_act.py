"""A checkpoint of the original ACT → a policy of bimact.

Formats: `policy_best.ckpt` and `dataset_stats.pkl` as `imitate_episodes.py` of https://github.com/tonyzhaozh/act
(revision 742c753) writes them, or that of ACT++ (https://github.com/MarkFzp/act-plus-plus, revision 26bab07).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bimact.data.safe_pickle import load_pickle
from bimact.errors import UserError
from bimact.files import refuse_pointer
from bimact.interop.assembly import (
    Affine,
    Converted,
    assemble,
    checked_cameras,
    network_settings,
    read_policy,
)
from bimact.interop.original_act_weights import from_original
from bimact.policy.weights import ORIGINAL

STATISTICS = "dataset_stats.pkl"
HEADS = 8  # in `imitate_episodes.py`
IMAGE_SIZE = (480, 640)  # of the original's simulation and of ALOHA's cameras
# Only the CVAE's encoder uses these; ACT++ keeps them even without it.
_POSTERIOR = ("model.cls_embed.", "model.encoder_joint_proj.", "model.encoder_action_proj.", "model.latent_proj.")


def original_checkpoint(folder: Path) -> tuple[Path, list[str]] | None:
    """The checkpoint of a training's folder: the best, else the last, else the one with the highest number.

    Forks use names such as `policy_step_1000_seed_0.ckpt`.

    Returns:
        the file, with a note if there are others; None if there is none.
    """
    found = [path for path in folder.glob("*.ckpt") if path.is_file()]
    found = found or [path for path in folder.glob("policy*") if path.suffix in (".pt", ".pth", ".safetensors")]
    if not found:
        return None
    path = max(found, key=_rank)
    reason = ("it has the highest number", "it is the last", "it is the best")[_rank(path)[0]]
    note = f"{path.name} is taken of {len(found)} checkpoints: {reason}; give another by its file name"
    return path, [note] if len(found) > 1 else []


def _rank(path: Path) -> tuple[int, int, str]:
    """A sort key of checkpoints: the best, the last, then those with higher numbers come last."""
    words = re.split(r"[\W_]+|(?<=[a-z])(?=\d)", path.stem.lower())
    numbers = [int(word) for word in words if word.isdecimal()]
    counted = [
        int(n) for name, n in pairwise(words) if name in ("step", "epoch", "iter", "iteration") and n.isdecimal()
    ]
    kind = 2 if "best" in words else 1 if {"last", "latest", "final"} & set(words) else 0
    return kind, (counted or numbers or [-1])[0], path.name


def read_original(
    path: Path,
    cameras: Sequence[str] | None,
    statistics: Path | None = None,
    heads: int = HEADS,
    image_size: tuple[int, int] = IMAGE_SIZE,
) -> Converted:
    """Read a policy of the original ACT.

    Args:
        path: the checkpoint.
        cameras: that it was trained with.
        statistics: `dataset_stats.pkl`; None: next to the checkpoint.
        heads: number of attention heads, which the weights do not determine.
        image_size: height and width of the cameras' images.

    Raises:
        UserError: if files are missing or damaged, or the policy has features that bimact's lacks.
    """
    found = read_policy(path, ORIGINAL)
    weights = found.tensors
    _refuse_inexpressible(weights, path)
    if cameras is None:
        raise UserError(
            f"the weights in {path} do not name their cameras: pass --cameras top, or "
            "--cameras cam_high,cam_low,cam_left_wrist,cam_right_wrist"
        )
    notes = list(found.notes)
    if not any(name.startswith("model.encoder.") for name in weights):
        weights = {name: value for name, value in weights.items() if not name.startswith(_POSTERIOR)}
        notes.append("it was trained without the CVAE's encoder")
    try:
        ours, unused = from_original(weights)
    except KeyError as error:
        raise UserError(f"{path} is not of the original ACT: {ascii(error.args[0])[1:-1][:200]}") from None
    if unused:
        notes.append(f"{unused} of {unused + 1} decoder layers are left out: the original uses the first alone")
    settings = {
        **network_settings(ours, path),
        "cameras": checked_cameras(cameras),
        "nheads": heads,
        "image_size": list(image_size),
    }
    notes.append(f"{heads} attention heads and images of {image_size[0]}x{image_size[1]} are assumed")
    file = statistics or path.parent / STATISTICS
    if not file.is_file():
        raise UserError(f"{file} is missing, by which the policy normalises: pass it by --stats")
    refuse_pointer(file)
    stats = load_pickle(file)
    if not isinstance(stats, dict):
        raise UserError(f"{file} holds no statistics of the original ACT")
    state = _affine(stats, "qpos", settings["state_dim"], file)
    action = _affine(stats, "action", settings["action_dim"], file)
    policy = assemble(settings, ours, state, action, path)
    return Converted(policy, "checkpoint of the original ACT", tuple(notes))


def _refuse_inexpressible(weights: Mapping[str, Tensor], path: Path) -> None:
    to, of = weights.get("model.latent_proj.weight"), weights.get("model.latent_out_proj.weight")
    found = {
        "it has a backbone for each camera, and bimact one for all": "model.backbones.1.0.body.conv1.weight" in weights,
        "it sees the environment's state": "model.input_proj_env_state.weight" in weights,
        "its positions in images are learned": "model.backbones.0.1.row_embed.weight" in weights,
        # A latent of Z numbers is projected from Z, and to a mean and a variance for each.
        "its latent is discrete (use_vq)": to is not None and of is not None and len(to) != 2 * of.shape[-1],
    }
    obstacles = [sentence for sentence, holds in found.items() if holds]
    if obstacles:
        raise UserError(f"{path} cannot become a policy of bimact: {'; '.join(obstacles)}")


def _affine(stats: Mapping[str, Any], kind: str, size: int, path: Path) -> Affine:
    """The normalisation of `qpos` or `action`."""
    found = []
    for name in (f"{kind}_mean", f"{kind}_std"):
        value = stats.get(name)
        if not (isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.shape == (size,)):
            raise UserError(f"{path} has no '{name}' of {size} numbers: pass those of this policy by --stats")
        found.append(torch.from_numpy(np.array(value, dtype=np.float32)))
    mean, std = found
    if not bool(mean.isfinite().all() and std.isfinite().all()) or float(std.min()) <= 0:
        raise UserError(f"{path} has statistics of {kind} that are not finite, or deviations of 0")
    return Affine(mean, std)
