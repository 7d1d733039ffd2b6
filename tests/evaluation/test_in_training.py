"""Rollouts beside a training: when they start, what they select, and that resuming loses none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset

import bimact
from bimact.config import Config
from bimact.errors import UserError
from bimact.evaluation.in_training import RolloutsInTraining
from bimact.evaluation.intervals import wilson_interval
from bimact.evaluation.plots import learning_curves
from bimact.files import sha256_of
from bimact.run_directory import Run, read_metrics
from bimact.training.act_trainer import ActTrainer, train_run
from bimact.training.prepare import prepare_run


class Evaluator:
    """Gives known results, each only when it is waited for."""

    def __init__(self, successes: dict[int, int]) -> None:
        self.successes, self.started, self.closed = successes, [], 0
        self.known: set[tuple[int, str]] = set()  # evaluated before

    def __call__(self, run: Run, config: Config) -> Evaluator:
        return self

    def knows(self, step: int, digest: str) -> bool:
        return (step, digest) in self.known

    def start(self, step: int, weights: Path, digest: str | None = None) -> str:
        if digest is None or (step, digest) not in self.known:
            assert "queries.weight" in torch.load(weights)
            assert digest in (None, sha256_of(weights))
            digest = sha256_of(weights)
        self.started.append((step, digest))
        return digest

    def result(self, wait: bool = False) -> dict[str, Any] | None:
        if not wait:
            return None
        step = self.started[-1][0]
        low, high = wilson_interval(self.successes[step], 50)
        rates = {"success_rate": self.successes[step] / 50, "success_low": low, "success_high": high}
        return {"step": step, "successes": self.successes[step], "rollouts": 50, **rates}

    def close(self) -> None:
        self.closed += 1


def train(
    dataset: Path, run: Path, evaluator: Evaluator, resume_from: Path | None = None, **changes: Any
) -> ActTrainer:
    config = tiny_config(
        dataset_dir=str(dataset), output_dir=str(run), **{"eval_task": "insertion", "eval_every": 3, **changes}
    )
    return train_run(prepare_run(config, resume_from), evaluator)


def test_the_best_lower_end_selects_a_checkpoint(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluator = Evaluator({3: 10, 6: 30, 9: 20, 11: 30})
    train(dataset, tmp_path / "run", evaluator, num_steps=11)
    assert [step for step, _ in evaluator.started] == [3, 6, 9, 11] and evaluator.closed == 1
    best = tmp_path / "run" / "checkpoint" / "act-train-best-success.pth"
    assert sha256_of(best) == evaluator.started[1][1]
    assert list((tmp_path / "run" / "evaluations").glob("*.pth")) == []
    lines = [line for line in capsys.readouterr().out.splitlines() if "rollouts of insertion" in line]
    assert lines[0] == "Step 3: 10 of 50 rollouts of insertion succeeded (20.0%, 95% interval 11.2% to 33.0%)"
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "success_rate" in r]
    # A result is taken in when the next one is due, at the latest.
    assert [(r["step"], r["eval_step"], r["success_rate"]) for r in records] == [
        (6, 3, 0.2),
        (9, 6, 0.6),
        (11, 9, 0.4),
        (11, 11, 0.6),
    ]
    assert "success rate of rollouts in training" in learning_curves(records)["success"]


def test_training_is_the_same_and_ends_without_a_higher_success_rate(dataset: Path, tmp_path: Path) -> None:
    plain = train(dataset, tmp_path / "plain", Evaluator({}), eval_task=None, num_steps=9)
    evaluator = Evaluator({3: 10, 6: 5, 9: 5, 12: 50})
    changes = {"num_steps": 20, "patience": 1, "patience_metric": "success"}
    ended = train(dataset, tmp_path / "run", evaluator, **changes)
    assert ended.step == 9
    for (name, one), two in zip(plain.policy.state_dict().items(), ended.policy.state_dict().values()):
        assert torch.equal(one, two), name
    again = train(dataset, tmp_path / "run", evaluator, tmp_path / "run", **changes)
    assert again.step == 9


def test_rollouts_that_were_running_are_started_again(dataset: Path, tmp_path: Path, monkeypatch: Any) -> None:
    step = ActTrainer.train_step

    def interrupted(self: ActTrainer, *arguments: Any) -> torch.Tensor:
        self.stop.requested = self.step == 4
        return step(self, *arguments)

    first = Evaluator({3: 10})
    monkeypatch.setattr(ActTrainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", first, num_steps=8)
    monkeypatch.setattr(ActTrainer, "train_step", step)
    second = Evaluator({3: 10, 6: 40, 8: 30})
    train(dataset, tmp_path / "run", second, tmp_path / "run", num_steps=8)
    assert second.started[0] == first.started[0]
    assert [step for step, _ in second.started] == [3, 6, 8]
    records = [r["eval_step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "success_rate" in r]
    assert records == [3, 6, 8]


def test_a_selected_checkpoint_outlives_a_crash(dataset: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Killed after the evaluation that ran at the checkpoint was taken in: its weights have left their place."""
    step = ActTrainer.train_step

    def interrupted(self: ActTrainer, *arguments: Any) -> torch.Tensor:
        self.stop.requested = self.step == 4
        return step(self, *arguments)

    run = tmp_path / "run"
    first = Evaluator({3: 45})
    monkeypatch.setattr(ActTrainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, run, first, num_steps=8)
    monkeypatch.setattr(ActTrainer, "train_step", step)
    best = run / "checkpoint" / "act-train-best-success.pth"
    (run / "evaluations" / "step-3.pth").replace(best)  # as taking the result in does
    second = Evaluator({3: 45, 6: 10, 8: 10})
    second.known.add(first.started[0])
    train(dataset, run, second, run, num_steps=8)
    assert sha256_of(best) == first.started[0][1]
    records = [r["eval_step"] for r in read_metrics(run / "metrics.jsonl") if "success_rate" in r]
    assert records == [3, 6, 8]


def simulated(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    dataset = write_dataset(tmp_path / "dataset", [9, 12, 7, 10], cameras=("top",))
    return {
        **{key: value for key, value in tiny_config().__dict__.items() if key not in ("encoder", "augmentation")},
        "encoder": tiny_config().encoder.__dict__,
        "dataset_dir": str(dataset),
        "output_dir": str(tmp_path / "run"),
        "num_steps": 4,
        "eval_task": "transfer_cube",
        "eval_every": 2,
        "eval_rollouts": 1,
        **changes,
    }


@pytest.mark.slow
@pytest.mark.gl
def test_real_rollouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = simulated(tmp_path, execute_steps=5)
    run = bimact.train(settings)
    assert capsys.readouterr().out.count("rollouts of transfer_cube succeeded") == 2
    results = sorted((run.path / "evaluations").glob("step-*.json"))
    assert [path.name for path in results] == ["step-2.json", "step-4.json"]
    content = json.loads(results[1].read_text())
    assert content["each"][0]["seed"] == 20000 and len(content["weights_sha256"]) == 64
    # Weights that were evaluated before a run was resumed are not rolled out again.
    evaluator = RolloutsInTraining(run, run.config)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"others")
    content["weights_sha256"] = sha256_of(weights)
    results[1].write_text(json.dumps(content))
    evaluator.start(4, weights)
    found = evaluator.result()
    assert found is not None and found["step"] == 4 and found["rollouts"] == 1
    # Seeds that selected a checkpoint prove nothing of it.
    (run.checkpoints / "act-train-best-success.pth").write_bytes(run.checkpoint("last").read_bytes())
    with pytest.raises(UserError, match="seeds 20000 to 20000 have selected this checkpoint"):
        bimact.evaluate(run, task="transfer_cube", rollouts=2, seed=19999, checkpoint="best-success")


@pytest.mark.slow
def test_what_fails_is_one_sentence(tmp_path: Path) -> None:
    evaluator = RolloutsInTraining(Run(tmp_path), tiny_config(eval_task="insertion", cameras=["top"]))
    evaluator.start(7, Path(__file__))
    with pytest.raises(UserError, match=r"the rollouts of step 7 failed: .*config\.yaml.*output\.txt"):
        evaluator.result(wait=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_task": "juggling"}, "juggling"),
        ({"cameras": ["wrist_of_mine"]}, "wrist_of_mine"),
        ({"state_dim": 7}, "state_dim 7"),
    ],
)
def test_policies_that_cannot_be_rolled_out(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RolloutsInTraining(Run(tmp_path), tiny_config(**{"eval_task": "insertion", "cameras": ["top"], **changes}))
