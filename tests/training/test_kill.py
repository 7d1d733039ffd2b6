"""A run that is killed at any moment and gone on with ends as one that never was: to the last bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LONG, tiny_config
from guide_files import write_dataset
from processes import in_child
from warm_python import WarmPython

from bimact.config import Config, save_config
from bimact.run_directory import read_metrics
from bimact.training.act_trainer import train_run
from bimact.training.prepare import prepare_run
from bimact.training.resume import open_checkpoint

ROOT = Path(__file__).parents[2]
TIMELESS = ("epoch", "step", "total_loss", "action_loss", "kl_loss", "kl_divergence", "lr", "val_loss")


def config_of(folder: Path, name: str, **changes: Any) -> Config:
    settings = {
        "num_epochs": 4,
        "dropout": 0.2,
        "lr_schedule": "cosine",
        "warmup_steps": 3,
        "log_frequency": 3,  # does not divide the 8 steps of an epoch: losses wait to be logged when it is saved
        "mixed_precision": "no",
    }
    return tiny_config(dataset_dir=str(folder / "dataset"), output_dir=str(folder / name), **{**settings, **changes})


def go_on(config: Config) -> None:
    """Begin the run, or go on from its last checkpoint."""
    run = Path(config.output_dir or "")
    has_checkpoint = any((run / "checkpoint").glob("act-train-[0-9]*.pth"))
    if (run / "config.yaml").exists() and not has_checkpoint:
        (run / "config.yaml").unlink()  # nothing to go on from yet
        for left in (run / "checkpoint").glob("*"):
            left.unlink()
        (run / "checkpoint").rmdir() if (run / "checkpoint").exists() else None
    train_run(prepare_run(config, run if has_checkpoint else None))


def assert_nothing_is_broken(run: Path) -> None:
    """Every file under a checkpoint's name can be loaded, and the last one has its training state."""
    for path in (run / "checkpoint").glob("act-train-*.pth"):
        assert torch.load(path)
    if any((run / "checkpoint").glob("act-train-[0-9]*.pth")):
        assert open_checkpoint(run).state is not None


def assert_same_run(one: Path, two: Path, epochs: int) -> None:
    for name in (str(epochs), "last", "best"):
        first, second = (torch.load(run / "checkpoint" / f"act-train-{name}.pth") for run in (one, two))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name
    logged = [
        [{key: record.get(key) for key in TIMELESS} for record in read_metrics(run / "metrics.jsonl")]
        for run in (one, two)
    ]
    assert logged[0] == logged[1]
    assert not list((two / "checkpoint").glob(".*")), "what kills have left is cleared away"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "dataset", [9, 12, 7, 10])
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "workers"), [("no", 0), ("bf16", 0), ("no", 1)])
def test_killed_at_random_moments(folder: Path, precision: str, workers: int) -> None:
    changes = {"mixed_precision": precision, "num_workers": workers, "num_epochs": 10 if LONG else 5}
    began = time.monotonic()
    assert os.waitpid(in_child(lambda: go_on(config_of(folder, "whole", **changes))), 0)[1] == 0
    duration = time.monotonic() - began
    for attempt in range(5):
        again = config_of(folder, f"killed-{attempt}", **changes)
        kills = kill_and_go_on(again, duration, random.Random(f"{precision}{workers}"))
        assert_same_run(folder / "whole", folder / f"killed-{attempt}", int(changes["num_epochs"]))
        if kills >= (25 if LONG else 3):
            return
        duration /= 2  # the machine was busier when the whole run was timed
    pytest.fail(f"the last of five runs was killed {kills} times only")


def kill_and_go_on(config: Config, duration: float, draw: random.Random) -> int:
    """Kill a run after random parts of the seconds that it takes, and go on with it, until it ends."""
    kills = 0
    while True:
        child = in_child(lambda: go_on(config))
        # From a moment to some epochs: kills fall on all parts of a run.
        deadline = (
            time.monotonic() + draw.uniform(0.02, 0.35) * duration if kills < (50 if LONG else 4) else float("inf")
        )
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0
                return kills
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        assert_nothing_is_broken(Path(config.output_dir or ""))


@pytest.mark.slow
def test_killed_at_each_step_of_writing(folder: Path) -> None:
    """At the n-th time that a file of the run is opened, renamed, linked or removed."""
    changes = {"num_epochs": 2}
    whole = config_of(folder, "whole", **changes)
    events: list[str] = []
    fit_and_count(whole, events.append)
    assert {"os.rename", "os.link", "open"} <= set(events)
    # The first of each kind of event, and then every fifth.
    first = {events.index(kind) + 1 for kind in set(events)}
    for number in range(1, len(events) + 1) if LONG else sorted(first | set(range(3, len(events) + 1, 5))):
        config = config_of(folder, f"killed-{number}", **changes)
        seen = 0

        def kill_at(event: str, number: int = number) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

        child = in_child(lambda config=config, kill_at=kill_at: fit_and_count(config, kill_at))  # type: ignore[misc]
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert_nothing_is_broken(folder / f"killed-{number}")
        assert os.waitpid(in_child(lambda config=config: go_on(config)), 0)[1] == 0  # type: ignore[misc]
        assert_same_run(folder / "whole", folder / f"killed-{number}", 2)


def fit_and_count(config: Config, happened: Callable[[str], object]) -> None:
    """Train, and tell of each event in the run's folder that changes files."""
    run, active = str(config.output_dir), True
    writes = os.O_WRONLY | os.O_RDWR

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not active or event not in ("open", "os.rename", "os.link", "os.remove", "os.mkdir"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & writes):
            return
        if str(arguments[0]).startswith(run):
            happened(event)

    sys.addaudithook(hook)
    try:
        train_run(prepare_run(config))
    finally:
        active = False


@pytest.mark.slow
def test_the_command_itself_killed_and_gone_on_with(folder: Path, warm: WarmPython) -> None:
    """Real processes of the guide's command, with a loader process and TensorBoard."""
    save_config(config_of(folder, "unused", num_workers=1, tensorboard=True, num_epochs=12), folder / "config.yaml")

    def start(name: str, *more: str, python: str | Path = sys.executable) -> subprocess.Popen[str]:
        command = ["scripts/train_act.py", "--config", folder / "config.yaml", "--output_dir", folder / name, *more]
        return subprocess.Popen(
            [python, *map(str, command)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill_at_checkpoint(process: subprocess.Popen[str], epoch: int) -> None:
        for line in process.stdout or ():
            if f"act-train-{epoch}.pth" in line and "saved" in line:
                time.sleep(0.03)
                process.kill()
        assert process.wait() == -signal.SIGKILL

    kill_at_checkpoint(start("killed"), 3)
    last = str(folder / "killed" / "checkpoint" / "act-train-last.pth")
    kill_at_checkpoint(start("killed", "--resume_from", last), 7)
    python = warm.bin / "python"  # not killed
    for process in (start("killed", "--resume_from", last, python=python), start("whole", python=python)):
        assert process.communicate() and process.returncode == 0
    assert_same_run(folder / "whole", folder / "killed", 12)
