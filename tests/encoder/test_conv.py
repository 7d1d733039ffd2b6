"""The convolutional encoder's keypoints: expected positions, computed here one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bimact.config import EncoderConfig
from bimact.encoder.base import build_encoder
from bimact.errors import UserError


def make(**settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = EncoderConfig(name="conv", pretrained=None, freeze=False, channels=[8, 16], **settings)  # type: ignore[arg-type]
    return build_encoder(config).eval()


class Times(torch.nn.Module):
    """The first channels, times a factor, as scores."""

    def __init__(self, factor: float, channels: int) -> None:
        super().__init__()
        self.factor, self.channels = factor, channels

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x[:, : self.channels]


def pictures(number: int = 2, height: int = 40, width: int = 64) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (number, 3, height, width), dtype=torch.uint8, generator=draw)


@torch.no_grad()
def test_keypoints_are_expected_positions() -> None:
    encoder = make(keypoints=5)
    images = pictures()
    tokens = encoder.token_map(images)
    assert tokens.shape == (2, 1, 1, 10) and encoder.token_grid(40, 64) == (1, 1)
    patches = torch.nn.functional.pixel_unshuffle(encoder.preprocess(images), 4)
    scores = encoder.scores(encoder.stages(patches)).double()
    rows, columns = scores.shape[-2:]
    assert (rows, columns) == (5, 8)
    for image in range(2):
        for point in range(5):
            total = vertical = horizontal = 0.0
            for row in range(rows):
                for column in range(columns):
                    share = scores[image, point, row, column].exp().item()
                    total += share
                    vertical += share * (-1 + 2 * row / (rows - 1))
                    horizontal += share * (-1 + 2 * column / (columns - 1))
            found = tokens[image, 0, 0, 2 * point : 2 * point + 2].tolist()
            assert found == pytest.approx([vertical / total, horizontal / total], abs=1e-5)


@torch.no_grad()
def test_a_keypoint_follows_its_object() -> None:
    """A point whose score is the brightness lies on the only bright patch, at places that it never saw."""
    encoder = make(keypoints=1)
    encoder.stages = torch.nn.Identity()
    encoder.scores = Times(50, 1)
    for row, column in ((3, 4), (8, 11), (6, 2)):
        patches = torch.zeros(1, 48, 12, 16)
        patches[..., row, column] = 1.0
        images = torch.nn.functional.pixel_shuffle(patches, 4)
        found = encoder.features(images)[0, 0].tolist()
        assert found == pytest.approx([-1 + 2 * row / 11, -1 + 2 * column / 15], abs=1e-4)


@torch.no_grad()
def test_positions_keep_float32_under_autocast() -> None:
    """bfloat16 would round a position near the border by a pixel."""
    encoder = make(keypoints=5)
    encoder.stages = torch.nn.Identity()
    encoder.scores = Times(8, 5)
    exact = encoder.features(encoder.preprocess(pictures()))
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder.features(encoder.preprocess(pictures()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


def test_keypoints_get_gradients_and_no_coordinates() -> None:
    encoder = make(keypoints=3).train()
    assert encoder.stages[0].conv1.in_channels == 48 and make().stages[0].conv1.in_channels == 50
    encoder(pictures()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_other_encoders_refuse_keypoints() -> None:
    with pytest.raises(UserError, match="encoder.keypoints is for encoder conv, and pri3d has none"):
        build_encoder(EncoderConfig(name="pri3d", pretrained=None, freeze=False, keypoints=3))


def test_keypoints_and_a_token_per_location_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"encoder.keypoints .* set keypoints to 0"):
        make(keypoints=3, spatial=True)
