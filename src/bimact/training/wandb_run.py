"""A training run at Weights & Biases: online if possible, otherwise offline; training never waits for it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

from bimact.config import Config
from bimact.errors import UserError, first_line, in_words

INIT_SECONDS = 30.0  # for the server to answer at the start
FINISH_SECONDS = 60.0  # for what is left to upload at the end
FINISH_SECONDS_WITH_CHECKPOINTS = 300.0
HANDOVER_SECONDS = 10.0  # at the end, to register the last checkpoints before their upload

# The server refuses or is unreachable, the disk is full, or W&B's own process has died.
_FAILURES = (
    wandb.Error,
    OSError,
    HandleAbandonedError,
    MailboxClosedError,
    ServerResponseError,
    WandbApiFailedError,
)


class WandbRun:
    """A run at Weights & Biases. W&B's environment variables apply where the config is null.

    Args:
        config: of the run.
        folder: of the run; W&B's files go into its `wandb`.
        run_id: of the W&B run to resume; None: a new one. Project and run of a `wandb agent` take precedence.
        best_val_loss: the lowest validation loss so far of a resumed run.

    Raises:
        UserError: for a project, name or tag that W&B does not accept.
    """

    def __init__(self, config: Config, folder: Path, *, run_id: str | None, best_val_loss: float | None) -> None:
        self._keeps_all = config.keep_checkpoints is None and config.max_run_size is None
        self._folder = folder
        self._best_val_loss = best_val_loss
        self._uploader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wandb")
        self._uploads: list[Future[None]] = []
        self._run = _start(_settings(config, folder, run_id), dataclasses.asdict(config))
        self._first_step = self._run.starting_step if self._run else 0
        self._attempt(_use_step_as_axis)

    @property
    def id(self) -> str | None:
        """The id to resume the run by; None if W&B stores nothing."""
        return None if self._run is None or self._run.disabled else self._run.id

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """A record at an optimizer step; steps that the server already has are left out."""
        loss = record.get("val_loss", math.nan)
        if math.isfinite(loss):
            self._best_val_loss = loss if self._best_val_loss is None else min(loss, self._best_val_loss)
        if step >= self._first_step:
            self._attempt(lambda run: run.log({**record, "step": step}, step=step))

    def log_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """An image (H, W, 3) uint8 RGB at an optimizer step."""
        self.log({name: wandb.Image(pixels)}, step)

    def log_checkpoint(self, weights: Path, *, is_best: bool, metadata: Mapping[str, Any]) -> None:
        """Weights and the run's config as a version of the artifact `act-<run id>`, laid out as a run folder.

        The files are read before this returns, except numbered weights, which never change. A thread uploads them:
        that waits for the server.
        """
        if self._run is None or self._run.disabled:
            return
        epoch = re.search(r"-(\d+)$", weights.stem)
        aliases = ["latest", *([f"epoch-{epoch[1]}"] if epoch else []), *(["best"] if is_best else [])]
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"act-{self._run.id}"), "model", metadata=dict(metadata))
        try:
            artifact.add_file(
                str(weights.resolve()),
                f"checkpoint/{weights.name}",
                skip_cache=True,
                policy="immutable" if epoch and self._keeps_all else "mutable",  # mutable: of a copy
            )
            artifact.add_file(str(self._folder.resolve() / "config.yaml"), "config.yaml", skip_cache=True)
        except (OSError, ValueError) as error:
            _tell(f"{weights} is not uploaded ({first_line(error)})")
        else:
            self._uploads.append(self._uploader.submit(_hand_over, self._run, artifact, aliases, weights))

    def close(self, exit_code: int) -> None:
        """Upload what is left, within some time. The summary's `val_loss` becomes the lowest, which sweeps compare."""
        late = wait(self._uploads, timeout=HANDOVER_SECONDS).not_done
        self._uploader.shutdown(wait=False, cancel_futures=True)
        if late:
            _tell(f"the server did not accept {len(late)} checkpoints; they stay in {self._folder}")
        self._attempt(lambda run: _finish(run, exit_code, self._best_val_loss))
        self._run = None

    def _attempt(self, action: Callable[[wandb.Run], None]) -> None:
        """Call a function with the run, if there is one; a failure ends the W&B run, not the training."""
        if self._run is None:
            return
        try:
            action(self._run)
        except _FAILURES as error:
            _tell(f"stopped ({first_line(error)}); training continues, and metrics.jsonl holds all metrics")
            for end in (self._run.finish, wandb.teardown):
                with suppress(*_FAILURES):
                    end()
            self._run = None


def _settings(config: Config, folder: Path, run_id: str | None) -> wandb.Settings:
    try:
        settings = wandb.Settings(
            project=config.wandb_project,
            run_name=config.wandb_name,
            run_tags=None if config.wandb_tags is None else tuple(config.wandb_tags),
            run_id=run_id,
            resume=None if run_id is None else "allow",
            root_dir=os.environ.get("WANDB_DIR", str(folder.resolve())),
            reinit="create_new",
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS if config.wandb_checkpoints == "none" else FINISH_SECONDS_WITH_CHECKPOINTS,
            finish_timeout_raises=True,
        )
    except (wandb.errors.UsageError, ValueError) as error:
        reason = in_words(error)
        raise UserError(f"W&B does not accept this wandb_project, wandb_name or wandb_tags: {reason}") from None
    if sys.stdout.isatty() and "WANDB_CONSOLE" not in os.environ:
        settings.console = "off"  # the progress bar, drawn ten times per second, would fill W&B's copy of the terminal
    return settings


def _start(settings: wandb.Settings, config: dict[str, Any]) -> wandb.Run | None:
    """Begin a run: online, or offline, with the reason printed; None if neither is possible."""
    reason = _why_offline()
    if reason is None:
        try:
            return wandb.init(config=config, settings=settings)
        except _FAILURES as error:
            reason = f"the server does not accept the run ({first_line(error)})"
            wandb.teardown()  # sets the id free
    try:
        run = wandb.init(config=config, settings=settings, mode="offline")
    except _FAILURES as error:
        _tell(f"not used ({first_line(error)})")
        return None
    _tell(f"{reason}, so the run is kept offline; `{_sync_command(run)}` uploads it later")
    return run


def _why_offline() -> str | None:
    """Why the server cannot be used; None if it can, or is not wanted. It is asked only if there is a key."""
    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return None
    try:
        return None if wandb.login(prompt=False) else "not logged in (`wandb login`)"
    except wandb.errors.AuthenticationError as error:
        return first_line(error)


def _use_step_as_axis(run: wandb.Run) -> None:
    """W&B's own step is the optimizer step too, but `wandb sync` renumbers steps that it has already."""
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")


def _hand_over(run: wandb.Run, artifact: wandb.Artifact, aliases: list[str], weights: Path) -> None:
    try:
        run.log_artifact(artifact, aliases=aliases)
    except (*_FAILURES, ValueError) as error:
        _tell(f"{weights} is not uploaded ({first_line(error)})")


def _finish(run: wandb.Run, exit_code: int, best_val_loss: float | None) -> None:
    if best_val_loss is not None:
        run.log({}, commit=True)  # the last record would overwrite the summary
        run.summary["val_loss"] = best_val_loss
    try:
        run.finish(exit_code)
    except TimeoutError:
        _tell(f"not all is uploaded; `{_sync_command(run)}` uploads the rest")


def _sync_command(run: wandb.Run) -> str:
    return f"wandb sync {'' if run.offline else '--include-online '}{Path(run.dir).parent}"


def _tell(sentence: str) -> None:
    print(f"W&B: {sentence}", flush=True)
