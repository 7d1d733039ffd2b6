"""Checks of each camera's images on their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from bimact.check.facts import Facts, FrameFacts
from bimact.check.findings import Finding
from bimact.check.kinds import INFO, WARNING
from bimact.check.motion import runs

_DARK = 5.0  # grey levels, mean and spread: a covered lens has noise of 1 to 3
_UNIFORM = 1.5  # grey levels of spread: no scene is that uniform, the image of a lost signal is

_NEARLY = 0.1  # of the camera's median change: video encoders do not repeat an image exactly
_BETWEEN = 0.02  # share of images with one to two times that change, above which all changes are small
_FREEZE = (0.25, 5)  # seconds or steps: shorter ones are late images
_MOVED = 0.05  # of a dimension's span, meanwhile: visible in any camera that sees it
_MOVES = 0.005  # of a dimension's span in one step: it moves
_UNSEEN = 0.1  # share of a dimension's moving steps without a new image, above which the camera may not see it

_SLOW, _VERY_SLOW = 0.2, 0.5  # share of the moving steps without a new image
_GLITCH = 8.0  # grey levels of change
_TIMES_USUAL = 5.0  # and relative to the 90% quantile of changes
_BACK = 0.3  # of that change: distance between the images before and after


def blank_images(facts: Facts) -> Iterator[Finding]:
    for camera, of_episodes in facts.frames.items():
        whole: dict[str, list[int]] = defaultdict(list)  # problem → episodes that have it at all steps
        for episode, frames in enumerate(of_episodes):
            if frames is None:
                continue
            is_dark, is_blank = _blank(frames)
            if is_blank.all():
                whole["is black" if is_dark.mean() > 0.5 else "shows one colour"].append(episode)
            elif is_blank.any():
                steps = np.flatnonzero(is_blank)
                text = f"camera '{camera}' {'is black' if is_dark[steps[0]] else 'shows one colour'}"
                yield facts.finding("blank-image", text, episode=episode, steps=steps, camera=camera)
        for problem, episodes in whole.items():
            text = f"camera '{camera}' {problem} at all steps"
            yield from facts.findings_of("blank-image", episodes, text, camera=camera)


def _blank(frames: FrameFacts) -> tuple[np.ndarray, np.ndarray]:
    """(T,) bool: black; (T,) bool: black or of one colour."""
    is_dark = (frames.brightness < _DARK) & (frames.spread < _DARK)
    return is_dark, is_dark | (frames.spread < _UNIFORM)


def frozen_cameras(facts: Facts) -> Iterator[Finding]:
    """Cameras that show one image for a whole episode, or while the robot moves."""
    least = facts.steps_in(*_FREEZE)
    for camera, of_episodes in facts.frames.items():
        frozen: list[int] = []
        sees = _seen_dimensions(facts, of_episodes)
        for episode, frames in enumerate(of_episodes):
            if frames is None or _blank(frames)[1].all():
                continue
            if len(frames) > 1 and frames.is_repeat[1:].all():
                frozen.append(episode)
                continue
            state = facts.state.clean(episode)[: len(frames)]
            found = [
                (begin, end)
                for begin, end in runs(_is_still(frames, of_episodes)[: len(state)])
                if end - begin >= least and _is_seen_to_move(state[begin - 1 : end], sees, facts)
            ]
            if found:
                steps = [step for begin, end in found for step in range(begin, end)]
                text = f"camera '{camera}' is frozen while the robot moves"
                yield facts.finding("frozen-camera", text, episode=episode, steps=steps, camera=camera)
        text = f"camera '{camera}' shows the same image at all steps"
        yield from facts.findings_of("frozen-camera", frozen, text, camera=camera)


def _is_seen_to_move(state: np.ndarray, sees: np.ndarray, facts: Facts) -> bool:
    """Whether states (T, S) move, mostly in dimensions that the camera usually sees."""
    moved = np.ptp(state, axis=0) > _MOVED * facts.state.span
    return bool(2 * (moved & sees).sum() > moved.sum())


def _is_still(frames: FrameFacts, of_camera: tuple[FrameFacts | None, ...]) -> np.ndarray:
    """(T,) bool: the image is the previous one, up to video compression.

    Not the first one, and not a blank one, which is another finding.
    """
    changes = np.concatenate([of.change[1:][~of.is_repeat[1:]] for of in of_camera if of is not None])
    nearly = _NEARLY * float(np.median(changes)) if len(changes) else 0.0
    between = (changes >= nearly) & (changes < 2 * nearly)
    if between.sum() > _BETWEEN * len(changes):
        nearly = 0.0
    is_still: np.ndarray = (frames.is_repeat | (frames.change < nearly)) & ~_blank(frames)[1]
    is_still[0] = False
    return is_still


def _seen_dimensions(facts: Facts, of_camera: tuple[FrameFacts | None, ...]) -> np.ndarray:
    """(S,) bool: the dimensions of the state whose movement usually coincides with new images.

    A wrist camera does not see the other arm.
    """
    moved, unseen = np.zeros(facts.state.size), np.zeros(facts.state.size)
    for episode, frames in enumerate(of_camera):
        if frames is not None and len(frames) > 1:
            state = facts.state.clean(episode)[: len(frames)]
            moves = np.abs(np.diff(state, axis=0)) > _MOVES * facts.state.span
            is_still = _is_still(frames, of_camera)[1 : len(state)]
            moved += moves.sum(axis=0)
            unseen += moves[is_still].sum(axis=0)
    return (moved > 0) & (unseen < _UNSEEN * moved)


def slow_cameras(facts: Facts) -> Iterator[Finding]:
    """Cameras with fewer new images than there are steps."""
    for camera, of_episodes in facts.frames.items():
        moving = repeated = 0
        for episode, frames in enumerate(of_episodes):
            if frames is None or frames.is_repeat[1:].all():
                continue
            state = facts.state.clean(episode)[: len(frames)]
            moves = np.any(np.abs(np.diff(state, axis=0)) > _MOVES * facts.state.span, axis=1)
            is_late = np.logical_and(frames.is_repeat[1 : len(state)], moves & ~_blank(frames)[1][1 : len(state)])
            for begin, end in runs(is_late):
                if end - begin >= facts.steps_in(*_FREEZE):
                    is_late[begin:end] = moves[begin:end] = False  # frozen: another finding
            moving += int(moves.sum())
            repeated += int(is_late.sum())
        if moving and repeated >= _SLOW * moving:
            share = repeated / moving
            rate = f": about {facts.fps * (1 - share):.3g} fps, not {facts.fps:g}" if facts.fps else ""
            text = f"camera '{camera}' repeats its last image in {share:.0%} of the steps{rate}"
            severity = WARNING if share >= _VERY_SLOW else INFO
            yield facts.finding("slow-camera", text, camera=camera, severity=severity)


def glitches(facts: Facts) -> Iterator[Finding]:
    """Single images that differ from both of their neighbours, which are similar."""
    for camera, of_episodes in facts.frames.items():
        known = [frames.change[1:] for frames in of_episodes if frames is not None and len(frames) > 1]
        if not known:
            continue
        least = max(_GLITCH, _TIMES_USUAL * float(np.quantile(np.concatenate(known), 0.9)))
        for episode, frames in enumerate(of_episodes):
            if frames is None or len(frames) < 3:
                continue
            change = np.minimum(frames.change[1:-1], frames.change[2:])  # (T − 2,) of the images between others
            is_back = frames.change_over_two[2:] < _BACK * change
            is_glitch = (change > least) & is_back & ~_blank(frames)[1][1:-1]
            if is_glitch.any():
                steps = np.flatnonzero(is_glitch) + 1
                text = f"the image of camera '{camera}' differs from the one before and the one after"
                yield facts.finding("image-glitch", text, episode=episode, steps=steps, camera=camera)
