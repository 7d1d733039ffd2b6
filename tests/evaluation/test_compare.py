"""Comparison of two policies: counts against loops, scenes in pairs, and when a sequential one stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bimact.evaluation import rollout
from bimact.evaluation.compare import compare_rollouts, comparison, comparison_table, verdict
from bimact.evaluation.rollout import Rollout, RolloutSettings

NAMES = ("touched", "lifted", "handed over", "held")


def test_stages_against_loops() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 5, 60).tolist(), draw.integers(0, 4, 60).tolist()
    result = comparison(a, b, NAMES, sequential=False)
    assert [row["stage"] for row in result["stages"]] == list(reversed(NAMES))
    for reward, row in zip((4, 3, 2, 1), result["stages"]):
        assert row["a"]["successes"] == sum(stage >= reward for stage in a)
        assert row["pairs"]["only_a"] == sum(one >= reward > other for one, other in zip(a, b))
        assert row["pairs"]["only_b"] == sum(other >= reward > one for one, other in zip(a, b))
        assert row["interval_95"][0] <= row["difference"] <= row["interval_95"][1]
    assert result["better"] == "A" and result["p_value"] < 0.05 and "evidence" not in result
    assert comparison(b, a, NAMES, sequential=False)["better"] == "B"
    assert comparison(b, b, NAMES, sequential=False)["better"] is None


def test_words() -> None:
    result = comparison([1] * 18 + [0] * 2, [1] * 8 + [0] * 12, ["success"], sequential=False)
    assert verdict(result).startswith("A is better, after 20 scenes: A - B = +50.0 points (95% interval +")
    assert "McNemar's exact test p = 0.00195" in verdict(result)
    console = Console(width=120, record=True)
    console.print(comparison_table(result))
    assert "18 of 20 = 90.0%" in console.export_text()
    undecided = comparison([1, 0], [0, 0], ["success"], sequential=True)
    assert verdict(undecided).startswith("Not decided after 2 scenes") and "decisive from 20" in verdict(undecided)


def policies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **rates: float) -> tuple[Any, Any, list[str]]:
    """Policies with known success rates, in waves of eight; and what was rolled out, in order."""
    log: list[str] = []

    def roll_out(loaded: Any, settings: RolloutSettings, model: Any = None) -> Iterator[list[Rollout]]:
        for first in range(settings.seed, settings.seed + settings.rollouts, 8):
            log.append(loaded.name)
            last = min(first + 8, settings.seed + settings.rollouts)
            numbers = {seed: np.random.default_rng((seed, ord(loaded.name))).random() for seed in range(first, last)}
            yield [Rollout(seed, 4.0 if number < rates[loaded.name] else 2.0) for seed, number in numbers.items()]

    monkeypatch.setattr(rollout, "roll_out", roll_out)
    made = []
    for name in ("a", "b"):
        weights = tmp_path / f"{name}.pth"
        weights.write_bytes(name.encode())
        made.append(SimpleNamespace(name=name, checkpoint=weights, run=SimpleNamespace(path=tmp_path / name)))
    return made[0], made[1], log


def test_the_same_scenes_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a, b, log = policies(monkeypatch, tmp_path, a=0.9, b=0.9)
    result = compare_rollouts(a, b, RolloutSettings("transfer_cube", rollouts=20, seed=500))
    assert log == ["a", "b"] * 3
    assert [each["seed"] for each in result["each"]] == list(range(500, 520)) and result["scenes"] == 20
    assert {each["a"] for each in result["each"]} <= {2, 4}
    assert result["stages"][0]["stage"] == "held by left" and result["stages"][-1]["a"]["successes"] == 20
    assert result["a"]["run"] == str((tmp_path / "a").resolve()) and result["a"] != result["b"]


def test_sequential_stops_when_it_is_decided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a, b, _ = policies(monkeypatch, tmp_path, a=0.95, b=0.3)
    settings = RolloutSettings("transfer_cube", rollouts=200)
    early = compare_rollouts(a, b, settings, sequential=True)
    assert early["better"] == "A" and early["scenes"] < 60 and early["evidence"] >= 20
    assert compare_rollouts(a, b, settings)["scenes"] == 200
    b.name = "a"  # a policy against itself is never decided
    same = compare_rollouts(a, b, settings, sequential=True)
    assert same["better"] is None and same["scenes"] == 200 and same["stages"][0]["difference"] == 0
