"""Reads a whole source once, in child processes, into the compact facts that checks use."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from bimact.check.facts import Cut, Facts, FrameFacts, Vectors
from bimact.check.findings import Finding
from bimact.check.kinds import ERROR, INFO
from bimact.config import Config
from bimact.data.depth import depth_picture
from bimact.data.selection import ACTION, STATE, SelectedSource
from bimact.data.source import FramesNote
from bimact.data.workers import run_jobs
from bimact.errors import UserError, without_folder
from bimact.progress import progress_bar

THUMBNAIL = (12, 16)  # height and width: enough to tell scenes apart, 576 bytes
_SAMPLED_PIXELS = (48, 64)  # rows and columns that brightness and change are measured on
_CUTS = 3  # the largest changes of an episode, whose thumbnails are kept
_MOST_JOBS = 256  # of each kind: each sends the whole source to a child process, which is large with many episodes
_SECONDS_PER_STEP, _SECONDS_TO_START = 1.0, 60.0  # timeout of a child process


@dataclass(frozen=True)
class Files:
    """The file of each part, where the format has one for all episodes; empty: it has not."""

    lengths: str = ""
    state: str = ""
    action: str = ""


NO_FILES = Files()

# State (T, S) and action (T, A) float32 of an episode, and its timestamps (T,) in seconds.
_EpisodeVectors: TypeAlias = "tuple[np.ndarray, np.ndarray, np.ndarray | None]"
# Facts, why not all images could be read, how they were matched with steps if not by their timestamps.
_EpisodeImages: TypeAlias = "tuple[FrameFacts | None, str | None, FramesNote | None]"
_Job: TypeAlias = "tuple[SelectedSource, int, int, str | None]"  # source, begin and end of the episodes, camera


def scan(
    source: SelectedSource,
    *,
    images: bool,
    apart: bool,
    config: Config | None,
    files: Files,
) -> tuple[Facts, list[Finding]]:
    """Read everything that can be read.

    Args:
        images: False: leave out the images, which take most of the time.
        apart: False: read in this process instead of child processes.
        config: the training's settings, which checks compare.
        files: names of the files for findings.

    Returns:
        the facts; and findings about what could not be read.
    """
    problems: list[Finding] = []

    def add_unread(sentence: str, episode: int, camera: str | None = None) -> None:
        sentence, name = without_folder(sentence, source.path), source.episodes[episode].name
        problems.append(Finding("unreadable", sentence, ERROR, "", episode, name, camera=camera))

    state, action = source.columns[STATE], source.columns[ACTION]
    empty = np.zeros((0, state.size), np.float32), np.zeros((0, action.size), np.float32), None
    vectors: list[_EpisodeVectors] = [empty] * len(source.episodes)
    with progress_bar("reading states and actions", source.num_steps) as progress:
        for _, episode, read in _of_each_episode(_read_vectors, source, [None], apart):
            if isinstance(read, UserError):
                add_unread(str(read), episode)
            else:
                vectors[episode] = read
            progress.advance(source.episodes[episode].length)
    states, actions, timestamps = zip(*vectors)

    cameras = list(source.cameras) if images else []
    frames: dict[str, list[FrameFacts | None]] = {name: [None] * len(source.episodes) for name in cameras}
    if cameras:
        with progress_bar("looking through images", source.num_steps * len(frames)) as progress:
            for camera, episode, result in _of_each_episode(_read_images, source, cameras, apart):
                found, problem, note = (None, str(result), None) if isinstance(result, UserError) else result
                frames[camera][episode] = found
                if problem is not None:
                    add_unread(problem, episode, camera)
                if note is not None:
                    name = source.episodes[episode].name
                    sentence = f"{name}, camera '{camera}': {note}"
                    problems.append(Finding("matched-frames", sentence, INFO, "", episode, name, camera=camera))
                progress.advance(source.episodes[episode].length)

    facts = Facts(
        episodes=source.episodes,
        state=Vectors("state", states, state.names, state.dtype, files.state),
        action=Vectors("action", actions, action.names, action.dtype, files.action),
        timestamps=timestamps,
        frames={camera: tuple(of_camera) for camera, of_camera in frames.items()},
        fps=source.fps,
        color_order=source.whole.color_order,
        state_parts=tuple(source.state.parts),
        action_keys=source.action.keys,
        is_action_later_state=any(source.action.shifts),
        is_state_chosen=source.selection.state_keys is not None,
        config=config,
        lengths_file=files.lengths,
    )
    return facts, problems


def _of_each_episode(
    function: Callable[..., list[Any]], source: SelectedSource, cameras: Sequence[Any], apart: bool
) -> Iterator[tuple[Any, int, Any]]:
    """Call `function(source, begin, end, camera)`, which returns a list with an entry for each of these episodes.

    Yields:
        (camera, episode, entry) as they are done; a `UserError` instead of the entry if a child crashes or hangs.
    """
    total = len(source.episodes)
    size = 1 + total // _MOST_JOBS
    jobs: list[_Job] = [
        (source, begin, min(begin + size, total), camera) for begin in range(0, total, size) for camera in cameras
    ]
    while jobs:
        results: Iterator[tuple[int, Any]]
        if apart:
            longest = max(sum(episode.length for episode in source.episodes[begin:end]) for _, begin, end, _ in jobs)
            timeout = _SECONDS_TO_START + _SECONDS_PER_STEP * longest
            results = run_jobs(function, jobs, describe=_describe, timeout=timeout, keep_going=True)
        else:
            results = ((number, function(*job)) for number, job in enumerate(jobs))
        again: list[_Job] = []
        for number, result in results:
            _, begin, end, camera = jobs[number]
            if not isinstance(result, UserError):
                yield from ((camera, episode, entry) for episode, entry in zip(range(begin, end), result))
            elif end - begin > 1:  # in which of them did the child crash?
                again += [(source, episode, episode + 1, camera) for episode in range(begin, end)]
            else:
                yield camera, begin, result
        jobs = again


def _describe(source: SelectedSource, begin: int, end: int, camera: str | None) -> str:
    return source.episodes[begin].name + (f", camera '{camera}'" if camera is not None else "")


# In child processes --------------------------------------------------------------------------------


def _read_vectors(source: SelectedSource, begin: int, end: int, _: None) -> list[_EpisodeVectors | UserError]:
    found: list[_EpisodeVectors | UserError] = []
    for episode in range(begin, end):
        try:
            columns = source.read_columns(episode, (STATE, ACTION))
            timestamps = source.read_timestamps(episode)
        except UserError as error:
            found.append(
                UserError(str(error), error.reason)
            )  # without its cause, which may be an object that cannot be pickled
            continue
        with np.errstate(over="ignore"):  # becomes Inf, which is found
            state, action = (columns[key].astype(np.float32) for key in (STATE, ACTION))
        found.append((state, action, None if timestamps is None else np.asarray(timestamps, np.float64)))
    return found


def _read_images(source: SelectedSource, begin: int, end: int, camera: str) -> list[_EpisodeImages]:
    found: list[_EpisodeImages] = []
    for episode in range(begin, end):
        name, length = source.episodes[episode].name, source.episodes[episode].length
        try:
            note = source.frames_note(episode, camera)
        except UserError as error:
            found.append((None, str(error), None))
            continue
        frames = source.read_frames(episode, camera, range(length))
        if source.cameras[camera].is_depth:
            frames = map(depth_picture, frames)
        facts, problem = look_through(frames)
        if problem is None and (count := 0 if facts is None else len(facts)) != length:
            problem = f"{name}: camera '{camera}' has {count} images, the dataset says {length} steps"
        found.append((facts, problem, note))
    return found


def look_through(frames: Iterator[np.ndarray]) -> tuple[FrameFacts | None, str | None]:
    """The facts about some images (H, W, 3) uint8, as far as they can be read.

    Returns:
        facts, None if there is no image; and why not all could be read, None if all could.
    """
    numbers: list[tuple[float, float, float, float, bool]] = []
    thumbnails: list[np.ndarray] = []
    digest = hashlib.blake2b(digest_size=8)
    seen: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=2)  # the last two images, and pixels of them
    problem = None
    try:
        for frame in frames:
            height, width, _ = frame.shape
            every = max(1, height // _SAMPLED_PIXELS[0]), max(1, width // _SAMPLED_PIXELS[1])
            pixels = np.ascontiguousarray(frame[:: every[0], :: every[1]])

            changes = [float(np.abs(pixels.astype(np.int16) - others).mean()) for _, others in reversed(seen)]
            is_repeat = bool(seen) and changes[0] == 0 and np.array_equal(frame, seen[-1][0])
            change, change_over_two = (*changes, 0.0, 0.0)[:2]

            colors = pixels.reshape(-1, 3).astype(np.float32)
            mean = colors.mean(axis=0)
            variance = np.maximum((colors**2).mean(axis=0) - mean**2, 0)
            brightness, spread = float(mean.mean()), float(np.sqrt(variance).mean())

            numbers.append((brightness, spread, change, change_over_two, is_repeat))
            if is_repeat:
                thumbnails.append(thumbnails[-1])
            else:
                size = THUMBNAIL[1], THUMBNAIL[0]
                thumbnails.append(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)))
            digest.update(pixels.tobytes())
            seen.append((frame, pixels))
    except UserError as error:
        problem = str(error)
    if not numbers:
        return None, problem
    brightness_of, spread_of, change_of, change_over_two_of, is_repeat_of = np.array(numbers, dtype=np.float16).T
    largest = np.sort(np.argsort(change_of[1:], kind="stable")[-_CUTS:] + 1)
    facts = FrameFacts(
        brightness=brightness_of,
        spread=spread_of,
        change=change_of,
        change_over_two=change_over_two_of,
        is_repeat=is_repeat_of.astype(bool),
        average=np.mean(thumbnails, axis=0).round().astype(np.uint8),
        cuts=tuple(Cut(int(step), thumbnails[step - 1], thumbnails[step]) for step in largest),
        digest=digest.digest(),
    )
    return facts, problem
