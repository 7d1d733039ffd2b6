"""A copy of a dataset as arrays on disk, decoded once: for formats without fast random access to steps.

The copy is made on all cores, episode by episode. Each finished part is recorded once it is on disk, so that an
interrupted or killed conversion is resumed; the folder gets its final name when it is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bimact.data.cache import ArrayFolder, Arrays, RowWriter, build_once, check_space, size_of
from bimact.data.episodes import Episodes
from bimact.data.npy_rows import NpyRows
from bimact.data.reading import frames_lines, nonfinite_value
from bimact.data.selection import ACTION, STATE, SelectedSource
from bimact.data.source import FramesNote, Source, Unusable
from bimact.data.workers import run_jobs
from bimact.errors import UserError
from bimact.files import write_json
from bimact.progress import progress_bar

_VERSION = 3  # of the copies' layout: copies of another version are rebuilt
_BLOCK = 16  # images per write
_SECONDS_PER_STEP = 1.0  # a slower child counts as hanging
_EPISODES_PER_JOB = 64  # episodes whose vectors are read by one job
_FOUND = "found.json"  # next to the arrays: unreadable episodes, and notes on others
_NOTED = "note "  # prefix of lines in the list of finished parts


def cached_copy(
    source: SelectedSource, cache_dir: Path | None, image_size: tuple[int, int] | None
) -> tuple[Episodes, SelectedSource]:
    """The arrays of a source with the columns "state" and "action"; created if they do not exist.

    Args:
        source: the part of a dataset that is needed.
        cache_dir: a folder for copies of datasets. None: `.bimact_cache` next to the dataset or, if that is not
            writable, the user's cache folder.
        image_size: height and width to which larger images are resized, with the antialiased bilinear filter of the
            encoders. None: original size.

    Returns:
        the arrays; and the source without unreadable episodes, with notes on how others were read.

    Raises:
        UserError: listing all episodes that cannot be read, unless the selection skips them; or if the copy cannot be
            written or does not fit on the disk.
    """
    plan = _Plan(source, image_size)
    folder = build_once(source.path, cache_dir, "arrays-", plan.description, lambda folder: _make(plan, folder))
    return plan.opened(folder)


def copy_arrays(source: SelectedSource, image_size: tuple[int, int] | None) -> Arrays:
    """File name → dtype and shape of the copy that `cached_copy` makes: a camera's images are (N, H, W, 3) uint8."""
    return _Plan(source, image_size).arrays


@dataclass(frozen=True)
class _Plan:
    """The arrays of a copy."""

    source: SelectedSource
    image_size: tuple[int, int] | None

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """camera → (H, W) as stored."""
        return {
            name: stored_size((camera.height, camera.width), self.image_size)
            for name, camera in self.source.cameras.items()
        }

    def _resized(self) -> list[str]:
        """Notes on images that are not stored in their recorded size."""
        notes = []
        for name, (height, width) in self.sizes.items():
            recorded = self.source.cameras[name]
            if (recorded.height, recorded.width) != (height, width):
                is_squeezed = recorded.height * width != recorded.width * height
                note = (
                    f"camera {name}: its images of {recorded.height}x{recorded.width} are resized to {height}x{width}"
                )
                notes.append(note + (", without keeping their aspect ratio" if is_squeezed else ""))
        return notes

    @cached_property
    def arrays(self) -> Arrays:
        """file name → type and shape."""
        steps = self.source.num_steps
        vectors = {name: (np.dtype(np.float32), (steps, self.source.columns[name].size)) for name in (STATE, ACTION)}
        stored = enumerate(self.sizes.values())
        images = {_image_file(number): (np.dtype(np.uint8), (steps, *size, 3)) for number, size in stored}
        return {f"{STATE}.npy": vectors[STATE], f"{ACTION}.npy": vectors[ACTION], **images}

    @cached_property
    def origin(self) -> str:
        """Hash of the names, sizes and modification times of the copied files."""
        folder = self.source.path
        entries = [(name, (folder / name).stat()) for name in sorted(self.source.files)]
        states = [[name, status.st_size, status.st_mtime_ns] for name, status in entries]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:20]

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
            "columns": {key: [vector.keys, vector.shifts, vector.dims] for key, vector in source.vectors.items()},
            "color_order": source.whole.color_order,
            "recorded_fps": source.whole.fps,
        }

    def opened(self, folder: Path) -> tuple[Episodes, SelectedSource]:
        source = self.source
        told = json.loads((folder / _FOUND).read_text())
        faults = {int(position): reason for position, reason in told["faults"].items()}
        episodes = Episodes(
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
            depth_cameras=tuple(name for name, camera in source.cameras.items() if camera.is_depth),
        )
        notes = (*source.notes, *told["notes"], *self._resized())
        read = dataclasses.replace(source, notes=notes).without(_unusable(source, faults))
        read.refuse_damaged()
        return episodes.only([position for position in range(len(source.episodes)) if position not in faults]), read


def _unusable(source: Source, faults: Mapping[int, str]) -> list[Unusable]:
    return [
        Unusable(source.number_of(position), source.episodes[position].name, reason, is_missing=False)
        for position, reason in sorted(faults.items())
    ]


def _image_file(number: int) -> str:
    return f"camera_{number}.npy"  # a camera's name may not be a valid file name


def _common_task(source: Source) -> str | None:
    tasks = {episode.task for episode in source.episodes}
    return tasks.pop() if len(tasks) == 1 else None


def stored_size(recorded: tuple[int, int], wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width in which a copy has images that are needed in another size."""
    is_larger = wanted is not None and recorded[0] >= wanted[0] and recorded[1] >= wanted[1]
    return wanted if wanted is not None and is_larger else recorded


# Conversion ----------------------------------------------------------------------------------------


def _make(plan: _Plan, folder: ArrayFolder) -> None:
    done = folder.done()
    if done is None:
        check_space(plan.source.path, folder.path.parent, size_of(plan.arrays))
        _announce(plan, folder)
        folder.reserve(plan.arrays)
    faults, notes = _decode(plan, folder, done or set())
    if not plan.source.selection.skip_unreadable:  # finished parts are kept for the next run
        plan.source.without(_unusable(plan.source, faults)).refuse_damaged()
    write_json(folder.unfinished / _FOUND, {"faults": faults, "notes": notes})
    folder.finish()


def _announce(plan: _Plan, folder: ArrayFolder) -> None:
    source = plan.source
    cameras = ", ".join(f"{name} {height}x{width}" for name, (height, width) in plan.sizes.items()) or "no cameras"
    count = len(source.episodes)
    content = f"{count} episode{'s' if count > 1 else ''}, {source.num_steps} steps, {cameras}"
    size = f"{size_of(plan.arrays) / 1e9:.2f} GB in {folder.path.parent}"
    print(f"Converting {source.path} ({source.format}) once:\n  {content}: {size}", flush=True)


def _decode(plan: _Plan, folder: ArrayFolder, done: set[str]) -> tuple[dict[int, str], list[str]]:
    """Read everything that is not done yet, in child processes.

    Returns:
        position of an episode → why it cannot be read; and notes on how others were read.
    """
    source = plan.source
    jobs = [job for job in _jobs(source) if str(job) not in done]
    frames = source.num_steps * len(source.cameras)
    left = sum(source.episodes[job.episode].length for job in jobs if job.camera is not None)
    longest = max(episode.length for episode in source.episodes)
    faults: dict[int, str] = {}
    notes: list[tuple[int, str, FramesNote]] = []
    for line in done:
        if line.startswith(_NOTED):
            position, camera, *note = json.loads(line.removeprefix(_NOTED))
            notes.append((position, camera, FramesNote(*note)))
    with progress_bar("decoding", max(1, frames), frames - left) as progress:
        while jobs:
            again: list[_Job] = []
            for number, result in run_jobs(
                _convert_part,
                [(source, folder.unfinished, job, plan.sizes) for job in jobs],
                describe=lambda source, folder, job, sizes: f"{source.path}, {source.episodes[job.episode].name}",
                timeout=300 + longest * _SECONDS_PER_STEP,
                keep_going=True,
            ):
                job = jobs[number]
                if isinstance(result, UserError):  # a child crashed or hangs
                    if job.end - job.episode > 1:  # find out in which episode
                        again += [_Job(episode, None, episode + 1) for episode in range(job.episode, job.end)]
                    else:
                        faults.setdefault(job.episode, result.reason)
                    continue
                for position, reason in result.faults.items():
                    faults.setdefault(position, reason)
                if result.note is not None and job.camera is not None:
                    notes.append((job.episode, job.camera, result.note))
                    its = [job.episode, job.camera, result.note.what, result.note.seconds]
                    folder.note(_NOTED + json.dumps(its))
                if not result.faults:
                    folder.note(str(job))
                progress.advance(result.images)
            jobs = again
    return faults, frames_lines(source, notes)


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
    for first in range(0, count, _EPISODES_PER_JOB):
        yield _Job(first, None, min(first + _EPISODES_PER_JOB, count))
    for episode in np.argsort(-source.lengths, kind="stable").tolist():  # longest first: cores finish together
        for camera in source.cameras:
            yield _Job(episode, camera, episode + 1)


@dataclass
class _Read:
    """The result of a job: number of images read, unreadable episodes, and how frames were matched."""

    images: int = 0
    faults: dict[int, str] = field(default_factory=dict)
    note: FramesNote | None = None


def _convert_part(source: Source, folder: Path, job: _Job, sizes: dict[str, tuple[int, int]]) -> _Read:
    """In a child: write a part of the copy to disk."""
    read = _Read()
    starts = np.concatenate([[0], np.cumsum(source.lengths)])
    if job.camera is None:
        with RowWriter(folder / f"{STATE}.npy") as states, RowWriter(folder / f"{ACTION}.npy") as actions:
            for episode in range(job.episode, job.end):
                try:
                    columns = source.read_columns(episode, (STATE, ACTION))
                except UserError as error:
                    read.faults[episode] = error.reason
                    continue
                with np.errstate(over="ignore"):  # becomes Inf, which is found
                    state, action = (columns[key].astype(np.float32) for key in (STATE, ACTION))
                states.write(int(starts[episode]), state)
                actions.write(int(starts[episode]), action)
                reason = nonfinite_value(state, action, source.episodes[episode].name)
                if reason is not None:
                    read.faults[episode] = reason
        return read
    try:
        file = folder / _image_file(list(sizes).index(job.camera))
        read.note = source.frames_note(job.episode, job.camera)
        frames = source.read_frames(job.episode, job.camera, range(source.episodes[job.episode].length))
        with RowWriter(file) as rows:
            is_depth = source.cameras[job.camera].is_depth
            for step, block in _blocks(frames, sizes[job.camera], is_depth=is_depth):
                rows.write(int(starts[job.episode]) + step, block)
                read.images += len(block)
        if read.images < source.episodes[job.episode].length:
            raise UserError(f"it ends at step {read.images} of {source.episodes[job.episode].length}")
    except UserError as error:
        read.faults[job.episode] = f"camera {job.camera}: {error.reason}"
    return read


def _blocks(frames: Iterator[np.ndarray], size: tuple[int, int], *, is_depth: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of resized images: (index of the first, (n, H, W, 3))."""
    block: list[np.ndarray] = []
    done = 0
    for frame in frames:
        block.append(resize(frame, size, is_depth=is_depth))
        if len(block) == _BLOCK:
            yield done, np.stack(block)
            done += len(block)
            block = []
    if block:
        yield done, np.stack(block)


def resize(image: np.ndarray, size: tuple[int, int], *, is_depth: bool = False) -> np.ndarray:
    """An image (H, W, 3) uint8, resized to (height, width) by an antialiased bilinear filter; depth: nearest pixel."""
    if image.shape[:2] == size:
        return image
    resampling = Image.Resampling.NEAREST if is_depth else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), resampling))
