"""A small convolutional encoder, trained from scratch: the fastest to train without pretrained weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimact.config import EncoderConfig
from bimact.encoder.base import Float32Conv2d, ImageEncoder
from bimact.encoder.frozen_norm import fold_norms_for_inference
from bimact.errors import UserError

_PATCH = 4  # pixels: each 4 × 4 patch becomes one position with 48 channels


class _Stage(nn.Module):
    """Two 3 × 3 convolutions with batch norm, the second one residual."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(x)))


def _coordinates(patches: Tensor) -> Tensor:
    """(N, 2, rows, columns): vertical and horizontal position from -1 to 1 (CoordConv, Liu et al. 2018).

    The transformer adds positions to queries and keys alone, so without these channels the values would
    carry no position in the image.
    """
    rows, columns = patches.shape[-2:]
    vertical = torch.linspace(-1, 1, rows, device=patches.device, dtype=patches.dtype)
    horizontal = torch.linspace(-1, 1, columns, device=patches.device, dtype=patches.dtype)
    grid = torch.stack(torch.meshgrid(vertical, horizontal, indexing="ij"))
    return grid.expand(patches.shape[0], -1, -1, -1)


class ConvEncoder(ImageEncoder):
    """4 × 4 patches, then a stage for each entry of `encoder.channels`, each but the first at half the size.

    With three stages there is one token per 16 × 16 pixels. With `encoder.keypoints` K an image has one token: the
    expected positions of K points (spatial softmax, Finn et al. 2016, arXiv:1509.06113, section V-B), (2K,) from -1 to
    1, vertical then horizontal of each. The network is then given no coordinates, so that a point follows what it is on
    to places where no demonstration shows it.
    """

    has_keypoints = True

    def __init__(self, config: EncoderConfig, channels_in: int = 3) -> None:
        if not isinstance(config.pretrained, bool) and config.pretrained is not None:
            raise UserError("encoder conv has no pretrained weights: set encoder.pretrained to null")
        if not config.channels:
            raise UserError("encoder.channels is empty: set the number of channels of each stage")
        if config.keypoints and config.spatial:
            raise UserError(
                "encoder.keypoints gives one token per image: leave encoder.spatial out, or set keypoints to 0"
            )
        super().__init__(config, out_dim=2 * config.keypoints or config.channels[-1])
        self.keypoints = config.keypoints
        widths = [channels_in * _PATCH**2 + (0 if self.keypoints else 2), *config.channels]
        self.stages = nn.Sequential(
            *(
                _Stage(width_in, width_out, stride=1 if number == 0 else 2)
                for number, (width_in, width_out) in enumerate(pairwise(widths))
            )
        )
        if self.keypoints:
            self.scores = Float32Conv2d(config.channels[-1], self.keypoints, 1)
        self.spatial = config.spatial is not False and not self.keypoints

    def prepare_for_inference(self) -> None:
        fold_norms_for_inference(self.stages)

    def features(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % _PATCH, 0, -height % _PATCH))
        patches = F.pixel_unshuffle(padded, _PATCH)  # (N, 48, rows, columns) of RGB
        if self.keypoints:
            scores = self.scores(self.stages(patches))  # (N, K, rows', columns')
            weights = scores.flatten(2).softmax(dim=-1)
            places = _coordinates(scores)[0].flatten(1)  # (2, rows' · columns'), float32: not a product of autocast
            return torch.stack([(weights * axis).sum(dim=-1) for axis in places], dim=-1).flatten(1).unsqueeze(1)
        x = self.stages(torch.cat([patches, _coordinates(patches)], dim=1))  # (N, C, rows', columns')
        if not self.spatial:
            return x.mean(dim=(2, 3)).unsqueeze(1)
        return x.flatten(2).transpose(1, 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        if not self.spatial:
            return 1, 1
        stride = _PATCH * 2 ** (len(self.stages) - 1)
        return -(-height // stride), -(-width // stride)
