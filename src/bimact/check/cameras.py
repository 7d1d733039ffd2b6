"""Checks that compare a camera's images with other cameras' and with other episodes'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, combinations

import numpy as np

from bimact.check.facts import Cut, Facts
from bimact.check.findings import Finding
from bimact.check.images import blank_images

_LIKE_ANOTHER = 0.5  # distance to the supposed image, relative to the distance to the expected one
_FAR = 8.0  # grey levels of distance to the expected image, below which nothing is reported
_FEWEST_EPISODES = 3  # that define a usual view
_ODD = 6.0  # times the median distance: none of thousands of ordinary views is that far off
_ODD_LEVELS = 25.0  # grey levels: another position of the camera, or other lighting
_CLOSE_CUTS = 1  # steps between the changes of two cameras

_FAR_COLORS = 3.0  # grey levels between red and blue, as _FAR

_CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "upside down": lambda image: image[::-1, ::-1],
    "mirrored left to right": lambda image: image[:, ::-1],
    "mirrored top to bottom": lambda image: image[::-1],
}


def same_cameras(facts: Facts) -> Iterator[Finding]:
    for one, other in combinations(facts.frames, 2):
        episodes = [
            episode
            for episode, (first, second) in enumerate(zip(facts.frames[one], facts.frames[other]))
            if first is not None and second is not None and first.digest == second.digest
        ]
        text = f"cameras '{one}' and '{other}' show the same images"
        yield from facts.findings_of("same-camera", episodes, text, camera=one)


def swapped_cameras(facts: Facts) -> Iterator[Finding]:
    """Two cameras that are swapped: in whole episodes, or from some step on."""
    for one, other in combinations(facts.frames, 2):
        usual = _usual(facts, one), _usual(facts, other)
        for episode, (first, second) in enumerate(zip(facts.frames[one], facts.frames[other])):
            if first is None or second is None:
                continue
            text = f"cameras '{one}' and '{other}' are swapped"
            step = _swap_between(first.cuts, second.cuts)
            if step is not None:
                text += " from here on"
                yield facts.finding("swapped-cameras", text, episode=episode, steps=[step], camera=one)
            elif _is_swapped((first.average, second.average), usual):
                yield facts.finding("swapped-cameras", text, episode=episode, camera=one)


def _swap_between(cuts: tuple[Cut, ...], others: tuple[Cut, ...]) -> int | None:
    """The step at which two cameras both change to the view of the other one."""
    for cut in cuts:
        for other in others:
            is_at_once = abs(cut.step - other.step) <= _CLOSE_CUTS
            if is_at_once and _is_swapped((cut.after, other.after), (cut.before, other.before)):
                return min(cut.step, other.step)
    return None


def _is_swapped(images: tuple[np.ndarray, np.ndarray], usual: tuple[np.ndarray | None, np.ndarray | None]) -> bool:
    """Whether each of two images resembles the usual view of the other camera."""
    one, other = usual
    if one is None or other is None:
        return False
    straight = _distance(images[0], one) + _distance(images[1], other)
    crossed = _distance(images[0], other) + _distance(images[1], one)
    return straight > 2 * _FAR and crossed < _LIKE_ANOTHER * straight


def changed_images(facts: Facts) -> Iterator[Finding]:
    """Episodes whose images resemble the others' when rotated, mirrored, or with red and blue swapped."""
    for camera, of_episodes in facts.frames.items():
        usual = _usual(facts, camera)
        for episode, frames in enumerate(of_episodes):
            if usual is None or frames is None:
                continue
            words = _change(frames.average, usual)
            if words is not None:
                text = f"the images of camera '{camera}' are {words}, compared with other episodes"
                yield facts.finding("changed-image", text, episode=episode, camera=camera)


def _change(image: np.ndarray, usual: np.ndarray) -> str | None:
    """How an image (H, W, 3) was changed from the usual one, if it was."""
    straight = _distance(image, usual)
    changed = {words: _distance(change(image), usual) for words, change in _CHANGES.items()}
    words = min(changed, key=lambda words: changed[words])
    if straight > _FAR and changed[words] < _LIKE_ANOTHER * straight:
        return words
    # Most scenes are nearly grey: only the difference of red and blue shows a swap.
    colors, usual_colors = (of[:, :, 0].astype(np.float32) - of[:, :, 2] for of in (image, usual))
    straight = _distance(colors, usual_colors)
    if straight > _FAR_COLORS and _distance(-colors, usual_colors) < _LIKE_ANOTHER * straight:
        return "with red and blue swapped"
    return None


def odd_views(facts: Facts) -> Iterator[Finding]:
    """Unusual views that no other finding explains."""
    others = chain(blank_images(facts), swapped_cameras(facts), changed_images(facts))
    explained = {finding.episode for finding in others if finding.step is None or finding.code == "swapped-cameras"}
    for camera, of_episodes in facts.frames.items():
        usual = _usual(facts, camera)
        if usual is None:
            continue
        distances = {n: _distance(frames.average, usual) for n, frames in enumerate(of_episodes) if frames is not None}
        least = max(_ODD_LEVELS, _ODD * float(np.median(list(distances.values()))))
        for episode, distance in distances.items():
            if distance > least and episode not in explained:
                text = f"the view of camera '{camera}' differs from the other episodes"
                yield facts.finding("odd-view", text, episode=episode, camera=camera)


def _usual(facts: Facts, camera: str) -> np.ndarray | None:
    """(12, 16, 3) median of all episodes' average images; None: too few episodes."""
    averages = [frames.average for frames in facts.frames[camera] if frames is not None]
    return np.median(averages, axis=0) if len(averages) >= _FEWEST_EPISODES else None


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(one.astype(np.float32) - other).mean())
