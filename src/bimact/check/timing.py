"""Checks of recorded times."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bimact.check.facts import Facts
from bimact.check.findings import Finding

_OFF = 0.05  # share by which steps a second may differ: above what clocks and rounded numbers (29.97) do
_GAP = 1.7  # of the usual interval: more than jitter, and a single step that is missing makes 2
_MANY_GAPS = 0.1  # share of the intervals: then it is no matter of some steps
_UNEVEN = 0.5  # of the usual interval, from which one is no jitter any more


def no_fps(facts: Facts) -> Iterator[Finding]:
    if facts.fps is None:
        intervals = [interval for _, its in _intervals(facts) if (interval := np.median(its)) > 0]
        told = f"; its timestamps say {1 / np.median(intervals):.4g}" if intervals else ""
        yield facts.finding("no-fps", f"the dataset does not tell its steps a second{told}")


def wrong_fps(facts: Facts) -> Iterator[Finding]:
    if facts.fps is None:
        return
    rates = {episode: 1 / np.median(its) for episode, its in _intervals(facts) if np.median(its) > 0}
    wrong = {episode: rate for episode, rate in rates.items() if abs(rate / facts.fps - 1) > _OFF}
    if wrong:
        rate = np.median(list(wrong.values()))
        text = f"timestamps tell {rate:.4g} steps a second, the dataset {facts.fps:g}"
        yield from facts.findings_of("wrong-fps", list(wrong), text)


def uneven_timestamps(facts: Facts) -> Iterator[Finding]:
    """Timestamps that go back, have gaps, or vary all along."""
    for episode, intervals in _intervals(facts):
        usual = float(np.median(intervals))
        backwards = np.flatnonzero(~(intervals > 0))
        if len(backwards):
            text = f"its timestamp is {intervals[backwards[0]]:+.3g} s after the step before"
            yield facts.finding("unordered-timestamps", text, episode=episode, steps=backwards + 1)
            continue
        gaps = np.flatnonzero(intervals > _GAP * usual)
        is_uneven = (np.abs(intervals - usual) > _UNEVEN * usual).mean() > _MANY_GAPS
        if is_uneven:
            low, high = np.quantile(intervals, [0.05, 0.95])
            text = f"steps are {low * 1000:.0f} to {high * 1000:.0f} ms apart"
            yield facts.finding("irregular-timestamps", text, episode=episode)
        elif len(gaps):
            missing = round(float((intervals[gaps] / usual - 1).sum()))
            text = f"{intervals[gaps[0]] * 1000:.0f} ms after the step before; about {missing} steps are missing in all"
            yield facts.finding("dropped-steps", text, episode=episode, steps=gaps + 1)


def _intervals(facts: Facts) -> Iterator[tuple[int, np.ndarray]]:
    """Episodes with timestamps, and the seconds (T − 1,) between their steps; a NaN counts as going back."""
    for episode, times in enumerate(facts.timestamps):
        if times is not None and len(times) > 1:
            yield episode, np.diff(times)
