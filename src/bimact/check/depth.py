"""Checks of depth cameras: pixels without a measurement, and pixels at the end of what can be measured."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bimact.check.findings import Finding, at_steps
from bimact.check.kinds import KINDS
from bimact.data.depth import FARTHEST, unpack_depth
from bimact.data.selection import SelectedSource
from bimact.data.workers import run_jobs
from bimact.errors import UserError, without_folder
from bimact.progress import progress_bar

_HOLES = 0.8  # share of the pixels without a measurement: stereo and structured light leave 5 to 40% open
_MORE_THAN_USUAL = 0.3  # above the camera's median, for a single step
_SATURATED = 0.2  # share of the pixels at the end of the range
_LEAST_MAXIMUM = 3000  # millimetres: nearer values that many pixels share are a wall, not the end of the range
_SECONDS_PER_STEP, _SECONDS_TO_START = 1.0, 60.0  # timeout of a child process


def depth_faults(source: SelectedSource) -> Iterator[Finding]:
    """Read the depth cameras of a dataset, chosen or not, and look at what they measure."""
    # Without --cameras training leaves depth out, and it is checked all the same.
    everything = source.selection.cameras is None
    cameras = [name for name in source.whole.depth_cameras if everything or name in source.cameras]
    jobs = [(source, episode, camera) for camera in cameras for episode in range(len(source.episodes))]
    if not jobs:
        return
    shares: dict[str, dict[int, np.ndarray]] = {camera: {} for camera in cameras}
    timeout = _SECONDS_TO_START + _SECONDS_PER_STEP * max(episode.length for episode in source.episodes)
    steps = sum(source.episodes[episode].length for _, episode, _ in jobs)
    with progress_bar("looking through depth images", steps) as progress:
        for number, read in run_jobs(_look_through, jobs, describe=_described, timeout=timeout, keep_going=True):
            _, episode, camera = jobs[number]
            if isinstance(read, UserError):
                name = source.episodes[episode].name
                sentence = without_folder(str(read), source.path)
                yield Finding("unreadable", sentence, KINDS["unreadable"].severity, "", episode, name, camera=camera)
            else:
                shares[camera][episode] = read
            progress.advance(source.episodes[episode].length)
    for camera, by_episode in shares.items():
        farthest = max((int(its[:, 2].max(initial=0)) for its in by_episode.values()), default=0)
        usual = np.median(np.concatenate([its[:, 0] for its in by_episode.values()])) if by_episode else 0.0
        for episode, its in sorted(by_episode.items()):
            holes = np.flatnonzero((its[:, 0] > _HOLES) | (its[:, 0] > usual + _MORE_THAN_USUAL))
            at_end = np.flatnonzero((its[:, 1] > _SATURATED) & (its[:, 2] == farthest))
            if len(holes):
                text = f"has no measurement in {its[holes[0], 0]:.0%} of its pixels, usually {usual:.0%}"
                yield _finding("depth-holes", source, episode, holes, f"depth camera '{camera}' {text}", camera)
            if len(at_end) and farthest >= _LEAST_MAXIMUM:
                where = f"{farthest} mm" + (", the largest number of uint16" if farthest == FARTHEST else "")
                text = f"has {its[at_end[0], 1]:.0%} of its pixels at {where}"
                yield _finding("depth-saturated", source, episode, at_end, f"depth camera '{camera}' {text}", camera)


def _finding(code: str, source: SelectedSource, episode: int, steps: np.ndarray, text: str, camera: str) -> Finding:
    name = source.episodes[episode].name
    place = at_steps(name, int(steps[0]), len(steps))
    severity = KINDS[code].severity
    return Finding(code, f"{place}: {text}", severity, "", episode, name, int(steps[0]), len(steps), camera)


def _described(source: SelectedSource, episode: int, camera: str) -> str:
    return f"{source.episodes[episode].name}, depth camera '{camera}'"


def _look_through(source: SelectedSource, episode: int, camera: str) -> np.ndarray:
    """In a child: (T, 3) of each step: share of pixels without measurement, share at its maximum, its maximum in mm."""
    found = []
    position, length = source.positions[episode], source.whole.episodes[source.positions[episode]].length
    for packed in source.whole.read_frames(position, camera, range(length)):
        millimetres = unpack_depth(packed)
        farthest = int(millimetres.max(initial=0))
        found.append(((millimetres == 0).mean(), (millimetres == farthest).mean() if farthest else 0.0, farthest))
    if len(found) < length:
        raise UserError(f"{source.episodes[episode].name}: camera '{camera}' has {len(found)} images, not {length}")
    return np.array(found)
