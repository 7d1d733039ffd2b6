"""README.md and docs/: every command is run, every config loads, every link leads somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from foreign_policies import (
    lerobot_config,
    lerobot_weights,
    original_statistics,
    original_weights,
    small_policy,
    statistics_of,
    write_lerobot_with_processors,
    write_original,
)
from guide_files import write_dataset
from hdf5_files import write_aloha
from lerobot_files import write_lerobot
from omegaconf import OmegaConf
from pages import PAGES, ROOT, Block, anchors_of, bash_error, blocks_of, commands_of, links_of
from warm_python import WarmPython

from bimact.config import load_config, save_config
from bimact.sweep.sweep_file import read_sweep

# Commands that cannot be run here, by how they begin, and why. They have to be valid bash.
NOT_RUN = {
    r"make ": "sets a whole environment up, or trains for minutes",
    r"bimact demo": "trains for minutes; tests/test_wheel.py runs `bimact demo --quick`",
    r"uvx? ": "makes an environment",
    r"(docker|apptainer) ": "needs a container engine; tests/test_container.py builds the image where Docker works",
    r"mamba ": "makes an environment",
    r"pip install ": "changes the environment that the tests run in",
    r"source \.venv/bin/activate": "the tests run in an environment already",
    r"sudo apt-get ": "changes the system",
    r"tensorboard ": "serves until it is stopped",
    r"watch -n 1 nvidia-smi": "runs until it is stopped",
    r"bimact train --dataset_dir lerobot/": "downloads a dataset; tests/data/test_remote.py has a hub of its own",
    r"wandb (login|sweep|agent)": "needs an account",
    r"torchrun --nnodes=2 ": "needs two machines",
    r"bimact view (?!.*--(export|augment))": "serves until it is stopped, or needs `rerun`; tests/view has both",
    r"bimact serve ": "serves until it is stopped; tests/deploy has it",
    r"bimact evaluate .*--suite ": "takes hours; tests/evaluation/test_robustness.py has it",
    r"python scripts/offline_predictors.py ": "needs runs of measured success; tests/test_offline_predictors.py has it",
    r"bimact proof": "takes hours; tests/evaluation/test_proof.py has it",
    r"bimact compare .*--protocol ": "asks for marks; tests/deploy/test_blind_trials.py has it",
    r"bimact sim-robot ": "runs in real time; tests/deploy has it",
    r"bimact (push|push-dataset|evaluate|train) .*\balice/": "needs an account; tests/test_hub.py has a hub of its own",
    r"sbatch ": "needs SLURM; the script is run with stand-ins for SLURM's commands",
}

# What is put in the place of text in commands, so that they run here, and in seconds.
SUBSTITUTIONS = {
    r"--device cuda": "--device cpu",
    r"device=\"cuda\"": 'device="cpu"',
    r"--episodes \d+": "--episodes 1 --image_size 24x32",
    r"--rollouts \d+": "--rollouts 1 --parallel 1",
    r"rollouts=\d+": "rollouts=1, parallel=1",
    r"--video \d+": "--video 0",
    r"--trials \d+": "--trials 1",
    r"--num_epochs \d+": "--num_epochs 3",
    r"--num_steps 60": "--num_steps 2",
    r"num_epochs=\d+": "num_epochs=3",
    r"num_steps=\d+": "num_steps=3",
    r"alice/cube-act": "runs/cube",
    r"train\(\"demo\"": 'train("configs/demo.yaml"',  # the sandbox's
    r"ViT-B-32(-quickgelu)?": "ViT-S-32",  # a quarter of the size
    r"pretrained=True": "pretrained=None",  # no download
    r"--encoder.image_size 224,224": "--encoder.image_size 28,28",
}

SMALL = {
    "temporal_context": 2,
    "hidden_dim": 16,
    "nheads": 2,
    "dim_feedforward": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 4,
    "chunk_size": 100,
    "batch_size": 8,
    "val_split": 0.25,
    "num_epochs": 2,
    "num_steps": None,
    "num_workers": 0,
    "device": "cpu",
}
SMALL_ENCODER = {"name": "conv", "model_name": None, "pretrained": None, "freeze": False, "channels": [8, 8]}


MAKES_RUN = r"--output_dir |output_dir=\"|demo_training.sh \S+ |convert-checkpoint \S+ "  # before a new run's name
# Runs that pages name and do not make, where they are not those of the dataset.
OTHER_RUNS = {"cube": "simulated", "demo-transfer_cube": "simulated", "paper_network": "converted"}


# The blocks ------------------------------------------------------------------------------------------

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SCRIPTS = [block for block in BLOCKS if block.language == "bash" and block.text.startswith("#!")]
SHELL = [block for block in BLOCKS if block.language == "bash" and block not in SCRIPTS]
PYTHON = [block for block in BLOCKS if block.language == "python"]
YAML = [block for block in BLOCKS if block.language == "yaml"]


def is_run(command: str) -> bool:
    return not any(re.match(start, command) for start in NOT_RUN)


def substituted(text: str, dataset: Path) -> str:
    for pattern, replacement in SUBSTITUTIONS.items():
        text = re.sub(pattern, replacement, text)
    text = re.sub(
        r"/path/to/(lerobot_policy|act_policy|lerobot|aloha_hdf5|hdf5_files)\b", rf"{dataset.parent}/\1", text
    )
    return text.replace("/path/to/your/dataset", str(dataset))


RUN = [block for block in SHELL if any(map(is_run, commands_of(block.text)))]


# The sandbox -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sandbox:
    """A folder like the project's root, with small configs."""

    root: Path
    prepared: Path
    warm: WarmPython

    @property
    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not re.match("ACT_|WANDB_|SLURM_|DISPLAY", name)}
        return {
            **own,
            **self.warm.environment,
            "HOME": str(self.root),  # where nobody is logged in
            "OMP_NUM_THREADS": "1",
            "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl"),
        }

    def run(self, *command: str, stdin: str = "", **variables: str) -> str:
        result = subprocess.run(
            command,
            cwd=self.root,
            env={**self.environment, **variables},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    def place_runs(self, text: str) -> None:
        """Put a run wherever some commands name one that they do not make."""
        made = {
            name
            for command in text.replace("\\\n", " ").splitlines()
            for name in re.findall(rf"(?:{MAKES_RUN})runs/([\w-]+)", command)
            if f"--resume_from runs/{name}" not in command
        }
        for name in set(re.findall(r"runs/([\w-]+)", text)) - made:
            source = OTHER_RUNS.get(name, "trained")
            run = Path(shutil.copytree(self.prepared / source, self.root / "runs" / name))
            save_config(load_config(run / "config.yaml", [f"output_dir=runs/{name}"]), run / "config.yaml")


def small_configs(folder: Path, *, keep_encoder: bool = False) -> None:
    """The project's configs with a small policy, which trains for two epochs, or with a large encoder for a step."""
    folder.mkdir(exist_ok=True)
    for path in (ROOT / "configs").glob("*.yaml"):
        content = OmegaConf.load(path)
        changes = {**SMALL, **({"num_steps": 1} if keep_encoder else {"encoder": SMALL_ENCODER})}
        is_sweep = "parameters" in content
        OmegaConf.save(content if is_sweep else OmegaConf.merge(content, changes), folder / path.name)


def prepare_run(sandbox: Sandbox, dataset: Path, name: str) -> None:
    """A run that has one of two epochs behind it, under the names that a long one has."""
    sandbox.run("bimact", "train", "--dataset_dir", str(dataset), "--output_dir", name, "--num_epochs", "1")
    run = sandbox.root / name
    save_config(load_config(run / "config.yaml", ["num_epochs=2"]), run / "config.yaml")
    for suffix in (".pth", ".state"):
        shutil.copy(run / "checkpoint" / f"act-train-1{suffix}", run / "checkpoint" / f"act-train-100{suffix}")
    shutil.move(run, sandbox.prepared / name)


def write_other_hdf5(folder: Path) -> None:
    """Files of no known layout, with the arrays that the page on formats names."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(2):
        with h5py.File(folder / f"run{number}.hdf5", "w") as file:
            file["commands/joints"], file["measured/joints"] = draw.normal(size=(2, 8, 14))
            file["sensors/front/rgb"] = draw.integers(0, 256, (8, 24, 32, 3), np.uint8)


def write_foreign_policies(folder: Path) -> None:
    """Policies that see what the dataset has."""
    sizes = {"state_dim": 14, "action_dim": 14, "image_size": [16, 24], "hidden_dim": 16}
    policy = small_policy(("left", "right"), nheads=8, **sizes)
    weights, config = lerobot_weights(policy), lerobot_config(policy)
    write_lerobot_with_processors(folder / "lerobot_policy", weights, config, statistics_of(policy))
    write_original(folder / "act_policy", original_weights(policy), original_statistics(14, 14))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, warm: WarmPython) -> Path:
    """What sandboxes are made of."""
    folder = tmp_path_factory.mktemp("prepared")
    root = folder / "root"
    for name in ("scripts", "policy", "train"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "demo_training.sh", root)
    small_configs(root / "configs")
    sandbox = Sandbox(root, folder, warm)
    prepare_run(sandbox, write_dataset(folder / "dataset", [9, 12, 7, 10]), "trained")
    simulated = write_dataset(folder / "simulated-dataset", [9, 12, 7, 10])
    observations = np.load(simulated / "observations.npy")
    observations.dtype.names = ("image_top", "image_left_wrist", "state")
    np.save(simulated / "observations.npy", observations)
    prepare_run(sandbox, simulated, "simulated")
    write_foreign_policies(folder)
    write_lerobot(folder / "lerobot", (30, 20), dim=26)
    write_aloha(folder / "aloha_hdf5")
    write_other_hdf5(folder / "hdf5_files")
    sandbox.run("bimact", "convert-checkpoint", str(folder / "lerobot_policy"), str(folder / "converted"))
    return folder


@pytest.fixture
def sandbox(prepared: Path, warm: WarmPython, tmp_path: Path) -> Sandbox:
    return Sandbox(Path(shutil.copytree(prepared / "root", tmp_path / "root")), prepared, warm)


@pytest.fixture(scope="module")
def weights(prepared: Path, warm: WarmPython) -> Path:
    """What the page on encoders saves on a machine with internet."""
    [block] = [block for block in PYTHON if "weights/" in block.text]
    folder = prepared / "with-internet"
    folder.mkdir()
    Sandbox(folder, prepared, warm).run("python", "-", stdin=substituted(block.text, prepared / "dataset"))
    return folder / "weights"


# What the pages say ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=str)
def test_commands_run(block: Block, sandbox: Sandbox, request: pytest.FixtureRequest) -> None:
    sandbox.place_runs(block.text)
    if "weights/" in block.text:
        (sandbox.root / "weights").symlink_to(request.getfixturevalue("weights"))
        small_configs(sandbox.root / "configs", keep_encoder=True)  # which is what the weights are for
    commands = [command for command in commands_of(block.text) if is_run(command)]
    script = substituted("".join(commands), sandbox.prepared / "dataset")
    print(sandbox.run("bash", "-eo", "pipefail", "-c", f"trap 'echo \"failed: $BASH_COMMAND\"' ERR\n{script}"))


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(block: Block, sandbox: Sandbox) -> None:
    text = substituted(block.text, sandbox.prepared / "dataset")
    sandbox.place_runs(text)
    print(sandbox.run("python", "-", stdin=text))


# In the place of SLURM's commands: they know one node.
STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'if [[ $1 == show ]]; then echo localhost; else echo "$@" >>requeued; fi',
}
NODE = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-0", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}


def prepare_slurm(sandbox: Sandbox, script: str) -> dict[str, str]:
    """What the script finds on a node; gives its environment."""
    root = sandbox.root
    (root / "act.sbatch").write_text(substituted(script, sandbox.prepared / "dataset"))
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "activate").touch()
    for name, text in STAND_INS.items():
        (root / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (root / name).chmod(0o755)
    path = f"{root}:{sandbox.environment['PATH']}"
    return {**sandbox.environment, **NODE, "SLURM_SUBMIT_DIR": str(root), "PATH": path}


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_slurm_script_saves_when_its_time_is_up_and_goes_on(sandbox: Sandbox, num_workers: int) -> None:
    [block] = SCRIPTS
    root, environment = sandbox.root, prepare_slurm(sandbox, block.text)

    def start(epochs: int) -> subprocess.Popen[str]:
        config = root / "configs" / "policy_act.yaml"
        save_config(load_config(config, [f"num_epochs={epochs}", f"num_workers={num_workers}"]), config)
        command, pipe = ["bash", str(root / "act.sbatch")], subprocess.PIPE
        return subprocess.Popen(command, cwd="/", env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    (root / "runs" / "my_experiment").mkdir(parents=True)  # of a job that was killed before its first checkpoint
    first = start(epochs=10**6)
    said = ""
    for line in first.stdout or ():
        said += line
        if line.startswith("Epoch 3/"):
            first.terminate()
    assert first.wait(timeout=120) == 0, said
    assert (root / "requeued").read_text() == "requeue 7\n"
    checkpoint = root / "runs" / "my_experiment" / "checkpoint"
    assert (checkpoint / "act-train-last.pth").exists(), said
    assert len(list((root / "runs").glob("my_experiment-killed-*"))) == 1
    (step,) = re.findall(r"Interrupted at step (\d+)", said)
    second = start(epochs=int(step) // 2 + 3)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert f"act-train-last.pth: step {step}, epoch" in said


@pytest.mark.parametrize("block", YAML, ids=str)
def test_configs_load(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(block.text)
    if "parameters" in OmegaConf.load(path):
        assert read_sweep(path).space == read_sweep(ROOT / "configs" / "sweep.yaml").space
    else:
        load_config(path)


def test_all_blocks_are_of_a_language_that_is_tested() -> None:
    checked_elsewhere = {"toml", "mermaid"}  # of the page for developers
    assert {block.language for block in BLOCKS} <= {"bash", "python", "yaml", "text", ""} | checked_elsewhere
    for block in [*SHELL, *SCRIPTS]:
        assert bash_error(block.text) == "", block
    for block in PYTHON:
        compile(block.text, str(block), "exec")


def test_each_exception_and_substitution_is_needed() -> None:
    commands = [command for block in SHELL for command in commands_of(block.text)]
    for start in NOT_RUN:
        assert any(re.match(start, command) for command in commands), f"no command begins with: {start}"
    text = "".join(block.text for block in [*SHELL, *PYTHON])
    for pattern in SUBSTITUTIONS:
        assert re.search(pattern, text), f"nothing to substitute: {pattern}"


def test_make_has_the_targets() -> None:
    commands = [command for block in SHELL for command in commands_of(block.text) if command.startswith("make ")]
    for command in commands:
        arguments = command.split("#")[0].split()[1:]
        result = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, command + result.stderr


# Links -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors_of(target), f"{page.name}: {link}"
