"""The ALOHA tasks as Gymnasium environments: `bimact/TransferCube-v0` and `bimact/Insertion-v0`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from bimact.sim.base import Observation, TaskEnv
from bimact.sim.perturbations import Magnitude, Perturber
from bimact.sim.rendering import Renderer
from bimact.sim.tasks import Scene, Task, control_of, find_task, mujoco, state_of


class AlohaEnv(TaskEnv):
    """Two ViperX arms at a table, controlled by absolute joint targets at 50 Hz.

    Observation and action: see `TaskEnv`. `state` (14,) float32: for the left, then the right arm six joint angles in
    radians and the gripper's opening (0 closed, 1 open). Action (14,) float32: targets in the same layout. Reward: the
    paper's stages, 0 to 4. Episodes last 400 steps, as in the paper's evaluation. With the same seed, an episode starts
    from the same scene as gym-aloha's.

    Args:
        task: `transfer_cube`, `insertion`, or a `Task`.
        cameras: to render, out of `top, angle, left_pillar, right_pillar, left_wrist, right_wrist`.
        image_size: height and width of the images in pixels.
        render_camera: the camera of `render()`.
        perturb: name → magnitude of each perturbation of the world (`perturbations.py`).
        randomized: whether each episode draws its magnitudes up to those.
        randomize_steps: control steps after which they are drawn again; None: once per episode.
        settings: the other ones of `TaskEnv`.
    """

    task: Task

    def __init__(
        self,
        task: str | Task = "transfer_cube",
        cameras: tuple[str, ...] = ("top",),
        image_size: tuple[int, int] = (240, 320),
        render_camera: str = "angle",
        perturb: Mapping[str, Magnitude] | None = None,
        randomized: bool = False,
        randomize_steps: int | None = None,
        **settings: Any,
    ) -> None:
        found = find_task(task) if isinstance(task, str) else task
        if not isinstance(found, Task):
            raise ValueError(f"'{task}' is a task of another robot: use its own environment()")
        self._perturber = (
            Perturber(perturb, cameras, randomized=randomized, randomize_steps=randomize_steps) if perturb else None
        )
        self.scene = Scene(found, edit=self._perturber.edit if self._perturber else None)
        self._past: list[np.ndarray] = []  # joint positions at each step so far, where the policy may see the past
        self._past_data = mujoco.MjData(self.scene.model)
        self._renderers: dict[tuple[tuple[int, int], str], Renderer] = {}
        low, high = self.scene.model.actuator_ctrlrange.reshape(2, 8, 2).transpose(2, 0, 1)
        low, high = low[:, :7].copy(), high[:, :7].copy()
        # The gripper's range is 0 to 1 by definition; MuJoCo clips it to what the fingers can do.
        low[:, 6], high[:, 6] = 0.0, 1.0
        space = spaces.Box(low.reshape(14).astype(np.float32), high.reshape(14).astype(np.float32))
        super().__init__(found, space, cameras, image_size, render_camera=render_camera, **settings)

    def begin(self, seed: int) -> None:
        if self._perturber is None:
            self.scene.reset(self.task.sample_objects(seed))
        else:
            self._perturber.begin(self.scene, self.task, seed, self.episode_steps)
        self._past = [self.scene.data.qpos.copy()]

    def simulate(self, action: np.ndarray) -> int:
        if self._perturber is not None:
            action = self._perturber.action(action, self.steps_done)
        self.scene.data.ctrl[:] = control_of(action)
        self.scene.advance()
        if self._perturber is not None and self._perturber.shows_the_past:
            self._past.append(self.scene.data.qpos.copy())
        return self.scene.reward()

    def state(self) -> np.ndarray:
        return state_of(self.scene.data)

    def image(self, camera: str, size: tuple[int, int], quality: str = "fast") -> np.ndarray:
        return self._rendered(self.scene.data, camera, size, quality)

    def observe(self) -> Observation:
        """The current observation as the policy gets it; only the selected cameras are rendered."""
        perturber, data, step = self._perturber, self.scene.data, self.steps_done
        if perturber is None:
            return super().observe()
        perturber.draw_looks(self.scene, step)
        if perturber.shows_the_past:
            step, data = perturber.seen_at(step), self._past_data
            data.qpos[:] = self._past[step]
            mujoco.mj_forward(self.scene.model, data)
        observation = {}
        for camera in self.cameras:
            image = self._rendered(data, camera, self.image_size, self.quality)
            observation[f"image_{camera}"] = perturber.image(image, camera, step)
        observation["state"] = state_of(data).astype(np.float32)
        return observation

    def _rendered(self, data: mujoco.MjData, camera: str, size: tuple[int, int], quality: str) -> np.ndarray:
        renderer = self._renderers.get((size, quality))
        if renderer is None:
            renderer = self._renderers[size, quality] = Renderer(self.scene.model, *size, quality)
        return renderer.render(data, camera)

    def close(self) -> None:
        """Free the OpenGL contexts; the environment can still be used and creates new ones."""
        while self._renderers:
            self._renderers.popitem()[1].close()
