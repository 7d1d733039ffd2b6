"""Acting gives what the network itself predicts, step by step, and refuses what the policy was not trained on."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config

from bimact.errors import UserError
from bimact.policy.act import ActPolicy, Observation
from bimact.policy.inference import Policy
from bimact.policy.metadata import Execution, Interface


def make_policy(**changes: Any) -> ActPolicy:
    torch.manual_seed(0)
    return ActPolicy(tiny_config(cameras=["top"], state_dim=6, action_dim=6, **changes)).eval()


def chunks(acting: Policy, obs: Observation, new: int) -> torch.Tensor:
    """As tensors, images (N, T, 3, H, W)."""
    arrays = {name: (x.permute(0, 1, 3, 4, 2) if name.startswith("image_") else x).numpy() for name, x in obs.items()}
    return torch.from_numpy(acting.chunks(arrays, new=new))


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
    acting = Policy(policy)
    for obs in observations(policy, 5):
        torch.testing.assert_close(chunks(acting, obs, new=1), policy(obs)[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_half_precision_is_autocast() -> None:
    policy = make_policy()
    acting = Policy(policy, dtype=torch.bfloat16)
    for obs in observations(policy, 3):
        with torch.autocast("cpu", torch.bfloat16):
            expected = policy(obs)[0]
        chunk = chunks(acting, obs, new=1)
        assert chunk.dtype == torch.float32
        # The norms are rounded inside of the convolutions' weights instead of after them.
        assert (chunk - expected).abs().max() < 0.03 * expected.std()


def test_the_policy_stays_as_it_is() -> None:
    policy = make_policy()
    before = copy.deepcopy(policy.state_dict())
    Policy(policy, dtype=torch.bfloat16)
    after = policy.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any(parameter.requires_grad for parameter in policy.parameters())


def test_a_new_episode_forgets_the_last_ones_frames() -> None:
    policy = make_policy(temporal_context=3)
    acting = Policy(policy)
    first, other = observations(policy, 2)
    expected = chunks(acting, first, new=3)
    chunks(acting, {name: value.flip(1) for name, value in other.items()}, new=1)
    acting.reset()
    torch.testing.assert_close(chunks(acting, first, new=1), expected)


FRAMES, CONTEXT = 30, 4


@pytest.fixture
def network() -> ActPolicy:
    torch.manual_seed(0)
    config = tiny_config(temporal_context=CONTEXT, cameras=["left", "right"], state_dim=6, action_dim=6, chunk_size=8)
    return ActPolicy(config).eval()


@pytest.fixture
def episode() -> Observation:
    """All frames of two environments."""
    draw = torch.Generator().manual_seed(1)
    images = {
        f"image_{camera}": torch.randint(0, 256, (2, FRAMES, 3, *size), dtype=torch.uint8, generator=draw)
        for camera, size in (("left", (16, 24)), ("right", (12, 20)))
    }
    return {**images, "state": torch.randn(2, FRAMES, 6, generator=draw)}


def seen_at(episode: Observation, step: int, first: int = 0) -> Observation:
    """The newest frames at a step; before the episode's first one it is repeated."""
    steps = torch.arange(step + 1 - CONTEXT, step + 1).clamp(min=first)
    return {name: values[:, steps] for name, values in episode.items()}


def at_step(episode: Observation, step: int, environment: int | None = None) -> dict[str, Any]:
    which = slice(None) if environment is None else environment
    return {name: values[which, step].numpy() for name, values in episode.items()}


@pytest.mark.parametrize("stride", [1, 2, CONTEXT, CONTEXT + 3])
@torch.inference_mode()
def test_kept_tokens_give_the_chunks_of_all_images(network: ActPolicy, episode: Observation, stride: int) -> None:
    policy = Policy(network)
    for start in (0, 3):  # two episodes
        policy.reset()
        for step in range(start, FRAMES, stride):
            obs = seen_at(episode, step)
            torch.testing.assert_close(chunks(policy, obs, new=stride), network(obs)[0])


@torch.inference_mode()
def test_each_frame_is_encoded_once(network: ActPolicy, episode: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, counts = Policy(network), []
    encode = policy._network.encode_images
    monkeypatch.setattr(
        policy._network,
        "encode_images",
        lambda images: counts.extend(image.shape[1] for image in list(images.values())[:1]) or encode(images),
    )
    for step in range(5):
        policy.predict_chunk(at_step(episode, step))
    assert counts == [CONTEXT, 1, 1, 1, 1]


@torch.inference_mode()
def test_without_cameras_the_state_alone_decides() -> None:
    torch.manual_seed(0)
    network = ActPolicy(tiny_config(cameras=[], state_dim=6, action_dim=6)).eval()
    chunk = Policy(network).predict_chunk({"state": np.ones(6)})
    torch.testing.assert_close(torch.from_numpy(chunk)[None], network({"state": torch.ones(1, 2, 6)})[0])


@pytest.mark.parametrize("steps", [1, 3, 8])
@torch.inference_mode()
def test_chunks_are_executed_step_by_step(network: ActPolicy, episode: Observation, steps: int) -> None:
    """Against the slow way: a whole history through the network whenever a chunk is used up."""
    policy = Policy(network, Execution(steps))
    for first in (0, 5):
        policy.reset()
        for step in range(first, FRAMES):
            if (step - first) % steps == 0:
                chunk = network(seen_at(episode, step, first))[0]
            action = policy.act(at_step(episode, step))
            torch.testing.assert_close(torch.from_numpy(action), chunk[:, (step - first) % steps])


@torch.inference_mode()
def test_temporal_ensembling_is_the_papers(network: ActPolicy, episode: Observation) -> None:
    policy = Policy(network, Execution(1, True, ensemble_coefficient=0.1))
    chunks = []
    for step in range(FRAMES):
        chunks.append(network(seen_at(episode, step))[0])
        said = [chunks[at][:, step - at] for at in range(max(0, step - 7), step + 1)]
        shares = [math.exp(-0.1 * age) for age in range(len(said))]
        expected = sum(share * one for share, one in zip(shares, said)) / sum(shares)
        torch.testing.assert_close(torch.from_numpy(policy.act(at_step(episode, step))), expected)


@torch.inference_mode()
def test_environments_side_by_side_and_rollouts_act_alike(network: ActPolicy, episode: Observation) -> None:
    execution = Execution(3)
    both, alone, chunked = (Policy(network, execution) for _ in range(3))
    for step in range(12):
        together = both.act(at_step(episode, step))
        one = alone.act(at_step(episode, step, environment=1))
        assert (together.shape, one.shape, one.dtype) == ((2, 6), (6,), np.float32)
        np.testing.assert_allclose(together[1], one, atol=1e-5)
        if step % 3 == 0:
            histories = {
                name: (value.permute(0, 1, 3, 4, 2) if name.startswith("image_") else value).numpy()
                for name, value in seen_at(episode, step).items()
            }
            planned = chunked.next_actions(histories)
        np.testing.assert_array_equal(planned[:, step % 3], together)


def test_images_may_have_channels_first_or_last_in_numpy_or_torch(network: ActPolicy, episode: Observation) -> None:
    first = at_step(episode, 0, environment=0)
    last = {name: np.moveaxis(x, 0, -1) if x.ndim == 3 else x.tolist() for name, x in first.items()}
    tensors = {name: torch.as_tensor(x) for name, x in first.items()}
    chunks = [Policy(network).predict_chunk(obs) for obs in (first, last, tensors)]
    np.testing.assert_array_equal(chunks[0], chunks[1])
    np.testing.assert_array_equal(chunks[0], chunks[2])


def test_sessions_share_weights_and_nothing_else(network: ActPolicy, episode: Observation) -> None:
    policy = Policy(network, Execution(2))
    expected = [policy.act(at_step(episode, step, 0)) for step in range(4)]
    policy.reset()
    other = policy.new_session()
    for step in range(4):
        np.testing.assert_array_equal(policy.act(at_step(episode, step, 0)), expected[step])
        other.act(at_step(episode, step, 1))
    assert other._network is policy._network


def test_steps_without_a_prediction_are_observed(network: ActPolicy, episode: Observation) -> None:
    policy = Policy(network)
    for step in range(6):
        policy.observe(at_step(episode, step, 0))
    with torch.inference_mode():
        expected = network({name: value[:1] for name, value in seen_at(episode, 6).items()})[0][0]
    torch.testing.assert_close(torch.from_numpy(policy.predict_chunk(at_step(episode, 6, 0))), expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"image_left": None},
            "has no 'image_left': the policy takes state, image_left, image_right, the obs",
        ),
        ({"state": None}, "has no 'state'"),
        ({"state": np.zeros(7)}, r"'state' has shape \(7,\), it has to be \(6,\)"),
        ({"state": np.array([0, 1, np.nan, 3, 4, 5])}, r"'state' holds NaN or Inf in dimension 2 \(elbow\)"),
        ({"state": np.array(["a"] * 6)}, "'state' is <U1, it has to be numbers"),
        ({"image_left": np.zeros((16, 24, 3))}, "'image_left' is float64, it has to be uint8 RGB from 0 to 255"),
        ({"image_left": np.zeros((24, 16, 3), np.uint8)}, r"shape \(24, 16, 3\), it has to be \(16, 24, 3\)"),
        ({"image_right": np.zeros((12, 20, 4), np.uint8)}, r"'image_right' has shape \(12, 20, 4\)"),
        ({"image_right": np.zeros((1, 12, 20, 3), np.uint8)}, r"'image_right' has shape \(1, 12, 20, 3\)"),
    ],
)
def test_what_the_policy_was_not_trained_on_is_refused(
    network: ActPolicy, episode: Observation, changes: dict[str, Any], sentence: str
) -> None:
    names = ("waist", "shoulder", "elbow", "roll", "wrist", "rotate")
    policy = Policy(network, interface=Interface({"left": (16, 24), "right": (12, 20)}, state_names=names))
    observation = {**at_step(episode, 0, 0), **changes}
    with pytest.raises(UserError, match=sentence):
        policy.act({name: value for name, value in observation.items() if value is not None})
    assert not policy._history, "what was refused is not remembered"


def test_given_actions_go_to_the_network_as_they_are() -> None:
    policy = Policy(make_policy(max_delay=3))
    draw, size = np.random.default_rng(0), 6
    seen = {"state": draw.normal(size=6), "image_top": draw.integers(0, 256, (40, 56, 3), dtype=np.uint8)}
    given = np.full((2, size), 0.5, np.float32)
    chunk = policy.predict_chunk({**seen, "given_actions": given})
    np.testing.assert_array_equal(chunk[:2], given)
    policy.reset()
    free = policy.predict_chunk({**seen, "given_actions": given[:0]})
    policy.reset()
    np.testing.assert_array_equal(free, policy.predict_chunk(seen))
    assert np.abs(free[2:] - chunk[2:]).max() > 0
    many = {name: np.stack([value] * 2) for name, value in seen.items()}
    policy.reset()
    both = policy.predict_chunk({**many, "given_actions": np.stack([given, given])})
    np.testing.assert_allclose(both[1], chunk, atol=1e-5)
    for wrong, message in (
        (np.zeros((4, size)), "holds 4 steps, but the policy was trained with max_delay 3: give no more"),
        (np.zeros((2, size + 1)), rf"has shape \(2, {size + 1}\), it has to be \(G, {size}\)"),
        (np.full((1, size), np.nan), "'given_actions' has to be numbers without NaN or Inf"),
    ):
        policy.reset()
        with pytest.raises(UserError, match=message):
            policy.predict_chunk({**seen, "given_actions": wrong})


def test_another_number_of_environments_needs_a_reset(network: ActPolicy, episode: Observation) -> None:
    policy = Policy(network)
    policy.act(at_step(episode, 0))
    with pytest.raises(UserError, match=r"is of 1 environments, those before of 2: call reset\(\)"):
        policy.act(at_step(episode, 1, 0))
    policy.reset()
    policy.act(at_step(episode, 1, 0))


def test_an_action_that_is_not_a_number_is_never_returned(network: ActPolicy, episode: Observation) -> None:
    with torch.no_grad():
        network.action_head.bias[2] = torch.nan
    with pytest.raises(UserError, match="predicts NaN or Inf"):
        Policy(network).act(at_step(episode, 0, 0))


def test_execution_is_the_runs_unless_told_otherwise() -> None:
    config = tiny_config(chunk_size=50, temporal_ensemble=True, ensemble_window=4, ensemble_coefficient=0.5)
    assert Execution.of(config) == Execution(1, True, 4, 0.5)
    assert Execution.of(config, execute_steps=10) == Execution(10)
    assert Execution.of(config, temporal_ensemble=False) == Execution(50)
    assert Execution.of(tiny_config(chunk_size=50, execute_steps=20)) == Execution(20)
    assert Execution.of(tiny_config(chunk_size=50, execute_steps=20), temporal_ensemble=True).temporal_ensemble
    with pytest.raises(UserError, match="execute_steps is 51, it has to be from 1 to the chunk size, 50"):
        Execution.of(config, execute_steps=51)
    with pytest.raises(UserError, match="does not apply"):
        Execution.of(config, execute_steps=5, temporal_ensemble=True)


def test_an_interface_is_written_and_read_back(tmp_path: Path) -> None:
    interface = Interface(
        {"left": (16, 24), "right": None}, ("a", "b"), ("c",), 50.0, ((0.0, 1.0), (-2.0, 3.5)), ((1.0, 1.0),), "tie"
    )
    interface.write(tmp_path / "interface.json")
    assert Interface.read(tmp_path / "interface.json") == interface
    (tmp_path / "interface.json").write_text('{"cameras": 3}')
    with pytest.raises(UserError, match="interface.json cannot be read"):
        Interface.read(tmp_path / "interface.json")
