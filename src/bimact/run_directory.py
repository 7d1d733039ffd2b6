"""What a run directory holds, and where: `config.yaml`, `checkpoint/`, `metrics.jsonl`, `interface.json`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bimact.config import Config, load_config
from bimact.errors import UserError
from bimact.files import expand_home

RUN_CONFIG, CHECKPOINTS, METRICS, INTERFACE = "config.yaml", "checkpoint", "metrics.jsonl", "interface.json"
EVALUATIONS, BEST_SUCCESS = "evaluations", "best-success"  # results of rollouts in training; the checkpoint they select
WEIGHTS, STATE = ".pth", ".state"  # of a checkpoint: the policy's state dict, and what resuming needs besides
SAFETENSORS = ".safetensors"  # the state dict of a run that was pushed to the hub


@dataclass(frozen=True)
class Run:
    """A run directory, which need not exist yet.

    Attributes:
        path: the directory itself. `Run.of` takes a path into it as well.
    """

    path: Path

    @classmethod
    def of(cls, path: str | Path) -> Run:
        """The run that a checkpoint file or the directory of checkpoints belongs to; any other directory is the run."""
        path = Path(expand_home(os.fspath(path)))
        if not path.is_dir():
            return cls(path.parent.parent if path.absolute().parent.name == CHECKPOINTS else path.parent)
        if path.absolute().name != CHECKPOINTS or (path / RUN_CONFIG).exists():
            return cls(path)
        return cls(path.parent if path.name == CHECKPOINTS else path.absolute().parent)

    @classmethod
    def existing(cls, path: str | Path) -> Run:
        """As `of`, for a directory.

        Raises:
            UserError: if `path` is a file, or not a run directory.
        """
        path = Path(expand_home(os.fspath(path)))
        if path.is_file():
            raise UserError(f"{path} is a file: give the run directory, and select the checkpoint by --checkpoint")
        run = cls.of(path)
        if not run.config_path.is_file():
            raise UserError(f"{run.path.resolve()} is not a run directory: it has no {RUN_CONFIG}")
        return run

    @property
    def config_path(self) -> Path:
        return self.path / RUN_CONFIG

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def metrics_path(self) -> Path:
        return self.path / METRICS

    @property
    def interface_path(self) -> Path:
        return self.path / INTERFACE

    @cached_property
    def config(self) -> Config:
        """The run's config, complete.

        Raises:
            UserError: if it cannot be read.
        """
        return load_config(self.config_path)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl`, without those on the dataset; empty if there is no such file."""
        return read_metrics(self.metrics_path) if self.metrics_path.is_file() else []

    def checkpoint(self, which: str | int = "best") -> Path:
        """The weights file of a checkpoint: `best`, `last` or an epoch's number.

        Raises:
            UserError: if the run has no such checkpoint; the sentence lists those that it has.
        """
        path = self.checkpoints / f"act-train-{which}{WEIGHTS}"
        if not path.exists():  # a run that comes from the hub
            path = path.with_suffix(SAFETENSORS)
        if not path.exists():
            files = [file for end in (WEIGHTS, SAFETENSORS) for file in self.checkpoints.glob(f"act-train-*{end}")]
            found = sorted(files, key=_epoch_of)
            names = ", ".join(entry.stem.removeprefix("act-train-") for entry in found) or "none"
            raise UserError(f"{self.path.resolve()} has no checkpoint '{which}'; it has: {names}")
        return path

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        try:
            self.last_checkpoint()
        except UserError:
            return False
        return True

    def last_checkpoint(self) -> Path:
        """The weights file to resume from: `last`, or after a kill before there was one, the highest epoch's.

        Raises:
            UserError: if the run has no checkpoint.
        """
        last = self.checkpoints / f"act-train-last{WEIGHTS}"
        if last.exists() or (unfinished(last).exists() and last.with_suffix(STATE).exists()):
            return last
        numbered = [path for path in self.checkpoints.glob(f"act-train-*{WEIGHTS}") if _epoch_of(path)[0] >= 0]
        return max(numbered, key=_epoch_of) if numbered else self.checkpoint("last")

    def dataset(self) -> tuple[str | None, str | None]:
        """Where the run's demonstrations are: where they were, or else at the same place seen from the run directory.

        Returns:
            the dataset, None if the config names none; and a line that says so if it is not where it was.
        """
        path, relative = self.config.dataset_dir, self.config.dataset_dir_relative
        if path is None or relative is None or os.path.lexists(path):
            return path, None
        moved = os.path.normpath(self.path.absolute() / relative)
        if not os.path.lexists(moved):
            return path, None
        return moved, f"{path} does not exist: using {moved}, which is at the same place relative to the run directory"


def recorded(config: Config) -> Config:
    """A config as `R/config.yaml` has it: the policy that is rebuilt from it takes its weights from checkpoints."""
    encoder = dataclasses.replace(config.encoder, weights_from_checkpoint=True)
    return dataclasses.replace(config, encoder=encoder, auto_batch_size=False)


def unfinished(weights: Path) -> Path:
    """Where a checkpoint's new weights are complete before they take their place."""
    return weights.with_name(f".{weights.name}.new")


def _epoch_of(path: Path) -> tuple[int, str]:
    number = re.search(r"act-train-(\d+)$", path.stem)
    return (int(number[1]) if number else -1, path.stem)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, without those on the dataset."""
    return [record for record in metrics_lines(path) if "dataset" not in record]


def read_dataset_record(path: Path) -> dict[str, Any] | None:
    """What a training used of its dataset, as the last such record of a `metrics.jsonl` says; None: there is none."""
    return next((record["dataset"] for record in reversed(metrics_lines(path)) if "dataset" in record), None)


def metrics_lines(path: Path) -> list[dict[str, Any]]:
    """All records of a `metrics.jsonl`; a last line that a kill has cut short is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
