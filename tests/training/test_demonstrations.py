"""A dataset as a policy's settings want it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import tiny_config
from hdf5_files import write_aloha

from bimact.errors import UserError
from bimact.training.demonstrations import open_demonstrations


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
