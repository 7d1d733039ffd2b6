"""Rewards and units of the tasks, and the demonstrators' success."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import LONG

from bimact.errors import UserError
from bimact.sim.base import MAX_REWARD
from bimact.sim.demonstrators import GRIPPER_START, Waypoint, demonstrate
from bimact.sim.environment import AlohaEnv
from bimact.sim.tasks import (
    JOINTS,
    TASKS,
    Scene,
    control_of,
    find_task,
    finger_position,
    gripper_opening,
    load_model,
    mujoco,
    state_of,
)

RIGHT, LEFT = "vx300s_right/10_right_gripper_finger", "vx300s_left/10_left_gripper_finger"


def _reward(task: str, *touching: tuple[str, str]) -> int:
    return TASKS[task].reward(lambda first, second: (first, second) in touching)


def test_stages_of_transfer_cube() -> None:
    table, right, left = ("red_box", "table"), ("red_box", RIGHT), ("red_box", LEFT)
    assert _reward("transfer_cube") == 0
    assert _reward("transfer_cube", table) == 0
    assert _reward("transfer_cube", table, right) == 1
    assert _reward("transfer_cube", right) == 2
    assert _reward("transfer_cube", right, left, table) == 3
    assert _reward("transfer_cube", left) == 4


def test_stages_of_insertion() -> None:
    right, left = ("red_peg", RIGHT), ("socket-2", LEFT)
    assert _reward("insertion", right) == 0
    assert _reward("insertion", right, left, ("red_peg", "table")) == 1
    assert _reward("insertion", right, left, ("socket-3", "table")) == 1
    assert _reward("insertion", right, left) == 2
    assert _reward("insertion", right, left, ("red_peg", "socket-1")) == 3
    assert _reward("insertion", ("red_peg", "socket-1"), ("red_peg", "table")) == 0
    assert _reward("insertion", right, left, ("red_peg", "pin")) == 4


def test_units_and_their_inverse() -> None:
    assert gripper_opening(finger_position(0.3)) == pytest.approx(0.3)
    scene = Scene(TASKS["transfer_cube"])
    scene.reset(TASKS["transfer_cube"].sample_objects(0))
    state = state_of(scene.data)
    assert state.shape == (len(JOINTS),) == (14,)
    np.testing.assert_allclose(state[[0, 1, 2, 7, 8, 9]], [0, -0.96, 1.16] * 2)
    assert state[6] == pytest.approx(0.1, abs=1e-3)
    np.testing.assert_allclose(control_of(state), scene.data.qpos[:16], atol=1e-12)


def test_scenes_are_those_of_gym_aloha() -> None:
    """The draws of gym_aloha.utils, whose package cannot be imported without dm_control's OpenGL."""
    draw = np.random.RandomState(7)
    np.testing.assert_array_equal(
        TASKS["transfer_cube"].sample_objects(7),
        [[*draw.uniform([0, 0.4, 0.05], [0.2, 0.6, 0.05]), 1, 0, 0, 0]],
    )
    draw = np.random.RandomState(7)
    peg, socket = TASKS["insertion"].sample_objects(7)
    np.testing.assert_array_equal(peg[:3], draw.uniform([0.1, 0.4, 0.05], [0.2, 0.6, 0.05]))
    np.testing.assert_array_equal(socket[:3], draw.uniform([-0.2, 0.4, 0.05], [-0.1, 0.6, 0.05]))


def test_physics_settings() -> None:
    model = load_model(TASKS["insertion"], mocap=True)
    if hasattr(mujoco.mjtDisableBit, "mjDSBL_MULTICCD"):
        assert model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_MULTICCD
    gripper = model.body("vx300s_left/gripper_link").id
    assert model.body_invweight0[gripper, 0] == model.body_invweight0[gripper, 1]


def _highest_rewards(name: str, seeds: range, noise: float = 0.0) -> list[int]:
    task = find_task(name)
    demonstrator, joint_controlled = Scene(task, mocap=True), Scene(task)
    highest = []
    for seed in seeds:
        joint_controlled.reset(task.sample_objects(seed))
        rewards = []
        for action in demonstrate(task, seed, noise=noise, scene=demonstrator):
            joint_controlled.data.ctrl[:] = control_of(action)
            joint_controlled.advance()
            rewards.append(joint_controlled.reward())
        highest.append(max(rewards))
    return highest


@pytest.mark.slow
@pytest.mark.parametrize(("task", "wanted"), [("transfer_cube", 0.98), ("insertion", 0.95)])
def test_demonstrators_succeed(task: str, wanted: float) -> None:
    count = 100 if LONG else 12
    assert _highest_rewards(task, range(5000, 5000 + count)).count(MAX_REWARD) >= int(wanted * count)


@pytest.mark.slow
def test_demonstrations_repeat_and_noise_changes_them() -> None:
    task = find_task("insertion")
    first = demonstrate(task, 3)
    np.testing.assert_array_equal(first, demonstrate(task, 3))
    noisy = demonstrate(task, 3, noise=0.01)
    np.testing.assert_array_equal(noisy, demonstrate(task, 3, noise=0.01))
    assert np.abs(noisy - first).max() > 1e-3
    assert _highest_rewards("insertion", range(3), noise=0.01).count(MAX_REWARD) >= 2


def test_task_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def waypoints(objects: np.ndarray) -> dict[str, list[Waypoint]]:
        return {
            side: [Waypoint(0, np.array(GRIPPER_START[side]), (1.0, 0.0, 0.0, 0.0), 1.0)] for side in ("left", "right")
        }

    mine = dataclasses.replace(TASKS["transfer_cube"], name="wait", reward=lambda touching: 3, waypoints=waypoints)
    point = SimpleNamespace(name="wait", load=lambda: mine)
    monkeypatch.setattr("bimact.sim.tasks.entry_points", lambda group: [point] if group == "bimact.tasks" else [])
    env = AlohaEnv("wait", cameras=())
    env.reset(seed=0)
    actions = demonstrate(env.task, 0)
    assert env.step(actions[0])[1] == 3
    assert np.abs(actions[-1] - actions[200]).max() < 0.01  # the grippers wait where they are


def test_unknown_task() -> None:
    with pytest.raises(UserError, match="no task named 'juggle'; the simulation has transfer_cube, insertion"):
        find_task("juggle")
