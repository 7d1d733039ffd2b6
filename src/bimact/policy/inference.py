"""Acting: observations in, actions out. Everything that acts goes through `Policy`: rollouts, servers, robots.

Letters: N environments, T observations (temporal_context), C chunk_size, A action_dim, S state_dim, E encoder tokens.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bimact.config import Config
from bimact.errors import UserError
from bimact.files import sha256_of, write_json
from bimact.policy.act import ActPolicy, Observation
from bimact.policy.ensembling import TemporalEnsemble
from bimact.policy.transformer import Attention


@dataclass(frozen=True)
class Execution:
    """How predicted chunks are executed.

    Attributes:
        execute_steps: actions of a chunk that are executed before the next prediction; 1 with temporal ensembling.
        temporal_ensemble: predict at each step and average what overlapping chunks say of it (ACT paper, IV-B).
        ensemble_window: how many of the newest chunks are averaged; None: all that reach the step.
        ensemble_coefficient: m of the weights exp(-m i), oldest chunk first (i = 0).
    """

    execute_steps: int
    temporal_ensemble: bool = False
    ensemble_window: int | None = None
    ensemble_coefficient: float = 0.01

    @classmethod
    def of(cls, config: Config, execute_steps: int | None = None, temporal_ensemble: bool | None = None) -> Execution:
        """What a run's config says, unless it is said otherwise here.

        Args:
            config: of the run.
            execute_steps: execute so many steps of each chunk, without ensembling.
            temporal_ensemble: True: ensemble; False: execute chunks; None: the config's.

        Raises:
            UserError: if both are asked for, or a chunk has fewer steps.
        """
        if temporal_ensemble and execute_steps is not None:
            raise UserError(
                f"temporal_ensemble predicts at each step, so execute_steps ({execute_steps}) has no meaning: give one"
            )
        if temporal_ensemble is None:
            temporal_ensemble = config.temporal_ensemble and execute_steps is None
        if temporal_ensemble:
            return cls(1, True, config.ensemble_window, config.ensemble_coefficient)
        steps = execute_steps if execute_steps is not None else config.execute_steps or config.chunk_size
        if not 1 <= steps <= config.chunk_size:
            raise UserError(f"execute_steps is {steps}, it has to be from 1 to the chunk size, {config.chunk_size}")
        return cls(steps)


@dataclass(frozen=True)
class Interface:
    """What a policy's training data say about its inputs and outputs: `interface.json` in a run directory.

    Attributes:
        cameras: (height, width) of each camera's images; None where any size will do.
        state_names: S names; None if the demonstrations have none.
        action_names: A names; None if the demonstrations have none.
        control_frequency: actions per second (Hz); None if nobody knows it.
        state_range: lowest and highest value of each dimension in the training episodes, in the robot's units.
        action_range: the same of actions.
        task: what the demonstrations show; None if they do not say.
    """

    cameras: Mapping[str, tuple[int, int] | None]
    state_names: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None
    control_frequency: float | None = None
    state_range: tuple[tuple[float, float], ...] | None = None
    action_range: tuple[tuple[float, float], ...] | None = None
    task: str | None = None

    @classmethod
    def of_config(cls, config: Config) -> Interface:
        """What a config alone says."""
        size = None if config.image_size is None else (config.image_size[0], config.image_size[1])
        return cls(dict.fromkeys(config.cameras or (), size), control_frequency=config.fps)

    @classmethod
    def read(cls, path: Path) -> Interface:
        """Read an `interface.json`.

        Raises:
            UserError: if it is damaged.
        """
        try:
            content = json.loads(path.read_text())
            return cls(
                cameras={
                    camera: None if size is None else (int(size[0]), int(size[1]))
                    for camera, size in content["cameras"].items()
                },
                state_names=_names(content["state_names"]),
                action_names=_names(content["action_names"]),
                control_frequency=content["control_frequency"],
                state_range=_ranges(content["state_range"]),
                action_range=_ranges(content["action_range"]),
                task=content["task"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}: {error}): delete it, and the policy acts without what "
                "it says"
            ) from error

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def _names(content: Any) -> tuple[str, ...] | None:
    return None if content is None else tuple(map(str, content))


def _ranges(content: Any) -> tuple[tuple[float, float], ...] | None:
    return None if content is None else tuple((float(low), float(high)) for low, high in content)


@dataclass(frozen=True)
class PolicyMetadata:
    """What somebody who runs a policy has to know.

    Attributes:
        name: of the run, or of what the policy was read from.
        checkpoint: file name of the weights.
        state_dim: S.
        action_dim: A.
        chunk_size: C.
        temporal_context: T.
        interface: cameras, names, control frequency and ranges.
        execution: how chunks are executed.
        color_order: of images: always `rgb`.
    """

    name: str
    checkpoint: str
    state_dim: int
    action_dim: int
    chunk_size: int
    temporal_context: int
    interface: Interface
    execution: Execution
    color_order: str = field(default="rgb")

    def as_dict(self) -> dict[str, Any]:
        """All of it in JSON's types, in one flat mapping."""
        content = asdict(self)
        return {**content.pop("interface"), **content.pop("execution"), **content}


class Policy:
    """A trained policy that acts.

    `act` takes one observation per control step and returns one action; `predict_chunk` returns the whole chunk. Both
    keep the observation history, so call one of them (or `observe`) at each control step, and `reset` before a new
    episode. An observation maps `state` to (S,) numbers and `image_<camera>` to uint8 RGB (H, W, 3) or (3, H, W), of
    numpy or torch; other entries are ignored. All arrays may have a first axis over N environments, which act side by
    side; then the result has it too.

    The network is copied and prepared for inference: weights are cast once, frozen batch norms are folded into
    convolutions, each camera frame goes through the encoder once, and what decoder queries find in each other is
    computed once.

    Args:
        network: the weights; it stays as it is.
        execution: how chunks are executed; None: as its config says.
        interface: of its training data; None: what its config says.
        dtype: of matrix products: float32, bfloat16 or float16. All else is computed in float32.
        name: for `metadata`.
        checkpoint: for `metadata`.
        weights: the file that the network was read from; None: none.
    """

    def __init__(
        self,
        network: ActPolicy,
        execution: Execution | None = None,
        interface: Interface | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        name: str = "policy",
        checkpoint: str = "",
        weights: Path | None = None,
    ) -> None:
        self.config = config = network.config
        self._weights = weights
        self.device = network.state_normalizer.mean.device
        self.metadata = PolicyMetadata(
            name,
            checkpoint,
            config.state_dim or 0,
            config.action_dim or 0,
            config.chunk_size,
            config.temporal_context,
            interface or Interface.of_config(config),
            execution or Execution.of(config),
        )
        self._dtype = dtype
        self._network = copy.deepcopy(network).eval().requires_grad_(False)
        self._network.prepare_for_inference()
        if dtype != torch.float32:
            for module in self._network.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d, Attention)):
                    for parameter in module.parameters(recurse=False):
                        parameter.data = parameter.data.to(dtype)
        self._begin_episode()

    def _begin_episode(self) -> None:
        execution = self.metadata.execution
        self._ensemble = TemporalEnsemble(
            self.metadata.chunk_size, execution.ensemble_coefficient, execution.ensemble_window
        )
        self._history: deque[Observation] = deque(maxlen=self.metadata.temporal_context)
        self._new = 0  # observations of the history that no prediction has used
        self._tokens: dict[str, Tensor] = {}  # camera → (N, T, rows, columns, E) of the last prediction
        self._planned: deque[np.ndarray] = deque()  # actions (N, A) that are still to be executed

    def reset(self) -> None:
        """Begin a new episode: forget all observations and planned actions."""
        self._begin_episode()

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file; of the weights themselves where they have no file."""
        if self._weights is not None:
            return sha256_of(self._weights)
        digest = hashlib.sha256()
        for name, tensor in sorted(self._network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def new_session(self) -> Policy:
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
        """The actions from this control step on; nothing of `act`'s plan changes.

        Args:
            observation: of this step.

        Returns:
            (C, A) or (N, C, A) float32, in the robot's units.

        Raises:
            UserError: as `act`.
        """
        batched = self._remember(observation)
        chunk = self._checked(self.chunks(self._stacked(), self._new).cpu().numpy())
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
        obs = {name: torch.from_numpy(values).to(self.device) for name, values in histories.items()}
        obs = {name: x.permute(0, 1, 4, 2, 3) if name.startswith("image_") else x for name, x in obs.items()}
        return self._next_actions(obs, self.metadata.execution.execute_steps)

    def _next_actions(self, obs: Observation, new: int) -> np.ndarray:
        execution = self.metadata.execution
        chunk = self.chunks(obs, new)
        if execution.temporal_ensemble:
            actions = self._ensemble.update(chunk)[:, None]
        else:
            actions = chunk[:, : execution.execute_steps]
        return self._checked(actions.cpu().numpy())

    @torch.inference_mode()
    def chunks(self, obs: Observation, new: int) -> Tensor:
        """Predict chunks from whole histories.

        Args:
            obs: `image_<camera>` (N, T, 3, H, W) uint8, oldest first, and `state` (N, T, S), on the policy's device.
            new: how many of the T observations, the newest ones, no call since `reset` has seen; at the first call
                all of them are.

        Returns:
            (N, C, A) in the robot's units.
        """
        network, context = self._network, self.metadata.temporal_context
        new = min(new, context) if self._tokens else context
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            newest = network.encode_images([obs[f"image_{camera}"][:, context - new :] for camera in network.cameras])
            for camera, tokens in zip(network.cameras, newest):
                known = self._tokens[camera][:, new:] if new < context else tokens[:, :0]
                self._tokens[camera] = torch.cat([known, tokens], dim=1)
            encoded = {f"tokens_{camera}": tokens for camera, tokens in self._tokens.items()}
            chunk: Tensor = network({"state": obs["state"], **encoded})[0]
        return chunk

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        if not np.isfinite(actions).all():
            raise UserError(f"the policy {self.metadata.name} predicts NaN or Inf: stop, and use another checkpoint")
        return actions

    def _remember(self, observation: Mapping[str, Any]) -> bool:
        """Check an observation and add it to the history, which it fills at an episode's beginning.

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
        obs = {"state": torch.from_numpy(state.reshape(number, -1)).to(self.device)}
        for camera in self._network.cameras:
            size = self.metadata.interface.cameras.get(camera)
            image = _image(_array(observation, f"image_{camera}", self._expected()), camera, size, number, batched)
            obs[f"image_{camera}"] = torch.from_numpy(image).to(self.device)
        missing = self.metadata.temporal_context - len(self._history) if not self._history else 1
        self._history.extend([obs] * missing)
        self._new = min(self._new + missing, self.metadata.temporal_context)
        return batched

    def _expected(self) -> list[str]:
        return ["state", *(f"image_{camera}" for camera in self._network.cameras)]

    def _stacked(self) -> Observation:
        """The history with an axis over its T observations, oldest first."""
        return {name: torch.stack([obs[name] for obs in self._history], dim=1) for name in self._history[0]}


def _array(observation: Mapping[str, Any], name: str, expected: Sequence[str]) -> np.ndarray:
    if name not in observation:
        raise UserError(
            f"the observation has no '{name}': the policy takes {', '.join(expected)}, the observation has "
            f"{', '.join(map(str, observation)) or 'nothing'}"
        )
    value = observation[name]
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _image(image: np.ndarray, camera: str, size: tuple[int, int] | None, number: int, batched: bool) -> np.ndarray:
    """(H, W, 3) or (3, H, W), or N of them → (N, 3, H, W) uint8, as the training saw it."""
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
    if channels_last:
        image = np.moveaxis(image, -1, -3)
    return np.ascontiguousarray(image if batched else image[None])


def _shape(array: np.ndarray) -> str:
    return "(" + ", ".join(map(str, array.shape)) + ("," if array.ndim == 1 else "") + ")"
