"""A dataset without files: each image shows its step, so that a test can read off which one a page shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bimact.data.source import Camera, Column, Source, SourceEpisode
from bimact.errors import UserError

BITS, CELL = 14, 16  # cells on the top edge, in pixels; white: 1
_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
JOINTS = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _ARM)
SIZE = (120, BITS * CELL)  # (H, W)

# The step that a video shows on the page, read from its pixels.
READ_STEP = f"""(video => {{
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  const cell = canvas.width / {BITS};
  let step = 0;
  for (let bit = 0; bit < {BITS}; bit++) {{
    const pixel = context.getImageData(Math.floor((bit + .5) * cell), Math.floor(cell / 2), 1, 1).data;
    step += (pixel[0] > 128) << bit;
  }}
  return step;
}})"""


@dataclass(frozen=True, kw_only=True)
class NumberedSource(Source):
    """Images with their step as bits on the top edge and a square that moves; smooth states, actions ahead of them.

    Attributes:
        broken_camera: its images cannot be read from step 3 on.
    """

    broken_camera: str | None = None

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {key: self.vectors(episode, key) for key in keys}

    def vectors(self, episode: int, key: str) -> np.ndarray:
        size, length = self.columns[key].size, self.episodes[episode].length
        time = np.arange(length)[:, None] + (5 if key in self.action_keys else 0)
        values = np.sin(time / 20 + np.arange(size) + episode) * (1 + np.arange(size) % 3)
        return values.astype(np.float32)

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        for step in steps:
            if camera == self.broken_camera and step >= 3:
                raise UserError(f"{self.episodes[episode].name}: camera {camera} has no image at step {step}")
            yield self._image(step, camera)

    def _image(self, step: int, camera: str) -> np.ndarray:
        height, width = self.cameras[camera].height, self.cameras[camera].width
        image = np.full((height, width, 3), (30, 90, 60), dtype=np.uint8)
        for bit in range(BITS):
            image[:CELL, bit * CELL : (bit + 1) * CELL] = 255 * (step >> bit & 1)
        left = step * 3 % (width - 30)
        image[50:80, left : left + 30] = (230, 60, 40)
        return image


def numbered_source(
    lengths: Sequence[int] = (60, 45, 80),
    *,
    cameras: Sequence[str] = ("top", "left_wrist"),
    names: tuple[str, ...] | None = JOINTS,
    size: int = 14,
    fps: float | None = 30.0,
    task: str = "put the cube into the box",
    image_size: tuple[int, int] = SIZE,
    broken_camera: str | None = None,
) -> NumberedSource:
    return NumberedSource(
        path=Path("/demonstrations/numbered"),
        format="numbered images",
        episodes=tuple(SourceEpisode(f"episode {n}", length, (), task) for n, length in enumerate(lengths)),
        cameras={name: Camera(*image_size) for name in cameras},
        columns={"state": Column(size, names), "action": Column(size, names)},
        state_keys=("state",),
        action_keys=("action",),
        fps=fps,
        broken_camera=broken_camera,
    )
