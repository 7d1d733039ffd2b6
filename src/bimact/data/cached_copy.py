"""A copy of a dataset as arrays on disk, decoded once: for formats whose steps cannot be read in any order at once.

The copy is made by all cores, episode by episode. What is done is noted after it is on the disk, so that a conversion
that was interrupted or killed goes on; the folder gets its name when all of it is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bimact.data.array_folder import ArrayFolder, RowWriter, read_description
from bimact.data.cache_places import check_space, first_writable, one_at_a_time, places
from bimact.data.episodes import Episodes
from bimact.data.npy_rows import NpyRows
from bimact.data.selection import ACTION, STATE, SelectedSource
from bimact.data.source import Source
from bimact.data.workers import run_jobs
from bimact.errors import UserError
from bimact.progress import progress_bar

_VERSION = 1  # of what copies look like: another number makes them anew
_BLOCK = 16  # images that are written at once
_SECONDS_A_STEP = 1.0  # a child that is slower than this hangs
_EPISODES_A_JOB = 64  # whose vectors are read at once


def cached_copy(source: SelectedSource, cache_dir: Path | None, image_size: tuple[int, int] | None) -> Episodes:
    """The arrays of a source whose columns are "state" and "action"; they are made if there are none yet.

    Args:
        source: the part of a dataset that is needed.
        cache_dir: a folder for the copies of any datasets. None: `.bimact_cache` beside the dataset or, where that
            cannot be written, the user's cache folder.
        image_size: larger images are stored in this height and width, by the same antialiased bilinear filter that
            encoders use. None: as they are.

    Raises:
        UserError: if the source cannot be read, or the copy not be written or does not fit on the disk.
    """
    plan = _Plan(source, image_size)
    candidates = places(source.path, cache_dir)
    for place in candidates:
        if plan.at(place).is_whole:
            return plan.opened(place)
    place = first_writable(source.path, candidates)
    with one_at_a_time(source.path, place):
        if not plan.at(place).is_whole:  # else made by the process that this one has waited for
            try:
                _make(plan, place)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"cannot write the converted copy of {source.path} to {place}: {reason}") from None
    return plan.opened(place)


@dataclass(frozen=True)
class _Plan:
    """Which arrays a copy has."""

    source: SelectedSource
    image_size: tuple[int, int] | None

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """camera → (H, W) as stored."""
        return {name: self._stored(camera.height, camera.width) for name, camera in self.source.cameras.items()}

    def _stored(self, height: int, width: int) -> tuple[int, int]:
        if self.image_size is None:
            return height, width
        is_larger = height >= self.image_size[0] and width >= self.image_size[1]
        return self.image_size if is_larger else (height, width)

    @cached_property
    def arrays(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """file name → type and shape."""
        steps = self.source.num_steps
        vectors = {name: (np.dtype(np.float32), (steps, self.source.columns[name].size)) for name in (STATE, ACTION)}
        stored = enumerate(self.sizes.values())
        images = {_image_file(number): (np.dtype(np.uint8), (steps, *size, 3)) for number, size in stored}
        return {f"{STATE}.npy": vectors[STATE], f"{ACTION}.npy": vectors[ACTION], **images}

    @cached_property
    def origin(self) -> str:
        """Which files, in which state, the copy is made of."""
        folder = self.source.path
        entries = [(name, (folder / name).stat()) for name in sorted(self.source.files)]
        return _digest([[name, status.st_size, status.st_mtime_ns] for name, status in entries])

    @cached_property
    def description(self) -> dict[str, Any]:
        source = self.source
        return {
            "version": _VERSION,
            "dataset": str(source.path.resolve()),
            "origin": self.origin,
            "lengths": source.lengths.tolist(),
            "episode_names": [episode.name for episode in source.episodes],
            "cameras": {
                name: {"file": _image_file(n), "size": self.sizes[name]} for n, name in enumerate(source.cameras)
            },
            "camera_sizes": {name: (camera.height, camera.width) for name, camera in source.cameras.items()},
            "state_names": source.columns[STATE].names,
            "joint_names": source.columns[ACTION].names,
            "fps": source.fps,
            "task": _common_task(source),
            "metadata": dict(source.metadata),
            "columns": {key: [vector.keys, vector.dims] for key, vector in source.vectors.items()},
            "color_order": source.whole.color_order,
            "recorded_fps": source.whole.fps,
        }

    def at(self, place: Path) -> ArrayFolder:
        return ArrayFolder(place / f"arrays-{_digest(self.description)}", self.arrays, self.description)

    def opened(self, place: Path) -> Episodes:
        folder, source = self.at(place).path, self.source
        return Episodes(
            path=source.path,
            lengths=source.lengths,
            images={name: NpyRows(folder / _image_file(number)) for number, name in enumerate(source.cameras)},
            state=NpyRows(folder / f"{STATE}.npy"),
            actions=NpyRows(folder / f"{ACTION}.npy"),
            fps=source.fps,
            joint_names=source.columns[ACTION].names,
            state_names=source.columns[STATE].names,
            task=_common_task(source),
            episode_names=tuple(episode.name for episode in source.episodes),
            camera_sizes={name: (camera.height, camera.width) for name, camera in source.cameras.items()},
            metadata=source.metadata,
        )


def _image_file(number: int) -> str:
    return f"camera_{number}.npy"  # a camera's name may be no file's


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _common_task(source: Source) -> str | None:
    tasks = {episode.task for episode in source.episodes}
    return tasks.pop() if len(tasks) == 1 else None


# Making it -----------------------------------------------------------------------------------------


def _make(plan: _Plan, place: Path) -> None:
    folder = plan.at(place)
    _remove_outdated(plan, place)
    done = folder.done()
    if done is None:
        check_space(plan.source.path, place, folder.bytes)
        _announce(plan, folder)
        folder.reserve()
    _decode(plan, folder, done or set())
    folder.finish()


def _announce(plan: _Plan, folder: ArrayFolder) -> None:
    source = plan.source
    cameras = ", ".join(f"{name} {height}x{width}" for name, (height, width) in plan.sizes.items()) or "no cameras"
    count = len(source.episodes)
    content = f"{count} episode{'s' if count > 1 else ''}, {source.num_steps} steps, {cameras}"
    size = f"{folder.bytes / 1e9:.2f} GB in {folder.path.parent}"
    print(f"Converting {source.path} ({source.format}) once:\n  {content}: {size}", flush=True)


def _remove_outdated(plan: _Plan, place: Path) -> None:
    """Remove what was made, or half made, of what the dataset was before it changed."""
    for folder in place.glob("arrays-*"):
        description = read_description(folder) or {}
        is_current = description.get("origin") == plan.origin
        if not is_current and description.get("dataset") in (None, plan.description["dataset"]):
            shutil.rmtree(folder, ignore_errors=True)


def _decode(plan: _Plan, folder: ArrayFolder, done: set[str]) -> None:
    """Read all that is not done yet, in child processes."""
    jobs = [job for job in _jobs(plan.source) if str(job) not in done]
    frames = plan.source.num_steps * len(plan.source.cameras)
    left = sum(plan.source.episodes[job.episode].length for job in jobs if job.camera is not None)
    longest = max(episode.length for episode in plan.source.episodes)
    with progress_bar("decoding", max(1, frames), frames - left) as progress:
        for number, steps in run_jobs(
            _convert_part,
            [(plan.source, folder.unfinished, job, plan.sizes) for job in jobs],
            describe=lambda source, folder, job, sizes: f"{source.path}, {source.episodes[job.episode].name}",
            timeout=300 + longest * _SECONDS_A_STEP,
        ):
            folder.note(str(jobs[number]))
            progress.advance(steps)


@dataclass(frozen=True)
class _Job:
    """The images of a camera in one episode, or the vectors of some episodes."""

    episode: int
    camera: str | None
    end: int  # the last episode + 1

    def __str__(self) -> str:
        return json.dumps([self.episode, self.end, self.camera])


def _jobs(source: Source) -> Iterator[_Job]:
    count = len(source.episodes)
    for first in range(0, count, _EPISODES_A_JOB):
        yield _Job(first, None, min(first + _EPISODES_A_JOB, count))
    for episode in np.argsort(-source.lengths, kind="stable").tolist():  # the last ones keep no core waiting
        for camera in source.cameras:
            yield _Job(episode, camera, episode + 1)


def _convert_part(source: Source, folder: Path, job: _Job, sizes: dict[str, tuple[int, int]]) -> int:
    """In a child: write a part of the copy to the disk; gives the number of images."""
    if job.camera is None:
        _convert_vectors(source, folder, job)
        return 0
    file = folder / _image_file(list(sizes).index(job.camera))
    length = source.episodes[job.episode].length
    frames = source.read_frames(job.episode, job.camera, range(length))
    first = int(source.lengths[: job.episode].sum())
    with RowWriter(file) as rows:
        for step, block in _blocks(frames, sizes[job.camera]):
            rows.write(first + step, block)
    return length


def _convert_vectors(source: Source, folder: Path, job: _Job) -> None:
    starts = np.concatenate([[0], np.cumsum(source.lengths)])
    with RowWriter(folder / f"{STATE}.npy") as states, RowWriter(folder / f"{ACTION}.npy") as actions:
        for episode in range(job.episode, job.end):
            columns = source.read_columns(episode, (STATE, ACTION))
            for key, rows in ((STATE, states), (ACTION, actions)):
                with np.errstate(over="ignore"):  # becomes inf, which training refuses and `bimact check` finds
                    values = columns[key].astype(np.float32)
                rows.write(int(starts[episode]), values)


def _blocks(frames: Iterator[np.ndarray], size: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Images in the size that is wanted: (number of the first, (n, H, W, 3))."""
    block: list[np.ndarray] = []
    done = 0
    for frame in frames:
        block.append(resize(frame, size))
        if len(block) == _BLOCK:
            yield done, np.stack(block)
            done += len(block)
            block = []
    if block:
        yield done, np.stack(block)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) uint8 in another height and width, by an antialiased bilinear filter."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
