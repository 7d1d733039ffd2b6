"""The two bimanual tasks of the ACT paper (Zhao et al. 2023, section V-A) as MuJoCo models.

The scene, the robot and the meshes are those of the gym-aloha package. State and action have 14 dimensions: for the
left arm, then for the right one, six joint angles in radians and the gripper's opening from 0 (closed) to 1 (open).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from bimact.errors import UserError
from bimact.opengl import explain_missing_opengl
from bimact.sim.base import Demonstrator, SimulatedTask, TaskEnv

with explain_missing_opengl():  # MuJoCo loads OpenGL as it is imported
    import mujoco as mujoco  # imported by the other modules of this package from here

# By default MuJoCo writes its warnings ("simulation is unstable") into a file in the working directory.
mujoco.set_mju_user_warning(lambda message: logging.getLogger(__name__).warning("MuJoCo: %s", message))

FPS = 50
SUBSTEPS = 10  # of 2 ms per control step
EPISODE_STEPS = 400
CAMERAS = ("top", "angle", "left_pillar", "right_pillar", "left_wrist", "right_wrist")

_ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
JOINTS = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _ARM_JOINTS)

ARM_START = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.02239, -0.02239)  # six joints and two fingers
START_POSE = np.array(ARM_START + ARM_START)
FINGER_CLOSED, FINGER_OPEN = 0.01844, 0.058  # position of a left finger in metres

_RIGHT_FINGER = "vx300s_right/10_right_gripper_finger"
_LEFT_FINGER = "vx300s_left/10_left_gripper_finger"


def gripper_opening(finger: np.ndarray | float) -> np.ndarray | float:
    """Finger position in metres → opening, 0 (closed) to 1 (open). The inverse is `finger_position`."""
    return (finger - FINGER_CLOSED) / (FINGER_OPEN - FINGER_CLOSED)


def finger_position(opening: np.ndarray | float) -> np.ndarray | float:
    """Opening, 0 (closed) to 1 (open) → finger position in metres. The inverse is `gripper_opening`."""
    return opening * (FINGER_OPEN - FINGER_CLOSED) + FINGER_CLOSED


def state_of(data: mujoco.MjData) -> np.ndarray:
    """The proprioceptive state (14,) float64: joint angles in radians and gripper openings."""
    q = data.qpos[:16].reshape(2, 8)
    return np.concatenate([q[:, :6], gripper_opening(q[:, 6:7])], axis=1).reshape(14)


def control_of(action: np.ndarray) -> np.ndarray:
    """Action (14,) → MuJoCo's control signal (16,): joint angles and two mirrored fingers per arm."""
    arms = np.asarray(action, dtype=np.float64).reshape(2, 7)
    finger = finger_position(arms[:, 6:7])
    return np.concatenate([arms[:, :6], finger, -finger], axis=1).reshape(16)


Touching = Callable[[str, str], bool]


def _transfer_cube_reward(touching: Touching) -> int:
    """1: the right gripper touches the cube, 2: lifts it, 3: the left one touches it, 4: holds it."""
    on_table = touching("red_box", "table")
    reward = 0
    if touching("red_box", _RIGHT_FINGER):
        reward = 1 if on_table else 2
    if touching("red_box", _LEFT_FINGER):
        reward = 3 if on_table else 4
    return reward


def _insertion_reward(touching: Touching) -> int:
    """1: both objects touched, 2: both lifted, 3: peg and socket touch, 4: the pin inside is reached."""
    walls = [f"socket-{wall}" for wall in range(1, 5)]
    both_touched = touching("red_peg", _RIGHT_FINGER) and any(touching(wall, _LEFT_FINGER) for wall in walls)
    in_the_air = not touching("red_peg", "table") and not any(touching(wall, "table") for wall in walls)
    reward = 0
    if both_touched:
        reward = 2 if in_the_air else 1
    if in_the_air and any(touching("red_peg", wall) for wall in walls):
        reward = 3
    if touching("red_peg", "pin"):
        reward = 4
    return reward


@dataclass(frozen=True)
class Task(SimulatedTask):
    """One task of the ALOHA robot: its models, the start positions of its objects, and its staged reward from 0 to 4.

    Attributes:
        name: as in `--task`.
        model_file: MJCF of the joint-controlled scene; an absolute path, or one in gym-aloha's assets.
        mocap_model_file: the same scene with grippers that follow mocap bodies, for the demonstrator.
        start_boxes: for each object the lowest and the highest start position in metres.
        reward: function of whether two geoms touch → stage, 0 to 4.
        waypoints: of the demonstrator: poses of the objects (objects, 7) → waypoints of each gripper (see
            `demonstrators.py`, which has those of bimact's own tasks).
    """

    name: str
    model_file: str
    mocap_model_file: str
    start_boxes: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]  # (low, high) m
    reward: Callable[[Touching], int]
    waypoints: Callable[[np.ndarray], Any] | None = None

    cameras = CAMERAS
    state_names = action_names = JOINTS
    fps, episode_steps = FPS, EPISODE_STEPS

    def environment(
        self, cameras: tuple[str, ...] = (), image_size: tuple[int, int] = (240, 320), **settings: Any
    ) -> TaskEnv:
        from bimact.sim.environment import AlohaEnv

        return AlohaEnv(self, cameras, image_size, **settings)

    def demonstrator(self) -> Demonstrator:
        from bimact.sim.demonstrators import demonstrate

        scene = Scene(self, mocap=True)
        return lambda seed, noise: demonstrate(self, seed, noise=noise, scene=scene)

    def sample_objects(self, seed: int) -> np.ndarray:
        """Start poses (objects, 7) of position in metres and unit quaternion, the same for the same seed.

        They are sampled as in gym-aloha, so that a seed gives the same scene.
        """
        draw = np.random.RandomState(seed)  # this generator is part of the benchmark
        positions = [draw.uniform(low, high) for low, high in self.start_boxes]
        return np.array([np.concatenate([position, [1.0, 0.0, 0.0, 0.0]]) for position in positions])


TASKS = {
    task.name: task
    for task in (
        Task(
            name="transfer_cube",
            model_file="bimanual_viperx_transfer_cube.xml",
            mocap_model_file="bimanual_viperx_end_effector_transfer_cube.xml",
            start_boxes=(((0.0, 0.4, 0.05), (0.2, 0.6, 0.05)),),
            reward=_transfer_cube_reward,
        ),
        Task(
            name="insertion",
            model_file="bimanual_viperx_insertion.xml",
            mocap_model_file="bimanual_viperx_end_effector_insertion.xml",
            start_boxes=(((0.1, 0.4, 0.05), (0.2, 0.6, 0.05)), ((-0.2, 0.4, 0.05), (-0.1, 0.6, 0.05))),
            reward=_insertion_reward,
        ),
    )
}


def find_task(name: str) -> SimulatedTask:
    """A task by its name: one of `TASKS`, or one of another package's entry points in `bimact.tasks`.

    Raises:
        UserError: if there is none.
    """
    if name in TASKS:
        return TASKS[name]
    plugins = {point.name: point for point in entry_points(group="bimact.tasks")}
    if name not in plugins:
        raise UserError(f"no task named '{name}'; the simulation has {', '.join([*TASKS, *plugins])}")
    try:
        task = plugins[name].load()
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"the task '{name}' of another package cannot be loaded ({words}): reinstall it") from error
    if not isinstance(task, SimulatedTask):
        raise UserError(f"the entry point '{name}' in bimact.tasks is not a task but a {type(task).__name__}")
    return task


def assets_folder() -> Path:
    """The folder of gym-aloha's MJCF files, found without importing it, since that needs OpenGL."""
    spec = importlib.util.find_spec("gym_aloha")
    if spec is None or spec.origin is None:
        raise UserError("the simulation is not installed: pip install 'bimact[sim]'")
    return Path(spec.origin).parent / "assets"


def load_model(
    task: Task, *, mocap: bool = False, edit: Callable[[mujoco.MjSpec], None] | None = None
) -> mujoco.MjModel:
    """Compile a task's model, with the physics settings that its demonstrations need on MuJoCo ≥ 3.

    With `mocap`, the variant whose grippers are welded to mocap bodies. `edit` changes what is compiled. The two
    settings:

    - No multi-point convex collision (on by default from MuJoCo 3.8): with it, half of the correct insertions fail.
    - The weld's torque on a gripper is scaled by the body's rotational inverse weight. With the value that MuJoCo 3
      computes, the orientation lags by up to 70°. The value of the translational weight reduces the error below 1°, as
      on MuJoCo 2.3.7, for which the demonstrators were made.
    """
    file = task.mocap_model_file if mocap else task.model_file
    path = str(assets_folder() / file)
    if edit is None:
        model = mujoco.MjModel.from_xml_path(path)
    else:
        spec = mujoco.MjSpec.from_file(path)
        edit(spec)
        model = spec.compile()
    multiccd = getattr(mujoco.mjtDisableBit, "mjDSBL_MULTICCD", None)
    if multiccd is not None:
        model.opt.disableflags |= multiccd
    if mocap:
        for side in ("left", "right"):
            gripper = model.body(f"vx300s_{side}/gripper_link").id
            model.body_invweight0[gripper, 1] = model.body_invweight0[gripper, 0]
    return model


class Scene:
    """A task's model and simulation state: reset, advance by a control step, reward.

    Stepping follows dm_control's order (`mj_step2`, nine full steps, `mj_step1`), so that trajectories are
    bit-identical to gym-aloha's, in a fraction of the time.
    """

    def __init__(self, task: Task, *, mocap: bool = False, edit: Callable[[mujoco.MjSpec], None] | None = None) -> None:
        self.task = task
        self.model = load_model(task, mocap=mocap, edit=edit)
        self.data = mujoco.MjData(self.model)
        self._geom_names = [self.model.geom(index).name for index in range(self.model.ngeom)]

    def reset(self, objects: np.ndarray) -> None:
        """Arms in their start pose, objects at the given poses (objects, 7)."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:16] = START_POSE
        self.data.qpos[16:] = objects.reshape(-1)
        if self.model.nu == 16:
            self.data.ctrl[:] = START_POSE
        mujoco.mj_forward(self.model, self.data)

    def advance(self) -> None:
        """One control step of 20 ms under the current control signal."""
        mujoco.mj_step2(self.model, self.data)
        mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS - 1)
        mujoco.mj_step1(self.model, self.data)

    def reward(self) -> int:
        """The task's staged reward, 0 to 4, of the current contacts."""
        contacts = self.data.contact
        names = self._geom_names
        pairs = {(names[first], names[second]) for first, second in zip(contacts.geom1, contacts.geom2)}
        return self.task.reward(lambda first, second: (first, second) in pairs)
