"""What `bimact estimate` says, compared with trainings: sizes of files, steps, caches; memory and time are measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from lerobot_files import write_lerobot

from bimact.cli import main
from bimact.config import Config
from bimact.errors import UserError
from bimact.policy.act import ActPolicy
from bimact.training import estimate as module
from bimact.training.act_trainer import train_run
from bimact.training.estimate import estimate
from bimact.training.prepare import prepare_run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.0)


def trained(config: Config, folder: Path) -> dict[str, int]:
    """The size of each file of the checkpoints of a training, those with several names once."""
    prepared = prepare_run(replace(config, output_dir=str(folder / "run")))
    train_run(prepared)
    files = {path.stat().st_ino: path for path in (folder / "run" / "checkpoint").iterdir() if path.is_file()}
    return {path.name: path.stat().st_size for path in files.values()}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "keep_checkpoints": ["last 2"], "num_epochs": 4}])
def test_checkpoints_and_steps_are_those_of_the_training(
    dataset: Path, tmp_path: Path, changes: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(dataset_dir=str(dataset), hidden_dim=64, dim_feedforward=256, **changes)
    found = estimate(config)
    files = trained(config, tmp_path)
    names = {".pth": found.weights_file, ".state": found.state_file}
    for name, size in files.items():
        assert names[Path(name).suffix] <= size < names[Path(name).suffix] + 100_000, name  # and the names of tensors
    assert found.checkpoints is not None and found.checkpoints_kept is not None
    assert len(files) / 2 in (found.checkpoints_kept, found.checkpoints_kept - 1)  # `best` may be one of the others
    printed = capsys.readouterr().out
    steps = [int(line.partition("Step ")[2].partition(":")[0]) for line in printed.splitlines() if ", Step " in line]
    assert steps[-1] == found.optimizer_steps
    assert f"Training samples: {found.steps}\n" in printed
    assert f"Epoch {found.epochs}/{found.epochs}" in printed
    assert f"Total parameters: {found.parameters:,}" in printed
    assert f"Trainable parameters: {found.trainable:,}" in printed


@pytest.mark.slow
def test_caches_are_as_large_as_those_of_the_training(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "lerobot", (30, 20), dim=14)
    encoder = {"name": "conv", "pretrained": None, "freeze": True, "fuse": "tokens", "channels": [8, 8]}
    config = tiny_config(dataset_dir=str(source), cache_dir=str(tmp_path / "cache"), encoder=encoder, num_epochs=1)
    found = estimate(config)
    assert not (tmp_path / "cache").exists() or not any((tmp_path / "cache").rglob("*.npy"))
    trained(config, tmp_path)
    headers = 128 * 8
    sizes = {"arrays-*": found.decoded_copy, "features-*": found.feature_cache}
    for pattern, expected in sizes.items():
        made = sum(path.stat().st_size for path in (tmp_path / "cache").glob(f"*/{pattern}/*.npy"))
        assert expected is not None and expected <= made <= expected + headers, pattern
    assert found.encoding_seconds is not None and found.encoding_seconds > 0


@pytest.mark.slow
def test_memory_and_time_are_measured_until_a_batch_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ActPolicy.forward

    def limited(self: ActPolicy, obs: dict[str, torch.Tensor], *arguments: object) -> object:
        if len(obs["state"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, obs, *arguments)

    monkeypatch.setattr(ActPolicy, "forward", limited)
    found = estimate(tiny_config(batch_size=4, image_size=[16, 24]), [1, 8, 16])
    assert [cost.batch_size for cost in found.batches] == [1, 4, 8]
    assert found.batches[-1].seconds is None and found.batches[-1].memory is None
    assert all(cost.seconds and cost.memory for cost in found.batches[:2])
    assert found.training_seconds is None and found.optimizer_steps is None
    assert any("left 16x24, right 16x24" in note for note in found.notes)
    with pytest.raises(UserError, match="out of memory with batch_size 5: give smaller"):
        estimate(tiny_config(batch_size=5, image_size=[16, 24]), [8])


@pytest.mark.parametrize("conditioning", ["id", "text"])
def test_policies_that_are_told_their_task_are_measured_and_mixtures_refused(dataset: Path, conditioning: str) -> None:
    plain = estimate(tiny_config(dataset_dir=str(dataset)), [4])
    told = estimate(tiny_config(dataset_dir=str(dataset), task_conditioning=conditioning), [4])
    assert told.parameters > plain.parameters
    with pytest.raises(UserError, match="estimate takes one dataset, and the config has several"):
        estimate(tiny_config(dataset_dir=f"{dataset},{dataset}"))


@pytest.mark.slow
def test_command_prints_a_table_or_json(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bimact.config import save_config

    save_config(tiny_config(dataset_dir=str(dataset), num_epochs=1), tmp_path / "config.yaml")

    def run(*more: str) -> tuple[int | str | None, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["estimate", "--config", str(tmp_path / "config.yaml"), *more])
        return (stop.value.code, *capsys.readouterr())

    status, printed, _ = run("--batch_size", "2")
    assert status == 0
    assert "samples per second" in printed and "3 training and 1 validation episodes" in printed
    status, printed, progress = run("--json", "--batch_sizes", "3")
    content = json.loads(printed)
    assert status == 0 and [cost["batch_size"] for cost in content["batches"]] == [3, 4]
    assert content["training_seconds"] > 0 and "measuring steps of batch size 3" in progress
    status, _, error = run("--batch_sizes", "8,many")
    assert status == 2 and "--batch_sizes is '8,many'" in error
