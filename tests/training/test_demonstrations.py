"""A dataset as a policy's settings want it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config
from hdf5_files import write_aloha

from bimact.data.episodes import Episodes
from bimact.errors import UserError
from bimact.training.demonstrations import fill_from_dataset, open_demonstrations


@pytest.fixture
def aloha(tmp_path: Path) -> Path:
    return write_aloha(tmp_path / "aloha", (3, 2))


def test_columns_and_image_size_follow_the_config(aloha: Path, tmp_path: Path) -> None:
    config = tiny_config(cache_dir=str(tmp_path / "cache"), state_keys=["qvel"], action_dims="7:14", action_dim=7)
    episodes, source = open_demonstrations(config, aloha)
    assert source.state.keys == ("qvel",)
    assert episodes.state.shape == (5, 14) and episodes.actions.shape == (5, 7)
    assert episodes.lengths.tolist() == [3, 2]


@pytest.mark.parametrize("setting, has", [("state_dim", 14), ("action_dim", 14)])
def test_other_sizes_are_refused_before_images_are_decoded(aloha: Path, tmp_path: Path, setting: str, has: int) -> None:
    config = tiny_config(cache_dir=str(tmp_path / "cache"), **{setting: 9})
    words = f"{setting} is 9 in the config, but {aloha} has {has}: set {setting} to {has} or null"
    with pytest.raises(UserError, match=re.escape(words)):
        open_demonstrations(config, aloha)
    assert not list((tmp_path / "cache").glob("**/*.npy"))


def named(states: list[str] | None, actions: list[str] | None, state_size: int = 3) -> Episodes:
    return Episodes(
        path=Path("demonstrations"),
        lengths=np.array([4]),
        images={},
        state=np.zeros((4, state_size), dtype=np.float32),
        actions=np.zeros((4, 3), dtype=np.float32),
        state_names=None if states is None else tuple(states),
        joint_names=None if actions is None else tuple(actions),
    )


@pytest.mark.parametrize(
    ("episodes", "dims", "expected"),
    [
        (named(["a", "b", "left_gripper"], ["b", "a", "left_gripper"]), None, [1, 0, -1]),
        (named(["a", "b", "left_gripper"], ["b", "a", "left_gripper"]), "1:3", [-1, 0, 2]),
        (named(None, None), None, [0, 1, 2]),
        (named(None, ["a", "b", "c"]), "0", [0, -1, -1]),
        (named(["x", "a", "y", "b"], ["a", "b", "gripper"], 4), None, [1, 3, -1]),
    ],
)
def test_relative_actions_follow_names(episodes: Episodes, dims: str | None, expected: list[int]) -> None:
    config = tiny_config(action_mode="relative", relative_dims=dims)
    assert fill_from_dataset(config, episodes).relative_to == expected
    assert fill_from_dataset(tiny_config(), episodes).relative_to is None


def test_a_state_without_the_actions_dimensions_is_refused() -> None:
    with pytest.raises(UserError, match=r"no dimension of the state belongs to dimension 1 \(b\)"):
        fill_from_dataset(tiny_config(action_mode="relative"), named(["x", "a"], ["a", "b", "c"], 2))
