"""Closed-loop evaluation with policies whose outcome is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import tiny_config

from bimact.config import Config
from bimact.data.normalize import Normalizer
from bimact.errors import UserError
from bimact.evaluation.rollout import RolloutSettings, evaluate_rollouts
from bimact.policy.act import ActPolicy
from bimact.policy.loading import LoadedPolicy
from bimact.policy.metadata import Interface
from bimact.run_directory import Run
from bimact.sim.demonstrators import demonstrate
from bimact.sim.tasks import find_task


class Demonstrator(torch.nn.Module):
    """Plays the demonstrations of some seeds back: what it has done so far is known by its count of calls."""

    def __init__(self, seeds: list[int], chunk: int, steps: int) -> None:
        super().__init__()
        task = find_task("transfer_cube")
        self.actions = np.stack([demonstrate(task, seed) for seed in seeds])
        self.chunk, self.steps, self.calls = chunk, steps, 0
        self.seen: list[dict[str, torch.Tensor]] = []
        self.images: list[torch.Tensor] = []
        self.state_normalizer = Normalizer(14)
        self.cameras = ("top",)

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def prepare_for_inference(self) -> None:
        pass

    def encode_images(self, images: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.images += images.values()
        return {camera: torch.zeros(*image.shape[:2], 1, 1, 1) for camera, image in images.items()}

    def forward(self, obs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
        self.seen.append(obs)
        at = (self.calls * self.steps) % 400
        self.calls += 1
        rows = np.minimum(np.arange(at, at + self.chunk), 399)
        return torch.from_numpy(self.actions[:, rows]).float(), None


def _run(tmp_path: Path, policy: Any, **changes: Any) -> LoadedPolicy:
    settings = {"state_dim": 14, "action_dim": 14, "cameras": ["top"], "chunk_size": 100, **changes}
    config: Config = tiny_config(**settings)
    if policy is not None:
        policy.config = config
    network = policy or ActPolicy(config).eval()
    checkpoint = Path("act-train-last.pth")
    return LoadedPolicy(network, config, torch.device("cpu"), Run(tmp_path), checkpoint, Interface.of_config(config))


@pytest.mark.slow
def test_demonstrations_played_back_succeed_and_are_filmed(tmp_path: Path) -> None:
    policy = Demonstrator([1000, 1001], chunk=100, steps=50)
    run = _run(tmp_path, policy, temporal_context=2)
    settings = RolloutSettings("transfer_cube", rollouts=2, execute_steps=50, videos=1, parallel=2, image_size=(16, 24))
    result = evaluate_rollouts(run, settings)
    assert (result["successes"], result["rollouts"], result["success_rate"]) == (2, 2, 1.0)
    assert result["interval_95"][1] == 1.0
    assert result["reward_reached"] == {"1": 2, "2": 2, "3": 2, "4": 2}
    assert [(r["seed"], r["highest_reward"], r["final_reward"]) for r in result["each"]] == [(1000, 4, 4), (1001, 4, 4)]
    assert [r["video"] for r in result["each"]] == ["videos/transfer_cube-seed-1000.mp4", None]
    assert policy.calls == 8  # 400 steps, 50 at a time
    assert policy.images[0].shape == (2, 2, 3, 16, 24) and policy.images[0].dtype == torch.uint8
    assert policy.seen[0]["state"].shape == (2, 2, 14)
    with av.open(str(tmp_path / "videos" / "transfer_cube-seed-1000.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert len(frames) == 201 and frames[0].shape == (480, 640, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50


@pytest.mark.slow
def test_same_seeds_same_result_and_leftover_environments_do_not_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = _run(tmp_path, None)
    settings = RolloutSettings("transfer_cube", rollouts=3, parallel=2, seed=7, image_size=(16, 24))
    one, two = (evaluate_rollouts(run, settings) for _ in range(2))
    assert one["each"] == two["each"]
    assert [r["seed"] for r in one["each"]] == [7, 8, 9]
    assert one["successes"] == 0


@pytest.mark.slow
def test_temporal_ensemble_predicts_at_each_step(tmp_path: Path) -> None:
    policy = Demonstrator([1000], chunk=100, steps=1)
    run = _run(tmp_path, policy)
    settings = RolloutSettings("transfer_cube", rollouts=1, temporal_ensemble=True, parallel=1, image_size=(16, 24))
    result = evaluate_rollouts(run, settings)
    assert policy.calls == 400
    assert [image.shape[1] for image in policy.images] == [2] + 399 * [1]  # each frame is encoded once
    assert result["successes"] == 1 and result["execute_steps"] == 1


@pytest.mark.slow
def test_perturbations_reach_the_policy_and_not_the_success(tmp_path: Path) -> None:
    policy = Demonstrator([1000], chunk=100, steps=100)
    changes = {"black_camera": "all", "light": 0.5}
    settings = RolloutSettings("transfer_cube", rollouts=1, execute_steps=100, image_size=(16, 24), perturb=changes)
    result = evaluate_rollouts(_run(tmp_path, policy), settings)
    assert not any(image.any() for image in policy.images) and len(policy.images) == 4
    assert result["successes"] == 1 and result["settings"]["perturb"] == changes


@pytest.mark.slow
def test_images_have_the_size_of_the_training(tmp_path: Path) -> None:
    policy = Demonstrator([1000], chunk=100, steps=100)
    evaluate_rollouts(_run(tmp_path, policy, image_size=[18, 26]), RolloutSettings("transfer_cube", rollouts=1))
    assert policy.images[0].shape == (1, 2, 3, 18, 26)


@pytest.mark.parametrize(
    ("settings", "changes", "sentence"),
    [
        (RolloutSettings("juggle"), {}, "no task named 'juggle'"),
        (RolloutSettings("insertion", rollouts=0), {}, "--rollouts is 0"),
        (RolloutSettings("insertion", execute_steps=101), {}, "execute_steps is 101, .* chunk size, 100"),
        (RolloutSettings("insertion"), {"cameras": ["cam_high"]}, "trained with camera 'cam_high'"),
        (RolloutSettings("insertion"), {}, "does not hold the size of its training images: pass --image_size"),
    ],
)
def test_faulty_settings(tmp_path: Path, settings: RolloutSettings, changes: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        evaluate_rollouts(_run(tmp_path, None, **changes), settings)


@pytest.mark.parametrize("setting", ["state_dim", "action_dim"])
def test_policies_of_other_robots_are_refused(tmp_path: Path, setting: str) -> None:
    run = _run(tmp_path, None, **{setting: 7})
    with pytest.raises(UserError, match=f"the policy has {setting} 7, the simulated robot 14"):
        evaluate_rollouts(run, RolloutSettings("transfer_cube", rollouts=1))
