"""`./demo_training.sh DATASET RUN`: questions with defaults, then check, training, evaluation, report."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config
from guide_files import write_dataset
from warm_python import WarmPython

from bimact.cli import _parser
from bimact.config import load_config, save_config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "demo_training.sh"
BIN = Path(sys.executable).parent
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


def environment(path: str, **changes: str) -> dict[str, str]:
    hidden = {"DISPLAY", "WAYLAND_DISPLAY", "ACT_DATASET_DIR", "COLUMNS"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "PATH": f"{path}:/usr/bin:/bin", "TERM": "xterm", **changes}


def call(
    folder: Path, *arguments: str, script: Path = SCRIPT, path: str = str(BIN)
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(path),
        stdin=subprocess.DEVNULL,
    )


def converse(
    script: Path,
    arguments: Sequence[str],
    answers: Sequence[tuple[str, str]],
    variables: dict[str, str],
    folder: Path | None = None,
) -> tuple[int, str]:
    """Run the script on a pseudo-terminal, by default in its own folder, and answer its questions.

    Args:
        answers: the beginning of each question, in the order in which they come, and what is typed.

    Returns:
        Exit status, and the screen.
    """
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("4H", 50, 200, 0, 0))
    process = subprocess.Popen(
        [str(script), *arguments],
        cwd=folder or script.parent,
        env=variables,
        stdin=there,
        stdout=there,
        stderr=there,
        start_new_session=True,
    )
    os.close(there)
    waiting, screen, new = list(answers), "", ""
    while True:
        if not select.select([here], [], [], 60)[0]:
            process.kill()
            raise AssertionError(f"no question that is expected, and no end: {screen}")
        try:
            data = os.read(here, 65536).decode(errors="replace")
        except OSError:  # the script has ended
            break
        screen += data
        new += data
        asked = ESCAPES.sub("", new).rpartition("\n")[2]
        if waiting and asked.startswith(waiting[0][0]) and asked.endswith("]: "):
            os.write(here, f"{waiting.pop(0)[1]}\n".encode())
            new = ""
    os.close(here)
    assert not waiting, f"never asked: {waiting}\n{screen}"
    return process.wait(), ESCAPES.sub("", screen)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config whose training is over in a moment."""
    save_config(tiny_config(num_steps=4), tmp_path / "tiny.yaml")
    return tmp_path / "tiny.yaml"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's root whose `.venv` has a bimact and a Python that only write down how they are called."""
    root = tmp_path / "project"
    for name in ("configs", "scripts"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(ROOT / name)
    shutil.copy(SCRIPT, root)
    commands = root / ".venv" / "bin"
    commands.mkdir(parents=True)
    log = f'echo "$(basename "$0") $*" >> {tmp_path}/log\n'
    (commands / "bimact").write_text(f"#!/bin/bash\n{log}")
    ask_cuda = f"if [[ $1 == -c ]]; then exec cat {tmp_path}/cuda; fi\n"  # status 0 if there is such a file
    ask_config = f'if [[ $1 == - ]]; then exec {sys.executable} "$@"; fi\n'
    (commands / "python").write_text(f"#!/bin/bash\n{ask_cuda}{ask_config}{log}")
    for name in ("bimact", "python"):
        (commands / name).chmod(0o755)
    return root


def logged(project: Path) -> list[str]:
    return (project.parent / "log").read_text().splitlines()


# Arguments and the order of the work -------------------------------------------------------------------


def test_help(tmp_path: Path) -> None:
    result = call(tmp_path, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: ./demo_training.sh [DATASET [RUN]] [--yes] [--key value ...]")
    for word in ("--config", "--episodes", "--rollouts", "CUDA_VISIBLE_DEVICES", "Exit status"):
        assert word in result.stdout


def test_one_word_too_many(tmp_path: Path) -> None:
    result = call(tmp_path, "data", "run", "more")
    assert result.returncode == 2
    assert "'more' is one word too many" in result.stderr


@pytest.mark.parametrize("has_cuda", [True, False])
def test_own_dataset_in_the_projects_root(project: Path, has_cuda: bool) -> None:
    """The guide's call: `.venv` is found, the config fits the machine, the steps come in order."""
    if has_cuda:
        (project.parent / "cuda").touch()
    result = call(project, "some/dataset", "runs/mine", script=project / "demo_training.sh", path="")
    assert result.returncode == 0, result.stderr
    assert "No terminal is there to answer questions" in result.stdout
    usual = "--config configs/policy_act.yaml" if has_cuda else "--encoder.crop null --config configs/demo.yaml"
    assert logged(project) == [
        "bimact check some/dataset --fail_on error",
        f"python scripts/train_act.py --dataset_dir some/dataset --output_dir runs/mine {usual}",
        "bimact evaluate --run runs/mine",
        "bimact report --run runs/mine",
    ]
    assert "The report: runs/mine/report.html" in result.stdout


def test_settings_are_passed_on_from_elsewhere(project: Path, tmp_path: Path) -> None:
    """Paths of the user's stay theirs, those of the project get its root in front."""
    arguments = ("--num_steps", "20", "--yes", "my/data", "--use_vae", "--batch_size=4", "--config", "my.yaml")
    result = call(tmp_path, *arguments, script=project / "demo_training.sh", path="")
    assert result.returncode == 0, result.stderr
    assert "No terminal" not in result.stdout
    assert logged(project)[1] == (
        f"python {project}/scripts/train_act.py --dataset_dir my/data --output_dir {project}/runs/data "
        "--num_steps 20 --use_vae --batch_size=4 --config my.yaml"
    )


def test_an_interrupted_run_goes_on_with_its_own_settings(project: Path) -> None:
    checkpoint = project / "runs" / "r" / "checkpoint" / "act-train-last.pth"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    result = call(project, "d", "runs/r", script=project / "demo_training.sh", path="")
    assert "Going on with the run in runs/r" in result.stdout
    assert logged(project)[1] == (
        "python scripts/train_act.py --dataset_dir d --output_dir runs/r "
        "--resume_from runs/r/checkpoint/act-train-last.pth"
    )


def test_without_dataset_it_records_and_rolls_out(project: Path) -> None:
    (project.parent / "cuda").touch()
    result = call(project, "--episodes", "7", "--rollouts", "3", script=project / "demo_training.sh", path="")
    assert result.returncode == 0, result.stderr
    dataset, run = "data/transfer_cube-7", "runs/transfer_cube-7"
    assert logged(project) == [
        f"bimact record --task transfer_cube --episodes 7 --output_dir {dataset}",
        f"bimact check {dataset} --fail_on error",
        f"python scripts/train_act.py --dataset_dir {dataset} --output_dir {run} --config configs/demo.yaml",
        f"bimact evaluate --run {run}",
        f"bimact evaluate --run {run} --checkpoint last --task transfer_cube --rollouts 3 --seed 1000 --video 5",
        f"bimact report --run {run}",
    ]
    commands, _ = _parser()
    for line in logged(project):
        words = line.removeprefix("python scripts/train_act.py").removeprefix("bimact").split()
        _, unknown = commands.parse_known_args(words if line.startswith("bimact") else ["train", *words])
        assert unknown in ([], ["--dataset_dir", dataset, "--output_dir", run])  # settings of the training


def test_a_failed_step_ends_it(project: Path) -> None:
    bimact = project / ".venv" / "bin" / "bimact"
    bimact.write_text(bimact.read_text() + "[[ $1 != check ]] || exit 2\n")
    result = call(project, "d", "runs/r", script=project / "demo_training.sh", path="")
    assert result.returncode == 2
    assert logged(project) == ["bimact check d --fail_on error"]


def test_no_bimact(project: Path) -> None:
    shutil.rmtree(project / ".venv")
    result = call(project, "d", "r", script=project / "demo_training.sh", path="")
    assert result.returncode == 2
    assert "bimact is not installed: run `make setup`" in result.stderr


# Questions ---------------------------------------------------------------------------------------------


def test_answers_become_settings(project: Path) -> None:
    (project.parent / "cuda").touch()
    answers = [
        ("Dataset", "~/my data"),
        ("Run folder [runs/my data]", ""),
        ("Config [configs/policy_act.yaml]", "configs/demo.yaml"),
        ("Length, in epochs or steps [3000 steps]", "many"),
        ("Length", "30 epochs"),
        ("Batch size [16]", "0"),
        ("Batch size", "4"),
        ("Device: cuda, cuda:1, mps, cpu or auto [auto]", ""),
        ("Weights & Biases project [none]", "cubes"),
    ]
    status, screen = converse(project / "demo_training.sh", (), answers, environment("", HOME="/home/ann"))
    assert status == 0, screen
    assert "'many' is not valid here" in screen and "'0' is not valid here" in screen
    assert logged(project)[:2] == [
        "bimact check /home/ann/my data --fail_on error",
        "python scripts/train_act.py --dataset_dir /home/ann/my data --output_dir runs/my data --encoder.crop null "
        "--num_epochs 30 --num_steps null --batch_size 4 --wandb_project cubes --config configs/demo.yaml",
    ]


def test_what_is_given_is_not_asked_for(project: Path) -> None:
    arguments = ("d", "r", "--num_epochs", "3", "--batch_size", "2", "--device=cpu")
    answers = [("Config [configs/demo.yaml]", "configs/policy_act.yaml"), ("Weights & Biases project [none]", "")]
    status, screen = converse(project / "demo_training.sh", arguments, answers, environment(""))
    assert status == 0, screen
    assert logged(project)[1].endswith("r --num_epochs 3 --batch_size 2 --device=cpu --config configs/policy_act.yaml")


def test_recording_is_asked_about(project: Path) -> None:
    answers = [
        ("Dataset, or record to make one in the simulation [record]", ""),
        ("Demonstrations to record [50]", "8"),
        ("Rollouts in the simulation after the training [100]", "0"),
        ("Run folder [runs/transfer_cube-8]", "elsewhere"),
        ("Config [configs/demo.yaml]", ""),
        ("Length, in epochs or steps [3000 steps]", "40 steps"),
        ("Batch size [16]", ""),
        ("Device", ""),
        ("Weights & Biases project [none]", ""),
    ]
    status, screen = converse(project / "demo_training.sh", (), answers, environment(""))
    assert status == 0, screen
    assert logged(project) == [
        "bimact record --task transfer_cube --episodes 8 --output_dir data/transfer_cube-8",
        "bimact check data/transfer_cube-8 --fail_on error",
        "python scripts/train_act.py --dataset_dir data/transfer_cube-8 --output_dir elsewhere --num_steps 40 "
        "--config configs/demo.yaml",
        "bimact evaluate --run elsewhere",
        "bimact report --run elsewhere",
    ]


def test_an_end_of_input_stops_it(project: Path) -> None:
    status, screen = converse(project / "demo_training.sh", (), [("Dataset", "\x04")], environment(""))
    assert status == 2
    assert "stopped, since no answer came" in screen
    assert not (project.parent / "log").exists()


def test_the_report_is_opened_on_a_desktop(project: Path, tmp_path: Path) -> None:
    opener = project / ".venv" / "bin" / "xdg-open"
    opener.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/opened\n')
    opener.chmod(0o755)
    status, _ = converse(project / "demo_training.sh", ("d", "runs/r", "--yes"), [], environment("", DISPLAY=":7"))
    assert status == 0
    for _ in range(100):
        if (tmp_path / "opened").exists():
            break
        time.sleep(0.1)
    assert (tmp_path / "opened").read_text() == "runs/r/report.html\n"


# The real thing ----------------------------------------------------------------------------------------


def test_a_faulty_dataset_stops_before_the_training(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [5, 6])
    np.save(dataset / "rollout_length.npy", np.array([5, 7]))
    result = call(tmp_path, "dataset", "run", "--config", str(ROOT / "configs" / "demo.yaml"))
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Rollout length mismatch" in result.stdout + result.stderr and "Train in" not in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dataset_becomes_a_report(tmp_path: Path, config: Path, warm: WarmPython) -> None:
    """From a folder of the user's: first by a conversation, then without one, which goes on with what is done."""
    write_dataset(tmp_path / "dataset", [9, 12, 7, 10])
    answers = [
        ("Dataset", "dataset"),
        (f"Run folder [{ROOT}/runs/dataset]", "run"),
        (f"Config [{ROOT}/configs/", str(config)),
        ("Length, in epochs or steps [4 steps]", "1 epochs"),
        ("Batch size [4]", "7"),
        ("Device: cuda, cuda:1, mps, cpu or auto [cpu]", ""),
        ("Weights & Biases project [none]", ""),
    ]
    status, screen = converse(SCRIPT, (), answers, environment(str(warm.bin)), folder=tmp_path)
    assert status == 0, screen
    settings = load_config(tmp_path / "run" / "config.yaml")
    assert (settings.num_epochs, settings.num_steps, settings.batch_size) == (1, None, 7)
    report, results = tmp_path / "run" / "report.html", tmp_path / "run" / "evaluation.json"
    assert "<html" in report.read_text() and "offline" in json.loads(results.read_text())

    report.unlink()
    result = call(tmp_path, "dataset", "run", "--num_epochs", "2", path=str(warm.bin))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Going on with the run in run" in result.stdout
    assert "Epoch 2/2" in result.stdout and "Epoch 1/" not in result.stdout
    assert report.is_file()
