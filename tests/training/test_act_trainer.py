"""Training: it learns, logs, saves, resumes, stops when the loss goes wrong, and loses nothing."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset
from omegaconf import OmegaConf

from bimact.data.opening import open_dataset
from bimact.data.windows import split_episodes
from bimact.errors import UserError
from bimact.policy.act import build_act_policy
from bimact.run_directory import read_metrics
from bimact.training import act_trainer
from bimact.training.act_trainer import ActTrainer, train_run
from bimact.training.prepare import prepare_run


def train(dataset: Path, run: Path, resume_from: Path | str | None = None, **changes: Any) -> ActTrainer:
    config = tiny_config(**{"dataset_dir": str(dataset), "output_dir": str(run), **changes})
    return train_run(prepare_run(config, resume_from))


def test_a_run_has_what_the_guide_says(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(dataset, run, num_epochs=3, checkpoint_frequency=2)
    names = {path.name for path in (run / "checkpoint").iterdir()}
    assert {"act-train-2.pth", "act-train-3.pth", "act-train-best.pth", "act-train-last.pth"} <= names
    assert "act-train-1.pth" not in names
    assert not [name for name in names if name.startswith(".")]

    config = OmegaConf.load(run / "config.yaml")
    assert (config.cameras, config.image_size) == (["left", "right"], [16, 24])
    policy = build_act_policy(config)
    policy.load_state_dict(torch.load(run / "checkpoint" / "act-train-2.pth", map_location="cpu"))

    printed = capsys.readouterr().out
    for line in (
        "Building ACT policy...",
        "Total parameters: ",
        "Trainable parameters: ",
        "Training samples: ",
    ):
        assert line in printed
    assert "Epoch 1/3, Step 2: loss=" in printed
    assert f"Checkpoint saved: {run}/checkpoint/act-train-2.pth" in printed

    records = read_metrics(run / "metrics.jsonl")
    steps = [record for record in records if "total_loss" in record]
    assert all(
        record["total_loss"] == pytest.approx(record["action_loss"] + record["kl_loss"], rel=1e-4) for record in steps
    )
    assert sum("val_loss" in record for record in records) == 3


@pytest.mark.slow
def test_loss_falls(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", num_epochs=40, use_vae=False, lr=3e-3, seed=1)
    losses = [r["val_loss"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in r]
    assert min(losses) < 0.5 * losses[0]


def test_statistics_are_of_the_training_episodes_only(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [8, 8, 8, 8])
    _, held_out = split_episodes([8] * 4, 0.25, seed=0)
    actions = np.load(dataset / "actions.npy")
    actions[8 * held_out[0] : 8 * held_out[0] + 8] = 1000
    np.save(dataset / "actions.npy", actions)
    trainer = ActTrainer(prepare_run(tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"))))
    assert trainer.policy.action_normalizer.mean.abs().max() < 2


ALL_SETTINGS = {
    "augment": True,
    "augmentation": {"degrees": 5.0, "erasing": 0.5},
    "state_noise": 0.1,
    "state_dropout": 0.2,
    "ema_decay": 0.9,
    "action_mode": "relative",
    "action_normalization": "quantile",
    "max_delay": 2,
    "recombine_arms": 0.7,
}


@pytest.mark.slow
@pytest.mark.parametrize(("stop_at", "settings"), [(2, {}), (8, {}), (10, {}), (2, ALL_SETTINGS), (10, ALL_SETTINGS)])
def test_two_parts_are_one_run(
    dataset: Path, tmp_path: Path, stop_at: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at a step in mid-epoch or at an epoch's end, and resumed: bit-identical to an unbroken run."""
    changes = {"num_epochs": 3, "dropout": 0.2, "lr_schedule": "cosine", "warmup_steps": 3, **settings}
    if settings:
        (tmp_path / "weights.csv").write_text("0,3\n1,0.5\n")
        other = write_dataset(tmp_path / "other", [8, 11], seed=1)
        weighted = {"path": str(dataset), "weight": 2.0, "sample_weights": str(tmp_path / "weights.csv"), "task": "a"}
        changes |= {"dataset_dir": None, "datasets": [weighted, {"path": str(other), "task": "b"}]}
        changes["task_conditioning"] = "id"
    whole = train(dataset, tmp_path / "whole", **changes)

    step = ActTrainer.train_step

    def interrupted(self: ActTrainer, *arguments: Any) -> torch.Tensor:
        if self.step + 1 == stop_at:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(ActTrainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "parts", **changes)
    monkeypatch.setattr(ActTrainer, "train_step", step)
    torch.rand(7)  # whatever has happened in the meantime
    last = tmp_path / "parts" / "checkpoint" / "act-train-last.pth"
    parts = train(dataset, tmp_path / "parts", last, **changes)

    for (name, one), two in zip(whole.policy.state_dict().items(), parts.policy.state_dict().values()):
        assert torch.equal(one, two), name
    saved = [torch.load(tmp_path / name / "checkpoint" / "act-train-3.pth") for name in ("whole", "parts")]
    for name in saved[0]:
        assert torch.equal(saved[0][name], saved[1][name]), name
    timeless = (
        "epoch",
        "step",
        "total_loss",
        "action_loss",
        "kl_loss",
        "lr",
        "val_loss",
        "val_loss/dataset",
        "val_loss/other",
    )
    unbroken, resumed = (
        [{key: r.get(key) for key in timeless} for r in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts")
    )
    assert unbroken == resumed


def test_another_run_is_not_overwritten(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(dataset, run, num_epochs=1)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(UserError, match=rf"--resume_from .*act-train-last.pth.*--output_dir {run}-2"):
        train(dataset, run)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_lost_state_takes_the_weights_and_says_so(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(dataset, tmp_path / "run", num_epochs=1)
    last = tmp_path / "run" / "checkpoint" / "act-train-last.pth"
    last.with_suffix(".state").unlink()
    trainer = ActTrainer(
        prepare_run(tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), num_epochs=1), last)
    )
    assert trainer.step == 0
    assert "only its weights are taken, and training starts anew" in capsys.readouterr().out
    saved = torch.load(last)
    assert all(torch.equal(value, saved[name]) for name, value in trainer.policy.state_dict().items())


def test_not_a_number_stops_with_the_step_and_keeps_the_checkpoint(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = act_trainer.act_losses
    calls = 0

    def poisoned(*arguments: Any) -> Any:
        nonlocal calls
        result = losses(*arguments)
        if torch.is_grad_enabled():
            calls += 1
        return result._replace(action=result.action * (math.nan if calls == 11 else 1))

    monkeypatch.setattr(act_trainer, "act_losses", poisoned)
    with pytest.raises(UserError, match="the loss is nan at step 11: try a lower lr"):
        train(dataset, tmp_path / "run", num_epochs=4)
    weights = torch.load(tmp_path / "run" / "checkpoint" / "act-train-last.pth")
    assert all(value.isfinite().all() for value in weights.values())


def test_number_of_steps_instead_of_epochs(dataset: Path, tmp_path: Path) -> None:
    trainer = train(dataset, tmp_path / "run", num_steps=3, val_split=0)
    assert trainer.step == 3
    assert {"act-train-1.pth", "act-train-best.pth", "act-train-last.pth"} <= {
        path.name for path in (tmp_path / "run" / "checkpoint").iterdir()
    }


def test_backbone_has_its_own_rate_and_a_frozen_one_has_no_state(dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), lr_backbone=1e-5)
    groups = ActTrainer(prepare_run(config)).optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == [1e-3, 1e-5]
    frozen = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, freeze=True))
    prepared = prepare_run(frozen)
    before = {name: value.clone() for name, value in prepared.policy.image_encoder.state_dict().items()}
    trainer = train_run(prepared)
    assert len(trainer.optimizer.param_groups) == 1
    after = trainer.policy.image_encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_sizes_that_disagree_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="action_dim is 7 in the config, but .* has 14"):
        train(dataset, tmp_path / "run", action_dim=7)
    assert open_dataset(dataset).actions.shape[1] == 14


def test_data_that_is_no_number_is_found_before_the_first_step(dataset: Path, tmp_path: Path) -> None:
    actions = np.load(dataset / "actions.npy")
    actions[9 + 4, 3] = np.nan
    np.save(dataset / "actions.npy", actions)
    with pytest.raises(UserError, match="actions of episode 1, step 4 holds NaN"):
        train(dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_checkpoint_offers_only_a_free_name(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run already: choose a free name") as refusal:
        train(dataset, tmp_path / "run")
    assert "--resume_from" not in str(refusal.value)


def test_training_ends_when_validation_has_not_improved(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 9.0, 1.0])
    monkeypatch.setattr(ActTrainer, "validate", lambda self: next(losses))
    changes = {"num_epochs": 6, "patience": 2, "checkpoint_frequency": 100}
    train(dataset, tmp_path / "run", **changes)
    assert "val_loss has not fallen since epoch 2: training ends (patience)" in capsys.readouterr().out
    folder = tmp_path / "run" / "checkpoint"
    assert sorted(path.stem for path in folder.glob("*.pth")) == ["act-train-4", "act-train-best", "act-train-last"]
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    train(dataset, tmp_path / "run", tmp_path / "run", **changes)  # a run that has ended stays as it is
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    resumed = train(dataset, tmp_path / "run", tmp_path / "run", **{**changes, "patience": 4})
    assert resumed.order.epoch == 6 and resumed.best_val_loss == 1.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_stop_in_validation_is_saved_at_once(
    dataset: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation comes again when the run is resumed, which is then identical to an unbroken one."""
    whole = train(dataset, tmp_path / "whole", num_epochs=2)
    validate = ActTrainer.validate

    def interrupted(self: ActTrainer) -> float | None:
        signal.raise_signal(number)
        return validate(self)

    monkeypatch.setattr(ActTrainer, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "parts", num_epochs=2)
    assert [r for r in read_metrics(tmp_path / "parts" / "metrics.jsonl") if "val_loss" in r] == []
    monkeypatch.setattr(ActTrainer, "validate", validate)
    parts = train(dataset, tmp_path / "parts", tmp_path / "parts", num_epochs=2)
    for (name, one), two in zip(whole.policy.state_dict().items(), parts.policy.state_dict().values()):
        assert torch.equal(one, two), name
    whole_losses, losses = (
        [(r["step"], r["val_loss"]) for r in read_metrics(tmp_path / run / "metrics.jsonl") if "val_loss" in r]
        for run in ("whole", "parts")
    )
    assert whole_losses == losses and len(losses) == 2


def test_one_command_starts_and_resumes(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(dataset, tmp_path / "whole", num_epochs=2)
    step = ActTrainer.train_step

    def fails_at(number: int) -> None:
        def fail(self: ActTrainer, *arguments: Any) -> torch.Tensor:
            if self.step == number:
                raise RuntimeError("killed")
            return step(self, *arguments)

        monkeypatch.setattr(ActTrainer, "train_step", fail)

    run = tmp_path / "run"
    for number in (3, 9):  # before the first checkpoint, and after it
        fails_at(number)
        with pytest.raises(RuntimeError, match="killed"):
            train(dataset, run, "auto", num_epochs=2, checkpoint_frequency=1)
    assert "has no checkpoint to resume from: the training starts anew there" in capsys.readouterr().out
    assert (run / "metrics.before-1.jsonl").exists()
    monkeypatch.setattr(ActTrainer, "train_step", step)
    trainer = train(dataset, run, "auto", num_epochs=2, checkpoint_frequency=1)
    assert "Resuming from" in capsys.readouterr().out
    for (name, one), two in zip(whole.policy.state_dict().items(), trainer.policy.state_dict().values()):
        assert torch.equal(one, two), name
    with pytest.raises(UserError, match="auto needs --output_dir"):
        prepare_run(tiny_config(dataset_dir=str(dataset)), "auto")
