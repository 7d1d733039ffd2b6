"""How often each sample is drawn in training: by a column, by a file with a number per episode, or not while idle."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np

from bimact.config import Config
from bimact.data.episodes import Episodes
from bimact.data.idle import IDLE, movement, spans
from bimact.data.selection import SelectedSource, episodes_named, one_column
from bimact.data.source import Unusable
from bimact.data.workers import run_apart
from bimact.errors import UserError

_FILES = (".csv", ".json")
_OF_EPISODE = "@episode"  # behind a column's name
_SAMPLED_ROWS = 200_000  # for quantiles


def with_sample_weights(config: Config, episodes: Episodes, source: SelectedSource) -> tuple[Episodes, SelectedSource]:
    """Give demonstrations the weights of their samples, as `sample_weights` and `skip_idle` say.

    Args:
        config: for these two settings.
        episodes: the demonstrations.
        source: what they were read from.

    Returns:
        both without the episodes whose samples all have weight 0; the source has notes on what the weights are.

    Raises:
        UserError: if the file or the column cannot be read, or a weight is negative, NaN or Inf.
    """
    if config.sample_weights is None and not config.skip_idle:
        return episodes, source
    notes = []
    weights = [np.ones(length) for length in episodes.lengths.tolist()]
    given = config.sample_weights
    if given is not None and given.lower().endswith(_FILES):
        weights, note = _of_file(Path(given), source)
        notes.append(note)
    elif given is not None:
        weights = _of_column(given, source)
    for place, its in enumerate(weights):
        bad = ~(np.isfinite(its) & (its >= 0))
        if bad.any():
            step = int(np.argmax(bad))
            raise UserError(
                f"sample_weights {given}: {source.path}, {source.episodes[place].name}, step {step} has the weight "
                f"{its[step]:g}, it has to be 0 or more"
            )
    if given is not None:
        joined = np.concatenate(weights)
        if not joined.any():
            raise UserError(f"sample_weights {given}: all weights are 0, so that no sample is left")
        most = joined.max() / joined[joined > 0].mean()
        notes.append(
            f"sample weights by {given}: from {joined.min():g} to {joined.max():g}; {(joined == 0).sum()} of "
            f"{len(joined)} samples have weight 0 and are left out; others are drawn up to {most:.2g} times per epoch"
        )
    if config.skip_idle:
        heads, tails = 0, 0
        rows = [episodes.rows_of(place) for place in range(len(episodes.lengths))]
        every = slice(None, None, max(1, episodes.num_steps // _SAMPLED_ROWS))
        vectors = [[np.asarray(values[part]) for part in rows] for values in (episodes.state, episodes.actions)]
        scales = [spans(np.concatenate([part[every] for part in parts])) for parts in vectors]
        for place, its in enumerate(weights):
            parts = [of_episode[place] for of_episode in vectors]
            head, tail = still_ends(list(zip(parts, scales)))
            its[:head] = 0
            its[len(its) - tail :] = 0
            heads, tails = heads + head, tails + tail
        notes.append(
            f"skip_idle leaves out {heads + tails} of {episodes.num_steps} samples: {heads} at the beginning of "
            f"episodes, {tails} at the end, where nothing moves"
        )
    empty = [place for place, its in enumerate(weights) if not its.any()]
    if len(empty) == len(weights):
        raise UserError(f"{source.path}: no sample is left by sample_weights and skip_idle: set them to null and false")
    used = [place for place in range(len(weights)) if place not in empty]
    left_out = (
        Unusable(source.number_of(place), source.episodes[place].name, "its samples have weight 0", is_missing=True)
        for place in empty
    )
    source = dataclasses.replace(source.without(left_out), notes=(*source.notes, *notes))
    return dataclasses.replace(episodes, weights=np.concatenate(weights)).only(used), source


def still_ends(vectors: list[tuple[np.ndarray, np.ndarray]]) -> tuple[int, int]:
    """How many steps are left out at the beginning and at the end of an episode: still ones, but for one at each end.

    Args:
        vectors: as `bimact.data.idle.movement` takes them.
    """
    moved, left = movement(vectors), movement(vectors, from_end=True)
    if moved is None or left is None:
        return 0, 0
    if moved.max() <= IDLE:  # all of it
        return len(moved), 0
    return max(0, int(np.argmax(moved > IDLE)) - 1), max(0, int(np.argmax(left > IDLE)) - 1)


def _of_file(path: Path, source: SelectedSource) -> tuple[list[np.ndarray], str]:
    """The weights of each episode (T,) by a file; and a note on the episodes that it does not name: they have 1."""
    try:
        if path.suffix.lower() == ".json":
            content = json.loads(path.read_text("utf-8"))
            pairs = list(content.items()) if isinstance(content, dict) else None
        else:
            with path.open(newline="", encoding="utf-8") as file:
                lines = [line for line in csv.reader(file) if line]
            pairs = [(line[0], line[1]) for line in lines] if all(len(line) == 2 for line in lines) else None
            if pairs and not _is_number(pairs[0][1]):  # the header
                pairs = pairs[1:]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"sample_weights: {path} cannot be read ({error}): give a .csv or .json file") from None
    if not pairs:
        form = (
            '{"episode": weight, ...}' if path.suffix.lower() == ".json" else "lines of an episode, a comma, a weight"
        )
        raise UserError(f"sample_weights: {path} has to hold {form}")
    weights = [np.ones(episode.length) for episode in source.episodes]
    places = {source.number_of(place): place for place in range(len(weights))}
    named = set()
    for name, weight in pairs:
        if isinstance(weight, bool) or not _is_number(weight):
            raise UserError(f"sample_weights: {path} gives episode {name} the weight {weight!r}, not a number")
        for number in episodes_named("sample_weights", [str(name)], source):
            if number in places:  # else it is not among the selected ones
                weights[places[number]][:] = float(weight)
                named.add(number)
    others = len(weights) - len(named)
    rest = (
        f"{others} of {len(weights)} episodes are not named and have weight 1" if others else "all episodes are named"
    )
    return weights, f"sample weights: in {path} {rest}"


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _of_column(name: str, source: SelectedSource) -> list[np.ndarray]:
    """The weights of each episode (T,) by a column of the dataset."""
    column = one_column("sample_weights", name.removesuffix(_OF_EPISODE), source.whole)
    of_episode = name.endswith(_OF_EPISODE)
    if source.mapped() is not None:
        return _read(source, column, of_episode)
    timeout = 300 + len(source.episodes) * 1.0
    found: list[np.ndarray] = run_apart(_read, source, column, of_episode, what=str(source.path), timeout=timeout)
    return found


def _read(source: SelectedSource, column: str, of_episode: bool) -> list[np.ndarray]:
    found = []
    for place, episode in enumerate(source.episodes):
        values = source.recorded_column(place, column)
        if values.shape != (episode.length, 1):
            raise UserError(f"sample_weights {column}: it has {values.shape[1]} numbers per step, it has to have one")
        weights = values[:, 0].astype(np.float64)
        found.append(np.full(len(weights), weights.max()) if of_episode else weights)
    return found
