"""CLIP's image tower (Radford et al. 2021) by open_clip: one embedding per image, or one token per patch."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.convert import convert_state_dict
from open_clip.model import CLIPVisionCfg, _build_vision_tower, resize_pos_embed
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from bimact.config import EncoderConfig
from bimact.encoder.base import ImageEncoder
from bimact.encoder.timm_backbone import freeze_unused, probe, token_map
from bimact.encoder.weights import (
    WeightsSource,
    choose_source,
    download,
    load_all,
    near_names,
    read_state_dict,
    strip_prefix,
)
from bimact.errors import UserError

_DEFAULT = "ViT-B-32"
# Buffers of the programs that OpenAI published its weights as; open_clip drops them.
_OPENAI_EXTRAS = {"input_resolution", "context_length", "vocab_size"}


class ClipEncoder(ImageEncoder):
    """The image tower of the CLIP model that `encoder.model_name` names; its text tower is not built.

    The token is the pooled and projected embedding of the image, as CLIP compares it with text. With
    `encoder.spatial: true` there is one token per patch of the last layer (normalised as the embedding is
    before its projection), or per position of a ResNet's last feature map before its attention pooling.

    The whole image is resized to the model's size (bilinear; open_clip itself resizes the shorter side by
    bicubic interpolation and cuts off the rest) and normalised as the weights need. `encoder.image_size` sets
    another size where the model takes one: position tables are interpolated.

    `encoder.pretrained` is a tag of open_clip (`openai`, `laion2b_s34b_b79k`, …), `true` (`openai` where the
    model has it, else its first tag), a path to a file of the whole model or of its image tower, or `null`.

    Weights of some tags, OpenAI's among them, were trained with the activation QuickGELU. The tag decides, or
    with a local file the model's name: `ViT-B-32-quickgelu`.
    """

    def __init__(self, config: EncoderConfig) -> None:
        name = known_model(config.model_name or _DEFAULT)
        tags = open_clip.list_pretrained_tags_by_model(name)
        usual = "openai" if "openai" in tags else next(iter(tags), None)
        source = choose_source(config, f"open_clip's {name}", tags, usual)
        visual = _build(name, source, config)
        preprocessing = open_clip.get_pretrained_cfg(name, source.tag or usual or "")

        size = _pair(config.image_size) if config.image_size else self.own_size(config)
        if config.spatial:
            _leave_out_pooling(visual)
        tokens = _token_map if config.spatial else _embedding
        rows, columns, out_dim = probe(visual, tokens, size, f"open_clip's {name}")
        if not config.freeze:
            freeze_unused(visual, tokens, size)
        super().__init__(
            config,
            out_dim=out_dim,
            mean=preprocessing.get("mean", OPENAI_DATASET_MEAN),
            std=preprocessing.get("std", OPENAI_DATASET_STD),
            image_size=size,
        )
        self.visual = visual
        self._tokens = tokens
        self._spatial = bool(config.spatial)
        self._grid = (rows, columns)  # of the one size that all images are resized to

    def learning_parts(self) -> Sequence[nn.Module | nn.Parameter]:
        if not _is_plain(self.visual):
            return super().learning_parts()
        blocks = self.visual.transformer.resblocks
        if self.train_last > len(blocks):
            raise UserError(f"encoder.train_last is {self.train_last}, the ViT has {len(blocks)} blocks")
        after = (self.visual.ln_post, self.visual.proj)
        return [*blocks[-self.train_last :], *(part for part in after if part is not None)]

    def trunk_features(self, images: Tensor) -> Tensor:
        if not self.train_last:
            return super().trunk_features(images)
        visual = self.visual
        return _through(visual.transformer.resblocks[: -self.train_last], visual._embeds(images))[:, None]

    def trunk_shape(self, height: int, width: int) -> tuple[int, int, int]:
        if not self.train_last:
            return super().trunk_shape(height, width)
        rows, columns = self.visual.grid_size
        return 1, 1 + rows * columns, self.visual.transformer.width

    def head(self, features: Tensor) -> Tensor:
        if not self.train_last:
            return features
        visual = self.visual
        pooled, tokens = visual._pool(_through(visual.transformer.resblocks[-self.train_last :], features[:, 0]))
        if not self._spatial:
            return pooled[:, None, None] if visual.proj is None else (pooled @ visual.proj)[:, None, None]
        tokens = visual.ln_post(tokens) if visual.final_ln_after_pool else tokens
        return tokens.unflatten(1, visual.grid_size)

    @classmethod
    def own_size(cls, config: EncoderConfig) -> tuple[int, int]:
        name = known_model(config.model_name or _DEFAULT)
        return _pair(open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224))

    def features(self, images: Tensor) -> Tensor:
        return self._tokens(self.visual, images).flatten(1, 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return self._grid


def _embedding(visual: nn.Module, images: Tensor) -> Tensor:
    """(N, 1, 1, D)"""
    return visual(images)[:, None, None]


def _token_map(visual: Any, images: Tensor) -> Tensor:
    """(N, rows, columns, C) of a tower without pooling."""
    if isinstance(visual, TimmModel):
        return token_map(visual.trunk, images)
    if isinstance(visual, ModifiedResNet):
        return visual(images).permute(0, 2, 3, 1)
    _, tokens = visual(images)
    if visual.final_ln_after_pool:
        tokens = visual.ln_post(tokens)
    return tokens.unflatten(1, visual.grid_size)


def _leave_out_pooling(visual: Any) -> None:
    """Remove a tower's pooling, so that it returns the tokens of its spatial positions."""
    if isinstance(visual, TimmModel):
        visual.head = nn.Identity()
    elif isinstance(visual, ModifiedResNet):
        visual.attnpool = nn.Identity()
    else:
        visual.output_tokens = True
        visual.proj = None
        if visual.attn_pool is not None:  # CoCa: its last norm follows the attention pooling
            visual.attn_pool, visual.ln_post, visual.pool_type = None, nn.Identity(), "tok"
            visual.final_ln_after_pool = False


def known_model(name: str) -> str:
    """The name of a model as open_clip has it.

    Raises:
        UserError: if there is none, with the nearest ones.
    """
    known = open_clip.list_models()
    clean = name.replace("/", "-")  # OpenAI writes ViT-B/32
    if clean not in known:
        raise UserError(f"open_clip has no model '{name}'; {near_names(clean, known)}")
    return clean


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _build(name: str, source: WeightsSource, config: EncoderConfig) -> Any:
    """Build the image tower for `encoder.image_size` and load its weights."""
    settings = open_clip.get_model_config(name)
    vision = CLIPVisionCfg(**settings["vision_cfg"])
    vision.timm_model_pretrained = False
    own_size = _pair(vision.image_size)
    size = _pair(config.image_size) if config.image_size else own_size
    is_resnet = isinstance(vision.layers, (list, tuple))
    if is_resnet and size != own_size and not config.spatial:
        raise UserError(
            f"encoder.image_size of {name} is {list(own_size)}, not {list(size)}, since its pooling is made "
            "for that: leave it at null, or set encoder.spatial to true"
        )
    if not is_resnet:
        vision.image_size = size
    tag_cfg = open_clip.get_pretrained_cfg(name, source.tag or "")
    quick_gelu = bool(settings.get("quick_gelu") or tag_cfg.get("quick_gelu"))
    try:
        visual = _build_vision_tower(settings["embed_dim"], vision, quick_gelu)
    except AssertionError as error:
        raise UserError(f"open_clip's {name} cannot be made for encoder.image_size {list(size)}: {error}") from None
    if isinstance(visual, VisionTransformer):
        visual.output_tokens = False
        _put_tokens_first(visual.transformer)
    if not config.weights_from_checkpoint:
        _load(visual, name, source, quick_gelu)
    if size != own_size and isinstance(visual, TimmModel) and hasattr(visual.trunk, "set_input_size"):
        visual.trunk.set_input_size(img_size=size)
    return visual


def _put_tokens_first(transformer: Any) -> None:
    """Let a transformer work on (tokens, images, width).

    `torch.nn.MultiheadAttention` turns (images, tokens, width) into that by a view, which is not contiguous, and the
    product of such a view with frozen weights is computed with a copy of the weights for each token: in
    half precision on a CPU, two images took twelve times as long.
    """
    blocks = getattr(transformer, "resblocks", ())
    if all(type(block) is ResidualAttentionBlock for block in blocks):
        transformer.batch_first = False
        for block in blocks:
            block.attn.batch_first = False


def _is_plain(visual: nn.Module) -> bool:
    """Whether it is CLIP's own ViT: a class token and patches through blocks, then a pooling without weights."""
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
        return False
    return all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)


def _through(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """Tokens (N, L, D) through blocks of `_put_tokens_first`."""
    x = tokens.transpose(0, 1)
    for block in blocks:
        x = block(x)
    return x.transpose(0, 1)


def _load(visual: nn.Module, name: str, source: WeightsSource, quick_gelu: bool) -> None:
    """Load the weights of the source, if any, into an image tower."""
    if source.tag is not None:
        cfg = open_clip.get_pretrained_cfg(name, source.tag)
        other = _other_activation(name, False) if quick_gelu else None
        advice = f" with encoder.model_name: {other} (the activation of these weights)" if other else ""
        with download(f"CLIP weights '{source.tag}' of {name}", hub=bool(cfg.get("hf_hub")), advice=advice):
            path = Path(open_clip.download_pretrained(cfg))
        state = read_state_dict(path)
    elif source.file is not None:
        path = source.file
        state = read_state_dict(path)
        if isinstance(visual, VisionTransformer):
            _check_activation(path, state, name, quick_gelu)
    else:
        return
    tower = SimpleNamespace(visual=visual)
    try:
        state = strip_prefix(convert_state_dict(tower, state), visual.state_dict())
        state = {f"visual.{key}": value for key, value in state.items()}
        resize_pos_embed(state, tower)
    except (LookupError, RuntimeError) as error:
        raise UserError(f"{path} does not fit open_clip's {name}: {error}") from error
    state = {key.removeprefix("visual."): value for key, value in state.items()}
    load_all(visual, state, path, f"open_clip's {name}")


def _check_activation(path: Path, state: Collection[str], name: str, quick_gelu: bool) -> None:
    """Compare the tower's activation with the one in training: a wrong one works, but worse.

    OpenAI's own weights are known by their extra entries, files of the model hub by the config beside them.

    Raises:
        UserError: if they differ.
    """
    other = _other_activation(name, quick_gelu)
    trained_with = _activation_beside(path)
    if set(state) >= _OPENAI_EXTRAS:
        trained_with = True
    if trained_with is not None and trained_with != quick_gelu:
        words = "with" if trained_with else "without"
        raise UserError(
            f"the weights in {path} were trained {words} QuickGELU: set encoder.model_name to "
            f"{other or 'a model with the same'}"
        )
    if trained_with is None and other is not None:
        activation, opposite = ("QuickGELU", "GELU") if quick_gelu else ("GELU", "QuickGELU")
        print(f"CLIP weights {path}: taken as trained with {activation} (with {opposite}: {other})", flush=True)


def _activation_beside(path: Path) -> bool | None:
    """Whether open_clip_config.json beside a file says QuickGELU; None: there is none."""
    try:
        settings = json.loads((path.parent / "open_clip_config.json").read_text("utf-8"))
        return bool(settings["model_cfg"].get("quick_gelu", False))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _other_activation(name: str, quick_gelu: bool) -> str | None:
    """The name of the same model with the other activation, if open_clip has one."""
    other = name.removesuffix("-quickgelu") if quick_gelu else f"{name}-quickgelu"
    return other if other != name and other in open_clip.list_models() else None
