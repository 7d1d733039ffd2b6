"""The plan of a `bimact sweep`, checked before the first trial starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution

import bimact
from bimact.config import Config, keys, load_config, setting_value
from bimact.data.windows import split_each
from bimact.errors import UserError
from bimact.files import check_writable, expand_home
from bimact.sweep.space import as_text
from bimact.sweep.sweep_file import Sweep
from bimact.training.demonstrations import open_demonstrations
from bimact.training.mixture import open_training_data, with_datasets

_WARM_UP = 10  # values of a metric that is not logged once per epoch


@dataclass(frozen=True)
class SweepPlan:
    """A sweep and how this process takes part in it.

    Attributes:
        sweep: the sweep file.
        config: YAML that each trial starts from.
        settings: of each trial on top of it, besides its parameters.
        base: config and settings, as far as they are the same for all trials.
        dataset: identifies the demonstrations.
        program: a Python script that trains; None: `bimact train`.
        folder: of the sweep.
        storage: URL of a database; None: a file in the folder.
        total: number of trials of the sweep, of all processes together.
        jobs: number of concurrent trials of this process.
        timeout: seconds after which this process ends; None: when all trials are done.
        pruning: whether bad trials are ended early.
        command: of this call, for messages.
    """

    sweep: Sweep
    config: Path
    settings: dict[str, str]
    base: Config
    dataset: str
    program: Path | None
    folder: Path
    storage: str | None
    total: int
    jobs: int
    timeout: float | None
    pruning: bool
    command: str

    @property
    def warm_up(self) -> int | None:
        """Number of values of the metric before a trial may be pruned; None: no pruning."""
        if not self.pruning:
            return None
        counts_epochs = self.sweep.metric == "val_loss" and self.base.num_steps is None
        return max(1, self.base.num_epochs // 4) if counts_epochs else _WARM_UP

    @property
    def comparable(self) -> dict[str, Any]:
        """Settings, other than the sweep file, that all trials must share for comparable results."""
        names = [
            name
            for name, entry in keys().items()
            if entry.metadata["changes"] != "nothing" and name not in self.sweep.space
        ]
        return {"demonstrations": self.dataset, **{name: setting_value(self.base, name) for name in names}}

    def settings_of(self, parameters: Mapping[str, Any]) -> dict[str, str]:
        """Settings of a trial, on top of the config."""
        return {**self.settings, **{name: as_text(value) for name, value in parameters.items()}}


def plan_sweep(
    sweep: Sweep,
    config: Path,
    settings: Mapping[str, str],
    *,
    output_dir: str | None = None,
    storage: str | None = None,
    trials: int | None = None,
    jobs: int = 1,
    timeout: float | None = None,
    pruning: bool = True,
    command: str = "",
) -> SweepPlan:
    """Check everything that a sweep needs.

    Args:
        sweep: the sweep file.
        config: YAML that each trial starts from.
        settings: of each trial, on top of the config.
        output_dir: the sweep's folder; None: by the file's name.
        storage: URL of a database; None: a file in the folder.
        trials: number of trials of the sweep; None: as many as a grid has, or the file's `run_cap`.
        jobs: number of concurrent trials.
        timeout: minutes.
        pruning: whether bad trials are ended early.
        command: of this call, for messages.

    Raises:
        UserError: if the sweep's folder cannot be written, or something is wrong with the settings or demonstrations.
    """
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}, it has to be at least 1")
    for name in settings:
        if name in sweep.space:
            raise UserError(f"'{name}' is a parameter of {sweep.path}: remove it there to set it for all trials")
    constants = {
        name: as_text(distribution.choices[0])
        for name, distribution in sweep.space.items()
        if isinstance(distribution, CategoricalDistribution) and len(distribution.choices) == 1
    }
    folder = Path(expand_home(output_dir)) if output_dir else Path("sweeps") / sweep.name
    check_writable(folder)
    base = load_config(config, [f"{name}={value}" for name, value in {**settings, **constants}.items()])
    program = in_project(sweep.program) if sweep.program else None
    dataset = _check_demonstrations(sweep, base)
    limits = [number for number in (trials, sweep.run_cap, sweep.combinations) if number is not None]
    if not limits:
        raise UserError(f"method {sweep.method} never ends: pass a number of trials, such as --trials 20")
    if min(limits) < 1:
        raise UserError(f"--trials is {trials}, it has to be at least 1")
    return SweepPlan(
        sweep=sweep,
        config=config,
        settings=dict(settings),
        base=base,
        dataset=dataset,
        program=program if program is not None and program.is_file() else None,
        folder=folder,
        storage=storage,
        total=min(limits),
        jobs=jobs,
        timeout=None if timeout is None else 60 * timeout,
        pruning=pruning,
        command=command,
    )


def in_project(path: str | Path) -> Path:
    """A path relative to the working directory or, if there is no such file, to the project's root."""
    project = Path(bimact.__file__).parents[2]  # of an editable installation
    path = Path(expand_home(path))
    return path if path.exists() or not (project / path).exists() else project / path


def _check_demonstrations(sweep: Sweep, base: Config) -> str:
    """Check that there are episodes to train on and, for val_loss, to validate on.

    Returns:
        an identifier of these demonstrations.
    """
    shares: list[Any] = [base.val_split]
    if "val_split" in sweep.space:
        distribution = sweep.space["val_split"]
        shares = list(distribution.choices) if isinstance(distribution, CategoricalDistribution) else []
    if sweep.metric == "val_loss" and 0 in shares:
        raise UserError("the sweep compares val_loss, which does not exist with val_split 0: pass --val_split 0.1")
    if "dataset_dir" in sweep.space and base.dataset_dir is None:
        return "chosen by each trial"
    base = with_datasets(base)
    path = base.dataset_dir or expand_home(os.environ.get("ACT_DATASET_DIR", ""))
    if base.datasets is not None:
        episodes, _ = open_training_data(base)
    elif path:
        episodes, _ = open_demonstrations(base, path)
    else:
        raise UserError("a sweep needs --dataset_dir (or ACT_DATASET_DIR)")
    if sweep.metric == "val_loss" and len(split_each(episodes, max(shares, default=0.1), 0)[1]) == 0:
        raise UserError(f"{path} has a single episode, so none can be held out, and there is no val_loss to compare")
    return episodes.fingerprint
