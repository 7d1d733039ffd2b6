"""The guide's way to use a trained policy: load it, predict over a dataset in the order of time, measure the error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset
from omegaconf import OmegaConf
from torch import Tensor

from bimact.data.loader import create_temporal_dataloader
from bimact.policy.act import ActPolicy, build_act_policy
from bimact.training.act_trainer import train_run
from bimact.training.prepare import prepare_run

ROOT = Path(__file__).parents[2]
LENGTHS = [15, 22, 18]
EPOCHS = 19  # of 11 steps each

# The calls of the guide's two snippets, in its order.
SCRIPT = """
import torch
from omegaconf import OmegaConf
from policy.act import build_act_policy

config = OmegaConf.load('{run}/config.yaml')

device = torch.device('cpu')
policy = build_act_policy(config).to(device)
policy.load_state_dict(
    torch.load('{run}/checkpoint/act-train-{epoch}.pth',
               map_location=device)
)
policy.eval()

print("✅ Policy loaded!")

from policy.act import create_temporal_dataloader

test_loader = create_temporal_dataloader(
    dataset_path='{dataset}',
    temporal_context=config.temporal_context,
    chunk_size=config.chunk_size,
    batch_size=1,
    shuffle=False
)

policy.eval()
total_error = 0
count = 0

with torch.no_grad():
    for batch in test_loader:
        obs, actions = batch
        obs = {{k: v.to(device) for k, v in obs.items()}}
        actions = actions.to(device)

        pred_actions, _ = policy(obs, actions)

        error = (pred_actions - actions).abs().mean()
        total_error += error.item()
        count += 1

print(f"Mean Absolute Error: {{total_error / count:.4f}}")
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("guide") / "dataset", LENGTHS)


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has learned something: about 200 steps."""
    run = tmp_path_factory.mktemp("guide") / "run"
    settings = {"num_epochs": EPOCHS, "checkpoint_frequency": EPOCHS, "lr": 3e-3, "val_split": 0.3}
    train_run(prepare_run(tiny_config(dataset_dir=str(dataset), output_dir=str(run), **settings)))
    return run


@pytest.fixture
def loaded(run: Path) -> ActPolicy:
    policy = build_act_policy(OmegaConf.load(run / "config.yaml"))
    policy.load_state_dict(torch.load(run / "checkpoint" / f"act-train-{EPOCHS}.pth", map_location="cpu"))
    return policy.eval()


def batches(dataset: Path, policy: ActPolicy) -> list[tuple[dict[str, Tensor], Tensor]]:
    context, chunk = policy.config.temporal_context, policy.config.chunk_size
    return list(create_temporal_dataloader(dataset, context, chunk, batch_size=1, shuffle=False))


@pytest.mark.slow
def test_the_guides_snippets_print_an_error_that_is_better_than_the_mean_action(
    dataset: Path, run: Path, loaded: ActPolicy
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(run=run, dataset=dataset, epoch=EPOCHS)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    printed = re.fullmatch(r"✅ Policy loaded!\nMean Absolute Error: (\d+\.\d{4})\n", process.stdout)
    assert printed, process.stdout
    mean = torch.from_numpy(np.load(dataset / "actions.npy").mean(axis=0))
    pairs = batches(dataset, loaded)
    of_mean = np.mean([float((mean - actions).abs().mean()) for _, actions in pairs])
    with torch.no_grad():
        expected = np.mean([float((loaded(obs)[0] - actions).abs().mean()) for obs, actions in pairs])
    assert float(printed[1]) == pytest.approx(expected, abs=1e-3)
    assert float(printed[1]) < 0.5 * of_mean


@pytest.mark.parametrize("answer", [torch.nan, 1e6])
def test_in_evaluation_mode_the_policy_never_sees_the_answer(dataset: Path, loaded: ActPolicy, answer: float) -> None:
    with torch.no_grad():
        for obs, actions in batches(dataset, loaded)[::7]:
            prediction, output = loaded(obs, actions)
            assert torch.equal(loaded(obs, torch.full_like(actions, answer))[0], prediction)
            assert output.mu is None and prediction.isfinite().all()
        loaded.train()
        shown, elsewhere = (_sampled(loaded, obs, actions + shift) for shift in (0, 5))
        assert not torch.equal(shown, elsewhere)  # in training mode it does


def _sampled(policy: ActPolicy, obs: dict[str, Tensor], actions: Tensor) -> Tensor:
    torch.manual_seed(0)
    return policy(obs, actions)[1].mu


def test_there_is_a_batch_for_each_step_in_the_order_of_time(dataset: Path, loaded: ActPolicy) -> None:
    pairs = batches(dataset, loaded)
    observations, actions = np.load(dataset / "observations.npy"), np.load(dataset / "actions.npy")
    assert len(pairs) == len(actions) == sum(LENGTHS)
    for step, (obs, chunk) in enumerate(pairs):
        assert np.array_equal(obs["state"][0, -1], observations["state"][step])
        assert np.array_equal(obs["image_right"][0, -1].permute(1, 2, 0), observations["image_right"][step])
        assert np.array_equal(chunk[0, 0], actions[step])
    ends = np.cumsum(LENGTHS) - 1
    last = [step for step, (obs, _) in enumerate(pairs) if obs["action_is_pad"][0, 1:].all()]
    assert last == ends.tolist()
