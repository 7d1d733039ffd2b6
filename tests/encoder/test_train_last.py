"""Encoders whose last blocks learn: trunk and head together are the encoder, and only the head learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config

from bimact.config import EncoderConfig
from bimact.encoder.base import build_encoder
from bimact.errors import UserError
from bimact.run_directory import read_metrics
from bimact.training.act_trainer import ActTrainer, train_run
from bimact.training.prepare import prepare_run

CLIP = {"name": "clip_vit", "model_name": "ViT-B-32", "image_size": [64, 64]}
RESNET = {"name": "pri3d", "model_name": "resnet18"}
ENCODERS = [CLIP, {**CLIP, "spatial": True}, RESNET, {**RESNET, "spatial": False}]


def make(**settings: Any) -> Any:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(**{"pretrained": None, "freeze": True, **settings}))


def frames() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=draw)


@pytest.mark.slow
@pytest.mark.parametrize("settings", ENCODERS)
@pytest.mark.parametrize("blocks", [1, 3])
def test_trunk_and_head_are_the_encoder(settings: dict[str, Any], blocks: int) -> None:
    whole, divided = make(**settings), make(**settings, train_last=blocks)
    divided.load_state_dict(whole.state_dict())
    features = divided.trunk(frames())
    assert features.shape[1:] == divided.trunk_shape(64, 96)
    assert not features.requires_grad
    expected = whole(frames())
    torch.testing.assert_close(divided(frames()), expected, atol=1e-5, rtol=1e-5)
    tokens = divided.head(features)
    assert tokens.shape[1:3] == divided.token_grid(64, 96)
    torch.testing.assert_close(tokens.flatten(1, 2), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", ENCODERS)
def test_the_head_learns_and_nothing_else(settings: dict[str, Any]) -> None:
    encoder = make(**settings, train_last=1)
    encoder(frames()).square().sum().backward()
    learning = {name for name, value in encoder.named_parameters() if value.requires_grad}
    assert learning == {name for name, value in encoder.named_parameters() if value.grad is not None}
    last = "resblocks.11." if settings["name"] == "clip_vit" else "layer4."
    assert learning and all(last in name or "ln_post" in name or name == "visual.proj" for name in learning)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({**RESNET, "freeze": False}, r"train_last is for a frozen encoder: set encoder\.freeze to true"),
        ({**RESNET, "train_last": 5}, "train_last is 5, a ResNet has 4 stages"),
        ({**CLIP, "train_last": 13}, "train_last is 13, the ViT has 12 blocks"),
        ({"name": "conv"}, "train_last is for ViTs of clip_vit and for pri3d"),
        ({"name": "clip_vit", "model_name": "RN50"}, "train_last is for ViTs of clip_vit and for pri3d"),
    ],
)
def test_what_cannot_be_divided(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(**{"train_last": 1, **settings})


@pytest.mark.slow
def test_training_on_what_the_trunk_gives(dataset: Path, tmp_path: Path) -> None:
    """The same losses with the cache and without; the head has learned, the trunk has not; a resume finds the cache."""
    runs = {}
    for name, cached in (("cached", True), ("anew", False)):
        encoder = {**RESNET, "freeze": True, "train_last": 1, "fuse": "tokens"}
        settings = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / name), "feature_cache": cached}
        train_run(prepare_run(tiny_config(**settings, encoder=encoder, mixed_precision="no", lr=1e-3)))
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        runs[name] = [[record[key] for key in ("total_loss", "val_loss") if key in record] for record in records]
    for one, other in zip(runs["cached"], runs["anew"]):
        assert one == pytest.approx(other, rel=1e-4)
    trained = torch.load(tmp_path / "cached" / "checkpoint" / "act-train-last.pth")
    torch.manual_seed(tiny_config().seed)
    first = ActTrainer(
        prepare_run(
            tiny_config(
                dataset_dir=str(dataset),
                output_dir=str(tmp_path / "third"),
                feature_cache=True,
                encoder={**RESNET, "freeze": True, "train_last": 1, "fuse": "tokens"},
                mixed_precision="no",
                lr=1e-3,
            )
        )
    ).unwrapped_policy.state_dict()
    changed = {name for name in first if not torch.equal(first[name], trained[name]) and "image_encoder" in name}
    assert changed and all("layer4" in name for name in changed)
