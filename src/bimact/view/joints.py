"""Which dimensions of state and action belong together, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bimact.data.source import Source

_SIDE = re.compile(r"(?<![a-z])(left|right)|(Left|Right)|^(l|r)(?=[_.\- ])")
_SIDES = {"l": "left", "r": "right"}


@dataclass(frozen=True)
class Joint:
    """A dimension of the state, of the action, or of both.

    Attributes:
        name: as the dataset has it; "dimension 3" where it has none.
        group: "left", "right", or "" for all others and where not both sides occur.
        state: its number in the state; None: it is not part of it.
        action: its number in the action; None: it is not part of it.
    """

    name: str
    group: str
    state: int | None
    action: int | None


def joints_of(source: Source) -> list[Joint]:
    """State and action of a dataset, dimension by dimension.

    They are paired by name; where the names have nothing in common, by number if both have the same size.
    """
    state, action = names_of(source, source.state_keys), names_of(source, source.action_keys)
    pairs = _pairs(state, action, size_of(source, source.state_keys), size_of(source, source.action_keys))
    names = [_name(state, action, *pair) for pair in pairs]
    sides = [_side(name) for name in names]
    has_both = {"left", "right"} <= set(sides)
    return [Joint(name, side if has_both else "", *pair) for name, side, pair in zip(names, sides, pairs)]


def names_of(source: Source, keys: Sequence[str]) -> tuple[str, ...] | None:
    """Names of the dimensions of some columns, one after the other; None where a column has none."""
    parts = [source.columns[key].names for key in keys]
    return None if None in parts or not parts else tuple(name for part in parts for name in part or ())


def size_of(source: Source, keys: Sequence[str]) -> int:
    return sum(source.columns[key].size for key in keys)


def _pairs(
    state: Sequence[str] | None, action: Sequence[str] | None, state_size: int, action_size: int
) -> list[tuple[int | None, int | None]]:
    """(dimension of the state, dimension of the action) of each joint."""
    if state is not None and action is not None and set(state) & set(action):
        return _pairs_by_name(state, action)
    if state_size == action_size:
        return [(number, number) for number in range(state_size)]
    return [*((number, None) for number in range(state_size)), *((None, number) for number in range(action_size))]


def _pairs_by_name(state: Sequence[str], action: Sequence[str]) -> list[tuple[int | None, int | None]]:
    left = list(enumerate(action))
    pairs: list[tuple[int | None, int | None]] = []
    for number, name in enumerate(state):
        match = next((entry for entry in left if entry[1] == name), None)
        if match is not None:
            left.remove(match)
        pairs.append((number, None if match is None else match[0]))
    return [*pairs, *((None, number) for number, _ in left)]


def _name(
    state_names: Sequence[str] | None, action_names: Sequence[str] | None, state: int | None, action: int | None
) -> str:
    of_state = None if state is None or state_names is None else state_names[state]
    of_action = None if action is None or action_names is None else action_names[action]
    names = list(dict.fromkeys(filter(None, (of_state, of_action))))
    if names:
        return " / ".join(names)
    if state is not None and action is not None:
        return f"dimension {state}"
    return f"state {state}" if action is None else f"action {action}"


def _side(name: str) -> str:
    match = _SIDE.search(name)
    if match is None:
        return ""
    side = next(filter(None, match.groups())).lower()
    return _SIDES.get(side, side)
