"""Samples with the left arm of another demonstration, against a slow reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bimact.config import Config, to_config
from bimact.data.episodes import Episodes
from bimact.data.recombination import ArmRecombination
from bimact.data.training_order import TrainingOrder
from bimact.data.windows import WindowDataset, WindowIndex
from bimact.errors import UserError

NAMES = ("left_waist", "right_waist", "left_gripper", "right_gripper")


def episodes_of(lengths: list[int], **changes: Any) -> Episodes:
    """Each number of a state, action or image tells its row."""
    rows = np.arange(sum(lengths))
    images = np.broadcast_to(rows[:, None, None, None], (len(rows), 2, 10, 3)).astype(np.uint8)
    state = np.repeat(rows[:, None], 4, axis=1).astype(np.float32)
    found = Episodes(
        path=Path("memory"),
        lengths=np.array(lengths),
        images={"top": images, "left_wrist": images, "right_wrist": images},
        state=state,
        actions=state,
        joint_names=NAMES,
        state_names=NAMES,
    )
    return replace(found, **changes)


def config_of(**changes: Any) -> Config:
    settings = {"recombine_arms": 1.0, "cameras": ["top", "left_wrist", "right_wrist"], "encoder": {"crop": None}}
    return to_config(settings | changes)


@pytest.mark.slow
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
def test_samples_against_a_reference(lengths: list[int], context: int, chunk: int, seed: int) -> None:
    episodes = episodes_of(lengths)
    chosen = np.arange(len(lengths))
    recombination = ArmRecombination.of(config_of(), episodes, chosen)
    index = WindowIndex.over(episodes, chosen, context, chunk)
    dataset = WindowDataset(episodes, index, recombination=recombination)
    order = TrainingOrder(index, len(index), seed, recombination=recombination)
    [numbers] = list(order)
    assert sorted(number % len(index) for number in numbers) == list(range(len(index)))
    obs, actions = dataset.__getitems__(numbers)
    shares = TrainingOrder(index, 2, seed, accumulate=2, recombination=recombination)
    for share in shares.steps():
        padding = [dataset.__getitems__(part.windows)[0]["action_is_pad"] for part in share.parts]
        real = np.array([float((~each).sum()) for each in padding])
        assert [part.action_weight for part in share.parts] == pytest.approx(list(real / real.sum()))
    starts = np.cumsum([0, *lengths])
    for sample, number in enumerate(numbers):
        row, partner = number % len(index), number // len(index) - 1
        episode = int(np.searchsorted(starts, row, side="right")) - 1
        step, other = row - starts[episode], episode
        if partner >= 0:
            other = int(np.searchsorted(starts, partner, side="right")) - 1
            assert partner - starts[other] == step
        for of_left, source in ((True, other), (False, episode)):
            past = [starts[source] + max(0, step - age) for age in reversed(range(context))]
            coming = [starts[source] + min(step + ahead, lengths[source] - 1) for ahead in range(chunk)]
            dims = [number for number, name in enumerate(NAMES) if name.startswith("left") == of_left]
            for dim in dims:
                assert obs["state"][sample, :, dim].tolist() == past
                assert actions[sample, :, dim].tolist() == coming
            columns = slice(0, 5) if of_left else slice(5, 10)
            wrist = "left_wrist" if of_left else "right_wrist"
            for image in (obs["image_top"][sample][..., columns], obs[f"image_{wrist}"][sample]):
                assert image.shape[:2] == (context, 3)
                assert [sorted(set(frame.flatten().tolist())) for frame in image] == [[row] for row in past]
        is_pad = [step + ahead >= min(lengths[episode], lengths[other]) for ahead in range(chunk)]
        assert obs["action_is_pad"][sample].tolist() == is_pad


def test_partners_are_drawn_equally_often_within_a_task() -> None:
    """Also never a sample that is left out by its weight, and only training episodes."""
    weights = np.ones(50)
    weights[10] = 0  # the first step of the second episode
    episodes = episodes_of([10] * 5, tasks=("a", "a", "b", "a", "a"), weights=weights)
    recombination = ArmRecombination.of(config_of(recombine_arms=0.5), episodes, np.array([0, 1, 2, 3]))
    draw = np.random.default_rng(0)
    rows = np.zeros(30_000, np.int64)
    partners = recombination.partners(rows, rows, draw)
    counts = {int(row): int(count) for row, count in zip(*np.unique(partners, return_counts=True))}
    assert counts.keys() == {-1, 0, 30}
    assert counts[0] == pytest.approx(5000, rel=0.05) and counts[30] == pytest.approx(5000, rel=0.05)
    own = recombination.partners(rows + 25, rows + 20, draw)
    assert set(own.tolist()) == {-1, 25}


def test_the_half_of_the_crop_and_the_line() -> None:
    episodes = episodes_of([3, 3])
    config = config_of(encoder={"crop": [0.0, 0.4, 1.0, 0.4]}, recombine_arms=0.5)
    recombination = ArmRecombination.of(config, episodes, np.arange(2))
    assert recombination.columns == {"top": (0, 6), "left_wrist": (0, 10), "right_wrist": (0, 0)}
    assert recombination.line() == (
        "recombine_arms: 50% of the samples get the left arm of another demonstration at the same step: dimensions 0,2 "
        "of the state, 0,2 of the action, columns 0-5 of top, columns 0-9 of left_wrist"
    )


def test_names() -> None:
    plain = episodes_of([3, 3], joint_names=None, state_names=None)
    recombination = ArmRecombination.of(config_of(), plain, np.arange(2))
    assert recombination.state.tolist() == recombination.actions.tolist() == [True, True, False, False]
    for names in (("a", "b", "c", "d"), ("left_a", "left_b", "left_c", "left_d")):
        with pytest.raises(UserError, match="needs names of action dimensions of which some have 'left'"):
            ArmRecombination.of(config_of(), episodes_of([3, 3], joint_names=names), np.arange(2))


@pytest.mark.parametrize("camera", ["left_pillar", "wrist", "left_and_right_wrist"])
def test_a_camera_whose_name_does_not_tell(camera: str) -> None:
    episodes = episodes_of([3, 3])
    episodes = replace(episodes, images={camera: episodes.images["top"]})
    with pytest.raises(UserError, match=f"cannot tell by the name of camera '{camera}' .*leave it out by --cameras"):
        ArmRecombination.of(config_of(cameras=[camera]), episodes, np.arange(2))


def test_a_batch_keeps_the_dataset_as_it_is() -> None:
    episodes = episodes_of([4, 4])
    before = episodes.state.copy(), episodes.actions.copy(), episodes.images["top"].copy()
    recombination = ArmRecombination.of(config_of(), episodes, np.arange(2))
    index = WindowIndex.over(episodes, np.arange(2), 1, 2)
    obs, _ = WindowDataset(episodes, index, recombination=recombination).__getitems__([0 + 8 * (1 + 4)])
    assert obs["state"].tolist() == [[[4.0, 0.0, 4.0, 0.0]]]
    for now, then in zip((episodes.state, episodes.actions, episodes.images["top"]), before):
        np.testing.assert_array_equal(now, then)
    assert isinstance(obs["image_top"], torch.Tensor)
