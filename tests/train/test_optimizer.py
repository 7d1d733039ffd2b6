"""Clipping of gradients."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from bimact.train.optimizer import clip_gradients


def parameters_with(gradients: list[list[float]]) -> list[torch.Tensor]:
    parameters = [torch.nn.Parameter(torch.zeros(len(values))) for values in gradients]
    for parameter, values in zip(parameters, gradients):
        parameter.grad = torch.tensor(values)
    return [*parameters, torch.nn.Parameter(torch.zeros(2))]  # one that the loss does not depend on


def optimizer_of(parameters: list[torch.Tensor]) -> AcceleratedOptimizer:
    return Accelerator(cpu=True).prepare_optimizer(torch.optim.AdamW(parameters, lr=0.1, fused=True))


@pytest.mark.parametrize("most", [0.5, 4.9, 5.0, 100.0])
def test_gradients_are_clipped_as_pytorch_does(most: float) -> None:
    ours, theirs = (parameters_with([[3.0, 0.0], [0.0, 4.0]]) for _ in range(2))  # of norm 5
    one, other = optimizer_of(ours), optimizer_of(theirs)
    for scale in (1.0, 0.01):  # what one step does to large gradients, the next one does not to small ones
        for parameter in (*ours[:2], *theirs[:2]):
            parameter.grad = torch.tensor([3.0, 4.0]) * scale / 2**0.5
        clip_gradients(Accelerator(cpu=True), one, most)
        torch.nn.utils.clip_grad_norm_(theirs, most)
        one.step()
        other.step()
        for mine, reference in zip(ours, theirs):
            torch.testing.assert_close(mine, reference, rtol=1e-5, atol=0)
            for name in ("exp_avg", "exp_avg_sq") if mine.grad is not None else ():
                moments = one.state[mine][name], other.state[reference][name]
                torch.testing.assert_close(*moments, rtol=1e-5, atol=0)


def test_gradients_that_are_no_numbers_stay_so() -> None:
    parameters = parameters_with([[3.0, float("inf")]])
    optimizer = optimizer_of(parameters)
    clip_gradients(Accelerator(cpu=True), optimizer, 1.0)
    optimizer.step()
    assert not parameters[0].isfinite().all()
