"""Dropout by random bytes: the share, the scale, the gradient, the seed."""

from __future__ import annotations

import pytest
import torch

from bimact.policy.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_share_and_expectation(p: float) -> None:
    torch.manual_seed(0)
    result = dropout(torch.ones(1000, 1001), p)
    assert (result == 0).float().mean() == pytest.approx(round(p * 256) / 256, abs=2e-3)
    assert result.mean() == pytest.approx(1, abs=3e-3)


def test_each_of_the_eight_bytes_of_a_word_is_random() -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(80_000), 0.5) == 0).view(-1, 8).float().mean(dim=0)
    assert (dropped - 0.5).abs().max() < 0.03


def test_gradient_passes_where_the_value_did() -> None:
    x = torch.randn(50, 13, requires_grad=True)
    result = dropout(x, 0.3)
    result.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), result.detach())


def test_seed_and_modes() -> None:
    module, x = Dropout(0.5), torch.randn(100)
    torch.manual_seed(1)
    first = module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), first)
    assert module.eval()(x) is x
    assert dropout(x, 0) is x
