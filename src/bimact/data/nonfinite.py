"""Training takes no NaN and no infinite value: finding the first one."""

from __future__ import annotations

import numpy as np

from bimact.data.episodes import Episodes, Rows
from bimact.errors import UserError

_BLOCK_ROWS = 1 << 16


def refuse_nonfinite(episodes: Episodes) -> None:
    """See that training will meet no NaN.

    Raises:
        UserError: naming the first step with a state or action that is NaN or infinite.
    """
    found = find_nonfinite(episodes)
    if found is not None:
        episode, step, what = found
        raise UserError(
            f"{episodes.path}: {what} of episode {episode}, step {step} holds NaN or an infinite value: "
            "mend or remove the episode"
        )


def find_nonfinite(episodes: Episodes) -> tuple[int, int, str] | None:
    """Look through all states and actions for values that are NaN or infinite, in blocks of rows.

    Returns:
        the first step with such a value: (episode, step in it, "state" or "actions"); None: all are finite.
    """
    for begin in range(0, episodes.num_steps, _BLOCK_ROWS):
        found = [
            (begin + int(np.argmin(is_good)), what)
            for what, source in (("state", episodes.state), ("actions", episodes.actions))
            if not (is_good := _all_finite(source, begin)).all()
        ]
        if found:
            row, what = min(found, key=lambda entry: entry[0])
            episode = int(np.searchsorted(np.cumsum(episodes.lengths), row, side="right"))
            return episode, row - int(episodes.starts[episode]), what
    return None


def _all_finite(source: Rows, begin: int) -> np.ndarray:
    """(B,) bool of a block of rows (N, D)."""
    return np.isfinite(source[begin : begin + _BLOCK_ROWS]).all(axis=1)
