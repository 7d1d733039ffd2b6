"""How far a robot has moved from the beginning of an episode, or to its end: still beginnings and ends."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_LEAST_SPAN = 1e-2  # STD_FLOOR of the normalisation: a dimension with a smaller range counts as constant
IDLE = 0.02  # RMS over dimensions of the movement in spans: below the noise of teleoperation at rest


def spans(rows: np.ndarray) -> np.ndarray:
    """(D,) range between the 1% and the 99% quantile of values (N, D); infinite for a constant dimension.

    Divided by it, movements of joints and grippers are comparable, and those of constant dimensions are 0.
    """
    if len(rows) == 0:
        return np.full(rows.shape[1], np.inf)
    low, high = np.quantile(rows, [0.01, 0.99], axis=0)
    return np.where(high - low > _LEAST_SPAN, high - low, np.inf)


def movement(vectors: Iterable[tuple[np.ndarray, np.ndarray]], *, from_end: bool = False) -> np.ndarray | None:
    """(T,) distance in spans from the first (or last) step; None if no dimension has a span.

    Args:
        vectors: of states and of actions: values (T, D) of an episode, and spans (D,) over the
            dataset.
        from_end: distances from the last step, in the order from the last step backwards.
    """
    parts = []
    for values, span in vectors:
        moving = np.isfinite(span)
        if len(values) and moving.any():
            distance = (values - values[-1 if from_end else 0])[:, moving] / span[moving]
            parts.append(np.sqrt((distance**2).mean(axis=1)))
    if not parts:
        return None
    found: np.ndarray = np.max(parts, axis=0)
    return found[::-1] if from_end else found
