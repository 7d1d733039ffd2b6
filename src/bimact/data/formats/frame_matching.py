"""Which frame of a video belongs to which step of an episode.

Where there are as many frames as steps, they belong together in their order, whatever the times say: robots whose clock
drops ticks, or runs at another rate than the camera is said to, are recorded so. Else a frame belongs to a step if it
is the nearest to the step's time and not more than half a frame away; the last steps may be up to one frame beyond the
last frame. Times that go back tell that the steps are in another order than the frames, unless something else says that
they are in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bimact.data.source import FramesNote
from bimact.errors import UserError

_EXACT = 1e-3  # seconds: times are stored as float32, or in units of a millisecond


@dataclass(frozen=True)
class Matching:
    """The frames of an episode.

    Attributes:
        times: (T,) seconds in the file at which the frame of each step is shown.
        note: what is not as the times say; None: all is.
    """

    times: np.ndarray
    note: FramesNote | None


def match_frames(
    frames: np.ndarray,
    begin: float,
    end: float,
    steps: np.ndarray,
    fps: float,
    describe: Callable[[int], str],
    *,
    is_ordered: bool = False,
) -> Matching:
    """Find the frame of each step.

    Args:
        frames: (N,) when the frames of the file are shown, ascending, in seconds.
        begin: second of the file at which the episode begins.
        end: second at which it ends; may be infinite.
        steps: (T,) times of the steps as recorded, in seconds; since the episode's beginning or any other time.
        fps: the frames' usual rate.
        describe: number of a step → what messages call it.
        is_ordered: something else than the times says that the steps are in their order.

    Raises:
        UserError: naming the first step that has no frame, or whose time goes back.
    """
    half = 0.5 / fps
    own = frames[(frames >= begin - half) & (frames < end - half)]
    if len(own) == 0:
        raise UserError(f"has no frame from {begin:.2f} s on ({describe(0)})")
    if not np.isfinite(steps).all():
        step = int(np.argmin(np.isfinite(steps)))
        if len(own) != len(steps):
            raise UserError(f"has {len(own)} frames for {len(steps)} steps, and {describe(step)} has no time")
        what = "some timestamps are NaN or infinite: frames and steps are matched in their order"
        return Matching(own, FramesNote(what))

    since_first = steps - steps[0]
    if len(own) == len(steps):
        by_time = _nearest(own, own[0] + since_first)
        if np.array_equal(by_time, np.arange(len(own))):
            return Matching(own, None)
        if not is_ordered:
            _refuse_going_back(since_first, len(own), describe)
        what = "timestamps and frames disagree, and are as many: they are matched in their order"
        return Matching(own, FramesNote(what, float(np.abs(own - own[0] - since_first).max())))

    # As the times say: since the episode's beginning, or else since their own.
    told: list[str] = []
    if len(own) > len(steps):
        told.append("there are more frames than steps: the times tell which are shown")
    wanted = begin + steps
    found = _nearest(own, wanted)
    if steps[0] != 0 and not _all_near(own[found], wanted, half):
        wanted = begin + since_first
        found = _nearest(own, wanted)
        told.append("timestamps do not begin at 0: the first one is subtracted")
    is_beyond = wanted > own[-1] + half + _EXACT
    if (
        is_beyond.any()
        and _all_near(own[found], np.minimum(wanted, own[-1]), half)
        and wanted.max() <= own[-1] + 2 * (half + _EXACT)
    ):
        told.append("the last step is up to a frame beyond the last frame, and shows that")
        wanted = np.minimum(wanted, own[-1])
    if not _all_near(own[found], wanted, half):
        step = int(np.argmax(np.abs(own[found] - wanted) > half + _EXACT))
        raise UserError(
            f"has no frame at {wanted[step]:.2f} s ({describe(step)}); it has {len(own)} frames for {len(steps)} steps"
        )
    _refuse_going_back(found, len(own), describe)
    if ((np.diff(found) == 0) & ~is_beyond[1:]).any() and len(own) < len(steps):
        told.append("there are fewer frames than steps: a frame is shown for several steps")
    return Matching(own[found], FramesNote("; ".join(told)) if told else None)


def _refuse_going_back(steps: np.ndarray, frames: int, describe: Callable[[int], str]) -> None:
    """See that times, or the frames found by them, do not go back."""
    back = np.diff(steps) < 0
    if back.any():
        step = int(back.argmax()) + 1
        raise UserError(
            f"has {frames} frames for {len(steps)} steps, whose timestamps go back ({describe(step)}): nothing tells "
            "which belong together"
        )


def _nearest(frames: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(T,) the number of the frame that is nearest to each time; the earlier one of two."""
    after = np.clip(np.searchsorted(frames, wanted), 1, max(1, len(frames) - 1))
    before = after - 1
    after = np.minimum(after, len(frames) - 1)
    is_before = np.abs(wanted - frames[before]) <= np.abs(frames[after] - wanted)
    nearest: np.ndarray = np.where(is_before, before, after)
    return nearest


def _all_near(found: np.ndarray, wanted: np.ndarray, half: float) -> bool:
    return bool((np.abs(found - wanted) <= half + _EXACT).all())
