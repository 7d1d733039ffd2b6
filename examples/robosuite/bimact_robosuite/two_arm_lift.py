"""robosuite's TwoArmLift with two Pandas: they grasp the handles of a pot and lift it without tilting it.

State and action have 16 dimensions: for the first, then the second Panda seven joint angles in radians and the
gripper's opening from 0 (closed) to 1 (open). Actions are absolute targets.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from bimact.sim.base import SimulatedTask, TaskEnv
from bimact.sim.rendering import Renderer
from bimact.sim.tasks import mujoco  # which chooses how it renders without a screen

FPS = 20
EPISODE_STEPS = 130
CAMERAS = ("frontview", "agentview", "birdview", "sideview", "robot0_eye_in_hand", "robot1_eye_in_hand")
ARM_JOINTS = tuple(f"joint{number}" for number in range(1, 8))
NAMES = tuple(f"robot{robot}_{name}" for robot in (0, 1) for name in (*ARM_JOINTS, "gripper"))

FINGER_OPEN = 0.04  # position of a finger in metres
LIFTED, UPRIGHT = 0.02, np.cos(np.deg2rad(30))  # metres above the table; cosine of robosuite's greatest tilt

# Joint targets instead of robosuite's default, offsets of the gripper's pose: a target does not depend on what was
# reached before. 200 1/s² is four times the default stiffness, for which an arm lags by 7 cm.
CONTROLLER = {
    "type": "JOINT_POSITION",
    "input_type": "absolute",
    "input_min": -np.pi,
    "input_max": np.pi,
    "output_min": -np.pi,
    "output_max": np.pi,
    "kp": 200,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "qpos_limits": None,
    "interpolation": None,
    "ramp_ratio": 0.2,
    "gripper": {"type": "GRIP"},
}


class TwoArmLift(SimulatedTask):
    """The task: its names, its environments and its demonstrator."""

    name = "two_arm_lift"
    cameras = CAMERAS
    state_names = action_names = NAMES
    fps, episode_steps = FPS, EPISODE_STEPS

    def environment(
        self, cameras: tuple[str, ...] = (), image_size: tuple[int, int] = (240, 320), **settings: Any
    ) -> TwoArmLiftEnv:
        return TwoArmLiftEnv(self, cameras, image_size, **settings)

    def demonstrator(self) -> Callable[[int, float], np.ndarray]:
        environment = self.environment()

        def demonstrate(seed: int, noise: float) -> np.ndarray:
            environment.reset(seed=seed)
            return demonstration(environment, np.random.default_rng(seed), noise)

        return demonstrate


class TwoArmLiftEnv(TaskEnv):
    """Reward: 1 one handle is grasped, 2 both are, 3 the pot is off the table, 4 it is lifted as robosuite asks for:
    more than 10 cm above the table, tilted by less than 30°."""

    def __init__(self, task: TwoArmLift, *settings: Any, **others: Any) -> None:
        # It warns of what this task does not use, such as its own settings of a user.
        logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
        import robosuite
        from robosuite.controllers import load_composite_controller_config

        controllers = load_composite_controller_config(robot="Panda")
        controllers["body_parts"]["right"] = copy.deepcopy(CONTROLLER)
        self.env = robosuite.make(
            "TwoArmLift",
            robots=["Panda", "Panda"],
            env_configuration="opposed",
            controller_configs=controllers,
            control_freq=FPS,
            horizon=10**9,
            hard_reset=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            seed=0,
        )
        self.model: mujoco.MjModel = self.env.sim.model._model
        self.data: mujoco.MjData = self.env.sim.data._data
        # What robosuite's own renderer leaves out: collision geoms, and sites.
        self.model.geom_rgba[self.model.geom_group == 0, 3] = 0
        self.model.site_rgba[:, 3] = 0
        self.joints = np.array(
            [[self.model.joint(f"robot{robot}_{name}").qposadr[0] for name in ARM_JOINTS] for robot in (0, 1)]
        )
        self.fingers = np.array(
            [
                [self.model.joint(f"gripper{robot}_right_finger_joint{number}").qposadr[0] for number in (1, 2)]
                for robot in (0, 1)
            ]
        )
        self._renderers: dict[tuple[tuple[int, int], str], Renderer] = {}
        limits = self.model.jnt_range[[self.model.joint(name).id for name in NAMES if not name.endswith("gripper")]]
        low, high = (np.insert(limits[:, end], (7, 14), end).astype(np.float32) for end in (0, 1))
        super().__init__(task, spaces.Box(low, high), *settings, **others)

    def begin(self, seed: int) -> None:
        # The pot's place and the arms' start are drawn from one generator, which robosuite seeds only when it is made.
        self.env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.env.reset()

    def simulate(self, action: np.ndarray) -> int:
        arms = np.asarray(action, dtype=np.float64).reshape(2, 8)
        # robosuite's grippers take a direction: below 0 they open, above they close.
        command = np.where(arms[:, 7:] > 0.5, -1.0, 1.0)
        self.env.step(np.concatenate([arms[:, :7], command], axis=1).reshape(16))
        pot, robots = self.env.pot, self.env.robots
        grasped = [
            self.env._check_grasp(gripper=robot.gripper, object_geoms=handle)
            for robot, handle in zip(robots, (pot.handle0_geoms, pot.handle1_geoms), strict=True)
        ]
        is_upright = self.data.body(pot.root_body).xmat.reshape(3, 3)[2, 2] >= UPRIGHT
        bottom = self.data.site(pot.important_sites["center"]).xpos[2] - pot.top_offset[2]
        if is_upright and self.env._check_success():
            return 4
        if all(grasped) and bottom > self.data.site("table_top").xpos[2] + LIFTED:
            return 3
        return sum(grasped)

    def state(self) -> np.ndarray:
        openings = np.abs(self.data.qpos[self.fingers]).sum(axis=1, keepdims=True) / (2 * FINGER_OPEN)
        return np.concatenate([self.data.qpos[self.joints], openings], axis=1).reshape(16)

    def image(self, camera: str, size: tuple[int, int], quality: str = "fast") -> np.ndarray:
        renderer = self._renderers.get((size, quality))
        if renderer is None:
            renderer = self._renderers[size, quality] = Renderer(self.model, *size, quality)
        return renderer.render(self.data, camera)

    def close(self) -> None:
        while self._renderers:
            self._renderers.popitem()[1].close()


# The demonstrator ----------------------------------------------------------------------------------


def demonstration(environment: TwoArmLiftEnv, draw: np.random.Generator, noise: float) -> np.ndarray:
    """The actions (130, 16) of one demonstration, for the scene that the environment shows.

    Both grippers go above their handle, turned so that the fingers close on it from inside and outside, go down,
    close, and lift. Their paths are followed by inverse kinematics; with `noise`, each waypoint is off by a normal
    deviation in metres.
    """
    data, pot = environment.data, environment.env.pot
    actions = np.empty((EPISODE_STEPS, 2, 8))
    for robot in (0, 1):
        start = data.site(f"gripper{robot}_right_grip_site")
        handle = data.site(pot.important_sites[f"handle{robot}"]).xpos
        outward = handle - data.site(pot.important_sites["center"]).xpos
        x = np.array([outward[0], outward[1], 0.0]) / np.linalg.norm(outward[:2])
        down = np.array([0.0, 0.0, -1.0])
        # Columns: the gripper's axes; it closes along x. Outwards, for then all scenes ask for a turn the same way.
        grasp = np.stack([x, np.cross(down, x), down], axis=1)
        above, lifted = handle + [0.0, 0.0, 0.1], handle + [0.0, 0.0, 0.16]
        waypoints = (  # step, position, rotation, opening
            (0, start.xpos.copy(), start.xmat.reshape(3, 3).copy(), 1.0),
            (40, above, grasp, 1.0),
            (60, handle, grasp, 1.0),
            (75, handle, grasp, 0.0),
            (110, lifted, grasp, 0.0),
            (EPISODE_STEPS, lifted, grasp, 0.0),
        )
        solver = InverseKinematics(environment, robot)
        for (begin, position, rotation, _), (end, goal, goal_rotation, opening) in itertools.pairwise(waypoints):
            if noise and end != 75 and end != EPISODE_STEPS:  # the pauses stay where they are
                goal = goal + draw.normal(0.0, noise, 3)
            turn = rotation_vector(goal_rotation @ rotation.T)
            for step in range(begin, end):
                share = (step + 1 - begin) / (end - begin)
                share = share * share * (3 - 2 * share)  # begins and ends at rest
                matrix = rotation_of(share * turn) @ rotation
                actions[step, robot, :7] = solver.solve((1 - share) * position + share * goal, matrix)
                actions[step, robot, 7] = opening
    return actions.reshape(EPISODE_STEPS, 16)


class InverseKinematics:
    """Joint angles of one arm for poses of its gripper, each near the last one: damped least squares."""

    def __init__(self, environment: TwoArmLiftEnv, robot: int) -> None:
        self._model = environment.model
        self._data = mujoco.MjData(self._model)
        self._data.qpos[:] = environment.data.qpos
        self._site = self._model.site(f"gripper{robot}_right_grip_site").id
        self._places = environment.joints[robot]
        joints = [self._model.joint(f"robot{robot}_{name}") for name in ARM_JOINTS]
        self._columns = np.array([joint.dofadr[0] for joint in joints])
        self._low, self._high = np.array([joint.range for joint in joints]).T
        self._rest = self._data.qpos[self._places].copy()

    def solve(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Angles (7,) in radians for a position (3,) in metres and a rotation matrix (3, 3)."""
        model, data = self._model, self._data
        jacobian = np.empty((2, 3, model.nv))
        for _ in range(20):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            at = data.site(self._site)
            turn = rotation_vector(rotation @ at.xmat.reshape(3, 3).T)
            error = np.concatenate([position - at.xpos, turn])
            if np.abs(error).max() < 1e-4:
                break
            mujoco.mj_jacSite(model, data, jacobian[0], jacobian[1], self._site)
            J = jacobian[:, :, self._columns].reshape(6, 7)
            inverse = J.T @ np.linalg.inv(J @ J.T + 1e-4 * np.eye(6))
            angles = data.qpos[self._places]
            to_rest = (np.eye(7) - inverse @ J) @ (self._rest - angles)  # without moving the gripper
            data.qpos[self._places] = np.clip(angles + inverse @ error + 0.05 * to_rest, self._low, self._high)
        return data.qpos[self._places].copy()


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Axis times angle in radians (3,) of a rotation matrix (3, 3). The inverse is `rotation_of`."""
    quaternion, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, matrix.reshape(9))
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation_of(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) of axis times angle in radians (3,)."""
    angle = float(np.linalg.norm(vector))
    quaternion, matrix = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quaternion, vector / angle if angle else np.array([1.0, 0.0, 0.0]), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


TWO_ARM_LIFT = TwoArmLift()
