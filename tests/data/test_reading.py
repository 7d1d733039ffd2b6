"""Episodes with a value that is NaN or infinite: all are found, refused together or left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from guide_files import write_dataset

from bimact.data.episodes import Episodes
from bimact.data.opening import arrays_of, open_source
from bimact.data.reading import find_nonfinite
from bimact.data.selection import Selection
from bimact.errors import UserError


def _episodes(*faults: tuple[str, int, int, float]) -> Episodes:
    """Two episodes of 4 and 3 steps with some values replaced: (state or actions, row, column, value)."""
    arrays = {"state": np.zeros((7, 3), np.float32), "actions": np.zeros((7, 14), np.float32)}
    for what, row, column, value in faults:
        arrays[what][row, column] = value
    return Episodes(Path("dataset"), np.array([4, 3]), {}, arrays["state"], arrays["actions"])


@pytest.mark.parametrize(
    ("faults", "found"),
    [
        ([], {}),
        ([("state", 5, 2, np.nan)], {1: "state of episode 1, step 1"}),
        ([("actions", 0, 0, np.inf)], {0: "actions of episode 0, step 0"}),
        (
            [("actions", 6, 13, -np.inf), ("state", 3, 0, np.nan)],
            {0: "state of episode 0, step 3", 1: "actions of episode 1, step 2"},
        ),
        ([("state", 3, 0, np.nan), ("actions", 2, 1, np.nan)], {0: "actions of episode 0, step 2"}),
    ],
)
def test_the_first_value_of_each_episode_is_named(
    faults: list[tuple[str, int, int, float]], found: dict[int, str]
) -> None:
    told = find_nonfinite(_episodes(*faults))
    assert told == {
        place: f"{words} holds NaN or an infinite value: fix or remove the episode" for place, words in found.items()
    }


def test_they_are_refused_together_or_left_out(tmp_path: Path) -> None:
    write_dataset(tmp_path, [4, 3, 5])
    actions = np.load(tmp_path / "actions.npy")
    actions[2, 0] = actions[8, 3] = np.nan
    np.save(tmp_path / "actions.npy", actions)
    with pytest.raises(UserError, match=r"2 of 3 episodes.*step 2 holds NaN.*step 1 holds NaN.*exclude_episodes 0,2"):
        arrays_of(Selection().applied_to(open_source(tmp_path)), None)
    left, read = arrays_of(Selection(skip_unreadable=True).applied_to(open_source(tmp_path)), None)
    assert left.lengths.tolist() == [3] and [episode.number for episode in read.unusable] == [0, 2]
    np.testing.assert_array_equal(left.actions[:], actions[4:7])
