"""Reads a whole source once, in child processes, into the small facts that checks go by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bimact.check.facts import Facts, Vectors
from bimact.check.findings import Finding
from bimact.check.frames import FrameFacts, look_through
from bimact.check.kinds import ERROR, INFO
from bimact.config import Config
from bimact.data.selection import ACTION, STATE, SelectedSource
from bimact.data.source import FramesNote
from bimact.data.workers import run_jobs
from bimact.errors import UserError
from bimact.progress import progress_bar

_MOST_JOBS = 256  # of each kind: a job takes the whole source with it, which is large if there are many episodes
_SECONDS_A_STEP = 1.0  # a child that is slower than this hangs
_SECONDS_TO_START = 60.0


@dataclass(frozen=True)
class Files:
    """The files of each part, where the format has one for all episodes; empty: it has not."""

    lengths: str = ""
    state: str = ""
    action: str = ""


NO_FILES = Files()


@dataclass(frozen=True)
class _Vectors:
    """State (T, S) and action (T, A) float32 of an episode, and its timestamps (T,) seconds."""

    state: np.ndarray
    action: np.ndarray
    timestamps: np.ndarray | None


_Job: TypeAlias = "tuple[SelectedSource, int, int, Any]"  # source, begin and end of the episodes, what of them


def scan(
    source: SelectedSource,
    *,
    images: bool,
    apart: bool,
    config: Config | None,
    files: Files,
) -> tuple[Facts, list[Finding]]:
    """Read all that there is, as far as it can be read.

    Args:
        images: False: leave out the images, which take most of the time.
        apart: False: in this process, for a reader that guards itself.
        config: the training's settings, which checks compare.
        files: how findings name the parts of the dataset.

    Returns:
        the facts; and what could not be read.
    """
    problems: list[Finding] = []
    states, actions, timestamps = _read_all_vectors(source, apart, problems)
    frames = _read_all_images(source, apart, problems) if images and source.cameras else {}
    state, action = source.columns[STATE], source.columns[ACTION]
    facts = Facts(
        episodes=source.episodes,
        state=Vectors("state", states, state.names, state.dtype, files.state),
        action=Vectors("action", actions, action.names, action.dtype, files.action),
        timestamps=timestamps,
        frames=frames,
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


def _read_all_vectors(
    source: SelectedSource, apart: bool, problems: list[Finding]
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], tuple[np.ndarray | None, ...]]:
    state, action = (np.zeros((0, source.columns[name].size), np.float32) for name in (STATE, ACTION))
    read = [_Vectors(state, action, timestamps=None)] * len(source.episodes)
    with progress_bar("reading states and actions", source.num_steps) as progress:
        for _, episode, part in _of_each_episode(_read_vectors, source, [None], apart):
            if isinstance(part, UserError):
                problems.append(_unread(source, str(part), episode))
            else:
                read[episode] = part
            progress.advance(source.episodes[episode].length)
    return tuple(part.state for part in read), tuple(part.action for part in read), tuple(p.timestamps for p in read)


def _read_all_images(
    source: SelectedSource, apart: bool, problems: list[Finding]
) -> dict[str, tuple[FrameFacts | None, ...]]:
    frames: dict[str, list[FrameFacts | None]] = {name: [None] * len(source.episodes) for name in source.cameras}
    with progress_bar("looking through images", source.num_steps * len(frames)) as progress:
        for camera, episode, result in _of_each_episode(_read_images, source, list(frames), apart):
            facts, problem, note = (None, str(result), None) if isinstance(result, UserError) else result
            frames[camera][episode] = facts
            if problem is not None:
                problems.append(_unread(source, problem, episode, camera))
            if note is not None:
                name = source.episodes[episode].name
                off = "" if note.seconds is None else f" (up to {note.seconds:.2g} s apart)"
                sentence = f"{name}, camera '{camera}': {note.what}{off}"
                problems.append(Finding("matched-frames", sentence, INFO, "", episode, name, camera=camera))
            progress.advance(source.episodes[episode].length)
    return {camera: tuple(of_camera) for camera, of_camera in frames.items()}


def _unread(source: SelectedSource, sentence: str, episode: int, camera: str | None = None) -> Finding:
    sentence = sentence.replace(f"{source.path}/", "")
    return Finding("unreadable", sentence, ERROR, "", episode, source.episodes[episode].name, camera=camera)


# In child processes --------------------------------------------------------------------------------


def _of_each_episode(
    function: Callable[..., list[Any]], source: SelectedSource, whats: Sequence[Any], apart: bool
) -> Iterator[tuple[Any, int, Any]]:
    """Call `function(source, begin, end, what)`, which gives a list with an entry for each of these episodes.

    Yields:
        (what, episode, entry) as they are done; a `UserError` instead of the entry if a child crashes or hangs.
    """
    total = len(source.episodes)
    size = 1 + total // _MOST_JOBS
    jobs: list[_Job] = [
        (source, begin, min(begin + size, total), what) for begin in range(0, total, size) for what in whats
    ]
    while jobs:
        again: list[_Job] = []
        for job, result in _results(function, jobs, apart):
            _, begin, end, what = job
            if not isinstance(result, UserError):
                yield from ((what, episode, entry) for episode, entry in zip(range(begin, end), result))
            elif end - begin > 1:  # in which of them has the child crashed?
                again += [(source, episode, episode + 1, what) for episode in range(begin, end)]
            else:
                yield what, begin, result
        jobs = again


def _results(function: Callable[..., list[Any]], jobs: Sequence[_Job], apart: bool) -> Iterator[tuple[_Job, Any]]:
    """Each job and its result; a `UserError` instead of the result of a child that crashes or hangs."""
    if not apart:
        yield from ((job, function(*job)) for job in jobs)
        return
    longest = max(sum(episode.length for episode in source.episodes[begin:end]) for source, begin, end, _ in jobs)
    timeout = _SECONDS_TO_START + _SECONDS_A_STEP * longest
    for number, result in run_jobs(function, jobs, describe=_described, timeout=timeout, goes_on=True):
        yield jobs[number], result


def _described(source: SelectedSource, begin: int, end: int, camera: str | None) -> str:
    return source.episodes[begin].name + (f", camera '{camera}'" if camera is not None else "")


def _read_vectors(source: SelectedSource, begin: int, end: int, _: None) -> list[_Vectors | UserError]:
    return [_vectors_of(source, episode) for episode in range(begin, end)]


def _vectors_of(source: SelectedSource, episode: int) -> _Vectors | UserError:
    try:
        columns = source.read_columns(episode, (STATE, ACTION))
        timestamps = source.read_timestamps(episode)
    except UserError as error:
        return UserError(str(error))  # without its cause, which may be an object that cannot be pickled
    with np.errstate(over="ignore"):  # becomes inf, which is found as such
        state, action = (columns[key].astype(np.float32) for key in (STATE, ACTION))
    return _Vectors(state, action, None if timestamps is None else np.asarray(timestamps, np.float64))


def _read_images(
    source: SelectedSource, begin: int, end: int, camera: str
) -> list[tuple[FrameFacts | None, str | None, FramesNote | None]]:
    return [_images_of(source, episode, camera) for episode in range(begin, end)]


def _images_of(
    source: SelectedSource, episode: int, camera: str
) -> tuple[FrameFacts | None, str | None, FramesNote | None]:
    """(facts, why not all images could be read, how they were matched with steps if not by their times)."""
    length = source.episodes[episode].length
    try:
        note = source.frames_note(episode, camera)
    except UserError as error:
        return None, str(error), None
    facts, problem = look_through(source.read_frames(episode, camera, range(length)))
    if problem is None and (count := 0 if facts is None else len(facts)) != length:
        name = source.episodes[episode].name
        problem = f"{name}: camera '{camera}' has {count} images, the dataset says {length} steps"
    return facts, problem, note
