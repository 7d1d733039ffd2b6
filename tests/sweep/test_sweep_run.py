"""Sweeps with a training of a moment: every trial is a real process, and the record of them is right."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from guide_files import write_dataset
from optuna.trial import TrialState
from sweep_helpers import LR, TRAINING, make_plan, trials_in

from bimact.errors import UserError
from bimact.run_directory import read_metrics
from bimact.sweep import run as sweep_run
from bimact.sweep.plan import SweepPlan, plan_sweep
from bimact.sweep.run import run_sweep, slot_environments
from bimact.sweep.sweep_file import read_sweep
from bimact.sweep.trial import Outcome, has_checkpoint, training_command

TWO_LRS = {"lr": {"values": [1.0e-5, 1.0e-4]}}
HALVING = {"type": "hyperband", "min_iter": 1, "eta": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", [9, 12, 7, 10])


@pytest.fixture(autouse=True)
def watched_closely(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sweep_run, "_POLL", 0.02)
    yield


def states(folder: Path) -> list[TrialState]:
    return [trial.state for trial in trials_in(folder)]


def test_a_trial_is_a_training_with_its_own_folder(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = {"lr": LR, "encoder.freeze": {"values": [True, False]}, "encoder.image_size": {"value": [8, 8]}}
    plan = make_plan(tmp_path, dataset, {"num_epochs": "3"}, trials=2, parameters=parameters, command="bimact sweep x")
    run_sweep(plan)
    trials = trials_in(plan.folder)
    assert [trial.number for trial in trials] == [0, 1]
    for trial in trials:
        run = plan.folder / f"trial-000{trial.number}"
        options = json.loads((run / "config.yaml").read_text())
        assert options == {
            "config": str(plan.config),
            "output_dir": str(run),
            "dataset_dir": str(dataset),
            "num_epochs": "3",
            "lr": str(trial.params["lr"]),
            "encoder.freeze": str(trial.params["encoder.freeze"]).lower(),
            "encoder.image_size": "[8,8]",
        }
        assert (run / "train.log").read_text() == "done\n"
        floor = abs(math.log10(trial.params["lr"]) + 5)
        assert trial.value == pytest.approx(floor + 1 / 3), "the best of the run"
        assert trial.intermediate_values == pytest.approx({1: floor + 1, 2: floor + 1 / 2, 3: floor + 1 / 3})
    output = capsys.readouterr().out
    assert "\x1b" not in output and len([line for line in output.splitlines() if line.startswith("trial ")]) == 2
    best = min(trials, key=lambda trial: trial.value or 0)
    assert f"Best: trial {best.number} with val_loss {best.value:.4g}" in output
    assert f"Its run: {plan.folder}/trial-000{best.number}" in output
    assert f"Report: {plan.folder}/report.html" in output and (plan.folder / "report.html").is_file()
    command = shlex.split(output.splitlines()[-1])
    assert command[:2] == ["python", str(TRAINING)] and f"--lr={best.params['lr']}" in command
    assert command[command.index("--output_dir") + 1] == "runs/s-best"


def test_the_goal_may_be_any_logged_metric(tmp_path: Path, dataset: Path) -> None:
    metric = {"name": "total_loss", "goal": "maximize"}
    plan = make_plan(tmp_path, dataset, {"val_split": "0"}, method="grid", parameters=TWO_LRS, metric=metric)
    run_sweep(plan)
    assert sorted(trial.value or 0 for trial in trials_in(plan.folder)) == pytest.approx([0, 1])
    assert "minimize" not in (plan.folder / "report.html").read_text()


def test_a_failed_trial_is_shown_and_the_sweep_goes_on(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = {"lr": {"value": 1.0e-5}, "kl_weight": {"values": [1, 50, 10]}}
    plan = make_plan(tmp_path, dataset, method="grid", parameters=parameters)
    run_sweep(plan)
    failed = [trial for trial in trials_in(plan.folder) if trial.state == TrialState.FAIL]
    assert [trial.params["kl_weight"] for trial in failed] == [50]
    assert states(plan.folder).count(TrialState.COMPLETE) == 2
    output = capsys.readouterr().out
    log = plan.folder / f"trial-000{failed[0].number}" / "train.log"
    assert f"trial {failed[0].number} · failed: CUDA out of memory ({log}) · kl_weight=50" in output
    assert "3 trials: 2 finished, 1 failed" in output
    assert log.read_text() == "a line before\nCUDA out of memory\n"


def test_no_trial_at_all(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICK_LOGS", "another_loss")
    plan = make_plan(tmp_path, dataset, trials=1)
    with pytest.raises(UserError, match="no trial has logged val_loss; see .*/s/trial-"):
        run_sweep(plan)
    assert trials_in(plan.folder)[0].user_attrs["error"] == "it has logged no val_loss"
    assert "No trial has finished yet" in (plan.folder / "report.html").read_text()


def test_a_killed_training_says_by_what() -> None:
    assert Outcome(-9, "step 3").reason == "it was ended by SIGKILL (out of memory?), its last line: step 3"
    assert Outcome(-11, "").reason == "it was ended by SIGSEGV"
    assert Outcome(1, "").reason == "it ended with status 1 and printed nothing"


def good_then_bad(folder: Path, dataset: Path, **changes: Any) -> SweepPlan:
    """A sweep whose seed draws the better of two values first."""
    settings = {"num_epochs": "80", "seed": "2"}
    return make_plan(folder, dataset, settings, trials=2, parameters=TWO_LRS, early_terminate=HALVING, **changes)


@pytest.mark.slow
def test_a_bad_trial_is_ended_early(tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = good_then_bad(tmp_path, dataset)
    run_sweep(plan)
    good, bad = trials_in(plan.folder)
    assert (good.params["lr"], bad.params["lr"]) == (1e-5, 1e-4)
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert len(good.intermediate_values) == 80
    assert len(read_metrics(plan.folder / "trial-0001" / "metrics.jsonl")) < 2 * 60, "it went on almost to its end"
    assert has_checkpoint(plan.folder / "trial-0001"), "it could not save itself"
    assert "trial 1 · pruned at val_loss" in capsys.readouterr().out


@pytest.mark.slow
def test_without_pruning_it_comes_to_its_end(tmp_path: Path, dataset: Path) -> None:
    plan = good_then_bad(tmp_path, dataset, pruning=False)
    run_sweep(plan)
    assert states(plan.folder) == [TrialState.COMPLETE] * 2


@pytest.mark.slow
def test_a_grid_has_each_combination_once(tmp_path: Path, dataset: Path) -> None:
    lrs, sizes, layers = [1.0e-5, 2.0e-5], [4, 8], [1, 2]
    parameters = {"lr": {"values": lrs}, "batch_size": {"values": sizes}, "num_encoder_layers": {"min": 1, "max": 2}}
    plan = make_plan(tmp_path, dataset, {"num_epochs": "1"}, method="grid", parameters=parameters, trials=3, jobs=2)
    run_sweep(plan)
    assert len(trials_in(plan.folder)) == 3
    rest = make_plan(tmp_path, dataset, {"num_epochs": "1"}, method="grid", parameters=parameters, trials=100, jobs=2)
    assert rest.total == 8
    run_sweep(rest)
    done = [tuple(trial.params[name] for name in parameters) for trial in trials_in(plan.folder)]
    assert sorted(done) == sorted(itertools.product(lrs, sizes, layers))


@pytest.mark.slow
def test_the_same_command_goes_on_to_more_trials(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_sweep(make_plan(tmp_path, dataset, trials=2))
    first = [trial.params for trial in trials_in(tmp_path / "s")]
    run_sweep(make_plan(tmp_path, dataset, trials=3))
    assert [trial.params for trial in trials_in(tmp_path / "s")][:2] == first
    assert len(trials_in(tmp_path / "s")) == 3
    capsys.readouterr()
    run_sweep(make_plan(tmp_path, dataset, trials=3))
    output = capsys.readouterr().out
    assert "3 trials by random, 3 of them done" in output and "Best: trial" in output
    assert len(trials_in(tmp_path / "s")) == 3


@pytest.mark.slow
def test_draws_are_the_same_each_time(tmp_path: Path, dataset: Path) -> None:
    for name in ("a", "b"):
        run_sweep(make_plan(tmp_path / name, dataset, {"num_epochs": "1"}, method="bayes", trials=2))
    drawn = [[trial.params for trial in trials_in(tmp_path / name / "s")] for name in ("a", "b")]
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]


def test_when_the_time_is_up_trials_are_saved_and_go_on_later(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUICK_EPOCH", "0.1")
    settings = {"num_epochs": "20"}
    run_sweep(make_plan(tmp_path, dataset, settings, trials=1, timeout=0.5 / 60, command="bimact sweep x"))
    output = capsys.readouterr().out
    assert "the time is up: 1 running trial will be saved" in output and "interrupted, will continue" in output
    assert output.splitlines()[-1] == "To continue: bimact sweep x"
    (waiting,) = trials_in(tmp_path / "s")
    assert waiting.state == TrialState.WAITING
    monkeypatch.setenv("QUICK_EPOCH", "0.001")
    run_sweep(make_plan(tmp_path, dataset, settings, trials=1))
    (trial,) = trials_in(tmp_path / "s")
    assert (trial.state, trial.params, len(trial.intermediate_values)) == (TrialState.COMPLETE, waiting.params, 20)
    assert trial.user_attrs["folder"] == "trial-0000", "it did not go on in its folder"
    assert [record["epoch"] for record in read_metrics(tmp_path / "s" / "trial-0000" / "metrics.jsonl")][::2] == list(
        range(1, 21)
    )


# Where trials run ------------------------------------------------------------------------------------


def test_trials_at_once_have_a_gpu_each(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    monkeypatch.setenv("QUICK_EPOCH", "0.05")
    plan = make_plan(tmp_path, dataset, trials=4, jobs=2)
    run_sweep(plan)
    trials = trials_in(plan.folder)
    gpus = [
        json.loads((plan.folder / f"trial-000{trial.number}" / "environment.json").read_text())["CUDA_VISIBLE_DEVICES"]
        for trial in trials
    ]
    assert sorted(gpus[:2]) == ["3", "GPU-abc"] and set(gpus) == {"3", "GPU-abc"}
    first, second = trials[:2]
    assert second.datetime_start and first.datetime_complete and second.datetime_start < first.datetime_complete


def test_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert slot_environments(1, "auto") == [{}]
    gpus = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert slot_environments(2, "cuda") == gpus
    assert slot_environments(3, "auto") == [*gpus, gpus[0]]
    assert slot_environments(2, "cuda:1") == slot_environments(2, "cpu") == [{}, {}]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert slot_environments(2, "auto") == [{}, {}]
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(sweep_run, "usable_cores", lambda: 5)
    assert slot_environments(2, "cpu") == [{"OMP_NUM_THREADS": "2"}] * 2


# Told before the first trial -------------------------------------------------------------------------


def test_what_cannot_work_is_told_at_once(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(settings: dict[str, str] | None = None, **changes: Any) -> str:
        with pytest.raises(UserError) as error:
            make_plan(tmp_path, dataset, settings, **{"trials": 1, **changes})
        return str(error.value)

    assert "which does not exist with val_split 0" in fails({"val_split": "0"})
    split = {"lr": LR, "val_split": {"values": [0, 0.1]}}
    assert "which does not exist with val_split 0" in fails(parameters=split)
    assert "random never ends: pass a number of trials, such as --trials 20" in fails(trials=None)
    assert "--trials is 0, it has to be at least 1" in fails(trials=0)
    assert "--jobs is 0" in fails(jobs=0)
    assert "'lr' is a parameter of" in fails({"lr": "1e-5"})
    assert "no setting named 'num_epoch'; did you mean 'num_epochs'?" in fails({"num_epoch": "3"})
    assert "dataset not found" in fails({"dataset_dir": str(tmp_path / "none")})
    one = write_dataset(tmp_path / "one", [9])
    assert "has a single episode, so none can be held out" in fails({"dataset_dir": str(one)})
    monkeypatch.delenv("ACT_DATASET_DIR", raising=False)
    with pytest.raises(UserError, match="a sweep needs --dataset_dir"):
        plan_sweep(read_sweep(tmp_path / "sweep.yaml"), tmp_path / "config.yaml", {}, trials=1)
    assert not (tmp_path / "s").exists()


def test_how_many_trials(tmp_path: Path, dataset: Path) -> None:
    assert make_plan(tmp_path, dataset, run_cap=5).total == 5
    assert make_plan(tmp_path, dataset, run_cap=5, trials=3).total == 3
    assert make_plan(tmp_path, dataset, method="grid", parameters=TWO_LRS).total == 2
    assert make_plan(tmp_path, dataset, method="grid", parameters=TWO_LRS, trials=1).total == 1


def test_programs(tmp_path: Path, dataset: Path) -> None:
    plan = make_plan(tmp_path, dataset, trials=1, program="no/such.py")
    command = training_command(plan.program, plan.config, Path("r"), {"lr": "1e-05"}, resume=True)
    start = [sys.executable, "-m", "bimact", "train", "--config", str(plan.config)]
    assert command == [*start, "--output_dir", "r", "--resume_from", "r", "--lr=1e-05"]
    root = Path(__file__).parents[2]
    assert make_plan(tmp_path, dataset, trials=1, program="scripts/train_act.py").program in (
        root / "scripts" / "train_act.py",
        Path("scripts/train_act.py"),
    )
