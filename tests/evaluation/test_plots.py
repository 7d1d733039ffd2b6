"""Plots of a report: no figures, however odd, make them warn or fail."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bimact.evaluation.plots import error_plots, learning_curves
from bimact.training.prediction_plot import prediction_figure
from bimact.training.tracking import _render

NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def records(values: list[float], validation: list[float], kl: float) -> list[dict[str, Any]]:
    shares = {"lr": 1e-4, "data_wait_share": 0.0}
    steps: list[dict[str, Any]] = [
        {
            "step": step,
            "action_loss": value,
            "kl_loss": kl,
            "total_loss": value + kl,
            "steps_per_second": value,
            **shares,
        }
        for step, value in enumerate(values, 1)
    ]
    return steps + [{"step": step, "val_loss": value} for step, value in enumerate(validation, 1)]


@pytest.mark.parametrize(
    "values",
    [[], [0.5] * 5, [0.0], [NAN] * 3, [NAN, 1.0, NAN], [INF, 1.0, 2.0], [1e38, 1e-38], [-1.0]],
    ids=str,
)
@pytest.mark.parametrize(("validation", "kl"), [([], 0.0), ([0.4], 0.1), ([NAN], NAN)])
def test_learning_curves(values: list[float], validation: list[float], kl: float) -> None:
    plots = learning_curves(records(values, validation, kl))
    assert ("steps_per_second" in plots) == any(map(math.isfinite, values))
    is_logarithmic = "logarithmic scale" in plots["loss"]
    assert is_logarithmic == any(
        math.isfinite(value) and value > 0 for value in (*values, *validation, kl * bool(values))
    )


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("value", [0.0, 0.5, NAN, INF, 1e300])
def test_errors_that_are_all_the_same(steps: int, value: float) -> None:
    joints = 2
    errors = {"mae": value, "mae_by_joint": [value] * joints, "mae_by_horizon_step": [value] * steps}
    rows = [[value] * joints] * steps
    plots = error_plots(
        {
            **errors,
            "joint_names": [f"left_{number}" for number in range(joints)],
            "baselines": {"hold": errors, "mean": errors},
            "trajectory": {"demonstrated": rows, "predicted": rows, "chunk_size": steps},
            "fps": 50,
        }
    )
    assert len(plots["arms"]["Left arm"]) == joints


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("padding", [0, 1, 5])
@pytest.mark.parametrize("value", [0.0, 0.5, NAN, INF, 1e30])
def test_predictions_that_are_all_the_same(steps: int, padding: int, value: float) -> None:
    chunk = np.full((steps, 2), value, np.float32)
    _render(prediction_figure(chunk, chunk, np.arange(steps) >= steps - padding, None, "a chunk"))
