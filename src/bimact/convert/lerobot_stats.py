"""Statistics as in a LeRobotDataset: of each episode, and of the whole dataset.

Source: compute_stats.py of LeRobot: which images are sampled, how episodes are combined. The values of sampled pixels
are counted, which gives the same statistics without keeping the images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Stats = dict[str, np.ndarray]

_LEAST_SAMPLED, _MOST_SAMPLED, _POWER = 100, 10_000, 0.75
_LARGE, _REDUCED = 300, 150  # pixels: larger images are counted at about this size


def vector_stats(values: np.ndarray) -> Stats:
    """Statistics of each dimension of (T, D): arrays (D,), `count` (1,)."""
    values = values.astype(np.int64) if values.dtype.kind == "b" else values
    exact = values.astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN and Inf stay
        spread = {name: np.quantile(exact, share, axis=0) for name, share in QUANTILES.items()}
        return {
            "min": values.min(axis=0),
            "max": values.max(axis=0),
            "mean": exact.mean(axis=0),
            "std": exact.std(axis=0),
            "count": np.array([len(values)]),
            **spread,
        }


def sampled_steps(length: int) -> set[int]:
    """The steps of an episode whose images are sampled."""
    count = max(min(_LEAST_SAMPLED, length), min(int(length**_POWER), _MOST_SAMPLED))
    return set(np.round(np.linspace(0, length - 1, count)).astype(int).tolist())


def no_counts(*, is_depth: bool) -> np.ndarray:
    """(3, 256) int64 of zeros; of a depth camera (1, 65536)."""
    return np.zeros((1, 1 << 16) if is_depth else (3, 1 << 8), np.int64)


def pixel_counts(image: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel, in every n-th row and column.

    Args:
        image: (H, W, 3) uint8, or (H, W) uint16.

    Returns:
        (3, 256) or (1, 65536) int64.
    """
    height, width = image.shape[:2]
    step = max(height, width) // _REDUCED if max(height, width) >= _LARGE else 1
    channels = image[::step, ::step].reshape(-1, 3 if image.ndim == 3 else 1).T
    return np.stack([np.bincount(channel, minlength=np.iinfo(image.dtype).max + 1) for channel in channels])


def image_stats(counts: np.ndarray, images: int) -> Stats:
    """Statistics of each channel of images in [0, 1], or of distances in millimetres: arrays (C, 1, 1), `count` (1,).

    Args:
        counts: (3, 256) how often each value occurs in all sampled images; of a depth camera (1, 65536).
        images: how many were sampled.
    """
    values = np.arange(counts.shape[1])
    white = 255 if len(counts) == 3 else 1
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = counts @ values**2 / total - mean**2
    below = counts.cumsum(axis=1)
    found = {
        "min": (counts > 0).argmax(axis=1),
        "max": values[-1] - (counts[:, ::-1] > 0).argmax(axis=1),
        "mean": mean,
        "std": np.sqrt(np.maximum(variance, 0)),
        **{name: (below >= share * total[:, None]).argmax(axis=1) for name, share in QUANTILES.items()},
    }
    return {"count": np.array([images]), **{name: (value / white).reshape(-1, 1, 1) for name, value in found.items()}}


def combined(episodes: Sequence[Stats]) -> Stats:
    """The statistics of all episodes from those of each; quantiles are averaged, as LeRobot does."""
    counts = np.array([stats["count"][0] for stats in episodes], dtype=np.float64)

    def mean_of(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.tensordot(counts / counts.sum(), values, axes=1))

    stacked = {name: np.stack([stats[name] for stats in episodes]) for name in episodes[0]}
    mean = mean_of(stacked["mean"])
    with np.errstate(invalid="ignore"):
        variance = mean_of(stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)
        return {
            "min": stacked["min"].min(axis=0),
            "max": stacked["max"].max(axis=0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": stacked["count"].sum(axis=0),
            **{name: mean_of(stacked[name]) for name in QUANTILES},
        }
