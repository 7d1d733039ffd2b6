"""The guide's training commands, with its flags, from a folder that looks like the project's root."""

from __future__ import annotations

import os
import pty
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset
from omegaconf import OmegaConf
from processes import ROOT, project_copy, run_script, start_script

from bimact.config import save_config
from bimact.training import act_trainer  # noqa: F401  (children of this process start with it loaded)

TRAIN = ["scripts/train_act.py"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's root, with a dataset, and a tiny policy in the place of the guide's config."""
    monkeypatch.delenv("ACT_DATASET_DIR", raising=False)
    project_copy(tmp_path)
    (tmp_path / "configs").unlink()
    (tmp_path / "configs").mkdir()
    save_config(tiny_config(), tmp_path / "configs" / "policy_act.yaml")
    write_dataset(tmp_path / "your_dataset", [9, 12, 7, 10])
    return tmp_path


def basic(*more: str, device: str = "cpu") -> list[str]:
    command = "--config configs/policy_act.yaml --dataset_dir your_dataset --output_dir runs/my_experiment --device"
    return [*TRAIN, *command.split(), device, *more]


@pytest.mark.slow
def test_the_guides_own_config_trains(tmp_path: Path) -> None:
    """The real policy of `configs/policy_act.yaml`; only its pretrained weights cannot be had here."""
    write_dataset(project_copy(tmp_path) / "your_dataset", [3, 3])
    status, output = run_script(
        basic("--encoder.pretrained", "null", "--num_steps=1", "--batch_size", "1", "--val_split", "0"), tmp_path
    )
    assert status == 0, output
    parameters = int(re.findall(r"Total parameters: ([\d,]+)", output)[0].replace(",", ""))
    trainable = int(re.findall(r"Trainable parameters: ([\d,]+)", output)[0].replace(",", ""))
    assert parameters - trainable > 80_000_000, "the frozen ViT-B-32"
    saved = torch.load(tmp_path / "runs" / "my_experiment" / "checkpoint" / "act-train-1.pth")
    assert sum(value.numel() for value in saved.values()) >= parameters


def test_lines_on_the_terminal_are_the_guides(root: Path) -> None:
    status, output = run_script(basic(), root)
    assert status == 0, output
    number, loss = r"[\d,]+", r"\d+\.\d{3}"
    expected = [
        r"=== ACT Training ===",
        r"Config: configs/policy_act.yaml",
        r"Dataset: your_dataset",
        r"Output: runs/my_experiment",
        r"",
        r"Building ACT policy\.\.\.",
        rf"Total parameters: {number}",
        rf"Trainable parameters: {number}",
        r"",
        r"Creating data loaders\.\.\.",
        rf"Training samples: {number}",
        rf"Validation samples: {number}",
        r"",
        r"Starting training\.\.\.",
        rf"Epoch 1/2, Step 2: loss={loss}, action_loss={loss}, kl_loss={loss}",
    ]
    lines = output.splitlines()
    for pattern, line in zip(expected, lines):
        assert re.fullmatch(pattern, line), (pattern, line)
    assert "Checkpoint saved: runs/my_experiment/checkpoint/act-train-1.pth" in lines
    assert "\x1b" not in output, "piped output has no control characters"
    for line in lines:
        if found := re.search(r"loss=(\S+), action_loss=(\S+), kl_loss=(\S+)", line):
            total, action, kl = map(float, found.groups())
            assert total == pytest.approx(action + kl, abs=0.0021)


def test_a_terminal_shows_progress_besides(root: Path) -> None:
    main, other = pty.openpty()

    environment = {"TERM": "xterm-256color", "COLUMNS": "120"}
    child = start_script(basic(), root, Path(os.ttyname(other)), environment)
    os.close(other)
    shown = b""
    try:
        while piece := os.read(main, 65536):
            shown += piece
    except OSError:  # the other end is closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
    assert "Epoch 1/2, Step 2: loss=" in text
    assert "16/16" in text and "steps/s" in text and "waiting for data" in text


def test_the_output_directory_is_the_guides(root: Path) -> None:
    status, output = run_script(basic("--checkpoint_frequency", "2", "--num_epochs", "4"), root)
    assert status == 0, output
    run = root / "runs" / "my_experiment"
    assert OmegaConf.load(run / "config.yaml").checkpoint_frequency == 2
    numbered = sorted(path.name for path in (run / "checkpoint").glob("act-train-[0-9]*.pth"))
    assert numbered == ["act-train-2.pth", "act-train-4.pth"]


def test_resume_command(root: Path) -> None:
    assert run_script(basic("--num_epochs", "1"), root)[0] == 0
    resume = ("--resume_from", "runs/my_experiment/checkpoint/act-train-1.pth")
    status, output = run_script(basic(*resume), root)
    assert status == 0, output
    assert "Resuming from runs/my_experiment/checkpoint/act-train-1.pth: step 8, epoch 2" in output
    assert "Changed since: num_epochs: 1 → 2" in output
    assert "Epoch 2/2, Step 16" in output and "Epoch 1/2" not in output


def test_resume_needs_no_other_argument(root: Path) -> None:
    assert run_script(basic("--num_epochs", "1", "--lr", "5e-4"), root)[0] == 0
    status, output = run_script([*TRAIN, "--resume_from", "runs/my_experiment", "--num_epochs", "2"], root)
    assert status == 0, output
    assert "Config: runs/my_experiment/config.yaml" in output and "Changed since: lr" not in output


@pytest.mark.parametrize("gpu", ["0", "1"])
def test_a_specific_gpu_where_there_is_none(root: Path, gpu: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    status, output = run_script(basic(device="cuda"), root, {"CUDA_VISIBLE_DEVICES": gpu})
    assert status == 2
    assert "PyTorch finds no CUDA GPU here; use --device auto or --device cpu" in output and "Traceback" not in output


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_devices(root: Path, device: str) -> None:
    assert run_script(basic("--num_steps", "1", device=device), root)[0] == 0


def test_defaults_of_config_dataset_and_output(root: Path) -> None:
    """What `wandb agent` relies on: no argument but the swept ones."""
    status, output = run_script([*TRAIN, "--num_steps=1"], root, {"ACT_DATASET_DIR": str(root / "your_dataset")})
    assert status == 0, output
    assert "Config: configs/policy_act.yaml" in output
    (run,) = (root / "runs").iterdir()
    assert re.fullmatch(r"your_dataset-\d{8}-\d{6}", run.name)
    status, output = run_script([*TRAIN, "--num_steps=1"], root)
    assert status == 2 and "needs --dataset_dir (or ACT_DATASET_DIR)" in output


def test_from_any_folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By the script's own path; relative paths are those of the caller."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    script = str(ROOT / "scripts" / "train_act.py")
    command = [script, "--dataset_dir", str(root / "your_dataset"), "--num_steps=1", "--encoder.name=nothing"]
    status, output = run_script(command, elsewhere)
    assert status == 2
    assert (
        f"Config: {(ROOT / 'configs').resolve() / 'policy_act.yaml'}" in output
        and "no encoder named 'nothing'" in output
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--hiden_dim", "64"], "no setting named 'hiden_dim'; did you mean 'hidden_dim'?"),
        (["--encoder.freez=false"], "no setting named 'encoder.freez'; did you mean 'encoder.freeze'?"),
        (["--batch_size", "many"], "setting 'batch_size': Value 'many'"),
        (["--val_split=1.5"], "setting 'val_split' is 1.5, it has to be less than 1"),
        (["--action_loss", "l3"], "setting 'action_loss' is 'l3', it has to be l1 or l2"),
        (["--device", "gpu"], "--device is 'gpu', it has to be cuda, cuda:1, mps, cpu or auto"),
    ],
)
def test_wrong_settings_are_one_sentence(root: Path, arguments: list[str], sentence: str) -> None:
    status, output = run_script(basic(*arguments), root)
    assert status == 2
    assert sentence in output and "Traceback" not in output
    assert not (root / "runs").exists()


def test_nested_and_listed_settings(root: Path) -> None:
    arguments = [
        "--encoder.freeze=true",
        "--wandb_tags",
        "clip,baseline,rtx5090",
        "--cameras",
        "right",
        "--num_steps=1",
    ]
    status, output = run_script(basic(*arguments), root)
    assert status == 0, output
    saved = OmegaConf.load(root / "runs" / "my_experiment" / "config.yaml")
    assert saved.encoder.freeze is True
    assert list(saved.wandb_tags) == ["clip", "baseline", "rtx5090"] and list(saved.cameras) == ["right"]


def test_another_run_is_not_overwritten(root: Path) -> None:
    assert run_script(basic("--num_steps=1"), root)[0] == 0
    status, output = run_script(basic(), root)
    assert status == 2
    assert "--resume_from runs/my_experiment/checkpoint/act-train-last.pth" in output
    assert "--output_dir runs/my_experiment-2" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_saves_and_says_how_to_go_on(root: Path, number: signal.Signals) -> None:
    output = root / "interrupted"
    child = start_script(basic("--num_epochs", "100000", "--checkpoint_frequency", "100000"), root, output)
    deadline = time.monotonic() + 60
    while "Step 10:" not in (output.read_text() if output.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    path = "runs/my_experiment/checkpoint/act-train-last.pth"
    step = int(re.findall(rf"Interrupted at step (\d+). To go on: --resume_from {path}", output.read_text())[0])
    resume = basic("--resume_from", path, "--num_steps", str(step + 1))
    status, text = run_script(resume, root)
    assert status == 0 and f"Resuming from {path}: step {step}," in text


def test_a_request_to_the_whole_group_saves_too(root: Path) -> None:
    """A launcher sends SIGTERM to all processes of a training, those that load data among them."""
    output = root / "interrupted"
    endless = basic("--num_epochs", "100000", "--checkpoint_frequency", "100000", "--num_workers", "2")
    child = start_script(endless, root, output, group=True)
    deadline = time.monotonic() + 60
    while "Step 10:" not in (output.read_text() if output.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert "To go on: --resume_from" in output.read_text() and "Traceback" not in output.read_text()


def test_a_renamed_run_goes_on_where_it_lies(root: Path) -> None:
    assert run_script(basic("--num_epochs", "1"), root)[0] == 0
    (root / "runs" / "my_experiment").rename(root / "runs" / "renamed")
    status, output = run_script([*TRAIN, "--resume_from", "runs/renamed", "--num_epochs", "2"], root)
    assert status == 0, output
    assert "Output: runs/renamed" in output
    assert not (root / "runs" / "my_experiment").exists()


def test_help_tells_every_setting(root: Path) -> None:
    from bimact.config import setting_names

    status, output = run_script([*TRAIN, "--help"], root)
    assert status == 0
    for name in [*setting_names(), "config", "resume_from", "override_config"]:
        assert f"--{name} " in output
