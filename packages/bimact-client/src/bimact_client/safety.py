"""What stands between a policy and a robot: names, limits, largest steps, frozen cameras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np


class Stopped(Exception):
    """The loop has stopped the robot; the text says why."""


@dataclass(frozen=True)
class Safety:
    """Limits on what reaches the robot. Values are in the robot's units, one per action dimension or one for all.

    The server's `action_ranges`, the lowest and highest values of the training demonstrations, are what the defaults
    are computed from; w is the width of a dimension's range (at least 5% of the widest one's).

    Attributes:
        low: lowest value sent; None: the range's, less 5% of w.
        high: highest value sent; None: the range's, plus 5% of w.
        max_step: largest change from one action to the next; None: what crosses w in 0.08 s.
        ramp_step: largest change per step on the way from the present pose to the first action; None: what crosses w
            in 2 s; infinite: no ramp.
        stop_after: seconds without a fresh action, in which the robot holds, until the loop stops.
        start_after: seconds until the first chunk has to be there.
        frozen_after: seconds with the same frame of a camera until the loop stops; infinite: never.
        match_names: refuse a robot that does not name its joints; False: take them in the policy's order.
    """

    low: Any = None
    high: Any = None
    max_step: Any = None
    ramp_step: Any = None
    stop_after: float = 2.0
    start_after: float = 30.0
    frozen_after: float = 0.5
    match_names: bool = True


class Guard:
    """`Safety` for one policy at one rate; counts what it changes.

    Args:
        safety: the limits.
        metadata: the server's.
        hz: actions per second.

    Raises:
        Stopped: if a limit is neither given nor in the metadata, or has another size.
    """

    def __init__(self, safety: Safety, metadata: Mapping[str, Any], hz: float) -> None:
        self.safety = safety
        self.beyond_limits = 0  # steps at which a value was clamped to low or high
        self.too_fast = 0  # steps at which a change was clamped to max_step
        self._frames: dict[str, tuple[Any, float]] = {}
        names = metadata.get("action_names")
        given = [np.size(value) for value in (safety.low, safety.high, safety.max_step, safety.ramp_step)]
        size = len(names) if names else None
        ranges = metadata.get("action_ranges")
        if ranges:
            low, high = (np.asarray(ranges[side], np.float64) for side in ("low", "high"))
            width = np.maximum(high - low, 0.05 * np.max(high - low) or 1.0)
            size = len(low)
        elif any(value is None for value in (safety.low, safety.high, safety.max_step, safety.ramp_step)):
            raise Stopped(
                "the server does not say the ranges of actions: give all of Safety(low=…, high=…, max_step=…, "
                "ramp_step=…), in the robot's units (numpy.inf for no limit)"
            )
        else:
            low = high = width = np.zeros(1)
        if size is None:
            size = max(given)
        self.names: list[str] = list(names or [f"action {number}" for number in range(size)])

        def values(name: str, default: np.ndarray) -> np.ndarray:
            value = getattr(safety, name)
            array = np.asarray(default if value is None else value, np.float64)
            if array.shape not in ((), (1,), (size,)) or np.isnan(array).any():
                raise Stopped(f"Safety({name}=…) has shape {array.shape}, it has to be one number or {size}")
            if name in ("max_step", "ramp_step") and (array <= 0).any():
                raise Stopped(f"Safety({name}=…) has to be above 0")
            return np.broadcast_to(array, (size,))

        self.low = values("low", low - 0.05 * width)
        self.high = values("high", high + 0.05 * width)
        self.max_step = values("max_step", width / (0.08 * hz))
        self.ramp_step = values("ramp_step", width / (2 * hz))
        self.clamped = np.zeros(size, np.int64)  # steps per dimension

    def checked_chunk(self, actions: Any) -> np.ndarray:
        """A chunk (H, A) as float64.

        Raises:
            Stopped: if it has another shape, or NaN or Inf.
        """
        actions = np.asarray(actions)
        if (
            actions.ndim != 2
            or actions.shape[1] != len(self.names)
            or not len(actions)
            or actions.dtype.kind not in "fiu"
        ):
            raise Stopped(
                f"the policy sent actions of shape {actions.shape} and dtype {actions.dtype}, the robot has "
                f"{len(self.names)} action dimensions"
            )
        if not np.isfinite(actions).all():
            step, place = np.argwhere(~np.isfinite(actions))[0]
            raise Stopped(f"the policy sent NaN or Inf for {self.names[place]} (step {step} of its chunk)")
        checked: np.ndarray = actions.astype(np.float64)
        return checked

    def limited(self, action: np.ndarray, last: np.ndarray | None) -> np.ndarray:
        """An action (A,) within the limits, and within `max_step` of the last one."""
        within: np.ndarray = np.clip(action, self.low, self.high)
        result = within
        if last is not None:
            result = last + np.clip(within - last, -self.max_step, self.max_step)
        # Rounding alone is not counted.
        self.beyond_limits += not np.allclose(within, action, rtol=0, atol=1e-6)
        self.too_fast += not np.allclose(result, within, rtol=0, atol=1e-6)
        self.clamped += np.abs(result - action) > 1e-6
        return result

    def ramp(self, pose: np.ndarray, first: np.ndarray) -> list[np.ndarray]:
        """Actions on a straight line from a pose to the first action; none if that is close enough already."""
        first = np.clip(first, self.low, self.high)
        if (np.abs(first - pose) <= self.max_step).all():
            return []
        steps = int(np.ceil(np.max(np.abs(first - pose) / self.ramp_step) - 1e-3)) or 1
        return [pose + (first - pose) * (number + 1) / steps for number in range(steps)]

    def check_frames(self, frames: Mapping[str, Any], now: float) -> None:
        """See that each camera delivers new frames.

        Args:
            frames: camera → its frame's bytes, or its time.
            now: in seconds.

        Raises:
            Stopped: if one has not for `frozen_after`.
        """
        for camera, frame in frames.items():
            known, since = self._frames.get(camera, (None, now))
            if known is None or frame != known:
                self._frames[camera] = frame, now
            elif now - since > self.safety.frozen_after:
                raise Stopped(f"camera {camera} has sent the same frame for {now - since:.2f} s: it is frozen")


def order_of(wanted: Sequence[str], there: Sequence[str], what: str) -> np.ndarray:
    """Where each name of one list is in another one.

    Raises:
        Stopped: if one is missing, or twice there.
    """
    missing = [name for name in wanted if name not in there]
    if missing:
        raise Stopped(f"{what} lacks {', '.join(missing)}; it has {', '.join(there)}")
    twice = sorted({name for name in there if list(there).count(name) > 1})
    if twice:
        raise Stopped(f"{what} has {', '.join(twice)} twice")
    return np.array([list(there).index(name) for name in wanted], np.int64)
