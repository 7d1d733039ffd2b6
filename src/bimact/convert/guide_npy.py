"""Writes the guide's dataset: `observations.npy` as a structured array, and the files next to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bimact.convert.content import Content, short_names
from bimact.convert.writer import EpisodeSpan, Writer
from bimact.data.formats.guide_npy import ACTIONS, IMAGE_PREFIX, LENGTHS, METADATA, OBSERVATIONS, observation_dtype
from bimact.data.selection import ACTION, STATE
from bimact.errors import UserError
from bimact.files import write_json
from bimact.progress import ProgressBar

_KEPT = ("robot_type", "sim")  # of a source's metadata; the rest describes its own files


class GuideWriter(Writer):
    """Each process writes its steps at their position in files that are allocated in full size first."""

    format = "the guide's observations.npy, actions.npy, rollout_length.npy"

    def check(self) -> None:
        if not self.content.cameras:
            raise UserError(f"{self.content.chosen.path} has no camera, but the guide's format needs one")
        if self.content.depth_cameras:
            depth = ", ".join(self.content.depth_cameras)
            raise UserError(f"the guide's format cannot store depth: leave {depth} out of --cameras")

    def left_out(self) -> list[str]:
        extras = self.content.extras
        left_out = [f"{', '.join(extras)}, which the format cannot store"] if extras else []
        return [*left_out, *super().left_out()]

    def notes(self) -> list[str]:
        rounded = [
            f"{key} ({self.content.columns[key].dtype})"
            for key in (STATE, ACTION)
            if not np.can_cast(self.content.columns[key].dtype, np.float32)
        ]
        return [f"rounded to float32, the format's dtype: {', '.join(rounded)}"] if rounded else []

    def bytes_needed(self) -> int:
        row = self._dtype.itemsize + 4 * self.content.columns[ACTION].size
        return self.content.num_steps * row + 8 * len(self.content.lengths)

    def write(self, folder: Path, progress: ProgressBar) -> None:
        content = self.content
        steps, columns, tasks = content.num_steps, content.columns, content.tasks
        np.lib.format.open_memmap(folder / OBSERVATIONS, "w+", self._dtype, (steps,))
        np.lib.format.open_memmap(folder / ACTIONS, "w+", np.dtype(np.float32), (steps, columns[ACTION].size))
        jobs = [(content, span, self._dtype, folder) for span in self.spans()]
        self.run(_write_span, jobs, progress=progress, images_per_step=len(content.cameras))
        np.save(folder / LENGTHS, np.array(content.lengths, dtype=np.int64))
        described = {
            "fps": content.fps,
            "cameras": list(short_names(content.cameras).values()),
            "joint_names": columns[ACTION].names,
            "state_names": columns[STATE].names,
            "task": tasks[0] if len(set(tasks)) == 1 and tasks[0] else None,
            "tasks": tasks if len(set(tasks)) > 1 else None,
        }
        kept = {name: value for name, value in content.chosen.metadata.items() if name in _KEPT}
        write_json(folder / METADATA, kept | {name: value for name, value in described.items() if value is not None})

    @property
    def _dtype(self) -> np.dtype[Any]:
        sizes = {name: self.content.cameras[key] for key, name in short_names(self.content.cameras).items()}
        return observation_dtype(
            {name: (camera.height, camera.width) for name, camera in sizes.items()}, self.content.columns[STATE].size
        )


def _write_span(content: Content, span: EpisodeSpan, dtype: np.dtype[Any], folder: Path) -> None:
    """Write some steps of one episode at their position in the files."""
    vectors = content.vectors(span.episode)
    first = content.starts[span.episode] + span.first
    actions = vectors[ACTION][span.first : span.end].astype(np.float32)
    with (folder / ACTIONS).open("r+b") as file:
        file.seek(_header_bytes(folder / ACTIONS) + first * actions[:1].nbytes)
        file.write(actions.tobytes())
    names = short_names(content.cameras)
    cameras = [content.frames(span.episode, camera, span.steps) for camera in names]
    row = np.zeros(1, dtype)
    # As a file, not a memory map: on a full disk, a memory map kills the process.
    with (folder / OBSERVATIONS).open("r+b", buffering=0) as file:
        file.seek(_header_bytes(folder / OBSERVATIONS) + first * dtype.itemsize)
        for step, images in zip(span.steps, zip(*cameras)):
            for name, image in zip(names.values(), images):
                row[IMAGE_PREFIX + name] = image
            row[STATE] = vectors[STATE][step]
            unwritten = row.view(np.uint8).data
            while unwritten:  # an unbuffered write may be partial
                unwritten = unwritten[file.write(unwritten) :]


def _header_bytes(path: Path) -> int:
    """Offset of the rows of a .npy file."""
    mapped: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return int(mapped.offset)
