"""Runs inside an environment with LeRobot: makes policy folders, and predicts with given ones.

`python lerobot_policy.py PLAN.json`, where the plan is a list of tasks:

- {"do": "make", "folder", "case", "settings", "modes", "own_images"}: a policy with random weights and statistics,
  saved as LeRobot saves it, and what it predicts from random observations;
- {"do": "predict", "folder", "case", "out"}: what a saved policy predicts from a case's observations;
- {"do": "migrate", "folder", "out"}: LeRobot's own migration of a folder of early 2025 to its newest layout.

A case is a safetensors file with `image_<camera>` (B, 3, H, W) uint8, `state` (B, S) and `chunk` (B, C, A).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.repocard import RepoCard
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import migrate_policy_normalization
from safetensors.torch import load_file, save_file

CAMERAS, SIZE, STATE_DIM, ACTION_DIM = ("top", "left_wrist"), (48, 64), 14, 9
IMAGENET = {"mean": torch.tensor([0.485, 0.456, 0.406]), "std": torch.tensor([0.229, 0.224, 0.225])}


def make(task: dict[str, Any]) -> None:
    torch.manual_seed(0)
    images = {f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, *SIZE)) for camera in CAMERAS}
    config = ACTConfig(
        input_features={**images, "observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
        normalization_mapping={kind: NormalizationMode(mode) for kind, mode in task["modes"].items()},
        pretrained_backbone_weights=None,
        device="cpu",
        push_to_hub=False,
        **task["settings"],
    )
    policy = ACTPolicy(config)
    for name, value in policy.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            value.uniform_(-0.3, 0.3)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    statistics = {"observation.state": random_statistics(STATE_DIM), "action": random_statistics(ACTION_DIM)}
    of_images = random_statistics(3, low=0.3) if task["own_images"] else IMAGENET
    statistics |= {name: {kind: value.view(3, 1, 1) for kind, value in of_images.items()} for name in images}
    before, after = make_pre_post_processors(config, dataset_stats=statistics)
    for part in (policy, before, after):
        part.save_pretrained(task["folder"])
    observations = {f"image_{camera}": torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8) for camera in CAMERAS}
    observations["state"] = 3 * torch.randn(2, STATE_DIM)
    observations["state"][:, 0] = statistics["observation.state"]["min"][0]  # as constant as in training
    save_file({**observations, "chunk": predicted(task["folder"], observations)}, task["case"])


def random_statistics(size: int, low: float = -2.0) -> dict[str, torch.Tensor]:
    """Of all kinds, in order; the first number never changes, but where it is that of an image."""
    spread = torch.rand(8, size).cumsum(dim=0) / 8 + low + torch.rand(size)
    if low < 0:
        spread[:, 0] = 100.3
    names = ("min", "q01", "q10", "mean", "q90", "q99", "max")
    return {**dict(zip(names, spread)), "std": 0.1 + torch.rand(size)}


def predicted(folder: str, observations: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, C, A), as LeRobot's own evaluation goes about it."""
    config = PreTrainedConfig.from_pretrained(folder)
    policy = ACTPolicy.from_pretrained(folder, config=config, strict=True).eval()
    before, after = make_pre_post_processors(config, pretrained_path=folder)
    batch = {
        f"observation.images.{name.removeprefix('image_')}": value.float() / 255
        for name, value in observations.items()
        if name.startswith("image_")
    }
    with torch.inference_mode():
        chunk = policy.predict_action_chunk(before({**batch, "observation.state": observations["state"]}))
        return torch.stack([after(chunk[:, step]) for step in range(chunk.shape[1])], dim=1)


def predict(task: dict[str, Any]) -> None:
    observations = load_file(task["case"])
    observations.pop("chunk", None)
    save_file({"chunk": predicted(task["folder"], observations)}, task["out"])


def migrate(task: dict[str, Any]) -> None:
    RepoCard.validate = lambda *_, **__: None  # it asks the hub
    sys.argv = ["migrate", "--pretrained-path", task["folder"], "--output-dir", task["out"]]
    migrate_policy_normalization.main()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for entry in json.loads(Path(sys.argv[1]).read_text()):
        {"make": make, "predict": predict, "migrate": migrate}[entry["do"]](entry)
