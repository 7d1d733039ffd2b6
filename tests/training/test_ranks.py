"""Several processes: the losses of one, each sample once, one voice, and no hang when one of them dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LONG, tiny_config
from guide_files import write_dataset
from warm_python import WarmPython

from bimact.config import save_config
from bimact.run_directory import read_metrics
from bimact.training.optimizer import make_optimizer

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torchrun", "--standalone", "--nproc_per_node=2"]
ACCELERATE = ["accelerate", "launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
# Started anew: for signals to its children, which `warm` forks elsewhere, and for compiling, which forks cannot.
COLD_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture
def folder(tmp_path: Path, warm: WarmPython, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset, and a config without what depends on the division of a batch: dropout and batch statistics."""
    write_dataset(tmp_path / "dataset", [9, 12, 7, 10])
    config = tiny_config(
        dataset_dir=str(tmp_path / "dataset"),
        dropout=0.0,
        mixed_precision="no",
        log_frequency=1,
        encoder={"name": "pri3d", "fuse": "mean"},
    )
    save_config(config, tmp_path / "config.yaml")
    for name, value in warm.environment.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def start(folder: Path, launcher: list[str], name: str, *settings: str) -> subprocess.Popen[str]:
    script = ["scripts/train_act.py", "--config", folder / "config.yaml", "--output_dir", folder / name, *settings]
    command = [*launcher, *map(str, script)]
    environment = dict(os.environ)
    if launcher is COLD_TORCHRUN:
        del environment["PYTHON_EXEC"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def train(folder: Path, launcher: list[str], name: str, *settings: str) -> str:
    process = start(folder, launcher, name, *settings)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def losses(run: Path) -> list[Any]:
    names = ("step", "epoch", "total_loss", "action_loss", "kl_loss", "val_loss", "val_loss/dataset", "val_loss/other")
    return [[record.get(name) for name in names] for record in read_metrics(run / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        (
            TORCHRUN,
            "--augment --augmentation.degrees 5 --state_noise .1 --state_dropout .2 --ema_decay .9 --max_delay 2 "
            "--recombine_arms .7",
        ),
        (ACCELERATE, ""),
        (ACCELERATE, "--augment --encoder.freeze true --feature_cache true --feature_views 2"),
    ],
    ids=["torchrun, augmented, averaged, weighted, two datasets", "accelerate launch", "augmented features"],
)
def test_two_processes_with_half_the_batch_are_one_with_the_whole(
    folder: Path, launcher: list[str], settings: str
) -> None:
    """31 training samples in batches of 6: the last step divides one sample over two processes."""
    given = settings.split()
    mixed = launcher is TORCHRUN
    if mixed:
        (folder / "weights.csv").write_text("0,3\n1,0.5\n")
        other = write_dataset(folder / "other", [8, 11, 6], seed=1)
        weighted = f"{{path: {folder}/dataset, weight: 2, sample_weights: {folder}/weights.csv, task: pour}}"
        given += ["--dataset_dir", "null", "--datasets", f"[{weighted}, {{path: {other}, task: stir}}]"]
        given += ["--task_conditioning", "id"]
    train(folder, ["python"], "one", "--batch_size", "6", *given)
    output = train(folder, launcher, "two", "--batch_size", "3", *given)
    for line in ("Building ACT policy...", "Epoch 1/2, Step 1:", "Checkpoint saved:"):
        assert output.count(line) == (2 if line.startswith("Check") else 1)
    assert "--feature_views" not in given or "2 augmented views of each image are encoded once" in output
    one, two = losses(folder / "one"), losses(folder / "two")
    assert len(one) == len(two) == (20 if mixed else 14)
    tolerance = 1e-3 if mixed else 2e-4  # more steps, and shares that round otherwise
    for expected, found in zip(one, two):
        assert found == [None if value is None else pytest.approx(value, rel=tolerance) for value in expected]


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="compiles in two processes: make test-long")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_two_processes_compile(folder: Path) -> None:
    settings = ("--batch_size", "3", "--num_epochs", "1", "--cameras", "[]")  # images take long to compile
    train(folder, TORCHRUN, "as it is", *settings)
    train(folder, COLD_TORCHRUN, "compiled", *settings, "--compile", "true")
    for expected, found in zip(losses(folder / "as it is"), losses(folder / "compiled")):
        assert found == [None if value is None else pytest.approx(value, rel=1e-3) for value in expected]


@pytest.mark.slow
def test_accumulated_batches_are_one_batch(folder: Path) -> None:
    train(folder, ["python"], "one", "--batch_size", "6", "--num_epochs", "1")
    train(folder, ["python"], "parts", "--batch_size", "2", "--gradient_accumulation_steps", "3", "--num_epochs=1")
    for expected, found in zip(losses(folder / "one"), losses(folder / "parts")):
        assert found == [None if value is None else pytest.approx(value, rel=2e-4) for value in expected]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_it_goes_on(folder: Path) -> None:
    """Killed in two processes; gone on with in two (exactly) and in one (said that it differs)."""
    settings = ("--batch_size", "3", "--num_epochs", "4", "--dropout", "0.2", "--encoder.name", "conv")
    process = start(folder, COLD_TORCHRUN, "killed", *settings)
    for line in process.stdout or ():
        if "act-train-2.pth" in line:
            break
    workers = [int(pid) for pid in children_of(process.pid)]
    assert len(workers) == 2
    began = time.monotonic()
    os.kill(workers[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert "act-train-4.pth" not in output

    train(folder, TORCHRUN, "whole", *settings)
    output = train(folder, ["python"], "alone", *settings, "--resume_from", str(folder / "killed"))
    assert "3 samples in 1 process, it took 6 in 2 processes: each epoch still has the same samples" in output
    train(folder, TORCHRUN, "killed", *settings, "--resume_from", str(folder / "killed"))
    first, second = (torch.load(folder / name / "checkpoint" / "act-train-4.pth") for name in ("whole", "killed"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert losses(folder / "whole") == losses(folder / "killed")


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def command_of_rank(rank: int, run: Path) -> int:
    """The process of `warm`'s command for a rank, which passes signals on."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = os.fsencode(run) in (process / "cmdline").read_bytes().split(b"\0")
            if ours and f"LOCAL_RANK={rank}".encode() in (process / "environ").read_bytes().split(b"\0"):
                return int(process.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_a_fault_that_the_main_process_finds_is_told_without_a_traceback(folder: Path) -> None:
    process = start(folder, TORCHRUN, "run", "--dataset_dir", str(folder / "datasets"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"dataset not found: {folder / 'datasets'}; near it there is {folder / 'dataset'}" in output
    assert "[rank1]: Traceback" not in output and "[rank0]: Traceback" not in output


@pytest.mark.slow
def test_a_fault_of_the_output_ends_all_processes(folder: Path) -> None:
    (folder / "file").touch()
    process = start(folder, TORCHRUN, "file/run", "--dataset_dir", str(folder / "no dataset"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "[rank1]: Traceback" not in output and "[rank0]: Traceback" not in output
    assert f"train: cannot write to {folder}/file/run: {folder}/file is not a folder" in output


@pytest.mark.slow
def test_request_to_stop_is_agreed_on(folder: Path) -> None:
    process = start(folder, TORCHRUN, "run", "--batch_size", "3", "--num_epochs", "2000")
    for line in process.stdout or ():
        if "Epoch 3/" in line:
            break
    os.kill(command_of_rank(1, folder / "run"), signal.SIGTERM)  # one process alone is asked
    output, _ = process.communicate(timeout=60)
    assert "To go on: --resume_from" in output and output.count("interrupted") == 2
    stopped = int(output.partition("Interrupted at step ")[2].partition(".")[0])
    state = torch.load(folder / "run" / "checkpoint" / "act-train-last.state")
    assert state["step"] == stopped and state["order"]["ranks"] == 2


@pytest.mark.slow
def test_one_process_converts_and_the_others_wait(folder: Path) -> None:
    """The pickled form has to be converted before it can be read."""
    import numpy as np

    rows = np.load(folder / "dataset" / "observations.npy")
    pickled = np.array([{name: row[name] for name in rows.dtype.names} for row in rows], dtype=object)
    np.save(folder / "dataset" / "observations.npy", pickled, allow_pickle=True)
    output = train(folder, TORCHRUN, "run", "--num_steps", "2")
    assert "waiting for it" not in output  # they met no half-done conversion
    assert len(list((folder / "dataset" / ".bimact_cache").glob("arrays-*"))) == 1


@pytest.mark.parametrize(("scale", "factor"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_learning_rates_grow_with_the_batch(scale: str, factor: float) -> None:
    from bimact.policy.act import ActPolicy

    config = tiny_config(scale_lr=scale, lr=1e-3, lr_backbone=1e-4, cameras=["a"], state_dim=3, action_dim=3)
    groups = make_optimizer(ActPolicy(config), config, batches_per_step=4).param_groups
    assert [group["initial_lr"] for group in groups] == pytest.approx([factor * 1e-3, factor * 1e-4])


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from bimact.errors import UserError
    from bimact.training.device import make_accelerator

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--device cuda:1 is one GPU, but several processes train"):
        make_accelerator(tiny_config(device="cuda:1"))
