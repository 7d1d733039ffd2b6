"""The guide's sweep: as W&B's agent runs it, and as `bimact sweep` does without an account."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from conftest import tiny_config
from guide_files import write_dataset
from omegaconf import OmegaConf
from warm_python import WarmPython

from bimact.run_directory import read_metrics
from bimact.sweep.sweep_file import read_sweep

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "configs" / "sweep.yaml"
GUIDE = {"lr": (1e-6, 1e-4), "kl_weight": [1.0, 5.0, 10.0, 50.0], "batch_size": [4, 8, 16]}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project's root with a dataset and a policy that trains in a moment in place of the guide's."""
    root = tmp_path / "project"
    (root / "configs").mkdir(parents=True)
    (root / "scripts").symlink_to(ROOT / "scripts")
    (root / "configs" / "sweep.yaml").symlink_to(SWEEP)
    config: Any = OmegaConf.to_container(OmegaConf.structured(tiny_config(num_epochs=1)))
    for name in ("dataset_dir", "output_dir", "lr", "kl_weight", "batch_size"):
        del config[name]
    (root / "configs" / "policy_act.yaml").write_text(yaml.safe_dump(config))
    write_dataset(root / "data", [9, 12, 7, 10])
    return root


def test_the_shipped_sweep_is_the_guides() -> None:
    sweep = read_sweep(SWEEP)
    assert (sweep.program, sweep.method, sweep.metric, sweep.goal) == (
        "scripts/train_act.py",
        "bayes",
        "val_loss",
        "minimize",
    )
    space: dict[str, Any] = dict(sweep.space)
    assert space.keys() == GUIDE.keys()
    assert (space["lr"].low, space["lr"].high) == GUIDE["lr"]
    assert [list(space[name].choices) for name in ("kl_weight", "batch_size")] == [*list(GUIDE.values())[1:]]
    assert sweep.hints == []


def test_wandb_accepts_the_shipped_sweep() -> None:
    """What `wandb sweep` does with the file before it sends it: read it, check the bounds, write it anew."""
    sweeps = pytest.importorskip("wandb.apis.public.sweeps")
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    config = load_sweep_config(str(SWEEP))
    assert config is not None
    sent = yaml.safe_load(yaml.dump(json.loads(json.dumps(sweeps._validate_config_and_fill_distribution(config)))))
    assert sent == config
    assert (sent["parameters"]["lr"]["min"], sent["parameters"]["lr"]["max"]) == GUIDE["lr"], "numbers, not text"


@pytest.mark.slow
def test_wandbs_agent_runs_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's own agent starts a run of the sweep from the project's root, as its server would have it start one."""
    from wandb.wandb_agent import Agent

    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them; they are to be as they were
        monkeypatch.setenv(name, "")
    settings = {
        "ACT_DATASET_DIR": str(project / "data"),
        "WANDB_SWEEP_ID": "abc123",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(project),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project)
    started: list[list[str]] = []
    start = subprocess.Popen.__init__

    def record(self: Any, command: Any, *arguments: Any, **options: Any) -> None:
        started.append(command)
        start(self, command, *arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", record)
    program = yaml.safe_load(SWEEP.read_text())["program"]
    drawn = {"batch_size": 4, "kl_weight": 1.0, "lr": 5e-05}
    agent = Agent(api=None, queue=queue.Queue(), sweep_id="abc123")
    command = {"type": "run", "run_id": "run1", "program": program}
    agent._command_run({**command, "args": {name: {"value": value} for name, value in drawn.items()}})
    assert agent._run_processes["run1"].wait(120) == 0
    assert ["/usr/bin/env", "python", program, "--batch_size=4", "--kl_weight=1.0", "--lr=5e-05"] in started
    (metrics,) = (project / "runs").rglob("metrics.jsonl")
    assert any("val_loss" in record for record in read_metrics(metrics))
    config = OmegaConf.load(metrics.with_name("config.yaml"))
    assert {name: config[name] for name in drawn} == drawn
    assert config.dataset_dir == str(project / "data")
    assert list(project.rglob("*.wandb")), "it did not log to W&B"


@pytest.mark.slow
def test_it_runs_without_an_account(project: Path, warm: WarmPython) -> None:
    command = ["configs/sweep.yaml", "--dataset_dir", "data", "--trials", "2", "--num_epochs", "2", "--device", "cpu"]
    result = subprocess.run(
        [str(warm.bin / "bimact"), "sweep", *command],
        cwd=project,
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 trials: 2 finished" in result.stdout
    folder = project / "sweeps" / "sweep"
    for trial in optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}").trials:
        run = folder / f"trial-000{trial.number}"
        logged = [record["val_loss"] for record in read_metrics(run / "metrics.jsonl") if "val_loss" in record]
        assert trial.value == min(logged) and trial.intermediate_values == {1: logged[0], 2: logged[1]}
        config = OmegaConf.load(run / "config.yaml")
        assert {name: config[name] for name in GUIDE} == trial.params
        assert (run / "checkpoint" / "act-train-best.pth").is_file()
    assert (folder / "report.html").is_file()
    best = result.stdout.splitlines()[-1].strip()
    assert best.startswith("python scripts/train_act.py --config configs/policy_act.yaml --output_dir runs/sweep-best")
