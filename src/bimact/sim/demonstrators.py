"""Scripted demonstrators: waypoints of both grippers, and the joint-space actions that follow them.

As in the ACT paper's simulated demonstrations, a gripper trajectory is first followed in a scene with end-effector
control; the joint angles there become the actions of the joint-controlled robot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bimact.sim.tasks import EPISODE_STEPS, FINGER_CLOSED, Scene, Task, finger_position, mujoco, state_of

UPRIGHT = (1.0, 0.0, 0.0, 0.0)
GRIPPER_START = {"left": (-0.31718881, 0.5, 0.29525084), "right": (0.31718881, 0.49999888, 0.29525084)}
OPEN, CLOSED = 1.0, 0.0


def _rotation(axis: tuple[float, float, float], degrees: float) -> tuple[float, ...]:
    quaternion = np.zeros(4)
    mujoco.mju_axisAngle2Quat(quaternion, np.array(axis), np.deg2rad(degrees))
    return tuple(quaternion)


_PITCHED_LEFT = _rotation((0.0, 1.0, 0.0), 60)  # fingers point down and inwards
_PITCHED_RIGHT = _rotation((0.0, 1.0, 0.0), -60)
_ROLLED = _rotation((1.0, 0.0, 0.0), 90)  # fingers close from above and below, across the other gripper's


@dataclass(frozen=True)
class Waypoint:
    """Pose of a gripper at a step: position in metres, unit quaternion, opening from 0 to 1."""

    step: int
    position: np.ndarray
    rotation: tuple[float, ...]
    opening: float

    def pose(self) -> np.ndarray:
        return np.concatenate([self.position, self.rotation, [self.opening]])


Waypoints = dict[str, list[Waypoint]]


def _start(side: str) -> Waypoint:
    return Waypoint(0, np.array(GRIPPER_START[side]), UPRIGHT, CLOSED)


def _transfer_cube(objects: np.ndarray) -> Waypoints:
    """The right gripper picks the cube up and brings it to the middle, where the left one takes it."""
    cube = objects[0, :3]
    middle = np.array([0.0, 0.5, 0.25])
    above, at_cube = cube + [0.0, 0.0, 0.08], cube + [0.0, 0.0, -0.015]
    wait, take = middle + [-0.1, 0.0, -0.02], middle + [0.02, 0.0, -0.02]
    right = [
        _start("right"),
        Waypoint(90, above, _PITCHED_RIGHT, OPEN),
        Waypoint(130, at_cube, _PITCHED_RIGHT, OPEN),
        Waypoint(170, at_cube, _PITCHED_RIGHT, CLOSED),
        Waypoint(200, middle + [0.05, 0.0, 0.0], _PITCHED_RIGHT, CLOSED),
        Waypoint(220, middle, _PITCHED_RIGHT, CLOSED),
        Waypoint(310, middle, _PITCHED_RIGHT, OPEN),
        Waypoint(360, middle + [0.1, 0.0, 0.0], _PITCHED_RIGHT, OPEN),
    ]
    left = [
        _start("left"),
        Waypoint(100, wait, _ROLLED, OPEN),
        Waypoint(260, take, _ROLLED, OPEN),
        Waypoint(310, take, _ROLLED, CLOSED),
        Waypoint(360, wait, UPRIGHT, CLOSED),
    ]
    return {"left": left, "right": right}


def _insertion(objects: np.ndarray) -> Waypoints:
    """Both grippers pick up their object and bring them together in mid-air, and the peg goes into the socket."""
    middle = np.array([0.0, 0.5, 0.15])
    raise_peg = np.array([0.0, 0.0, 0.00715])  # the two are grasped at heights that differ by this much

    def pick_and_meet(side: str, item: np.ndarray, rotation: tuple[float, ...], out: np.ndarray) -> list[Waypoint]:
        above, at_item = item + [0.0, 0.0, 0.08], item + [0.0, 0.0, -0.03]
        return [
            _start(side),
            Waypoint(120, above, rotation, OPEN),
            Waypoint(170, at_item, rotation, OPEN),
            Waypoint(220, at_item, rotation, CLOSED),
            Waypoint(285, middle + 2 * out + (raise_peg if side == "right" else 0.0), rotation, CLOSED),
            Waypoint(340, middle + out + (raise_peg if side == "right" else 0.0), rotation, CLOSED),
        ]

    peg, socket = objects[0, :3], objects[1, :3]
    return {
        "left": pick_and_meet("left", socket, _PITCHED_LEFT, np.array([-0.05, 0.0, 0.0])),
        "right": pick_and_meet("right", peg, _PITCHED_RIGHT, np.array([0.05, 0.0, 0.0])),
    }


_WAYPOINTS = {"transfer_cube": _transfer_cube, "insertion": _insertion}


def _interpolate(waypoints: list[Waypoint], steps: int) -> np.ndarray:
    """Poses (steps, 8), linear between waypoints and constant after the last one."""
    at = np.array([waypoint.step for waypoint in waypoints])
    poses = np.array([waypoint.pose() for waypoint in waypoints])
    times = np.arange(steps)
    return np.stack([np.interp(times, at, poses[:, column]) for column in range(8)], axis=1)


def demonstrate(task: Task, seed: int, *, noise: float = 0.0, scene: Scene | None = None) -> np.ndarray:
    """One scripted demonstration.

    Args:
        task: the task to do.
        seed: of the objects' poses (as in the environment's `reset`) and of the noise.
        noise: uniform noise on both grippers' positions at each step, up to this many metres.
        scene: an end-effector scene of the task; None: a new one.

    Returns:
        actions (400, 14) float64: absolute joint angles in radians and gripper openings from 0 to 1.
    """
    scene = scene or Scene(task, mocap=True)
    objects = task.sample_objects(seed)
    waypoints = (task.waypoints or _WAYPOINTS[task.name])(objects)
    poses = np.stack([_interpolate(waypoints[side], EPISODE_STEPS) for side in ("left", "right")], axis=1)
    if noise:
        poses[:, :, :3] += np.random.default_rng(seed).uniform(-noise, noise, (EPISODE_STEPS, 2, 3))

    scene.reset(objects)
    data = scene.data
    data.mocap_pos[:] = [GRIPPER_START["left"], GRIPPER_START["right"]]
    data.mocap_quat[:] = UPRIGHT
    data.ctrl[:] = np.array([1.0, -1.0, 1.0, -1.0]) * FINGER_CLOSED
    mujoco.mj_forward(scene.model, data)

    actions = np.empty((EPISODE_STEPS, 14))
    openings = np.zeros(2)
    for step in range(EPISODE_STEPS):
        # The joint positions that the arms have reached are the target; the fingers' target is the command itself,
        # since their position stops at the object that they hold, without force.
        actions[step] = state_of(data)
        actions[step, [6, 13]] = openings
        data.mocap_pos[:] = poses[step, :, :3]
        data.mocap_quat[:] = poses[step, :, 3:7]
        openings = poses[step, :, 7]
        fingers = finger_position(openings)
        data.ctrl[:] = np.stack([fingers, -fingers], axis=1).reshape(4)
        scene.advance()
    return actions
