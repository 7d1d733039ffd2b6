"""What the page shows of a dataset and of an episode, in JSON's types."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bimact.data.source import Source
from bimact.data.workers import run_apart
from bimact.view.joints import joints_of, size_of

ASSUMED_FPS = 50.0  # where a dataset does not tell its own
_SECONDS_TO_READ = 300.0


def shown_fps(source: Source) -> float:
    """Steps a second; those of the field's usual robots where the dataset tells none."""
    return source.fps or ASSUMED_FPS


def dataset_content(source: Source, episodes: Sequence[int] | None = None) -> dict[str, Any]:
    """What the page needs to know of the whole dataset.

    Args:
        episodes: those that are listed; None: all.
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
        "state_size": size_of(source, source.state_keys),
        "action_size": size_of(source, source.action_keys),
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

    def joined(keys: Sequence[str]) -> np.ndarray:
        parts = [np.zeros((length, 0)), *(columns[key] for key in keys)]
        with np.errstate(over="ignore"):  # becomes inf, which the page shows as a gap
            return np.concatenate(parts, axis=1).astype(np.float32)

    return joined(source.state_keys), joined(source.action_keys)


def packed(vectors: np.ndarray) -> str:
    """(T, D) → base64 of float32, little-endian, one dimension after the other: exact, and NaN is no JSON."""
    return base64.b64encode(np.ascontiguousarray(vectors.T, dtype="<f4").tobytes()).decode()
