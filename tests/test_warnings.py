"""What libraries have to say to programmers does not reach a user: the main commands, in a process as a user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from foreign_policies import beside_an_optimizer, original_statistics, original_weights, small_policy, write_original
from guide_files import write_dataset
from processes import ROOT

from bimact.config import save_config

# One process for all commands: PyTorch takes seconds to start. It names what has written to the standard error.
CODE = """
import json, os, sys
from bimact.cli import main

for command in json.loads(sys.argv[1]):
    before = os.fstat(2).st_size
    try:
        main(command)
    except SystemExit as end:
        sys.stderr.flush()
        if end.code or os.fstat(2).st_size > before:
            print("of: bimact", *command, file=sys.stderr, flush=True)
"""
JOINTS = ["左肩", "左肘", "右手首", "손목", "$x$_1^2", *(f"joint_{number}" for number in range(8)), "right_gripper"]


def stderr_of(folder: Path, commands: list[list[str]], **environment: str) -> str:
    with (folder / "stderr").open("w+") as file:
        arguments = [sys.executable, "-c", CODE, json.dumps(commands)]
        env = {**os.environ, "PYTHONWARNINGS": "", **environment}
        subprocess.run(arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=file, env=env, check=True)
        file.seek(0)
        return file.read()


def prepare(folder: Path) -> None:
    write_dataset(folder / "cups", [9, 12, 7, 10])
    (folder / "cups" / "metadata.json").write_text(json.dumps({"fps": 50, "joint_names": JOINTS}))
    write_dataset(folder / "one", [9])
    save_config(tiny_config(tensorboard=True, log_frequency=1), folder / "tiny.yaml")
    weights = beside_an_optimizer("nets", original_weights(small_policy(("top",)), 2))
    write_original(folder / "act", weights, original_statistics())


@pytest.mark.slow
def test_no_warning_reaches_the_terminal(tmp_path: Path) -> None:
    """With a last batch that is smaller, and a single episode, which leaves nothing for validation."""
    prepare(tmp_path)
    train = ["train", "--config=tiny.yaml", "--device=cpu"]
    commands = [
        ["check", "cups"],
        ["convert", "cups", "lerobot", "--to=lerobot"],
        ["view", "lerobot", "--export=page"],
        [*train, "--dataset_dir=lerobot", "--output_dir=a", "--batch_size=5", "--compile=false"],
        [*train, "--dataset_dir=one", "--output_dir=b", "--val_split=0", "--lr_schedule=cosine", "--num_workers=2"],
        ["train", "--resume_from=a", "--dataset_dir=lerobot", "--num_epochs=3"],
        ["evaluate", "--run=a"],
        ["report", "--run=a"],
        ["report", "--run=b"],
        ["convert-checkpoint", "act", "c", "--cameras=top", "--nheads=4", "--image_size=40x64"],
    ]
    assert stderr_of(tmp_path, commands) == ""
    assert (tmp_path / "a" / "report.html").stat().st_size > 0
    assert torch.load(tmp_path / "c" / "checkpoint" / "act-train-best.pth")


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_no_news(tmp_path: Path) -> None:
    prepare(tmp_path)
    train = ["train", "--config=tiny.yaml", "--dataset_dir=cups", "--output_dir=a", "--num_steps=1", "--device=cpu"]
    assert stderr_of(tmp_path, [train, ["report", "--run=a"]], HOME="/proc/x", MPLCONFIGDIR="") == ""


@pytest.mark.slow
def test_no_warning_of_a_sweep(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    prepare(tmp_path)
    settings = ["--config=tiny.yaml", "--dataset_dir=cups", "--output_dir=sweep", "--num_epochs=1", "--device=cpu"]
    sweep = ["sweep", str(ROOT / "configs" / "sweep.yaml"), "--trials=2", *settings]
    assert stderr_of(tmp_path, [sweep]) == ""


@pytest.mark.slow
@pytest.mark.gl
def test_no_warning_of_the_simulation(tmp_path: Path) -> None:
    save_config(tiny_config(), tmp_path / "tiny.yaml")
    size = "--image_size=48x64"
    commands = [
        ["record", "--task=transfer_cube", "--episodes=2", "--output_dir=cubes", size],
        ["train", "--config=tiny.yaml", "--dataset_dir=cubes", "--output_dir=a", "--num_steps=2", "--device=cpu"],
        ["evaluate", "--run=a", "--task=transfer_cube", "--rollouts=1", "--video=1", "--device=cpu"],
        ["report", "--run=a"],
    ]
    assert stderr_of(tmp_path, commands) == ""
