"""Several datasets in one training: opened by their own settings, compared, and put one after the other."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bimact.config import Config, list_of_text
from bimact.data.cached_copy import stored_size
from bimact.data.episodes import Episodes
from bimact.data.opening import open_source
from bimact.data.selection import ACTION, STATE, SelectedSource
from bimact.data.source import Source
from bimact.data.summary import dataset_lines, dataset_record
from bimact.encoder.base import input_size
from bimact.errors import UserError
from bimact.files import expand_home
from bimact.training.demonstrations import Demonstrations, read_demonstrations, select_demonstrations

_OWN_KEYS = ("path", "name", "weight", "task", "ignore_names", "cameras")
_MOST_NAMES = 4  # dimensions with other names, in a cell of the table


def with_datasets(config: Config) -> Config:
    """The config with `datasets` in the place of a `dataset_dir` such as `a,b`; others are returned as they are."""
    text = config.dataset_dir
    if text is None or "," not in text or os.path.lexists(text) or "://" in text.split(",")[0]:
        return config
    datasets: list[dict[str, Any]] = [{"path": expand_home(path)} for path in list_of_text(text)]
    return dataclasses.replace(config, dataset_dir=None, datasets=datasets)


def dataset_names(config: Config) -> list[str]:
    """The names of the datasets of `datasets`: as given, or else the last part of the path; each one once."""
    names: list[str] = []
    for item in config.datasets or []:
        name = item.get("name") or Path(item["path"]).name or item["path"]
        if name in names and "name" in item:
            raise UserError(f"datasets: two of them have the name '{name}': give each one a name of its own")
        number = 2
        while name in names:
            name, number = f"{item.get('name') or Path(item['path']).name}-{number}", number + 1
        names.append(name)
    return names


@dataclass(frozen=True)
class _Part:
    """A dataset of a mixture.

    Attributes:
        name: in messages.
        item: of `datasets`.
        config: the run's, with the dataset's own settings.
        cameras: own name → common name; None: the dataset's own names are the common ones.
        source: opened, nothing selected.
    """

    name: str
    item: Mapping[str, Any]
    config: Config
    cameras: dict[str, str] | None
    source: Source


def open_training_data(
    config: Config, log: Callable[[str], None] = print, *, for_training: bool = True
) -> tuple[Episodes, tuple[SelectedSource, ...]]:
    """Open the datasets of `datasets`, as `open_demonstrations` opens one.

    Args:
        config: with `datasets`.
        log: prints lines on the data that are used, left out and skipped.
        for_training: as of `open_demonstrations`.

    Returns:
        the demonstrations one after the other, with the common names of cameras; and the source of each dataset.

    Raises:
        UserError: as `open_demonstrations`; or a table of what differs, if the datasets do not agree.
    """
    parts = []
    for name, item in zip(dataset_names(config), config.datasets or []):
        own = {key: value for key, value in item.items() if key not in _OWN_KEYS}
        cameras, chosen = _cameras(name, item, config.cameras)
        its = dataclasses.replace(config, datasets=None, dataset_dir=item["path"], cameras=chosen, **own)
        parts.append(_Part(name, item, its, cameras, open_source(item["path"], cache_dir=config.cache_dir)))
    rates = [part.source.fps for part in parts if part.source.fps is not None]
    fps = config.fps or (min(rates) if rates else None)  # steps can be left out, but not made up

    selected = []
    for part in parts:
        source = select_demonstrations(dataclasses.replace(part.config, fps=fps), part.item["path"], part.source)
        if part.cameras is None:
            part = dataclasses.replace(part, cameras={camera: camera for camera in source.cameras})
        elif len(part.cameras) != len(source.cameras):
            raise UserError(f"datasets: {part.name} has one camera twice in its cameras: remove one")
        selected.append((part, source))
    _check_agreement(selected, config)

    found: dict[str, Episodes] = {}
    sources = []
    for part, source in selected:
        log(f"Dataset {part.name}: {source.path}")
        for line in dataset_lines(source):
            log(f"  {line}")
        if fps is not None and part.source.fps is None:
            log(f"  Note:     the files do not tell the control frequency: taken as {fps:g} Hz")
        common = list((part.cameras or {}).values())
        if common != list(source.cameras):
            renamed = (f"{own} is {name}" for own, name in zip(source.cameras, common) if own != name)
            log(f"  Renamed:  {', '.join(renamed)}")
        part_config = dataclasses.replace(part.config, fps=fps)
        episodes, source = read_demonstrations(
            part_config, source, lambda line: log(f"  {line}"), for_training=for_training
        )
        sources.append(source)
        sizes = episodes.recorded_sizes
        names = dict(zip(source.cameras, common))
        first = next(iter(found.values()), None)
        order = list(names.values()) if first is None else list(first.cameras)
        own_name = {name: own for own, name in names.items()}
        found[part.name] = dataclasses.replace(
            episodes,
            images={name: episodes.images[own_name[name]] for name in order},
            camera_sizes={name: sizes[own_name[name]] for name in order},
            depth_cameras=tuple(name for name in order if own_name[name] in episodes.depth_cameras),
            task=part.item.get("task", episodes.task),
            tasks=(part.item["task"],) * len(episodes.lengths) if "task" in part.item else episodes.tasks,
            joint_names=None if part.item.get("ignore_names") else episodes.joint_names,
            state_names=None if part.item.get("ignore_names") else episodes.state_names,
        )
    return Episodes.joined(found), tuple(sources)


def _cameras(
    name: str, item: Mapping[str, Any], common: Sequence[str] | None
) -> tuple[dict[str, str] | None, list[str] | None]:
    """The dataset's own camera → the common name, in the run's order; and which cameras to select."""
    if item.get("cameras") is None:
        return None, None if common is None else list(common)
    pairs = [camera.rpartition("=") for camera in item["cameras"]]
    own = {given.strip() or camera.strip(): camera.strip() for given, _, camera in pairs}  # common name → own
    if common is not None:
        unknown = [camera for camera in common if camera not in own]
        if unknown:
            raise UserError(
                f"datasets: {name} has no camera '{unknown[0]}' among its cameras ({', '.join(item['cameras'])}): "
                "add it as COMMON=OWN, or leave it out of the run's cameras"
            )
        own = {camera: own[camera] for camera in common}
    return {camera: given for given, camera in own.items()}, list(own.values())


def _check_agreement(selected: Sequence[tuple[_Part, SelectedSource]], config: Config) -> None:
    """See that the datasets have the same states, actions and cameras.

    Raises:
        UserError: a table of what differs.
    """
    wanted = input_size(config.encoder)
    columns: list[dict[str, str]] = []
    names_of_first: dict[str, tuple[str, ...]] = {}
    named: dict[str, tuple[str, int]] = {}  # row of the table → which dimension it is about
    for part, source in selected:
        cells = {}
        for vector in (STATE, ACTION):
            column = source.columns[vector]
            cells[f"{vector} dimensions"] = str(column.size)
            if column.names is not None and not part.item.get("ignore_names"):
                first = names_of_first.setdefault(vector, column.names)
                if len(first) == column.size and first != column.names:
                    odd = [n for n in range(column.size) if first[n] != column.names[n]]
                    for number in odd[:_MOST_NAMES]:
                        cells[f"{vector} dimension {number}"] = column.names[number]
                        named[f"{vector} dimension {number}"] = vector, number
        common = list((part.cameras or {}).values())
        cells["cameras"] = ", ".join(sorted(common)) or "none"
        for name, camera in zip(common, source.cameras.values()):
            size = (camera.height, camera.width)
            height, width = size if source.mapped() is not None else stored_size(size, wanted)
            cells[f"camera {name}"] = f"{height}x{width}" + (" depth" if camera.is_depth else "")
        columns.append(cells)
    table = [["", *(part.name for part, _ in selected)]]
    for row in dict.fromkeys(row for cells in columns for row in cells):
        values = [cells.get(row) for cells in columns]
        if row in named:  # a dimension with another name in some of them: those of the others are shown too
            vector, number = named[row]
            all_names = [source.columns[vector].names or () for _, source in selected]
            values = [names[number] if number < len(names) else None for names in all_names]
        is_lacking = row.startswith("camera ") and None in values  # which the row of cameras tells
        if len({value for value in values if value is not None}) > 1 and not is_lacking:
            table.append([row, *(value or "-" for value in values)])
    if len(table) == 1:
        return
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in table]
    text = "\n".join(f"  {line}".rstrip() for line in lines)
    raise UserError(
        "the datasets differ, so that no policy fits all of them: select or rename with keys of `datasets` "
        "(state_dims, action_keys, cameras: [COMMON=OWN], ignore_names: true), or resize images by "
        f"encoder.image_size\n{text}"
    )


def training_weights(data: Demonstrations, config: Config) -> np.ndarray | None:
    """(W,) how often each training window is drawn, relative to their mean; None: each one once per epoch.

    A dataset's share of an epoch is its `weight` in the sum of all weights (1 where only others have one); without any
    weights, its share of the training windows.
    """
    episodes, rows = data.episodes, data.training.index.rows
    if not episodes.parts:
        return None if episodes.weights is None else episodes.weights[rows]
    given = [item.get("weight") for item in config.datasets or []]
    if episodes.weights is None and not any(given):
        return None
    weights = np.ones(len(rows)) if episodes.weights is None else episodes.weights[rows].copy()
    for weight, is_own in zip(given, _windows_of_parts(episodes, rows)):
        if is_own.any():
            share = float(is_own.sum()) if not any(given) else 1.0 if weight is None else float(weight)
            weights[is_own] *= share / weights[is_own].sum()
    return weights


def _windows_of_parts(episodes: Episodes, rows: np.ndarray) -> list[np.ndarray]:
    """Of each dataset (W,) whether a window is its."""
    ends = np.cumsum([part.num_steps for part in episodes.parts.values()])
    owners = np.searchsorted(ends, rows, side="right")
    return [owners == number for number in range(len(ends))]


def mixture_lines(data: Demonstrations, weights: np.ndarray | None) -> list[str]:
    """A line for each dataset of a mixture: its samples, and how often they are drawn."""
    rows = data.training.index.rows
    lines = []
    for name, is_own in zip(data.episodes.parts, _windows_of_parts(data.episodes, rows)):
        share = is_own.mean() if weights is None else weights[is_own].sum() / weights.sum()
        count = int(is_own.sum())
        times = share * len(rows) / count if count else 0.0
        lines.append(f"{name}: {count} training samples, {share:.1%} of an epoch, drawn {times:.3g} times on average")
    return lines


def mixture_record(data: Demonstrations, sources: Sequence[SelectedSource], lines: Sequence[str]) -> dict[str, Any]:
    """As `dataset_record`, over all datasets of a mixture; `datasets` has each one's own."""
    records = {name: dataset_record(source) for name, source in zip(data.episodes.parts, sources)}

    def all_of(key: str) -> list[Any]:
        return [entry for record in records.values() for entry in record[key]]

    first = next(iter(records.values()))
    return {
        **first,
        "path": " + ".join(record["path"] for record in records.values()),
        "format": ", ".join(dict.fromkeys(record["format"] for record in records.values())),
        "fps": data.episodes.fps,
        "episodes": sum(record["episodes"] for record in records.values()),
        "steps": sum(record["steps"] for record in records.values()),
        "cameras": {name: list(size) for name, size in data.episodes.recorded_sizes.items()},
        "skipped": all_of("skipped"),
        "left_out": all_of("left_out"),
        "notes": [*lines, *all_of("notes")],
        "datasets": records,
    }
