"""Windows at episode borders, splits and loaders, against slow references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bimact.data.episodes import Episodes
from bimact.data.windows import (
    WindowDataset,
    WindowIndex,
    split_episodes,
)
from bimact.errors import UserError

lengths_strategy = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def episodes_of(lengths: list[int]) -> Episodes:
    """Each state and image says its row, each action its row as well."""
    total = sum(lengths)
    rows = np.arange(total)
    images = np.broadcast_to(rows[:, None, None, None], (total, 2, 4, 3)).astype(np.uint8)
    return Episodes(
        path=Path("memory"),
        lengths=np.array(lengths),
        images={"left": images, "right": images[:, :1] + 100},
        state=np.stack([rows, -rows], axis=1).astype(np.float32),
        actions=np.stack([rows, rows * 10, rows * 100], axis=1).astype(np.float32),
    )


def _reference(lengths: list[int], chosen: list[int], context: int, chunk: int) -> list[tuple[Any, Any, Any]]:
    windows = []
    for episode in chosen:
        start, length = sum(lengths[:episode]), lengths[episode]
        for present in range(length):
            past = [start + max(0, present - back) for back in reversed(range(context))]
            coming = [start + min(length - 1, present + ahead) for ahead in range(chunk)]
            is_pad = [present + ahead > length - 1 for ahead in range(chunk)]
            windows.append((past, coming, is_pad))
    return windows


@given(lengths_strategy, st.integers(1, 5), st.integers(1, 12), st.data())
def test_windows_against_a_reference(lengths: list[int], context: int, chunk: int, data: st.DataObject) -> None:
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(lengths))), min_size=1)))
    episodes = episodes_of(lengths)
    index = WindowIndex.over(episodes, np.array(chosen), context, chunk)
    dataset = WindowDataset(episodes, index)
    expected = _reference(lengths, chosen, context, chunk)
    assert len(dataset) == len(expected) == sum(lengths[episode] for episode in chosen)
    obs, actions = dataset.__getitems__(list(range(len(dataset))))
    for window, (past, coming, is_pad) in enumerate(expected):
        assert obs["state"][window, :, 0].tolist() == past
        assert obs["image_left"][window, :, 0, 0, 0].tolist() == past
        assert actions[window, :, 0].tolist() == coming
        assert obs["action_is_pad"][window].tolist() == is_pad


def test_batch_contract() -> None:
    episodes = episodes_of([3, 4])
    dataset = WindowDataset(episodes, WindowIndex.over(episodes, np.array([0, 1]), 2, 5))
    obs, actions = dataset.__getitems__([0, 3, 6])
    assert {name: (tuple(value.shape), value.dtype) for name, value in obs.items()} == {
        "image_left": ((3, 2, 3, 2, 4), torch.uint8),
        "image_right": ((3, 2, 3, 1, 4), torch.uint8),
        "state": ((3, 2, 2), torch.float32),
        "action_is_pad": ((3, 5), torch.bool),
    }
    assert actions.shape == (3, 5, 3) and actions.dtype == torch.float32
    single, action = dataset[3]
    assert torch.equal(single["image_left"], obs["image_left"][1]) and torch.equal(action, actions[1])


def test_chosen_cameras() -> None:
    episodes = episodes_of([3])
    index = WindowIndex.over(episodes, np.array([0]), 1, 1)
    assert set(WindowDataset(episodes, index, ["right"])[0][0]) == {"image_right", "state", "action_is_pad"}
    with pytest.raises(UserError, match="no camera 'wrist'; it has left, right"):
        WindowDataset(episodes, index, ["wrist"])


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(0, 5))
def test_split(count: int, val_split: float, seed: int) -> None:
    train, val = split_episodes([1] * count, val_split, seed)
    assert sorted([*train, *val]) == list(range(count))
    assert len(train) >= 1
    assert (len(val) == 0) == (val_split == 0 or count == 1)
    if count > 1 and val_split > 0:
        assert abs(len(val) - val_split * count) <= 1
    again = split_episodes([7] * count, val_split, seed)
    assert np.array_equal(train, again[0]) and np.array_equal(val, again[1])
