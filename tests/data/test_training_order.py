"""The order of training: each window once an epoch over all processes, weights that add up, any sample to begin at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bimact.data.training_order import Part, TrainingOrder
from bimact.data.windows import WindowIndex

CHUNK = 4


def index_of(lengths: list[int]) -> WindowIndex:
    ends = np.cumsum(lengths)
    last = np.repeat(ends - 1, lengths)
    return WindowIndex(1, CHUNK, np.arange(ends[-1]), np.repeat(ends - lengths, lengths), last)


def parts_of(
    index: WindowIndex, batch_size: int, ranks: int, accumulate: int, done: int = 0
) -> list[list[tuple[Part, ...]]]:
    """Of each process, the parts of each step."""
    divided = []
    for rank in range(ranks):
        order = TrainingOrder(index, batch_size, 3, accumulate=accumulate, rank=rank, ranks=ranks)
        order.epoch, order.done = 5, done
        divided.append([step.parts for step in order.steps()])
    return divided


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 20),
)
def test_each_window_is_seen_once_over_all_processes(
    lengths: list[int], batch_size: int, ranks: int, accumulate: int, done: int
) -> None:
    index = index_of(lengths)
    done = min(done, len(index) - 1)
    divided = parts_of(index, batch_size, ranks, accumulate, done)
    assert len({len(steps) for steps in divided}) == 1
    seen = [
        int(w) for steps in divided for parts in steps for part in parts if part.window_weight for w in part.windows
    ]
    order = np.random.default_rng((3, 5)).permutation(len(index))
    assert sorted(seen) == sorted(order[done:].tolist())
    assert all(1 <= len(part.windows) <= batch_size for steps in divided for parts in steps for part in parts)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_weighted_means_of_parts_are_the_mean_of_the_step(
    lengths: list[int], batch_size: int, ranks: int, accumulate: int
) -> None:
    """Against the plain mean over all real action steps, and over all windows, of a step."""
    index = index_of(lengths)
    loss = np.random.default_rng(0).normal(size=(len(index), CHUNK))  # of each action of each window
    is_real = np.arange(CHUNK) < index.real_steps()[:, None]
    size = batch_size * ranks * accumulate
    order = np.random.default_rng((3, 5)).permutation(len(index))
    divided = parts_of(index, batch_size, ranks, accumulate)
    for number in range(len(divided[0])):
        windows = order[number * size : (number + 1) * size]
        action = window = 0.0
        for steps in divided:
            for part in steps[number]:
                own, real = loss[part.windows], is_real[part.windows]
                action += part.action_weight * own[real].mean() / ranks
                window += part.window_weight * own[:, 0].mean() / ranks
                if part.window_weight:
                    assert np.array_equal(windows[part.samples], part.windows)
        assert action == pytest.approx(loss[windows][is_real[windows]].mean())
        assert window == pytest.approx(loss[windows, 0].mean())


def test_one_process_weighs_nothing() -> None:
    """So that a run in one process is the same to the last bit as one without weights."""
    for parts in parts_of(index_of([3, 8, 5]), 4, 1, 1)[0]:
        assert [(part.action_weight, part.window_weight) for part in parts] == [(1.0, 1.0)]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    index = index_of([20])

    def seen(seed: int, epoch: int) -> list[int]:
        order = TrainingOrder(index, 3, seed)
        order.epoch = epoch
        return [window for batch in order for window in batch]

    assert seen(0, 1) == seen(0, 1)
    assert len({tuple(seen(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_steps_left() -> None:
    order = TrainingOrder(index_of([17]), 4, 0, accumulate=2)
    assert (order.steps_per_epoch, order.steps_left, order.windows_per_step) == (3, 3, 8)
    order.done = 16
    assert order.steps_left == 1 == len(list(order.steps()))
    order.done = 17
    assert order.steps_left == 0 == len(list(order.steps()))


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=30).map(np.array), st.integers(1, 4), st.integers(0, 9))
def test_weighted_windows_against_a_walk_along_a_line(weights: np.ndarray, batch_size: int, epoch: int) -> None:
    """Each window is drawn its share of the epoch, rounded up or down; equal weights change nothing."""
    count = len(weights)
    index = index_of([count])
    order = TrainingOrder(index, batch_size, 3, weights=weights)
    order.epoch = epoch
    drawn = [window for windows in order for window in windows]
    assert len(drawn) == count
    if (weights == weights[0]).all():
        assert drawn == np.random.default_rng((3, epoch)).permutation(count).tolist()
        return
    draw = np.random.default_rng((3, epoch))
    position, expected, point = 0.0, [], None
    order_of_line = draw.permutation(count)
    point = draw.random()
    for window in order_of_line:  # plainly: walk along the line, and take each point that is passed
        position += weights[window] / weights.mean()
        while point < position - 1e-9 and len(expected) < count:
            expected.append(int(window))
            point += 1
    times = np.bincount(drawn, minlength=count)
    assert np.abs(times - np.bincount(expected, minlength=count)).sum() <= 2  # where a point is at an end
    assert (np.abs(times - weights / weights.mean()) < 1 + 1e-6).all()


def test_weights_hold_over_epochs_and_from_any_step() -> None:
    weights = np.array([0.2, 1.0, 1.0, 3.3, 0.5])
    order = TrainingOrder(index_of([5]), 2, 0, weights=weights)
    times = np.zeros(5)
    for order.epoch in range(2000):
        for windows in order:
            np.add.at(times, windows, 1)
    assert times / 2000 == pytest.approx(weights / weights.mean(), rel=0.05)
    whole = [window for windows in order for window in windows]
    order.done = 2
    assert [window for windows in order for window in windows] == whole[2:]


def test_views_depend_on_seed_epoch_and_sample_alone() -> None:
    """Not on the processes, nor on where a run was resumed; the windows are those without views."""
    index = index_of([7, 20, 4])
    plain = TrainingOrder(index, 4, 3)
    whole = TrainingOrder(index, 4, 3, views=5)
    plain.epoch = whole.epoch = 2
    coded = np.concatenate([step.parts[0].windows for step in whole.steps()])
    assert np.array_equal(coded % 31, np.concatenate([step.parts[0].windows for step in plain.steps()]))
    assert set((coded // 31).tolist()) == {1, 2, 3, 4, 5}
    ranks = [TrainingOrder(index, 2, 3, rank=rank, ranks=2, views=5) for rank in (0, 1)]
    for order in ranks:
        order.epoch, order.done = 2, 8
    of_ranks = [[part.windows for step in order.steps() for part in step.parts] for order in ranks]
    joined = [window for pair in zip(*of_ranks) for windows in pair for window in windows]
    assert sorted(joined) == sorted(coded[8:].tolist())
    whole.epoch = 3
    again = np.concatenate([step.parts[0].windows for step in whole.steps()])
    assert sorted(again.tolist()) != sorted(coded.tolist())
