"""The training loop: demonstrations in, a run folder with checkpoints and figures out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader

from bimact.config import Config, save_config
from bimact.data.checks import refuse_nonfinite
from bimact.data.episodes import Episodes
from bimact.data.formats import open_dataset
from bimact.data.normalize import compute_statistics
from bimact.data.windows import (
    Batch,
    ShuffledSampler,
    WindowDataset,
    WindowIndex,
    make_loader,
    split_episodes,
)
from bimact.errors import UserError
from bimact.policy.act import ActPolicy, act_losses
from bimact.train.checkpoint import FOLDER, copy_checkpoint, load_state, load_weights, save_checkpoint
from bimact.train.device import make_accelerator, to_device
from bimact.train.tracking import MetricsLog
from bimact.train.watch import LossWatch, StepTimes, TrainingDisplay, stop_at_step_end

RUN_CONFIG = "config.yaml"


def fill_from_dataset(config: Config, episodes: Episodes) -> Config:
    """Settle what the config leaves to the dataset: cameras and the sizes of images, state and action.

    Raises:
        UserError: if the config says otherwise than the dataset.
    """
    state_dim, action_dim = episodes.state.shape[1], episodes.actions.shape[1]
    for name, wanted, size in (
        ("state_dim", config.state_dim, state_dim),
        ("action_dim", config.action_dim, action_dim),
    ):
        if wanted not in (None, size):
            raise UserError(f"{name} is {wanted} in the config, but {episodes.path} has {size}")
    cameras = config.cameras if config.cameras is not None else list(episodes.cameras)
    sizes = {rows.shape[1:3] for camera, rows in episodes.images.items() if camera in cameras}
    return dataclasses.replace(
        config,
        cameras=cameras,
        image_size=list(sizes.pop()) if len(sizes) == 1 else None,
        state_dim=state_dim,
        action_dim=action_dim,
    )


class ActTrainer:
    """Trains a policy on a dataset.

    Args:
        config: with `dataset_dir` and `output_dir`.
        resume_from: a checkpoint's weights file to go on from.

    Raises:
        UserError: for faulty input, or an output folder that holds another run.
    """

    def __init__(self, config: Config, resume_from: str | Path | None = None) -> None:
        if config.dataset_dir is None or config.output_dir is None:
            raise UserError("training needs --dataset_dir and --output_dir")
        self.run = Path(config.output_dir)
        self.resume_from = None if resume_from is None else Path(resume_from)
        _refuse_other_run(self.run, self.resume_from)
        episodes = open_dataset(config.dataset_dir, cache_dir=config.cache_dir)
        refuse_nonfinite(episodes)
        self.config = config = fill_from_dataset(config, episodes)
        self.accelerator = make_accelerator(config)
        set_seed(config.seed)

        self._print("Building ACT policy...")
        policy = ActPolicy(config)
        train_episodes, val_episodes = split_episodes(episodes.lengths, config.val_split, config.seed)
        for normalizer, rows in (
            (policy.state_normalizer, episodes.state),
            (policy.action_normalizer, episodes.actions),
        ):
            normalizer.fit(compute_statistics(rows[episodes.rows_of(number)] for number in train_episodes))
        self._print(f"Total parameters: {sum(p.numel() for p in policy.parameters()):,}")
        self._print(f"Trainable parameters: {sum(p.numel() for p in policy.parameters() if p.requires_grad):,}\n")

        self._print("Creating data loaders...")
        self.sampler, self.train_loader, self.val_loader = self._make_loaders(episodes, train_episodes, val_episodes)
        self._print(f"Training samples: {self.sampler.length}")
        if self.val_loader is not None:
            self._print(f"Validation samples: {len(self.val_loader.dataset)}")  # type: ignore[arg-type]
        self.steps_per_epoch = math.ceil(self.sampler.length / config.batch_size)
        self.total_steps = config.num_steps or config.num_epochs * self.steps_per_epoch
        self.total_epochs = math.ceil(self.total_steps / self.steps_per_epoch)

        optimizer = _make_optimizer(policy, config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        self.policy, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.step = 0  # optimizer steps done
        self.pending: list[Tensor] = []  # losses (3,) of steps that are not logged yet, still on the device
        self.best_val_loss = math.inf
        self.watch = LossWatch()
        if self.resume_from is not None:
            self._resume(self.resume_from)

    def fit(self) -> Path:
        """Train to the end.

        Returns:
            the run's folder.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            trained = dataclasses.replace(self.config.encoder, weights_from_checkpoint=True)
            save_config(dataclasses.replace(self.config, encoder=trained), self.run / RUN_CONFIG)
        self.metrics = MetricsLog(self.accelerator, self.config, self.run, self.step)
        self._print("\nStarting training...")
        display = TrainingDisplay(self.step, self.total_steps, self.accelerator.is_main_process)
        try:
            with stop_at_step_end() as self.stop, display as self.display:
                while self.step < self.total_steps and not self.stop.requested:
                    self._train_epoch(self.step // self.steps_per_epoch)
        finally:
            self.metrics.close()
        if self.stop.requested and self.step < self.total_steps:
            path = self._save("last")
            self._print(f"\nInterrupted at step {self.step}. To go on: --resume_from {path}")
            raise KeyboardInterrupt
        return self.run

    def _train_epoch(self, epoch: int) -> None:
        """Train on what is left of an epoch, then validate and save; a request to stop leaves it at a step's end."""
        times = StepTimes()
        self.policy.train()
        for batch in times.measure_waiting(self._batches(epoch)):
            self.pending.append(self.train_step(batch))
            self.step += 1
            times.step_done()
            self.display.step_done(times)
            last = self.step == self.total_steps
            if self.step % self.config.log_frequency == 0 or last:
                self._log_steps(times, epoch)
            if last:
                break
            if self.stop.requested and self.step % self.steps_per_epoch:
                return  # a finished epoch is validated and saved first
        self.watch.check(self.pending, self.step)
        record = {"epoch": epoch + 1, "time_per_epoch": times.elapsed}
        val_loss = self.validate()
        if val_loss is not None:
            record["val_loss"] = val_loss
            self._print(f"Epoch {epoch + 1}/{self.total_epochs}: val_loss={val_loss:.4f}")
        self.metrics.log(record, self.step)
        self._save_epoch(epoch + 1, val_loss)

    def train_step(self, batch: Batch) -> Tensor:
        """One optimizer step on a batch.

        Returns:
            the losses (3,) before the step: total, action, kl; on the device, so that nothing waits for them.
        """
        obs, actions = to_device(batch, self.accelerator.device)
        with self.accelerator.autocast():
            _, output = self.policy(obs, actions)
        target = self.accelerator.unwrap_model(self.policy).action_normalizer(actions)
        losses = act_losses(output, target, obs["action_is_pad"], self.config)
        self.accelerator.backward(losses.total)
        if self.config.grad_clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.policy.parameters(), self.config.grad_clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss.detach() for loss in losses])

    @torch.no_grad()
    def validate(self) -> float | None:
        """The action loss on held-out episodes with latent 0, as at inference; None without any."""
        if self.val_loader is None:
            return None
        policy = self.accelerator.unwrap_model(self.policy)
        policy.eval()
        total = torch.zeros(2, dtype=torch.float64)
        for batch in self.val_loader:
            obs, actions = to_device(batch, self.accelerator.device)
            with self.accelerator.autocast():
                _, output = policy(obs)
            is_pad = obs["action_is_pad"]
            loss = act_losses(output, policy.action_normalizer(actions), is_pad, self.config).action
            real = (~is_pad).sum()
            total += torch.stack([loss * real, real]).double().cpu()
        policy.train()
        return float(total[0] / total[1])

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch that are not done yet."""
        self.sampler.epoch = epoch
        self.sampler.start = (self.step - epoch * self.steps_per_epoch) * self.config.batch_size
        return iter(self.train_loader)

    def _log_steps(self, times: StepTimes, epoch: int) -> None:
        self.watch.check(self.pending, self.step)
        total, action, kl = torch.stack(self.pending).mean(dim=0).tolist()
        self.pending = []
        weighted = self.config.kl_weight * kl  # so that the loss is the sum of what is shown
        record = {
            "epoch": epoch + 1,
            "total_loss": total,
            "action_loss": action,
            "kl_loss": weighted,
            "kl_divergence": kl,
            "lr": self.optimizer.param_groups[0]["lr"],
            **times.take(),
        }
        if self.accelerator.device.type == "cuda":
            record["gpu_memory"] = torch.cuda.max_memory_allocated() / 2**30
        self.metrics.log(record, self.step)
        self._print(
            f"Epoch {epoch + 1}/{self.total_epochs}, Step {self.step}: "
            f"loss={total:.3f}, action_loss={action:.3f}, kl_loss={weighted:.3f}"
        )

    def _save_epoch(self, epoch: int, val_loss: float | None) -> None:
        is_best = val_loss is not None and val_loss < self.best_val_loss
        if is_best and val_loss is not None:
            self.best_val_loss = val_loss
        ends = self.step >= self.total_steps
        numbered = epoch % self.config.checkpoint_frequency == 0 or ends
        if not self.accelerator.is_main_process or not (numbered or is_best):
            return
        path = self._save(epoch if numbered else "best")
        if numbered:
            self._print(f"Checkpoint saved: {path}")
            copy_checkpoint(path, "last")
            if is_best or (ends and self.val_loader is None):
                copy_checkpoint(path, "best")

    def _save(self, name: str | int) -> Path:
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": _random_states(),
            "best_val_loss": self.best_val_loss,
            "loss_watch": self.watch.state_dict(),
            "pending_losses": [losses.cpu() for losses in self.pending],
        }
        return save_checkpoint(self.run, name, self.accelerator.unwrap_model(self.policy).state_dict(), state)

    def _resume(self, path: Path) -> None:
        self.accelerator.unwrap_model(self.policy).load_state_dict(load_weights(path))
        state = load_state(path)
        if state is None:
            self._print(f"{path} has no training state beside it: only its weights are taken, training starts anew")
            return
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        self.best_val_loss = state["best_val_loss"]
        self.watch.load_state_dict(state["loss_watch"])
        self.pending = [losses.to(self.accelerator.device) for losses in state["pending_losses"]]
        _set_random_states(state["random"])
        self._print(f"Resuming from {path}: step {self.step} of {self.total_steps}")

    def _make_loaders(
        self, episodes: Episodes, train_episodes: Any, val_episodes: Any
    ) -> tuple[ShuffledSampler, DataLoader[Batch], DataLoader[Batch] | None]:
        config = self.config

        def dataset(chosen: Any) -> WindowDataset:
            index = WindowIndex.over(episodes, chosen, config.temporal_context, config.chunk_size)
            return WindowDataset(episodes, index, config.cameras)

        pin = self.accelerator.device.type == "cuda"
        training = dataset(train_episodes)
        sampler = ShuffledSampler(len(training), config.seed)
        train_loader = make_loader(
            training, config.batch_size, sampler=sampler, num_workers=config.num_workers, pin_memory=pin
        )
        if len(val_episodes) == 0:
            return sampler, train_loader, None
        validation = dataset(val_episodes)
        workers = config.num_workers
        return (
            sampler,
            train_loader,
            make_loader(validation, config.batch_size, num_workers=workers, pin_memory=pin),
        )

    def _learning_rate_factor(self, step: int) -> float:
        """Of the learning rate at an optimizer step: a linear warm-up, then constant or a cosine to 0."""
        warmup = self.config.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        if self.config.lr_schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(1, self.total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _print(self, line: str) -> None:
        if self.accelerator.is_main_process:
            print(line, flush=True)


def _make_optimizer(policy: ActPolicy, config: Config) -> torch.optim.Optimizer:
    """AdamW with a group for the image backbone; parameters without gradient have no state."""
    backbone: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("image_encoder.") else rest).append(parameter)
    groups: list[dict[str, Any]] = [{"params": rest, "lr": config.lr}]
    if backbone:
        groups.append({"params": backbone, "lr": config.lr_backbone or config.lr})
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def _refuse_other_run(run: Path, resume_from: Path | None) -> None:
    """A folder with a run in it may only be gone on with, never begun anew."""
    if resume_from is not None or not ((run / RUN_CONFIG).exists() or (run / FOLDER).exists()):
        return
    free = next(f"{run}-{number}" for number in range(2, 10**6) if not Path(f"{run}-{number}").exists())
    last = run / FOLDER / "act-train-last.pth"
    go_on = f"go on with it by --resume_from {last}, or " if last.exists() else ""
    raise UserError(f"{run.resolve()} holds a run already: {go_on}choose a free name such as --output_dir {free}")


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
