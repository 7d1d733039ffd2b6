"""The tasks as Gymnasium environments: `bimact/TransferCube-v0` and `bimact/Insertion-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from bimact.sim.rendering import Renderer
from bimact.sim.tasks import (
    CAMERAS,
    EPISODE_STEPS,
    FPS,
    MAX_REWARD,
    Scene,
    control_of,
    find_task,
    state_of,
)

Observation = dict[str, np.ndarray]


class AlohaEnv(gymnasium.Env[Observation, np.ndarray]):
    """Two ViperX arms at a table, controlled by absolute joint targets at 50 Hz.

    Observation: `image_<camera>` (height, width, 3) uint8 RGB for each selected camera, and `state` (14,)
    float32: for the left, then the right arm six joint angles in radians and the gripper's opening (0 closed,
    1 open). Action (14,) float32: targets in the same layout. Reward: the paper's stages, 0 to 4.

    An episode lasts `episode_steps`, also after success, as in the paper's evaluation; `info["is_success"]` says
    whether reward 4 was reached at this step or before. With the same seed, an episode starts from the same scene as
    gym-aloha's.

    Args:
        task: `transfer_cube` or `insertion`.
        cameras: to render, out of `top, angle, left_pillar, right_pillar, left_wrist, right_wrist`.
        image_size: height and width of the images in pixels.
        quality: `fast`, or `high` with shadows and multisampling.
        episode_steps: control steps until an episode is truncated.
        render_mode: None, or `rgb_array` for `render()`.
        render_camera: the camera of `render()`.
        render_size: height and width of what `render()` returns, always in high quality.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(
        self,
        task: str = "transfer_cube",
        cameras: tuple[str, ...] = ("top",),
        image_size: tuple[int, int] = (240, 320),
        quality: str = "fast",
        episode_steps: int = EPISODE_STEPS,
        render_mode: str | None = None,
        render_camera: str = "angle",
        render_size: tuple[int, int] = (480, 640),
    ) -> None:
        for camera in (*cameras, render_camera):
            if camera not in CAMERAS:
                raise ValueError(f"no camera '{camera}'; the scene has {', '.join(CAMERAS)}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is None or 'rgb_array', not '{render_mode}'")
        self.task = find_task(task)
        self.scene = Scene(self.task)
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self.quality = quality
        self.episode_steps = episode_steps
        self.render_mode = render_mode
        self.render_camera = render_camera
        self.render_size = render_size
        self._renderers: dict[tuple[tuple[int, int], str], Renderer] = {}
        self._step = 0
        self._highest_reward = 0
        self.action_space = self._action_space()
        self.observation_space: spaces.Dict = self._observation_space()  # type: ignore[assignment]

    def _action_space(self) -> spaces.Box:
        low, high = self.scene.model.actuator_ctrlrange.reshape(2, 8, 2).transpose(2, 0, 1)
        low, high = low[:, :7].copy(), high[:, :7].copy()
        # The gripper's range is 0 to 1 by definition; MuJoCo clips it to what the fingers can do.
        low[:, 6], high[:, 6] = 0.0, 1.0
        return spaces.Box(low.reshape(14).astype(np.float32), high.reshape(14).astype(np.float32))

    def _observation_space(self) -> spaces.Dict:
        entries: dict[str, spaces.Space[Any]] = {
            f"image_{camera}": spaces.Box(0, 255, (*self.image_size, 3), np.uint8) for camera in self.cameras
        }
        # Joint limits are springs, beyond which a collision can push an arm: no finite bound would be correct.
        entries["state"] = spaces.Box(-np.inf, np.inf, (14,), np.float32)
        return spaces.Dict(entries)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        scene_seed = seed if seed is not None else int(self.np_random.integers(2**32))
        self.scene.reset(self.task.sample_objects(scene_seed % 2**32))
        self._step = 0
        self._highest_reward = 0
        return self.observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        reward = self.advance(action)
        return self.observe(), reward, False, self.truncated, {"is_success": self.is_success}

    def advance(self, action: np.ndarray) -> float:
        """`step` without the observation: physics only, which is 20 times cheaper than an image."""
        self.scene.data.ctrl[:] = control_of(action)
        self.scene.advance()
        self._step += 1
        reward = self.scene.reward()
        self._highest_reward = max(self._highest_reward, reward)
        return float(reward)

    def observe(self) -> Observation:
        """The current observation; only the selected cameras are rendered."""
        observation = {f"image_{camera}": self._image(camera, self.image_size, self.quality) for camera in self.cameras}
        observation["state"] = state_of(self.scene.data).astype(np.float32)
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
        return self._image(self.render_camera, self.render_size, "high")

    def _image(self, camera: str, size: tuple[int, int], quality: str) -> np.ndarray:
        renderer = self._renderers.get((size, quality))
        if renderer is None:
            renderer = self._renderers[size, quality] = Renderer(self.scene.model, *size, quality)
        return renderer.render(self.scene.data, camera)

    def close(self) -> None:
        """Free the OpenGL contexts; the environment can still be used and creates new ones."""
        while self._renderers:
            self._renderers.popitem()[1].close()
