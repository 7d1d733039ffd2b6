"""Tokens that are kept from step to step give the chunks that all images would have given."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config

from bimact.policy.act import ActPolicy, Observation
from bimact.policy.image_memory import ImageMemory

FRAMES, CONTEXT = 30, 4


@pytest.fixture
def policy() -> ActPolicy:
    torch.manual_seed(0)
    config = tiny_config(temporal_context=CONTEXT, cameras=["left", "right"], state_dim=6, action_dim=6)
    return ActPolicy(config).eval()


@pytest.fixture
def episode() -> Observation:
    """All frames of two rollouts."""
    draw = torch.Generator().manual_seed(1)
    images = {
        f"image_{camera}": torch.randint(0, 256, (2, FRAMES, 3, *size), dtype=torch.uint8, generator=draw)
        for camera, size in (("left", (16, 24)), ("right", (12, 20)))
    }
    return {**images, "state": torch.randn(2, FRAMES, 6, generator=draw)}


def seen_at(episode: Observation, step: int) -> Observation:
    """The newest frames at a step; before the first one it is repeated."""
    steps = torch.arange(step + 1 - CONTEXT, step + 1).clamp(min=0)
    return {name: values[:, steps] for name, values in episode.items()}


@pytest.mark.parametrize("stride", [1, 2, CONTEXT, CONTEXT + 3])
@torch.inference_mode()
def test_chunks_are_those_of_all_images(policy: ActPolicy, episode: Observation, stride: int) -> None:
    memory = ImageMemory(policy)
    for start in (0, 3):  # two episodes
        memory.reset()
        for step in range(start, FRAMES, stride):
            obs = seen_at(episode, step)
            torch.testing.assert_close(policy(memory.encoded(obs, new=stride))[0], policy(obs)[0])


@torch.inference_mode()
def test_each_frame_is_encoded_once(policy: ActPolicy, episode: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    encode = policy.encode_images
    monkeypatch.setattr(policy, "encode_images", lambda images: counts.append(images[0].shape[1]) or encode(images))
    memory = ImageMemory(policy)
    for step in range(5):
        memory.encoded(seen_at(episode, step), new=1)
    assert counts == [CONTEXT, 1, 1, 1, 1]


def test_without_cameras_there_is_nothing_to_keep() -> None:
    policy = ActPolicy(tiny_config(cameras=[], state_dim=6, action_dim=6)).eval()
    state = torch.zeros(1, 2, 6)
    assert ImageMemory(policy).encoded({"state": state}, new=1).keys() == {"state"}
