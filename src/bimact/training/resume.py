"""Resuming a run: settings and data have to be those of its training; differences are reported."""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bimact.config import Config, setting_value, settings
from bimact.data.episodes import Episodes
from bimact.errors import UserError
from bimact.files import expand_home
from bimact.run_directory import Run, recorded
from bimact.training.checkpoint import load_pair


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint that a run resumes from.

    Attributes:
        path: the weights file.
        run: the run that it belongs to.
        config: that run's settings; None for a weights file outside of a run directory.
        weights: the policy's state dict.
        state: the trainer's state; None if there is none.
    """

    path: Path
    run: Run
    config: Config | None
    weights: dict[str, Tensor]
    state: dict[str, Any] | None

    @property
    def epochs(self) -> int:
        """The epoch in the file's name; 0 if there is none."""
        number = self.path.stem.rpartition("-")[2]
        return int(number) if number.isdigit() else 0


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint and the trainer's state next to it.

    Args:
        path: a weights file; or a run directory or its directory of checkpoints, for the last checkpoint.

    Raises:
        UserError: if it is missing or damaged.
    """
    path, run = Path(expand_home(path)), Run.of(path)
    if path.is_dir():
        path = run.last_checkpoint()
    weights, state = load_pair(path)
    return Checkpoint(path, run, run.config if run.config_path.is_file() else None, weights, state)


def keep_resolved_settings(config: Config, checkpoint: Checkpoint) -> Config:
    """Keep the settings that the run has resolved itself: the batch size, and whether it trains on cached features.

    With and without cached features the rounding differs. An encoder that is no longer frozen has none.
    """
    before = checkpoint.config
    if before is None:
        return config
    if config.auto_batch_size:
        config = dataclasses.replace(config, auto_batch_size=False, batch_size=before.batch_size)
    if config.feature_cache is None:
        config = dataclasses.replace(config, feature_cache=before.feature_cache and config.encoder.freeze)
    return config


def check_config_changes(config: Config, checkpoint: Checkpoint, episodes: Episodes, override: bool) -> list[str]:
    """Compare the settings and the demonstrations of a resumed run with those of its checkpoint.

    Args:
        config: of this call, with the dataset's sizes filled in.
        checkpoint: of the run.
        episodes: the demonstrations.
        override: whether settings that affect learning, and the demonstrations, may differ.

    Returns:
        a line for each difference.

    Raises:
        UserError: if the network would differ, or `override` is needed and not given.
    """
    lines: dict[str, list[str]] = {"network": [], "learning": [], "length": [], "nothing": []}
    if checkpoint.config is not None:
        old, new = (
            dataclasses.replace(one, dataset_dir=_absolute(one.dataset_dir), datasets=_absolute_paths(one))
            for one in (checkpoint.config, config)
        )
        for name, entry in settings().items():
            before, after = setting_value(old, name), setting_value(new, name)
            if before != after and name not in ("output_dir", "auto_batch_size"):
                before, after = ("null" if value is None else value for value in (before, after))
                lines[entry.metadata["changes"]].append(f"{name}: {before} → {after}")
        if old.tasks != new.tasks:
            lines["network"].append(f"tasks: {old.tasks} → {new.tasks}")
    if lines["network"]:
        raise UserError(
            f"{checkpoint.path} has another network than the settings ask for ({'; '.join(lines['network'])}): "
            "leave these settings as they were, or begin a new run"
        )
    # With a constant learning rate the steps do not depend on the length.
    learning = lines["learning"] + (lines["length"] if config.lr_schedule != "constant" else [])
    if learning and not override:
        raise UserError(
            f"the settings differ from those of {checkpoint.run.path} ({'; '.join(learning)}): leave them as they "
            "were, or pass --override_config to resume with the new ones"
        )
    changes = [*lines["learning"], *lines["length"], *lines["nothing"]]
    if checkpoint.state is not None and checkpoint.state["dataset"] != episodes.fingerprint:
        if not override:
            raise UserError(
                f"{episodes.path} is not the dataset that {checkpoint.run.path} was trained on: other episodes would "
                "be held out for validation; give the same one, or pass --override_config to resume with this one"
            )
        changes.append("the demonstrations: other episodes are held out for validation")
    return changes


def _absolute(dataset: str | None) -> str | None:
    """The absolute path of a dataset on this machine; names on the hub and URLs stay as they are."""
    return os.path.abspath(dataset) if dataset is not None and os.path.lexists(dataset) else dataset  # noqa: PTH100


def _absolute_paths(config: Config) -> list[dict[str, Any]] | None:
    """`datasets` with absolute paths."""
    if config.datasets is None:
        return None
    return [{**item, "path": _absolute(item["path"])} for item in config.datasets]


def refuse_other_run(run: Run, checkpoint: Checkpoint | None) -> None:
    """Refuse to start a new run in a directory that holds one.

    Raises:
        UserError: naming how to resume, and a free name.
    """
    if not (run.config_path.exists() or run.checkpoints.exists()):
        return
    if checkpoint is not None and checkpoint.run.path.resolve() == run.path.resolve():
        return
    free = next(f"{run.path}-{number}" for number in range(2, 10**6) if not Path(f"{run.path}-{number}").exists())
    last = run.checkpoints / "act-train-last.pth"
    resume = f"resume it by --resume_from {last}, or " if last.exists() else ""
    raise UserError(f"{run.path.resolve()} holds a run already: {resume}choose a free name such as --output_dir {free}")


def run_record(config: Config, run: Run) -> Config:
    """The content of `R/config.yaml`, with the dataset's path, absolute and relative to the run."""
    dataset = _absolute(config.dataset_dir)
    is_here = dataset is not None and os.path.lexists(dataset)
    relative = os.path.relpath(dataset, run.path.absolute()) if dataset is not None and is_here else None
    return dataclasses.replace(
        recorded(config), dataset_dir=dataset, datasets=_absolute_paths(config), dataset_dir_relative=relative
    )


def take_over_metrics(checkpoint: Checkpoint | None, run: Run, step: int) -> None:
    """Copy the metrics to a new run directory; rename those of an earlier run that starts anew."""
    target = run.metrics_path
    if checkpoint is not None and checkpoint.run.metrics_path.exists() and not target.exists():
        shutil.copyfile(checkpoint.run.metrics_path, target)
    if step == 0 and target.exists():
        number = next(n for n in range(1, 10**6) if not target.with_suffix(f".before-{n}.jsonl").exists())
        target.rename(target.with_suffix(f".before-{number}.jsonl"))
