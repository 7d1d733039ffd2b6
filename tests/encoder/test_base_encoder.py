"""What all encoders share: preprocessing, token grids, freezing, and how they are found by name."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bimact.config import EncoderConfig
from bimact.encoder import base
from bimact.encoder.base import IMAGENET_MEAN, IMAGENET_STD, ImageEncoder, build_encoder, input_size
from bimact.encoder.conv import ConvEncoder
from bimact.errors import UserError

TINY: dict[str, dict[str, Any]] = {
    "conv": {"channels": [8, 12]},
    "pri3d": {},
    "timm": {"model_name": "test_resnet"},
}


def make(name: str, **settings: Any) -> ImageEncoder:
    return build_encoder(EncoderConfig(**{"name": name, "pretrained": None, **TINY.get(name, {}), **settings}))


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=draw, dtype=torch.uint8)


def shares() -> st.SearchStrategy[list[float]]:
    """[top, left, height, width] that `config._check_together` lets through."""
    part = st.tuples(st.integers(0, 99), st.integers(1, 100)).map(lambda p: (min(p), max(p[1], p[0] + 1)))
    return st.tuples(part, part).map(
        lambda p: [p[0][0] / 100, p[1][0] / 100, (p[0][1] - p[0][0]) / 100, (p[1][1] - p[1][0]) / 100]
    )


@settings(max_examples=40)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 4), st.booleans())
def test_token_grid_of_conv_is_exact(height: int, width: int, stages: int, spatial: bool) -> None:
    encoder = make("conv", channels=[4] * stages, spatial=spatial)
    rows, columns = encoder.token_grid(height, width)
    with torch.no_grad():
        assert encoder(images(2, height, width)).shape == (2, rows * columns, 4)
    if spatial:
        stride = 4 * 2 ** (stages - 1)
        assert (rows - 1) * stride < height <= rows * stride
        assert (columns - 1) * stride < width <= columns * stride


@settings(max_examples=40)
@given(shares(), st.integers(1, 60), st.integers(1, 60))
def test_crop_is_exact(crop: list[float], height: int, width: int) -> None:
    encoder = make("conv", crop=crop)
    top, left, rows, columns = encoder.crop_box(height, width)
    assert rows >= 1 and columns >= 1 and top >= 0 and left >= 0
    assert top + rows <= height and left + columns <= width
    assert abs(rows - crop[2] * height) <= 1.5 and abs(columns - crop[3] * width) <= 1.5
    image = images(1, height, width)
    expected = image[..., top : top + rows, left : left + columns] / 255.0
    shift, scale = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(encoder.preprocess(image).contiguous(), (expected - shift) / scale)
    grid = encoder.token_grid(height, width)
    with torch.no_grad():
        assert encoder(image).shape[1] == grid[0] * grid[1]


@settings(max_examples=60)
@given(st.integers(0, 100), st.integers(1, 200))
def test_crops_that_touch_cover_each_pixel_once(cut: int, size: int) -> None:
    share = cut / 100
    if round(share * size) in (0, size):
        return
    first = make("conv", crop=[0, 0, share, 1]).crop_box(size, 8)
    second = make("conv", crop=[share, 0, 1 - share, 1]).crop_box(size, 8)
    assert first[0] == 0 and first[2] == second[0] and second[0] + second[2] == size


def test_crop_comes_before_the_resize() -> None:
    encoder = make("conv", crop=[0.5, 0.25, 0.5, 0.5], image_size=[8, 8])
    image = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    image[..., 20:, 10:30] = 255
    white = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    seen = encoder.preprocess(image)
    torch.testing.assert_close(seen.contiguous(), white.view(1, 3, 1, 1).expand(1, 3, 8, 8))
    assert encoder.token_grid(40, 40) == encoder.grid(8, 8)


def test_normalisation_and_resize_by_hand() -> None:
    encoder = make("conv", image_size=[6, 10])
    image = images(1, 12, 20)
    # At half the size, bilinear interpolation with antialias weighs each pixel and its neighbours by 1 3 3 1.
    weights = torch.tensor([1.0, 3, 3, 1])
    expected = torch.zeros(3, 6, 10)
    for row in range(6):
        for column in range(10):
            total, norm = torch.zeros(3), 0.0
            for i, y in enumerate(range(2 * row - 1, 2 * row + 3)):
                for j, x in enumerate(range(2 * column - 1, 2 * column + 3)):
                    if 0 <= y < 12 and 0 <= x < 20:
                        total += weights[i] * weights[j] * image[0, :, y, x]
                        norm += float(weights[i] * weights[j])
            expected[:, row, column] = total / norm / 255
    shift, scale = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(encoder.preprocess(image)[0].contiguous(), (expected - shift) / scale)


@pytest.mark.parametrize("name", TINY)
def test_normalisation_of_the_config_counts(name: str) -> None:
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 2]
    image = images(1, 40, 40)
    shift, scale = (torch.tensor(numbers).view(3, 1, 1) for numbers in (mean, std))
    seen = make(name, image_mean=mean, image_std=std).preprocess(image)
    torch.testing.assert_close(seen.contiguous(), (image / 255 - shift) / scale)


def _train_one_step(encoder: ImageEncoder) -> nn.Linear:
    head = nn.Linear(encoder.out_dim, 2)
    parameters = [*head.parameters(), *(p for p in encoder.parameters() if p.requires_grad)]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    encoder.train()
    head(encoder(images(4, 40, 40))).square().mean().backward()
    optimizer.step()
    return head


@pytest.mark.parametrize("name", TINY)
def test_frozen_encoder_stays_the_same_to_the_last_bit(name: str) -> None:
    encoder = make(name, freeze=True)
    before = copy.deepcopy(encoder.state_dict())
    head = _train_one_step(encoder)
    assert head.weight.grad is not None
    assert not any(module.training for module in encoder.modules())
    assert all(p.grad is None and not p.requires_grad for p in encoder.parameters())
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not encoder(images(1, 40, 40)).requires_grad


@pytest.mark.parametrize("name", TINY)
def test_gradient_reaches_everything_that_is_not_frozen(name: str) -> None:
    encoder = make(name, freeze=False)
    for parameter in encoder.parameters():
        if not parameter.any():  # a residual branch that timm starts at zero passes nothing back yet
            nn.init.constant_(parameter, 0.1)
    before = copy.deepcopy(encoder.state_dict())
    _train_one_step(encoder)
    assert all(p.requires_grad for p in encoder.parameters())
    dead = [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
    moved = [key for key, value in encoder.state_dict().items() if not torch.equal(before[key], value)]
    statistics = [key for key in before if key.endswith("running_mean")]
    if name == "pri3d":
        assert not set(moved) & set(statistics)  # its batch norm is frozen even so
    else:
        assert set(statistics) <= set(moved)


def test_evaluation_mode_of_an_unfrozen_encoder() -> None:
    encoder = make("conv", freeze=False)
    assert encoder.training and not encoder.eval().training and encoder.train().training


class _Plugin(ImageEncoder):
    """One token, the mean colour."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config, out_dim=3)
        self.scale = nn.Parameter(torch.ones(3))

    def features(self, images: Tensor) -> Tensor:
        return (images.mean(dim=(2, 3)) * self.scale)[:, None]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return 1, 1


def _register(monkeypatch: pytest.MonkeyPatch, name: str, builder: Any) -> None:
    def found(group: str) -> list[Any]:
        assert group == "bimact.encoders"
        return [SimpleNamespace(name=name, load=lambda: builder)]

    monkeypatch.setattr(base, "entry_points", found)


def test_plugin_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, "colour", _Plugin)
    encoder = build_encoder(EncoderConfig(name="colour", freeze=True))
    assert isinstance(encoder, _Plugin) and not encoder.scale.requires_grad
    assert encoder(images(2, 5, 7)).shape == (2, 1, 3)
    assert encoder.token_grid(5, 7) == (1, 1)
    _register(monkeypatch, "conv", _Plugin)  # a plug-in does not replace an encoder of bimact
    assert isinstance(make("conv"), ConvEncoder)


def test_unknown_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, "colour", _Plugin)
    with pytest.raises(
        UserError, match="no encoder named 'clip'; there is clip_vit, pri3d, resnet, timm, conv, colour"
    ):
        build_encoder(EncoderConfig(name="clip"))


def test_conv_has_no_pretrained_weights() -> None:
    with pytest.raises(UserError, match="encoder conv has no pretrained weights"):
        make("conv", pretrained="imagenet")
    with pytest.raises(UserError, match=r"encoder\.channels is empty"):
        make("conv", channels=[])


@pytest.mark.parametrize(
    "chosen, size",
    [
        ({"name": "clip_vit"}, (224, 224)),
        ({"name": "clip_vit", "model_name": "RN50x4"}, (288, 288)),
        ({"name": "clip_vit", "image_size": [96, 128]}, (96, 128)),
        ({"name": "clip_vit", "crop": [0.0, 0.0, 0.5, 0.5]}, None),
        ({"name": "timm", "model_name": "vit_small_patch16_224"}, (224, 224)),
        ({"name": "timm", "model_name": "resnet18"}, None),
        ({"name": "conv"}, None),
        ({"name": "pri3d"}, None),
    ],
)
def test_size_that_images_may_be_stored_in(chosen: dict[str, Any], size: tuple[int, int] | None) -> None:
    assert input_size(EncoderConfig(**chosen)) == size
