"""What is odd in the values of a dataset whose form is sound: not wrong for certain, but worth a look."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from bimact.data.episodes import Episodes, Rows
from bimact.data.findings import Findings
from bimact.progress import progress_bar

_FAR = 20.0  # standard deviations from what is usual
_SMALLEST_SPREAD = 1e-2  # what varies less, such as the joints of an arm at rest, has no usual range
_WRONG_EPISODES = 0.1  # share of episodes that may be wrong without changing what counts as usual
_BLOCK_BYTES = 32 << 20
_MOST_NAMES = 8  # of dimensions in one sentence


class Files(NamedTuple):
    """The names by which findings call the parts of a dataset."""

    lengths: str
    observations: str
    actions: str


def note_odd_values(episodes: Episodes, chunk_size: int, files: Files, findings: Findings) -> None:
    """Warn of values that never change, lie far outside, repeat another episode's, and of still or black images.

    Args:
        chunk_size: warn of episodes that have fewer steps.
        files: how findings name the parts of the dataset.
        findings: takes the warnings.
    """
    _note_short(episodes.lengths, chunk_size, files, findings)
    states, actions = _Ranges("state", files.observations), _Ranges("action", files.actions)
    first_with: dict[tuple[int, bytes], int] = {}  # length and hash of actions → the first episode with them
    still: dict[tuple[str, str], list[int]] = defaultdict(list)  # camera and what is odd about it → episodes
    with progress_bar("comparing episodes", len(episodes.lengths)) as progress:
        for episode in range(len(episodes.lengths)):
            rows = episodes.rows_of(episode)
            its_actions = episodes.actions[rows]
            states.add(episodes.state[rows])
            actions.add(its_actions)
            key = len(its_actions), hashlib.blake2b(np.ascontiguousarray(its_actions).data).digest()
            if (other := first_with.setdefault(key, episode)) != episode:
                _note_duplicate(episode, other, files, findings)
            for camera, images in episodes.images.items():
                if (problem := _image_problem(images, rows)) is not None:
                    still[camera, problem].append(episode)
            progress.advance()
    _note_images(still, len(episodes.lengths), files.observations, findings)
    for ranges, source in ((states, episodes.state), (actions, episodes.actions)):
        _note_constant(ranges, episodes, findings)
        _note_far(ranges, source, episodes, findings)


def _note_short(lengths: np.ndarray, chunk_size: int, files: Files, findings: Findings) -> None:
    short = int((lengths < chunk_size).sum())
    if short:
        least = int(np.argmin(lengths))
        findings.add(
            files.lengths,
            f"{files.lengths}: {short} of {len(lengths)} episodes are shorter than chunk_size ({chunk_size}), the "
            f"shortest is episode {least} with {lengths[least]} steps; a smaller chunk_size has less padding",
            is_fault=False,
        )


def _note_duplicate(episode: int, other: int, files: Files, findings: Findings) -> None:
    sentence = f"its actions are those of episode {other}, byte for byte; remove one of the two"
    findings.add(files.actions, f"{files.actions}, episode {episode}: {sentence}", is_fault=False, episode=episode)


# Images --------------------------------------------------------------------------------------------


def _image_problem(images: Rows, rows: slice) -> str | None:
    """What is odd about a camera's images of one episode: the end of a sentence that begins with the camera."""
    image = _only_image(images, rows)
    if image is None:
        return None
    if not image.any():
        return "is black at all steps; see that it was switched on"
    return "shows the same image at all steps; see that it was running" if rows.stop - rows.start > 1 else None


def _note_images(still: dict[tuple[str, str], list[int]], total: int, file: str, findings: Findings) -> None:
    """Warn of camera and problem → episodes; once, where all episodes are alike."""
    for (camera, problem), episodes in still.items():
        if len(episodes) == total > 1:
            findings.add(file, f"{file}, all {total} episodes: camera '{camera}' {problem}", is_fault=False)
            continue
        for episode in episodes:
            sentence = f"{file}, episode {episode}: camera '{camera}' {problem}"
            findings.add(file, sentence, is_fault=False, episode=episode)


def _only_image(images: Rows, rows: slice) -> np.ndarray | None:
    """The image (1, H, W, 3) that is the same at all steps of an episode; None: some differ.

    Most episodes are done with their first and last image, so that few of a large dataset are read.
    """
    first = images[np.array([rows.start])]
    if (images[np.array([rows.stop - 1])] != first).any():
        return None
    size = max(1, _BLOCK_BYTES // first.nbytes)
    for begin in range(rows.start, rows.stop, size):
        if (images[np.arange(begin, min(begin + size, rows.stop))] != first).any():
            return None
    return first


# States and actions --------------------------------------------------------------------------------


class _Ranges:
    """Mean, variance, least and largest value of each dimension in each episode, of steps without NaN."""

    def __init__(self, what: str, file: str) -> None:
        self.what = what
        self.file = file
        self._of_episodes: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """The next episode: (L, D)."""
        finite = values[np.isfinite(values).all(axis=1)].astype(np.float64)
        if len(finite) == 0:
            self._of_episodes.append(np.full((4, values.shape[1]), np.nan))
        else:
            self._of_episodes.append(
                np.stack([finite.mean(axis=0), finite.var(axis=0), finite.min(axis=0), finite.max(axis=0)])
            )

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """(K,) episodes that have finite values, (4, K, D) their means, variances, least and largest values."""
        table = np.stack(self._of_episodes, axis=1)
        known = np.flatnonzero(~np.isnan(table[0, :, 0]))
        return known, table[:, known]


def _note_constant(ranges: _Ranges, episodes: Episodes, findings: Findings) -> None:
    known, (_, _, low, high) = ranges.table()
    if episodes.num_steps == 1 or len(known) == 0:
        return
    constant = np.flatnonzero(low.min(axis=0) == high.max(axis=0))
    if len(constant) == 0:
        return
    names = ", ".join(_name(ranges.what, int(number), episodes) for number in constant[:_MOST_NAMES])
    more = f" and {len(constant) - _MOST_NAMES} more" if len(constant) > _MOST_NAMES else ""
    verb = "has" if len(constant) == 1 else "have"
    sentence = f"{ranges.file}: {names}{more} {verb} the same value at every step; see that this was meant"
    findings.add(ranges.file, sentence, is_fault=False)


def _note_far(ranges: _Ranges, source: Rows, episodes: Episodes, findings: Findings) -> None:
    """Warn of steps that are far from what is usual in most episodes.

    The spread is that of all but the most deviant episodes: in the standard deviation of all, an episode in wrong
    units would hide itself.
    """
    known, (mean, variance, low, high) = ranges.table()
    if len(known) == 0:
        return
    center = np.median(mean, axis=0)
    deviation = np.sqrt(variance + (mean - center) ** 2)  # (K, D) root mean square in each episode
    spread = np.quantile(deviation, 1 - _WRONG_EPISODES, axis=0, method="lower")
    spread[spread < _SMALLEST_SPREAD] = np.inf
    farthest = np.maximum(high - center, center - low) / spread
    for episode in known[(farthest > _FAR).any(axis=1)]:
        rows = episodes.rows_of(int(episode))
        values = source[rows].astype(np.float64)
        values = np.where(np.isfinite(values), values, center)  # what is not finite is a fault
        distance = np.abs(values - center) / spread  # (L, D)
        steps = np.flatnonzero((distance > _FAR).any(axis=1))
        number = int(np.argmax(distance[steps[0]]))
        usual = f"{center[number]:.4g} ± {spread[number]:.4g}"
        problem = (
            f"has {values[steps[0], number]:.4g} as {_name(ranges.what, number, episodes)}, more than {_FAR:g} "
            f"standard deviations from the usual {usual}; look for a wrong unit or a bad reading"
        )
        findings.add_steps(ranges.file, dict.fromkeys((rows.start + steps).tolist(), problem), is_fault=False)


def _name(what: str, number: int, episodes: Episodes) -> str:
    joints = episodes.joint_names if what == "action" else None
    return f"{what}[{number}]" + (f" ({joints[number]})" if joints else "")
