"""Demonstrations of which nothing is odd, in memory, to which a fault can be done."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bimact.check.dataset import examine
from bimact.check.findings import Finding
from bimact.config import Config
from bimact.data.formats.guide_npy import observation_dtype
from bimact.data.selection import Selection
from bimact.data.source import Camera, Column, Source, SourceEpisode
from bimact.errors import UserError

FPS = 30.0
JOINTS = [f"{arm}_{joint}" for arm in ("left", "right") for joint in (*"abcdef", "gripper")]
CAMERAS = ("front", "wrist")
SIZE = (48, 64)
LAG = 2  # steps by which the state follows the action


@dataclass
class Demonstrations:
    """What each of E episodes holds; faults are done to it in place."""

    state: list[np.ndarray]
    action: list[np.ndarray]
    images: dict[str, list[np.ndarray]]  # camera → of each episode (T, H, W, 3) uint8
    timestamps: list[np.ndarray] | None
    tasks: list[str | None]
    fps: float | None = FPS
    names: list[str] | None = field(default_factory=lambda: list(JOINTS))
    color_order: str | None = None
    lengths: list[int] = field(default_factory=list)
    unreadable: set[tuple[int, str]] = field(default_factory=set)  # episode, and camera or "columns"

    def source(self, **changes: Any) -> ArraySource:
        columns = {
            what: Column(parts[0].shape[1], self._names(parts[0].shape[1]), str(parts[0].dtype))
            for what, parts in (("qpos", self.state), ("command", self.action))
        }
        lengths = self.lengths or [len(part) for part in self.state]
        episodes = tuple(
            SourceEpisode(f"episode_{number}.bin", length, (), task)
            for number, (length, task) in enumerate(zip(lengths, self.tasks))
        )
        settings: dict[str, Any] = {
            "path": Path("/data/cups"),
            "format": "arrays",
            "episodes": episodes,
            "cameras": {name: Camera(*parts[0].shape[1:3]) for name, parts in self.images.items()},
            "columns": columns,
            "state_keys": ("qpos",),
            "action_keys": ("command",),
            "fps": self.fps,
            "color_order": self.color_order,
            "content": self,
        }
        return ArraySource(**{**settings, **changes})

    def _names(self, size: int) -> tuple[str, ...] | None:
        return tuple(self.names[:size]) if self.names else None

    def findings(self, config: Config | None = None, **options: Any) -> list[Finding]:
        source = Selection().applied_to(self.source())
        return examine(source, apart=False, config=config, **options)


@dataclass(frozen=True, kw_only=True)
class ArraySource(Source):
    content: Demonstrations

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        self._refuse(episode, "columns")
        columns = {"qpos": self.content.state, "command": self.content.action}
        return {key: columns[key][episode] for key in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        images = self.content.images[camera][episode]
        for step in steps:
            if step == len(images) // 2:
                self._refuse(episode, camera)
            if step < len(images):
                yield images[step]

    def read_timestamps(self, episode: int) -> np.ndarray | None:
        return None if self.content.timestamps is None else self.content.timestamps[episode]

    def _refuse(self, episode: int, part: str) -> None:
        if (episode, part) in self.content.unreadable:
            raise UserError(f"{self.path}/{self.episodes[episode].name} is cut off: copy it again")


def clean(episodes: int = 6, seed: int = 0, fps: float = FPS, names: bool = True) -> Demonstrations:
    """Smooth movements that differ from episode to episode, and cameras that show them with a sensor's noise."""
    return copy.deepcopy(_clean(episodes, seed, fps, names))


@lru_cache(maxsize=2)
def _clean(episodes: int, seed: int, fps: float, names: bool) -> Demonstrations:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(100, 130, episodes)
    trajectories = [_trajectory(int(length) + LAG, draw) for length in lengths]
    state = [moved[:-LAG] + draw.normal(0, 1e-3, moved[:-LAG].shape) for moved in trajectories]
    scenes = {camera: draw.integers(20, 236, (6, 8, 3)).repeat(8, 0).repeat(8, 1) for camera in CAMERAS}
    return Demonstrations(
        state=[part.astype(np.float32) for part in state],
        action=[moved[LAG:].astype(np.float32) for moved in trajectories],
        images={
            camera: [_film(scenes[camera], part[:, 7 * number :], draw) for part in state]
            for number, camera in enumerate(CAMERAS)
        },
        timestamps=[np.arange(length) / fps + draw.uniform(0, 1e-3, length) for length in lengths],
        tasks=["stack the cups"] * episodes,
        fps=fps,
        names=list(JOINTS) if names else None,
    )


def _trajectory(steps: int, draw: np.random.Generator) -> np.ndarray:
    """(T, 14) postures on a way that all episodes share roughly; grippers close and open."""
    time = np.linspace(0, 1, steps)[:, None]
    way = np.random.default_rng(5)
    postures = way.uniform(-1, 1, (5, 14)) + draw.normal(0, 0.1, (5, 14))
    bumps = np.exp(-(((time - np.linspace(0, 1, 5)) / 0.2) ** 2))  # (T, 5)
    moved = bumps / bumps.sum(axis=1, keepdims=True) @ postures
    for gripper, close in ((6, draw.uniform(0.3, 0.4)), (13, draw.uniform(0.5, 0.6))):
        moved[:, gripper] = 1 / (1 + np.exp(40 * (time[:, 0] - close))) + 1 / (1 + np.exp(40 * (0.8 - time[:, 0])))
    return moved


def _film(scene: np.ndarray, state: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """(T, 48, 64, 3) a scene with a bright spot where the arm is, and a sensor's noise."""
    images = np.tile(scene, (len(state), 1, 1, 1)) + draw.integers(-3, 4, (len(state), *SIZE, 3))
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    for image, posture in zip(images, state):
        row, column = 24 + 14 * posture[0], 32 + 20 * posture[1]
        image[(abs(rows - row) < 6) & (abs(columns - column) < 6)] = 250
    return np.clip(images, 0, 255).astype(np.uint8)


def save_guide(demos: Demonstrations, folder: Path) -> Path:
    """The same demonstrations in the guide's three files."""
    folder.mkdir(parents=True, exist_ok=True)
    state = np.concatenate(demos.state)
    sizes = {camera: parts[0].shape[1:3] for camera, parts in demos.images.items()}
    observations = np.zeros(len(state), observation_dtype(sizes, state.shape[1]))
    observations["state"] = state
    for camera, parts in demos.images.items():
        observations[f"image_{camera}"] = np.concatenate(parts)
    np.save(folder / "observations.npy", observations)
    np.save(folder / "actions.npy", np.concatenate(demos.action))
    np.save(folder / "rollout_length.npy", np.array([len(part) for part in demos.state]))
    metadata = {"fps": demos.fps, "joint_names": demos.names, "task": demos.tasks[0]}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder
