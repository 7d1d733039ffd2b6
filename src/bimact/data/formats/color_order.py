"""Detects whether JPEG images, decoded as the JPEG standard specifies, have red and blue swapped.

OpenCV treats the first channel as blue. Files written by `cv2.imencode` from RGB arrays are read back correctly by
`cv2.imdecode`, but every other decoder shows red objects blue. ACT++ writes and reads such files; others follow the
standard. The files do not specify which.

The criterion is the hue of saturated colours. Saturated objects that reflect more red than blue (wood, skin, food,
cardboard, red and yellow paint) are more common than those that reflect more blue. Unsaturated colours are ignored,
since they depend on the white balance.

Reliability: of 17 scenes with correct colours (three real episodes of a humanoid's hands, ALOHA's two simulated tasks,
twelve photographs) 13 had a warmth above 0.8; one, of a blue circuit board, -0.9; three were between, among them
ALOHA's insertion of a red peg into a blue socket (-0.4). With red and blue swapped all have the opposite sign. The
warmth is used if its magnitude is above 0.6; otherwise ACT++'s colour order is assumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

RGB, BGR = "rgb", "bgr"
_STRONG = 64  # of 255: minimum difference between the largest and smallest channel of a saturated colour
_SATURATED = 0.6  # minimum of this difference as a fraction of the largest channel
_BELIEVED = 0.6  # warmth
_SHRUNK = 4  # downsampling factor per side, against compression artefacts


@dataclass(frozen=True)
class Colors:
    """The colour statistics of images.

    Attributes:
        warmth: from -1 (all saturated colours have more blue than red) to 1 (all have more red); 0: there are none.
        frames: number of images examined.
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
    """Colour statistics of images (H, W, 3) uint8 as decoded from JPEG; they may differ in size."""
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
