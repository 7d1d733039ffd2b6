"""Where a run's figures go: `metrics.jsonl` always, TensorBoard by default, Weights & Biases on request."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from bimact.config import Config
from bimact.files import write_text

METRICS = "metrics.jsonl"


def trackers_of(config: Config) -> list[str]:
    """Names of the trackers for `accelerate.Accelerator(log_with=…)`."""
    return [name for name, wanted in (("tensorboard", config.tensorboard), ("wandb", config.wandb_project)) if wanted]


class MetricsLog:
    """Writes each record as a line of `metrics.jsonl` and passes it on to the trackers.

    Args:
        accelerator: made with `log_with=trackers_of(config)`.
        config: of the run.
        run: the run's folder.
        step: records after this step are dropped from an existing file, since they will be written again.
    """

    def __init__(self, accelerator: Accelerator, config: Config, run: Path, step: int) -> None:
        self._accelerator = accelerator
        self._path = run / METRICS
        if not accelerator.is_main_process:
            return
        _drop_records_after(self._path, step)
        self._file = self._path.open("a")
        _init_trackers(accelerator, config, run)

    def log(self, record: dict[str, Any], step: int) -> None:
        """One record: names and numbers, at an optimizer step."""
        if not self._accelerator.is_main_process:
            return
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        self._accelerator.log(record, step=step)

    def close(self) -> None:
        if self._accelerator.is_main_process:
            self._file.close()
        self._accelerator.end_training()


def _drop_records_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    records = read_metrics(path)
    kept = [record for record in records if record["step"] <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line that a kill has cut short is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _init_trackers(accelerator: Accelerator, config: Config, run: Path) -> None:
    settings = dataclasses.asdict(config)
    options: dict[str, Any] = {}
    if config.wandb_project:
        import wandb

        offline = not (os.environ.get("WANDB_MODE") or wandb.api.api_key)
        if offline:
            print("W&B: not logged in, so the run is kept offline; `wandb login`, then `wandb sync` uploads it")
        options["wandb"] = {
            "name": config.wandb_name,
            "tags": config.wandb_tags,
            "dir": str(run),
            "config": settings,
            **({"mode": "offline"} if offline else {}),
        }
    accelerator.init_trackers(config.wandb_project or "tensorboard", init_kwargs=options)
