"""Runs of bimact as LeRobot policies: the same actions, LeRobot's files, and a sentence where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_policies import ACTION_DIM, STATE_DIM, chunk_of, observation, small_policy
from safetensors.torch import load_file

from bimact.errors import UserError
from bimact.interop.assembly import Converted
from bimact.interop.lerobot_reader import read_lerobot
from bimact.interop.lerobot_writer import refuse_inexpressible, write_lerobot
from bimact.policy.act import ActPolicy


def trained(cameras: tuple[str, ...] = ("top",), **settings: Any) -> ActPolicy:
    """A policy with statistics, and where it has one camera with the positions that a training gives it."""
    policy = small_policy(cameras, **settings)
    draw = torch.Generator().manual_seed(0)
    for normalizer in (policy.state_normalizer, policy.action_normalizer):
        normalizer.mean.normal_(generator=draw)
        normalizer.std.uniform_(0.1, 2, generator=draw)
    if len(cameras) == 1:
        policy.step_positions.data.normal_(generator=draw)
        policy.camera_positions.data.normal_(generator=draw)
    return policy


@pytest.mark.parametrize(
    ("cameras", "settings"),
    [
        (("top",), {}),
        (("top",), {"pre_norm": True, "num_decoder_layers": 3, "encoder": {"model_name": "resnet34"}}),
        (("top", "left_wrist"), {"use_vae": False}),
        (("top",), {"encoder": {"name": "resnet"}}),
        (("top",), {"encoder": {"fuse": "mean", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}}),
    ],
)
def test_predicts_the_same_actions(tmp_path: Path, cameras: tuple[str, ...], settings: dict[str, Any]) -> None:
    policy = trained(cameras, **settings)
    refuse_inexpressible(policy)
    write_lerobot(Converted(policy, "here"), tmp_path)
    back = read_lerobot(tmp_path).policy
    obs = observation(policy)
    torch.testing.assert_close(chunk_of(back, obs), chunk_of(policy, obs), atol=1e-5, rtol=0)
    assert not back.camera_positions.any() and not back.step_positions.any()
    assert back.config.encoder.image_mean == policy.config.encoder.image_mean


def test_positions_of_the_only_camera_count(tmp_path: Path) -> None:
    policy = trained()
    obs = observation(policy)
    before = chunk_of(policy, obs)
    policy.camera_positions.data.zero_()
    assert (chunk_of(policy, obs) - before).abs().max() > 1e-3


def test_files_are_those_that_lerobot_writes(tmp_path: Path) -> None:
    policy = trained(("top", "left"), execute_steps=3)
    write_lerobot(Converted(policy, "here"), tmp_path)
    before, after = (
        f"policy_{name}.safetensors"
        for name in ("preprocessor_step_3_normalizer_processor", "postprocessor_step_0_unnormalizer_processor")
    )
    names = {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"}
    assert {path.name for path in tmp_path.iterdir()} == {*names, before, after}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["type"], config["n_action_steps"], config["pretrained_backbone_weights"]) == ("act", 3, None)
    features = {
        "observation.images.top": {"type": "VISUAL", "shape": [3, 40, 64]},
        "observation.images.left": {"type": "VISUAL", "shape": [3, 40, 64]},
        "observation.state": {"type": "STATE", "shape": [STATE_DIM]},
    }
    assert config["input_features"] == features
    [*_, normalizer] = json.loads((tmp_path / "policy_preprocessor.json").read_text())["steps"]
    assert normalizer["state_file"] == before
    assert normalizer["config"]["features"] == {**features, "action": {"type": "ACTION", "shape": [ACTION_DIM]}}
    tensors = load_file(tmp_path / before)
    assert tensors["observation.images.left.std"].shape == (3, 1, 1)
    assert set(load_file(tmp_path / after)) == {"action.mean", "action.std"}
    assert load_file(tmp_path / "model.safetensors")["model.vae_encoder_pos_enc"].shape == (1, 9, 32)


def test_temporal_ensembling(tmp_path: Path) -> None:
    policy = trained(temporal_ensemble=True, ensemble_coefficient=0.02)
    write_lerobot(Converted(policy, "here"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["n_action_steps"], config["temporal_ensemble_coeff"]) == (1, 0.02)
    assert read_lerobot(tmp_path).policy.config.ensemble_coefficient == 0.02


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "context": ({"temporal_context": 2}, "temporal_context is 2, not 1"),
    "encoder": ({"encoder": {"name": "conv", "channels": [4, 4]}}, "encoder.name is conv, not pri3d or resnet"),
    "fusion": ({"encoder": {"fuse": "concat_mlp"}}, "encoder.fuse is concat_mlp, not tokens"),
    "pooled": ({"encoder": {"spatial": False}}, "encoder.spatial is false"),
    "crop": ({"encoder": {"crop": [0, 0, 0.5, 1]}}, "encoder.crop is set"),
    "resized": ({"encoder": {"image_size": [32, 32]}}, r"encoder.image_size is \[32, 32\], to which"),
    "size": ({"image_size": None}, "size of its images is not known"),
    "all": ({"temporal_context": 2, "image_size": None}, "temporal_context is 2, not 1; the size"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_lerobot_has_no_place_for_is_listed(name: str) -> None:
    settings, sentence = CHANGES[name]
    with pytest.raises(UserError, match=f"this policy cannot become one of LeRobot: .*{sentence}"):
        refuse_inexpressible(small_policy(("top", "left"), **settings))


def test_cameras_that_the_policy_tells_apart_are_refused() -> None:
    policy = small_policy(("top", "left"))
    refuse_inexpressible(policy)
    policy.camera_positions.data[1] += 1e-3
    with pytest.raises(UserError, match="it has learned camera positions"):
        refuse_inexpressible(policy)
    with pytest.raises(UserError, match="it sees no camera"):
        refuse_inexpressible(small_policy(()))
