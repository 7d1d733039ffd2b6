"""Each row of the guide's troubleshooting is something that the training command does by itself."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset
from processes import project_copy, run_script

from bimact.config import save_config
from bimact.data.windows import Batch, WindowDataset
from bimact.errors import UserError
from bimact.policy.act import ActPolicy
from bimact.training import act_trainer  # noqa: F401  (children of this process start with it loaded)
from bimact.training.device import make_accelerator

# Children of the test process inherit what a test puts in the place of hardware.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    project_copy(tmp_path)
    save_config(tiny_config(), tmp_path / "tiny.yaml")
    write_dataset(tmp_path / "your_dataset", [9, 12, 7, 10])
    return tmp_path


def train(root: Path, *settings: str, dataset: str = "your_dataset") -> tuple[int, str]:
    command = ["scripts/train_act.py", "--config", "tiny.yaml", "--dataset_dir", dataset, "--output_dir", "runs/run"]
    status, output = run_script([*command, *settings], root)
    assert "Traceback" not in output, output
    return status, output


@pytest.mark.slow
def test_out_of_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ActPolicy.forward

    def limited(self: ActPolicy, obs: dict[str, torch.Tensor], *arguments: object) -> object:
        if len(obs["state"]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, obs, *arguments)

    monkeypatch.setattr(ActPolicy, "forward", limited)
    status, output = train(root, "--batch_size", "8")
    assert status == 2
    assert "out of memory with batch_size 8: try --batch_size 4 " in output and "--auto_batch_size" in output
    status, output = train(root, "--output_dir=runs/other", "--auto_batch_size", "--num_steps=1", "--val_split=0")
    assert status == 0 and "batch_size is 4" in output


def test_dataset_not_found(root: Path) -> None:
    status, output = train(root, dataset="your_datasets")
    assert status == 2
    assert f"dataset not found: {root / 'your_datasets'}; near it there is {root / 'your_dataset'}" in output


def test_loss_not_decreasing(root: Path) -> None:
    status, output = train(root, "--lr=1e-12", "--log_frequency=1", "--num_epochs=4", "--use_vae=false", "--dropout=0")
    assert status == 0
    (hint,) = re.findall(r"Hint: the loss has not fallen .*", output)
    assert "lower --lr (now 1e-12; try 5e-13)" in hint and "bimact check your_dataset" in hint


def test_loss_exploding(root: Path) -> None:
    status, output = train(root, "--lr=1e4", "--num_epochs=40", "--grad_clip_norm=null")
    assert status == 2
    assert re.search(r"(exploded to .* at step \d+|the loss is (nan|inf) at step \d+)", output)
    assert (
        "try a lower lr, check the data for wrong values, or a larger batch_size; the last checkpoint is kept" in output
    )


def test_nan_in_data_is_found_before_the_first_step(root: Path) -> None:
    actions = np.load(root / "your_dataset" / "actions.npy")
    actions[9 + 12 + 2, 5] = np.nan
    np.save(root / "your_dataset" / "actions.npy", actions)
    status, output = train(root)
    assert status == 2
    assert "actions of episode 2, step 2 holds NaN or an infinite value: fix or remove the episode" in output
    assert "Starting training" not in output and not (root / "runs").exists()


def test_training_very_slow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get = WindowDataset.__getitems__

    def slow(self: WindowDataset, windows: Sequence[int]) -> Batch:
        time.sleep(0.1)
        return get(self, windows)

    monkeypatch.setattr(WindowDataset, "__getitems__", slow)
    status, output = train(root, "--num_epochs=1", "--num_workers=0")
    assert status == 0
    share = re.findall(r"Hint: (\d+)% of the time goes into waiting for data: raise --num_workers \(now 0\)", output)
    assert len(share) == 1 and 30 <= int(share[0]) <= 100


def test_kl_loss_too_high(root: Path) -> None:
    status, output = train(root, "--kl_weight=50", "--lr=1e-9", "--log_frequency=1", "--num_epochs=4")
    assert status == 0
    assert len(re.findall(r"Hint: the KL loss .* reduce --kl_weight \(now 50; try 5 or 1\)", output)) == 1


@pytest.mark.slow
def test_wandb_not_logging(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(root / "no-netrc"))
    monkeypatch.setenv("HOME", str(root))
    status, output = train(root, "--wandb_project=p", "--num_steps=1")
    assert status == 0, output
    assert output.count("W&B:") == 1 and "wandb login" in output
    assert list((root / "runs" / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_no_kernel_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RTX 5090 with a PyTorch that is too old for it."""
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    for name, answer in {
        "is_available": True,
        "device_count": 1,
        "get_arch_list": ["sm_80", "sm_90"],
        "get_device_capability": (12, 0),
        "get_device_name": "NVIDIA GeForce RTX 5090",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    with pytest.raises(UserError, match=r"RTX 5090 has compute capability 12.0 .*install PyTorch 2.8 or newer"):
        make_accelerator(tiny_config(device="cuda"))


def test_rollout_length_mismatch(root: Path) -> None:
    np.save(root / "your_dataset" / "rollout_length.npy", np.array([9, 12, 7, 9]))
    status, output = train(root)
    assert status == 2
    assert "Rollout length mismatch: rollout_length.npy adds up to 37 steps, actions.npy has 38" in output


def test_invalid_observation_format(root: Path) -> None:
    rows = np.load(root / "your_dataset" / "observations.npy")
    steps = [{name: row[name] for name in rows.dtype.names} for row in rows]
    del steps[9 + 3]["image_right"]
    np.save(root / "your_dataset" / "observations.npy", np.array(steps, dtype=object), allow_pickle=True)
    status, output = train(root)
    assert status == 2
    assert re.search(r"episode 1: .*Invalid observation format: step 3 has no 'image_right'", output)
