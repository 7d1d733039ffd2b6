"""Demonstrations as a policy's settings want them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bimact.config import Config
from bimact.data.default_state import answer_sentence, find_answer
from bimact.data.episodes import Episodes
from bimact.data.opening import arrays_of, open_source
from bimact.data.selection import ACTION, STATE, SelectedSource, Selection
from bimact.data.summary import dataset_lines, unusable_lines
from bimact.encoder.base import input_size
from bimact.errors import UserError


def open_demonstrations(
    config: Config, path: str | Path, say: Callable[[str], None] = print, *, for_training: bool = True
) -> tuple[Episodes, SelectedSource]:
    """Open a dataset, the columns and cameras that a policy uses, with images in the size that its encoder needs.

    Args:
        say: takes lines on what is used, left out and skipped.
        for_training: False: that the state contains the action is said, and no error any more.

    Returns:
        the demonstrations as arrays, and what they were read from.

    Raises:
        UserError: as `open_dataset`; if the dataset has another state or action than the config says, holds images and
            none that can be read, or its state contains the action.
    """
    source = select_demonstrations(config, path)
    for line in dataset_lines(source):
        say(line)
    return read_demonstrations(config, source, say, for_training=for_training)


def select_demonstrations(config: Config, path: str | Path) -> SelectedSource:
    """The first half of `open_demonstrations`: nothing is decoded yet."""
    source = Selection.of(config).applied_to(open_source(path, cache_dir=config.cache_dir))
    source.require_camera()
    _refuse_other_sizes(config, source)
    return source


def read_demonstrations(
    config: Config, source: SelectedSource, say: Callable[[str], None], *, for_training: bool = True
) -> tuple[Episodes, SelectedSource]:
    """The second half of `open_demonstrations`."""
    episodes, read = arrays_of(source, config.cache_dir, input_size(config.encoder))
    for line in unusable_lines(read, known=source.unusable):
        say(line)
    if len(read.episodes) < len(source.episodes):
        say(f"Episodes: {len(read.episodes)} are left, {read.num_steps} steps")
    for note in read.notes[len(source.notes) :]:
        say(f"Note:     {note}")
    sentence = _answer_in_state(episodes, read)
    if sentence is not None:
        if for_training and read.selection.state_keys is None:
            raise UserError(
                f"{read.path}: {sentence}, so that a policy would copy it: choose other columns by --state_keys, or "
                "name this one there if it is meant"
            )
        say(f"Note:     {sentence}")
    return episodes, read


def _refuse_other_sizes(config: Config, source: SelectedSource) -> None:
    """See that state and action are as the config says, before hours go into decoding images."""
    for setting, wanted, size in (
        ("state_dim", config.state_dim, source.columns[STATE].size),
        ("action_dim", config.action_dim, source.columns[ACTION].size),
    ):
        if wanted not in (None, size):
            raise UserError(
                f"{setting} is {wanted} in the config, but {source.path} has {size}: set {setting} to {size} or null, "
                f"or choose by {setting}s"
            )


def _answer_in_state(episodes: Episodes, source: SelectedSource) -> str | None:
    """The sentence about a column of the state that is the action; None: there is none."""
    if any(source.action.shifts):  # the action was asked for as a later state
        return None
    rows = [episodes.rows_of(number) for number in range(len(episodes.lengths))]
    states, actions = ([values[part] for part in rows] for values in (episodes.state, episodes.actions))
    found = find_answer(states, actions, source.state.parts)
    return None if found is None else answer_sentence(*found, source.action.keys)
