"""Depth images as the rest of the program carries images: (H, W, 3) uint8, which hold whole millimetres.

The first channel is the high byte of the distance in millimetres, the second one the low byte, the third one is 0.
Nothing is lost of uint16 millimetres, the form in which depth cameras give them; metres are rounded to millimetres.
0 means that there is no measurement. Such an image must not be interpolated or compressed with losses.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from bimact.data.source import LeftOut

FARTHEST = 65_535  # millimetres that fit
_METRES = 1000.0
_FARTHEST_METRES = 100.0  # larger floats are millimetres
_CODES = 4096
_SIDES = (8, 8192)  # pixels of height and width
_NEAR_GREY, _FAR_GREY = 230, 25  # of pictures


@dataclass(frozen=True)
class DepthForm:
    """How an array of one step holds a depth image: (H, W), (H, W, 1) or (1, H, W) integers or floats."""

    height: int
    width: int


@dataclass(frozen=True)
class DepthCodes:
    """How the 12-bit numbers of a depth video stand for distances, as LeRobot 0.6 writes them (its `quantize_depth`).

    Numbers from 0 to 4095 are evenly spread from `nearest` to `farthest`, or so are the logarithms of the distances
    plus `shift`. 0 is what has no measurement, or is nearer.

    Attributes:
        nearest: metres of 0.
        farthest: metres of 4095.
        shift: metres.
        is_logarithmic: whether logarithms are spread.
    """

    nearest: float
    farthest: float
    shift: float
    is_logarithmic: bool

    @cached_property
    def _millimetres(self) -> np.ndarray:
        """(4096,) uint16."""
        share = np.arange(_CODES) / (_CODES - 1)
        if self.is_logarithmic:
            low, high = np.log([self.nearest + self.shift, self.farthest + self.shift])
            metres = np.exp(low + share * (high - low)) - self.shift
        else:
            metres = self.nearest + share * (self.farthest - self.nearest)
        table = np.clip(np.rint(_METRES * metres), 0, FARTHEST).astype(np.uint16)
        table[0] = 0
        return table

    def millimetres(self, codes: np.ndarray) -> np.ndarray:
        """Numbers of a frame (H, W) → uint16 millimetres; 0: no measurement."""
        return self._millimetres[np.minimum(codes, _CODES - 1)]


def depth_form(shape: tuple[int, ...], dtype: np.dtype[Any]) -> DepthForm | None:
    """How an array of one step holds a depth image; None: it cannot be one."""
    if len(shape) == 3 and 1 in (shape[0], shape[2]):
        shape = shape[:2] if shape[2] == 1 else shape[1:]
    fits = len(shape) == 2 and _SIDES[0] <= min(shape) and max(shape) <= _SIDES[1]
    is_number = dtype.kind == "f" or (dtype.kind in "iu" and dtype.itemsize > 1)
    return DepthForm(shape[0], shape[1]) if fits and is_number else None


def scale_of(image: np.ndarray) -> float:
    """Millimetres per unit of a depth image: integers are millimetres, floats are metres unless one is above 100."""
    if image.dtype.kind != "f":
        return 1.0
    finite = image[np.isfinite(image)]
    return 1.0 if finite.max(initial=0) > _FARTHEST_METRES else _METRES


def depth_left_out(name: str, scale: float) -> LeftOut:
    """What is said of a depth camera that was not asked for.

    Args:
        scale: millimetres per unit.
    """
    unit = "metres" if scale == _METRES else "millimetres"
    return LeftOut("depth", name, f"is depth, in {unit}: name it in --cameras, beside the others, to train with it")


def pack_depth(image: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """A depth image → the image that carries it.

    Args:
        image: (…, H, W) numbers; what is negative, NaN or infinite is no measurement.
        scale: millimetres per unit.

    Returns:
        (…, H, W, 3) uint8.
    """
    if image.dtype == np.uint16 and scale == 1:
        millimetres = image
    else:
        exact = image.astype(np.float64) * scale
        millimetres = np.where(np.isfinite(exact), np.clip(np.rint(exact), 0, FARTHEST), 0).astype(np.uint16)
    packed = np.zeros((*millimetres.shape, 3), np.uint8)
    packed[..., 0], packed[..., 1] = millimetres >> 8, millimetres & 255
    return packed


def unpack_depth(packed: np.ndarray) -> np.ndarray:
    """The image that carries depth (…, H, W, 3) → millimetres (…, H, W) uint16; 0: no measurement."""
    return packed[..., 0].astype(np.uint16) << 8 | packed[..., 1]


def decode_depth(content: bytes) -> np.ndarray:
    """A PNG or TIFF file of more than 8 bits per pixel → (H, W) integers or floats, as stored.

    Raises:
        OSError, ValueError: if it is damaged.
    """
    with Image.open(io.BytesIO(content), formats=("PNG", "TIFF")) as image:
        return np.asarray(image)


def depth_picture(packed: np.ndarray) -> np.ndarray:
    """The image that carries depth → one to look at, (H, W, 3) uint8: near is light, no measurement is black."""
    millimetres = unpack_depth(packed).astype(np.float32)
    known = millimetres[millimetres > 0]
    near, far = np.quantile(known, [0.01, 0.99]) if len(known) else (0.0, 1.0)
    share = np.clip((millimetres - near) / max(far - near, 1.0), 0, 1)
    grey = np.where(millimetres > 0, _NEAR_GREY + (_FAR_GREY - _NEAR_GREY) * share, 0).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
