"""`S/report.html`: one self-contained page on a sweep: best trial, importance of parameters, all trials."""

from __future__ import annotations

import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

import bimact
from bimact.evaluation.page import page_environment
from bimact.files import write_text
from bimact.sweep import plots
from bimact.sweep.plan import SweepPlan
from bimact.sweep.summary import (
    PAGE,
    STATES,
    best_command,
    best_trial,
    duration,
    folder_of,
    last_value,
    short,
    varied,
)
from bimact.sweep.sweep_file import Sweep
from bimact.sweep.trial import LOG

TEMPLATE = "report_template.html"

_FEWEST_FOR_IMPORTANCE = 12  # finished or pruned trials
_GOOD = 4  # minimum number of them that count as good
_EDGE = 0.05  # fraction of a range: a best value this close to an end suggests a wider range


def write_report(plan: SweepPlan, trials: Sequence[FrozenTrial]) -> Path:
    """Write `S/report.html`, a page that needs no other file and no network.

    Args:
        plan: of the sweep.
        trials: those that count.

    Returns:
        the page's path.
    """
    environment = page_environment(Path(__file__).parent, short=short, duration=duration, options=_options)
    page = plan.folder / PAGE
    write_text(page, environment.get_template(TEMPLATE).render(_content(plan, trials)))
    return page


def importances(sweep: Sweep, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Importance of each parameter for a trial to be among the best (PED-ANOVA), as shares of 1.

    Pruned trials count with their last values.

    Returns:
        empty if there are too few trials or parameters.
    """
    judged, names = _judged(trials), varied(sweep.space)
    values = {last_value(trial) for trial in judged}
    if len(judged) < _FEWEST_FOR_IMPORTANCE or len(names) < 2 or len(values) == 1:
        return {}
    study = optuna.create_study(direction=sweep.goal)
    for trial in judged:
        study.add_trial(
            optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=last_value(trial))
        )
    known = inspect.signature(PedAnovaImportanceEvaluator).parameters
    quantile = "target_quantile" if "target_quantile" in known else "baseline_quantile"  # in older versions
    options: dict[str, Any] = {quantile: max(0.1, _GOOD / len(judged))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Optuna: that this is experimental, or that trials are few
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(**options), params=names)


def _judged(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Finished and pruned trials with a value."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in trials if trial.state in states and last_value(trial) is not None]


def at_the_edge(sweep: Sweep, best: FrozenTrial) -> list[str]:
    """Sentences on parameters whose best value is at an end of their range."""
    sentences = []
    for name, distribution in sweep.space.items():
        if not isinstance(distribution, (FloatDistribution, IntDistribution)) or distribution.single():
            continue
        low, high = plots.with_margin(distribution.low, distribution.high, distribution.log, -_EDGE)
        if not low <= best.params[name] <= high:
            end = "lower" if best.params[name] < low else "upper"
            sentences.append(f"{name} is at the {end} end of its range: a wider range may contain a better value.")
    return sentences


def _content(plan: SweepPlan, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """The variables of the template."""
    sweep, best = plan.sweep, best_trial(plan.sweep, trials)
    names = varied(sweep.space)
    shares = importances(sweep, trials)
    finished = [trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE]
    counts = Counter(STATES[trial.state] for trial in trials)
    return {
        "plan": plan,
        "sweep": sweep,
        "written": f"{datetime.now():%d %B %Y, %H:%M}",
        "best": best,
        "best_folder": best and folder_of(plan, best),
        "best_command": best and best_command(plan, best),
        "edges": at_the_edge(sweep, best) if best else [],
        "median": sorted(finished)[len(finished) // 2] if finished else None,
        "total": len(trials),
        "counts": Counter({state: counts[state] for state in STATES.values() if counts[state]}),
        "seconds": sum(trial.duration.total_seconds() for trial in trials if trial.duration),
        "names": names,
        "space": [(name, _words(distribution)) for name, distribution in sweep.space.items()],
        "history": plots.history(sweep, trials),
        "curves": plots.curves(sweep, trials),
        "importance": plots.importance(shares) if shares else None,
        "fewest": _FEWEST_FOR_IMPORTANCE,
        "judged": len(_judged(trials)),
        "slices": plots.slices(sweep, trials, names) if _judged(trials) else [],
        "rows": list(_rows(plan, trials)),
        "versions": [("bimact", bimact.__version__), ("Optuna", optuna.__version__)],
    }


def _rows(plan: SweepPlan, trials: Sequence[FrozenTrial]) -> Iterator[dict[str, Any]]:
    """The rows of the table of trials: finished ones first, the best on top."""
    order = list(STATES)
    sign = 1 if plan.sweep.goal == "minimize" else -1

    def place(trial: FrozenTrial) -> tuple[int, float, int]:
        value = last_value(trial)
        return order.index(trial.state), 0.0 if value is None else sign * value, trial.number

    for trial in sorted(trials, key=place):
        yield {
            "number": trial.number,
            "state": STATES[trial.state],
            "value": None if trial.state == TrialState.FAIL else last_value(trial),
            "params": trial.params,
            "logged": len(trial.intermediate_values),
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            "error": trial.user_attrs.get("error"),
            "folder": trial.user_attrs.get("folder") or "",
            "log": LOG,
        }


def _options(command: str) -> list[str]:
    """A command in parts between which lines may break."""
    return re.split(r" (?='?--)", command)


def _words(distribution: BaseDistribution) -> str:
    """A description of a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        texts = [short(choice) for choice in distribution.choices]
        return texts[0] if len(texts) == 1 else "one of " + ", ".join(texts)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    words = f"{short(distribution.low)} to {short(distribution.high)}"
    if isinstance(distribution, IntDistribution):
        words += ", whole numbers" if distribution.step == 1 else f" in steps of {distribution.step}"
    elif distribution.step is not None:
        words += f" in steps of {short(distribution.step)}"
    return words + (", logarithmic" if distribution.log else "")
