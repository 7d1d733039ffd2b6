"""A policy made ready to act gives the chunks of the policy itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import tiny_config

from bimact.policy.act import ActPolicy, Observation
from bimact.policy.acting import Actor


def make_policy(**changes: Any) -> ActPolicy:
    torch.manual_seed(0)
    return ActPolicy(tiny_config(cameras=["top"], state_dim=6, action_dim=6, **changes)).eval()


def observations(policy: ActPolicy, steps: int) -> list[Observation]:
    draw = torch.Generator().manual_seed(1)
    context = policy.config.temporal_context
    images = torch.randint(0, 256, (2, steps + context, 3, 40, 56), dtype=torch.uint8, generator=draw)
    states = torch.randn(2, steps + context, 6, generator=draw)
    return [{"image_top": images[:, t : t + context], "state": states[:, t : t + context]} for t in range(steps)]


@pytest.mark.parametrize("encoder", [{}, {"name": "pri3d", "model_name": "resnet18"}])
@torch.inference_mode()
def test_chunks_are_the_policys(encoder: dict[str, Any]) -> None:
    policy = make_policy(temporal_context=3)
    policy = make_policy(temporal_context=3, encoder={**vars(policy.config.encoder), **encoder})
    actor = Actor(policy)
    for obs in observations(policy, 5):
        torch.testing.assert_close(actor.chunk(obs, new=1), policy(obs)[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_half_precision_is_autocast() -> None:
    policy = make_policy()
    actor = Actor(policy, torch.bfloat16)
    for obs in observations(policy, 3):
        with torch.autocast("cpu", torch.bfloat16):
            expected = policy(obs)[0]
        chunk = actor.chunk(obs, new=1)
        assert chunk.dtype == torch.float32
        # The norms are rounded inside of the convolutions' weights instead of after them.
        assert (chunk - expected).abs().max() < 0.03 * expected.std()


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.inference_mode()
def test_what_queries_find_in_each_other_is_computed_once(pre_norm: bool) -> None:
    policy = make_policy(pre_norm=pre_norm, num_decoder_layers=2)
    torch.nn.init.normal_(policy.decoder.layers[0].self_attn.in_proj_bias)  # or they would find nothing
    actor = Actor(policy)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for layer in actor._policy.decoder.layers:
        layer.self_attn.register_forward_hook(count)
    for obs in observations(policy, 3):
        torch.testing.assert_close(actor.chunk(obs, new=1), policy(obs)[0], atol=1e-4, rtol=1e-4)
    assert calls == 3, "of two layers one looks at its queries in each call"


def test_the_policy_stays_as_it_is() -> None:
    policy = make_policy()
    before = copy.deepcopy(policy.state_dict())
    Actor(policy, torch.bfloat16)
    after = policy.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any(parameter.requires_grad for parameter in policy.parameters())


def test_a_new_episode_forgets_the_last_ones_frames() -> None:
    policy = make_policy(temporal_context=3)
    actor = Actor(policy)
    first, other = observations(policy, 2)
    expected = actor.chunk(first, new=3)
    actor.chunk({name: value.flip(1) for name, value in other.items()}, new=1)
    actor.reset()
    torch.testing.assert_close(actor.chunk(first, new=1), expected)
