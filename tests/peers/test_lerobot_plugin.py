"""LeRobot's record command runs a policy of bimact on a robot, by packages/lerobot-policy-bimact.

Needs BIMACT_LEROBOT_PYTHON, the interpreter of an environment with LeRobot, omegaconf and timm (see README.md).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import NAMES, small_policy

import bimact
from bimact.interop.lerobot_writer import write_lerobot_plugin
from bimact.policy.act import ActPolicy

PYTHON = os.environ.get("BIMACT_LEROBOT_PYTHON")
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="BIMACT_LEROBOT_PYTHON names no environment with LeRobot"),
]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed distribution, by whose name LeRobot finds it."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    shutil.copytree(ROOT / "packages/lerobot-policy-bimact", source)
    command = [str(PYTHON), "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "site"), str(source)]
    subprocess.run(command, check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = small_policy(temporal_context=3, execute_steps=2)
    network = ActPolicy(policy.config).eval()
    draw = torch.Generator().manual_seed(1)
    for normalizer in (network.state_normalizer, network.action_normalizer):
        normalizer.mean.copy_(torch.randn(14, generator=draw))
        normalizer.std.copy_(torch.rand(14, generator=draw) + 0.5)
    folder = tmp_path_factory.mktemp("model")
    write_lerobot_plugin(network, policy.metadata, folder)
    return folder


def record(plugin: Path, policy: Path, tmp_path: Path, names: list[str], *options: str) -> tuple[int, str]:
    options = (
        f"--policy.path={policy}",
        "--policy.device=cpu",
        f"--dataset.root={tmp_path / 'recorded'}",
        "--dataset.repo_id=test/eval_cups",
        "--dataset.single_task=cups",
        "--dataset.fps=50",
        "--dataset.num_episodes=1",
        "--dataset.episode_time_s=0.5",
        "--dataset.reset_time_s=0",
        "--dataset.vcodec=h264",  # without videos it leaves out the cameras
        "--dataset.push_to_hub=false",
        "--play_sounds=false",
        *options,
    )
    paths = os.pathsep.join(map(str, (plugin, ROOT / "src")))
    script = Path(__file__).with_name("lerobot_plugin.py")
    result = subprocess.run(
        [str(PYTHON), str(script), str(tmp_path / "log.npz"), json.dumps(names), *options],
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return result.returncode, result.stdout


@pytest.mark.parametrize("options", [(), ("--policy.n_action_steps=4",), ("--policy.temporal_ensemble=true",)])
def test_record_acts_as_the_policy(plugin: Path, exported: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """The robot has its joints in another order, and its cameras too."""
    order = np.random.default_rng(3).permutation(14)
    status, output = record(plugin, exported, tmp_path, [NAMES[place] for place in order], *options)
    assert status == 0, output
    log = np.load(tmp_path / "log.npz")
    execution = {name.removeprefix("--policy."): json.loads(value) for name, value in (o.split("=") for o in options)}
    policy = bimact.load_policy(
        exported / "run",
        device="cpu",
        precision="no",
        execute_steps=execution.get("n_action_steps"),
        temporal_ensemble=execution.get("temporal_ensemble"),
    )
    steps = len(log["actions"])
    assert steps > 5
    for step in range(steps):
        state = np.empty(14, np.float32)
        state[order] = log["state"][step]
        images = {name: log[name][step] for name in ("image_left", "image_right")}
        np.testing.assert_allclose(log["actions"][step], policy.act({"state": state, **images})[order], atol=1e-5)


def test_another_robot_is_refused_before_it_moves(plugin: Path, exported: Path, tmp_path: Path) -> None:
    status, output = record(plugin, exported, tmp_path, [*NAMES[:13], "waist"])
    assert status != 0 and "the robot has no state joint_13: its states are joint_0" in output
    assert not (tmp_path / "log.npz").exists()


def test_another_rate_is_said(plugin: Path, exported: Path, tmp_path: Path) -> None:
    status, output = record(plugin, exported, tmp_path, list(NAMES), "--dataset.fps=25")
    assert status == 0, output
    assert "Warning: the policy was trained at 50 Hz, LeRobot runs it at 25 Hz (--dataset.fps)" in output
