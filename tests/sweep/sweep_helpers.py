"""What the tests of sweeps share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import yaml

from bimact.sweep.plan import SweepPlan, plan_sweep
from bimact.sweep.study import counted
from bimact.sweep.sweep_file import Sweep, read_sweep

TRAINING = Path(__file__).with_name("quick_training.py")
LR = {"min": 1.0e-6, "max": 1.0e-4, "distribution": "log_uniform_values"}


def write_sweep(path: Path, **changes: Any) -> Path:
    """A sweep file over lr, but for the changes."""
    content = {"program": str(TRAINING), "method": "random", "parameters": {"lr": LR}, **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def make_sweep(folder: Path, **changes: Any) -> Sweep:
    folder.mkdir(parents=True, exist_ok=True)
    return read_sweep(write_sweep(folder / "sweep.yaml", **changes))


def make_plan(folder: Path, dataset: Path, settings: dict[str, str] | None = None, **changes: Any) -> SweepPlan:
    """A plan with `folder/s` as the sweep's folder; arguments of `plan_sweep` are taken out of the changes."""
    names = ("storage", "trials", "jobs", "timeout", "pruning", "command", "output_dir")
    options = {name: changes.pop(name) for name in names if name in changes}
    sweep = make_sweep(folder, **changes)
    config = folder / "config.yaml"
    config.write_text("val_split: 0.25\nnum_epochs: 4\n")
    given = {"dataset_dir": str(dataset), **(settings or {})}
    return plan_sweep(sweep, config, given, **{"output_dir": str(folder / "s"), **options})


def trials_in(folder: Path, url: str | None = None) -> list[optuna.trial.FrozenTrial]:
    """The trials of a sweep, as they are stored."""
    study = optuna.load_study(study_name=folder.name, storage=url or f"sqlite:///{folder / 'study.db'}")
    return counted(study)
