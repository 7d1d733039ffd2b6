"""The content of the page: a dataset, its joints and its episodes, in JSON types."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bimact.check.facts import pair_dimensions
from bimact.data.source import Source
from bimact.data.workers import run_apart

ASSUMED_FPS = 50.0  # of the usual robots
_SECONDS_TO_READ = 300.0
_SIDE = re.compile(r"(?<![a-z])(left|right)|(Left|Right)|^(l|r)(?=[_.\- ])")


@dataclass(frozen=True)
class Joint:
    """A dimension of the state, of the action, or of both.

    Attributes:
        name: as in the dataset; "dimension 3" where it has none.
        group: "left", "right", or "" for all others and where only one side occurs.
        state: its index in the state; None: it is not part of it.
        action: its index in the action; None: it is not part of it.
    """

    name: str
    group: str
    state: int | None
    action: int | None


def joints_of(source: Source) -> list[Joint]:
    """State and action of a dataset, dimension by dimension, paired by `pair_dimensions`."""
    state, action = _names(source, source.state_keys), _names(source, source.action_keys)
    sizes = _size(source, source.state_keys), _size(source, source.action_keys)
    paired = dict(pair_dimensions(state, action, *sizes))
    pairs: list[tuple[int | None, int | None]] = [(number, paired.get(number)) for number in range(sizes[0])]
    pairs += [(None, number) for number in range(sizes[1]) if number not in paired.values()]
    found: list[tuple[str, str]] = []  # name and side
    for of_state, of_action in pairs:
        own = [names[n] for names, n in ((state, of_state), (action, of_action)) if names is not None and n is not None]
        name = " / ".join(dict.fromkeys(filter(None, own)))
        if not name and of_state is not None and of_action is not None:
            name = f"dimension {of_state}"
        elif not name:
            name = f"action {of_action}" if of_state is None else f"state {of_state}"
        match = _SIDE.search(name)
        side = next(filter(None, match.groups())).lower() if match else ""
        found.append((name, {"l": "left", "r": "right"}.get(side, side)))
    has_both = {"left", "right"} <= {side for _, side in found}
    return [Joint(name, side if has_both else "", *pair) for (name, side), pair in zip(found, pairs)]


def _names(source: Source, keys: Sequence[str]) -> tuple[str, ...] | None:
    """Names of the dimensions of some columns, concatenated; None where a column has none."""
    parts = [source.columns[key].names for key in keys]
    return None if None in parts or not parts else tuple(name for part in parts for name in part or ())


def _size(source: Source, keys: Sequence[str]) -> int:
    return sum(source.columns[key].size for key in keys)


def shown_fps(source: Source) -> float:
    """The dataset's fps, or `ASSUMED_FPS` where it has none."""
    return source.fps or ASSUMED_FPS


def dataset_content(source: Source, episodes: Sequence[int] | None = None) -> dict[str, Any]:
    """The facts about the whole dataset.

    Args:
        episodes: those to list; None: all.
    """
    numbers = range(len(source.episodes)) if episodes is None else episodes
    tasks = list(dict.fromkeys(episode.task for episode in source.episodes if episode.task))
    of_task = {task: number for number, task in enumerate(tasks)}
    return {
        "name": source.path.name,
        "path": str(source.path),
        "format": source.format,
        "fps": shown_fps(source),
        "fps_is_known": source.fps is not None,
        "robot": source.metadata.get("robot_type") if isinstance(source.metadata.get("robot_type"), str) else None,
        "cameras": [{"name": name, **dataclasses.asdict(camera)} for name, camera in source.cameras.items()],
        "joints": [dataclasses.asdict(joint) for joint in joints_of(source)],
        "state_size": _size(source, source.state_keys),
        "action_size": _size(source, source.action_keys),
        "total_episodes": len(source.episodes),
        "total_steps": source.num_steps,
        "tasks": tasks,
        "skipped": [episode.sentence for episode in source.unusable],
        "episodes": [
            {
                "number": number,
                "name": source.episodes[number].name,
                "length": source.episodes[number].length,
                "task": of_task.get(source.episodes[number].task or ""),
            }
            for number in numbers
        ],
    }


def episode_content(source: Source, episode: int) -> dict[str, Any]:
    """State and action of an episode for the page; read in a child process.

    Raises:
        UserError: if they cannot be read.
    """
    what = f"{source.path}, {source.episodes[episode].name}"
    state, action = run_apart(read_vectors, source, episode, what=what, timeout=_SECONDS_TO_READ)
    return {"number": episode, "state": packed(state), "action": packed(action)}


def read_vectors(source: Source, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """State (T, S) and action (T, A) of an episode, float32.

    Raises:
        UserError: if they cannot be read.
    """
    keys = [*dict.fromkeys([*source.state_keys, *source.action_keys])]
    columns = source.read_columns(episode, keys) if keys else {}
    length = source.episodes[episode].length

    def concatenated(keys: Sequence[str]) -> np.ndarray:
        parts = [np.zeros((length, 0)), *(columns[key] for key in keys)]
        with np.errstate(over="ignore"):  # becomes Inf, which the page shows as a gap
            return np.concatenate(parts, axis=1).astype(np.float32)

    return concatenated(source.state_keys), concatenated(source.action_keys)


def packed(vectors: np.ndarray) -> str:
    """(T, D) → base64 of float32, little-endian, dimension by dimension: exact, and JSON has no NaN."""
    return base64.b64encode(np.ascontiguousarray(vectors.T, dtype="<f4").tobytes()).decode()
