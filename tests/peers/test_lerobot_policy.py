"""Policies that LeRobot itself makes and loads: the same actions here and there.

Needs BIMACT_LEROBOT_PYTHON, the interpreter of an environment with LeRobot (see README.md).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_policies import (
    chunk_of,
    lerobot_config,
    lerobot_weights,
    observation,
    small_policy,
    statistics_of,
    write_lerobot_with_buffers,
)
from safetensors.torch import load_file, save_file

from bimact.interop.assembly import Converted
from bimact.interop.convert import PolicyFiles, convert, read
from bimact.interop.lerobot_writer import write_lerobot
from bimact.policy.act import ActPolicy

PYTHON = os.environ.get("BIMACT_LEROBOT_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="BIMACT_LEROBOT_PYTHON names no environment with LeRobot"),
]
SMALL = {"chunk_size": 12, "n_action_steps": 6, "dim_model": 32, "n_heads": 4, "dim_feedforward": 64, "latent_dim": 8}
MADE: dict[str, dict[str, Any]] = {
    "usual": {"modes": dict.fromkeys(("VISUAL", "STATE", "ACTION"), "MEAN_STD"), "own_images": False},
    "bounds": {
        "modes": dict.fromkeys(("VISUAL", "STATE", "ACTION"), "MIN_MAX"),
        "own_images": True,
        "settings": {"pre_norm": True, "n_decoder_layers": 2, "vision_backbone": "resnet34"},
    },
    "quantiles": {
        "modes": {"VISUAL": "MEAN_STD", "STATE": "QUANTILES", "ACTION": "QUANTILE10"},
        "own_images": True,
        "settings": {"use_vae": False, "n_action_steps": 1, "temporal_ensemble_coeff": 0.02},
    },
    "bare": {"modes": {}, "own_images": False, "settings": {"n_encoder_layers": 1, "vision_backbone": "resnet50"}},
}


def lerobot(folder: Path, tasks: list[dict[str, Any]]) -> None:
    """Run `lerobot_policy.py` in LeRobot's environment."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps(tasks, default=str))
    command = [str(PYTHON), str(Path(__file__).with_name("lerobot_policy.py")), str(plan)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def predicted(policy: ActPolicy, case: Path) -> torch.Tensor:
    return chunk_of(policy, {name: value[:, None] for name, value in load_file(case).items() if name != "chunk"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy and a case of each kind, and LeRobot's predictions of what bimact makes of them."""
    folder = tmp_path_factory.mktemp("made")
    tasks = [
        {"do": "make", "folder": folder / name, "case": folder / f"{name}.case", **kind}
        | {"settings": {**SMALL, **kind.get("settings", {})}}
        for name, kind in MADE.items()
    ]
    lerobot(folder, tasks)
    again = []
    for name in MADE:
        convert(PolicyFiles(folder / name), folder / f"{name}-run")
        convert(PolicyFiles(folder / f"{name}-run"), folder / f"{name}-again")
        case = folder / f"{name}.case"
        again.append({"do": "predict", "folder": folder / f"{name}-again", "case": case, "out": folder / f"{name}.out"})
    lerobot(folder, again)
    return folder


@pytest.mark.parametrize("name", MADE)
def test_lerobots_policy_becomes_ours(made: Path, name: str) -> None:
    expected = load_file(made / f"{name}.case")["chunk"]
    found = predicted(read(PolicyFiles(made / f"{name}-run")).policy, made / f"{name}.case")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MADE)
def test_and_lerobots_again(made: Path, name: str) -> None:
    expected = load_file(made / f"{name}.case")["chunk"]
    torch.testing.assert_close(load_file(made / f"{name}.out")["chunk"], expected, atol=1e-5, rtol=0)


def test_lerobot_loads_a_policy_that_was_trained_here(tmp_path: Path) -> None:
    """Its only camera has positions that LeRobot has no name for."""
    policy = small_policy(("top",), encoder={"fuse": "mean"})
    policy.camera_positions.data.normal_()
    policy.state_normalizer.std.uniform_(0.1, 2), policy.action_normalizer.mean.normal_()
    folder = tmp_path / "policy"
    folder.mkdir()
    write_lerobot(Converted(policy, "here"), folder)
    obs = {name: value[:, 0].contiguous() for name, value in observation(policy).items()}
    save_file(obs, tmp_path / "case")
    lerobot(tmp_path, [{"do": "predict", "folder": folder, "case": tmp_path / "case", "out": tmp_path / "out"}])
    expected = predicted(policy, tmp_path / "case")
    torch.testing.assert_close(load_file(tmp_path / "out")["chunk"], expected, atol=1e-5, rtol=0)


def test_the_layout_of_early_2025_means_what_lerobots_migration_takes_it_for(tmp_path: Path) -> None:
    policy = small_policy()
    config = lerobot_config(policy, pretrained_backbone_weights=None)
    old, new = tmp_path / "old", tmp_path / "new"
    write_lerobot_with_buffers(old, lerobot_weights(policy), config, statistics_of(policy))
    obs = {name: value[:, 0].contiguous() for name, value in observation(policy).items()}
    save_file(obs, tmp_path / "case")
    predict = {"do": "predict", "folder": new, "case": tmp_path / "case", "out": tmp_path / "out"}
    lerobot(tmp_path, [{"do": "migrate", "folder": old, "out": new}, predict])
    expected = load_file(tmp_path / "out")["chunk"]
    for folder in (old, new):
        found = predicted(read(PolicyFiles(folder)).policy, tmp_path / "case")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
