"""Going on with a run under other settings, with other data, elsewhere: said, or refused, and nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset
from omegaconf import OmegaConf
from processes import in_child

from bimact.cli import main
from bimact.config import Config, save_config
from bimact.errors import UserError
from bimact.evaluation.offline import evaluate_offline
from bimact.evaluation.report import write_report
from bimact.files import lock_file
from bimact.policy.loading import load_run
from bimact.run_directory import Run, read_metrics
from bimact.training.act_trainer import ActTrainer, train_run
from bimact.training.prepare import prepare_run
from bimact.training.resume import open_checkpoint, run_record


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Path:
    """A finished run of two epochs."""
    train_run(prepare_run(config_of(dataset, tmp_path / "run")))
    return tmp_path / "run"


def config_of(dataset: Path, run: Path, **changes: Any) -> Config:
    return tiny_config(dataset_dir=str(dataset), output_dir=str(run), **changes)


def test_another_network_is_refused_even_with_override(dataset: Path, run: Path) -> None:
    for override in (False, True):
        with pytest.raises(UserError, match=r"another network .*hidden_dim: 16 → 32.*or begin a new run"):
            prepare_run(config_of(dataset, run, hidden_dim=32), run, override_config=override)


def test_what_changes_learning_needs_override(
    dataset: Path, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (run / "config.yaml").read_bytes()
    changed = config_of(dataset, run, lr=5e-4, dropout=0.3, num_epochs=3)
    with pytest.raises(UserError, match=r"dropout: 0.1 → 0.3; lr: 0.001 → 0.0005\).*--override_config"):
        prepare_run(changed, run)
    assert (run / "config.yaml").read_bytes() == before
    trainer = train_run(prepare_run(changed, run, override_config=True))
    assert "Changed since: lr: 0.001 → 0.0005\n" in capsys.readouterr().out
    assert trainer.optimizer.param_groups[0]["lr"] == 5e-4
    assert (OmegaConf.load(run / "config.yaml").lr, trainer.step) == (5e-4, 24)


def test_what_changes_nothing_is_free_and_said(dataset: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_run(prepare_run(config_of(dataset, run, num_epochs=3, log_frequency=4), run))
    printed = capsys.readouterr().out
    assert "Changed since: num_epochs: 2 → 3" in printed and "Changed since: log_frequency: 2 → 4" in printed
    with pytest.raises(UserError, match="num_epochs: 3 → 4.*--override_config"):  # earlier rates would be others
        prepare_run(config_of(dataset, run, num_epochs=4, lr_schedule="cosine"), run)


def test_what_is_as_it_was_is_not_said(dataset: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor what the run has settled for a setting that asks for the best choice."""
    prepare_run(config_of(dataset, run), run)
    assert "Changed since" not in capsys.readouterr().out


def test_other_demonstrations_need_override(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_dataset(tmp_path / "other", [9, 12, 7, 10, 8])
    with pytest.raises(UserError, match="is not the dataset that .* was trained on.*--override_config"):
        prepare_run(config_of(other, run), run)
    train_run(prepare_run(config_of(other, run, num_epochs=3), run, override_config=True))
    assert "Changed since: the demonstrations" in capsys.readouterr().out


def test_moved_demonstrations_are_the_same(dataset: Path, run: Path, tmp_path: Path) -> None:
    dataset.rename(tmp_path / "moved")
    assert prepare_run(config_of(tmp_path / "moved", run, num_epochs=3), run).step == 16


def test_statistics_of_the_run_stay(run: Path, tmp_path: Path) -> None:
    """Actions in the robot's units keep their meaning if training goes on with other data."""
    other = write_dataset(tmp_path / "other", [9, 12, 7, 10, 8])
    np.save(other / "actions.npy", 100 + np.load(other / "actions.npy"))
    trainer = ActTrainer(prepare_run(config_of(other, run), run, override_config=True))
    saved = torch.load(run / "checkpoint" / "act-train-2.pth")
    assert torch.equal(trainer.policy.action_normalizer.mean, saved["action_normalizer.mean"])


def test_a_fork_takes_the_metrics_along_and_leaves_the_run_alone(dataset: Path, run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train_run(prepare_run(config_of(dataset, tmp_path / "fork", num_epochs=3), run / "checkpoint" / "act-train-1.pth"))
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    steps = [record["step"] for record in read_metrics(tmp_path / "fork" / "metrics.jsonl") if "lr" in record]
    assert steps == list(range(2, 25, 2))
    with pytest.raises(UserError, match="holds a run already"):
        prepare_run(config_of(dataset, tmp_path / "fork"), run)


def test_weights_alone_go_on_after_their_epoch(
    dataset: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoint" / "act-train-1.pth"
    path.with_suffix(".state").unlink()
    trainer = ActTrainer(prepare_run(config_of(dataset, run), path))
    assert (trainer.step, trainer.order.epoch, trainer.total_steps) == (8, 1, 16)
    assert "only its weights are taken, and training resumes after epoch 1 with a new optimizer" in (
        capsys.readouterr().out
    )
    weights = torch.load(path)
    torch.save(weights, tmp_path / "alone.pth")
    trainer = ActTrainer(prepare_run(config_of(dataset, tmp_path / "new"), tmp_path / "alone.pth"))
    assert trainer.step == 0
    assert all(torch.equal(value, weights[name]) for name, value in trainer.policy.state_dict().items())


def test_metrics_of_a_run_that_begins_anew_are_kept(dataset: Path, run: Path) -> None:
    metrics = (run / "metrics.jsonl").read_bytes()
    best = run / "checkpoint" / "act-train-best.pth"
    best.with_suffix(".state").unlink()
    train_run(prepare_run(config_of(dataset, run, num_epochs=1), best))
    assert (run / "metrics.before-1.jsonl").read_bytes() == metrics
    assert next(record["step"] for record in read_metrics(run / "metrics.jsonl") if "lr" in record) == 2


def test_an_encoder_that_thaws_gets_a_new_optimizer(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = config_of(dataset, tmp_path / "run", encoder={"freeze": True})
    train_run(prepare_run(frozen))
    thawed = config_of(dataset, tmp_path / "run", num_epochs=3)
    prepared = prepare_run(thawed, tmp_path / "run", override_config=True)
    before = prepared.policy.image_encoder.stages[0].conv1.weight.clone()
    trainer = train_run(prepared)
    output = capsys.readouterr().out
    assert "Other parameters are trained than before: the optimizer starts anew" in output
    assert "Changed since: feature_cache: True → False" in output
    assert not torch.equal(before, trainer.policy.image_encoder.stages[0].conv1.weight)


def test_two_processes_do_not_train_into_one_folder(dataset: Path, run: Path) -> None:
    def hold() -> None:
        lock = lock_file(run / ".lock")
        assert lock is not None
        with lock:
            (run / "held").touch()
            time.sleep(60)

    child = in_child(hold)
    while not (run / "held").exists():
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "the child could not take the lock"
        time.sleep(0.01)
    try:
        with pytest.raises(UserError, match="another process is training into"):
            train_run(prepare_run(config_of(dataset, run, num_epochs=3), run))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    train_run(prepare_run(config_of(dataset, run, num_epochs=3), run))


def test_a_finished_run_stays_as_it_is(dataset: Path, run: Path) -> None:
    before = torch.load(run / "checkpoint" / "act-train-last.pth")
    trainer = train_run(prepare_run(config_of(dataset, run), run))
    assert trainer.step == trainer.total_steps == 16
    assert all(torch.equal(value, before[name]) for name, value in trainer.policy.state_dict().items())


def test_where_checkpoints_belong(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Run.of(run).path == run == Run.of(run / "checkpoint" / "act-train-1.pth").path
    assert Run.of(run / "checkpoint").path == run == Run.of(f"{run}/checkpoint/").path
    for path in (run, run / "checkpoint"):
        assert open_checkpoint(path).path == run / "checkpoint" / "act-train-last.pth"
    monkeypatch.setenv("HOME", str(run.parent))
    assert open_checkpoint("~/run/checkpoint/act-train-1.pth").run.path == run
    monkeypatch.chdir(run / "checkpoint")
    assert Run.of(".").path == run
    with pytest.raises(UserError, match="checkpoint not found: .*act-train-7.pth"):
        open_checkpoint(run / "checkpoint" / "act-train-7.pth")


def test_a_run_knows_where_its_demonstrations_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "cups").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run = Run(Path("runs/x"))
    run.path.mkdir(parents=True)
    record = run_record(tiny_config(dataset_dir="data/cups"), run)
    assert (record.dataset_dir, record.dataset_dir_relative) == (f"{tmp_path}/data/cups", "../../data/cups")
    save_config(record, run.config_path)
    assert run.dataset() == (f"{tmp_path}/data/cups", None)
    for elsewhere in ("lerobot/aloha_sim_insertion_human", "hf://datasets/a/b", "s3://bucket/cups", None):
        record = run_record(tiny_config(dataset_dir=elsewhere, dataset_dir_relative="../old"), run)
        assert (record.dataset_dir, record.dataset_dir_relative) == (elsewhere, None)
        save_config(record, run.config_path)
        assert Run(run.path).dataset() == (elsewhere, None)


def test_a_moved_project_finds_its_demonstrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    write_dataset(old / "data" / "cups", [9, 12, 7, 10])
    monkeypatch.chdir(old)
    train_run(prepare_run(config_of(Path("data/cups"), Path("runs/x"))))
    new.parent.mkdir()
    old.rename(new)
    monkeypatch.chdir(tmp_path)
    loaded = load_run("elsewhere/new/runs/x/checkpoint", "last", "cpu")
    assert loaded.run.dataset()[0] == str(new / "data" / "cups")
    assert evaluate_offline(loaded)["dataset"] == str(new / "data" / "cups")
    assert "demonstrations" in write_report("elsewhere/new/runs/x").read_text()


def test_a_moved_project_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_dataset(old / "data", [9, 12, 7, 10])
    monkeypatch.chdir(old)
    train_run(prepare_run(config_of(Path("data"), Path("run"))))
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    for moved in (False, True):  # from another folder, then moved
        if moved:
            old.rename(new)
        run = new / "run" if moved else old / "run"
        with pytest.raises(SystemExit) as end:
            main(["train", "--resume_from", str(run / "checkpoint"), "--num_epochs", "3"])
        printed = capfd.readouterr().out
        assert end.value.code == 0 and f"Output: {run}\n" in printed
        assert (f"{old}/data does not exist: using {new}/data, which" in printed) == moved
        assert ("Changed since: dataset_dir:" in printed) == moved
        saved = OmegaConf.load(run / "config.yaml")
        assert (saved.dataset_dir, saved.dataset_dir_relative) == (str(run.parent / "data"), "../data")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}/file/run: {tmp_path}/file is not a folder"):
        prepare_run(config_of(tmp_path / "no dataset", tmp_path / "file" / "run"), tmp_path / "no checkpoint")
