"""The ALOHA tasks as Gymnasium environments: `bimact/TransferCube-v0` and `bimact/Insertion-v0`."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from bimact.sim.base import TaskEnv
from bimact.sim.rendering import Renderer
from bimact.sim.tasks import Scene, Task, control_of, find_task, state_of


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
        settings: the other ones of `TaskEnv`.
    """

    task: Task

    def __init__(
        self,
        task: str | Task = "transfer_cube",
        cameras: tuple[str, ...] = ("top",),
        image_size: tuple[int, int] = (240, 320),
        render_camera: str = "angle",
        **settings: Any,
    ) -> None:
        found = find_task(task) if isinstance(task, str) else task
        if not isinstance(found, Task):
            raise ValueError(f"'{task}' is a task of another robot: use its own environment()")
        self.scene = Scene(found)
        self._renderers: dict[tuple[tuple[int, int], str], Renderer] = {}
        low, high = self.scene.model.actuator_ctrlrange.reshape(2, 8, 2).transpose(2, 0, 1)
        low, high = low[:, :7].copy(), high[:, :7].copy()
        # The gripper's range is 0 to 1 by definition; MuJoCo clips it to what the fingers can do.
        low[:, 6], high[:, 6] = 0.0, 1.0
        space = spaces.Box(low.reshape(14).astype(np.float32), high.reshape(14).astype(np.float32))
        super().__init__(found, space, cameras, image_size, render_camera=render_camera, **settings)

    def begin(self, seed: int) -> None:
        self.scene.reset(self.task.sample_objects(seed))

    def simulate(self, action: np.ndarray) -> int:
        self.scene.data.ctrl[:] = control_of(action)
        self.scene.advance()
        return self.scene.reward()

    def state(self) -> np.ndarray:
        return state_of(self.scene.data)

    def image(self, camera: str, size: tuple[int, int], quality: str = "fast") -> np.ndarray:
        renderer = self._renderers.get((size, quality))
        if renderer is None:
            renderer = self._renderers[size, quality] = Renderer(self.scene.model, *size, quality)
        return renderer.render(self.scene.data, camera)

    def close(self) -> None:
        """Free the OpenGL contexts; the environment can still be used and creates new ones."""
        while self._renderers:
            self._renderers.popitem()[1].close()
