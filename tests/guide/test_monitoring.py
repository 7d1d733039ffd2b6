"""The guide's way to watch a training with W&B, by somebody who has not logged in: the run is whole on disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_config
from guide_files import write_dataset
from wandb_files import WandbFile, read_wandb_files

from bimact.config import save_config
from bimact.run_directory import METRICS, read_metrics

ROOT = Path(__file__).parents[2]
FLAGS = ["--wandb_project", "bimanual-manipulation"]
FLAGS += ["--wandb_name", "act-clip-baseline", "--wandb_tags", "clip,baseline,rtx5090"]
STEPS_PER_EPOCH = 8


def train(folder: Path, *more: str) -> str:
    """Run the training script in a terminal where nobody has logged in to W&B; gives what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(folder / "home"), "NETRC": str(folder / "netrc")}
    arguments = ["--config", str(folder / "config.yaml"), "--dataset_dir", str(folder / "dataset")]
    arguments += ["--output_dir", str(folder / "exp1"), "--device", "cpu", *FLAGS, *more]
    result = subprocess.run(
        [sys.executable, "scripts/train_act.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("monitoring")
    write_dataset(folder / "dataset", [9, 12, 11, 10])
    save_config(tiny_config(num_epochs=2), folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    return train(folder, "--wandb_checkpoints", "best")


@pytest.fixture
def content(folder: Path, printed: str) -> WandbFile:
    return read_wandb_files(folder / "exp1")[0]


@pytest.mark.slow
def test_the_run_is_kept_offline_under_its_project_name_and_tags(
    folder: Path, printed: str, content: WandbFile
) -> None:
    (line,) = re.findall(r"^W&B: .*", printed, flags=re.MULTILINE)
    assert "so the run is kept offline" in line and f"`wandb sync {content.folder}`" in line
    assert content.folder.parent == folder / "exp1" / "wandb"
    assert (content.project, content.name) == ("bimanual-manipulation", "act-clip-baseline")
    assert sorted(content.tags) == ["baseline", "clip", "rtx5090"]
    assert content.config["chunk_size"] == 5 and content.exit_code == 0


@pytest.mark.slow
def test_all_that_the_guide_lists_is_logged(folder: Path, content: WandbFile) -> None:
    records = read_metrics(folder / "exp1" / METRICS)
    for name in ("total_loss", "action_loss", "kl_loss", "lr", "epoch", "step", "time_per_batch", "time_per_epoch"):
        assert content.values(name) == {record["step"]: record[name] for record in records if name in record}, name
        assert content.values(name), name
    assert content.values("val_loss").keys() == {STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH}
    assert content.summary["val_loss"] == min(content.values("val_loss").values())
    assert any(name.startswith("cpu") or ".cpu." in name for name in content.system_metrics)  # GPUs likewise
    assert content.values("predictions.path")
    for artifact in content.artifacts:
        assert artifact.type == "model" and "best" in artifact.aliases
        assert {entry.path for entry in artifact.manifest.contents} >= {"config.yaml"}
    assert content.artifacts
    assert "Epoch 2/2, Step 16: loss=" in content.printed


@pytest.mark.slow
def test_a_resumed_training_goes_on_with_the_same_wandb_run(folder: Path, content: WandbFile) -> None:
    train(folder, "--resume_from", str(folder / "exp1" / "checkpoint" / "act-train-1.pth"))
    before, after = read_wandb_files(folder / "exp1")
    assert (after.id, after.resumed) == (before.id, True)
    repeated = {step: loss for step, loss in before.values("total_loss").items() if step > STEPS_PER_EPOCH}
    assert after.values("total_loss") == repeated
