"""Writes datasets in the guide's form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bimact.data.formats.guide_npy import observation_dtype


def write_dataset(
    folder: Path,
    lengths: list[int],
    *,
    size: tuple[int, int] = (16, 24),
    seed: int = 0,
    dim: int = 14,
    cameras: tuple[str, ...] = ("left", "right"),
) -> Path:
    """A dataset in the guide's form whose actions can be learned from its states."""
    draw = np.random.default_rng(seed)
    total = sum(lengths)
    folder.mkdir(parents=True, exist_ok=True)
    observations = np.zeros(total, observation_dtype(dict.fromkeys(cameras, size), dim))
    phase = np.concatenate([np.linspace(0, 3, length) for length in lengths])[:, None]
    observations["state"] = np.sin(phase + np.arange(dim)) + 0.01 * draw.normal(size=(total, dim))
    for camera in cameras:
        observations[f"image_{camera}"] = draw.integers(0, 256, (total, *size, 3))
    np.save(folder / "observations.npy", observations)
    np.save(folder / "actions.npy", np.cos(phase + np.arange(dim)).astype(np.float32))
    np.save(folder / "rollout_length.npy", np.array(lengths, dtype=np.int64))
    (folder / "metadata.json").write_text(json.dumps({"fps": 50}))
    return folder
