"""The first value that is no number, whatever blocks are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bimact.data.episodes import Episodes
from bimact.data.nonfinite import find_nonfinite, refuse_nonfinite
from bimact.errors import UserError


def _episodes(*faults: tuple[str, int, int, float]) -> Episodes:
    """Two episodes of 4 and 3 steps with some values replaced: (state or actions, row, column, value)."""
    arrays = {"state": np.zeros((7, 3), np.float32), "actions": np.zeros((7, 14), np.float32)}
    for what, row, column, value in faults:
        arrays[what][row, column] = value
    return Episodes(Path("dataset"), np.array([4, 3]), {}, arrays["state"], arrays["actions"])


@pytest.mark.parametrize("block", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("faults", "found"),
    [
        ([], None),
        ([("state", 5, 2, np.nan)], (1, 1, "state")),
        ([("actions", 0, 0, np.inf)], (0, 0, "actions")),
        ([("actions", 6, 13, -np.inf)], (1, 2, "actions")),
        ([("state", 5, 0, np.nan), ("actions", 2, 1, np.nan), ("actions", 3, 1, np.inf)], (0, 2, "actions")),
    ],
)
def test_first_value_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    faults: list[tuple[str, int, int, float]],
    found: tuple[int, int, str] | None,
) -> None:
    monkeypatch.setattr("bimact.data.nonfinite._BLOCK_ROWS", block)
    assert find_nonfinite(_episodes(*faults)) == found


def test_refusal_names_episode_and_step() -> None:
    refuse_nonfinite(_episodes())
    with pytest.raises(UserError, match="dataset: state of episode 1, step 1 holds NaN"):
        refuse_nonfinite(_episodes(("state", 5, 2, np.nan)))
