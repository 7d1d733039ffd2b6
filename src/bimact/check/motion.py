"""Checks of motion over time: states and actions that move together, late or not at all, and timestamps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bimact.check.facts import Facts
from bimact.check.findings import Finding
from bimact.check.kinds import ERROR, INFO, WARNING
from bimact.check.values import ENDS
from bimact.data.default_state import action_in_state
from bimact.data.idle import IDLE, movement

_MIN_IDLE = (0.5, 25)  # seconds, or steps where the fps is unknown: shorter pauses are usual
_IDLE_SHARE = 0.1  # of the episode
_WARNING_SHARE = 0.5  # of the episode: a warning

_FROZEN = (0.5, 15)  # seconds or steps: no sensor value stays bit-identical for so long while a robot moves
_DRIVER_LAG = 5  # steps by which a state may lag behind its action
_MOVED = 0.2  # of the action's span in that time

_WINDOW = (1.0, 25)  # seconds or steps of delay that are tested in both directions
_CLEAR = 0.6  # misfit at the best delay, relative to that a second off: real recordings have 0.1 to 0.4, noise 1
_WORSE = 1.1  # times the least misfit: nearby delays have it, too, so none of them is certain
_WORSE_IN_ONE = 1.2  # the same in one episode, which is less certain than all
_ODD_LAG = (0.1, 4)  # seconds or steps off the median: episodes of different tasks differ by 1 step
_LONG_LAG = (0.5, 25)
_COPIED = 0.99  # share of the steps

_OFF = 0.05  # relative tolerance of the fps: more than clocks and rounded numbers (29.97) need
_GAP = 1.7  # of the median interval: more than jitter; a single missing step makes 2
_MANY_GAPS = 0.1  # share of the intervals above which the timestamps are irregular as a whole
_UNEVEN = 0.5  # of the median interval: more than jitter


def still_episodes(facts: Facts) -> Iterator[Finding]:
    for episode in range(len(facts.episodes)):
        moved = _movement(facts, episode)
        if moved is not None and len(moved) > 1 and moved.max() <= IDLE:
            yield facts.finding("still-episode", "neither states nor actions move", episode=episode)


def idle_ends(facts: Facts) -> Iterator[Finding]:
    """Episodes that begin or end without motion."""
    least = facts.steps_in(*_MIN_IDLE)
    for episode in range(len(facts.episodes)):
        for code, word, from_end in (("idle-head", "first", False), ("idle-tail", "last", True)):
            moved = _movement(facts, episode, from_end=from_end)
            if moved is None or moved.max(initial=0) <= IDLE:
                continue
            steps, total = int(np.argmax(moved > IDLE)), len(moved)
            if steps >= max(least, _IDLE_SHARE * total):
                text = f"nothing moves in the {word} {steps} of {total} steps"
                severity = WARNING if steps >= _WARNING_SHARE * total else INFO
                first = total - steps if from_end else 0
                idle = range(first, first + steps)
                yield facts.finding(code, text, episode=episode, steps=idle, severity=severity)


def _movement(facts: Facts, episode: int, *, from_end: bool = False) -> np.ndarray | None:
    """As `bimact.data.idle.movement`, of states and actions."""
    spans = (vectors.span for vectors in facts.vectors)
    return movement(zip(facts.both(episode), spans), from_end=from_end)


def frozen_states(facts: Facts) -> Iterator[Finding]:
    """States that stay bit-identical while the actions change."""
    least = facts.steps_in(*_FROZEN)
    moving = np.isfinite(facts.action.span)
    if not np.isfinite(facts.state.span).any() or not moving.any():
        return
    for episode in range(len(facts.episodes)):
        state, action = facts.both(episode)
        for begin, end in runs((np.diff(state, axis=0) == 0).all(axis=1)):
            commands = action[begin + _DRIVER_LAG : end + 1, moving]
            if end - begin < least or len(commands) == 0:
                continue
            if (np.ptp(commands, axis=0) > _MOVED * facts.action.span[moving]).any():
                text = "the state is frozen while the actions change"
                steps = range(begin, end + 1)
                yield facts.finding("frozen-state", text, episode=episode, steps=steps, file=facts.state.file)


def runs(is_in: np.ndarray) -> list[tuple[int, int]]:
    """(T,) bool → begin and end (exclusive) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_in, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


# Delays --------------------------------------------------------------------------------------------


def copied_states(facts: Facts) -> Iterator[Finding]:
    """A column of the state that is identical to the action; or actions that are nearly always the states."""
    if facts.is_action_later_state:
        return
    both = [facts.both(episode) for episode in range(len(facts.episodes))]
    states, actions = [state for state, _ in both], [action for _, action in both]
    sentence = action_in_state(states, actions, facts.state_parts, facts.action_keys)
    if sentence is not None:
        severity = WARNING if facts.is_state_chosen else ERROR
        yield facts.finding("copied-state", sentence, severity=severity)
        return
    pairs = [pair for pair in facts.position_pairs if np.isfinite(facts.state.span[pair[0]])]
    if not pairs:
        return
    of_state, of_action = np.array(pairs).T
    copied = []
    for episode in range(len(facts.episodes)):
        state, action = facts.both(episode)
        if len(state) and (state[:, of_state] == action[:, of_action]).mean() > _COPIED:
            copied.append(episode)
    yield from facts.findings_of("copied-state", copied, "the actions are the states of the same steps")


def delays(facts: Facts) -> Iterator[Finding]:
    """States that lead their actions, lag far behind them, or have an unusual delay."""
    found = {episode: costs for episode in range(len(facts.episodes)) if _is_clear(costs := _misfits(facts, episode))}
    best = {episode: min(costs, key=lambda delay: costs[delay]) for episode, costs in found.items()}
    if not best:
        return
    usual = int(np.median(list(best.values())))
    is_worse = [costs[0] > _WORSE * costs[best[episode]] for episode, costs in found.items()]
    if usual < 0 and np.mean(is_worse) > 0.5:
        text = f"the actions lag behind the states by {-usual} steps: they should lead them"
        yield facts.finding("late-action", text, file=facts.action.file)
    elif usual >= facts.steps_in(*_LONG_LAG):
        seconds = f" ({usual / facts.fps:.2f} s)" if facts.fps else ""
        text = f"the states lag behind the actions by {usual} steps{seconds}"
        yield facts.finding("long-lag", text, file=facts.action.file)
    least = max(_ODD_LAG[1], facts.steps_in(*_ODD_LAG))
    for episode, delay in best.items():
        costs = found[episode]
        is_odd = abs(delay - usual) >= least or delay < 0 < usual
        if is_odd and costs.get(usual, np.inf) > _WORSE_IN_ONE * costs[delay]:
            text = f"the state lags behind the action by {delay} steps, usually by {usual}"
            yield facts.finding("odd-lag", text, episode=episode)


def _is_clear(costs: dict[int, float]) -> bool:
    """Whether there is a distinct best delay inside of the window."""
    delays = list(costs)
    if len(delays) < 3:
        return False
    best = min(delays, key=lambda delay: costs[delay])
    most = max(costs[delays[0]], costs[delays[-1]])
    return delays[0] < best < delays[-1] and costs[best] < _CLEAR * most


def _misfits(facts: Facts, episode: int) -> dict[int, float]:
    """Delay in steps → mean distance in spans between the state and the action that many steps before.

    Positions show a delay better than velocities: those of scripted movements are constant for many steps, and those of
    slow ones are noise. Grippers and hands are excluded, since objects stop them.
    """
    is_end = facts.action.dims_named(*ENDS)
    spans = facts.state.span, facts.action.span
    pairs = [(s, a) for s, a in facts.position_pairs if not is_end[a] and np.isfinite([spans[0][s], spans[1][a]]).all()]
    state, action = facts.both(episode)
    if not pairs or len(state) < 2:
        return {}
    of_state, of_action = np.array(pairs).T
    state, action = state[:, of_state] / spans[0][of_state], action[:, of_action] / spans[1][of_action]
    window = min(facts.steps_in(*_WINDOW), len(state) // 4)
    return {delay: _misfit(state, action, delay) for delay in range(-window, window + 1)}


def _misfit(state: np.ndarray, action: np.ndarray, delay: int) -> float:
    """Misfit of (T, K), up to a constant: arms sag."""
    after = state[max(0, delay) : len(state) + min(0, delay)]
    before = action[max(0, -delay) : len(action) - max(0, delay)]
    difference = after - before
    return float(np.abs(difference - difference.mean(axis=0)).mean())


# Timestamps ---------------------------------------------------------------------------------------


def no_fps(facts: Facts) -> Iterator[Finding]:
    if facts.fps is None:
        intervals = [interval for _, its in _intervals(facts) if (interval := np.median(its)) > 0]
        measured = f"; its timestamps give {1 / np.median(intervals):.4g}" if intervals else ""
        yield facts.finding("no-fps", f"the dataset has no fps{measured}")


def wrong_fps(facts: Facts) -> Iterator[Finding]:
    if facts.fps is None:
        return
    rates = {episode: 1 / np.median(its) for episode, its in _intervals(facts) if np.median(its) > 0}
    wrong = {episode: rate for episode, rate in rates.items() if abs(rate / facts.fps - 1) > _OFF}
    if wrong:
        rate = np.median(list(wrong.values()))
        text = f"timestamps give {rate:.4g} fps, the dataset says {facts.fps:g}"
        yield from facts.findings_of("wrong-fps", list(wrong), text)


def uneven_timestamps(facts: Facts) -> Iterator[Finding]:
    """Timestamps that decrease, have gaps, or are irregular."""
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
    """Episodes with timestamps, and the seconds (T − 1,) between their steps; NaN counts as a decrease."""
    for episode, times in enumerate(facts.timestamps):
        if times is not None and len(times) > 1:
            yield episode, np.diff(times)
