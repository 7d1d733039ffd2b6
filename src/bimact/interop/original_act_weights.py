"""Names of the original ACT's parameters ↔ ours.

Formats: `detr/models/detr_vae.py` of https://github.com/tonyzhaozh/act, revision 742c753, inside the `ACTPolicy` of
its `policy.py`; ACT++ (https://github.com/MarkFzp/act-plus-plus, revision 26bab07) has the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from bimact.interop.renaming import Renaming

_RENAMING = Renaming(
    (
        ("model.backbones.0.0.body.", "image_encoder.backbone."),
        ("model.input_proj.", "image_proj."),
        ("model.latent_out_proj.", "latent_proj."),
        ("model.input_proj_robot_state.", "state_proj."),
        ("model.additional_pos_embed.", "vector_positions."),
        ("model.query_embed.", "queries."),
        ("model.action_head.", "action_head."),
        ("model.cls_embed.weight", "posterior.cls"),
        ("model.encoder_joint_proj.", "posterior.state_proj."),
        ("model.encoder_action_proj.", "posterior.action_proj."),
        ("model.latent_proj.", "posterior.latent_proj."),
        ("model.encoder.", "posterior.encoder."),
        ("model.transformer.encoder.", "encoder."),
        ("model.transformer.decoder.", "decoder."),
    ),
    # Whether a step is padding is predicted, but nothing looks at it; the table holds sinusoids.
    left_out=("model.is_pad_head.", "model.pos_table"),
    owner="the original ACT",
)
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


def from_original(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The original's state dict → the part of an `ActPolicy`'s that it covers.

    Of its decoder layers the first alone counts: the network takes the first of their stacked outputs
    (`hs = self.transformer(…)[0]`), which the decoder's last norm has gone over. The others are left out.

    Returns:
        the weights, and how many decoder layers were left out.

    Raises:
        KeyError: for an unknown name.
    """
    renamed, unused = {}, set()
    for name, value in _RENAMING.to_ours(weights).items():
        layer = _LAYER.match(name)
        if layer and layer[1] != "0":
            unused.add(layer[1])
        else:
            renamed[name] = value
    return renamed, len(unused)


def to_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An `ActPolicy`'s state dict → the original's, as far as that has names for it."""
    return _RENAMING.to_theirs(weights)
