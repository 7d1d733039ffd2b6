"""How predicted chunks become actions: which steps of them are executed, and how overlapping chunks are blended.

Letters: H steps of a chunk, A dimensions of an action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

MODES = ("chunk", "async", "temporal_ensemble")
BLENDS = ("latest", "linear", "ensemble")


@dataclass(frozen=True)
class Execution:
    """How chunks are executed.

    Attributes:
        mode: `chunk`: the first `execute_steps` actions, then a new chunk, for which the robot waits; `async`: the
            next chunk is requested after `execute_steps` actions while the present one goes on, and the actions that
            the delay has used up are dropped; `temporal_ensemble`: a new chunk at each step, and the average of all
            chunks that reach the step (ACT paper, section IV-B).
        execute_steps: None: in `chunk` all, in `async` half a chunk.
        blend: of overlapping chunks in `async`: `latest` takes the new one, `linear` goes from the old one to the new
            one over the overlap, `ensemble` averages as temporal ensembling does.
        ensemble_coefficient: m of the weights exp(-m i), oldest chunk first (i = 0).
        ensemble_window: how many of the newest chunks are averaged; None: all that reach the step.
    """

    mode: str = "chunk"
    execute_steps: int | None = None
    blend: str = "linear"
    ensemble_coefficient: float = 0.01
    ensemble_window: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"execution is '{self.mode}', it has to be one of {', '.join(MODES)}")
        if self.blend not in BLENDS:
            raise ValueError(f"blend is '{self.blend}', it has to be one of {', '.join(BLENDS)}")
        for name in ("execute_steps", "ensemble_window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, it has to be at least 1")
        if self.mode == "temporal_ensemble" and self.execute_steps not in (None, 1):
            raise ValueError(
                f"temporal_ensemble asks at each step, so execute_steps ({self.execute_steps}) does not apply"
            )

    @classmethod
    def of(cls, execution: str | Execution | None, metadata: Mapping[str, Any]) -> Execution:
        """What is asked for, completed by what the policy's run says.

        Args:
            execution: a whole one; a mode, for which the run's number of steps and weights are taken; None: the run's.
            metadata: the server's.

        Raises:
            ValueError: if there is no such mode.
        """
        if isinstance(execution, Execution):
            return execution
        run = metadata.get("execution") or {}
        is_ensemble = run.get("mode") == "temporal_ensemble" or bool(run.get("temporal_ensemble"))
        mode = execution or ("temporal_ensemble" if is_ensemble else "chunk")
        steps, chunk_size = run.get("execute_steps"), metadata.get("chunk_size")
        if is_ensemble or (mode == "async" and steps and chunk_size and steps > chunk_size // 2):
            steps = None  # an `async` request comes while actions are left
        coefficient = run.get("ensemble_coefficient")
        return cls(
            mode,
            None if mode == "temporal_ensemble" else steps,
            ensemble_coefficient=0.01 if coefficient is None else coefficient,
            ensemble_window=run.get("ensemble_window") if mode == "temporal_ensemble" else None,
        )

    def __str__(self) -> str:
        if self.mode == "temporal_ensemble":
            return "temporal_ensemble"
        steps = "all" if self.mode == "chunk" else "half"
        blend = f", {self.blend}" if self.mode == "async" else ""
        return f"{self.mode} ({self.execute_steps or steps} steps{blend})"


class Plan:
    """The actions to come. Steps are counted in executed actions, so that a robot that holds loses none.

    Args:
        execution: how chunks are executed.
    """

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.position = 0  # of the next action
        self.dropped = 0  # actions that delays have used up
        self._chunks: list[tuple[int, np.ndarray]] = []  # (step of its observation, (H, A)), oldest first
        self._queue = np.zeros((0, 0))  # from `position` on, unless chunks are averaged
        self._averages = execution.mode == "temporal_ensemble" or (
            execution.mode == "async" and execution.blend == "ensemble"
        )

    @property
    def wants_chunk(self) -> bool:
        """Whether a new chunk is due."""
        if not self._chunks:
            return True
        start, chunk = self._chunks[-1]
        if self.execution.mode == "chunk":
            return len(self._queue) == 0
        if self.execution.mode == "temporal_ensemble":
            return self.position > start
        return self.position - start >= (self.execution.execute_steps or max(len(chunk) // 2, 1))

    @property
    def waits(self) -> bool:
        """Whether a requested chunk should be awaited, as far as the cycle's time allows."""
        return self.execution.mode == "temporal_ensemble" or not self.has_action

    @property
    def has_action(self) -> bool:
        if self._averages:
            return any(self.position - start < len(chunk) for start, chunk in self._chunks)
        return len(self._queue) > 0

    def add(self, chunk: np.ndarray, step: int) -> None:
        """Take a chunk up.

        Args:
            chunk: (H, A).
            step: `position` at its observation.
        """
        new = chunk[self.position - step :]
        self.dropped += len(chunk) - len(new)
        if self._averages:
            self._chunks.append((step, chunk))
            return
        self._chunks = [(step, chunk)]
        if self.execution.mode == "chunk":
            self._queue = new[: self.execution.execute_steps]
        elif self.execution.blend == "latest" or not len(self._queue):
            self._queue = new
        elif len(new):
            overlap = min(len(self._queue), len(new))
            weight = ((np.arange(overlap) + 1) / (overlap + 1))[:, None]
            blended = (1 - weight) * self._queue[:overlap] + weight * new[:overlap]
            self._queue = np.concatenate([blended, new[overlap:]])

    def next(self) -> np.ndarray:
        """The action (A,) to execute now; there has to be one."""
        if self._averages:
            self._chunks = [(start, chunk) for start, chunk in self._chunks if self.position - start < len(chunk)]
            window = self._chunks[-(self.execution.ensemble_window or len(self._chunks)) :]
            said = np.stack([chunk[self.position - start] for start, chunk in window])
            weights = np.exp(-self.execution.ensemble_coefficient * np.arange(len(said)))
            action = (said * (weights / weights.sum())[:, None]).sum(axis=0)
        else:
            action, self._queue = self._queue[0], self._queue[1:]
        self.position += 1
        return np.asarray(action)

    def upcoming(self, count: int) -> np.ndarray:
        """The next actions (at most `count`, A), as far as they are certain: none where chunks are averaged."""
        return self._queue[:0] if self._averages else self._queue[:count]

    def clear(self) -> None:
        """Forget all chunks."""
        self._chunks, self._queue = [], self._queue[:0]
