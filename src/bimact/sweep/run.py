"""Runs a sweep: starts trials, monitors and prunes them, and counts them."""

from __future__ import annotations

import math
import os
import time

import optuna
import torch
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from bimact.errors import UserError, first_line
from bimact.machine import usable_cores
from bimact.progress import progress_bar
from bimact.sweep.plan import SweepPlan
from bimact.sweep.report import write_report
from bimact.sweep.study import SweepStudy
from bimact.sweep.summary import best_trial, finished_line, summary
from bimact.sweep.trial import LOG, Outcome, RunningTrial, has_checkpoint, training_command
from bimact.training.watch import stop_at_step_end

_POLL = 0.2  # seconds


def run_sweep(plan: SweepPlan) -> None:
    """Run the remaining trials of a sweep, then write its page and print the result.

    Raises:
        UserError: if the storage does not answer, or no trial has finished.
        KeyboardInterrupt: after Ctrl-C, when the running trials have saved checkpoints.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = SweepStudy(
        plan.sweep, plan.folder, plan.storage, plan.comparable, seed=plan.base.seed, warm_up=plan.warm_up
    )
    for hint in plan.sweep.hints:
        print(f"hint: {hint}")
    done = sum(trial.state.is_finished() for trial in study.trials())
    known = f", {done} of them done" if done else ""
    print(f"{plan.sweep.path} → {plan.folder}: {plan.total} trials by {plan.sweep.method}{known}", flush=True)
    runner = _Runner(plan, study)
    try:
        runner.run()
    except StorageInternalError as error:
        reason = first_line(error)
        raise UserError(f"the storage of the sweep does not answer ({reason}); the same command continues it") from None
    finally:
        runner.end_all()
    trials = study.trials()
    if any(trial.state.is_finished() for trial in trials):
        write_report(plan, trials)
        print(summary(plan, trials))
    if runner.ended_early:
        print(f"To continue: {plan.command}", flush=True)
    if runner.interrupted:
        raise KeyboardInterrupt
    if not runner.ended_early and best_trial(plan.sweep, trials) is None:
        raise UserError(f"no trial has logged {plan.sweep.metric}; see {plan.folder}/trial-*/{LOG}")


class _Runner:
    """Keeps up to `jobs` trials running."""

    def __init__(self, plan: SweepPlan, study: SweepStudy) -> None:
        self.plan = plan
        self.study = study
        self.interrupted = self.ended_early = False
        self._environments = slot_environments(plan.jobs, plan.base.device)
        self._running: dict[int, RunningTrial] = {}  # by slot
        self._deadline = math.inf if plan.timeout is None else time.monotonic() + plan.timeout

    def run(self) -> None:
        done = sum(trial.state.is_finished() for trial in self.study.trials())
        with (
            stop_at_step_end() as stop,
            progress_bar("sweep", self.plan.total, min(done, self.plan.total)) as self._bar,
        ):
            is_more = True
            while True:
                if not self.ended_early and (stop.requested or time.monotonic() > self._deadline):
                    self.ended_early, self.interrupted = True, stop.requested
                    for running in self._running.values():
                        running.stop()
                    if count := len(self._running):
                        why = "interrupted" if stop.requested else "the time is up"
                        trials = f"{count} running trial{'s' if count > 1 else ''}"
                        print(f"{why}: {trials} will be saved (Ctrl-C again ends at once)", flush=True)
                if is_more and not self.ended_early:
                    is_more = self._fill_slots()
                if not self._running:
                    return
                time.sleep(_POLL)
                if self._watch_all():
                    is_more = True  # a trial of a process that ended may be free to continue

    def end_all(self) -> None:
        """Kill running trials after an error or a second Ctrl-C; the next call finds them lost and continues them."""
        for running in self._running.values():
            running.kill()
        self._running = {}

    def _fill_slots(self) -> bool:
        """Start trials in free slots; returns whether there may be more."""
        for slot in range(self.plan.jobs):
            if slot in self._running:
                continue
            trial = self.study.next_trial(self.plan.total)
            if trial is None:
                return False
            earlier = self.plan.folder / (trial.user_attrs.get("folder") or "")
            resume = has_checkpoint(earlier)
            folder = earlier if resume else self.plan.folder / f"trial-{trial.number:04d}"
            settings = self.plan.settings_of(trial.params)
            command = training_command(self.plan.program, self.plan.config, folder, settings, resume)
            metric, environment = self.plan.sweep.metric, self._environments[slot]
            self._running[slot] = RunningTrial(trial, command, folder, metric, environment)
        return True

    def _watch_all(self) -> bool:
        """Update all running trials; returns whether one has ended."""
        ended = []
        for slot, running in self._running.items():
            try:
                if self._watch(running):
                    ended.append(slot)
            except RuntimeError as error:  # Optuna's, for a trial that is finished already
                running.kill()
                print(f"trial {running.trial.number}: another process has taken it over ({error})", flush=True)
                ended.append(slot)
        for slot in ended:
            del self._running[slot]
        bar = self._bar
        if bar.done < bar.total:  # trials of other processes count, too
            values = [f"{run.trial.number}: {run.values[-1]:.4g}" for run in self._running.values() if run.values]
            note = f"{self.plan.sweep.metric} of trial {', '.join(values)}" if values else ""
            done = sum(trial.state.is_finished() for trial in self.study.trials()) if ended else bar.done
            bar.advance(max(0, min(done, bar.total) - bar.done), note)
        return bool(ended)

    def _watch(self, running: RunningTrial) -> bool:
        outcome = running.outcome()  # before the values, to miss none
        running.beat()
        for count, value in running.new_values():
            running.trial.report(value, count)
            if outcome is None and not running.is_stopping and running.trial.should_prune():
                running.stop(is_bad=True)
        if outcome is None:
            return False
        self._finish(running, outcome)
        return True

    def _finish(self, running: RunningTrial, outcome: Outcome) -> None:
        trial, study = running.trial, self.study.study
        values = [value for value in running.values if math.isfinite(value)]
        if outcome.status == 0 and values:
            study.tell(trial, self.plan.sweep.best(values))
        elif running.is_pruned:
            study.tell(trial, state=TrialState.PRUNED)
        elif running.is_stopping:
            self.study.put_back(self._frozen(running))
        else:
            unlogged = f"it has logged no {self.plan.sweep.metric}"
            trial.set_user_attr("error", unlogged if outcome.status == 0 else outcome.reason)
            study.tell(trial, state=TrialState.FAIL)
        print(finished_line(self.plan, self._frozen(running), self.study.trials()), flush=True)

    def _frozen(self, running: RunningTrial) -> FrozenTrial:
        """A trial as it is in the storage."""
        return self.study.study.get_trials(deepcopy=False)[running.trial.number]


def slot_environments(jobs: int, device: str) -> list[dict[str, str]]:
    """Environment variables of concurrent trials: a GPU each, and a share of the cores.

    Args:
        jobs: number of concurrent trials.
        device: the setting; one that names a GPU is unchanged.
    """
    if jobs == 1:
        return [{}]
    gpus: list[str] = []
    if device in ("auto", "cuda"):
        count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))}
    return [{**threads, **({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})} for slot in range(jobs)]
