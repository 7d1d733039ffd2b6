"""The policy: what it looks at, what it returns, its losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from bimact.config import Config, to_config
from bimact.data.normalize import Statistics
from bimact.errors import UserError
from bimact.policy.act import ActOutput, ActPolicy, act_losses, build_act_policy

TINY: dict[str, Any] = {
    "state_dim": 5,
    "action_dim": 4,
    "cameras": ["left", "right"],
    "temporal_context": 2,
    "chunk_size": 6,
    "hidden_dim": 16,
    "nheads": 2,
    "dim_feedforward": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "n_vae_encoder_layers": 1,
    "latent_dim": 3,
    "dropout": 0.0,
    "encoder": {"name": "conv", "pretrained": None, "freeze": False, "fuse": "tokens", "channels": [8, 8]},
}


def tiny(**changes: Any) -> ActPolicy:
    torch.manual_seed(0)
    encoder = {**TINY["encoder"], **changes.pop("encoder", {})}
    return build_act_policy({**TINY, **changes, "encoder": encoder})


def batch(size: int = 3, seed: int = 0, height: int = 24) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    obs = {
        f"image_{camera}": torch.randint(0, 256, (size, 2, 3, height, 32), dtype=torch.uint8, generator=generator)
        for camera in ("left", "right")
    }
    obs["state"] = torch.randn(size, 2, 5, generator=generator)
    obs["action_is_pad"] = torch.arange(6).expand(size, -1) >= torch.tensor([[6], [3], [1]])[:size]
    return obs, torch.randn(size, 6, 4, generator=generator)


@pytest.mark.parametrize("fuse", ["mean", "concat_mlp", "gated", "tokens"])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("use_vae", [False, True])
def test_shapes_and_gradients(fuse: str, pre_norm: bool, use_vae: bool) -> None:
    policy = tiny(pre_norm=pre_norm, use_vae=use_vae, encoder={"fuse": fuse}).train()
    obs, actions = batch()
    chunk, output = policy(obs, actions)
    assert chunk.shape == actions.shape
    act_losses(output, actions, obs["action_is_pad"], policy.config).total.backward()
    unused = [name for name, p in policy.named_parameters() if p.grad is None]
    assert unused == []


def test_evaluation_never_looks_at_the_actions() -> None:
    policy = tiny().eval()
    obs, actions = batch()
    with torch.no_grad():
        alone, output = policy(obs)
        shown, _ = policy(obs, actions)
        other, _ = policy({**obs, "action_is_pad": ~obs["action_is_pad"]}, actions * 100)
    assert torch.equal(alone, shown)
    assert torch.equal(alone, other)
    assert output.mu is None


def test_training_without_actions_is_refused() -> None:
    with pytest.raises(ValueError, match="demonstrated actions"):
        tiny().train()(batch()[0])


def test_posterior_ignores_padding() -> None:
    policy = tiny().train()
    obs, actions = batch()
    changed = torch.where(obs["action_is_pad"][..., None], actions + 7, actions)
    _, one = policy(obs, actions)
    _, two = policy(obs, changed)
    torch.testing.assert_close(one.mu, two.mu)
    torch.testing.assert_close(one.log_sigma2, two.log_sigma2)


def test_chunk_is_in_the_robots_units() -> None:
    policy = tiny().eval()
    obs, _ = batch()
    with torch.no_grad():
        before, output = policy(obs)
        torch.testing.assert_close(before, output.normalized_actions)
        mean, std = torch.arange(4.0), torch.tensor([1.0, 2.0, 3.0, 4.0])
        policy.action_normalizer.fit(Statistics(mean.numpy(), std.numpy(), mean.numpy(), mean.numpy()))
        after, _ = policy(obs)
    torch.testing.assert_close(after, before * std + mean)


def test_relative_actions_are_absolute_outside() -> None:
    policy = tiny(action_mode="relative", relative_to=[4, -1, 0, 1])
    obs, actions = batch()
    assert policy.relative_normalizer is not None
    policy.relative_normalizer.mean.copy_(torch.randn(6, 4))
    policy.relative_normalizer.std.copy_(torch.rand(6, 4) + 0.5)
    expected = actions.clone()
    for sample in range(3):
        for place, to in enumerate((4, -1, 0, 1)):
            if to >= 0:
                expected[sample, :, place] -= obs["state"][sample, -1, to]
    expected = (expected - policy.relative_normalizer.mean) / policy.relative_normalizer.std
    torch.testing.assert_close(policy.normalized(actions, obs), expected)
    torch.testing.assert_close(policy._in_units(policy.normalized(actions, obs), obs), actions)
    # A state that was changed for training leaves the actions where they are.
    changed = {**obs, "state": obs["state"] + 1, "reference": obs["state"][:, -1]}
    torch.testing.assert_close(policy.normalized(actions, changed), expected)
    with torch.no_grad():
        chunk, output = policy.eval()(obs)
    torch.testing.assert_close(policy.normalized(chunk, obs), output.normalized_actions)


@pytest.mark.parametrize("mode", ["absolute", "relative"])
def test_given_actions_begin_the_chunk_and_the_rest_depends_on_them(mode: str) -> None:
    relative = {"action_mode": mode, "relative_to": [0, 1, -1, 2]} if mode == "relative" else {}
    policy = tiny(max_delay=3, **relative).eval()
    obs, actions = batch()
    plain, _ = policy(obs)
    given = {**obs, "given_actions": actions[:, :3], "given_steps": torch.tensor([0, 2, 3])}
    chunk, output = policy(given)
    for row, steps in enumerate((0, 2, 3)):
        torch.testing.assert_close(chunk[row, :steps], actions[row, :steps], rtol=0, atol=0)
        assert torch.equal(chunk[row], plain[row]) == (steps == 0)
        assert output.is_given is not None and output.is_given[row].tolist() == [step < steps for step in range(6)]
    others = given["given_actions"].clone()
    others[1, 2] += 5  # not given
    torch.testing.assert_close(policy({**given, "given_actions": others})[0], chunk, rtol=0, atol=0)
    others[1, 1] += 1
    changed = policy({**given, "given_actions": others})[0]
    assert not torch.equal(changed[1, 2:], chunk[1, 2:]) and torch.equal(changed[2], chunk[2])


def test_relative_actions_need_to_know_what_they_are_relative_to() -> None:
    with pytest.raises(UserError, match="relative_to"):
        tiny(action_mode="relative")


def test_each_step_and_camera_counts() -> None:
    policy = tiny().eval()
    obs, _ = batch()
    with torch.no_grad():
        reference, _ = policy(obs)
        for name in ("image_left", "image_right", "state"):
            for step in range(2):
                changed = {key: value.clone() for key, value in obs.items()}
                changed[name][:, step] = changed[name][:, step] // 2 + 1
                assert not torch.allclose(policy(changed)[0], reference), (name, step)


def test_a_row_does_not_depend_on_the_others() -> None:
    policy = tiny().eval()
    obs, _ = batch(3)
    with torch.no_grad():
        together, _ = policy(obs)
        alone, _ = policy({name: value[1:2] for name, value in obs.items()})
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_missing_camera_and_uneven_sizes_are_explained() -> None:
    obs, _ = batch()
    policy = tiny(encoder={"fuse": "mean"}).eval()
    with pytest.raises(UserError, match="'image_left'"):
        policy({name: value for name, value in obs.items() if name != "image_left"})
    obs["image_right"] = obs["image_right"][..., :16, :]
    with pytest.raises(UserError, match="different sizes"):
        policy(obs)
    assert tiny().eval()(obs)[0].shape == (3, 6, 4)  # tokens kept apart need not match


def test_config_without_sizes_is_explained() -> None:
    with pytest.raises(UserError, match="state_dim, action_dim and cameras"):
        build_act_policy({})


def test_config_from_omegaconf() -> None:
    assert build_act_policy(OmegaConf.create(TINY)).config == to_config(TINY)


def _reference_losses(predicted: torch.Tensor, target: torch.Tensor, is_pad: torch.Tensor, loss: str) -> float:
    total, count = 0.0, 0
    for b in range(len(predicted)):
        for step in range(predicted.shape[1]):
            if is_pad[b, step]:
                continue
            for joint in range(predicted.shape[2]):
                error = abs(float(predicted[b, step, joint] - target[b, step, joint]))
                total += error if loss == "l1" else error**2
                count += 1
    return total / count


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_losses_against_loops(loss: str) -> None:
    obs, actions = batch()
    mu, log_sigma2 = torch.randn(3, 3), torch.randn(3, 3)
    predicted = torch.randn_like(actions)
    config = Config(action_loss=loss, kl_weight=2.5)
    losses = act_losses(ActOutput(predicted, mu, log_sigma2), actions, obs["action_is_pad"], config)
    expected = _reference_losses(predicted, actions, obs["action_is_pad"], loss)
    assert losses.action.item() == pytest.approx(expected, rel=1e-5)
    kl = 0.0
    for b in range(3):
        for z in range(3):
            m, s2 = float(mu[b, z]), math.exp(float(log_sigma2[b, z]))
            kl += -0.5 * (1 + math.log(s2) - m * m - s2) / 3
    assert losses.kl.item() == pytest.approx(kl, rel=1e-5)
    assert losses.total.item() == pytest.approx(expected + 2.5 * kl, rel=1e-5)


def test_given_actions_are_no_error_and_the_mean_is_over_all_real_steps() -> None:
    """So that the loss of a batch in parts is that of the whole, whatever was given in each part."""
    _, actions = batch()
    predicted, is_pad = torch.zeros_like(actions), batch()[0]["action_is_pad"]
    is_given = torch.arange(6) < torch.tensor([[2], [0], [1]])
    losses = act_losses(ActOutput(predicted, None, None, is_given), actions, is_pad, Config())
    total = count = 0.0
    for row in range(3):
        for step in range(6):
            if not is_pad[row, step]:
                count += 4
                total += 0 if is_given[row, step] else float(actions[row, step].abs().sum())
    assert float(losses.action) == pytest.approx(total / count)


def test_kl_is_that_of_torch_distributions() -> None:
    mu, log_sigma2 = torch.randn(4, 3), torch.randn(4, 3)
    obs, actions = batch()
    losses = act_losses(ActOutput(actions, mu, log_sigma2), actions, obs["action_is_pad"], Config())
    posterior = torch.distributions.Normal(mu, (log_sigma2 / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(4, 3), torch.ones(4, 3))
    expected = torch.distributions.kl_divergence(posterior, prior).sum(dim=1).mean()
    torch.testing.assert_close(losses.kl, expected)


def test_states_keypoints_and_actions_are_not_rounded_to_bf16() -> None:
    """bf16 has 8 bits: around 3 its numbers are 0.016 apart, and 0.4 pixels at the edge of an image of 224."""
    policy = tiny(encoder={"keypoints": 4}).eval()
    obs, _ = batch()
    finer = {**obs, "state": obs["state"] + 1e-5}
    with torch.no_grad():
        exact = policy(finer)[0] - policy(obs)[0]
        with torch.autocast("cpu", torch.bfloat16):
            seen: dict[str, torch.Tensor] = {}
            for name in ("state_proj", "image_proj", "action_head", "image_encoder.scores"):
                layer = policy.get_submodule(name)
                layer.register_forward_hook(lambda layer, given, made, name=name: seen.update({name: made}))
            chunk, output = policy(obs)
    assert {name: made.dtype for name, made in seen.items()} == dict.fromkeys(seen, torch.float32) and len(seen) == 4
    assert all((made != made.bfloat16()).any() for made in seen.values())
    assert (
        exact.abs().max() > 0 and (chunk != chunk.bfloat16()).any() and output.normalized_actions.dtype == torch.float32
    )
