"""Checkpoints of the original ACT: the same actions, and one sentence where that cannot be."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_policies import (
    STATE_DIM,
    chunk_of,
    observation,
    original_statistics,
    original_weights,
    small_policy,
    write_original,
    write_pointer,
)
from torch import Tensor

from bimact.errors import UserError
from bimact.interop.original_act import original_checkpoint, read_original
from bimact.policy.act import ActPolicy

CAMERAS = ["top", "left"]


@pytest.fixture(scope="module")
def policy() -> ActPolicy:
    return small_policy(CAMERAS)


@pytest.mark.parametrize("cameras", [["top"], ["top", "left_wrist", "right_wrist"]])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_predicts_the_same_actions(tmp_path: Path, cameras: list[str], pre_norm: bool) -> None:
    policy = small_policy(cameras, pre_norm=pre_norm, nheads=8)
    stats = original_statistics()
    write_original(tmp_path / "act", original_weights(policy), stats)
    converted = read_original(tmp_path / "act" / "policy_best.ckpt", cameras)
    obs = observation(policy)
    expected = chunk_of(policy, obs) * stats["action_std"] + stats["action_mean"]
    obs["state"] = obs["state"] * stats["qpos_std"] + stats["qpos_mean"]
    found = chunk_of(converted.policy, obs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    config = converted.policy.config
    assert (config.num_decoder_layers, config.num_encoder_layers, config.nheads) == (1, 2, 8)
    assert (config.cameras, config.image_size, config.pre_norm) == (cameras, [480, 640], pre_norm)
    assert any("6 of 7 decoder layers are left out" in note for note in converted.notes)


def test_order_of_cameras_does_not_matter(tmp_path: Path) -> None:
    policy = small_policy(CAMERAS, nheads=8)
    path = write_original(tmp_path / "act", original_weights(policy), original_statistics()) / "policy_best.ckpt"
    obs = observation(policy)
    one, other = (chunk_of(read_original(path, order).policy, obs) for order in (CAMERAS, CAMERAS[::-1]))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_what_the_weights_do_not_tell_can_be_given(tmp_path: Path, policy: ActPolicy) -> None:
    folder = write_original(tmp_path / "act", original_weights(policy, decoder_layers=1), original_statistics())
    statistics = folder / "dataset_stats.pkl"
    statistics.rename(tmp_path / "stats.pkl")
    path = folder / "policy_best.ckpt"
    with pytest.raises(UserError, match=r"dataset_stats.pkl is missing, .* pass it by --stats"):
        read_original(path, CAMERAS)
    with pytest.raises(UserError, match=r"weights in .*policy_best.ckpt do not name their cameras: pass --cameras"):
        read_original(path, None, tmp_path / "stats.pkl")
    converted = read_original(path, CAMERAS, tmp_path / "stats.pkl", heads=4, image_size=(240, 320))
    assert (converted.policy.config.nheads, converted.policy.config.image_size) == (4, [240, 320])
    assert converted.notes == ("4 attention heads and images of 240x320 are assumed",)


def test_a_training_without_the_cvaes_encoder(tmp_path: Path, policy: ActPolicy) -> None:
    """ACT++ with --no_encoder keeps what feeds it."""
    weights = {name: v for name, v in original_weights(policy).items() if not name.startswith("model.encoder.")}
    path = write_original(tmp_path / "act", weights, original_statistics()) / "policy_best.ckpt"
    converted = read_original(path, CAMERAS, heads=4)
    assert converted.policy.posterior is None
    assert "it was trained without the CVAE's encoder" in converted.notes


def taken_of(folder: Path, *names: str) -> tuple[str, str]:
    """Which of some checkpoints is taken of a folder, and what is said of it."""
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    found = original_checkpoint(folder)
    assert found is not None
    return found[0].name, " ".join(found[1])


def test_checkpoint_of_a_folder(tmp_path: Path) -> None:
    assert original_checkpoint(tmp_path) is None
    assert taken_of(tmp_path / "1", "policy_last.ckpt") == ("policy_last.ckpt", "")
    steps = [f"policy_step_{step}_seed_0.ckpt" for step in (0, 500, 10000, 2000)]
    assert taken_of(tmp_path / "2", *steps) == (
        "policy_step_10000_seed_0.ckpt",
        "policy_step_10000_seed_0.ckpt is taken of 4 checkpoints: it has the highest number; give another by its "
        "file name",
    )
    name, note = taken_of(tmp_path / "3", *steps, "policy_last.ckpt", "policy_epoch_99999_seed_0.ckpt")
    assert name == "policy_last.ckpt" and "is taken of 6 checkpoints: it is the last" in note
    name, note = taken_of(tmp_path / "4", *steps, "policy_last.ckpt", "policy_best.ckpt", "dataset_stats.pkl")
    assert name == "policy_best.ckpt" and "is taken of 6 checkpoints: it is the best" in note


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("policy_epoch_100_seed_0.ckpt", "policy_epoch_20_seed_7.ckpt"), "policy_epoch_100_seed_0.ckpt"),
        (("policy_seed_9_step_10.ckpt", "policy_seed_0_step_20.ckpt"), "policy_seed_0_step_20.ckpt"),
        (("epoch=9-step=900.ckpt", "epoch=10-step=1000.ckpt"), "epoch=10-step=1000.ckpt"),
        (("policy_step9.ckpt", "policy_step10.ckpt"), "policy_step10.ckpt"),
        (("policy_best_step_5.ckpt", "policy_best_step_40.ckpt", "policy_last.ckpt"), "policy_best_step_40.ckpt"),
        (("policy_1000.pth", "policy_latest.pth", "optimizer.pth"), "policy_latest.pth"),
        (("policy_final.pt", "policy_1.pt"), "policy_final.pt"),
        (("policy.ckpt", "notes.txt"), "policy.ckpt"),
    ],
)
def test_names_of_forks(tmp_path: Path, names: tuple[str, ...], taken: str) -> None:
    assert taken_of(tmp_path / "a", *names)[0] == taken


def test_a_pointer_in_the_place_of_statistics(tmp_path: Path, policy: ActPolicy) -> None:
    path = write_original(tmp_path / "act", original_weights(policy, 1), {}) / "policy_best.ckpt"
    write_pointer(path.with_name("dataset_stats.pkl"))
    with pytest.raises(UserError, match=r"dataset_stats\.pkl is a git-lfs pointer, .* `git lfs pull`"):
        read_original(path, CAMERAS)


# What cannot be ------------------------------------------------------------------------------------


class Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def adding(name: str, value: Tensor) -> Callable[[dict[str, Any]], Any]:
    return lambda weights: weights.update({name: value})


WEIGHTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "other file": (
        lambda weights: weights.pop("model.query_embed.weight"),
        "holds no policy of ACT: its tensors are named 'model",
    ),
    "each camera": (adding("model.backbones.1.0.body.conv1.weight", torch.zeros(1)), "a backbone for each camera"),
    "environment": (adding("model.input_proj_env_state.weight", torch.zeros(1)), "the environment's state"),
    "learned": (adding("model.backbones.0.1.row_embed.weight", torch.zeros(1)), "positions in images are learned"),
    "discrete": (adding("model.latent_proj.weight", torch.zeros(5, 32)), "latent is discrete"),
    "unknown": (adding("model.\x1bx", torch.zeros(1)), r"'model\.\\x1bx' is no parameter of the original ACT"),
    "backbone": (lambda weights: weights.pop("model.backbones.0.0.body.layer3.1.conv1.weight"), "not fit the network"),
    "depth": (
        adding("model.backbones.0.0.body.layer3.2.conv1.weight", torch.zeros(1)),
        r"another image backbone than bimact knows \(resnet18, resnet34, resnet50\)",
    ),
    "missing": (lambda weights: weights.pop("model.action_head.weight"), "not all of it"),
    "one number": (adding("model.query_embed.weight", torch.zeros(())), "not all of it"),
    "kernel": (adding("model.input_proj.weight", torch.zeros(32, 512, 3, 3)), "does not fit the network"),
    "announced": (
        adding("model.query_embed.weight", torch.zeros(1).expand(10**6, 10**6)),
        "declares larger tensors than it holds",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_faulty_weights_are_one_sentence(tmp_path: Path, policy: ActPolicy, name: str) -> None:
    weights: dict[str, Any] = original_weights(policy, decoder_layers=1)
    change, sentence = WEIGHTS[name]
    change(weights)
    path = write_original(tmp_path / "act", weights, original_statistics()) / "policy_best.ckpt"
    with pytest.raises(UserError, match=sentence) as caught:
        read_original(path, CAMERAS, heads=4)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_no_code_in_a_checkpoint_runs(tmp_path: Path, policy: ActPolicy) -> None:
    weights: dict[str, Any] = {**original_weights(policy, 1), "x": Touch(tmp_path / "victim")}
    path = write_original(tmp_path / "act", weights, original_statistics()) / "policy_best.ckpt"
    with pytest.raises(UserError, match="must not run code"):
        read_original(path, CAMERAS)
    torch.load(path, weights_only=False)
    assert (tmp_path / "victim").exists()  # it would have


STATISTICS: dict[str, tuple[Any, str]] = {
    "no dictionary": ([1], "holds no statistics"),
    "other names": ({"mean": np.zeros(STATE_DIM)}, "has no 'qpos_mean' of 6 numbers"),
    "other size": ({**original_statistics(), "action_std": np.ones(9)}, "has no 'action_std' of 4 numbers"),
    "no numbers": ({**original_statistics(), "action_std": np.array(list("abcd"))}, "has no 'action_std'"),
    "infinite": ({**original_statistics(), "qpos_mean": np.full(STATE_DIM, np.inf)}, "not finite"),
    "zero": ({**original_statistics(), "qpos_std": np.zeros(STATE_DIM)}, "deviations of 0"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_faulty_statistics_are_one_sentence(tmp_path: Path, policy: ActPolicy, name: str) -> None:
    folder = write_original(tmp_path / "act", original_weights(policy, 1), {})
    content, sentence = STATISTICS[name]
    (folder / "dataset_stats.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=rf"dataset_stats\.pkl .*{sentence}"):
        read_original(folder / "policy_best.ckpt", CAMERAS, heads=4)


def test_no_code_in_statistics_runs(tmp_path: Path, policy: ActPolicy) -> None:
    victim = tmp_path / "victim"
    statistics = {**original_statistics(), "example_qpos": Touch(victim)}
    folder = write_original(tmp_path / "act", original_weights(policy, 1), statistics)
    with pytest.raises(UserError, match=r"dataset_stats\.pkl wants \w+\.system, which was refused and did not run"):
        read_original(folder / "policy_best.ckpt", CAMERAS)
    assert not victim.exists()
    pickle.loads((folder / "dataset_stats.pkl").read_bytes())
    assert victim.exists()  # it would have
