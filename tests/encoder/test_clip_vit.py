"""The CLIP encoder against open_clip itself, on models small enough to make in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import pretrained as open_clip_pretrained
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU
from PIL import Image
from torch import Tensor

from bimact.config import EncoderConfig
from bimact.encoder.base import ImageEncoder, build_encoder
from bimact.errors import UserError

_TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
_VIT: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
_MODELS: dict[str, dict[str, Any]] = {
    "tiny-vit": {"vision_cfg": _VIT},
    "tiny-vit-quickgelu": {"vision_cfg": _VIT, "quick_gelu": True},
    "tiny-clipa": {"vision_cfg": {**_VIT, "pool_type": "avg", "final_ln_after_pool": True}},
    "tiny-coca": {"vision_cfg": {**_VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}},
    "tiny-sincos": {"vision_cfg": {**_VIT, "pos_embed_type": "sin_cos_2d"}},
    "tiny-resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}},
    "tiny-timm": {
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_pool": "token",
            "timm_proj": "linear",
        }
    },
}


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("open_clip")
    for name, settings in _MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 24, "text_cfg": _TEXT, **settings}))
    open_clip.add_model_config(folder)


def make(name: str, **settings: Any) -> ImageEncoder:
    return build_encoder(EncoderConfig(**{"name": "clip_vit", "model_name": name, "pretrained": None, **settings}))


def images(count: int, height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=draw, dtype=torch.uint8)


def whole_model(name: str, **settings: Any) -> Any:
    """open_clip's own model, text tower and all, with random weights."""
    torch.manual_seed(1)
    return open_clip.create_model(name, pretrained=None, **settings).eval()


def has_quick_gelu(encoder: ImageEncoder) -> bool:
    return any(isinstance(module, QuickGELU) for module in encoder.modules())


@pytest.mark.parametrize(
    ("name", "settings", "grid", "dim"),
    [
        ("tiny-vit", {}, (1, 1), 24),
        ("tiny-vit", {"image_size": [64, 40]}, (1, 1), 24),
        ("tiny-vit", {"spatial": True}, (4, 4), 32),
        ("tiny-vit", {"spatial": True, "image_size": [67, 41]}, (8, 5), 32),
        ("tiny-clipa", {}, (1, 1), 24),
        ("tiny-clipa", {"spatial": True}, (4, 4), 32),
        ("tiny-coca", {}, (1, 1), 24),
        ("tiny-coca", {"spatial": True}, (4, 4), 32),
        ("tiny-resnet", {}, (1, 1), 24),
        ("tiny-resnet", {"spatial": True}, (2, 2), 256),
        ("tiny-resnet", {"spatial": True, "image_size": [97, 66]}, (3, 2), 256),
        ("tiny-timm", {}, (1, 1), 24),
        ("tiny-timm", {"image_size": [64, 96]}, (1, 1), 24),
        ("tiny-timm", {"spatial": True, "image_size": [64, 96]}, (4, 6), 64),
    ],
)
def test_shapes_and_gradients(name: str, settings: dict[str, Any], grid: tuple[int, int], dim: int) -> None:
    encoder = make(name, freeze=False, **settings)
    tokens = encoder(images(2, 37, 53))
    assert tokens.shape == (2, grid[0] * grid[1], dim)
    assert encoder.token_grid(37, 53) == grid and encoder.out_dim == dim
    tokens.square().sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


def test_place_of_a_token() -> None:
    """A change of one patch of the image changes the patch embedding of that token alone."""
    encoder = make("tiny-vit", spatial=True, image_size=[32, 48])
    visual: Any = encoder.visual
    seen: list[Tensor] = []
    visual.ln_pre.register_forward_hook(lambda module, inputs, output: seen.append(output[:, 1:]))
    image = images(1, 32, 48)
    other = image.clone()
    other[..., 8:16, 40:48] = 255 - other[..., 8:16, 40:48]
    encoder(image), encoder(other)
    changed = (seen[0] != seen[1]).any(dim=-1)[0].view(encoder.token_grid(32, 48))
    assert changed.nonzero().tolist() == [[1, 5]]


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
def test_normalisation_is_open_clips(name: str) -> None:
    encoder = make(name)
    side = (encoder.image_size or (0, 0))[0]
    image = images(1, side, side)
    model = whole_model(name)
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    expected = transform(Image.fromarray(image[0].permute(1, 2, 0).numpy()))
    torch.testing.assert_close(encoder.preprocess(image)[0].contiguous(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-clipa", "tiny-coca", "tiny-resnet", "tiny-timm"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_embedding_of_a_local_file_is_open_clips(name: str, prefix: str, tmp_path: Path) -> None:
    model = whole_model(name)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, tmp_path / "epoch_3.pt")
    encoder = make(name, pretrained=str(tmp_path / "epoch_3.pt"))
    side = (encoder.image_size or (0, 0))[0]
    with torch.no_grad():
        expected = model.encode_image(encoder.preprocess(images(2, side, side)))
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(encoder(images(2, side, side))[:, 0], expected)


def test_only_the_image_tower_is_kept() -> None:
    model, encoder = whole_model("tiny-vit"), make("tiny-vit")
    own = {key.removeprefix("visual.") for key in encoder.state_dict()}
    assert own == set(model.visual.state_dict())


def test_file_of_the_image_tower_and_of_a_run(tmp_path: Path) -> None:
    first = make("tiny-vit", spatial=False)
    expected = first(images(1, 32, 32))
    tower = {key.removeprefix("visual."): value for key, value in first.state_dict().items()}
    run = {f"image_encoder.{key}": value for key, value in first.state_dict().items()}
    for state in (tower, run):
        torch.save(state, tmp_path / "weights.pt")
        assert torch.equal(make("tiny-vit", pretrained=str(tmp_path / "weights.pt"))(images(1, 32, 32)), expected)


def test_positions_are_interpolated_as_open_clip_does(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(whole_model("tiny-vit").state_dict(), file)
    model = open_clip.create_model("tiny-vit", pretrained=str(file), force_image_size=(64, 40)).eval()
    encoder = make("tiny-vit", pretrained=str(file), image_size=[64, 40])
    with torch.no_grad():
        expected = model.encode_image(encoder.preprocess(images(1, 64, 40)))
    torch.testing.assert_close(encoder(images(1, 64, 40))[:, 0], expected)


@pytest.fixture
def tags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Tags of the small model: one trained with QuickGELU, one without; their file is on this disk."""
    model = whole_model("tiny-vit", force_quick_gelu=True)
    file = tmp_path / "tag.pt"
    torch.save(model.state_dict(), file)
    common = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
    table = {"laion": common, "openai": {**common, "quick_gelu": True}}
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: str(file))
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, "tiny-vit", table)
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, "tiny-vit-quickgelu", {"openai": table["openai"]})
    return model


@pytest.mark.parametrize("pretrained", ["openai", "OpenAI", True])
def test_quick_gelu_by_the_tag(pretrained: Any, tags: Any) -> None:
    encoder = make("tiny-vit", pretrained=pretrained)
    assert has_quick_gelu(encoder)
    image = images(1, 32, 32)
    by_hand = (image / 255.0 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.1, 0.2, 0.3]).view(
        3, 1, 1
    )
    torch.testing.assert_close(encoder.preprocess(image).contiguous(), by_hand)
    with torch.no_grad():
        torch.testing.assert_close(encoder(image)[:, 0], tags.encode_image(by_hand))


def test_quick_gelu_elsewhere(tags: Any) -> None:
    assert not has_quick_gelu(make("tiny-vit", pretrained="laion"))
    assert not has_quick_gelu(make("tiny-vit"))
    assert has_quick_gelu(make("tiny-vit-quickgelu"))
    assert has_quick_gelu(make("tiny-vit-quickgelu", pretrained=True))


def test_rebuilt_for_a_checkpoint_without_any_file(tags: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("tiny-vit", pretrained="openai")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: pytest.fail("a download"))
    second = make("tiny-vit", pretrained="openai", weights_from_checkpoint=True)
    assert has_quick_gelu(second)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images(1, 32, 32)), second(images(1, 32, 32)))
    assert not has_quick_gelu(make("tiny-vit", pretrained="/gone.pt", weights_from_checkpoint=True))


def test_vit_b_32_of_openai_is_made_with_its_activation() -> None:
    encoder = build_encoder(EncoderConfig(pretrained="openai", weights_from_checkpoint=True))
    assert has_quick_gelu(encoder) and encoder.image_size == (224, 224) and encoder.out_dim == 512
    assert sum(p.numel() for p in encoder.parameters()) == 87_849_216
    assert not any(p.requires_grad for p in encoder.parameters())


def test_activation_of_a_local_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = whole_model("tiny-vit").state_dict()
    file = tmp_path / "weights.pt"
    torch.save(state, file)
    make("tiny-vit", pretrained=str(file))
    expected = f"CLIP weights {file}: taken as trained with GELU (with QuickGELU: tiny-vit-quickgelu)\n"
    assert capsys.readouterr().out == expected

    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    with pytest.raises(UserError, match=r"trained with QuickGELU: set encoder\.model_name to tiny-vit-quickgelu"):
        make("tiny-vit", pretrained=str(file))
    make("tiny-vit-quickgelu", pretrained=str(file))
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(UserError, match=r"trained without QuickGELU: set encoder\.model_name to tiny-vit$"):
        make("tiny-vit-quickgelu", pretrained=str(file))
    (tmp_path / "open_clip_config.json").unlink()

    extras = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save({**state, **extras}, file)  # as OpenAI's own program has them
    with pytest.raises(UserError, match=r"trained with QuickGELU: set encoder\.model_name to tiny-vit-quickgelu"):
        make("tiny-vit", pretrained=str(file))
    capsys.readouterr()
    make("tiny-vit-quickgelu", pretrained=str(file))
    assert capsys.readouterr().out == ""


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"open_clip has no model 'ViT-B32'; did you mean ViT-B-32"):
        make("ViT-B32")
    with pytest.raises(UserError, match="ViT-B-32 has no pretrained weights 'opnai'; did you mean openai"):
        make("ViT-B/32", pretrained="opnai")
    with pytest.raises(
        UserError,
        match="there are no pretrained weights for open_clip's tiny-vit: set encoder.pretrained to a local file",
    ):
        make("tiny-vit", pretrained=True)
    with pytest.raises(UserError, match=r"image_size of tiny-resnet is \[64, 64\], not \[96, 64\]"):
        make("tiny-resnet", image_size=[96, 64])
    with pytest.raises(UserError, match=r"tiny-sincos cannot be made for encoder\.image_size \[40, 32\]"):
        make("tiny-sincos", image_size=[40, 32])
    with pytest.raises(UserError, match=r"takes no images of 4 × 4 pixels"):
        make("tiny-resnet", spatial=True, image_size=[4, 4])
    torch.save(whole_model("tiny-resnet").state_dict(), tmp_path / "resnet.pt")
    with pytest.raises(UserError, match=r"resnet\.pt does not fit open_clip's tiny-vit"):
        make("tiny-vit", pretrained=str(tmp_path / "resnet.pt"))


def test_frozen_resnet_keeps_its_statistics() -> None:
    encoder = make("tiny-resnet", freeze=True).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert not encoder(images(4, 64, 64)).requires_grad
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert any(key.endswith("running_mean") for key in before)


@pytest.mark.slow
@torch.inference_mode()
def test_frozen_attention_in_half_precision_copies_no_weights() -> None:
    """A product of (tokens, images, width) with weights that learn nothing: in one piece, or token by token."""
    encoder = make("ViT-B-32")
    with torch.autocast("cpu", torch.bfloat16), torch.profiler.profile(record_shapes=True) as profile:
        encoder(images(3, 64, 64))
    batched = [event.input_shapes for event in profile.events() or () if event.name == "aten::bmm"]
    assert not [shapes for shapes in batched if any(768 in shape for shape in shapes)]  # the width of its tokens
