"""Any backbone of the timm library, with one token per spatial position or one per image."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from bimact.config import EncoderConfig
from bimact.encoder.base import ImageEncoder
from bimact.encoder.weights import (
    WeightsSource,
    choose_source,
    download,
    load_all,
    misfits,
    near_names,
    read_state_dict,
    strip_prefix,
)
from bimact.errors import UserError, in_words

# Raised by networks for an unsupported image size: their own checks, and torch's.
_SIZE_ERRORS = (AssertionError, RuntimeError, ValueError, TypeError, IndexError)
# And while they are built for a size: also by a network without such a setting, or that divides by it.
_BUILD_ERRORS = (*_SIZE_ERRORS, ArithmeticError, LookupError, AttributeError)


class TimmEncoder(ImageEncoder):
    """The network that `encoder.model_name` names, without its classifier.

    Tokens are the positions of its last feature map (`forward_features`; class and register tokens are left
    out), or with `encoder.spatial: false` its pooled features. Images are normalised as the weights need, by
    timm's data config. Networks of a fixed input size have images resized to it, others take them
    unchanged; `encoder.image_size` changes either.

    `encoder.pretrained` is a tag (`a1_in1k`), a path to a file with the network's own or its authors' names,
    `true` (the network's default tag), or `null`. The tag may also be part of the name: `resnet18.a1_in1k`.
    """

    def __init__(self, config: EncoderConfig) -> None:
        name, source = _choose(config)
        network = _build(name, source, config)
        data = resolve_model_data_config(network)
        own_size = (int(data["input_size"][1]), int(data["input_size"][2]))
        is_fixed = bool(network.pretrained_cfg.get("fixed_input_size"))
        probe_size = (config.image_size[0], config.image_size[1]) if config.image_size else own_size

        spatial = config.spatial is not False
        tokens = token_map if spatial else _pooled
        out_dim = probe(network, tokens, probe_size, f"timm's {name}")[-1]
        if not config.freeze:
            freeze_unused(network, tokens, probe_size)
        super().__init__(
            config,
            out_dim=out_dim,
            mean=data["mean"],
            std=data["std"],
            image_size=own_size if is_fixed else None,
        )
        self.network = network
        self.name = name
        self.spatial = spatial
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}

    @classmethod
    def own_size(cls, config: EncoderConfig) -> tuple[int, int] | None:
        cfg = timm.get_pretrained_cfg(_choose(config)[0])
        if cfg is None or not cfg.fixed_input_size:
            return None
        return cfg.input_size[1], cfg.input_size[2]

    def features(self, images: Tensor) -> Tensor:
        return (token_map if self.spatial else _pooled)(self.network, images).flatten(1, 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        if not self.spatial:
            return 1, 1
        if (height, width) not in self._grids:
            rows, columns, _ = probe(self.network, token_map, (height, width), f"timm's {self.name}")
            self._grids[height, width] = (rows, columns)
        return self._grids[height, width]


def token_map(network: Any, images: Tensor) -> Tensor:
    """The last feature map of a timm network as (N, rows, columns, C), without class and register tokens.

    Raises:
        UserError: if the network has no such map.
    """
    features = network.forward_features(images)
    if isinstance(features, Tensor) and features.ndim == 4:
        is_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return features if is_last else features.permute(0, 2, 3, 1)
    if isinstance(features, Tensor) and features.ndim == 3:
        has_class_token = getattr(network, "cls_token", None) is not None
        places = features[:, getattr(network, "num_prefix_tokens", int(has_class_token)) :]
        grid = _grid_of(network, places.shape[1], (images.shape[-2], images.shape[-1]))
        if grid is not None:
            return places.unflatten(1, grid)
    raise UserError(f"the network {type(network).__name__} has no single feature map: set encoder.spatial to false")


def _pooled(network: nn.Module, images: Tensor) -> Tensor:
    """(N, 1, 1, C)"""
    return network(images)[:, None, None]


def _grid_of(network: Any, places: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of a sequence of positions: by the network, or by the image's proportions."""
    if places == 0:
        return None
    dynamic = getattr(getattr(network, "patch_embed", None), "dynamic_feat_size", None)
    if dynamic is not None:
        rows, columns = dynamic(size)
        if rows * columns == places:
            return rows, columns
    height, width = size
    pairs = [(rows, places // rows) for rows in range(1, places + 1) if places % rows == 0]

    def stretch(pair: tuple[int, int]) -> float:
        ratio = (height / pair[0]) / (width / pair[1])  # of a position's height to its width
        return max(ratio, 1 / ratio)

    best = min(pairs, key=stretch)
    return best if stretch(best) < 2 else None


def probe(
    network: nn.Module, tokens: Callable[[Any, Tensor], Tensor], size: tuple[int, int], name: str
) -> tuple[int, int, int]:
    """Rows, columns and channels of the tokens of an image of some height and width, without computing them.

    Raises:
        UserError: if the network does not take images of that size.
    """
    try:
        with torch.no_grad():
            shape = tokens(_meta_twin(network), _meta_image(network, size)).shape
    except _SIZE_ERRORS as error:
        reason = in_words(error)
        raise UserError(
            f"{name} takes no images of {size[0]} × {size[1]} pixels ({reason}): change encoder.image_size"
        ) from error
    return shape[1], shape[2], shape[3]


def freeze_unused(network: nn.Module, tokens: Callable[[Any, Tensor], Tensor], size: tuple[int, int]) -> None:
    """Parameters that the tokens do not depend on (a pooling head's) need no gradient."""
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    twin = _meta_twin(network)
    parameters = [twin.get_parameter(name) for name in names]
    with torch.enable_grad():
        total = tokens(twin, _meta_image(network, size)).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for name, gradient in zip(names, gradients):
        if gradient is None:
            network.get_parameter(name).requires_grad_(False)


def _meta_twin(network: nn.Module) -> nn.Module:
    """A copy on the meta device, in evaluation mode: it computes shapes only, and has its own caches."""
    twins: dict[int, Any] = {}
    for tensor in [*network.parameters(), *network.buffers()]:
        twin = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        twins[id(tensor)] = nn.Parameter(twin, requires_grad=tensor.requires_grad) if is_parameter else twin
    return copy.deepcopy(network, twins).eval()


def _meta_image(network: nn.Module, size: tuple[int, int]) -> Tensor:
    return torch.empty(1, 3, *size, device="meta", dtype=next(network.parameters()).dtype)


def _choose(config: EncoderConfig) -> tuple[str, WeightsSource]:
    """The network's name with its tag, and the source of its weights."""
    if not config.model_name:
        raise UserError("encoder timm needs encoder.model_name, the name of a timm network such as resnet18")
    architecture, _, tag = config.model_name.partition(".")
    if not timm.is_model(architecture):
        names = timm.list_models()
        raise UserError(f"timm has no network '{architecture}'; {near_names(architecture, names)}")
    pairs = [known.partition(".") for known in timm.list_pretrained(f"{architecture}*")]
    tags = [own_tag for known, _, own_tag in pairs if known == architecture]
    if tag and tag not in tags:
        raise UserError(f"timm's {architecture} has no weights '{tag}'; {near_names(tag, tags)}")
    default = timm.get_pretrained_cfg(architecture)
    usual = tag or (default.tag if default is not None else None)
    source = choose_source(config, f"timm's {architecture}", tags, usual if usual in tags else None)
    if tag and source.tag is not None and source.tag != tag:
        raise UserError(
            f"encoder.model_name {config.model_name} and encoder.pretrained {source.tag} name different "
            f"weights: set encoder.model_name to {architecture}, or encoder.pretrained to true"
        )
    tag = source.tag or tag
    return (f"{architecture}.{tag}" if tag else architecture), source


def _build(name: str, source: WeightsSource, config: EncoderConfig) -> Any:
    """Build the network, for `encoder.image_size` if it is for one size, and load its weights."""
    settings: dict[str, Any] = {"num_classes": 0}
    cfg = timm.get_pretrained_cfg(name)
    if config.image_size is not None and cfg is not None and cfg.fixed_input_size:
        settings["img_size"] = tuple(config.image_size)
    try:
        network: Any = timm.create_model(name, **settings)
    except _BUILD_ERRORS:
        # Some networks have no setting for their size, of which some take any: `probe` finds out.
        if settings.pop("img_size", None) is None:
            raise
        network = timm.create_model(name, **settings)
    if config.weights_from_checkpoint:
        return network
    if source.file is not None:
        _load_file(network, source.file, f"timm's {name}")
    elif source.tag is not None:
        with download(f"timm's weights {name}", hub=bool(network.pretrained_cfg.get("hf_hub_id"))):
            network = timm.create_model(name, pretrained=True, **settings)
    return network


def _load_file(network: Any, path: Path, name: str) -> None:
    state = strip_prefix(read_state_dict(path), network.state_dict())
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is not None and misfits(network, state):
        # timm converts the layouts of a network's authors, and position tables of other sizes.
        try:
            state = convert(state, network)
        except _BUILD_ERRORS as error:
            raise UserError(f"{path} does not fit {name} ({in_words(error)})") from error
    load_all(network, state, path, name)
