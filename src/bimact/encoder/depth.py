"""The encoder of depth cameras: distances and where there is one, through a small convolutional network."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from bimact.config import EncoderConfig
from bimact.encoder.conv import ConvEncoder


class DepthEncoder(ConvEncoder):
    """Images that carry depth (N, 3, H, W) uint8 (`data/depth.py`) → tokens, always trained from scratch.

    Its network has two channels: the distance, from -1 at the near end of `encoder.depth_range` to 1 at the far end
    (0 where there is no measurement); and whether there is a measurement, 1 or 0. Crop and size are those of the colour
    cameras' encoder, `image_size`; depth is resized by the nearest pixel, since a mean over an edge is a distance where
    nothing is.
    """

    def __init__(self, config: EncoderConfig, image_size: tuple[int, int] | None) -> None:
        own = dataclasses.replace(config, pretrained=None, freeze=False, train_last=0, spatial=True, keypoints=0)
        super().__init__(own, channels_in=2)
        self.image_size = image_size
        self.near, self.far = config.depth_range

    def preprocess(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 → (N, 2, h, w) float."""
        top, left, height, width = self.crop_box(*images.shape[-2:])
        bytes_ = images[..., top : top + height, left : left + width].float()
        if self.image_size is not None and self.image_size != (height, width):
            bytes_ = F.interpolate(bytes_, self.image_size, mode="nearest-exact")
        metres = (256 * bytes_[:, 0] + bytes_[:, 1]) / 1000
        is_known = (metres > 0).to(metres.dtype)
        scaled = (2 * (metres - self.near) / (self.far - self.near) - 1).clamp(-1, 1)
        return torch.stack([scaled * is_known, is_known], dim=1).contiguous(memory_format=torch.channels_last)
