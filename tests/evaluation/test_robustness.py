"""Evaluation under perturbations: what is rolled out, kept, resumed and compared."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from rich.console import Console

import bimact
from bimact.errors import UserError
from bimact.evaluation import rollout
from bimact.evaluation.intervals import wilson_interval
from bimact.evaluation.paired import Pairs, mcnemar_exact
from bimact.evaluation.results import read_results
from bimact.evaluation.robustness import curves, differences, robustness_table
from bimact.evaluation.rollout import RolloutSettings, evaluate_robustness
from bimact.sim.perturbations import suite_of

LIGHT = [{}, {"light": 0.5}, {"light": 1.5}, {"black_camera": "all"}]


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    weights = tmp_path / "act-train-last.pth"
    weights.write_bytes(b"weights")
    config = tiny_config(cameras=["top"], state_dim=14, action_dim=14)
    return SimpleNamespace(config=config, checkpoint=weights, results=tmp_path)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is rolled out: fewer scenes succeed the further the light is from 1; none without images."""
    rolled: list[dict[str, Any]] = []

    def evaluate(loaded: Any, settings: RolloutSettings) -> dict[str, Any]:
        rolled.append(dict(settings.perturb))
        rate = 0.0 if "black_camera" in settings.perturb else 0.9 - abs(settings.perturb.get("light", 1) - 1)
        numbers = np.random.default_rng(settings.seed).random(settings.rollouts)
        rewards = [4 if number < rate else 2 for number in numbers]
        successes = rewards.count(4)
        return {
            "rollouts": len(rewards),
            "successes": successes,
            "success_rate": successes / len(rewards),
            "interval_95": wilson_interval(successes, len(rewards)),
            "reward_reached": {str(reward): sum(r >= reward for r in rewards) for reward in (1, 2, 3, 4)},
            "each": [{"highest_reward": float(reward)} for reward in rewards],
        }

    monkeypatch.setattr(rollout, "evaluate_rollouts", evaluate)
    return rolled


def test_results_stay_and_missing_ones_are_made(
    loaded: Any, log: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = RolloutSettings("transfer_cube", rollouts=50)
    evaluate_robustness(loaded, settings, LIGHT[:2])
    assert log == LIGHT[:2]
    group = evaluate_robustness(loaded, settings, LIGHT)
    assert log == LIGHT[:2] + LIGHT[2:]
    assert "4 conditions of 50 rollouts each; 2 have results already" in capsys.readouterr().out
    [kept] = read_results(loaded.results)["robustness"]["transfer_cube"]
    assert kept["conditions"].keys() == {"none", "light=0.5", "light=1.5", "black_camera=all"}
    assert group["conditions"]["none"]["success_rate"] > group["conditions"]["light=0.5"]["success_rate"]
    evaluate_robustness(loaded, RolloutSettings("transfer_cube", rollouts=20), LIGHT[1:2])  # other scenes: beside them
    loaded.checkpoint.write_bytes(b"other weights")
    evaluate_robustness(loaded, settings, LIGHT[:1])
    groups = read_results(loaded.results)["robustness"]["transfer_cube"]
    assert [len(group["conditions"]) for group in groups] == [4, 1, 1]
    assert len(log) == 6


def test_differences_and_curves(loaded: Any, log: list[Any]) -> None:
    group = evaluate_robustness(loaded, RolloutSettings("transfer_cube", rollouts=100), LIGHT)
    rows = {row["condition"]: row for row in differences(group)}
    usual, dark = (group["conditions"][name]["highest_rewards"] for name in ("none", "light=0.5"))
    pairs = Pairs.of([reward == 4 for reward in dark], [reward == 4 for reward in usual])
    assert rows["light=0.5"]["difference"] == pytest.approx(pairs.difference) and pairs.difference < -0.3
    assert rows["light=0.5"]["p_value"] >= mcnemar_exact(pairs)  # corrected for the number of conditions
    assert "difference" not in rows["none"]
    found = curves(group)
    assert [point[0] for point in found["light"]] == [0.5, 1, 1.5]
    assert found["light"][1][1] == group["conditions"]["none"]["success_rate"]
    assert [point[0] for point in found["black_camera"]] == ["none", "all"]
    console = Console(width=120, record=True)
    console.print(robustness_table(group))
    assert "black_camera=all" in console.export_text()


def test_what_cannot_be_rolled_out_is_told_before(loaded: Any, log: list[Any]) -> None:
    settings = RolloutSettings("transfer_cube", rollouts=5)
    with pytest.raises(UserError, match=r"black_camera is 'front', it has to be a camera of the policy \(top\)"):
        evaluate_robustness(loaded, settings, [{}, {"black_camera": "front"}])
    assert log == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": "insertion", "suite": "all"}, "suite is 'all', it has to be robustness"),
        ({"task": "insertion", "suite": "robustness", "perturb": {"light": 0.5}}, "give perturb or suite"),
        ({"perturb": {"light": 0.5}}, "perturbations are of the simulation: give a task"),
    ],
)
def test_faulty_arguments(tmp_path: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        bimact.evaluate(tmp_path, **arguments)


def test_report(tmp_path: Path, log: list[Any]) -> None:
    from test_report import add_results, make_run

    from bimact.evaluation.report import write_report

    run = make_run(tmp_path / "run")
    weights = tmp_path / "act-train-last.pth"
    weights.write_bytes(b"weights")
    config = tiny_config(cameras=["top"], state_dim=14, action_dim=14)
    loaded: Any = SimpleNamespace(config=config, checkpoint=weights, results=run)
    add_results(run)
    group = evaluate_robustness(loaded, RolloutSettings("insertion", rollouts=40), suite_of(("top",)))
    page = write_report(run).read_text()
    assert "When the simulation changes" in page and 'href="#robustness"' in page
    assert page.count('aria-label="Success rate under') == len(curves(group)) == 21
    assert "black_camera=all" in page
