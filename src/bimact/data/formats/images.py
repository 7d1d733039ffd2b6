"""Encoded images in memory, such as those in a table's cells."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from bimact.errors import UserError

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1")  # others, such as 16 bits a pixel, are depth rather than colour
_MAX_PIXELS = 1 << 25  # far above any camera's, far below what fills the memory


def decode_image(content: bytes, where: str) -> np.ndarray:
    """Decode a PNG, JPEG or WebP image.

    Args:
        where: what messages begin with, such as a file, an episode and a step.

    Returns:
        (H, W, 3) uint8 RGB; grey is repeated, what is transparent is dropped.

    Raises:
        UserError: if it is damaged, far too large, or no colour image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > _MAX_PIXELS:
                raise UserError(f"{where}: an image claims {height}×{width} pixels, so it is damaged")
            if image.mode not in _MODES:
                raise UserError(f"{where}: an image has the type {image.mode}, which is no colour image")
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{where}: an image is no PNG, JPEG or WebP file") from None
    # Pillow's plugins raise all of these for damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, MemoryError) as error:
        raise UserError(f"{where}: an image is damaged ({' '.join(str(error).split())})") from None
