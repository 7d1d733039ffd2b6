"""The output of a sweep: a line per trial, and at the end the best one and how to train with its settings."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from bimact.sweep.plan import SweepPlan
from bimact.sweep.space import as_text
from bimact.sweep.sweep_file import Sweep
from bimact.sweep.trial import LOG, training_command

PAGE = "report.html"
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def best_trial(sweep: Sweep, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The best finished trial; the first of equal ones."""
    best = None
    for trial in trials:
        if trial.state == TrialState.COMPLETE and (best is None or sweep.better(trial.values[0], best.values[0])):
            best = trial
    return best


def last_value(trial: FrozenTrial) -> float | None:
    """The value of a finished trial, or the last one that a trial has reported."""
    if trial.state == TrialState.COMPLETE:
        return float(trial.values[0])
    return None if trial.last_step is None else trial.intermediate_values[trial.last_step]


def folder_of(plan: SweepPlan, trial: FrozenTrial) -> Path:
    return plan.folder / str(trial.user_attrs["folder"])


def varied(space: Mapping[str, BaseDistribution]) -> list[str]:
    """Names of the parameters that have more than one value."""
    return [name for name, distribution in space.items() if not distribution.single()]


def short(value: Any) -> str:
    """A parameter's value for display."""
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def finished_line(plan: SweepPlan, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> str:
    """The result of a trial.

    Args:
        plan: of the sweep.
        trial: that has ended.
        trials: all of the sweep, to see whether it is the best so far.
    """
    words = [f"trial {trial.number}"]
    if trial.state == TrialState.COMPLETE:
        best = best_trial(plan.sweep, trials)
        is_best = best is not None and best.number == trial.number
        words.append(f"{plan.sweep.metric} {trial.values[0]:.4g}{', the best so far' if is_best else ''}")
    elif trial.state == TrialState.PRUNED:
        words.append(f"pruned at {plan.sweep.metric} {last_value(trial):.4g} after {trial.last_step} values")
    elif "error" in trial.user_attrs:
        words.append(f"failed: {trial.user_attrs['error']} ({folder_of(plan, trial) / LOG})")
    else:
        words.append("interrupted, will continue")
    words.append(" ".join(f"{name}={short(trial.params[name])}" for name in varied(plan.sweep.space)))
    if trial.duration is not None:
        words.append(duration(trial.duration.total_seconds()))
    return " · ".join(words)


def summary(plan: SweepPlan, trials: Sequence[FrozenTrial]) -> str:
    """The best trial, its folder, and how to train with its settings."""
    counts = Counter(STATES[trial.state] for trial in trials)
    lines = [
        "",
        f"{len(trials)} trials: " + ", ".join(f"{counts[name]} {name}" for name in STATES.values() if counts[name]),
    ]
    best = best_trial(plan.sweep, trials)
    if best is not None:
        width = max(map(len, best.params))
        lines.append(f"Best: trial {best.number} with {plan.sweep.metric} {best.values[0]:.4g}")
        lines += [f"  {name:<{width}}  {as_text(value)}" for name, value in best.params.items()]
        lines.append(f"Its run: {folder_of(plan, best)}")
    lines.append(f"Report: {plan.folder / PAGE}")
    if best is not None:
        lines += ["To train with its settings:", f"  {best_command(plan, best)}"]
    return "\n".join(lines)


def best_command(plan: SweepPlan, trial: FrozenTrial) -> str:
    """The command of a training with a trial's settings, to paste into a shell."""
    run = Path("runs") / f"{plan.folder.name}-best"
    command = training_command(plan.program, plan.config, run, plan.settings_of(trial.params), resume=False)
    start = ["python", *command[1:]] if plan.program else ["bimact", *command[3:]]
    return shlex.join(start)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
