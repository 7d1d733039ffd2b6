"""The moving average of the weights, against a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config

from bimact.policy.act import ActPolicy
from bimact.policy.loading import load_run
from bimact.run_directory import read_metrics
from bimact.training.act_trainer import ActTrainer, train_run
from bimact.training.averaging import AveragedWeights
from bimact.training.prepare import prepare_run


def test_the_average_is_that_of_a_plain_loop() -> None:
    policy = ActPolicy(tiny_config(cameras=["top"], state_dim=4, action_dim=3))
    names = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    names |= {name for name, buffer in policy.named_buffers() if name in policy.state_dict() and "num_" not in name}
    average = AveragedWeights(policy, 0.5)
    expected = {name: value.double() for name, value in policy.state_dict().items()}
    first = {name: value.clone() for name, value in policy.state_dict().items()}
    for step in range(8):
        with torch.no_grad():
            for value in policy.state_dict().values():
                value.add_(torch.randn_like(value) if value.is_floating_point() else 1)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * policy.state_dict()[name].double()
    current = {name: value.clone() for name, value in policy.state_dict().items()}
    with average.in_place():
        for name, value in policy.state_dict().items():
            if name in names:
                assert torch.allclose(value.double(), expected[name], atol=1e-5), name
            else:
                assert torch.equal(value, current[name]), name
    for name, value in policy.state_dict().items():
        assert torch.equal(value, current[name])
        assert name not in names or not torch.equal(value, first[name])


def train(
    dataset: Path, run: Path, resume_from: Path | None = None, override: bool = False, **changes: Any
) -> ActTrainer:
    config = tiny_config(dataset_dir=str(dataset), output_dir=str(run), **changes)
    return train_run(prepare_run(config, resume_from, override_config=override))


@pytest.mark.slow
def test_validation_checkpoints_and_inference_use_the_average(dataset: Path, tmp_path: Path) -> None:
    plain = train(dataset, tmp_path / "plain")
    averaged = train(dataset, tmp_path / "averaged", ema_decay=0.99)
    for name, value in plain.policy.state_dict().items():
        assert torch.equal(value, averaged.policy.state_dict()[name]), name  # the training is the same
    acting = load_run(tmp_path / "averaged", "last", "cpu").network.state_dict()
    with averaged.averaged_weights():
        for name, value in averaged.policy.state_dict().items():
            assert torch.equal(value, acting[name])
    assert not torch.equal(acting["action_head.weight"], averaged.policy.state_dict()["action_head.weight"])
    losses = [[r["val_loss"] for r in read_metrics(tmp_path / run / "metrics.jsonl") if "val_loss" in r]
              for run in ("plain", "averaged")]  # fmt: skip
    assert len(losses[0]) == len(losses[1]) > 0
    assert all(one != two for one, two in zip(*losses))


@pytest.mark.parametrize(("before", "after"), [(0.9, None), (None, 0.9)])
def test_averaging_that_begins_or_ends_later(
    dataset: Path, tmp_path: Path, before: float | None, after: float | None
) -> None:
    first = train(dataset, tmp_path / "run", ema_decay=before, num_epochs=1)
    weights = {name: value.clone() for name, value in first.policy.state_dict().items()}
    prepared = prepare_run(
        tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), ema_decay=after, num_epochs=2),
        tmp_path / "run",
        override_config=True,
    )
    second = ActTrainer(prepared)
    for name, value in second.policy.state_dict().items():
        assert torch.equal(value, weights[name]), name  # training resumes from what it had, not from the average
