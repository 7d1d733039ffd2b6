"""The ResNet encoder: tokens, and which weights end up in which tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bimact.config import EncoderConfig
from bimact.encoder import pri3d
from bimact.encoder.base import ImageEncoder, build_encoder
from bimact.errors import UserError


def make(**settings: Any) -> ImageEncoder:
    return build_encoder(EncoderConfig(**{"name": "pri3d", "pretrained": None, **settings}))


def image(height: int = 50, width: int = 70) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, height, width), generator=draw, dtype=torch.uint8)


def test_resnet_is_another_name_of_it() -> None:
    torch.manual_seed(0)
    tokens = make()(image())
    torch.manual_seed(0)
    assert torch.equal(make(name="resnet")(image()), tokens)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """torchvision's own network with statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.2)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.3, 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def tokens_of_resnet(resnet: nn.Module) -> Tensor:
    normalize = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    trunk = nn.Sequential(*list(resnet.children())[:-2])
    with torch.no_grad():
        return trunk(normalize(image() / 255.0)).flatten(2).transpose(1, 2)


def _pri3d_checkpoint(resnet: nn.Module) -> dict[str, Any]:
    """As `save_checkpoint` in pretrain/pri3d/common/pretrain.py writes it, with decoder and 3D network."""
    backbone = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
    model = {f"backbone.encoder.{name}": value for name, value in backbone.items()}
    model["backbone.decoder.up1.conv1.weight"] = torch.zeros(4, 4, 5, 5)
    model["backbone.decoder.up1.bn1.weight"] = torch.zeros(4)
    model["backbone.decoder.conv0.bias"] = torch.zeros(4)
    model["backbone3d.conv0p1s1.kernel"] = torch.zeros(27, 3, 4)
    model["w2d.weight"] = torch.zeros(4, 4)
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [80, 120])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return {
        "step": 5,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "model": model,
    }


def test_checkpoint_of_the_authors(
    resnet: nn.Module, tokens_of_resnet: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "checkpoint.pth"
    torch.save(_pri3d_checkpoint(resnet), file)
    encoder = make(pretrained=str(file))
    assert capsys.readouterr().out == f"Pri3D weights {file}: 100 of 100 tensors of the backbone matched\n"
    torch.testing.assert_close(encoder(image()), tokens_of_resnet, atol=1e-4, rtol=1e-4)
    pooled = make(pretrained=str(file), spatial=False)
    assert pooled.token_grid(50, 70) == (1, 1)
    torch.testing.assert_close(pooled(image())[:, 0], tokens_of_resnet.mean(dim=1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "encoder.", "module.encoder_q."])
def test_other_prefixes(prefix: str, resnet: nn.Module, tokens_of_resnet: Tensor, tmp_path: Path) -> None:
    state = {prefix + name: value for name, value in resnet.state_dict().items()}
    other = {"module.encoder_k." + name: value * 0 for name, value in resnet.state_dict().items()}
    torch.save({"state_dict": {**state, **other}}, tmp_path / "weights.pt")
    encoder = make(pretrained=str(tmp_path / "weights.pt"))
    torch.testing.assert_close(encoder(image()), tokens_of_resnet, atol=1e-4, rtol=1e-4)


def test_own_weights_come_back(tmp_path: Path) -> None:
    first = make()
    torch.save({f"image_encoder.{k}": v for k, v in first.state_dict().items()}, tmp_path / "act-train-1.pth")
    second = make(pretrained=str(tmp_path / "act-train-1.pth"))
    assert torch.equal(first(image()), second(image()))


def test_files_of_other_networks(resnet: nn.Module, tmp_path: Path) -> None:
    state = resnet.state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match=r"does not fit resnet34, only 100 of its 180 tensors match: set enc"):
        make(model_name="resnet34", pretrained=str(tmp_path / "resnet18.pth"))
    state["layer1.2.conv1.weight"] = torch.zeros(64, 64, 3, 3)
    torch.save(state, tmp_path / "resnet34.pth")
    with pytest.raises(UserError, match=r"does not fit resnet18, it has 'layer1\.2\.conv1\.weight' beyond it"):
        make(pretrained=str(tmp_path / "resnet34.pth"))
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "else.pth")
    with pytest.raises(UserError, match="only 0 of its 100 tensors match"):
        make(pretrained=str(tmp_path / "else.pth"))


@pytest.mark.parametrize("pretrained", [True, "imagenet"])
def test_imagenet_weights(
    pretrained: Any,
    resnet: nn.Module,
    tokens_of_resnet: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Weights:
        @staticmethod
        def get_state_dict(progress: bool, check_hash: bool) -> dict[str, Tensor]:
            assert check_hash
            return resnet.state_dict()

    monkeypatch.setitem(pri3d._WEIGHTS, "resnet18", Weights)
    encoder = make(pretrained=pretrained)
    torch.testing.assert_close(encoder(image()), tokens_of_resnet, atol=1e-4, rtol=1e-4)
    says_so = "torchvision's ImageNet weights of resnet18; for Pri3D's own" in capsys.readouterr().out
    assert says_so == (pretrained is True)


@pytest.mark.parametrize("pretrained", [True, "imagenet", "/not/there.pth"])
def test_weights_from_checkpoint(pretrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pri3d._WEIGHTS, "resnet18", None)
    make(pretrained=pretrained, weights_from_checkpoint=True)


def test_wrong_settings() -> None:
    with pytest.raises(UserError, match="resnet18 or resnet34 or resnet50, not 'resnet101'"):
        make(model_name="resnet101")
    with pytest.raises(UserError, match="has no pretrained weights 'imagnet'; did you mean imagenet"):
        make(pretrained="imagnet")
    with pytest.raises(UserError, match=r"weights file not found: /not/there\.pth"):
        make(pretrained="/not/there.pth")


def test_token_grid_is_exact() -> None:
    encoder = make()

    @settings(max_examples=8)
    @given(st.integers(1, 80), st.integers(1, 80))
    def check(height: int, width: int) -> None:
        rows, columns = encoder.token_grid(height, width)
        assert encoder(image(height, width)).shape == (1, rows * columns, 512)

    check()
