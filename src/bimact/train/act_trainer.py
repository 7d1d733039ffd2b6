"""The training loop: demonstrations in, a run folder with checkpoints and figures out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from bimact.config import Config, save_config
from bimact.data.episodes import Episodes
from bimact.data.summary import dataset_lines, dataset_record
from bimact.data.training_order import Part, Step
from bimact.data.windows import Batch
from bimact.errors import UserError, in_words
from bimact.files import check_writable, lock_file, writing_to
from bimact.policy.act import ActPolicy, Losses, act_losses
from bimact.policy.demonstrations import read_demonstrations, select_demonstrations
from bimact.train import resume
from bimact.train.checkpoint import RUN_CONFIG, copy_checkpoint, finish_interrupted_saves, save_checkpoint
from bimact.train.compiled import CompiledPolicy
from bimact.train.device import make_accelerator, to_device
from bimact.train.features import uses_features, with_features
from bimact.train.hints import Hints
from bimact.train.loaders import Demonstrations, Loaders, fill_from_dataset
from bimact.train.memory import is_out_of_memory, out_of_memory, with_largest_batch
from bimact.train.optimizer import clip_gradients, load_optimizer_state, make_optimizer, set_learning_rates
from bimact.train.prediction_plot import predict, prediction_figure
from bimact.train.randomness import latent_noise, seed_step
from bimact.train.ranks import Ranks
from bimact.train.tracking import MetricsLog
from bimact.train.watch import LossWatch, StepTimes, TrainingDisplay, stop_at_step_end


class ActTrainer:
    """Trains a policy on a dataset, in one process or in several that `torchrun` has started.

    All random numbers of a step depend on the seed, the step and the process alone, and the order of samples on
    the seed and the epoch: to go on exactly, a run needs its parameters, the optimizer's state and its position.

    Args:
        config: with `dataset_dir` and `output_dir`.
        resume_from: a checkpoint's weights file to go on from, or a run's folder.
        override_config: whether a resumed run may go on with other settings than it had.
        accelerator: of `make_accelerator(config)`; None: made here.

    Raises:
        UserError: for faulty input, or an output folder that holds another run.
    """

    def __init__(
        self,
        config: Config,
        resume_from: str | Path | None = None,
        *,
        override_config: bool = False,
        accelerator: Accelerator | None = None,
    ) -> None:
        if config.dataset_dir is None or config.output_dir is None:
            raise UserError("training needs --dataset_dir (or ACT_DATASET_DIR) and --output_dir")
        self.accelerator = accelerator or make_accelerator(config)
        self.ranks = Ranks(self.accelerator)
        self.run = Path(config.output_dir)
        self.ranks.check_in_main(lambda: check_writable(self.run))
        self.checkpoint = None if resume_from is None else resume.open_checkpoint(resume_from)
        resume.refuse_other_run(self.run, self.checkpoint)
        with self.accelerator.main_process_first(), self.accelerator.local_main_process_first():
            source = select_demonstrations(config, config.dataset_dir)
            lines = dataset_lines(source)
            # The training guide's output begins otherwise: where all is used as it is, it is told a moment later.
            is_plain = source.mapped() is not None and not (source.left_out or source.unusable or source.notes)
            self.lines_to_say = lines if is_plain else []
            for line in () if is_plain else (*lines, ""):
                self._print(line)
            episodes, source = read_demonstrations(config, source, self._print, for_training=self.checkpoint is None)
        self.dataset_record = dataset_record(source)
        config = fill_from_dataset(config, episodes)
        if self.checkpoint is not None:
            config = resume.keep_batch_size(config, self.checkpoint)
            config = resume.keep_feature_cache(config, self.checkpoint)
            for change in resume.settle_changes(config, self.checkpoint, episodes, override_config):
                self._print(f"Changed since: {change}")
        self.config = dataclasses.replace(config, feature_cache=uses_features(config, episodes, self.ranks.count))
        self.step = 0  # optimizer steps done
        self.pending: list[Tensor] = []  # losses (3,) of steps that are not logged yet, still on the device
        self.best_val_loss = math.inf
        self.watch = LossWatch()
        self._build(episodes)
        if self.checkpoint is not None:
            self._resume(self.checkpoint)
        self.total_steps, self.total_epochs = self.order.length_of_run(self.step, config.num_epochs, config.num_steps)

    def _build(self, episodes: Episodes) -> None:
        """Make the policy, the loaders and the optimizer."""
        policy = self._build_policy()
        self._print(f"Total parameters: {sum(p.numel() for p in policy.parameters()):,}")
        self._print(f"Trainable parameters: {sum(p.numel() for p in policy.parameters() if p.requires_grad):,}\n")
        if self.config.feature_cache:
            episodes = with_features(self.config, policy, episodes, self.accelerator)
        data = Demonstrations.split(episodes, self.config)
        if self.config.auto_batch_size:
            self.config = with_largest_batch(self.config, data.training, self.accelerator, self.ranks)
        config = self.config
        if self.checkpoint is None:
            data.fit_normalizers(policy)
        self._print("Creating data loaders...")
        self.data = data
        self.loaders = Loaders.of(data, config, self.ranks, pin_memory=self.accelerator.device.type == "cuda")
        self.order = self.loaders.order
        self._print(f"Training samples: {len(data.training)}")
        if data.validation is not None:
            self._print(f"Validation samples: {len(data.validation)}")
        optimizer = make_optimizer(policy, config, self.ranks.count * config.gradient_accumulation_steps)
        self.policy, self.optimizer = self.accelerator.prepare(self.ranks.joined(policy), optimizer)
        self.learner = self._compiled() if config.compile else self.policy

    def _compiled(self) -> CompiledPolicy:
        self._print("Compiling the policy: the first step takes a minute or more")
        # Gradients that are added up must outlive the graph that made them.
        cuda_graphs = self.accelerator.device.type == "cuda" and self.config.gradient_accumulation_steps == 1
        return CompiledPolicy(self.policy, self.config.batch_size, cuda_graphs=cuda_graphs)

    def _build_policy(self) -> ActPolicy:
        """The policy with its first weights, or with those that training goes on from."""
        set_seed(self.config.seed)
        self._print("Building ACT policy...")
        if self.checkpoint is None:
            return ActPolicy(self.config)
        policy = ActPolicy(resume.new_run_settings(self.config))
        try:
            policy.load_state_dict(self.checkpoint.weights)
        except RuntimeError as error:
            raise UserError(f"{self.checkpoint.path} does not fit the settings: {in_words(error)}") from error
        return policy

    @property
    def bare_policy(self) -> ActPolicy:
        """The policy without what data-parallel training wraps around it."""
        return self.accelerator.unwrap_model(self.policy)

    def fit(self) -> Path:
        """Train to the end.

        Returns:
            the run's folder.

        Raises:
            UserError: if the loss goes wrong or the memory does not suffice.
            KeyboardInterrupt: after a request to stop; everything is saved.
        """
        with self._run_folder():
            self._print("\nStarting training...")
            try:
                self._train()
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise out_of_memory(self.config, self.accelerator.device) from error
                raise
        return self.run

    def _train(self) -> None:
        display = TrainingDisplay(self.step, self.total_steps, self.ranks.is_main)
        self.stopping = False
        with stop_at_step_end(insist=self.ranks.count == 1) as self.stop:
            with display as self.display:
                while self.step < self.total_steps and not self.stopping:
                    self._train_epoch()
            if self.stopping and self.step < self.total_steps:
                self._save_interrupted()
                raise KeyboardInterrupt

    def _save_interrupted(self) -> None:
        self._reduce_pending()
        if self.ranks.is_main:
            path = self._save("last")
            self._print(f"\nInterrupted at step {self.step}. To go on: --resume_from {path}")
        self.accelerator.wait_for_everyone()  # a launcher ends all processes when one has ended

    @contextmanager
    def _run_folder(self) -> Iterator[None]:
        """The main process has the run's folder for itself, and its figures are written to the end."""
        if not self.ranks.is_main:
            yield
            return
        with writing_to(self.run):
            self.run.mkdir(parents=True, exist_ok=True)
            lock = lock_file(self.run / ".lock")
        if lock is None:
            raise UserError(f"another process is training into {self.run.resolve()}: wait for it, or take a free name")
        with lock:
            finish_interrupted_saves(self.run)
            self.metrics = MetricsLog(self.config, self.run, step=self.step, wandb_id=self._prepare_metrics())
            self.metrics.log_dataset(self.dataset_record, self.step)
            with writing_to(self.run):
                save_config(resume.run_record(self.config, self.run), self.run / RUN_CONFIG)
            self.hints = Hints(self.config, self.loaders.training.num_workers)
            exit_code = 1
            try:
                yield
                exit_code = 0
            finally:
                self.metrics.close(exit_code)

    def _prepare_metrics(self) -> str | None:
        """Take over what a resumed run has logged; gives its W&B run's id, if that goes on."""
        if self.checkpoint is None:
            return None
        resume.take_over_metrics(self.checkpoint, self.run, self.step)
        state = self.checkpoint.state
        if state is None or self.checkpoint.run.resolve() != self.run.resolve():
            return None
        return state["wandb_id"]

    def _train_epoch(self) -> None:
        """Train on what is left of an epoch, then validate and save; a request to stop leaves it at a step's end."""
        times = StepTimes()
        epoch = self.order.epoch + 1  # counted from 1 where people see it
        self.policy.train()
        for step, batches in times.measure_waiting(self._steps_left()):
            self.pending.append(self.train_step(step, batches))
            self.step += 1
            self.order.done += step.num_windows
            times.step_done()
            self.display.step_done(times)
            last = self.step == self.total_steps
            if self.step % self.config.log_frequency == 0 or last:
                self._log_steps(times, epoch)
            self.stopping = self.ranks.agree_to_stop(self.stop.requested)
            if last:
                break
            if self.stopping and self.order.steps_left:
                return  # a finished epoch is validated and saved first
        if not self.order.steps_left:
            self.order.epoch, self.order.done = self.order.epoch + 1, 0
        self._reduce_pending()
        self.watch.check(self.pending, self.step)
        record = {"epoch": epoch, "time_per_epoch": times.elapsed}
        val_loss = self.validate()
        if val_loss is not None:
            record["val_loss"] = val_loss
            self._print(f"Epoch {epoch}/{self.total_epochs}: val_loss={val_loss:.4f}")
        self._log(record)
        self._save_epoch(epoch, val_loss)

    def _steps_left(self) -> Iterator[tuple[Step, list[Batch]]]:
        """The steps of the epoch that are not done yet, with a batch for each part of this process."""
        steps = list(self.order.steps())  # before the loader's position moves on
        batches = iter(self.loaders.training)
        for step in steps:
            yield step, [next(batches) for _ in step.parts]

    def train_step(self, step: Step, batches: list[Batch]) -> Tensor:
        """One optimizer step.

        Args:
            step: how much each batch counts.
            batches: of this process, one after the other; their gradients are added up.

        Returns:
            the losses (3,) before the step: total, action, kl; on the device, so that nothing waits for them. The
            mean over processes is that of the whole step.
        """
        seed_step(self.config.seed, self.step, self.ranks.rank)
        noise = latent_noise(self.config, self.step, step.num_windows)
        set_learning_rates(self.optimizer, self.config, self.step, self.total_steps)
        losses = []
        for number, (part, batch) in enumerate(zip(step.parts, batches), start=1):
            if number == len(batches):
                losses.append(self._backward(part, batch, noise))
            else:
                with self.accelerator.no_sync(self.policy):  # gradients meet once a step
                    losses.append(self._backward(part, batch, noise))
        if self.config.grad_clip_norm is not None:
            clip_gradients(self.accelerator, self.optimizer, self.config.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).sum(dim=0)

    def _backward(self, part: Part, batch: Batch, noise: Tensor) -> Tensor:
        """Add a batch's gradients to those of its step, and give its share (3,) of the losses."""
        obs, actions = to_device(batch, self.accelerator.device)
        with self.accelerator.autocast():
            _, output = self.learner(obs, actions, noise[part.samples].to(self.accelerator.device))
        target = self.bare_policy.action_normalizer(actions)
        losses = weighted_losses(act_losses(output, target, obs["action_is_pad"], self.config), part, self.config)
        self.accelerator.backward(losses.total)
        return torch.stack([loss.detach() for loss in losses])

    @torch.no_grad()
    def validate(self) -> float | None:
        """The action loss on held-out episodes with latent 0, as at inference; None without any."""
        if self.loaders.validation is None:
            return None
        policy = self.bare_policy
        policy.eval()
        total = torch.zeros(2, dtype=torch.float64)
        for batch in self.loaders.validation:
            obs, actions = to_device(batch, self.accelerator.device)
            with self.accelerator.autocast():
                _, output = policy(obs)
            is_pad = obs["action_is_pad"]
            loss = act_losses(output, policy.action_normalizer(actions), is_pad, self.config).action
            real = (~is_pad).sum()
            total += torch.stack([loss * real, real]).cpu().double()  # Apple's GPUs have no float64
        policy.train()
        error, count = self.ranks.total(total).tolist()
        return error / count

    def _reduce_pending(self) -> None:
        """Make the losses not yet logged those of all processes together."""
        if self.pending:
            self.pending = list(self.ranks.mean(torch.stack(self.pending)))

    def _log_steps(self, times: StepTimes, epoch: int) -> None:
        self._reduce_pending()
        self.watch.check(self.pending, self.step)
        total, action, kl = torch.stack(self.pending).mean(dim=0).tolist()
        self.pending = []
        weighted = self.config.kl_weight * kl  # so that the loss is the sum of what is shown
        record = {
            "epoch": epoch,
            "total_loss": total,
            "action_loss": action,
            "kl_loss": weighted,
            "kl_divergence": kl,
            "lr": self.optimizer.param_groups[0]["lr"],
            **times.take(),
        }
        if self.accelerator.device.type == "cuda":
            record["gpu_memory"] = torch.cuda.max_memory_allocated() / 2**30
        self._log(record)
        self._print(
            f"Epoch {epoch}/{self.total_epochs}, Step {self.step}: "
            f"loss={total:.3f}, action_loss={action:.3f}, kl_loss={weighted:.3f}"
        )
        for line in self.lines_to_say:
            self._print(line)
        self.lines_to_say = []
        for hint in self.hints.look(record) if self.ranks.is_main else ():
            self._print(hint)

    def _log(self, record: dict[str, Any]) -> None:
        if self.ranks.is_main:
            self.metrics.log(record, self.step)

    def _save_epoch(self, epoch: int, val_loss: float | None) -> None:
        is_best = val_loss is not None and val_loss < self.best_val_loss
        if is_best and val_loss is not None:
            self.best_val_loss = val_loss
        ends = self.step >= self.total_steps
        numbered = epoch % self.config.checkpoint_frequency == 0 or ends
        is_best = is_best or (ends and val_loss is None)
        if not self.ranks.is_main or not (numbered or is_best):
            return
        path = self._save(epoch if numbered else "best")
        if numbered and is_best:
            copy_checkpoint(path, "best")
        copy_checkpoint(path, "last")  # at the end: a run that goes on from here has the rest behind it
        if numbered:
            self._print(f"Checkpoint saved: {path}")
            if self.metrics.shows_figures:
                self._log_prediction()
        self.metrics.log_checkpoint(path, is_best=is_best, numbered=numbered)

    def _log_prediction(self) -> None:
        """A chunk in the middle of the demonstrations that are held out, beside what was demonstrated."""
        windows = self.data.validation or self.data.training
        batch = to_device(windows.__getitems__([len(windows) // 2]), self.accelerator.device)
        with self.accelerator.autocast():
            predicted = predict(self.bare_policy, batch)
        title = f"Step {self.step}: predicted and demonstrated chunk"
        figure = prediction_figure(*predicted, self.data.episodes.joint_names, title)
        self.metrics.log_figure("predictions", figure, self.step)

    def _save(self, name: str | int) -> Path:
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "order": self.order.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "best_val_loss": self.best_val_loss,
            "loss_watch": self.watch.state_dict(),
            "pending_losses": [losses.cpu() for losses in self.pending],
            "wandb_id": self.metrics.wandb_id,
            "dataset": resume.fingerprint(self.data.episodes),
        }
        return save_checkpoint(self.run, name, self.bare_policy.state_dict(), state)

    def _resume(self, checkpoint: resume.Checkpoint) -> None:
        state = checkpoint.state
        if state is None:
            self.order.epoch = checkpoint.epochs
            self.step = checkpoint.epochs * self.order.steps_an_epoch
            then = f"training goes on after epoch {checkpoint.epochs}" if checkpoint.epochs else "training starts anew"
            self._print(
                f"{checkpoint.path} has no training state beside it: only its weights are taken, and {then} with a "
                "new optimizer"
            )
            return
        if not load_optimizer_state(self.optimizer, state["optimizer"]):
            self._print("Other parameters are trained than before: the optimizer starts anew")
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        change = self.order.load_state_dict(state["order"])
        self.best_val_loss = state["best_val_loss"]
        self.watch.load_state_dict(state["loss_watch"])
        self.pending = [losses.to(self.accelerator.device) for losses in state["pending_losses"]]
        self._print(f"Resuming from {checkpoint.path}: step {self.step}, epoch {self.order.epoch + 1}")
        if change is not None:
            self._print(change)

    def _print(self, line: str) -> None:
        if self.ranks.is_main:
            print(line, flush=True)


def weighted_losses(losses: Losses, part: Part, config: Config) -> Losses:
    """A batch's mean losses → its share of the step's."""
    action, kl = part.action_weight * losses.action, part.window_weight * losses.kl
    return Losses(action + config.kl_weight * kl, action, kl)
