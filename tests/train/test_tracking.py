"""Where figures go: the metrics file, TensorBoard, and a real W&B run in offline mode."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import tiny_config

from bimact.train.act_trainer import ActTrainer
from bimact.train.tracking import read_metrics


def test_metrics_file_survives_a_line_that_was_cut_short(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


@pytest.mark.slow
def test_wandb_offline_and_tensorboard(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "run"
    config = tiny_config(
        dataset_dir=str(dataset),
        output_dir=str(run),
        num_epochs=1,
        tensorboard=True,
        wandb_project="act-training",
        wandb_name="my-experiment",
        wandb_tags=["clip", "baseline"],
    )
    ActTrainer(config).fit()
    assert "W&B: not logged in, so the run is kept offline" in capsys.readouterr().out
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert list((run / "tensorboard").rglob("events.out.tfevents.*"))
