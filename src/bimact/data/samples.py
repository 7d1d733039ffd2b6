"""Sample observations of a dataset in their recorded size, for export and latency measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bimact.config import Config
from bimact.data.opening import open_source
from bimact.data.selection import STATE, SelectedSource, Selection
from bimact.data.workers import run_apart


def sample_histories(config: Config, path: str | Path, count: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Observation histories at random steps of a run's demonstrations; nothing is converted.

    Args:
        config: of the run, complete.
        path: the demonstrations.
        count: N.
        seed: of the random choice.

    Returns:
        `state` (N, T, S) float32 and `image_<camera>` (N, T, H, W, 3) uint8, oldest first; before an episode's first
        step the first observation is repeated.

    Raises:
        UserError: if the dataset cannot be read, or lacks the policy's inputs.
    """
    source = Selection.of(config).applied_to(open_source(path, cache_dir=config.cache_dir))
    steps = np.sort(np.random.default_rng(seed).choice(source.num_steps, min(count, source.num_steps), replace=False))
    arguments = (source, steps, config.cameras or [], config.temporal_context)
    if source.mapped() is not None:  # memory-mapped: nothing is decoded
        return _read(*arguments)
    found: dict[str, np.ndarray] = run_apart(_read, *arguments, what=str(path), timeout=600.0)
    return found


def _read(source: SelectedSource, steps: np.ndarray, cameras: list[str], context: int) -> dict[str, np.ndarray]:
    """The histories at some steps, numbered over all episodes."""
    ends = np.cumsum(source.lengths)
    found: dict[str, list[np.ndarray]] = {"state": [], **{f"image_{camera}": [] for camera in cameras}}
    for episode in np.unique(np.searchsorted(ends, steps, side="right")).tolist():
        begin = int(ends[episode]) - source.episodes[episode].length
        own = [int(step) - begin for step in steps if begin <= step < ends[episode]]
        histories = [[max(0, step - age) for age in reversed(range(context))] for step in own]
        state = source.read_columns(episode, (STATE,))[STATE].astype(np.float32)
        found["state"] += [state[history] for history in histories]
        needed = sorted({step for history in histories for step in history})
        for camera in cameras:
            frames = dict(zip(needed, source.read_frames(episode, camera, needed)))
            found[f"image_{camera}"] += [np.stack([frames[step] for step in history]) for history in histories]
    return {name: np.stack(values) for name, values in found.items()}
