"""A training step of the demo's network on a CPU: our dropout and attention against PyTorch's own, in turn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from measuring import ROOT, Figure, Row, in_turn, ratios
from torch.nn import functional as F

from bimact.config import load_config
from bimact.device import choose_precision
from bimact.policy import transformer
from bimact.policy.act import ActPolicy, act_losses

ROUNDS, STEPS = 7, 5
DEMO = ROOT / "configs" / "demo.yaml"


def make_step(dropout: float) -> Callable[[], None]:
    """A function that does one optimizer step on a batch of noise in the demo's shapes."""
    sizes = ["state_dim=14", "action_dim=14", "cameras=top", f"dropout={dropout}"]
    config = load_config(DEMO, sizes)
    torch.manual_seed(0)
    policy = ActPolicy(config).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, fused=True)
    batch = config.batch_size
    images = torch.randint(0, 256, (batch, 1, 240, 320, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    is_pad = torch.zeros(batch, config.chunk_size, dtype=torch.bool)
    obs = {"image_top": images, "state": torch.randn(batch, 1, 14), "action_is_pad": is_pad}
    actions = torch.randn(batch, config.chunk_size, 14)
    bf16 = choose_precision("auto", torch.device("cpu")) == "bf16"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            _, output = policy(obs, actions)
        act_losses(output, actions, is_pad, config).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@contextlib.contextmanager
def pytorchs_dropout() -> Iterator[None]:
    def stock(x: torch.Tensor, p: float) -> torch.Tensor:
        return F.dropout(x, p) if p else x

    with patch("bimact.policy.dropout.dropout", stock), patch.object(transformer, "drop", stock):
        yield


@contextlib.contextmanager
def pytorchs_attention() -> Iterator[None]:
    def stock(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_pad: torch.Tensor | None, p: float) -> torch.Tensor:
        mask = None if is_pad is None else ~is_pad[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, mask, p)

    with patch.object(transformer, "attend", stock):
        yield


def seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - began) / STEPS


def compare(what: str, step: Callable[[], None], stock: Callable[[], contextlib.AbstractContextManager[None]]) -> Row:
    step()

    def theirs() -> float:
        with stock():
            return seconds(step)

    ours, others = in_turn(ROUNDS, lambda: seconds(step), theirs)
    times = [f"{1000 * Figure.of(values).median:.0f} ms" for values in (ours, others)]
    details = [f"{times[0]} per step of the demo's network, with PyTorch's own {times[1]}"]
    return Row(f"training step with PyTorch's own {what} / with ours", ratios(others, ours), details=details)


def dropout() -> Row:
    return compare("dropout", make_step(0.1), pytorchs_dropout)


def attention() -> Row:
    return compare("fused attention", make_step(0.0), pytorchs_attention)
