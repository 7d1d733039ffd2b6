"""The original ACT's names ↔ ours."""

from __future__ import annotations

import pytest
import torch

from bimact.config import to_config
from bimact.interop.original_act_weights import from_original, to_original
from bimact.policy.act import ActPolicy

ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


def layer(prefix: str, attentions: list[str], norms: int) -> set[str]:
    parts = [f"linear{number}" for number in (1, 2)] + [f"norm{number}" for number in range(1, norms + 1)]
    names = {f"{prefix}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    return names | {f"{prefix}.{attention}.{name}" for attention in attentions for name in ATTENTION}


def linear(*names: str) -> set[str]:
    return {f"model.{name}.{kind}" for name in names for kind in ("weight", "bias")}


# As `policy.state_dict()` of the original lists them, but for the backbone's.
NAMES = {
    *linear("input_proj", "input_proj_robot_state", "encoder_joint_proj", "encoder_action_proj", "latent_proj"),
    *linear("latent_out_proj", "action_head", "transformer.decoder.norm"),
    *(f"model.{name}.weight" for name in ("query_embed", "cls_embed", "additional_pos_embed")),
    *layer("model.encoder.layers.0", ["self_attn"], norms=2),
    *layer("model.transformer.encoder.layers.0", ["self_attn"], norms=2),
    *layer("model.transformer.decoder.layers.0", ["self_attn", "multihead_attn"], norms=3),
}


@pytest.fixture(scope="module")
def policy() -> ActPolicy:
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1, "n_vae_encoder_layers": 1}
    encoder = {"name": "pri3d", "pretrained": None, "freeze": False, "fuse": "tokens"}
    sizes = {"hidden_dim": 16, "nheads": 2, "dim_feedforward": 24, "chunk_size": 5, "temporal_context": 1}
    known = {"state_dim": 3, "action_dim": 2, "cameras": ["top"]}
    return ActPolicy(to_config({**known, **layers, **sizes, "encoder": encoder}))


def test_names_and_shapes_are_the_originals(policy: ActPolicy) -> None:
    theirs = to_original(policy.state_dict())
    backbone = {name for name in theirs if name.startswith("model.backbones.0.0.body.")}
    assert set(theirs) - backbone == NAMES
    assert "model.backbones.0.0.body.layer4.1.bn2.running_var" in backbone and len(backbone) == 100
    assert theirs["model.cls_embed.weight"].shape == (1, 16)
    assert theirs["model.input_proj.weight"].shape == (16, 512, 1, 1)


def test_there_and_back(policy: ActPolicy) -> None:
    own = policy.state_dict()
    theirs = to_original(own)
    theirs["model.is_pad_head.weight"] = theirs["model.pos_table"] = torch.zeros(1)
    theirs |= {name.replace("decoder.layers.0", "decoder.layers.11"): v for name, v in theirs.items()}
    back, unused = from_original(theirs)
    assert unused == 1
    assert set(own) - set(back) == {
        *(f"{kind}_normalizer.{name}" for kind in ("state", "action") for name in ("mean", "std")),
        "step_positions",
        "camera_positions",
    }
    assert all(torch.equal(value, own[name]) for name, value in back.items())


def test_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match=r"'model.x' is no parameter of the original ACT"):
        from_original({"model.x": torch.zeros(1)})
