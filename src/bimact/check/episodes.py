"""Checks of whole episodes: lengths, duplicates, weight in the statistics, tasks; and of the settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from bimact.check.facts import Facts, Vectors
from bimact.check.findings import Finding
from bimact.check.values import far_steps
from bimact.config import Config

_FEWEST_EPISODES = 5  # below, "usual" says nothing
_TIMES_USUAL = 3.0  # longer or shorter; teleoperated demonstrations of one task differ by a factor of 2
_OF_SPREAD = 5.0  # times the median deviation of lengths: where lengths vary widely, that is usual
_DOMINANCE = 2.0  # factor by which an episode raises a standard deviation
_USUAL_ACTION = 14  # two arms of six joints and a gripper


def duplicates(facts: Facts) -> Iterator[Finding]:
    """Episodes whose actions or images are identical to those of another one."""
    first_with: dict[tuple[str, int, bytes], int] = {}
    for episode, actions in enumerate(facts.action.parts):
        digests = {"actions": hashlib.blake2b(actions.tobytes()).digest()} if len(actions) else {}
        for camera, of_episodes in facts.frames.items():
            frames = of_episodes[episode]
            if frames is not None and len(frames) > 1 and not frames.is_repeat[1:].all():
                digests[f"images of camera '{camera}'"] = frames.digest
        for what, digest in digests.items():
            other = first_with.setdefault((what, len(actions), digest), episode)
            if other != episode:
                file = facts.action.file if what == "actions" else ""
                text = f"its {what} are identical to those of {facts.episodes[other].name}"
                yield facts.finding("duplicate-episode", text, episode=episode, file=file)
                break


def odd_lengths(facts: Facts) -> Iterator[Finding]:
    lengths = facts.lengths
    if len(lengths) < _FEWEST_EPISODES:
        return
    logs = np.log(lengths)
    usual = np.median(logs)
    least = max(np.log(_TIMES_USUAL), _OF_SPREAD * float(np.median(np.abs(logs - usual))))
    for episode in np.flatnonzero(np.abs(logs - usual) > least):
        text = f"has {lengths[episode]} steps, the median is {np.exp(usual):.0f}"
        yield facts.finding("odd-length", text, episode=int(episode), file=facts.lengths_file, is_predicate=True)


def dominant_episodes(facts: Facts) -> Iterator[Finding]:
    """Episodes without which a standard deviation would be half, in dimensions where most episodes move."""
    for vectors in facts.vectors:
        ratio = _ratio_of_deviations(vectors)
        ratio[list(far_steps(vectors))] = 0  # reported as such
        for episode in np.flatnonzero((ratio > _DOMINANCE).any(axis=1)):
            number = int(np.argmax(ratio[episode]))
            text = f"alone makes the standard deviation of {vectors.name(number)} {ratio[episode, number]:.1f} times"
            yield facts.finding("dominant-episode", f"{text} as large", episode=int(episode), file=vectors.file)


def _ratio_of_deviations(vectors: Vectors) -> np.ndarray:
    """(E, D) standard deviation of all steps, divided by that without the episode; 0 where most hardly move."""
    count = np.array([len(vectors.clean(episode)) for episode in range(len(vectors.parts))], dtype=np.float64)
    if (count > 0).sum() < _FEWEST_EPISODES:
        return np.zeros((len(count), vectors.size))
    center = np.median(vectors.limits[0][count > 0], axis=0)  # around which sums of squares are accurate
    sums, squares = np.zeros((2, len(count), vectors.size))
    for episode in range(len(count)):
        part = vectors.clean(episode).astype(np.float64) - center
        sums[episode], squares[episode] = part.sum(axis=0), (part**2).sum(axis=0)

    def deviation(count: np.ndarray, sums: np.ndarray, squares: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(np.maximum(squares / count - (sums / count) ** 2, 0)))

    rest = np.maximum(count.sum() - count, 1)[:, None]
    of_others = deviation(rest, sums.sum(axis=0) - sums, squares.sum(axis=0) - squares)
    of_all = deviation(count.sum()[None], sums.sum(axis=0), squares.sum(axis=0))
    low, high = vectors.limits
    moves = ((high - low) > 1e-2).sum(axis=0) > len(count) / 2  # (D,) in most episodes
    return np.where((of_others > 0) & moves, of_all / np.maximum(of_others, 1e-12), 0)


def tasks(facts: Facts) -> Iterator[Finding]:
    texts = [(episode.task or "").strip() for episode in facts.episodes]
    without = [number for number, text in enumerate(texts) if not text]
    if len(without) == len(texts):
        yield facts.finding("no-task", "the dataset has no task description")
        return
    for episode in without:
        yield facts.finding("missing-task", "it has no task description, unlike other episodes", episode=episode)
    known = list(dict.fromkeys(filter(None, texts)))
    if len(known) > 1:
        shown = "; ".join(f"'{text[:60]}'" for text in known[:3]) + (" …" if len(known) > 3 else "")
        yield facts.finding("several-tasks", f"there are {len(known)} tasks: {shown}")


def color_order(facts: Facts) -> Iterator[Finding]:
    if facts.color_order is not None and facts.frames:
        order = facts.color_order.upper()
        yield facts.finding("color-order", f"the format does not specify the colour order; images are read as {order}")


def types(facts: Facts) -> Iterator[Finding]:
    for vectors in facts.vectors:
        if vectors.dtype != "float32":
            text = f"the {vectors.what} has dtype {vectors.dtype}"
            yield facts.finding("dtype", text, file=vectors.file)


# The training's settings ---------------------------------------------------------------------------


def settings(facts: Facts) -> Iterator[Finding]:
    """Sizes that differ from the config; without a config, from the guide's one."""
    size = facts.action.size
    if facts.config is None:
        if size != _USUAL_ACTION:
            text = f"an action has {size} values, two arms usually have {_USUAL_ACTION}"
            yield facts.finding("action-size", text, file=facts.action.file)
        return
    for name, vectors in (("action_dim", facts.action), ("state_dim", facts.state)):
        wanted = getattr(facts.config, name)
        if wanted not in (None, vectors.size):
            text = f"{name} is {wanted} in the config, but the dataset has {vectors.size}"
            yield facts.finding("config-mismatch", f"{text}; set {name} to {vectors.size}", file=vectors.file)


def short_episodes(facts: Facts) -> Iterator[Finding]:
    chunk = (facts.config or Config()).chunk_size
    short = int((facts.lengths < chunk).sum())
    if short:
        least = int(np.argmin(facts.lengths))
        text = (
            f"{short} of {len(facts.lengths)} episodes are shorter than chunk_size ({chunk}), the shortest is "
            f"{facts.episodes[least].name} with {facts.lengths[least]} steps"
        )
        yield facts.finding("short-episode", text, file=facts.lengths_file)
