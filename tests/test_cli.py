"""The command line: exit statuses, one sentence for each fault, and the whole line on a small scale."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bimact.cli import _run_command, main
from bimact.errors import UserError

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> tuple[int, str, str]:
    result = subprocess.run([sys.executable, "-m", "bimact", *arguments], capture_output=True, text=True, cwd=ROOT)
    return result.returncode, result.stdout, result.stderr


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *("record", "check", "view", "convert", "train", "sweep", "evaluate", "report"),
        *("convert-checkpoint", "doctor"),
    ],
)
def test_help_is_quick_and_complete(command: str) -> None:
    code = f"import sys; sys.argv = ['bimact', '{command}', '--help']; from bimact.cli import main\n"
    code += "try: main()\nexcept SystemExit: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: bimact" in result.stdout


def test_faults_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "unrecognized arguments: --episode 3" in fails(
        capsys, "record", "--task", "insertion", "--output_dir", "d", "--episode", "3"
    )
    assert "no setting named 'batchsize'; did you mean 'batch_size'?" in fails(capsys, "train", "--batchsize", "4")
    assert "'4' belongs to no setting" in fails(capsys, "train", "4")
    assert "needs --dataset_dir (or ACT_DATASET_DIR)" in fails(capsys, "train")
    near = tmp_path / "my_dataset"
    near.mkdir()
    message = fails(capsys, "train", "--dataset_dir", str(tmp_path / "my_datset"), "--output_dir", str(tmp_path / "r"))
    assert f"dataset not found: {tmp_path / 'my_datset'}; near it there is {near}" in message
    assert "is no dataset in a format that bimact knows" in fails(
        capsys, "train", "--dataset_dir", str(near), "--output_dir", str(tmp_path / "r")
    )
    assert "is no run" in fails(capsys, "evaluate", "--run", str(tmp_path))
    assert "is no run" in fails(capsys, "report", "--run", str(tmp_path))
    assert "height x width" in fails(
        capsys, "record", "--task", "insertion", "--output_dir", "d", "--image_size", "240"
    )


def test_an_interrupt_while_a_fault_is_told_shows_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """As when a launcher ends this process because another one ended, which both are about to say."""

    class Interrupted(UserError):
        def __str__(self) -> str:
            os.kill(os.getpid(), signal.SIGTERM)
            return "told too late"

    def command(options: argparse.Namespace) -> None:
        raise Interrupted

    options = argparse.Namespace(command="train", debug=False)
    assert _run_command(command, options) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_absent_device(capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    message = fails(
        capsys, "train", "--dataset_dir", str(dataset), "--output_dir", str(tmp_path / "r"), "--device", "cuda"
    )
    assert "PyTorch finds no CUDA GPU here; use --device auto or --device cpu" in message
    assert not (tmp_path / "r").exists()


def test_settings_on_the_command_line(dataset: Path, tmp_path: Path) -> None:
    """The guide's entry point with its spellings, piped: plain lines."""
    command = [
        *(sys.executable, "scripts/train_act.py", "--config", "configs/demo.yaml", "--dataset_dir", str(dataset)),
        *("--output_dir", str(tmp_path / "r"), "--device", "cpu", "--num_steps=4", "--encoder.channels", "8,8"),
        *("--hidden_dim", "16", "--use_vae", "--latent_dim=4", "--chunk_size", "5", "--num_workers", "0"),
        *("--encoder.crop=null", "--execute_steps=null", "--val_split", "0.25"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "=== ACT Training ===",
        "Config: configs/demo.yaml",
        f"Dataset: {dataset}",
        f"Output: {tmp_path / 'r'}",
    ]
    assert any(line.startswith("Epoch 4/4, Step 4: loss=") for line in lines)
    assert (tmp_path / "r" / "tensorboard").is_dir()
    assert "\x1b" not in result.stdout


@pytest.mark.slow
def test_demo_script_quick(tmp_path: Path) -> None:
    """`make demo QUICK=1` in a copy of the working folder's files that it needs."""
    for name in ("configs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "QUICK": "1",
        "TASK": "transfer_cube",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for attempt in range(2):  # the second call finds everything done and only evaluates again
        result = subprocess.run(
            ["bash", "scripts/demo.sh"], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert result.returncode == 0, result.stderr + result.stdout
        assert "proves the plumbing, not the policy" in result.stdout
        assert ("Step 50: loss=" in result.stdout) == (attempt == 0)
    results = json.loads((tmp_path / "runs" / "demo-transfer_cube-quick" / "evaluation.json").read_text())
    assert results["rollouts"]["transfer_cube"]["rollouts"] == 4
    assert (tmp_path / "runs" / "demo-transfer_cube-quick" / "report.html").stat().st_size > 100_000
