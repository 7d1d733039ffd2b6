"""The command line: exit statuses, one sentence for each fault, and the whole line on a small scale."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config

from bimact.cli import _parser, _run_command, main, parse
from bimact.cli.examples import EXAMPLES
from bimact.cli.train import settings_of
from bimact.config import load_config, save_config, setting_value
from bimact.doctor import Examination, Row, State
from bimact.errors import UserError
from bimact.nvidia import Driver, Gpu

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
        *("compare", "proof"),
        *("convert-checkpoint", "doctor", "demo", "completion", "guide-files"),
    ],
)
def test_help_is_quick_and_complete(command: str) -> None:
    code = f"import sys; sys.argv = ['bimact', '{command}', '--help']; from bimact.cli import main\n"
    code += "try: main()\nexcept SystemExit: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: bimact" in result.stdout


@pytest.mark.slow
def test_what_a_command_does_not_need_is_not_imported() -> None:
    """Each of these takes half a second to some seconds; an encoder that needs one imports it."""
    code = "import sys, bimact.training.act_trainer, bimact.cli.train, bimact.evaluation.rollout, bimact.encoder.conv\n"
    code += "print({'torchvision', 'torch._dynamo', 'open_clip', 'timm', 'scipy.stats', 'wandb'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result


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
    assert "is not a run directory" in fails(capsys, "evaluate", "--run", str(tmp_path))
    assert "is not a run directory" in fails(capsys, "report", "--run", str(tmp_path))
    assert "is not a run directory" in fails(capsys, "compare", str(tmp_path), str(tmp_path), "--task", "insertion")
    assert "it has to be one, or one for each" in fails(capsys, "compare", "a", "b", "--checkpoint", "1,2,3")
    assert "there is no perturbation 'lihgt'" in fails(
        capsys, "evaluate", "--run", "r", "--task", "insertion", "--perturb", "lihgt=1"
    )
    assert "--seeds is '0,x', it has to be numbers" in fails(capsys, "proof", "--seeds", "0,x")
    assert "height x width" in fails(
        capsys, "record", "--task", "insertion", "--output_dir", "d", "--image_size", "240"
    )


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--wandb_name", "2024_10_05"], "wandb_name", "2024_10_05"),
        (["--wandb_name", "007"], "wandb_name", "007"),
        (["--wandb_name=yes"], "wandb_name", "yes"),
        (["--wandb_name", ""], "wandb_name", ""),
        (["--wandb_name=--x"], "wandb_name", "--x"),
        (["--wandb_name", "-x"], "wandb_name", "-x"),
        (["--wandb_name", "a=b"], "wandb_name", "a=b"),
        (["--wandb_name", "null"], "wandb_name", None),
        (["--wandb_name", "${oc.env:HOME}"], "wandb_name", "${oc.env:HOME}"),
        (["--wandb_tags", "1.10"], "wandb_tags", ["1.10"]),
        (["--wandb_tags=a, 007 ,yes"], "wandb_tags", ["a", "007", "yes"]),
        (["--output_dir", "0123"], "output_dir", "0123"),
        (["--output_dir", "runs/x #1"], "output_dir", "runs/x #1"),
        (["--output_dir=~/x"], "output_dir", os.path.expanduser("~/x")),  # noqa: PTH111
        (["--dataset_dir", "/data/cups #2"], "dataset_dir", "/data/cups #2"),
        (["--cameras", "012345670123"], "cameras", ["012345670123"]),
        (["--cameras", ""], "cameras", []),
        (["--episodes", "0:40,45"], "episodes", ["0:40", "45"]),
        (["--state_dims", "0:14"], "state_dims", "0:14"),
        (["--encoder.pretrained"], "encoder.pretrained", True),
        (["--use_vae", "--lr", "1e-3"], "use_vae", True),
        (["--ensemble_coefficient", "-0.5"], "ensemble_coefficient", -0.5),
    ],
)
def test_settings_are_what_is_given(arguments: list[str], name: str, value: Any) -> None:
    parser, _ = _parser()
    _, rest = parser.parse_known_args(["train", *arguments])
    assert setting_value(load_config(None, settings_of(rest)), name) == value


@pytest.mark.parametrize("arguments", [["--wandb_name"], ["--lr", "--seed", "1"], ["--cameras", "--", "x"]])
def test_a_setting_without_its_value_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert f"{arguments[0]} is given without a value" in fails(capsys, "train", *arguments)


def test_faults_of_the_output_come_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Before the input is looked at, which is not there."""
    (tmp_path / "file").touch()
    below, nowhere = str(tmp_path / "file" / "x"), str(tmp_path / "nowhere")
    for command in (
        ["train", "--device", "cpu", "--dataset_dir", nowhere, "--output_dir", below],
        ["train", "--device", "cpu", "--dataset_dir", nowhere, "--output_dir", str(tmp_path / "file")],
        ["sweep", "configs/sweep.yaml", "--dataset_dir", nowhere, "--output_dir", below, "--trials", "1"],
        ["convert-checkpoint", nowhere, str(tmp_path / "file" / "x" / "y")],
        ["record", "--task", "insertion", "--output_dir", below],
    ):
        message = fails(capsys, *command)
        assert f"cannot write to {tmp_path}/file" in message and message.count("\n") == 1, command
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_run_that_cannot_be_written_is_not_evaluated(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_config(tiny_config(cameras=["top"], state_dim=14, action_dim=14), tmp_path / "config.yaml")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("bimact.files.tempfile.mkdtemp", full)
    for command in (["evaluate", "--task", "insertion"], ["evaluate"], ["report"]):
        message = fails(capsys, command[0], "--run", str(tmp_path), *command[1:])
        assert message.startswith(f"{command[0]}: cannot write to {tmp_path} (Read-only file system): make it writable")
        assert message.count("\n") == 1


def test_a_fault_of_the_dataset_leaves_no_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = str(tmp_path / "runs" / "x")
    assert "dataset not found" in fails(
        capsys, "train", "--device", "cpu", "--dataset_dir", str(tmp_path / "none"), "--output_dir", output
    )
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_no_run_but_its_folder_means_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_config(tiny_config(), tmp_path / "config.yaml")
    (tmp_path / "checkpoint").mkdir()
    for path in (tmp_path, tmp_path / "checkpoint", f"{tmp_path}/checkpoint/"):
        assert f"{tmp_path} has no checkpoint 'best'" in fails(capsys, "evaluate", "--run", str(path))
    weights = tmp_path / "checkpoint" / "act-train-3.pth"
    weights.touch()
    assert "give the run directory, and select the checkpoint by --checkpoint" in fails(
        capsys, "evaluate", "--run", str(weights)
    )


def test_an_interrupt_while_a_fault_is_told_shows_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """As when a launcher ends this process because another one ended, which both are about to say."""

    class Interrupted(UserError):
        def __str__(self) -> str:
            os.kill(os.getpid(), signal.SIGTERM)
            return "told too late"

    def command(options: argparse.Namespace) -> None:
        raise Interrupted("told too late")

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


@pytest.mark.slow
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
    assert any(line.startswith("Epoch 2/2, Step 4: loss=") for line in lines)
    assert (tmp_path / "r" / "tensorboard").is_dir()
    assert "\x1b" not in result.stdout


# Help, completion, JSON --------------------------------------------------------------------------------


def test_every_command_shows_examples_that_parse() -> None:
    """With options that exist; the first command of a line, without its comment."""
    _, commands = _parser()
    assert set(EXAMPLES) == set(commands), "cli/examples.py: each command has examples"
    for name, examples in EXAMPLES.items():
        assert examples.strip().splitlines()[0] in commands[name].format_help()
        for line in examples.strip().splitlines():
            words = shlex.split(re.split(r" &&| \||[ ]*[^\S\n]+# | > ", line)[0])
            words = words[words.index("bimact") + 1 :]
            options = parse(words)
            if name == "train":
                load_config(None, settings_of(options.rest))


def test_bash_completes_commands_options_settings_and_choices(tmp_path: Path) -> None:
    _, script, _ = run("completion", "bash")
    (tmp_path / "completion.bash").write_text(script)
    asked = {
        "bimact tra": "train",
        "bimact train --use_v": "--use_vae",
        "bimact train --lr_schedule c": "constant cosine",
        "bimact sweep --encoder.na": "--encoder.name",
        "bimact evaluate --ro": "--rollouts",
        "bimact doctor --js": "--json",
    }
    complete = (
        'COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _shtab_bimact; echo "${COMPREPLY[*]}"'
    )
    for line, expected in asked.items():
        command = ["bash", "-c", f"source {tmp_path}/completion.bash; {complete}", "bash", line]
        answer = subprocess.run(command, capture_output=True, text=True)
        assert (answer.stdout.strip(), answer.stderr) == (expected, ""), line


def test_json_of_doctor_and_cache(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for status, broken in ((0, State.READY), (1, State.BROKEN)):
        rows = (Row("PyTorch", broken, "2.9"), Row("GPUs", State.WITHOUT, "None", remedy="use the CPU"))
        found = Examination(rows, (Gpu("RTX 5090", 31.4, (12, 0)),), Driver("570"))
        monkeypatch.setattr("bimact.doctor.examine", lambda found=found: found)
        with pytest.raises(SystemExit) as stop:
            main(["doctor", "--json"])
        answer = json.loads(capsys.readouterr().out)
        assert (stop.value.code, answer["ready"]) == (status, not status)
        assert [row["state"] for row in answer["components"]] == [broken.name.lower(), "without"]
        assert answer["gpus"][0]["architecture"] == "12.0 (Blackwell)"
    with pytest.raises(SystemExit):
        main(["cache", "--json"])
    assert set(json.loads(capsys.readouterr().out)) == {"caches", "removed"}


def test_demo_says_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from bimact import cli
    from bimact.evaluation import proof

    options = cli.parse(["demo", "--task", "insertion"])
    ran: list[list[str]] = []

    def parsed(words: tuple[str, ...]) -> argparse.Namespace:
        ran.append(list(words))
        return argparse.Namespace(run=lambda _: None)

    monkeypatch.setattr(proof, "recipe_cost", lambda recipe: proof.RecipeCost(2.0, 11.0, 0.02, 0.4, 190.0))
    monkeypatch.setattr(cli, "parse", parsed)
    options.run(options)
    out = capsys.readouterr().out
    assert out.startswith("At least 17 min from beginning to end on this machine (")
    assert "recording 2.0 min, training 11.0 min, 100 rollouts 2.0 min, 5 videos 2.0 min" in out
    assert [words[0] for words in ran] == ["record", "train", "evaluate", "evaluate", "report"]
    assert ran[0][ran[0].index("--episodes") + 1] == "50" and "6000" in ran[1]
