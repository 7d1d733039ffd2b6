"""When a loss is taken for exploded, and how time is counted."""

from __future__ import annotations

import math
import time

import pytest
import torch

from bimact.errors import UserError
from bimact.training.watch import LossWatch, StepTimes


def _losses(*totals: float) -> list[torch.Tensor]:
    return [torch.tensor([total, total, 0.0]) for total in totals]


def test_usual_losses_pass() -> None:
    watch = LossWatch()
    for totals in ((250.0, 90.0), (8.0, 3.0), (0.05, 0.04), (0.3, 9.0)):
        watch.check(_losses(*totals), 10)
    watch.check([], 10)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_first_bad_step_is_named(bad: float) -> None:
    with pytest.raises(UserError, match="at step 9: try a lower lr"):
        LossWatch().check(_losses(1.0, bad, bad), 10)


def test_explosion_and_its_memory() -> None:
    watch = LossWatch()
    watch.check(_losses(1.0), 1)
    again = LossWatch()
    again.load_state_dict(watch.state_dict())
    with pytest.raises(UserError, match="exploded to 200 at step 2"):
        again.check(_losses(200.0), 2)


def test_waiting_is_measured() -> None:
    times = StepTimes()
    for _ in times.measure_waiting(time.sleep(0.02) or number for number in range(3)):
        time.sleep(0.02)
        times.step_done()
    rates = times.take()
    assert 0.2 < rates["data_wait_share"] < 0.8
    assert rates["steps_per_second"] * rates["time_per_batch"] == pytest.approx(1, rel=1e-6)
    assert times.rates()["data_wait_share"] == 0


def test_explosion_within_the_first_steps_is_seen() -> None:
    with pytest.raises(UserError, match="exploded to"):
        LossWatch().check([torch.tensor([loss, 0.0, 0.0]) for loss in (8.0, 500.0, 60_000.0)], 3)
