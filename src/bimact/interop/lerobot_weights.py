"""Names of LeRobot's ACT parameters ↔ ours. The original ACT's network is the same one.

Formats: `lerobot/policies/act/modeling_act.py` of LeRobot 0.4.4 and its predecessors since April 2024 (the position
of latent and state had another name until July 2024); positions of images and sinusoids are not stored.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bimact.interop.renaming import Renaming

_POSITIONS_OF_ACTIONS = "model.vae_encoder_pos_enc"  # sinusoids
_RENAMING = Renaming(
    (
        ("model.backbone.", "image_encoder.backbone."),
        ("model.encoder_img_feat_input_proj.", "image_proj."),
        ("model.encoder_latent_input_proj.", "latent_proj."),
        ("model.encoder_robot_state_input_proj.", "state_proj."),
        ("model.encoder_1d_feature_pos_embed.", "vector_positions."),
        ("model.encoder_robot_and_latent_pos_embed.", "vector_positions."),
        ("model.decoder_pos_embed.", "queries."),
        ("model.action_head.", "action_head."),
        ("model.vae_encoder_cls_embed.weight", "posterior.cls"),
        ("model.vae_encoder_robot_state_input_proj.", "posterior.state_proj."),
        ("model.vae_encoder_action_input_proj.", "posterior.action_proj."),
        ("model.vae_encoder_latent_output_proj.", "posterior.latent_proj."),
        ("model.vae_encoder.", "posterior.encoder."),
        ("model.encoder.", "encoder."),
        ("model.decoder.", "decoder."),
    ),
    left_out=(_POSITIONS_OF_ACTIONS,),
    owner="LeRobot's ACT",
)


def from_lerobot(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LeRobot's state dict → the part of an `ActPolicy`'s that it covers.

    What it does not cover are the normalisation statistics and the positions of steps and cameras, which the
    paper's network does not have and which are zero.

    Raises:
        KeyError: for an unknown name.
    """
    return _RENAMING.to_ours(weights)


def to_lerobot(weights: Mapping[str, Tensor], positions: Tensor | None) -> dict[str, Tensor]:
    """An `ActPolicy`'s state dict → LeRobot's, without the statistics and the positions of steps and cameras.

    Args:
        weights: of the policy.
        positions: (1, 2 + C, D), what the posterior's encoder adds; None without a posterior.
    """
    renamed = _RENAMING.to_theirs(weights)
    return renamed if positions is None else {**renamed, _POSITIONS_OF_ACTIONS: positions}
