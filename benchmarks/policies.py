"""The networks that are measured, as overrides of the training guide's config."""

from __future__ import annotations

from pathlib import Path

from measuring import ROOT

GUIDE = ROOT / "configs" / "policy_act.yaml"
# Random weights in the encoder: which ones does not change the work.
OF_GUIDE = ("encoder.pretrained=null", "encoder.freeze=true", "cameras=[top,left_wrist]")
# LeRobot's default ACT (lerobot/policies/act/configuration_act.py, release 0.4.4).
OF_LEROBOT = (
    "encoder.name=pri3d",
    "encoder.model_name=resnet18",
    "encoder.pretrained=null",
    "encoder.freeze=false",
    "encoder.fuse=tokens",
    "cameras=[top]",
    "chunk_size=100",
    "temporal_context=1",
    "num_decoder_layers=1",
    "lr_backbone=1e-5",
    "val_split=0",
)


def overrides(network: tuple[str, ...], dataset: Path, **settings: object) -> list[str]:
    """For `bimact.config.load_config(GUIDE, …)`."""
    quiet = {"device": "cpu", "tensorboard": "false"}
    return [*network, f"dataset_dir={dataset}", *(f"{key}={value}" for key, value in {**quiet, **settings}.items())]
