"""Training takes no NaN and no infinite value: finding the episodes that hold one."""

from __future__ import annotations

import numpy as np

from bimact.data.episodes import Episodes
from bimact.data.selection import SelectedSource
from bimact.data.source import Unusable


def without_nonfinite(episodes: Episodes, source: SelectedSource) -> tuple[Episodes, SelectedSource]:
    """The episodes that training can take.

    Args:
        source: what the episodes were read from.

    Raises:
        UserError: listing all damaged episodes, and those with a state or action that is NaN or infinite, unless these
            are skipped.
    """
    found = find_nonfinite(episodes)
    read = source.without(
        Unusable(source.number_of(place), source.episodes[place].name, reason, is_missing=False)
        for place, reason in found.items()
    )
    read.refuse_damaged()
    return episodes.only([place for place in range(len(episodes.lengths)) if place not in found]), read


def find_nonfinite(episodes: Episodes) -> dict[int, str]:
    """Position of an episode with a value that is NaN or infinite → where the first one is."""
    found: dict[int, str] = {}
    for place in range(len(episodes.lengths)):
        rows = episodes.rows_of(place)
        name = f"episode {place}" if episodes.episode_names is None else episodes.episode_names[place]
        reason = nonfinite_value(episodes.state[rows], episodes.actions[rows], name)
        if reason is not None:
            found[place] = reason
    return found


def nonfinite_value(state: np.ndarray, actions: np.ndarray, name: str) -> str | None:
    """Where the first value of an episode, (T, S) and (T, A), is that is NaN or infinite; None: all are finite."""
    is_good = {"state": np.isfinite(state).all(axis=1), "actions": np.isfinite(actions).all(axis=1)}
    bad = {what: int(np.argmin(good)) for what, good in is_good.items() if not good.all()}
    if not bad:
        return None
    what = min(bad, key=lambda what: bad[what])
    return f"{what} of {name}, step {bad[what]} holds NaN or an infinite value: mend or remove the episode"
