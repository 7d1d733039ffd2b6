"""A few numbers of each image: what is left of a camera's video once it has been looked through."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bimact.errors import UserError

THUMBNAIL = (12, 16)  # height and width: enough to tell scenes apart, 576 bytes
_LOOKED_AT = (48, 64)  # pixels that brightness and change are measured on: every n-th of the image's
_CUTS = 3  # the largest changes of an episode, whose surroundings are kept


@dataclass(frozen=True)
class Cut:
    """A change from one image to the next.

    Attributes:
        step: of the second image.
        before: the first image's thumbnail (12, 16, 3) uint8.
        after: the second image's.
    """

    step: int
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class FrameFacts:
    """One camera's images in one episode, T of them. Brightness is in grey levels from 0 to 255.

    Attributes:
        brightness: (T,) float16: mean.
        spread: (T,) float16: standard deviation over the image, mean of the colours.
        change: (T,) float16: mean absolute difference to the image before; 0 for the first.
        change_over_two: (T,) float16: to the one before that; 0 for the first two.
        is_repeat: (T,) bool: the image before, to the last bit.
        average: (12, 16, 3) uint8: mean of all thumbnails.
        cuts: the largest changes, in the order of steps.
        digest: of all images.
    """

    brightness: np.ndarray
    spread: np.ndarray
    change: np.ndarray
    change_over_two: np.ndarray
    is_repeat: np.ndarray
    average: np.ndarray
    cuts: tuple[Cut, ...]
    digest: bytes

    def __len__(self) -> int:
        return len(self.change)


def look_through(frames: Iterator[np.ndarray]) -> tuple[FrameFacts | None, str | None]:
    """The facts of some images (H, W, 3) uint8, as far as they can be read.

    Returns:
        facts, None if there is no image; and why not all could be read, None if all could.
    """
    numbers: list[tuple[float, float, float, float, bool]] = []
    thumbnails: list[np.ndarray] = []
    digest = hashlib.blake2b(digest_size=8)
    seen: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=2)  # the last two images, and pixels of them
    problem = None
    try:
        for frame in frames:
            pixels = _few_pixels(frame)
            changes = [_difference(pixels, others) for _, others in reversed(seen)]
            is_repeat = bool(seen) and changes[0] == 0 and np.array_equal(frame, seen[-1][0])
            change, change_over_two = (*changes, 0.0, 0.0)[:2]
            numbers.append((*_brightness_and_spread(pixels), change, change_over_two, is_repeat))
            thumbnails.append(thumbnails[-1] if is_repeat else _thumbnail(pixels))
            digest.update(pixels.tobytes())
            seen.append((frame, pixels))
    except UserError as error:
        problem = str(error)
    if not numbers:
        return None, problem
    brightness, spread, change_of, change_over_two_of, is_repeat_of = np.array(numbers, dtype=np.float16).T
    facts = FrameFacts(
        brightness=brightness,
        spread=spread,
        change=change_of,
        change_over_two=change_over_two_of,
        is_repeat=is_repeat_of.astype(bool),
        average=np.mean(thumbnails, axis=0).round().astype(np.uint8),
        cuts=_largest(change_of, thumbnails),
        digest=digest.digest(),
    )
    return facts, problem


def _few_pixels(frame: np.ndarray) -> np.ndarray:
    height, width, _ = frame.shape
    return np.ascontiguousarray(frame[:: max(1, height // _LOOKED_AT[0]), :: max(1, width // _LOOKED_AT[1])])


def _brightness_and_spread(pixels: np.ndarray) -> tuple[float, float]:
    """Mean, and standard deviation of each colour over the image."""
    colors = pixels.reshape(-1, 3).astype(np.float32)
    mean = colors.mean(axis=0)
    variance = np.maximum((colors**2).mean(axis=0) - mean**2, 0)
    return float(mean.mean()), float(np.sqrt(variance).mean())


def _difference(pixels: np.ndarray, others: np.ndarray) -> float:
    return float(np.abs(pixels.astype(np.int16) - others).mean())


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    height, width = THUMBNAIL
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))


def _largest(change: np.ndarray, thumbnails: list[np.ndarray]) -> tuple[Cut, ...]:
    steps = np.sort(np.argsort(change[1:], kind="stable")[-_CUTS:] + 1)
    return tuple(Cut(int(step), thumbnails[step - 1], thumbnails[step]) for step in steps)
