"""Hints come when the figures call for them, once, and not otherwise."""

from __future__ import annotations

from typing import Any

from conftest import tiny_config

from bimact.training.hints import Hints


def record(**changes: float) -> dict[str, Any]:
    return {"total_loss": 1.0, "action_loss": 0.9, "kl_loss": 0.1, "data_wait_share": 0.01, **changes}


def said(records: list[dict[str, Any]], **settings: Any) -> list[str]:
    hints = Hints(tiny_config(**settings), num_workers=1)
    return [line for entry in records for line in hints.look(entry)]


def falling(count: int, **changes: float) -> list[dict[str, Any]]:
    return [record(total_loss=2.0 * 0.9**n, **changes) for n in range(count)]


def test_a_healthy_run_gets_none() -> None:
    assert said(falling(100)) == []


def test_starving_loader_is_told_once_with_its_share() -> None:
    lines = said(falling(20, data_wait_share=0.45))
    assert len(lines) == 1
    assert "45% of the time goes into waiting for data: raise --num_workers (now 1)" in lines[0]
    start_up_only = [record(data_wait_share=0.9), *falling(20)]
    assert said(start_up_only) == []


def test_kl_too_high() -> None:
    lines = said(falling(60, action_loss=0.2, kl_loss=0.5), kl_weight=10.0)
    assert len(lines) == 1
    assert "the KL loss (0.500) outweighs the action loss (0.200): reduce --kl_weight (now 10; try 5 or 1)" in lines[0]
    assert "(now 0.5; try 0.05)" in said(falling(60, action_loss=0.2, kl_loss=0.5), kl_weight=0.5)[0]
    settling = falling(10, action_loss=0.2, kl_loss=0.5) + falling(50)
    assert said(settling) == []


def test_loss_that_does_not_fall() -> None:
    lines = said([record() for _ in range(60)], lr=1e-5, dataset_dir="my/data")
    assert len(lines) == 1
    assert "has not fallen (1.000 at first, 1.000 now): lower --lr (now 1e-05; try 5e-06)" in lines[0]
    assert lines[0].endswith("bimact check my/data")
