"""Errors on demonstrations against loops, and the baselines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset

from bimact.data.opening import open_dataset
from bimact.data.windows import split_episodes
from bimact.errors import UserError
from bimact.evaluation.offline import evaluate_offline
from bimact.evaluation.results import add_results, read_results
from bimact.policy.loading import LoadedPolicy, load_run
from bimact.training.act_trainer import train_run
from bimact.training.prepare import prepare_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offline")
    dataset = write_dataset(folder / "dataset", [9, 12, 7, 10])
    config = tiny_config(dataset_dir=str(dataset), output_dir=str(folder / "run"), num_epochs=1)
    return train_run(prepare_run(config)).run.path


def _reference(run: LoadedPolicy, chosen: list[int]) -> tuple[float, float, float, np.ndarray]:
    """MAE of the policy, of both baselines, and the policy's by joint: window by window, step by step."""
    episodes = open_dataset(run.config.dataset_dir or "")
    config, mean = run.config, run.network.action_normalizer.mean.numpy()
    errors: list[list[np.ndarray]] = [[], [], []]
    for episode in chosen:
        start, length = int(episodes.starts[episode]), int(episodes.lengths[episode])
        for present in range(length):
            rows = [start + max(0, present - back) for back in reversed(range(config.temporal_context))]
            obs = {
                f"image_{camera}": torch.from_numpy(episodes.images[camera][rows]).permute(0, 3, 1, 2)[None]
                for camera in episodes.cameras
            }
            obs["state"] = torch.from_numpy(np.array(episodes.state[rows]))[None]
            with torch.no_grad():
                chunk = run.network(obs)[0][0].numpy()
            for ahead in range(min(config.chunk_size, length - present)):
                action = episodes.actions[start + present + ahead]
                held = episodes.state[start + present]
                for of, predicted in zip(errors, (chunk[ahead], held, mean)):
                    of.append(np.abs(predicted - action))
    policy, held, by_mean = (np.array(of, dtype=np.float64) for of in errors)
    return policy.mean(), held.mean(), by_mean.mean(), policy.mean(axis=0)


def test_errors_against_loops(run_dir: Path) -> None:
    run = load_run(run_dir, "last", "cpu")
    result = evaluate_offline(run)
    _, held_out = split_episodes([0] * 4, run.config.val_split, run.config.seed)
    assert result["episode_numbers"] == held_out.tolist() and result["episodes"] == "held out"
    policy, held, mean, by_joint = _reference(run, held_out.tolist())
    assert result["mae"] == pytest.approx(policy, rel=1e-4)
    assert result["baselines"]["hold the last position"]["mae"] == pytest.approx(held, rel=1e-4)
    assert result["baselines"]["mean action"]["mae"] == pytest.approx(mean, rel=1e-4)
    np.testing.assert_allclose(result["mae_by_joint"], by_joint, rtol=1e-4)
    assert len(result["mae_by_horizon_step"]) == run.config.chunk_size
    assert result["mae_at_gripper_changes"] is None  # joints without names
    assert result["mae_of_the_same_windows"] == pytest.approx(policy, rel=1e-4)  # few windows: all of them
    assert result["mae_perturbed"] != pytest.approx(policy, rel=1e-4)
    assert result == evaluate_offline(run)
    assert len(result["trajectory"]["predicted"]) == len(result["trajectory"]["demonstrated"])


def test_images_of_other_moments_against_a_loop(run_dir: Path) -> None:
    run = load_run(run_dir, "last", "cpu")
    found = evaluate_offline(run)
    [episode] = found["episode_numbers"]
    episodes = open_dataset(run.config.dataset_dir or "")
    start, length = int(episodes.starts[episode]), int(episodes.lengths[episode])
    errors: dict[str, list[np.ndarray]] = {"unchanged": [], "all": [], **{name: [] for name in episodes.cameras}}
    for present in range(length):
        for name, of in errors.items():
            obs = {}
            for camera in episodes.cameras:
                at = (present - length // 2) % length if name in ("all", camera) else present
                rows = [start + max(0, at - back) for back in reversed(range(run.config.temporal_context))]
                obs[f"image_{camera}"] = torch.from_numpy(episodes.images[camera][rows]).permute(0, 3, 1, 2)[None]
            rows = [start + max(0, present - back) for back in reversed(range(run.config.temporal_context))]
            obs["state"] = torch.from_numpy(np.array(episodes.state[rows]))[None]
            with torch.no_grad():
                chunk = run.network(obs)[0][0].numpy()
            real = min(run.config.chunk_size, length - present)
            of += list(np.abs(chunk[:real] - episodes.actions[start + present : start + present + real]))
    expected = {name: float(np.mean(of, dtype=np.float64)) for name, of in errors.items()}
    assert found["mae_with_other_images"] == pytest.approx(expected, rel=1e-4)
    assert expected["all"] != pytest.approx(expected["unchanged"], rel=1e-5)


def test_other_data_and_none_held_out(run_dir: Path, tmp_path: Path) -> None:
    run = load_run(run_dir, "last", "cpu")
    other = write_dataset(tmp_path / "other", [6, 3], seed=1)
    result = evaluate_offline(run, str(other))
    assert (result["episodes"], result["windows"]) == ("all", 9)


def test_results_are_kept_side_by_side(tmp_path: Path) -> None:
    add_results(tmp_path, {"offline": {"mae": 1}})
    add_results(tmp_path, {"rollouts": {"a": {"successes": 1}}})
    add_results(tmp_path, {"rollouts": {"b": {"successes": 2}}})
    add_results(tmp_path, {"rollouts": {"a": {"successes": 3}}})
    expected = {"offline": {"mae": 1}, "rollouts": {"a": {"successes": 3}, "b": {"successes": 2}}}
    assert read_results(tmp_path) == expected
    assert json.loads((tmp_path / "evaluation.json").read_text()) == expected
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match="no readable JSON"):
        read_results(tmp_path)


def test_runs_that_cannot_be_loaded(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run directory: it has no config\.yaml"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint '77'; it has: best, last, 1"):
        load_run(run_dir, "77")
    changed = (run_dir / "config.yaml").read_text().replace("hidden_dim: 16", "hidden_dim: 32")
    (tmp_path / "config.yaml").write_text(changed)
    (tmp_path / "checkpoint").symlink_to(run_dir / "checkpoint")
    with pytest.raises(UserError, match=r"act-train-last\.pth does not fit .*config\.yaml"):
        load_run(tmp_path, "last")
