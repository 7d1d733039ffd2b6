"""Acting: observations in, actions out, with chunks computed by PyTorch or by an exported model.

Letters: N environments, T observations (temporal_context), C chunk_size, A action_dim, S state_dim.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from bimact.data.depth import pack_depth
from bimact.errors import UserError, in_quotes
from bimact.policy.ensembling import TemporalEnsemble
from bimact.policy.metadata import PolicyMetadata

Self = TypeVar("Self", bound="ActingPolicy")
GIVEN = {"given_actions", "given_steps"}  # of policies with max_delay
TASK = "task"  # of policies that are told their task


class ActingPolicy(ABC):
    """A policy that acts.

    `act` takes one observation per control step and returns one action; `predict_chunk` returns the whole chunk. Both
    keep the observation history, so call one of them (or `observe`) at each control step, and `reset` before a new
    episode. An observation maps `state` to (S,) numbers and `image_<camera>` to uint8 RGB (H, W, 3) or (3, H, W), of
    numpy or torch; other entries are ignored. All arrays may have a first axis over N environments, which act side by
    side; then the result has it too.

    A policy with tasks (`metadata.interface.tasks`) is told its task by an observation's `task`, or `prompt`, in words;
    where it has neither, by `set_task`, which a policy with only one task does not need.

    A subclass gives `chunks`.

    Args:
        metadata: the policy's inputs and outputs.
    """

    def __init__(self, metadata: PolicyMetadata) -> None:
        self.metadata = metadata
        self.task: str | None = None
        self._begin_episode()

    @abstractmethod
    def chunks(self, histories: Mapping[str, np.ndarray], new: int) -> np.ndarray:
        """Predict chunks from whole histories.

        Args:
            histories: `state` (N, T, S) float32 and `image_<camera>` (N, T, H, W, 3) uint8, oldest first; maybe
                `given_actions` (N, P, A) float32 and `given_steps` (N,) int64, how many of the P `max_delay` count.
                Of a policy with tasks also `task` (N,) int64, or `set_task`'s counts.
            new: number of the newest observations that are new since the previous call; all T at the first call after
                `reset`.

        Returns:
            (N, C, A) float32 in the robot's units.
        """

    @property
    @abstractmethod
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file; of the weights themselves where they have no file."""

    def _begin_episode(self) -> None:
        execution = self.metadata.execution
        self._ensemble = TemporalEnsemble(
            self.metadata.chunk_size, execution.ensemble_coefficient, execution.ensemble_window
        )
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=self.metadata.temporal_context)
        self._new = 0  # observations of the history that no prediction has used
        self._planned: deque[np.ndarray] = deque()  # actions (N, A) that are still to be executed

    def reset(self) -> None:
        """Begin a new episode: forget all observations and planned actions."""
        self._begin_episode()

    def new_session(self: Self) -> Self:
        """A policy with the same weights (shared) and a state of its own, for another robot or connection."""
        session = copy.copy(self)
        session._begin_episode()
        return session

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The action to execute at this control step.

        Args:
            observation: of this step.

        Returns:
            (A,) or (N, A) float32, in the robot's units.

        Raises:
            UserError: if the observation is not what the policy was trained on, or the action is NaN or Inf.
        """
        batched = self._remember(observation)
        if not self._planned:
            actions = self._next_actions(self._stacked(), self._new)
            self._new = 0
            self._planned.extend(actions.transpose(1, 0, 2))
        action = self._planned.popleft()
        return action if batched else action[0]

    def predict_chunk(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The actions from this control step on; the plan of `act` stays unchanged.

        Args:
            observation: of this step. It may have `given_actions` (G, A) or (N, G, A): the actions from this step on
                that will be executed in any case, while the chunk is computed and transmitted. The chunk continues
                them. A policy that was trained with `max_delay` takes up to that many; others take none.

        Returns:
            (C, A) or (N, C, A) float32, in the robot's units.

        Raises:
            UserError: as `act`.
        """
        batched = self._remember(observation)
        histories = self._stacked()
        if "given_actions" in observation:
            given = self._given_actions(observation, len(histories["state"]) if batched else None)
            if self.metadata.max_delay:
                unused = self.metadata.max_delay - given.shape[1]
                histories["given_actions"] = np.pad(given, ((0, 0), (0, unused), (0, 0)))
                histories["given_steps"] = np.full(len(given), given.shape[1], np.int64)
        chunk = self._checked(self.chunks(histories, self._new))
        self._new = 0
        return chunk if batched else chunk[0]

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Add an observation to the history without predicting: for steps that run on an earlier chunk.

        Raises:
            UserError: as `act`.
        """
        self._remember(observation)

    def next_actions(self, histories: Mapping[str, np.ndarray]) -> np.ndarray:
        """The actions until the next prediction, for environments that observe only when a prediction is due.

        Args:
            histories: `state` (N, T, S) and `image_<camera>` (N, T, H, W, 3) uint8, oldest first: the last T
                observations, whose newest `execute_steps` are new since the previous call. They are taken as they are.

        Returns:
            (N, execute_steps, A) float32, in the robot's units.

        Raises:
            UserError: if an action is NaN or Inf.
        """
        return self._next_actions(histories, self.metadata.execution.execute_steps)

    def set_task(self, task: str | None) -> None:
        """Choose the task of observations that name none.

        Raises:
            UserError: if the policy does not know it, or is not told its task.
        """
        if task is not None and self.metadata.interface.tasks is None:
            raise UserError(f"the task is '{task}', but the policy is not told its task (task_conditioning: none)")
        if task is not None:
            self.task_number(task)
        self.task = task

    def task_number(self, task: Any) -> int:
        """The number of a task of this policy; None: that of its only one.

        Raises:
            UserError: if it does not know the task, or no task is given and it knows several.
        """
        tasks = self.metadata.interface.tasks or ()
        if task is None and len(tasks) == 1:
            return 0
        known = f"the policy knows {in_quotes(tasks)}"
        if task is None:
            raise UserError(f"the observation has no 'task' or 'prompt': {known}")
        if not isinstance(task, str) or task not in tasks:
            raise UserError(f"the task is {str(task)[:80]!r}: {known}")
        return tasks.index(task)

    def _told(self, histories: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Histories with the task's numbers, of a policy with tasks."""
        if self.metadata.interface.tasks is None or TASK in histories:
            return histories
        return {**histories, TASK: np.full(len(histories["state"]), self.task_number(self.task), dtype=np.int64)}

    def _next_actions(self, histories: Mapping[str, np.ndarray], new: int) -> np.ndarray:
        execution = self.metadata.execution
        chunk = self.chunks(histories, new)
        if execution.temporal_ensemble:
            actions = self._ensemble.update(chunk)[:, None]
        else:
            actions = chunk[:, : execution.execute_steps]
        return self._checked(actions)

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        if not np.isfinite(actions).all():
            raise UserError(f"the policy {self.metadata.name} predicts NaN or Inf: stop, and use another checkpoint")
        return actions

    def _remember(self, observation: Mapping[str, Any]) -> bool:
        """Check an observation and add it to the history, which it fills at the beginning of an episode.

        Returns:
            whether it has an axis over environments.
        """
        state = _array(observation, "state", self._expected())
        if state.ndim not in (1, 2) or state.shape[-1] != self.metadata.state_dim:
            raise UserError(
                f"the observation's 'state' has shape {_shape(state)}, it has to be ({self.metadata.state_dim},)"
            )
        if not np.issubdtype(state.dtype, np.number) or np.iscomplexobj(state):
            raise UserError(f"the observation's 'state' is {state.dtype}, it has to be numbers")
        state = state.astype(np.float32)
        if not np.isfinite(state).all():
            place = int(np.argwhere(~np.isfinite(state))[0][-1])
            names = self.metadata.interface.state_names
            which = place if names is None else f"{place} ({names[place]})"
            raise UserError(f"the observation's 'state' holds NaN or Inf in dimension {which}")
        batched = state.ndim == 2
        number = len(state) if batched else 1
        if self._history and len(self._history[-1]["state"]) != number:
            raise UserError(
                f"the observation is of {number} environments, those before of {len(self._history[-1]['state'])}: "
                "call reset() first"
            )
        obs = {"state": state.reshape(number, -1)}
        for camera, size in self.metadata.interface.cameras.items():
            image = _array(observation, f"image_{camera}", self._expected())
            if camera in self.metadata.interface.depth_cameras and image.dtype != np.uint8:
                image = _packed(image, camera, batched)
            obs[f"image_{camera}"] = _image(image, camera, size, number, batched)
        if self.metadata.interface.tasks is not None:
            task = observation.get("task", observation.get("prompt"))
            one = self.task if task is None else task
            each = [one] * number if one is None or isinstance(one, str) else list(one)
            if len(each) != number:
                raise UserError(f"the observation has {len(each)} tasks for {number} environments")
            obs[TASK] = np.array([self.task_number(task) for task in each], dtype=np.int64)
        missing = self.metadata.temporal_context - len(self._history) if not self._history else 1
        self._history.extend([obs] * missing)
        self._new = min(self._new + missing, self.metadata.temporal_context)
        return batched

    def _given_actions(self, observation: Mapping[str, Any], number: int | None) -> np.ndarray:
        """(N, G, A) float32, of `number` environments or of one without an axis."""
        given = _array(observation, "given_actions", [])
        given = given[None] if number is None else given
        most, size = self.metadata.max_delay, self.metadata.action_dim
        if given.ndim != 3 or len(given) != (number or 1) or given.shape[2] != size:
            many = "" if number is None else f"{number}, "
            shape = _shape(given if number is not None else given[0])
            raise UserError(f"the observation's 'given_actions' has shape {shape}, it has to be ({many}G, {size})")
        if given.shape[1] > most:
            raise UserError(
                f"the observation's 'given_actions' holds {given.shape[1]} steps, but the policy was trained with "
                f"max_delay {most}: give no more"
            )
        if not np.issubdtype(given.dtype, np.number) or not np.isfinite(given).all():
            raise UserError("the observation's 'given_actions' has to be numbers without NaN or Inf")
        return given.astype(np.float32)

    def _expected(self) -> list[str]:
        return ["state", *(f"image_{camera}" for camera in self.metadata.interface.cameras)]

    def _stacked(self) -> dict[str, np.ndarray]:
        """The history with an axis over its T observations, oldest first."""
        newest = self._history[-1]
        stacked = {name: np.stack([obs[name] for obs in self._history], axis=1) for name in newest if name != TASK}
        return stacked | ({TASK: newest[TASK]} if TASK in newest else {})


def _array(observation: Mapping[str, Any], name: str, expected: Sequence[str]) -> np.ndarray:
    if name not in observation:
        raise UserError(
            f"the observation has no '{name}': the policy takes {', '.join(expected)}, the observation has "
            f"{', '.join(map(str, observation)) or 'nothing'}"
        )
    value = observation[name]
    if hasattr(value, "detach"):  # a tensor of PyTorch
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def _image(image: np.ndarray, camera: str, size: tuple[int, int] | None, number: int, batched: bool) -> np.ndarray:
    """(H, W, 3) or (3, H, W), or N of them → (N, H, W, 3) uint8, as the training saw it."""
    name = f"the observation's 'image_{camera}'"
    if image.dtype != np.uint8:
        raise UserError(f"{name} is {image.dtype}, it has to be uint8 RGB from 0 to 255")
    single = image[0] if batched and image.ndim == 4 and len(image) == number else image
    wanted = "H, W, 3" if size is None else f"{size[0]}, {size[1]}, 3"
    many = f"{number}, " if batched else ""
    channels_last = single.ndim == 3 and single.shape[2] == 3 and size in (None, single.shape[:2])
    channels_first = single.ndim == 3 and single.shape[0] == 3 and size in (None, single.shape[1:])
    if not (channels_last or channels_first) or (batched and image.ndim != 4):
        raise UserError(f"{name} has shape {_shape(image)}, it has to be ({many}{wanted}), as in training")
    if not channels_last:
        image = np.moveaxis(image, -3, -1)
    return np.array(image if batched else image[None])  # a copy: the history outlives the observation


def _packed(image: np.ndarray, camera: str, batched: bool) -> np.ndarray:
    """Depth (H, W), (H, W, 1) or (1, H, W), or N of them → the image that carries it, with a last axis of 3."""
    axes = 3 if batched else 2
    if image.ndim == axes + 1 and 1 in (image.shape[-1], image.shape[-3]):
        image = image[..., 0] if image.shape[-1] == 1 else image[..., 0, :, :]
    if image.ndim != axes or not (image.dtype == np.uint16 or image.dtype.kind == "f"):
        raise UserError(
            f"the observation's 'image_{camera}' is {image.dtype} of shape {_shape(image)}: depth has to be (H, W) "
            "uint16 millimetres or float metres"
        )
    return pack_depth(image, 1.0 if image.dtype == np.uint16 else 1000.0)


def _shape(array: np.ndarray) -> str:
    return "(" + ", ".join(map(str, array.shape)) + ("," if array.ndim == 1 else "") + ")"
