"""ALOHA's example with fakes of the two environments' interface."""

from __future__ import annotations

import runpy
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bimact_client import ControlLoop, Safety, Stopped

AlohaRobot: Any = runpy.run_path(str(Path(__file__).parents[2] / "examples/aloha/run_policy.py"))["AlohaRobot"]
LOW, HIGH = np.full(6, -1.5), np.full(6, 1.5)
# (closed, open): the finger in metres, the motor in radians
FINGER = {1: (0.01844, 0.05800), 2: (0.0440, 0.0579)}
MOTOR = {1: (-0.6213, 1.4910), 2: (0.6197, 1.6214)}


class FakeArm:
    """Drops a whole command beyond its limits and returns False, as Interbotix' driver does."""

    def __init__(self) -> None:
        self.group_info = SimpleNamespace(joint_lower_limits=LOW.tolist(), joint_upper_limits=HIGH.tolist())
        self.position = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0])
        self.drops = False

    def set_joint_positions(self, joint_positions: Any, blocking: bool) -> bool:
        assert not blocking
        joints = np.round(joint_positions, 3)
        if self.drops or (joints < LOW).any() or (joints > HIGH).any():
            return False
        self.position = np.asarray(joint_positions)
        return True


class FakeEnv:
    """The part of `RealEnv` that the example uses."""

    def __init__(self, ros: int) -> None:
        self.ros = ros
        kind = {1: "puppet_bot", 2: "follower_bot"}[ros]
        self.arms = [FakeArm(), FakeArm()]
        for side, arm in zip(("left", "right"), self.arms):
            setattr(self, f"{kind}_{side}", SimpleNamespace(arm=arm))
        self.motors = [MOTOR[ros][0]] * 2
        self.frames = 0
        self.frozen = False
        self.image_recorder = SimpleNamespace(cam_high_secs=0, cam_high_nsecs=0)

    def get_qpos(self) -> np.ndarray:
        (motor_closed, motor_open), (closed, opened) = MOTOR[self.ros], FINGER[self.ros]
        fingers = [closed + (m - motor_closed) / (motor_open - motor_closed) * (opened - closed) for m in self.motors]
        openings = [(finger - closed) / (opened - closed) for finger in fingers]
        return np.concatenate([self.arms[0].position, openings[:1], self.arms[1].position, openings[1:]])

    def get_images(self) -> dict[str, np.ndarray]:
        self.frames += not self.frozen
        self.image_recorder.cam_high_nsecs = self.frames
        bgr = np.zeros((48, 64, 3), np.uint8)
        bgr[..., 2] = 200  # red
        return {"cam_high": bgr}

    def set_gripper_pose(self, left: float, right: float) -> None:
        closed, opened = MOTOR[self.ros]
        self.motors = [closed + value * (opened - closed) for value in (left, right)]


class Policy:
    """Opens the grippers and turns a waist, to a target that may be beyond the limits."""

    def __init__(self, waist: float) -> None:
        self.waist = waist
        names = AlohaRobot(FakeEnv(2)).action_names
        self.metadata = {
            "action_names": names,
            "state_names": names,
            "control_hz": 200,
            "cameras": {"cam_high": {"height": 48, "width": 64, "color_order": "rgb"}},
            "action_ranges": {"low": [-2.0] * 14, "high": [2.0] * 14},
        }
        self.seen: list[Any] = []

    def reset(self) -> None:
        pass

    def infer(self, obs: Any) -> dict[str, Any]:
        self.seen.append(obs)
        target = obs["state"].astype(np.float64)
        target[[6, 13]], target[0] = (0.25, 0.75), self.waist
        return {"actions": np.linspace(obs["state"], target, 20)}


def loop_of(env: FakeEnv, waist: float = 0.5, **settings: Any) -> tuple[ControlLoop, Any, Policy]:
    robot, policy = AlohaRobot(env, **settings), Policy(waist)
    return ControlLoop(robot, policy, safety=Safety(max_step=1), say=lambda text: None), robot, policy


@pytest.mark.parametrize("ros", [1, 2])
def test_arms_and_grippers_go_where_the_policy_says(ros: int) -> None:
    env = FakeEnv(ros)
    loop, robot, _ = loop_of(env)
    loop.run(20)
    np.testing.assert_allclose(env.get_qpos()[[0, 6, 13]], [0.5, 0.25, 0.75], atol=1e-6)
    closed, opened = MOTOR[ros]
    np.testing.assert_allclose(env.motors, [closed + share * (opened - closed) for share in (0.25, 0.75)], atol=1e-6)
    assert robot.clipped == 0


def test_a_joint_beyond_the_limit_does_not_freeze_the_arm() -> None:
    env = FakeEnv(1)
    env.arms[0].position[1] = -0.5
    loop, robot, _ = loop_of(env, waist=1.9)
    loop.run(20)
    assert env.arms[0].position[0] == pytest.approx(1.499)
    assert robot.clipped > 0


def test_a_command_that_the_driver_drops_stops_both_arms() -> None:
    env = FakeEnv(1)
    env.arms[1].drops = True
    loop, _, _ = loop_of(env)
    with pytest.raises(Stopped, match="the driver has dropped a command of the right arm"):
        loop.run(20)


def test_colours_are_those_of_the_training() -> None:
    for order, red in (("rgb", 2), ("bgr", 0)):
        loop, _, policy = loop_of(FakeEnv(1), color_order=order)
        loop.run(1)
        assert policy.seen[0]["image_cam_high"][0, 0, red] == 200


def test_a_frozen_topic_stops_the_arms_and_a_still_scene_does_not() -> None:
    env = FakeEnv(2)
    loop, _, _ = loop_of(env)
    begin = time.monotonic()
    report = loop.run(150)  # the pixels are the same all the time
    assert report.cycles - report.held_cycles >= 150 and time.monotonic() - begin > 0.7
    env.frozen = True
    with pytest.raises(Stopped, match="camera cam_high has sent the same frame for"):
        loop.run(1000)


def test_a_camera_without_an_image_yet() -> None:
    env = FakeEnv(2)
    env.get_images = lambda: {"cam_high": None}  # type: ignore[method-assign,assignment,dict-item]
    loop, _, _ = loop_of(env)
    with pytest.raises(Stopped, match="camera cam_high has sent no image yet"):
        loop.run(1)
