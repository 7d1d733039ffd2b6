"""Whether JPEG images, decoded as the JPEG standard says, have red and blue in their places.

OpenCV takes the first channel for blue. Files that were written by `cv2.imencode` from RGB arrays, and are read by
`cv2.imdecode` into arrays that are taken for RGB, come out right, though every other decoder shows red things blue.
ACT++ writes and reads so; others write what the standard says. The files do not tell which.

What decides here is which hues are strong. Among strongly coloured things, those that reflect more red than blue (wood,
skin, food, cardboard, red and yellow paint) are more common than those that reflect more blue. Faint colours are left
out, since they follow the light: a camera's white balance makes white metal blue as easily as it makes it yellow.

How sure it is: of 17 scenes in their right colours (three real episodes of a humanoid's hands, ALOHA's two simulated
tasks, twelve photographs) 13 had a warmth above 0.8; one, of a blue circuit board, -0.9; three were between, among them
ALOHA's insertion of a red peg into a blue socket (-0.4). With red and blue swapped all have the opposite sign. So the
warmth is believed above 0.6; below that, images are taken to be as ACT++ writes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

RGB, BGR = "rgb", "bgr"
_STRONG = 64  # of 255: difference between an image's largest and smallest channel that makes a colour strong
_SATURATED = 0.6  # that difference, as a part of the largest channel
_BELIEVED = 0.6  # warmth
_SHRUNK = 4  # times, along each side: compression's artefacts in colours are as fine as pixels


@dataclass(frozen=True)
class Colors:
    """What images tell of their colours.

    Attributes:
        warmth: from -1, all strong colours have more blue than red, to 1, all have more red; 0: there are none.
        frames: images that were looked at.
    """

    warmth: float
    frames: int

    @property
    def order(self) -> str:
        return RGB if self.warmth >= _BELIEVED else BGR

    @property
    def is_sure(self) -> bool:
        return abs(self.warmth) >= _BELIEVED


def colors_of(images: Iterable[np.ndarray]) -> Colors:
    """Look at images (H, W, 3) uint8 as a JPEG decoder gives them; they may differ in size."""
    warm = cold = 0.0
    frames = 0
    for image in images:
        pixels = np.asarray(Image.fromarray(image).reduce(_SHRUNK), np.int16)
        strength = pixels.max(axis=2) - pixels.min(axis=2)
        is_strong = (strength >= _STRONG) & (strength >= _SATURATED * pixels.max(axis=2))
        red, blue = pixels[..., 0], pixels[..., 2]
        warm += float(strength[is_strong & (red > blue)].sum(dtype=np.int64))
        cold += float(strength[is_strong & (blue > red)].sum(dtype=np.int64))
        frames += 1
    return Colors((warm - cold) / (warm + cold) if warm + cold else 0.0, frames)
