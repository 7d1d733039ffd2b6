"""The timm encoder, on the small networks that timm ships for tests."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bimact.config import EncoderConfig
from bimact.encoder import timm_backbone
from bimact.encoder.base import ImageEncoder, build_encoder
from bimact.encoder.timm_backbone import token_map
from bimact.errors import UserError


def make(name: str | None, **settings: Any) -> ImageEncoder:
    return build_encoder(EncoderConfig(**{"name": "timm", "model_name": name, "pretrained": None, **settings}))


def images(count: int, height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_mambaout", "test_efficientnet"])
def test_token_grid_is_exact_where_any_size_will_do(name: str) -> None:
    encoder = make(name)

    @settings(max_examples=8)
    @given(st.integers(32, 110), st.integers(32, 110))
    def check(height: int, width: int) -> None:
        rows, columns = encoder.token_grid(height, width)
        assert encoder(images(1, height, width)).shape == (1, rows * columns, encoder.out_dim)
        network: Any = encoder.network
        with torch.no_grad():
            features = network.forward_features(encoder.preprocess(images(1, height, width)))
        if name == "test_mambaout":  # channels last
            features = features.permute(0, 3, 1, 2)
        assert features.shape == (1, encoder.out_dim, rows, columns)

    check()


@pytest.mark.parametrize(
    ("name", "settings", "grid", "dim"),
    [
        ("test_resnet", {"spatial": False}, (1, 1), 96),
        ("test_resnet", {"image_size": [65, 33]}, (3, 2), 96),
        ("test_vit", {}, (10, 10), 64),  # resized to its 160 × 160
        ("test_vit", {"spatial": False}, (1, 1), 64),
        ("test_vit", {"image_size": [96, 64]}, (6, 4), 64),
        ("test_vit3", {"image_size": [100, 70]}, (6, 4), 96),
        ("test_vit2", {}, (10, 10), 64),  # its norm follows the pooling
        ("test_vit3", {}, (10, 10), 96),  # pools by attention
        ("test_maxvit", {"image_size": [96, 64]}, (3, 2), 128),
        ("test_mambaout", {"spatial": False}, (1, 1), 256),
        ("test_vit_relpos", {}, (10, 10), 96),
    ],
)
def test_shapes_and_gradients(name: str, settings: dict[str, Any], grid: tuple[int, int], dim: int) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this version of timm has no {name}")
    encoder = make(name, freeze=False, **settings)
    tokens = encoder(images(2, 70, 90))
    assert tokens.shape == (2, grid[0] * grid[1], dim)
    assert encoder.token_grid(70, 90) == grid and encoder.out_dim == dim
    tokens.square().sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) > 10_000


def test_tokens_are_the_patches_in_order() -> None:
    encoder = make("test_vit", image_size=[32, 48])
    image = images(1, 32, 48)
    network: Any = encoder.network
    with torch.no_grad():
        features = network.forward_features(encoder.preprocess(image))
    assert features.shape[1] == 1 + 2 * 3  # the class token comes first
    torch.testing.assert_close(encoder(image), features[:, 1:])


def test_normalisation_is_the_networks_own() -> None:
    for name in ("test_vit", "test_resnet", "test_vit.r160_in1k"):
        encoder = make(name)
        data = timm.data.resolve_model_data_config(timm.create_model(name))
        shift, scale = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
        image = images(1, 160, 160)
        torch.testing.assert_close(encoder.preprocess(image).contiguous(), (image / 255.0 - shift) / scale)


def test_grid_of_tokens_without_a_grid() -> None:
    class Network(nn.Module):
        def __init__(self, places: int, **attributes: Any) -> None:
            super().__init__()
            self.places = places
            for name, value in attributes.items():
                setattr(self, name, value)

        def forward_features(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), self.places, 7)

    image = torch.zeros(2, 3, 95, 145)
    assert token_map(Network(5 * 9), image).shape == (2, 5, 9, 7)
    assert token_map(Network(1 + 5 * 9, cls_token=nn.Parameter(torch.zeros(1))), image).shape == (2, 5, 9, 7)
    assert token_map(Network(4 + 5 * 9, num_prefix_tokens=4), image).shape == (2, 5, 9, 7)
    for places in (197, 0):
        with pytest.raises(UserError, match=r"no single feature map: set encoder\.spatial to false"):
            token_map(Network(places), image)


@pytest.mark.parametrize(
    ("name", "prefix"), [("test_resnet", ""), ("test_vit", "module."), ("test_vit", "image_encoder.network.")]
)
def test_local_file(name: str, prefix: str, tmp_path: Path) -> None:
    network: Any = timm.create_model(name).eval()  # with its classifier, as timm's own files are
    torch.save({prefix + key: value for key, value in network.state_dict().items()}, tmp_path / "weights.pth")
    encoder = make(name, pretrained=str(tmp_path / "weights.pth"))
    image = images(1, 160, 160)
    with torch.no_grad():
        features = network.forward_features(encoder.preprocess(image))
    expected = features[:, 1:] if name == "test_vit" else features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(image), expected)


def test_local_file_with_positions_of_another_size(tmp_path: Path) -> None:
    network = timm.create_model("test_vit").eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    resized: Any = copy.deepcopy(network)
    resized.set_input_size(img_size=(96, 64))
    encoder = make("test_vit", pretrained=str(tmp_path / "weights.pth"), image_size=[96, 64])
    image = images(1, 96, 64)
    with torch.no_grad():
        expected = resized.forward_features(encoder.preprocess(image))[:, 1:]
    torch.testing.assert_close(encoder(image), expected)


def test_local_file_that_does_not_fit(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth does not fit timm's test_resnet: 1 of its \d+ tensors are miss"):
        make("test_resnet", pretrained=str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match=r"weights\.pth does not fit timm's test_vit"):
        make("test_vit", pretrained=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("name", "pretrained", "asked"),
    [
        ("test_vit", True, "test_vit.r160_in1k"),
        ("test_vit", "r160-in1k", "test_vit.r160_in1k"),
        ("test_vit.r160_in1k", True, "test_vit.r160_in1k"),
        ("test_vit", None, None),
    ],
)
def test_which_weights_are_asked_of_timm(
    name: str, pretrained: Any, asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, names = timm.create_model, []

    def create(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        if pretrained:
            names.append(name)
        return real(name, **settings)

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("bimact.encoder.weights._hub_is_reachable", lambda: True)
    make(name, pretrained=pretrained)
    assert names == ([asked] if asked else [])
    make(name, pretrained=pretrained, weights_from_checkpoint=True)
    assert names == ([asked] if asked else [])


def test_rebuilt_for_a_checkpoint_without_its_file() -> None:
    encoder = make("test_vit", pretrained="/gone.pth", weights_from_checkpoint=True, image_size=[96, 64])
    assert encoder.token_grid(480, 640) == (6, 4)


def test_frozen_network_asks_for_no_gradient() -> None:
    encoder = make("test_efficientnet", freeze=True).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert not encoder(images(4, 64, 64)).requires_grad
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_probe_touches_nothing() -> None:
    network = timm.create_model("test_efficientnet")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    assert timm_backbone.probe(network, token_map, (64, 96), "it") == (2, 3, 256)
    assert network.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_wrong_settings() -> None:
    with pytest.raises(UserError, match=r"encoder timm needs encoder\.model_name"):
        make(None)
    with pytest.raises(UserError, match="timm has no network 'test_resnat'; did you mean test_resnet"):
        make("test_resnat")
    with pytest.raises(UserError, match="timm has no network 'hf-hub:a/b'"):
        make("hf-hub:a/b")
    with pytest.raises(UserError, match="timm's test_vit has no pretrained weights 'r160'; did you mean r160_in1k"):
        make("test_vit", pretrained="r160")
    with pytest.raises(UserError, match="timm's test_vit has no weights 'a1'"):
        make("test_vit.a1")
    with pytest.raises(UserError, match=r"name different weights: set encoder\.model_name to resnet18"):
        make("resnet18.a1_in1k", pretrained="a2_in1k")
    if timm.is_model("test_maxvit"):  # from some version on
        with pytest.raises(UserError, match=r"timm's test_maxvit takes no images of 97 × 131 pixels"):
            make("test_maxvit", image_size=[97, 131])
