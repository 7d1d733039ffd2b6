"""Norms inside of convolutions give the tokens and the gradients of norms beside them."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from bimact.config import EncoderConfig
from bimact.encoder.base import build_encoder
from bimact.encoder.frozen_norm import fold_frozen_norms, fold_norms_for_inference


def with_statistics(network: nn.Module) -> nn.Module:
    """Give all norms numbers that are not the first ones."""
    draw = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            for name, low, high in (
                ("running_mean", -0.2, 0.2),
                ("running_var", 0.5, 1.5),
                ("weight", 0.3, 0.6),
                ("bias", -0.1, 0.1),
            ):
                getattr(module, name).data.uniform_(low, high, generator=draw)
    return network


def make_resnet(depth: str) -> nn.Module:
    torch.manual_seed(0)
    resnet = getattr(torchvision.models, depth)(weights=None, norm_layer=FrozenBatchNorm2d, num_classes=5)
    return with_statistics(resnet)


def images() -> Tensor:
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("depth", ["resnet18", "resnet50"])  # blocks of two and of three convolutions
def test_folded_network_is_the_plain_one(depth: str) -> None:
    plain = make_resnet(depth)
    folded = copy.deepcopy(plain)
    fold_frozen_norms(folded)
    assert not any(type(module) is FrozenBatchNorm2d for module in folded.modules())
    assert list(folded.state_dict()) == list(plain.state_dict())
    for (name, one), two in zip(plain.state_dict().items(), folded.state_dict().values()):
        assert torch.equal(one, two), name
    expected, found = plain(images()), folded(images())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    expected.square().sum().backward()
    found.square().sum().backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), folded.named_parameters()):
        assert one.grad is not None and two.grad is not None, name
        assert (one.grad - two.grad).norm() <= 1e-3 * one.grad.norm(), name


def test_folded_network_takes_weights_and_copies() -> None:
    """Both halves of a copy have to be the copy's: numbers loaded into it leave the first one as it was."""
    folded = make_resnet("resnet18")
    fold_frozen_norms(folded)
    expected = folded(images())
    other = copy.deepcopy(folded)
    other.load_state_dict({name: torch.ones_like(value) for name, value in folded.state_dict().items()})
    assert not torch.allclose(other(images()), expected)
    assert torch.equal(folded(images()), expected)
    other.load_state_dict(folded.state_dict())
    assert torch.equal(other(images()), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "pri3d"},
        {"name": "pri3d", "model_name": "resnet50", "freeze": False},
        {"name": "conv", "channels": [8, 16, 24], "freeze": False},
    ],
)
def test_encoder_prepared_for_inference_gives_the_same_tokens(settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    encoder = with_statistics(build_encoder(EncoderConfig(pretrained=None, **settings))).eval()  # type: ignore[arg-type, attr-defined]
    frames = torch.randint(0, 256, (2, 3, 70, 90), dtype=torch.uint8)
    expected = encoder(frames)
    encoder.prepare_for_inference()  # type: ignore[operator]
    norms = (nn.BatchNorm2d, FrozenBatchNorm2d)
    assert not any(isinstance(module, norms) for module in encoder.modules())
    torch.testing.assert_close(encoder(frames), expected, atol=2e-4, rtol=1e-3)


def test_ordinary_norms_are_left_alone_in_training() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    fold_frozen_norms(network)
    assert isinstance(network[1], nn.BatchNorm2d) and isinstance(network[0], nn.Conv2d)


def test_network_of_another_order_folds_nothing_wrong() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    fold_norms_for_inference(network)
    assert isinstance(network[0], nn.BatchNorm2d)
