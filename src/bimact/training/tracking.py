"""The logs of a run's metrics: `metrics.jsonl` always, TensorBoard by default, Weights & Biases on request."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bimact.config import Config
from bimact.files import write_text
from bimact.run_directory import METRICS, metrics_lines

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from bimact.training.wandb_run import WandbRun

_TENSORBOARD_FLUSH_SECONDS = 30


def wants_wandb(config: Config) -> bool:
    """Whether a run goes to Weights & Biases: a project is named, or `wandb agent` has started the process."""
    return bool(config.wandb_project) or "WANDB_SWEEP_ID" in os.environ


class MetricsLog:
    """Writes each record as a line of `metrics.jsonl` and passes it on to TensorBoard and Weights & Biases.

    For one process of a run only.

    Args:
        config: of the run.
        run: the run's folder.
        step: optimizer step from which a run is resumed: records after it are dropped, since they are logged again.
        wandb_id: the Weights & Biases run to resume.

    Raises:
        UserError: for a project, name or tag that Weights & Biases does not take.
    """

    def __init__(self, config: Config, run: Path, *, step: int = 0, wandb_id: str | None = None) -> None:
        self._checkpoints = config.wandb_checkpoints
        self._last_record: dict[str, Any] = {}
        self._new_best: tuple[Path, dict[str, Any]] | None = None  # not uploaded yet
        path = run / METRICS
        lines = [record for record in metrics_lines(path) if record["step"] <= step] if path.exists() else []
        records = [record for record in lines if "dataset" not in record]
        self._wandb = _start_wandb(config, run, wandb_id, records) if wants_wandb(config) else None
        self._tensorboard = _start_tensorboard(run, step) if config.tensorboard else None
        write_text(path, "".join(json.dumps(record) + "\n" for record in lines))
        self._file = path.open("a")
        self._dataset = next((record["dataset"] for record in reversed(lines) if "dataset" in record), None)

    @property
    def wandb_id(self) -> str | None:
        """Of the Weights & Biases run, for resuming; None without one."""
        return self._wandb.id if self._wandb else None

    def log(self, record: dict[str, Any], step: int) -> None:
        """One record: names and numbers, at an optimizer step."""
        self._last_record = {"step": step, **record}
        self._file.write(json.dumps(self._last_record) + "\n")
        self._file.flush()
        if self._tensorboard:
            for name, value in record.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(record, step)

    def log_dataset(self, dataset: dict[str, Any], step: int) -> None:
        """The parts of the dataset that training uses and leaves out: a line of `metrics.jsonl` alone."""
        dataset = json.loads(json.dumps(dataset))  # as it is read back
        if dataset != self._dataset:  # a resumed run has logged it before
            self._dataset = dataset
            self._file.write(json.dumps({"step": step, "dataset": dataset}) + "\n")
            self._file.flush()

    @property
    def shows_figures(self) -> bool:
        """Whether figures are logged anywhere."""
        return self._tensorboard is not None or self._wandb is not None

    def log_figure(self, name: str, figure: Figure, step: int) -> None:
        """A figure as an image in TensorBoard and Weights & Biases."""
        if not self.shows_figures:
            return
        pixels = _render(figure)
        if self._tensorboard:
            self._tensorboard.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb:
            self._wandb.log_image(name, pixels, step)

    def log_checkpoint(self, path: Path, *, is_best: bool, numbered: bool = True) -> None:
        """Upload weights and config to Weights & Biases, if `wandb_checkpoints` asks for them.

        A best checkpoint waits for the next numbered one, since at first each epoch is the best so far.
        """
        metadata = {name: self._last_record.get(name) for name in ("epoch", "step", "val_loss")}
        if is_best:
            self._new_best = (path, metadata)
        if self._wandb is None or not numbered:
            return
        if self._checkpoints == "all" and not is_best:
            self._wandb.log_checkpoint(path, is_best=False, metadata=metadata)
        if self._checkpoints != "none" and self._new_best is not None:
            best, metadata = self._new_best
            self._new_best = None
            self._wandb.log_checkpoint(best, is_best=True, metadata=metadata)

    def close(self, exit_code: int = 0) -> None:
        """Flush the pending records. For Weights & Biases, anything but 0 marks the run as failed."""
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.close(exit_code)


def _start_tensorboard(run: Path, step: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter  # takes a second

    purge_step = step + 1 if step else None  # what an interrupted run wrote after its checkpoint is hidden
    return SummaryWriter(str(run / "tensorboard"), purge_step=purge_step, flush_secs=_TENSORBOARD_FLUSH_SECONDS)


def _start_wandb(config: Config, run: Path, wandb_id: str | None, records: list[dict[str, Any]]) -> WandbRun:
    from bimact.training.wandb_run import WandbRun  # takes some seconds

    losses = [record["val_loss"] for record in records if math.isfinite(record.get("val_loss", math.nan))]
    return WandbRun(config, run, run_id=wandb_id, best_val_loss=min(losses, default=None))


def _render(figure: Figure) -> np.ndarray:
    """A figure as an image (H, W, 3) uint8 RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
