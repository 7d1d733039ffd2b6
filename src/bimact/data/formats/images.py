"""Images as datasets hold them, made (H, W, 3) uint8 RGB: JPEG, PNG and WebP files, and arrays of several forms."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from bimact.data.default_state import words_of
from bimact.errors import UserError

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1")  # others, such as 16 bits a pixel, are depth rather than colour
_MAX_PIXELS = 1 << 25  # far above any camera's, far below what fills the memory
_SMALLEST, _LARGEST = 8, 8192  # pixels of an image's height and width
_SMALLEST_GRAY = 24  # pixels: smaller arrays without channels may be anything, unless they are said to be images
_COLOR = 3  # channels
_BRIGHTEST_OF_UNITS = 2.0  # in images from 0 to 1 that a filter has brought beyond
_CHANNELS = (_COLOR, 4, 1)  # that images may have, the likeliest first: both axes at the ends may have such a size
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
_OTHER_FILES = {  # what images begin with that are not decoded
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"v/1\x01": "OpenEXR",
}
_ORIENTATION = 0x0112  # of EXIF


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
                raise UserError(f"{where}: an image is depth or of another type than colour ({image.mode})")
            return np.asarray(image.convert("RGB"))
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{where}: an image is no PNG, JPEG or WebP file") from None
    except Exception as error:  # Pillow's plugins raise nearly any type for damaged files
        raise UserError(f"{where}: an image is damaged ({' '.join(str(error).split())})") from None


def encoded_form(content: bytes, where: str) -> ImageForm:
    """How a PNG, JPEG or WebP file holds an image. It is decoded, so that a damaged one is told.

    Raises:
        UserError: as `decode_image`.
    """
    height, width = decode_image(content, where).shape[:2]
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        try:
            is_turned = image.getexif().get(_ORIENTATION, 1) != 1
        except Exception:  # damaged EXIF data are no reason to refuse the image
            is_turned = False
    return ImageForm(height, width, channels_of(content) or _COLOR, 2, is_float=False, is_turned=is_turned)


def is_depth(content: bytes) -> bool:
    """Whether an encoded image has more than 8 bits a pixel and channel, which depth has and colour has not."""
    return (_mode(content, (*_FORMATS, "TIFF")) or "").startswith(("I", "F"))


def channels_of(content: bytes) -> int | None:
    """1 (grey), 3 or 4 channels of an encoded image, by its header; None: it is damaged."""
    mode = _mode(content)
    return None if mode is None else {"L": 1, "1": 1, "LA": 1, "RGBA": 4}.get(mode, _COLOR)


def _mode(content: bytes, formats: tuple[str, ...] = _FORMATS) -> str | None:
    """Pillow's name of the pixels of an encoded image, by its header; None: it is damaged."""
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return image.mode
    except Exception:
        return None


def is_encoded(content: bytes) -> bool:
    """Whether some bytes begin as a JPEG, PNG or WebP file does."""
    return content.startswith(_SIGNATURES)


def other_file(content: bytes) -> str | None:
    """Which kind of image file some bytes begin as that cannot be decoded here, such as "BMP"; None: none is known."""
    if content.startswith(b"BM") and content[6:10] == bytes(4):
        return "BMP"
    if content[4:8] == b"ftyp":
        return {b"avif": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}.get(content[8:12])
    return next((kind for begin, kind in _OTHER_FILES.items() if content.startswith(begin)), None)


@dataclass(frozen=True)
class ImageForm:
    """How an array or a file holds an image.

    Attributes:
        channels: 1 (grey), 3, or 4 (the last one is transparency, and is dropped).
        channel_axis: 2, 0, or None: there is no axis of channels.
        is_float: numbers up to 1 or up to 255.
        is_turned: a file whose EXIF data ask a viewer to turn it.
    """

    height: int
    width: int
    channels: int
    channel_axis: int | None
    is_float: bool
    is_turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array."""
        sides = (self.height, self.width)
        return {None: sides, 0: (self.channels, *sides), 2: (*sides, self.channels)}[self.channel_axis]

    def as_rgb(self, image: np.ndarray, white: float, where: str) -> np.ndarray:
        """An array → (H, W, 3) uint8 RGB.

        Args:
            white: the number that stands for white, of floats.
            where: what messages begin with.

        Raises:
            UserError: if a number is no colour.
        """
        if self.channel_axis is None:
            image = image[..., None]
        elif self.channel_axis == 0:
            image = np.moveaxis(image, 0, -1)
        image = image[..., :_COLOR]
        if self.is_float:
            with np.errstate(all="ignore"):  # what is no colour is told below
                image = np.rint(image.astype(np.float32) * (255 / white))
            if not ((image >= 0) & (image <= 255)).all():
                raise UserError(
                    f"{where} has values that are no colours: clip them, they have to be from 0 to {white:g}"
                )
            image = image.astype(np.uint8)
        if self.channels == 1:
            image = np.repeat(image, _COLOR, axis=2)
        return np.ascontiguousarray(image)


@dataclass(frozen=True)
class NoCamera:
    """Why something that looks like images is no colour camera.

    Attributes:
        kind: "depth": it is meant to be something else, such as depth; "image": it cannot be read.
        reason: the end of a sentence that begins with its name.
        is_distance: it is meant to be a depth camera, and not a segmentation.
    """

    kind: Literal["image", "depth"]
    reason: str
    is_distance: bool = False


def not_by_name(name: str) -> NoCamera | None:
    """Whether the name of images says that they are no colour images."""
    words = words_of(name)
    if "depth" in words or "disparity" in words:
        return NoCamera("depth", "is depth, as its name says", "depth" in words)
    if not {"segmentation", "segmentations", "seg", "mask", "masks"}.isdisjoint(words):
        return NoCamera("depth", "is a segmentation, as its name says")
    return None


def image_form(shape: tuple[int, ...], dtype: np.dtype[Any], *, is_camera: bool = False) -> ImageForm | NoCamera | None:
    """How an array of one step holds an image.

    Args:
        is_camera: its place among the data says that it is one.

    Returns:
        the form; or why an array that looks like an image is no camera's; None: it does not look like an image.
    """
    what = f"{shape} of {dtype}"
    axis: int | None = None
    if len(shape) == 2:
        sides, channels, least = shape, 1, _SMALLEST_GRAY
    elif len(shape) == 3:
        fits = [(end, at) for channel in _CHANNELS for end, at in ((shape[2], 2), (shape[0], 0)) if end == channel]
        if not fits:
            return None
        channels, axis = fits[0]
        sides, least = shape[:2] if axis == 2 else shape[1:], _SMALLEST
    else:
        return None
    if min(sides) < (1 if is_camera else least) or max(sides) > _LARGEST:
        return None
    if dtype != np.uint8 and (channels == 1 or dtype.kind not in "f"):
        if channels == 1 and dtype.kind in "fui":
            reason = f"is depth: {what} per step, and images of one channel are colour only as uint8"
            return NoCamera("depth", reason, is_distance=True)
        return NoCamera("image", f"has {what} per step; images are uint8, or floats from 0 to 1 or to 255")
    return ImageForm(sides[0], sides[1], channels, axis, dtype.kind == "f")


def conversion_notes(
    episodes: Sequence[Mapping[str, ImageForm]], whites: Mapping[str, float] = MappingProxyType({})
) -> tuple[str, ...]:
    """A sentence for each camera and each way in which its images are not uint8 RGB.

    Args:
        episodes: of each, or of all at once: camera → how its images are held.
        whites: camera of floats → the number that stands for white.
    """
    counts: Counter[str] = Counter()
    for forms in episodes:
        for name, form in forms.items():
            if form.channels > _COLOR:
                counts[f"camera {name}: its images have a fourth channel, which is dropped"] += 1
            if form.channels == 1:
                counts[f"camera {name}: its images are grey, so that red, green and blue are the same"] += 1
            if form.is_turned:
                counts[f"camera {name}: its images' EXIF data ask a viewer to turn them, and they are not turned"] += 1
            if form.is_float:
                counts[f"camera {name}: its images are floats, taken to be from 0 to {whites.get(name, 1):g}"] += 1
    many = len(episodes)
    return tuple(
        sentence + (f" (in {count} of {many} episodes)" if count < many else "") for sentence, count in counts.items()
    )


def white_in(image: np.ndarray) -> float | None:
    """The number that stands for white in an array of floats: 1 or 255; None: it is too dark to tell.

    Filters may bring images from 0 to 1 a little above 1.
    """
    if np.nanmax(image, initial=0) > _BRIGHTEST_OF_UNITS:
        return 255.0
    return 1.0 if ((image > 0) & (image < 1)).any() else None


def has_two_whites(images: Iterable[np.ndarray]) -> bool:
    """Whether some arrays of floats seem to be from 0 to 1 and others from 0 to 255."""
    return {white_in(image) for image in images} >= {1.0, 255.0}


def white_of(images: Iterable[np.ndarray]) -> float:
    """The number that stands for white in arrays of floats: 1, or 255 where one of them goes far beyond."""
    return 255.0 if any(white_in(image) == 255 for image in images) else 1.0
