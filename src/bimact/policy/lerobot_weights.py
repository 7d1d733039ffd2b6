"""Names of LeRobot's ACT parameters ↔ ours. The original ACT's network is the same one.

Formats: `lerobot/policies/act/modeling_act.py` of LeRobot 0.4.4; positions and sinusoids are not stored.
"""

from __future__ import annotations

import re

from torch import Tensor

# (a pattern of LeRobot's name, our name), applied in order; the first that matches counts.
_RULES = (
    (r"model\.backbone\.(.+)", r"image_encoder.backbone.\1"),
    (r"model\.encoder_img_feat_input_proj\.(.+)", r"image_proj.\1"),
    (r"model\.encoder_latent_input_proj\.(.+)", r"latent_proj.\1"),
    (r"model\.encoder_robot_state_input_proj\.(.+)", r"state_proj.\1"),
    (r"model\.encoder_1d_feature_pos_embed\.weight", r"vector_positions.weight"),
    (r"model\.decoder_pos_embed\.weight", r"queries.weight"),
    (r"model\.action_head\.(.+)", r"action_head.\1"),
    (r"model\.vae_encoder_cls_embed\.weight", r"posterior.cls"),
    (r"model\.vae_encoder_robot_state_input_proj\.(.+)", r"posterior.state_proj.\1"),
    (r"model\.vae_encoder_action_input_proj\.(.+)", r"posterior.action_proj.\1"),
    (r"model\.vae_encoder_latent_output_proj\.(.+)", r"posterior.latent_proj.\1"),
    (r"model\.vae_encoder\.(.+)", r"posterior.encoder.\1"),
    (r"model\.(encoder|decoder)\.(.+)", r"\1.\2"),
)
_NOT_STORED_HERE = ("model.vae_encoder_pos_enc",)


def from_lerobot(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """LeRobot's state dict → the part of an `ActPolicy`'s that it covers.

    What it does not cover are the normalisation statistics and the positions of steps and cameras, which the
    paper's network does not have and which are zero.

    Raises:
        KeyError: for a name that no rule knows.
    """
    renamed = {}
    for name, value in weights.items():
        if name in _NOT_STORED_HERE:
            continue
        ours = _our_name(name)
        if ours == "posterior.cls":
            value = value[None]  # (1, D) → (1, 1, D)
        if ours == "image_proj.weight":
            value = value[:, :, 0, 0]  # a 1 × 1 convolution is a linear map of each place
        renamed[ours] = value
    return renamed


def _our_name(name: str) -> str:
    for pattern, ours in _RULES:
        if re.fullmatch(pattern, name):
            renamed = re.sub(pattern, ours, name)
            renamed = renamed.replace(".multihead_attn.", ".cross_attn.")
            return re.sub(r"\.(linear[12])\.", r".feed_forward.\1.", renamed)
    raise KeyError(f"'{name}' is no parameter of LeRobot's ACT")
