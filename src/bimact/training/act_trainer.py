"""The training loop: a prepared run in, checkpoints and metrics in its directory out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bimact.config import Config, save_config
from bimact.data.training_order import Part, Step
from bimact.data.windows import Batch
from bimact.errors import UserError
from bimact.files import atomic_write, lock_file, writing_to
from bimact.policy.act import ActPolicy, Losses, act_losses
from bimact.run_directory import BEST_SUCCESS, EVALUATIONS, WEIGHTS, Run
from bimact.training import resume
from bimact.training.augmentation import Augmentation
from bimact.training.averaging import AveragedWeights
from bimact.training.checkpoint import copy_checkpoint, delete_checkpoints, finish_interrupted_saves, save_checkpoint
from bimact.training.compiled import CompiledPolicy
from bimact.training.demonstrations import Loaders
from bimact.training.device import to_device
from bimact.training.hints import Hints
from bimact.training.memory import is_out_of_memory, out_of_memory
from bimact.training.optimizer import load_optimizer_state, make_optimizer, set_learning_rates
from bimact.training.prediction_plot import predict, prediction_figure
from bimact.training.prepare import PreparedRun
from bimact.training.randomness import given_steps, latent_noise, seed_step
from bimact.training.tracking import MetricsLog
from bimact.training.watch import LossWatch, StepTimes, StopRequest, TrainingDisplay, stop_at_step_end


class Evaluator(Protocol):
    """Rollouts during training, for `eval_task`: `evaluation.in_training.RolloutsInTraining`."""

    def knows(self, step: int, digest: str) -> bool: ...

    def start(self, step: int, weights: Path, digest: str | None = None) -> str: ...

    def result(self, wait: bool = False) -> dict[str, Any] | None: ...

    def close(self) -> None: ...


def train_run(prepared: PreparedRun, evaluator: Callable[[Run, Config], Evaluator] | None = None) -> ActTrainer:
    """Train a run to its end, in one process or in several that `torchrun` has started.

    Args:
        prepared: of `prepare_run`.
        evaluator: creates the evaluator of `eval_task`.

    Returns:
        the trainer at its end.

    Raises:
        UserError: if the loss goes wrong, the memory is not enough, another process trains into the same directory, or
            a process of this training ends.
        KeyboardInterrupt: after a request to stop; everything is saved.
    """
    ranks, config = prepared.ranks, prepared.config
    try:
        with (
            ranks.explain_lost_processes(prepared.run),
            _opened_log(prepared) as log,
            stop_at_step_end(insist=ranks.count == 1) as stop,
            TrainingDisplay(prepared.step, prepared.total_steps, ranks.is_main) as display,
        ):
            evaluates = config.eval_task is not None and log is not None and evaluator is not None
            rollouts = evaluator(prepared.run, prepared.config) if evaluates and evaluator is not None else None
            trainer = ActTrainer(prepared, log, stop, display, rollouts)
            try:
                trainer.fit()
            finally:
                if rollouts is not None:
                    rollouts.close()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(config, prepared.accelerator.device) from error
        raise
    prepared.accelerator.end_training()
    return trainer


@contextmanager
def _opened_log(prepared: PreparedRun) -> Iterator[MetricsLog | None]:
    """The metrics log, with the run directory locked, in the main process; None in the others."""
    if not prepared.ranks.is_main:
        yield None
        return
    run, checkpoint = prepared.run, prepared.checkpoint
    with writing_to(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        lock = lock_file(run.path / ".lock")
    if lock is None:
        raise UserError(
            f"another process is training into {run.path.resolve()}: wait for it, or choose another --output_dir"
        )
    with lock:
        finish_interrupted_saves(run)
        wandb_id = None
        resume.take_over_metrics(checkpoint, run, prepared.step)
        if checkpoint is not None and checkpoint.state is not None:
            wandb_id = checkpoint.state["wandb_id"] if checkpoint.run.path.resolve() == run.path.resolve() else None
        log = MetricsLog(prepared.config, run.path, step=prepared.step, wandb_id=wandb_id)
        log.log_dataset(prepared.dataset_record, prepared.step)
        with writing_to(run.path):
            save_config(resume.run_record(prepared.config, run), run.config_path)
            prepared.interface.write(run.interface_path)
        exit_code = 1
        try:
            yield log
            exit_code = 0
        finally:
            log.close(exit_code)


class ActTrainer:
    """Trains the policy of a prepared run.

    All random numbers of a step depend on the seed, the step and the rank alone, and the order of samples on the seed
    and the epoch: to resume exactly, a run needs its parameters, the optimizer's state and its position.

    Args:
        prepared: of `prepare_run`.
        log: of metrics, in the main process, which also saves checkpoints; None in the others.
        stop: requests an end after the current step.
        display: the live line of the terminal.
        evaluator: runs rollouts during training; in the main process alone.
    """

    def __init__(
        self,
        prepared: PreparedRun,
        log: MetricsLog | None = None,
        stop: StopRequest | None = None,
        display: TrainingDisplay | None = None,
        evaluator: Evaluator | None = None,
    ) -> None:
        self.run, self.config, self.data = prepared.run, prepared.config, prepared.data
        self.accelerator, self.ranks = prepared.accelerator, prepared.ranks
        self.total_steps, self.total_epochs = prepared.total_steps, prepared.total_epochs
        self.order = prepared.order
        self.step = prepared.step  # optimizer steps done
        self.pending: list[Tensor] = []  # losses (3,) of steps that are not yet logged, on the device
        self.val_losses: dict[str, float] = {}  # of each dataset of a mixture, at the last validation
        self.best_val_loss = math.inf
        self.best_epoch = 0  # the last one with a new lowest val_loss
        self.evaluator = evaluator
        self.evaluating: tuple[int, str] | None = None  # the step whose weights are being evaluated, and their SHA-256
        self.best_success = 0.0  # the highest lower bound of a confidence interval
        self.evaluations_since_best = 0
        self.watch = LossWatch()
        self.log = log
        self.stop = stop or StopRequest()
        self.stopping = False  # all ranks have agreed to stop
        self.display = display or TrainingDisplay(self.step, self.total_steps, False)
        self.late_lines = prepared.late_lines

        config, device = self.config, self.accelerator.device
        self.loaders = Loaders.of(self.data, self.order, config, self.ranks, pin_memory=device.type == "cuda")
        self.hints = Hints(config, self.loaders.training.num_workers)
        policy = self.ranks.convert_sync_batchnorm(prepared.policy)
        optimizer = make_optimizer(policy, config, self.ranks.count * config.gradient_accumulation_steps)
        self.policy, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.learner = self.policy
        self.augmentation = Augmentation(config, self.unwrapped_policy)
        if config.compile:
            self._print("Compiling the policy: the first step takes a minute or more")
            # Accumulated gradients have to outlive the graph that computed them.
            cuda_graphs = device.type == "cuda" and config.gradient_accumulation_steps == 1
            self.learner = CompiledPolicy(self.policy, config.batch_size, cuda_graphs=cuda_graphs)

        # A checkpoint's weights are the averaged ones; its state holds the trained ones.
        self.average = None if config.ema_decay is None else AveragedWeights(self.unwrapped_policy, config.ema_decay)
        state = None if prepared.checkpoint is None else prepared.checkpoint.state
        if state is not None:
            self.unwrapped_policy.load_state_dict(state.get("trained_weights") or {}, strict=False)
            if not load_optimizer_state(self.optimizer, state["optimizer"]):
                self._print("Other parameters are trained than before: the optimizer starts anew")
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.best_val_loss = state["best_val_loss"]
            self.best_epoch = state.get("best_epoch", self.order.epoch)
            self.watch.load_state_dict(state["loss_watch"])
            self.pending = [losses.to(device) for losses in state["pending_losses"]]
            self.best_success = state.get("best_success", 0.0)
            self.evaluations_since_best = state.get("evaluations_since_best", 0)
            self._resume_evaluation(state.get("evaluating"))
        by_success = config.patience is not None and config.patience_metric == "success"
        self.finished = self._is_out_of_patience(self.order.epoch) or (
            by_success and self.evaluations_since_best >= (config.patience or 0)
        )

    @property
    def unwrapped_policy(self) -> ActPolicy:
        """The policy without the wrapper of data-parallel training."""
        return self.accelerator.unwrap_model(self.policy)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """A context in which the policy has its averaged weights, if the run averages them."""
        return nullcontext() if self.average is None else self.average.in_place()

    def fit(self) -> None:
        """Train to the end, or until a requested stop.

        Raises:
            UserError: if the loss goes wrong.
            KeyboardInterrupt: after a request to stop; everything is saved.
        """
        self._print("\nStarting training...")
        while self.step < self.total_steps and not (self.stopping or self.finished):
            self._train_epoch()
        if self.stopping and self.step < self.total_steps:
            self._reduce_pending()
            if self.log is not None:
                path = self._save("last", self.log)
                self._print(f"\nInterrupted at step {self.step}. To go on: --resume_from {path}")
            self.accelerator.wait_for_everyone()  # a launcher ends all processes when one has ended
            raise KeyboardInterrupt

    def _train_epoch(self) -> None:
        """Train on the rest of an epoch, validate and save; a requested stop leaves the epoch unfinished."""
        times = StepTimes()
        epoch = self.order.epoch + 1  # displayed from 1
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
            self._evaluate(last)
            self.stopping = self.ranks.agree_to_stop(self.stop.requested)
            if last or self.finished:
                break
            if self.stopping:
                return
        self._reduce_pending()
        self.watch.check(self.pending, self.step)
        record = {"epoch": epoch, "time_per_epoch": times.elapsed}
        val_loss = self.validate()
        if self.ranks.count == 1 and self.stop.requested and self.step < self.total_steps:
            self.stopping = True  # during validation, which is repeated after resuming
            return
        if not self.order.steps_left:
            self.order.epoch, self.order.done = self.order.epoch + 1, 0
        if val_loss is not None:
            record["val_loss"] = val_loss
            record |= {f"val_loss/{name}": loss for name, loss in self.val_losses.items()}
            each = ", ".join(f"{name} {loss:.4f}" for name, loss in self.val_losses.items())
            self._print(f"Epoch {epoch}/{self.total_epochs}: val_loss={val_loss:.4f}" + (f" ({each})" if each else ""))
        if self.log is not None:
            self.log.log(record, self.step)
        self._save_epoch(epoch, val_loss)

    def _steps_left(self) -> Iterator[tuple[Step, list[Batch]]]:
        """The remaining steps of the epoch, with one batch per part of this process."""
        steps = list(self.order.steps())  # before the loader's position moves on
        batches = iter(self.loaders.training)
        for step in steps:
            yield step, [next(batches) for _ in step.parts]

    def train_step(self, step: Step, batches: list[Batch]) -> Tensor:
        """One optimizer step.

        Args:
            step: its parts, with the weight of each batch.
            batches: of this process; their gradients are accumulated.

        Returns:
            the losses (3,) before the step: total, action, kl; on the device, without synchronisation. The
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
                with self.accelerator.no_sync(self.policy):  # gradients are all-reduced once per step
                    losses.append(self._backward(part, batch, noise))
        if self.config.grad_clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.policy.parameters(), self.config.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step)
        return torch.stack(losses).sum(dim=0)

    def _backward(self, part: Part, batch: Batch, noise: Tensor) -> Tensor:
        """Accumulate a batch's gradients; returns its contribution (3,) to the step's losses."""
        obs, actions = to_device(batch, self.accelerator.device)
        obs = self.augmentation(obs, self.step, len(noise), part.samples)
        if self.config.max_delay:
            given = given_steps(self.config, self.step, len(noise))[part.samples].to(actions.device)
            obs = {**obs, "given_actions": actions[:, : self.config.max_delay], "given_steps": given}
        with self.accelerator.autocast():
            _, output = self.learner(obs, actions, noise[part.samples].to(self.accelerator.device))
        target = self.unwrapped_policy.normalized(actions, obs)
        losses = weighted_losses(act_losses(output, target, obs["action_is_pad"], self.config), part, self.config)
        self.accelerator.backward(losses.total)
        return torch.stack([loss.detach() for loss in losses])

    @torch.no_grad()
    def validate(self) -> float | None:
        """The action loss on held-out episodes with latent 0; None without held-out episodes, or if interrupted.

        `val_losses` has that of each dataset of a mixture then.
        """
        if not self.loaders.validation:
            return None
        policy = self.unwrapped_policy
        policy.eval()
        totals = torch.zeros(len(self.loaders.validation), 2, dtype=torch.float64)
        with self.averaged_weights():
            for total, loader in zip(totals, self.loaders.validation.values()):
                for batch in loader:
                    if self.ranks.count == 1 and self.stop.requested and self.step < self.total_steps:
                        policy.train()
                        return None
                    obs, actions = to_device(batch, self.accelerator.device)
                    with self.accelerator.autocast():
                        _, output = policy(obs)
                    is_pad = obs["action_is_pad"]
                    loss = act_losses(output, policy.normalized(actions, obs), is_pad, self.config).action
                    real = (~is_pad).sum()
                    total += torch.stack([loss * real, real]).cpu().double()  # Apple's GPUs have no float64
        policy.train()
        totals = self.ranks.total(totals)
        error, count = totals.sum(dim=0).tolist()
        names = [name for name in self.loaders.validation if name]
        self.val_losses = {name: float(part[0] / part[1]) for name, part in zip(names, totals)}
        return error / count

    def _reduce_pending(self) -> None:
        """All-reduce the losses that are not yet logged."""
        if self.pending:
            self.pending = list(self.ranks.mean(torch.stack(self.pending)))

    def _log_steps(self, times: StepTimes, epoch: int) -> None:
        self._reduce_pending()
        self.watch.check(self.pending, self.step)
        total, action, kl = torch.stack(self.pending).mean(dim=0).tolist()
        self.pending = []
        weighted = self.config.kl_weight * kl  # so that the displayed terms add up to the loss
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
        if self.log is not None:
            self.log.log(record, self.step)
        self._print(
            f"Epoch {epoch}/{self.total_epochs}, Step {self.step}: "
            f"loss={total:.3f}, action_loss={action:.3f}, kl_loss={weighted:.3f}"
        )
        for line in self.late_lines:
            self._print(line)
        self.late_lines = []
        for hint in self.hints.look(record):
            self._print(hint)

    def _save_epoch(self, epoch: int, val_loss: float | None) -> None:
        is_best = val_loss is not None and val_loss < self.best_val_loss
        if is_best and val_loss is not None:
            self.best_val_loss, self.best_epoch = val_loss, epoch
        self.finished = self.finished or self._is_out_of_patience(epoch)
        if self.finished and self.step < self.total_steps:
            since = (
                f"val_loss has not fallen since epoch {self.best_epoch}"
                if self.config.patience_metric == "val_loss"
                else f"the success rate has not risen in {self.evaluations_since_best} evaluations"
            )
            self._print(f"{since}: training ends (patience)")
        ends = self.step >= self.total_steps or self.finished
        numbered = epoch % self.config.checkpoint_frequency == 0 or ends
        is_best = is_best or (ends and val_loss is None)
        if self.log is None or not (numbered or is_best):
            return
        path = self._save(epoch if numbered else "best", self.log)
        if numbered and is_best:
            copy_checkpoint(path, "best")
        copy_checkpoint(path, "last")  # at the end: everything else of the checkpoint is written
        delete_checkpoints(self.run, self.config, path)
        if numbered:
            self._print(f"Checkpoint saved: {path}")
            if self.log.shows_figures:
                self._log_prediction(self.log)
        self.log.log_checkpoint(path, is_best=is_best, numbered=numbered)

    def _is_out_of_patience(self, epoch: int) -> bool:
        """Whether too many epochs have passed without a lower val_loss, at the end of an epoch."""
        patience = self.config.patience
        return (
            patience is not None and self.config.patience_metric == "val_loss" and epoch - self.best_epoch >= patience
        )

    def _evaluate(self, last: bool) -> None:
        """Collect finished evaluations and start the next one that is due, after the previous one has ended."""
        config = self.config
        if config.eval_task is None:
            return
        due = self.step % config.eval_every == 0 or last
        if self.evaluator is not None:
            if self.evaluating is not None and (due or self.step % config.log_frequency == 0):
                self._take_evaluation(self.evaluator, wait=due)
            if due:
                weights = self._evaluated(self.step)
                weights.parent.mkdir(parents=True, exist_ok=True)
                with self.averaged_weights(), atomic_write(weights) as file:
                    torch.save(self.unwrapped_policy.state_dict(), file)
                self.evaluating = self.step, self.evaluator.start(self.step, weights)
                if last:
                    self._take_evaluation(self.evaluator, wait=True)
        if due and config.patience is not None and config.patience_metric == "success":
            # The main process alone counts evaluations.
            self.finished = bool(self.ranks.broadcast_from_main(self.evaluations_since_best >= config.patience))

    def _evaluated(self, step: int) -> Path:
        return self.run.path / EVALUATIONS / f"step-{step}{WEIGHTS}"

    def _take_evaluation(self, evaluator: Evaluator, *, wait: bool) -> None:
        found = evaluator.result(wait)
        if found is None or self.log is None:
            return
        step, low = found["step"], found["success_low"]
        self._print(
            f"Step {step}: {found['successes']} of {found['rollouts']} rollouts of {self.config.eval_task} succeeded "
            f"({found['success_rate']:.1%}, 95% interval {low:.1%} to {found['success_high']:.1%})"
        )
        rates = {name: found[name] for name in ("success_rate", "success_low", "success_high")}
        self.log.log({"eval_step": step, **rates}, self.step)
        weights = self._evaluated(step)
        if low > self.best_success:
            self.best_success, self.evaluations_since_best = low, 0
            if weights.exists():  # else they took their place before the run was resumed
                self.run.checkpoints.mkdir(parents=True, exist_ok=True)
                weights.replace(self.run.checkpoints / f"act-train-{BEST_SUCCESS}{WEIGHTS}")
        else:
            self.evaluations_since_best += 1
            weights.unlink(missing_ok=True)
        self.evaluating = None

    def _resume_evaluation(self, evaluating: tuple[int, str] | None) -> None:
        """Take up the evaluation that was running when the checkpoint was saved: its result, or start it again."""
        if evaluating is None or self.evaluator is None:
            return
        step, digest = evaluating
        weights = self._evaluated(step)
        if not (self.evaluator.knows(step, digest) or weights.exists()):
            self._print(f"The weights of step {step}, which were being evaluated, are gone: no success rate of them")
            return
        self.evaluator.start(step, weights, digest)
        self.evaluating = step, digest

    def _log_prediction(self, log: MetricsLog) -> None:
        """A chunk in the middle of the held-out demonstrations, predicted and demonstrated."""
        windows = self.data.validation or self.data.training
        batch = to_device(windows.__getitems__([len(windows) // 2]), self.accelerator.device)
        with self.averaged_weights(), self.accelerator.autocast():
            predicted = predict(self.unwrapped_policy, batch)
        title = f"Step {self.step}: predicted and demonstrated chunk"
        figure = prediction_figure(*predicted, self.data.episodes.joint_names, title)
        log.log_figure("predictions", figure, self.step)

    def _save(self, name: str | int, log: MetricsLog) -> Path:
        scaler = self.accelerator.scaler
        state: dict[str, Any] = {
            "step": self.step,
            "order": self.order.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "best_val_loss": self.best_val_loss,
            "best_epoch": self.best_epoch,
            "best_success": self.best_success,
            "evaluations_since_best": self.evaluations_since_best,
            "evaluating": self.evaluating,
            "loss_watch": self.watch.state_dict(),
            "pending_losses": [losses.cpu() for losses in self.pending],
            "wandb_id": log.wandb_id,
            "dataset": self.data.episodes.fingerprint,
        }
        if self.average is not None:
            state["trained_weights"] = {name: value.clone() for name, value in self.average.current().items()}
        with self.averaged_weights():
            return save_checkpoint(self.run, name, self.unwrapped_policy.state_dict(), state)

    def _print(self, line: str) -> None:
        if self.ranks.is_main:
            print(line, flush=True)


def weighted_losses(losses: Losses, part: Part, config: Config) -> Losses:
    """A batch's mean losses → its contribution to the step's."""
    action, kl = part.action_weight * losses.action, part.window_weight * losses.kl
    return Losses(action + config.kl_weight * kl, action, kl)
