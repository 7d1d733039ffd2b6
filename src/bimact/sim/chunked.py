"""Several control steps per environment step, for rollouts of policies that predict chunks."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from bimact.sim.base import Observation
from bimact.sim.tasks import find_task
from bimact.video import VideoWriter

VIDEO_FPS = 25  # or the control frequency, where that is lower


class ChunkedEnv(gymnasium.Env[Observation, np.ndarray]):
    """Executes `execute_steps` actions per call and observes only the last `history` steps.

    Rendering dominates the time of a rollout, so a camera image is rendered only if the policy will see it.

    Observation: as `TaskEnv`'s, each entry with a first axis over `history` steps, oldest first; after a
    reset the first observation is repeated. Action: (execute_steps, A). Reward: the highest one of the call;
    `info["final_reward"]` is that of its last step. A reset with the option `videos`, a mapping from seeds to
    paths, records a video of the episode if its seed is among them.

    Args:
        execute_steps: actions per call.
        history: observations that the policy sees.
        task: name of the task.
        settings: of its environment.
    """

    def __init__(self, execute_steps: int, history: int, task: str, **settings: Any) -> None:
        self.env = find_task(task).environment(render_mode="rgb_array", **settings)
        self._steps_per_frame = max(1, self.env.task.fps // VIDEO_FPS)
        self.execute_steps = execute_steps
        self.history = history
        self._frames: deque[Observation] = deque(maxlen=history)
        self._video: VideoWriter | None = None
        self.action_space = batch_space(self.env.action_space, execute_steps)
        self.observation_space: spaces.Dict = spaces.Dict(  # type: ignore[assignment]
            {name: batch_space(space, history) for name, space in self.env.observation_space.spaces.items()}
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._end_video()
        observation, info = self.env.reset(seed=seed)
        self._frames.extend([observation] * self.history)
        video = (options or {}).get("videos", {}).get(seed)
        if video is not None:
            self._video = VideoWriter(video, self.env.task.fps / self._steps_per_frame)
            self._record_frame()
        return self._stacked(), info

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        highest = reward = 0.0
        for number, target in enumerate(action):
            reward = self.env.advance(target)
            highest = max(highest, reward)
            self._record_frame()
            if self.env.truncated or number >= self.execute_steps - self.history:
                self._frames.append(self.env.observe())
            if self.env.truncated:
                self._end_video()
                break
        info = {"is_success": self.env.is_success, "final_reward": reward}
        return self._stacked(), highest, False, self.env.truncated, info

    def _record_frame(self) -> None:
        if self._video is not None and self.env.steps_done % self._steps_per_frame == 0:
            frame = self.env.render()
            assert frame is not None
            self._video.add(frame)

    def _end_video(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None

    def _stacked(self) -> Observation:
        return {name: np.stack([frame[name] for frame in self._frames]) for name in self._frames[0]}

    def close(self) -> None:
        self._end_video()
        self.env.close()
