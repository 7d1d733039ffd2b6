"""A source whose content is computed, so that children can read it too, with faults on demand."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bimact.data.source import Camera, Column, Source, SourceEpisode
from bimact.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SyntheticSource(Source):
    """Images are noise that belongs to (episode, camera, step); so are the columns.

    Attributes:
        faults: (episode, camera) → "error", "crash" or "memory", at the last step.
        seconds_a_frame: what reading an image takes besides.
        log: each episode's reading of a camera appends a line to this file.
    """

    faults: Mapping[tuple[int, str], str] = field(default_factory=dict)
    seconds_a_frame: float = 0.0
    log: Path | None = None

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        length = self.episodes[episode].length
        return {
            key: np.random.default_rng([episode, len(key)]).normal(size=(length, self.columns[key].size))
            for key in keys
        }

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{episode} {camera} {os.getpid()}\n")
        for step in steps:
            if step == self.episodes[episode].length - 1:
                _fail(self.faults.get((episode, camera)), f"{self.path}, episode {episode}, step {step}")
            time.sleep(self.seconds_a_frame)
            yield self.frame(episode, camera, step)

    def frame(self, episode: int, camera: str, step: int) -> np.ndarray:
        size = self.cameras[camera]
        draw = np.random.default_rng([episode, len(camera), step])
        coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return coarse.repeat(-(-size.height // 8), 0).repeat(-(-size.width // 8), 1)[: size.height, : size.width]

    def read_timestamps(self, episode: int) -> np.ndarray | None:
        return None if self.fps is None else np.arange(self.episodes[episode].length) / self.fps


def _fail(fault: str | None, where: str) -> None:
    if fault == "error":
        raise UserError(f"{where} is damaged: copy it again")
    if fault == "crash":
        ctypes.string_at(0)
    if fault == "memory":
        np.ones(1 << 40, np.uint8)


def synthetic_source(
    path: Path, lengths: Sequence[int] = (5, 8, 3), *, size: tuple[int, int] = (24, 32), **changes: object
) -> SyntheticSource:
    """A dataset of a file that exists, with two cameras and four columns."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / "recording.bin").exists():
        (path / "recording.bin").touch()
    settings: dict[str, object] = {
        "path": path.absolute(),
        "format": "synthetic",
        "episodes": tuple(
            SourceEpisode(f"episode {number}", length, ("recording.bin",), "pour tea")
            for number, length in enumerate(lengths)
        ),
        "cameras": {"top": Camera(*size), "wrist": Camera(size[0] // 2, size[1] // 2)},
        "columns": {
            "qpos": Column(4, ("a", "b", "c", "d")),
            "qvel": Column(4),
            "tau": Column(1, dtype="float64"),
            "action": Column(4, ("a", "b", "c", "d")),
        },
        "state_keys": ("qpos",),
        "action_keys": ("action",),
        "fps": 10.0,
        "files": ("recording.bin",),
    }
    return SyntheticSource(**(settings | changes))  # type: ignore[arg-type]
