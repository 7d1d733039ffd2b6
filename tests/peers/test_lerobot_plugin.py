"""LeRobot runs a policy of bimact on a robot, by packages/lerobot-policy-bimact: 0.4 as it records, 0.6 in a rollout.

Needs BIMACT_LEROBOT_PYTHON, the interpreter of an environment with LeRobot, omegaconf and timm (see README.md).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import small_policy

import bimact
from bimact.interop.lerobot_writer import write_lerobot_plugin
from bimact.policy.act import ActPolicy

PYTHON = os.environ.get("BIMACT_LEROBOT_PYTHON")
ROOT = Path(__file__).parents[2]
NAMES = tuple(f"joint_{number}.pos" for number in range(14))  # LeRobot 0.6 knows positions by their ending
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


def export(folder: Path, tasks: tuple[str, ...] | None = None, **changes: Any) -> Path:
    policy = small_policy(temporal_context=3, execute_steps=2, tasks=None if tasks is None else list(tasks), **changes)
    network = ActPolicy(policy.config).eval()
    draw = torch.Generator().manual_seed(1)
    for normalizer in (network.state_normalizer, network.action_normalizer):
        normalizer.mean.copy_(torch.randn(14, generator=draw))
        normalizer.std.copy_(torch.rand(14, generator=draw) + 0.5)
    interface = replace(policy.metadata.interface, state_names=NAMES, action_names=NAMES, tasks=tasks)
    write_lerobot_plugin(network, replace(policy.metadata, interface=interface), folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rolls_out() -> bool:
    """Whether policies are run by `lerobot-rollout`, as from 0.6 on, and not by `lerobot-record`."""
    code = "from importlib.metadata import version; print(version('lerobot'))"
    version = subprocess.run([str(PYTHON), "-c", code], check=True, capture_output=True, text=True).stdout
    return tuple(map(int, version.split(".")[:2])) >= (0, 6)


def run_policy(
    plugin: Path, policy: Path, tmp_path: Path, names: list[str], *options: str, rolls_out: bool
) -> tuple[int, str]:
    options = (f"--policy.path={policy}", "--policy.device=cpu", *options)
    if rolls_out:
        command = "rollout"
        options += ("--task=cups", "--fps=50", "--duration=0.5", "--return_to_initial_position=false")
    else:
        command = "record"
        options = (
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
        [str(PYTHON), str(script), command, str(tmp_path / "log.npz"), json.dumps(names), *options],
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return result.returncode, result.stdout


def joints_option(names: Sequence[str], rolls_out: bool) -> tuple[str, ...]:
    return (f"--policy.robot_joints={json.dumps(list(names))}",) if rolls_out else ()


@pytest.mark.parametrize("options", [(), ("--policy.n_action_steps=4",), ("--policy.temporal_ensemble=true",)])
def test_the_robot_gets_the_policys_actions(
    plugin: Path, exported: Path, tmp_path: Path, options: tuple[str, ...], rolls_out: bool
) -> None:
    """The robot has its joints in another order, and its cameras too."""
    order = np.random.default_rng(3).permutation(14)
    names = [NAMES[place] for place in order]
    given = (*options, *joints_option(names, rolls_out))
    status, output = run_policy(plugin, exported, tmp_path, names, *given, rolls_out=rolls_out)
    assert status == 0, output
    assert ("Note: the policy was trained at 50 Hz: run it at that rate (--fps=50)" in output) == rolls_out
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


def test_the_task_reaches_a_policy_of_several(plugin: Path, tmp_path: Path, rolls_out: bool) -> None:
    model = tmp_path / "model"
    model.mkdir()
    export(model, tasks=("plates", "cups"), task_conditioning="id")
    given = joints_option(NAMES, rolls_out)
    status, output = run_policy(plugin, model, tmp_path, list(NAMES), *given, rolls_out=rolls_out)
    assert status == 0, output
    log = np.load(tmp_path / "log.npz")
    for task, is_told in (("cups", True), ("plates", False)):
        policy = bimact.load_policy(model / "run", device="cpu", precision="no")
        seen = {name: log[name][0] for name in ("state", "image_left", "image_right")}
        action = policy.act({**seen, "task": task})
        assert np.allclose(log["actions"][0], action, atol=1e-5) == is_told


def test_another_robot_is_refused_before_it_moves(
    plugin: Path, exported: Path, tmp_path: Path, rolls_out: bool
) -> None:
    names = [*NAMES[:13], "waist.pos"]
    given = joints_option(names, rolls_out)
    status, output = run_policy(plugin, exported, tmp_path, names, *given, rolls_out=rolls_out)
    assert status != 0 and "the robot has no state joint_13.pos: its states are joint_0.pos" in output
    assert not (tmp_path / "log.npz").exists()


def test_a_rollout_needs_the_robots_order(plugin: Path, exported: Path, tmp_path: Path, rolls_out: bool) -> None:
    if not rolls_out:
        pytest.skip("LeRobot 0.4 tells it to the policy")
    status, output = run_policy(plugin, exported, tmp_path, list(NAMES), rolls_out=True)
    assert status != 0 and "pass --policy.robot_joints='[…]' in the robot's order; the policy's order is" in output
    assert not (tmp_path / "log.npz").exists()
    few = joints_option([*NAMES, "joint_14.pos"], True)
    status, output = run_policy(plugin, exported, tmp_path, list(NAMES), *few, rolls_out=True)
    assert status != 0 and "the robot takes 15 actions" in output


def test_another_rate_is_said(plugin: Path, exported: Path, tmp_path: Path, rolls_out: bool) -> None:
    if rolls_out:
        pytest.skip("LeRobot 0.6 does not tell its rate to the policy")
    status, output = run_policy(plugin, exported, tmp_path, list(NAMES), "--dataset.fps=25", rolls_out=False)
    assert status == 0, output
    assert "Warning: the policy was trained at 50 Hz, LeRobot runs it at 25 Hz (--dataset.fps)" in output
