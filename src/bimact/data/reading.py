"""Episodes that cannot be trained on: unreadable ones, and those with NaN or Inf."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bimact.data.episodes import Episodes
from bimact.data.selection import ACTION, STATE, SelectedSource
from bimact.data.source import FramesNote, Source, Unusable
from bimact.data.workers import run_jobs
from bimact.errors import UserError
from bimact.progress import progress_bar

_SECONDS, _SECONDS_PER_STEP = 300.0, 1.0
_MOST_NAMED = 5  # episodes in one sentence


def read_through(source: SelectedSource, *, decodes: bool = True) -> tuple[list[Unusable], list[str]]:
    """Read all episodes in child processes.

    Args:
        decodes: False: only match frames with steps; decode nothing and do not look for NaN.

    Returns:
        the unreadable episodes; and notes on how the frames of others are matched with steps.
    """
    if not decodes and type(source.whole).frames_note is Source.frames_note:
        return [], []
    jobs = [(source, episode, decodes) for episode in range(len(source.episodes))]
    faults: list[Unusable] = []
    notes: list[tuple[int, str, FramesNote]] = []
    longest = max((episode.length for episode in source.episodes), default=0)
    timeout = _SECONDS + longest * max(1, len(source.cameras)) * _SECONDS_PER_STEP
    with progress_bar("reading all episodes" if decodes else "matching frames", source.num_steps) as progress:
        for place, result in run_jobs(_read, jobs, describe=_described, timeout=timeout, keep_going=True):
            name = source.episodes[place].name
            if isinstance(result, UserError):
                faults.append(Unusable(source.number_of(place), name, result.reason, is_missing=False))
            else:
                notes += [(place, camera, note) for camera, note in result.items()]
            progress.advance(source.episodes[place].length)
    faults.sort(key=lambda episode: episode.number)
    return faults, frames_lines(source, notes)


def frames_lines(source: Source, notes: Iterable[tuple[int, str, FramesNote]]) -> list[str]:
    """A sentence for each kind of matching that deviates from timestamps.

    Args:
        notes: position of the episode, camera, note.
    """
    by_kind: dict[str, list[tuple[int, str, FramesNote]]] = {}
    for entry in sorted(notes, key=lambda entry: entry[:2]):
        by_kind.setdefault(entry[2].what, []).append(entry)
    lines = []
    for what, entries in by_kind.items():
        cameras = ", ".join(dict.fromkeys(camera for _, camera, _ in entries))
        names = [source.episodes[position].name for position in dict.fromkeys(entry[0] for entry in entries)]
        where = ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" * (len(names) > _MOST_NAMED))
        seconds = max((note.seconds for _, _, note in entries if note.seconds is not None), default=None)
        lines.append(f"{FramesNote(what, seconds)}: camera {cameras} in {where}")
    return lines


def _described(source: SelectedSource, episode: int, decodes: bool) -> str:
    return f"{source.path}, {source.episodes[episode].name}"


def _read(source: SelectedSource, episode: int, decodes: bool) -> dict[str, FramesNote]:
    """In a child: camera → note on how its frames are matched."""
    notes: dict[str, FramesNote] = {}
    columns = source.read_columns(episode, (STATE, ACTION))
    reason = nonfinite_value(columns[STATE], columns[ACTION], source.episodes[episode].name) if decodes else None
    if reason is not None:
        raise UserError(reason)
    for camera in source.cameras:
        note = source.frames_note(episode, camera)
        if note is not None:
            notes[camera] = note
        if decodes:
            length = source.episodes[episode].length
            count = sum(1 for _ in source.read_frames(episode, camera, range(length)))
            if count < length:
                raise UserError(
                    f"{source.path}, {source.episodes[episode].name}: camera '{camera}' ends at step {count}"
                )
    return notes


# NaN and Inf --------------------------------------------------------------------------------------


def without_nonfinite(episodes: Episodes, source: SelectedSource) -> tuple[Episodes, SelectedSource]:
    """The episodes without NaN or Inf.

    Args:
        source: what the episodes were read from.

    Raises:
        UserError: listing all damaged episodes and those with NaN or Inf in state or action, unless these are skipped.
    """
    found = find_nonfinite(episodes)
    read = source.without(
        Unusable(source.number_of(place), source.episodes[place].name, reason, is_missing=False)
        for place, reason in found.items()
    )
    read.refuse_damaged()
    return episodes.only([place for place in range(len(episodes.lengths)) if place not in found]), read


def find_nonfinite(episodes: Episodes) -> dict[int, str]:
    """Position of an episode with NaN or Inf → location of the first one."""
    found: dict[int, str] = {}
    for place in range(len(episodes.lengths)):
        rows = episodes.rows_of(place)
        name = f"episode {place}" if episodes.episode_names is None else episodes.episode_names[place]
        reason = nonfinite_value(episodes.state[rows], episodes.actions[rows], name)
        if reason is not None:
            found[place] = reason
    return found


def nonfinite_value(state: np.ndarray, actions: np.ndarray, name: str) -> str | None:
    """Location of an episode's first NaN or Inf in (T, S) and (T, A); None: all values are finite."""
    is_good = {"state": np.isfinite(state).all(axis=1), "actions": np.isfinite(actions).all(axis=1)}
    bad = {what: int(np.argmin(good)) for what, good in is_good.items() if not good.all()}
    if not bad:
        return None
    what = min(bad, key=lambda what: bad[what])
    return f"{what} of {name}, step {bad[what]} holds NaN or an infinite value: fix or remove the episode"
