"""Writes the guide's dataset: `observations.npy` as a structured array, and the files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bimact.convert.content import Content, short_names
from bimact.convert.writer import LEFT_OUT, EpisodeSpan, Writer
from bimact.data.formats.guide_npy import ACTIONS, IMAGE_PREFIX, LENGTHS, METADATA, OBSERVATIONS, observation_dtype
from bimact.data.selection import ACTION, STATE
from bimact.errors import UserError
from bimact.files import write_json
from bimact.progress import ProgressBar

_KEPT = ("robot_type", "sim")  # of what a source's metadata tell: the rest is of its own files


class GuideWriter(Writer):
    """Each process writes its steps at their place in files that have their full size from the start."""

    format = "the guide's observations.npy, actions.npy, rollout_length.npy"

    def check(self) -> None:
        if not self.content.cameras:
            raise UserError(f"{self.content.chosen.path} has no camera, and the guide's format needs one")

    def notes(self) -> list[str]:
        notes = []
        if self.content.extras:
            notes.append(f"{LEFT_OUT}{', '.join(self.content.extras)}, for which the format has no place")
        rounded = [
            f"{key} ({self.content.columns[key].dtype})"
            for key in (STATE, ACTION)
            if not np.can_cast(self.content.columns[key].dtype, np.float32)
        ]
        if rounded:
            notes.append(f"rounded to float32, the format's type: {', '.join(rounded)}")
        return notes

    def bytes_needed(self) -> int:
        row = self._dtype.itemsize + 4 * self.content.columns[ACTION].size
        return self.content.num_steps * row + 8 * len(self.content.lengths)

    def write(self, folder: Path, progress: ProgressBar) -> None:
        steps = self.content.num_steps
        _allocate(folder / OBSERVATIONS, self._dtype, (steps,))
        _allocate(folder / ACTIONS, np.dtype(np.float32), (steps, self.content.columns[ACTION].size))
        jobs = [(self.content, part, self._dtype, folder) for part in self.parts()]
        self.run(_write_part, jobs, progress=progress, images_a_step=len(self.content.cameras))
        np.save(folder / LENGTHS, np.array(self.content.lengths, dtype=np.int64))
        write_json(folder / METADATA, self._metadata())

    @property
    def _dtype(self) -> np.dtype[Any]:
        sizes = {name: self.content.cameras[key] for key, name in short_names(self.content.cameras).items()}
        return observation_dtype(
            {name: (camera.height, camera.width) for name, camera in sizes.items()}, self.content.columns[STATE].size
        )

    def _metadata(self) -> dict[str, Any]:
        columns, tasks = self.content.columns, self.content.tasks
        described = {
            "fps": self.content.fps,
            "cameras": list(short_names(self.content.cameras).values()),
            "joint_names": columns[ACTION].names,
            "state_names": columns[STATE].names,
            "task": tasks[0] if len(set(tasks)) == 1 and tasks[0] else None,
            "tasks": tasks if len(set(tasks)) > 1 else None,
        }
        known = {name: value for name, value in described.items() if value is not None}
        return {name: value for name, value in self.content.chosen.metadata.items() if name in _KEPT} | known


def _allocate(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """A .npy file in its full size."""
    np.lib.format.open_memmap(path, "w+", dtype, shape)


def _write_part(content: Content, part: EpisodeSpan, dtype: np.dtype[Any], folder: Path) -> None:
    """Write some steps of one episode at their place."""
    vectors = content.vectors(part.episode)
    first = content.starts[part.episode] + part.first
    actions = vectors[ACTION][part.first : part.end].astype(np.float32)
    _write_rows(folder / ACTIONS, first, actions)
    names = short_names(content.cameras)
    cameras = [content.frames(part.episode, camera, part.steps) for camera in names]
    row = np.zeros(1, dtype)
    # As a file, not through a map: where the disk becomes full, a map kills the process.
    with (folder / OBSERVATIONS).open("r+b", buffering=0) as file:
        file.seek(_offset(folder / OBSERVATIONS) + first * dtype.itemsize)
        for step, images in zip(part.steps, zip(*cameras)):
            for name, image in zip(names.values(), images):
                row[IMAGE_PREFIX + name] = image
            row[STATE] = vectors[STATE][step]
            _write_all(file, row)


def _write_rows(path: Path, first: int, rows: np.ndarray) -> None:
    with path.open("r+b") as file:
        file.seek(_offset(path) + first * rows[:1].nbytes)
        file.write(rows.tobytes())


def _write_all(file: Any, row: np.ndarray) -> None:
    content = row.view(np.uint8).data
    while content:  # a file without buffer may take a part
        content = content[file.write(content) :]


def _offset(path: Path) -> int:
    """Bytes before a .npy file's rows."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    return int(mapped.offset)
