"""The network is the paper's: LeRobot 0.4.4's ACT gives the same outputs with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bimact.config import to_config
from bimact.interop.lerobot_weights import from_lerobot, to_lerobot
from bimact.policy.act import ActPolicy, act_losses

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "lerobot_act_tiny.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    if not GOLDEN.exists():
        pytest.skip("the golden file is not here")
    with safe_open(GOLDEN, "pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def policy(golden: dict[str, torch.Tensor]) -> ActPolicy:
    policy = ActPolicy(
        to_config(
            {
                "state_dim": 14,
                "action_dim": 14,
                "cameras": ["top"],
                "temporal_context": 1,
                "hidden_dim": 32,
                "nheads": 4,
                "dim_feedforward": 64,
                "num_encoder_layers": 2,
                "num_decoder_layers": 1,
                "n_vae_encoder_layers": 2,
                "chunk_size": 12,
                "latent_dim": 8,
                "dropout": 0.0,
                "encoder": {"name": "pri3d", "pretrained": None, "freeze": False, "fuse": "tokens"},
            }
        )
    )
    weights = {name.removeprefix("weights/"): v for name, v in golden.items() if name.startswith("weights/")}
    result = policy.load_state_dict(from_lerobot(weights), strict=False)
    assert not result.unexpected_keys
    assert all("normalizer" in name or name in ("step_positions", "camera_positions") for name in result.missing_keys)
    # The golden images are normalised floats already.
    policy.image_encoder.preprocess = lambda images: images
    return policy


def _observation(golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "image_top": golden["inputs/observation.images.top"][:, None],
        "state": golden["inputs/observation.state"][:, None],
        "action_is_pad": golden["inputs/action_is_pad"].bool(),
    }


def test_evaluated_chunk(golden: dict[str, torch.Tensor], policy: ActPolicy) -> None:
    with torch.no_grad():
        chunk, _ = policy.eval()(_observation(golden))
    torch.testing.assert_close(chunk, golden["outputs/eval_action_chunk"], atol=1e-5, rtol=0)


def test_training_outputs_and_losses(
    golden: dict[str, torch.Tensor], policy: ActPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randn_like", lambda _: golden["inputs/latent_noise"])
    obs, actions = _observation(golden), golden["inputs/action"]
    with torch.no_grad():
        chunk, output = policy.train()(obs, actions)
    losses = act_losses(output, actions, obs["action_is_pad"], policy.config)
    for ours, theirs in (
        (chunk, "train_action_chunk"),
        (output.mu, "mu"),
        (output.log_sigma2, "log_sigma_x2"),
        (losses.action.view(1), "l1_masked_mean"),
        (losses.kl.view(1), "kl_sum_mean"),
    ):
        torch.testing.assert_close(ours, golden[f"outputs/{theirs}"], atol=1e-5, rtol=0)


def test_names_there_and_back(golden: dict[str, torch.Tensor], policy: ActPolicy) -> None:
    weights = {name.removeprefix("weights/"): v for name, v in golden.items() if name.startswith("weights/")}
    assert policy.posterior is not None
    back = to_lerobot(from_lerobot(weights), policy.posterior.positions)
    assert set(back) == set(weights)
    for name, value in weights.items():
        torch.testing.assert_close(back[name], value, atol=1e-6, rtol=0)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match=r"'model.x' is no parameter of LeRobot's ACT"):
        from_lerobot({"model.x": torch.zeros(1)})
