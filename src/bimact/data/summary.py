"""The used and unused parts of a dataset in a few lines, printed by each command that opens one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from bimact.data.selection import ACTION, STATE, SelectedSource
from bimact.data.source import LeftOut, Unusable
from bimact.errors import printable

_MOST_EPISODES = 10  # listed in one line
_WIDTH = 10


def dataset_lines(source: SelectedSource) -> list[str]:
    """The used cameras, columns and episodes of a dataset; and what is left out, with the reason."""
    cameras = [f"{name} {camera}" for name, camera in source.cameras.items()]
    total = len(source.whole.episodes) + len(source.whole.unusable)
    many = f"{len(source.episodes)}" + (f" of {total}" if total > len(source.episodes) else "")
    rate = "" if source.fps is None else f", {source.fps:g} Hz"
    if source.whole.fps is not None and source.fps != source.whole.fps:
        rate += f" (resampled: recorded at {source.whole.fps:g}; steps are counted, timestamps not used)"
    told = {*source.state.keys, *source.action.keys, *(entry.name for entry in source.left_out)}
    others = [f"{key} {column.size}" for key, column in source.whole.columns.items() if key not in told]
    tasks = {episode.task for episode in source.episodes if episode.task}
    facts = {
        "Format": f"{source.format}{rate}",
        "Episodes": f"{many}, {source.num_steps} steps",
        "Cameras": ", ".join(cameras) or "none",
        "State": _vector(source, STATE),
        "Action": _vector(source, ACTION),
        "Tasks": f"{len(tasks)}: without task_conditioning only images tell them apart" if len(tasks) > 1 else None,
        "Colours": _color_order(source),
        "Not used": f"columns {', '.join(others)}" if others else None,
    }
    lines = [f"{name + ':':<{_WIDTH}}{value}" for name, value in facts.items() if value]
    return [*(printable(line) for line in lines), *note_lines(source)]


def note_lines(source: SelectedSource) -> list[str]:
    """What is left out or skipped, with the reason, and what was guessed; empty if everything is used as recorded."""
    lines = [*left_out_lines(source.left_out), *unusable_lines(source)]
    lines += [f"{'Note:':<{_WIDTH}}{note}" for note in source.notes]
    return [printable(line) for line in lines]


def _vector(source: SelectedSource, name: str) -> str:
    """The columns of the state or action, with their dtype if it is converted."""
    vector, whole = source.vectors[name], source.whole
    parts = ", ".join(f"{key} {size}" for key, size in vector.parts)
    dtype = np.result_type(*(np.dtype(whole.read_as_float32.get(key, whole.columns[key].dtype)) for key in vector.keys))
    return parts if np.can_cast(dtype, np.float32) else f"{parts} ({dtype}, read as float32)"


def _color_order(source: SelectedSource) -> str | None:
    """The colour order of images whose files do not specify it."""
    if source.color_order is None:
        return None
    looked = source.metadata.get("color_order") if source.selection.color_order is None else None
    if not isinstance(looked, dict):
        return f"{source.color_order}"
    sure = "" if looked.get("is_sure") else ", not certain"
    return f"{source.color_order}, detected from {looked.get('frames')} images{sure}; override with --color_order"


def left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each reason."""
    kinds = ("image", "depth", "column")
    by_reason = sorted(left_out, key=lambda entry: (kinds.index(entry.kind), entry.reason))
    lines = []
    for (kind, reason), group in groupby(by_reason, key=lambda entry: (entry.kind, entry.reason)):
        names = [entry.name for entry in group]
        what = "column" if kind == "column" else "image"
        lines.append(f"{'Left out:':<{_WIDTH}}{what} {', '.join(names)}: {reason}")
    return lines


def unusable_lines(source: SelectedSource, known: Sequence[Unusable] = ()) -> list[str]:
    """A line for each of the first unused episodes, and one with the number of the others.

    Args:
        known: episodes already printed.
    """
    unusable = [episode for episode in source.unusable if episode not in known]

    def word(episode: Unusable) -> str:
        return "Skipped:" if episode.is_missing or source.selection.skip_unreadable else "Damaged:"

    lines = [f"{word(episode):<{_WIDTH}}{episode.sentence}" for episode in unusable[:_MOST_EPISODES]]
    rest = unusable[_MOST_EPISODES:]
    if rest:
        numbers = ", ".join(str(episode.number) for episode in rest[: 10 * _MOST_EPISODES])
        dots = ", …" if len(rest) > 10 * _MOST_EPISODES else ""
        lines.append(f"{word(rest[0]):<{_WIDTH}}{len(rest)} more: {numbers}{dots}")
    return lines


def dataset_record(source: SelectedSource) -> dict[str, Any]:
    """The same in JSON types, for `metrics.jsonl` and the report."""
    return {
        "path": str(source.path),
        "format": source.format,
        "fps": source.fps,
        "episodes": len(source.episodes),
        "steps": source.num_steps,
        "cameras": {name: [camera.height, camera.width] for name, camera in source.cameras.items()},
        "state": dict(source.state.parts),
        "action": dict(source.action.parts),
        "skipped": [{"episode": e.number, "name": e.name, "reason": e.reason} for e in source.unusable],
        "left_out": [{"kind": e.kind, "name": e.name, "reason": e.reason} for e in source.left_out],
        "notes": list(source.notes),
    }
