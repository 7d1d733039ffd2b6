"""Clipping of gradients."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from bimact.train.optimizer import clip_gradients


def parameters_with(gradients: list[list[float]]) -> list[torch.Tensor]:
    parameters = [torch.nn.Parameter(torch.zeros(len(values))) for values in gradients]
    for parameter, values in zip(parameters, gradients):
        parameter.grad = torch.tensor(values)
    return [*parameters, torch.nn.Parameter(torch.zeros(2))]  # one that the loss does not depend on


@pytest.mark.parametrize("most", [0.5, 4.9, 5.0, 100.0])
def test_gradients_are_clipped_as_pytorch_does(most: float) -> None:
    ours, theirs = (parameters_with([[3.0, 0.0], [0.0, 4.0]]) for _ in range(2))  # of norm 5
    clip_gradients(Accelerator(cpu=True), iter(ours), most)
    torch.nn.utils.clip_grad_norm_(theirs, most)
    for one, other in zip(ours[:2], theirs):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=0)


def test_gradients_that_are_no_numbers_stay_so() -> None:
    parameters = parameters_with([[3.0, float("inf")]])
    clip_gradients(Accelerator(cpu=True), parameters, 1.0)
    assert parameters[0].grad is not None and not parameters[0].grad.isfinite().all()
