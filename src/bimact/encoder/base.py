"""The base class of image encoders, images to tokens, and their registry by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimact.config import EncoderConfig
from bimact.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageEncoder(nn.Module):
    """Images (N, 3, H, W) uint8 → tokens (N, K, out_dim), with one token per image or one per spatial position.

    A subclass gives `features` and `grid`; cropping, resizing and the input normalisation that its weights
    expect are applied here, always.

    The encoder is a trunk and a head. The trunk of a frozen encoder is not trained, so its output may be cached. The
    head is the identity without `encoder.train_last`, for which a subclass gives `learning_parts`, `trunk_features`,
    `trunk_shape` and `head`.

    Args:
        config: the encoder's settings.
        out_dim: width of a token.
        mean: per channel, of images in [0, 1]; the config's takes precedence.
        std: the same.
        image_size: height and width that the weights need; None: any.
    """

    mean: Tensor
    std: Tensor
    has_keypoints = False  # whether `encoder.keypoints` applies

    def __init__(
        self,
        config: EncoderConfig,
        out_dim: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.frozen = config.freeze
        self.crop = tuple(config.crop) if config.crop else None
        # The tokens depend on these besides the weights.
        self.description = {
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            **{name: getattr(config, name) for name in ("model_name", "spatial", "crop", "image_size", "train_last")},
        }
        if config.train_last and not config.freeze:
            raise UserError(
                "encoder.train_last is for a frozen encoder: set encoder.freeze to true, or train_last to 0"
            )
        self.train_last = config.train_last
        if config.keypoints and not self.has_keypoints:
            raise UserError(f"encoder.keypoints is for encoder conv, and {config.name} has none: set it to 0")
        chosen = tuple(config.image_size) if config.image_size else image_size
        self.image_size: tuple[int, int] | None = (chosen[0], chosen[1]) if chosen else None
        # Of exported models: images (H, W) → matrices (h, H) and (w, W) in place of the interpolation.
        self.resizers: dict[tuple[int, int], tuple[Tensor, Tensor] | None] = {}
        mean, std = config.image_mean or mean, config.image_std or std
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    @classmethod
    def own_size(cls, config: EncoderConfig) -> tuple[int, int] | None:
        """Height and width that images are resized to unless `encoder.image_size` is set; None: any."""
        return None

    def finish(self) -> ImageEncoder:
        """Called once after the subclass has created its layers: disables the gradients of a frozen encoder."""
        if self.frozen:
            self.requires_grad_(False)
            self.eval()
        for part in self.learning_parts() if self.train_last else ():
            part.requires_grad_(True)
        return self

    def train(self, mode: bool = True) -> ImageEncoder:
        """A frozen encoder stays in evaluation mode, so that its batch statistics are constant."""
        super().train(mode and not self.frozen)
        return self

    def prepare_for_inference(self) -> None:
        """Make inference faster, in ways after which the encoder can no longer be trained or saved."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) float → tokens (N, K, out_dim)."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of a preprocessed image, K = rows · columns; (1, 1) if pooled."""

    def forward(self, images: Tensor) -> Tensor:
        return self.token_map(images).flatten(1, 2)

    def token_map(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 → tokens by position (N, rows, columns, out_dim)."""
        return self.head(self.trunk(images))

    def trunk(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 → features, the head's input (N, rows, columns, C)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.trunk_features(self.preprocess(images))

    def learning_parts(self) -> Sequence[nn.Module | nn.Parameter]:
        """The parts that `encoder.train_last` trains.

        Raises:
            UserError: if the encoder has no such parts.
        """
        raise UserError(
            f"encoder.train_last is for ViTs of clip_vit and for pri3d: set it to 0, or encoder.freeze to false "
            f"({type(self).__name__} is frozen as a whole, or not at all)"
        )

    def trunk_features(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) float → features, the head's input (N, rows, columns, C)."""
        return self.features(images).unflatten(1, self.grid(*images.shape[-2:]))

    def trunk_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape (rows, columns, C) of the trunk's features of a dataset's image (H, W)."""
        return (*self.token_grid(height, width), self.out_dim)

    def head(self, features: Tensor) -> Tensor:
        """The trunk's features (N, rows, columns, C) → tokens by position (N, rows', columns', out_dim)."""
        return features

    def preprocess(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 → cropped, resized and normalised float images, in channels-last memory."""
        top, left, height, width = self.crop_box(*images.shape[-2:])
        cropped = images[..., top : top + height, left : left + width]
        normalized = (cropped.float() - self.mean) / self.std
        if self.image_size is not None and self.image_size != (height, width):
            resizer = self.resizers.get((images.shape[-2], images.shape[-1]))
            if resizer is not None:
                normalized = resizer[0] @ normalized @ resizer[1].mT
            else:
                normalized = F.interpolate(normalized, self.image_size, mode="bilinear", antialias=True)
        return normalized.contiguous(memory_format=torch.channels_last)

    def crop_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width in pixels of the part of an image that is used."""
        return crop_box(self.crop, height, width)

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of a dataset's image (H, W)."""
        _, _, height, width = self.crop_box(height, width)
        return self.grid(*(self.image_size or (height, width)))


def crop_box(crop: Sequence[float] | None, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of the part of an image that `encoder.crop` names."""
    if crop is None:
        return 0, 0, height, width
    top, cropped_height = _span(crop[0], crop[2], height)
    left, cropped_width = _span(crop[1], crop[3], width)
    return top, left, cropped_height, cropped_width


def _span(start: float, fraction: float, size: int) -> tuple[int, int]:
    """First pixel and number of pixels of a part of `size` pixels: at least one, never beyond the last.

    Both ends are rounded, not the length, so that parts which touch neither overlap nor leave a gap.
    """
    first = min(round(start * size), size - 1)
    last = min(round((start + fraction) * size), size)
    return first, max(1, last - first)


Builder = Callable[[EncoderConfig], ImageEncoder]

_BUILDERS = {
    "clip_vit": "bimact.encoder.clip_vit:ClipEncoder",
    "pri3d": "bimact.encoder.pri3d:Pri3dEncoder",
    "resnet": "bimact.encoder.pri3d:Pri3dEncoder",  # another name of the same encoder
    "timm": "bimact.encoder.timm_backbone:TimmEncoder",
    "conv": "bimact.encoder.conv:ConvEncoder",
}


class _InFloat32(nn.Module):
    """A layer outside of autocast, for what has a meaning in the robot's or the image's units.

    bf16 has 8 bits: around 3 its numbers are 0.016 apart.
    """

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return cast(Tensor, super().forward(x))
        with torch.autocast(device, enabled=False):
            return cast(Tensor, super().forward(x.float()))


class Float32Linear(_InFloat32, nn.Linear):
    """`torch.nn.Linear` in float32."""


class Float32Conv2d(_InFloat32, nn.Conv2d):
    """`torch.nn.Conv2d` in float32."""


def build_encoder(config: EncoderConfig) -> ImageEncoder:
    """Build the encoder `config.name`.

    Packages outside bimact add encoders by an entry point in the group `bimact.encoders` that names a
    callable from an `EncoderConfig` to an `ImageEncoder`.

    Raises:
        UserError: if there is no such encoder, or its weights cannot be had.
    """
    return _builder(config.name)(config).finish()


def input_size(config: EncoderConfig) -> tuple[int, int] | None:
    """Height and width to which whole images are resized as the first step; None: no resize.

    Datasets that are converted may store their images in this size: what the encoder sees stays the same, up to the
    rounding to whole grey levels.

    Raises:
        UserError: if there is no such encoder.
    """
    if config.crop:
        return None  # a crop would be resized a second time
    if config.image_size:
        return config.image_size[0], config.image_size[1]
    builder = _builder(config.name)
    own_size: tuple[int, int] | None = builder.own_size(config) if hasattr(builder, "own_size") else None
    return own_size


def _builder(name: str) -> Builder:
    plugins = {point.name: point for point in entry_points(group="bimact.encoders")}
    if name in _BUILDERS:
        module, _, attribute = _BUILDERS[name].partition(":")
        builder: Builder = getattr(import_module(module), attribute)
    elif name in plugins:
        builder = plugins[name].load()
    else:
        raise UserError(f"no encoder named '{name}'; there is {', '.join([*_BUILDERS, *plugins])}")
    return builder
