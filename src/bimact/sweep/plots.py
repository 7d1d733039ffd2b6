"""The plots of a sweep's page, in the style of a run's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from bimact.evaluation.page import COLORS, plain, plain_numbers, shorten, svg_plot
from bimact.sweep.summary import best_trial, last_value, short
from bimact.sweep.sweep_file import Sweep

FINISHED, BEST, PRUNED, FAILED = "policy", "val", "mean", "hold"  # names of colours

_MOST_POINTS = 120  # of one trial's curve
_WIDE = 8  # largest / smallest value above which an axis is logarithmic


def history(sweep: Sweep, trials: Sequence[FrozenTrial]) -> Markup:
    """The value of each trial, and the best one so far."""
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    numbers, values = [trial.number for trial in finished], [trial.values[0] for trial in finished]
    best_so_far = (np.minimum if sweep.goal == "minimize" else np.maximum).accumulate(values)

    def draw(axes: Axes) -> None:
        axes.step(numbers, best_so_far, where="post", color=COLORS[BEST], lw=1.4)
        _scatter(axes, sweep, trials, {trial.number: trial.number for trial in trials})
        lowest = axes.get_ylim()[0]
        failed = [trial.number for trial in trials if trial.state == TrialState.FAIL]
        axes.plot(failed, [lowest] * len(failed), "x", color=COLORS[FAILED], ms=6, clip_on=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(title=f"{sweep.metric} of each trial", xlabel="trial")

    label = f"{sweep.metric} of {len(finished)} finished trials"
    if finished:
        label += f"; the best is {sweep.best(values):.4g}"
    return svg_plot("history", label, 3.0, draw)


def curves(sweep: Sweep, trials: Sequence[FrozenTrial]) -> Markup:
    """The metric of all trials while they ran."""
    best = best_trial(sweep, trials)
    logged = [trial for trial in trials if trial.intermediate_values]

    def draw(axes: Axes) -> None:
        for trial in sorted(logged, key=lambda trial: trial is best):  # the best one on top
            steps, values = np.array(sorted(trial.intermediate_values.items()), dtype=float).T
            chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_POINTS)).round().astype(int))
            if trial is best:
                style: dict[str, Any] = {"color": COLORS[BEST], "lw": 2.2}
            elif trial.state == TrialState.COMPLETE:
                style = {"color": COLORS[FINISHED], "lw": 1.0, "alpha": 0.55}
            else:
                style = {"color": COLORS[FAILED if trial.state == TrialState.FAIL else PRUNED], "lw": 1.0}
            axes.plot(steps[chosen], values[chosen], **style)
            if trial.state in (TrialState.PRUNED, TrialState.FAIL):
                axes.plot(steps[-1], values[-1], marker="|" if trial.state == TrialState.PRUNED else "x", **style)
        every = [value for trial in logged for value in trial.intermediate_values.values()]
        _scale(axes, every)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        unit = "epoch" if sweep.metric == "val_loss" else f"times that {sweep.metric} was logged"
        axes.set(title=f"{sweep.metric} while training", xlabel=unit)

    return svg_plot("curves", f"Learning curves of {len(logged)} trials", 3.0, draw)


def importance(shares: Mapping[str, float]) -> Markup:
    """Importance of the parameters, as shares of 1."""
    names = sorted(shares, key=lambda name: -shares[name])

    def draw(axes: Axes) -> None:
        axes.barh(range(len(names)), [100 * shares[name] for name in names], 0.6, color=COLORS[FINISHED], lw=0)
        for row, name in enumerate(names):
            axes.annotate(
                f"{shares[name]:.0%}", (100 * shares[name], row), (4, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(names)), [shorten(name) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 112 * max(shares.values()) or 1)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(plain)
        axes.set_xlabel("share of importance, %")

    values = ", ".join(f"{name} {shares[name]:.0%}" for name in names)
    return svg_plot("importance", f"Importance of the parameters: {values}", 0.75 + 0.34 * len(names), draw)


def slices(sweep: Sweep, trials: Sequence[FrozenTrial], names: Sequence[str]) -> list[Markup]:
    """The values of trials over each parameter."""
    return [_slice(sweep, trials, name, sweep.space[name]) for name in names]


def _slice(sweep: Sweep, trials: Sequence[FrozenTrial], name: str, distribution: BaseDistribution) -> Markup:
    trials = [trial for trial in trials if name in trial.params]
    places: dict[int, float] = {trial.number: trial.params[name] for trial in trials}
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        # Next to each other, so that trials with the same value are distinguishable.
        places = {number: choices.index(value) + 0.5 * _spread(number) for number, value in places.items()}

    def draw(axes: Axes) -> None:
        _scatter(axes, sweep, trials, places)
        if isinstance(distribution, CategoricalDistribution):
            texts = [shorten(short(choice)) for choice in distribution.choices]
            axes.set_xticks(range(len(texts)), texts, rotation=30 if max(map(len, texts)) > 7 else 0)
            axes.set_xlim(-0.5, len(texts) - 0.5)
            axes.grid(False, axis="x")
        elif isinstance(distribution, (FloatDistribution, IntDistribution)):
            _range_axis(axes, distribution)
        axes.set_title(shorten(name))

    return svg_plot(f"slice-{name.replace('.', '-')}", f"{sweep.metric} over {name}", 1.9, draw, width=3.05)


def _range_axis(axes: Axes, distribution: FloatDistribution | IntDistribution) -> None:
    if distribution.log:
        axes.set_xscale("log")
        decades = math.log10(distribution.high / distribution.low)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades >= 2 else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=isinstance(distribution, IntDistribution)))
    axes.xaxis.set_major_formatter(plain)
    axes.set_xlim(*with_margin(distribution.low, distribution.high, distribution.log))


def with_margin(low: float, high: float, log: bool, share: float = 0.05) -> tuple[float, float]:
    if log:
        factor = (high / low) ** share
        return low / factor, high * factor
    return low - share * (high - low), high + share * (high - low)


def _scatter(axes: Axes, sweep: Sweep, trials: Sequence[FrozenTrial], places: Mapping[int, float]) -> None:
    """Finished trials, pruned ones at their last value, and the best one on top."""
    best = best_trial(sweep, trials)
    groups: dict[str, list[tuple[float, float]]] = {PRUNED: [], FINISHED: [], BEST: []}
    for trial in trials:
        value = last_value(trial)
        if value is not None and trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            color = BEST if trial is best else PRUNED if trial.state == TrialState.PRUNED else FINISHED
            groups[color].append((places[trial.number], value))
    for color, points in groups.items():
        style: dict[str, Any] = {"color": COLORS[color], "ls": "", "marker": "v" if color == PRUNED else "o", "mew": 0}
        style |= {"ms": 7.5} if color == BEST else {"ms": 4.5, "alpha": 0.85}
        axes.plot(*np.array(points).reshape(-1, 2).T, **style)
    _scale(axes, [value for points in groups.values() for _, value in points])


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis if values span orders of magnitude; plain numbers on any axis."""
    finite = [value for value in values if math.isfinite(value)]
    plain_numbers(axes)
    if not finite:
        axes.set_yticks([])
        return
    low, high = min(finite), max(finite)
    if low > 0 and high > _WIDE * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 500 * low else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(plain)
        axes.set_ylim(*with_margin(low, high, log=True))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if high > low:
            axes.set_ylim(*with_margin(low, high, log=False))


def _spread(number: int) -> float:
    """Evenly from -0.5 to 0.5 for consecutive numbers, the same each time."""
    return (number * 0.6180339887) % 1 - 0.5
