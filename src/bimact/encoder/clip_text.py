"""CLIP's text tower (Radford et al. 2021) by open_clip: the embeddings of a policy's tasks, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg, _build_text_tower
from torch import Tensor
from torch.nn import functional as F

from bimact.config import EncoderConfig
from bimact.encoder.clip_vit import known_model
from bimact.encoder.weights import choose_source, download, load_all, read_state_dict, strip_prefix
from bimact.errors import UserError

_SETTING = "task_text_pretrained"
_OTHERS = ("visual.", "logit_scale", "logit_bias")  # of a whole model


@torch.no_grad()
def embed_texts(model_name: str, pretrained: Any, texts: Sequence[str]) -> Tensor:
    """Embed texts by the frozen text tower of a CLIP model.

    Args:
        model_name: of open_clip.
        pretrained: as `encoder.pretrained`; null: random weights, always the same.
        texts: N.

    Returns:
        (N, E) float32, each of the length √E.

    Raises:
        UserError: if there is no such model, or its weights cannot be had.
    """
    name = known_model(model_name)
    settings = open_clip.get_model_config(name)
    text = CLIPTextCfg(**settings["text_cfg"])
    if text.hf_model_name:
        raise UserError(f"task_text_model: the text tower of {name} is not CLIP's own: take another such as ViT-B-32")
    tags = open_clip.list_pretrained_tags_by_model(name)
    usual = "openai" if "openai" in tags else next(iter(tags), None)
    try:
        source = choose_source(EncoderConfig(pretrained=pretrained), f"open_clip's {name}", tags, usual)
        tag = open_clip.get_pretrained_cfg(name, source.tag or "")
        quick_gelu = bool(settings.get("quick_gelu") or tag.get("quick_gelu"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tower = _build_text_tower(settings["embed_dim"], text, quick_gelu)
        path = source.file
        if source.tag is not None:
            with download(f"CLIP weights '{source.tag}' of {name}", hub=bool(tag.get("hf_hub"))):
                path = Path(open_clip.download_pretrained(tag))
        if path is not None:
            state = {key: value for key, value in read_state_dict(path).items() if not key.startswith(_OTHERS)}
            load_all(tower, strip_prefix(state, tower.state_dict()), path, f"the text tower of open_clip's {name}")
    except UserError as error:  # the sentences of the image encoder name its setting
        raise UserError(
            f"task_conditioning text: {str(error).replace('encoder.pretrained', _SETTING)}, or task_conditioning: id"
        ) from error
    tokens = open_clip.get_tokenizer(name)(list(texts))
    embedded: Tensor = tower.eval()(tokens).float()
    return F.normalize(embedded, dim=-1) * embedded.shape[1] ** 0.5
