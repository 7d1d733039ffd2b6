"""Metrics of predicted chunks against loops over steps, and what they have to be for chunks that are known."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from bimact.data.windows import WindowIndex
from bimact.evaluation.predictors import (
    ChunkMetrics,
    executed_actions,
    gripper_changes,
    predictors_line,
    reversals,
    unused_images,
)
from bimact.policy.ensembling import TemporalEnsemble
from bimact.policy.metadata import Execution

LIMITS = np.array([[0.0, 1.0]] * 3)


def metrics_of(
    execution: Execution, chunks: np.ndarray, actions: np.ndarray, grippers: list[int], fps: float | None
) -> dict[str, Any]:
    """Of two equal episodes, in batches that do not end where they do."""
    length = len(actions)
    first = np.repeat([0, length], length)
    index = WindowIndex(1, chunks.shape[1], np.arange(2 * length), first, first + length - 1)
    twice = np.concatenate([actions, actions])
    metrics = ChunkMetrics(execution, np.ones(actions.shape[1]), grippers, index, twice, fps)
    for batch in np.split(np.concatenate([chunks, chunks]), [1, 7, length - 2, length + 3]):
        metrics.add(batch)
    return metrics.summary()


def chunks_of(actions: np.ndarray, chunk_size: int) -> np.ndarray:
    """Perfect predictions (L, C, A), the last action repeated."""
    rows = np.minimum(np.arange(len(actions))[:, None] + np.arange(chunk_size), len(actions) - 1)
    return np.asarray(actions[rows])


def test_gripper_changes() -> None:
    actions = np.zeros((60, 3))
    actions[20:, 2] = 1  # opens at 20
    actions[40:, 2] = 0  # closes at 40
    actions[:, 1] = np.linspace(0, 1, 60)
    assert gripper_changes(actions, [2], LIMITS).tolist() == [20, 40]
    assert gripper_changes(actions, [1, 2], LIMITS).tolist() == [20, 36, 40]  # beyond 60% of the range
    noisy = actions.copy()
    noisy[:, 2] = 0.5 + 0.05 * np.sin(np.arange(60))  # about the middle
    assert not len(gripper_changes(noisy, [2], LIMITS))
    assert not len(gripper_changes(actions, [2], np.zeros((3, 2)))) and not len(gripper_changes(actions, [], LIMITS))


def test_executed_actions_against_loops() -> None:
    draw = np.random.default_rng(0)
    chunks, steps = draw.normal(size=(12, 5, 2)), np.array([0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13])
    ahead = executed_actions(chunks, steps, Execution(3), 14)
    assert len(ahead) == 3
    for k, executed in enumerate(ahead):
        for step in range(14):
            [*number] = np.flatnonzero(steps == step - k)
            if number:
                np.testing.assert_array_equal(executed[step], chunks[number[0], k])
            else:
                assert np.isnan(executed[step]).all()
    [ensembled] = executed_actions(chunks, steps, Execution(1, True, None, 0.1), 14)
    assert np.isnan(ensembled[7:9]).all()
    for first, last in ((0, 7), (7, 12)):  # a gap begins anew
        reference = TemporalEnsemble(5, 0.1)
        for number in range(first, last):
            np.testing.assert_allclose(ensembled[steps[number]], reference.update(chunks[number][None])[0])


def test_reversals_against_loops() -> None:
    draw = np.random.default_rng(1)
    chunks, real, std = draw.normal(size=(6, 8, 2)), np.array([8, 8, 5, 3, 2, 1]), np.array([0.5, 2.0])
    found = pairs = 0
    for chunk, steps in zip(chunks, real):
        for joint in range(2):
            for k in range(steps - 2):
                one, two = (chunk[k + i + 1, joint] - chunk[k + i, joint] for i in (0, 1))
                pairs += 1
                found += one * two < 0 and min(abs(one), abs(two)) >= 0.01 * std[joint]
    assert reversals(chunks, real, std) == (found, pairs)
    steady = np.linspace(0, 1, 8)[None, :, None].repeat(2, axis=2)
    assert reversals(steady, np.array([8]), std)[0] == 0


@pytest.mark.parametrize("execution", [Execution(4), Execution(1, True, None, 0.01)])
def test_perfect_chunks_have_no_error_and_errors_count_where_they_are(execution: Execution) -> None:
    actions = np.zeros((80, 3))
    actions[30:, 2] = 1
    actions[:, 0] = np.linspace(0, 1, 80)
    perfect = metrics_of(execution, chunks_of(actions, 6), actions, [2], fps=10)  # ±5 steps
    assert perfect["mae_at_gripper_changes"] == pytest.approx(0, abs=1e-6) and perfect["gripper_changes"] == 2
    assert perfect["chunk_spread"] == pytest.approx(0, abs=1e-6) and perfect["direction_reversals"] == 0
    for wrong, expected in (((30, 36), True), ((60, 66), False)):
        changed = actions.copy()
        changed[slice(*wrong), 1] += 0.3
        found = metrics_of(execution, chunks_of(changed, 6), actions, [2], fps=10)
        assert (found["mae_at_gripper_changes"] > 0.01) == expected


def test_spread_against_a_loop() -> None:
    draw = np.random.default_rng(2)
    chunks, actions = draw.normal(size=(9, 4, 2)), draw.normal(size=(9, 2))
    summary = metrics_of(Execution(4), chunks, actions, [], fps=None)
    spreads = [
        np.std([chunks[t, step - t] for t in range(9) if 0 <= step - t < 4], axis=0).mean() for step in range(1, 9)
    ]
    assert summary["chunk_spread"] == pytest.approx(np.mean(spreads))
    assert summary["mae_at_gripper_changes"] is None
    line = predictors_line({**summary, "mae_perturbed": 0.2, "mae_of_the_same_windows": 0.1})
    assert line.startswith("Error with changed images and states 0.2000 (unchanged 0.1000); direction reversals ")
    errors = {"unchanged": 0.1, "all": 0.3}
    with_images = {**summary, "mae_perturbed": 0.2, "mae_of_the_same_windows": 0.1, "mae_with_other_images": errors}
    assert "(unchanged 0.1000), with images of other moments 0.3000 (0.1000); " in predictors_line(with_images)


@pytest.mark.parametrize(
    ("errors", "sentence"),
    [
        ({}, None),
        ({"unchanged": 0.1, "all": 0.2}, None),
        ({"unchanged": 0.1, "all": 0.104}, "hardly uses its images: .* the error is 0.1040 instead of 0.1000"),
        ({"unchanged": 0.1, "all": 0.2, "top": 0.18, "wrist": 0.101}, "hardly uses the images of wrist: "),
        ({"unchanged": 0.1, "all": 0.2, "top": 0.18, "wrist": 0.12}, None),
    ],
)
def test_images_that_are_not_used_are_told(errors: dict[str, float], sentence: str | None) -> None:
    told = unused_images({"mae_with_other_images": errors} if errors else {})
    assert (told is None) == (sentence is None)
    assert sentence is None or re.search(sentence, told or "")
