"""robosuite's two-arm lift as an external package: its demonstrator lifts the pot, the same scene for the same seed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "robosuite"
pytestmark = [pytest.mark.slow, pytest.mark.gl]


@pytest.fixture(scope="module")
def task() -> Any:
    if importlib.util.find_spec("robosuite") is None:  # not imported here: it would load MuJoCo before bimact
        pytest.skip("robosuite is not installed")
    sys.path.insert(0, str(FOLDER))
    try:
        from bimact_robosuite.two_arm_lift import TWO_ARM_LIFT
    finally:
        sys.path.remove(str(FOLDER))
    return TWO_ARM_LIFT


def test_the_entry_point_names_the_task(task: Any) -> None:
    text = (FOLDER / "pyproject.toml").read_text()
    assert f'{task.name} = "bimact_robosuite.two_arm_lift:TWO_ARM_LIFT"' in text


def test_demonstrations_lift_the_pot(task: Any) -> None:
    environment, demonstrator = task.environment(("agentview",), (24, 32)), task.demonstrator()
    assert environment.action_space.shape == (16,) == (len(task.action_names),)
    succeeded = 0
    for seed in range(2):
        actions = demonstrator(seed, 0.0)
        assert actions.shape == (task.episode_steps, 16)
        np.testing.assert_array_equal(actions, demonstrator(seed, 0.0))
        assert np.abs(actions - demonstrator(seed, 0.01)).max() > 1e-3
        observation, _ = environment.reset(seed=seed)
        assert observation["image_agentview"].std() > 10
        np.testing.assert_allclose(observation["state"][:7], actions[0, :7], atol=0.1)
        rewards = [environment.advance(action) for action in actions]
        succeeded += environment.is_success
        assert set(rewards) >= {0, 2, 4}  # both handles at once, or one after the other
    assert succeeded == 2
    environment.close()


def test_a_scene_depends_on_its_seed_alone(task: Any) -> None:
    one, other = task.environment(), task.environment()
    states = []
    for seed in (3, 4, 3):
        one.reset(seed=seed)
        for _ in range(3):
            one.advance(one.hold())
        states.append(one.data.qpos.copy())
    other.reset(seed=3)
    for _ in range(3):
        other.advance(other.hold())
    np.testing.assert_array_equal(states[0], states[2])
    np.testing.assert_array_equal(states[0], other.data.qpos)
    assert np.abs(states[0] - states[1]).max() > 0.01
