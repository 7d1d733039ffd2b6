"""The interface of a policy: inputs, outputs, and how chunks are executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bimact.config import Config
from bimact.errors import UserError
from bimact.files import write_json


@dataclass(frozen=True)
class Execution:
    """How predicted chunks are executed.

    Attributes:
        execute_steps: actions of a chunk that are executed before the next prediction; 1 with temporal ensembling.
        temporal_ensemble: predict at each step and average the overlapping chunks (ACT paper, IV-B).
        ensemble_window: number of newest chunks that are averaged; None: all that reach the step.
        ensemble_coefficient: m of the weights exp(-m i), oldest chunk first (i = 0).
    """

    execute_steps: int
    temporal_ensemble: bool = False
    ensemble_window: int | None = None
    ensemble_coefficient: float = 0.01

    @classmethod
    def of(cls, config: Config, execute_steps: int | None = None, temporal_ensemble: bool | None = None) -> Execution:
        """Execution by a run's config, or as given here.

        Args:
            config: of the run.
            execute_steps: steps of each chunk to execute, without ensembling; None: the config's.
            temporal_ensemble: True: ensemble; False: execute chunks; None: the config's.

        Raises:
            UserError: if both are given, or a chunk has fewer steps.
        """
        if temporal_ensemble and execute_steps is not None:
            raise UserError(
                f"temporal_ensemble predicts at each step, so execute_steps ({execute_steps}) does not apply: give one"
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
    """A policy's inputs and outputs, from its training data: `interface.json` in a run directory.

    Attributes:
        cameras: (height, width) of each camera's images; None: any size.
        depth_cameras: those that measure distances: (H, W) uint16 millimetres or float metres, 0 without measurement.
        state_names: S names; None if the demonstrations have none.
        action_names: A names; None if the demonstrations have none.
        control_frequency: actions per second (Hz); None if unknown.
        state_range: lowest and highest value of each dimension in the training episodes, in the robot's units.
        action_range: the same of actions.
        task: description of the demonstrations' task; None without one.
        tasks: that the policy is told, by number; None: it is not told any.
    """

    cameras: Mapping[str, tuple[int, int] | None]
    state_names: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None
    control_frequency: float | None = None
    state_range: tuple[tuple[float, float], ...] | None = None
    action_range: tuple[tuple[float, float], ...] | None = None
    task: str | None = None
    tasks: tuple[str, ...] | None = None
    depth_cameras: tuple[str, ...] = ()

    @classmethod
    def of_config(cls, config: Config) -> Interface:
        """The interface by a config alone."""
        size = None if config.image_size is None else (config.image_size[0], config.image_size[1])
        return cls(
            dict.fromkeys(config.cameras or (), size),
            control_frequency=config.fps,
            depth_cameras=tuple(config.depth_cameras or ()),
        )

    @classmethod
    def read(cls, path: Path) -> Interface:
        """Read an `interface.json`.

        Raises:
            UserError: if it is damaged.
        """
        try:
            return cls.of_dict(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}: {error}): delete it, and the policy acts without what "
                "it says"
            ) from error

    @classmethod
    def of_dict(cls, content: Mapping[str, Any]) -> Interface:
        """From the content of an `interface.json`; a faulty one raises ValueError, KeyError, TypeError and the like."""
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
            tasks=_names(content.get("tasks")),  # files of earlier versions have none
            depth_cameras=tuple(map(str, content.get("depth_cameras", ()))),
        )

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def _names(content: Any) -> tuple[str, ...] | None:
    return None if content is None else tuple(map(str, content))


def _ranges(content: Any) -> tuple[tuple[float, float], ...] | None:
    return None if content is None else tuple((float(low), float(high)) for low, high in content)


@dataclass(frozen=True)
class PolicyMetadata:
    """Everything that running a policy needs.

    Attributes:
        name: of the run, or of the policy's source.
        checkpoint: file name of the weights.
        state_dim: S.
        action_dim: A.
        chunk_size: C.
        temporal_context: T.
        interface: cameras, names, control frequency and ranges.
        execution: how chunks are executed.
        color_order: of images: always `rgb`.
        max_delay: how many `given_actions` an observation may have.
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
    max_delay: int = 0

    def as_dict(self) -> dict[str, Any]:
        """All of it in JSON's types, in one flat mapping."""
        content = asdict(self)
        return {**content.pop("interface"), **content.pop("execution"), **content}
