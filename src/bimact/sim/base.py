"""The interface of simulated tasks for `bimact record`, `bimact evaluate --task`, `eval_task` and `bimact sim-robot`.

Another package can add a task of any robot and any simulator: a `SimulatedTask`, whose environments are `TaskEnv`s,
named by an entry point in `bimact.tasks` (see docs/extending.md; examples/robosuite is such a package).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from bimact.errors import UserError

MAX_REWARD = 4  # the stage of a task that is its success
Observation = dict[str, np.ndarray]
Demonstrator = Callable[[int, float], np.ndarray]


class SimulatedTask(ABC):
    """A task of a simulated robot.

    Attributes:
        name: as in `--task`.
        cameras: names of the cameras that the simulation has; `bimact record` uses the first one by default.
        state_names: of the S dimensions of the proprioceptive state.
        action_names: of the A dimensions of an action.
        fps: control frequency in Hz.
        episode_steps: control steps of a demonstration and of a rollout.
    """

    name: str
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    fps: int
    episode_steps: int

    @abstractmethod
    def environment(
        self, cameras: tuple[str, ...] = (), image_size: tuple[int, int] = (240, 320), **settings: Any
    ) -> TaskEnv:
        """An environment of the task; `settings` are `TaskEnv`'s other ones."""

    def demonstrator(self) -> Demonstrator:
        """A scripted demonstrator for `bimact record`; one is made per process.

        Returns:
            function of (seed, noise in metres) → absolute actions (episode_steps, A), the same for the same arguments.
            It need not succeed: the recording executes the actions in `environment()` after `reset(seed=seed)`, and
            keeps the episode if that is a success.

        Raises:
            UserError: if the task has none.
        """
        raise UserError(f"task '{self.name}' has no demonstrator: record demonstrations with another task")

    def check_cameras(self, cameras: tuple[str, ...] | list[str]) -> None:
        """Check that the simulation has these cameras.

        Raises:
            UserError: naming the first that it lacks.
        """
        for camera in cameras:
            if camera not in self.cameras:
                raise UserError(f"no camera '{camera}'; the simulation has {', '.join(self.cameras)}")


class TaskEnv(gymnasium.Env[Observation, np.ndarray], ABC):
    """An environment of a task, for observations that are rendered only when a policy sees them.

    Observation: `image_<camera>` (height, width, 3) uint8 RGB for each selected camera, and `state` (S,) float32.
    Action (A,) float32, absolute. Reward: the task's stages, 0 to 4. An episode lasts `episode_steps`, also after
    success; `info["is_success"]` says whether reward 4 was reached at this step or before. A subclass simulates:
    `begin`, `simulate`, `state` and `image`, and frees its renderers in `close`.

    Args:
        task: the task.
        action_space: bounds of an action (A,) float32.
        cameras: to render.
        image_size: height and width of the images in pixels.
        quality: `fast`, or `high` where the simulation has a better rendering.
        episode_steps: control steps until an episode is truncated; None: the task's.
        render_mode: None, or `rgb_array` for `render()`.
        render_camera: the camera of `render()`; None: the task's first one.
        render_size: height and width of what `render()` returns, always in high quality.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        task: SimulatedTask,
        action_space: spaces.Box,
        cameras: tuple[str, ...] = (),
        image_size: tuple[int, int] = (240, 320),
        quality: str = "fast",
        episode_steps: int | None = None,
        render_mode: str | None = None,
        render_camera: str | None = None,
        render_size: tuple[int, int] = (480, 640),
    ) -> None:
        render_camera = render_camera or task.cameras[0]
        for camera in (*cameras, render_camera):
            if camera not in task.cameras:
                raise ValueError(f"no camera '{camera}'; the scene has {', '.join(task.cameras)}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is None or 'rgb_array', not '{render_mode}'")
        self.metadata = {**self.metadata, "render_fps": task.fps}
        self.task = task
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self.quality = quality
        self.episode_steps = episode_steps or task.episode_steps
        self.render_mode = render_mode
        self.render_camera = render_camera
        self.render_size = render_size
        self._step = 0
        self._highest_reward = 0
        self.action_space = action_space
        entries: dict[str, spaces.Space[Any]] = {
            f"image_{camera}": spaces.Box(0, 255, (*image_size, 3), np.uint8) for camera in self.cameras
        }
        # Joint limits are springs, beyond which a collision can push an arm: no finite bound would be correct.
        entries["state"] = spaces.Box(-np.inf, np.inf, (len(task.state_names),), np.float32)
        self.observation_space: spaces.Dict = spaces.Dict(entries)  # type: ignore[assignment]

    @abstractmethod
    def begin(self, seed: int) -> None:
        """Set the scene of a seed, 0 to 2³² − 1, up: the same for the same seed."""

    @abstractmethod
    def simulate(self, action: np.ndarray) -> int:
        """Execute an action (A,) for one control step; returns the stage that the task is in, 0 to 4."""

    @abstractmethod
    def state(self) -> np.ndarray:
        """The proprioceptive state (S,) now, in any dtype of floats."""

    @abstractmethod
    def image(self, camera: str, size: tuple[int, int], quality: str = "fast") -> np.ndarray:
        """The view (height, width, 3) uint8 RGB of a camera now."""

    def hold(self) -> np.ndarray:
        """The action (A,) that keeps the robot where it is: its state, if state and action are the same quantities."""
        if self.task.state_names != self.task.action_names:
            raise NotImplementedError(f"{type(self).__name__} has no hold(), and its state is no action")
        return self.state()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        scene_seed = seed if seed is not None else int(self.np_random.integers(2**32))
        self.begin(scene_seed % 2**32)
        self._step = 0
        self._highest_reward = 0
        return self.observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        reward = self.advance(action)
        return self.observe(), reward, False, self.truncated, {"is_success": self.is_success}

    def advance(self, action: np.ndarray) -> float:
        """`step` without the observation: physics only, which is 20 times cheaper than an image."""
        reward = self.simulate(action)
        self._step += 1
        self._highest_reward = max(self._highest_reward, reward)
        return float(reward)

    def observe(self) -> Observation:
        """The current observation; only the selected cameras are rendered."""
        observation = {f"image_{camera}": self.image(camera, self.image_size, self.quality) for camera in self.cameras}
        observation["state"] = self.state().astype(np.float32)
        return observation

    @property
    def steps_done(self) -> int:
        """Control steps since the reset."""
        return self._step

    @property
    def truncated(self) -> bool:
        return self._step >= self.episode_steps

    @property
    def is_success(self) -> bool:
        return self._highest_reward == MAX_REWARD

    def render(self) -> np.ndarray | None:
        """A frame (height, width, 3) uint8 of the scene in high quality."""
        if self.render_mode is None:
            return None
        return self.image(self.render_camera, self.render_size, "high")
