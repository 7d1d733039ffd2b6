"""Checks of the numbers in states and actions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from bimact.check.facts import Facts, Vectors
from bimact.check.findings import Finding

_FAR = 20.0  # standard deviations from the median: twice the maximum in real recordings
_SMALLEST_SPREAD = 1e-2  # a smaller one, as of the joints of an arm at rest, defines no usual range
_WRONG_EPISODES = 0.1  # share of episodes that may be wrong without an effect on the usual range

_JUMP = 0.3  # of a joint's span in one step; at 30 Hz no joint is that fast
_TIMES_USUAL = 10.0  # and relative to the 99% quantile: a fast joint is fast more than once
_USUAL_JUMPS = 0.2  # share of episodes above which jumps are how this dimension moves
_TURNS = (2 * np.pi, 360.0)
_OF_A_TURN = 0.03  # tolerance of a full turn: the joint moves in that step, too

_NO_SAG = 0.2  # of the usual span of joints: a joint without a command sags by less

_GRIPPER_MOVES = 0.1  # of its range
_MOVES_IN_MOST = 0.8  # share of episodes above which a gripper's movement is part of the task
_FEWEST_EPISODES = 5  # below, "most" says nothing

_SATURATED = 0.1  # share of all steps
_LEAST_RUN = 5  # consecutive steps at the limit that are not a coincidence
_BEYOND = 0.5  # of a joint's range: with teleoperation or sagging arms, commands lead the joint by up to 0.3
_OFTEN = 0.01  # share of all steps
_DEGREES = 180 / np.pi
_NEAR_DEGREES = 1.15  # tolerance of the ratio of two ranges
ENDS = ("gripper", "hand", "finger", "thumb", "claw", "jaw")  # end effectors press against what they hold


def nonfinite(facts: Facts) -> Iterator[Finding]:
    for vectors in facts.vectors:
        for episode, values in enumerate(vectors.parts):
            rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(rows):
                text = nonfinite_value(values[rows[0]], vectors)
                yield facts.finding("nan", text, episode=episode, steps=rows, file=vectors.file, is_predicate=True)


def nonfinite_value(values: np.ndarray, vectors: Vectors) -> str:
    """The predicate of a sentence about a vector (D,) with a value that is not finite."""
    number = int(np.argmin(np.isfinite(values)))
    return f"has {values[number]} as {vectors.name(number)}"


def far_values(facts: Facts) -> Iterator[Finding]:
    for vectors in facts.vectors:
        for episode, far in far_steps(vectors).items():
            text, steps = far.text, far.steps
            yield facts.finding("far-value", text, episode=episode, steps=steps, file=vectors.file, is_predicate=True)


@dataclass(frozen=True)
class FarSteps:
    """Steps of an episode with values far from the usual range, and the predicate of the message."""

    steps: np.ndarray
    text: str


def far_steps(vectors: Vectors) -> dict[int, FarSteps]:
    """Episode → its steps with values far from the usual range.

    The spread excludes the most deviant episodes: an episode in wrong units would inflate the standard deviation of
    all and so hide itself.
    """
    clean = {episode: values for episode in range(len(vectors.parts)) if len(values := vectors.clean(episode))}
    if not clean:
        return {}
    mean = np.stack([values.mean(axis=0, dtype=np.float64) for values in clean.values()])
    variance = np.stack([values.var(axis=0, dtype=np.float64) for values in clean.values()])
    center = np.median(mean, axis=0)
    deviation = np.sqrt(variance + (mean - center) ** 2)  # (K, D) root mean square in each episode
    spread = np.quantile(deviation, 1 - _WRONG_EPISODES, axis=0, method="lower")
    spread[spread < _SMALLEST_SPREAD] = np.inf
    found = {}
    for episode, values in clean.items():
        distance = np.abs(values - center) / spread  # (T, D)
        steps = np.flatnonzero((distance > _FAR).any(axis=1))
        if len(steps):
            number = int(np.argmax(distance[steps[0]]))
            found[episode] = FarSteps(
                steps,
                f"has {values[steps[0], number]:.4g} as {vectors.name(number)}, more than {_FAR:g} standard "
                f"deviations from the usual {center[number]:.4g} ± {spread[number]:.4g}",
            )
    return found


# Jumps ---------------------------------------------------------------------------------------------


class _Jump(NamedTuple):
    episode: int
    step: int  # after the jump
    number: int  # of the dimension
    change: float


def jumps(facts: Facts) -> Iterator[Finding]:
    """Steps in which a joint moves far, as it does nowhere else, and angle wrap-around."""
    for vectors in facts.vectors:
        found = list(_jumps(vectors))
        turning = {number for number in {jump.number for jump in found} if _turns(found, number)}
        for number in sorted(turning):
            places = {jump.episode: jump for jump in reversed(found) if jump.number == number}
            text = f"{vectors.name(number)} goes by a full turn within one step"
            episodes = sorted(places)
            if len(episodes) == len(facts.episodes) > 1:
                yield from facts.findings_of("wrapped-angle", episodes, text, file=vectors.file)
                continue
            for episode in episodes:
                steps = [jump.step for jump in found if jump.number == number and jump.episode == episode]
                yield facts.finding("wrapped-angle", text, episode=episode, steps=steps, file=vectors.file)
        others = [jump for jump in found if jump.number not in turning]
        yield from _reported_jumps(facts, vectors, others)


def _jumps(vectors: Vectors) -> Iterator[_Jump]:
    least = np.maximum(_JUMP * vectors.scale, _TIMES_USUAL * vectors.usual_change)
    least[vectors.dims_named(*ENDS)] = np.inf
    far = far_steps(vectors)
    for episode in range(len(vectors.parts)):
        change = np.diff(vectors.clean(episode), axis=0)
        is_jump = np.abs(change) > least
        if episode in far and len(change):  # reported as such, with the steps to and from there
            is_jump[np.minimum(far[episode].steps, len(change) - 1)] = False
            is_jump[np.maximum(far[episode].steps - 1, 0)] = False
        for step, number in np.argwhere(is_jump).tolist():
            yield _Jump(episode, step + 1, number, float(change[step, number]))


def _turns(found: Sequence[_Jump], number: int) -> bool:
    """Whether all jumps of a dimension are full turns."""
    changes = np.array([abs(jump.change) for jump in found if jump.number == number])
    return any(bool((np.abs(changes - turn) < _OF_A_TURN * turn).all()) for turn in _TURNS)


def _reported_jumps(facts: Facts, vectors: Vectors, found: Sequence[_Jump]) -> Iterator[Finding]:
    """One finding per episode; none for dimensions that jump in many episodes, since this is how they move."""
    episodes_of: dict[int, set[int]] = defaultdict(set)
    for jump in found:
        episodes_of[jump.number].add(jump.episode)
    most = max(1, _USUAL_JUMPS * len(facts.episodes))
    reported = [jump for jump in found if len(episodes_of[jump.number]) <= most]
    for episode, of_episode in groupby(reported, key=lambda jump: jump.episode):
        its = list(of_episode)
        steps = sorted({jump.step for jump in its})
        at_first = [jump for jump in its if jump.step == steps[0]]
        worst = max(at_first, key=lambda jump: abs(jump.change) / vectors.scale[jump.number])
        value = vectors.clean(episode)[worst.step, worst.number]
        others = len({jump.number for jump in its}) - 1
        text = (
            f"{vectors.name(worst.number)} goes from {value - worst.change:.3g} to {value:.3g} within one step, "
            f"usually by at most {vectors.usual_change[worst.number]:.2g}"
            + (f"; so do {others} more dimensions" if others > 1 else "; so does one more dimension" if others else "")
        )
        yield facts.finding("jump", text, episode=episode, steps=steps, file=vectors.file)


# Dimensions ----------------------------------------------------------------------------------------


def constant(facts: Facts) -> Iterator[Finding]:
    """Dimensions that never change, without those of `frozen_dimensions`."""
    for still, vectors in enumerate(facts.vectors):
        if sum(len(part) for part in vectors.parts) < 2:
            continue
        one_sided = {numbers[still] for numbers in _one_sided(facts, still)}
        low, high = vectors.range
        numbers = np.array([number for number in np.flatnonzero(low == high).tolist() if number not in one_sided])
        if len(numbers):
            verb = "has" if len(numbers) == 1 else "have"
            text = f"{vectors.listed(numbers)} {verb} the same value at every step"
            yield facts.finding("constant", text, file=vectors.file)


def frozen_dimensions(facts: Facts) -> Iterator[Finding]:
    for still, vectors in enumerate(facts.vectors):
        other = facts.vectors[1 - still]
        for numbers in _one_sided(facts, still):
            text = f"{vectors.name(numbers[still])} never changes, though {other.name(numbers[1 - still])} moves"
            yield facts.finding("frozen-dimension", text, file=vectors.file)


def _one_sided(facts: Facts, still: int) -> list[tuple[int, int]]:
    """Joints whose state (`still` is 0) or action (1) never changes while the other one moves as joints do."""
    low, high = facts.vectors[still].range
    spans = facts.vectors[1 - still].span
    moving = spans[np.isfinite(spans)]
    if len(moving) == 0:
        return []
    least = _NO_SAG * np.median(moving)
    return [
        (int(of_state), int(of_action))
        for of_state, of_action in facts.pairs
        if low[(of_state, of_action)[still]] == high[(of_state, of_action)[still]]
        and least < spans[(of_state, of_action)[1 - still]] < np.inf
    ]


def still_grippers(facts: Facts) -> Iterator[Finding]:
    """Grippers that do not move in an episode, unlike in most; unless nothing else moves either."""
    still: dict[int, list[str]] = defaultdict(list)
    for vectors in facts.vectors:
        low, high = vectors.limits
        moved = (high - low) / vectors.span  # (E, D)
        known = np.flatnonzero(~np.isnan(low[:, 0]) & (moved.max(axis=1, initial=0) > _GRIPPER_MOVES))
        for number in np.flatnonzero(vectors.dims_named("gripper") & np.isfinite(vectors.span)).tolist():
            moves = moved[known, number] > _GRIPPER_MOVES
            if len(known) >= _FEWEST_EPISODES and moves.mean() >= _MOVES_IN_MOST:
                for episode in known[~moves].tolist():
                    still[episode].append(vectors.name(number))
    for episode, names in sorted(still.items()):
        verb = "do not move, as they do" if len(names) > 1 else "does not move, as it does"
        yield facts.finding("still-gripper", f"{', '.join(names)} {verb} in most episodes", episode=episode)


def saturated(facts: Facts) -> Iterator[Finding]:
    """Actions that are at their limit between two movements, more than once.

    The beginning and the end of an episode do not count: arms often rest at a limit.
    """
    action = facts.action
    total = sum(len(part) for part in action.parts)
    for side, limit in (("smallest", action.range[0]), ("largest", action.range[1])):
        steps, runs = np.zeros(action.size, int), np.zeros(action.size, int)
        for episode in range(len(action.parts)):
            for number, length in _inner_runs(action.clean(episode) == limit):
                steps[number] += length
                runs[number] += 1
        is_hit = (steps > _SATURATED * total) & (runs > 1) & ~action.dims_named(*ENDS) & np.isfinite(action.span)
        for number in np.flatnonzero(is_hit).tolist():
            text = f"is at its {side} value {limit[number]:.4g} in {steps[number] / total:.0%} of all steps"
            yield facts.finding("saturated", f"{action.name(number)} {text}", file=action.file)


def _inner_runs(is_at: np.ndarray) -> Iterator[tuple[int, int]]:
    """(T, D) bool → dimension and length of each longer run of True that touches neither end."""
    for number in np.flatnonzero(is_at.sum(axis=0) >= _LEAST_RUN):
        edges = np.flatnonzero(np.diff(is_at[:, number].astype(np.int8)))
        begins_inside = is_at[edges + 1, number]
        for begin, end in zip(edges[begins_inside], edges[1:][begins_inside[:-1]]):
            if end - begin >= _LEAST_RUN:
                yield int(number), int(end - begin)


def out_of_reach(facts: Facts) -> Iterator[Finding]:
    """Commands far beyond the range of the joint's state."""
    if len(facts.position_pairs) == 0:
        return
    low, high = facts.state.range
    is_end = facts.action.dims_named(*ENDS)
    for of_state, of_action in facts.position_pairs:
        margin = _BEYOND * (high - low)[of_state]
        if is_end[of_action] or not margin > _BEYOND * _SMALLEST_SPREAD or np.isinf(facts.action.span[of_action]):
            continue
        values = np.concatenate([facts.action.clean(episode)[:, of_action] for episode in range(len(facts.episodes))])
        is_beyond = (values < low[of_state] - margin) | (values > high[of_state] + margin)
        if is_beyond.mean() > _OFTEN and not _is_in_degrees(facts, of_state, of_action):
            text = (
                f"{facts.action.name(of_action)} ranges from {values.min():.3g} to {values.max():.3g}, "
                f"{facts.state.name(of_state)} only from {low[of_state]:.3g} to {high[of_state]:.3g}"
            )
            yield facts.finding("out-of-reach", text, file=facts.action.file)


def unit_mismatch(facts: Facts) -> Iterator[Finding]:
    """Ranges of most joints whose ratio is 57.3."""
    pairs = [pair for pair in facts.position_pairs if np.isfinite(facts.state.span[pair[0]])]
    hits = [pair for pair in pairs if _is_in_degrees(facts, *pair)]
    if len(hits) > len(pairs) / 2:
        of_state, of_action = hits[0]
        ranges = [vectors.span[number] for vectors, number in zip(facts.vectors, (of_state, of_action))]
        text = (
            f"{facts.action.name(of_action)} ranges over {ranges[1]:.3g} and {facts.state.name(of_state)} over "
            f"{ranges[0]:.3g}: one is in degrees, the other in radians ({len(hits)} of {len(pairs)} joints)"
        )
        yield facts.finding("unit-mismatch", text, file=facts.action.file)


def _is_in_degrees(facts: Facts, of_state: int, of_action: int) -> bool:
    ratio = facts.action.span[of_action] / facts.state.span[of_state]
    return bool(max(ratio / _DEGREES, _DEGREES / ratio) < _NEAR_DEGREES) or bool(
        max(ratio * _DEGREES, 1 / (ratio * _DEGREES)) < _NEAR_DEGREES
    )
