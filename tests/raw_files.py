"""Small raw memory maps, as the recorder of the training guide's own repository writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

SIZE = (12, 16)


def write_raw(
    folder: Path,
    lengths: Sequence[int],
    *,
    size: tuple[int, int] = SIZE,
    space: int | None = None,
    metadata: str | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, ...]:
    """Record as the original recorder does: arrays of zeros by np.save, then written over from their first byte on.

    Args:
        space: rows that the files have; None: as many as there are steps.
        metadata: content of metadata.txt; None: what the recorder writes.

    Returns:
        images (N, 2, H, W, 3) float32, qpos, qvel (N, 16) and actions (N, 14) of all rows that fit.
    """
    height, width = size
    steps = sum(lengths)
    space = steps if space is None else space
    written = min(steps, space)
    draw = np.random.default_rng(seed)
    images = (draw.integers(0, 256, (written, 2, height, width, 3)) / 255).astype(np.float32)
    joints = draw.normal(size=(written, 32)).astype(np.float32)
    actions = draw.normal(size=(written, 14)).astype(np.float32)
    rows = np.concatenate([images.reshape(written, 6 * height * width), joints], axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("observations.npy", rows), ("actions.npy", actions)):
        shape = (space, content.shape[1])
        np.save(folder / name, np.zeros(shape, np.float32))
        mapped = np.memmap(folder / name, dtype=np.float32, mode="r+", shape=shape)
        mapped[:written] = content
        mapped.flush()
    np.save(folder / "rollout_length.npy", np.array(lengths, dtype=np.uint16))
    if metadata is None:
        metadata = (
            f"total_sample_count={space} max_steps_per_rollout=600 camera_height={height} camera_width={width} "
            f"skip_frames=2 sample_count={written} rollout_count={len(lengths)}"
        )
    if metadata:
        (folder / "metadata.txt").write_text(metadata)
    return images, joints[:, :16], joints[:, 16:], actions
