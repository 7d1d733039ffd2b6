"""Common options of the commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from bimact.config import load_config, may_be_true, selecting_settings, settings
from bimact.errors import UserError

if TYPE_CHECKING:
    from bimact.data.selection import Selection

# `bimact`, to which each command adds itself
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def image_size(text: str) -> tuple[int, int]:
    """`240x320` → (height, width)."""
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise UserError(f"--image_size is '{text}', it has to be height x width such as 240x320")
    return int(height), int(width)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that select a part of a dataset: the corresponding settings of `bimact train`."""
    _add_settings(parser.add_argument_group("the part of the dataset"), selecting_settings())


def add_episodes(parser: argparse.ArgumentParser) -> None:
    """The options that select episodes."""
    _add_settings(parser.add_argument_group("episodes"), ("episodes", "exclude_episodes", "skip_unreadable"))


def _add_settings(group: argparse._ActionsContainer, names: Iterable[str]) -> None:
    for name in names:
        entry = settings()[name]
        choices = entry.metadata["choices"]
        help_text = entry.metadata["meaning"].replace("; null:", "; default:").replace("%", "%%")
        if may_be_true(name):
            group.add_argument(f"--{name}", metavar="true", nargs="?", const="true", help=help_text)
        else:
            metavar = "{" + ",".join(choices) + "}" if choices else _METAVARS.get(name, "A,B")
            group.add_argument(f"--{name}", metavar=metavar, help=help_text)


_METAVARS = {
    "episodes": "E",
    "exclude_episodes": "E",
    "state_dims": "DIMS",
    "action_dims": "DIMS",
    "max_episodes": "N",
    "filter_key": "NAME",
    "fps": "HZ",
}


def given_settings(options: argparse.Namespace) -> list[str]:
    """The given options of `add_selection` and `add_episodes`, as `key=value`."""
    values = {name: getattr(options, name, None) for name in selecting_settings()}
    return [f"{name}={value}" for name, value in values.items() if value is not None]


def selection_of(options: argparse.Namespace) -> Selection | None:
    """The part that the options of `add_selection` select; None if none is given.

    Raises:
        UserError: for an invalid value of a setting.
    """
    from bimact.data.selection import Selection

    given = given_settings(options)
    return Selection.of(load_config(None, given)) if given else None
