"""What only a GPU can show of training: `pytest -m gpu`, in under 8 minutes on one GPU.

`BIMACT_GPU_TESTS=cpu pytest -m gpu` runs on a CPU what has a meaning there, to see that the suite itself works.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset

import bimact
from bimact.config import save_config
from bimact.data.training_order import Step
from bimact.errors import UserError
from bimact.run_directory import Run
from bimact.training.act_trainer import ActTrainer, train_run
from bimact.training.device import to_device
from bimact.training.prepare import prepare_run

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products that repeat to the last bit
DEVICE = os.environ.get("BIMACT_GPU_TESTS", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="does not apply on a CPU")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
# `bimact`, with operations that repeat to the last bit
EXACT = "import torch; torch.use_deterministic_algorithms(True, warn_only=True); from bimact.cli import main; main()"


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Operations that give the same bits again, where a comparison asks for it; and a fresh compiler."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.compiler.reset()
    yield
    torch.use_deterministic_algorithms(False)
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 steps, of which 750 are trained on: more than one batch of each size below, and a partial last one."""
    return write_dataset(tmp_path_factory.mktemp("gpu") / "dataset", [251, 250, 249, 250], size=(32, 48))


def settings_of(dataset: Path, run: Path, **changes: Any) -> Any:
    settings = {"batch_size": 32, "mixed_precision": "no", "log_frequency": 1, "dropout": 0.1, "num_workers": 2}
    return tiny_config(dataset_dir=str(dataset), output_dir=str(run), device=DEVICE, **{**settings, **changes})


def train(dataset: Path, run: Path, resume_from: Path | None = None, **changes: Any) -> ActTrainer:
    return train_run(prepare_run(settings_of(dataset, run, **changes), resume_from))


def losses(run: Path) -> np.ndarray:
    return np.array([record["total_loss"] for record in Run(run).metrics() if "total_loss" in record])


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(run / "checkpoint" / f"act-train-{name}.pth", map_location="cpu")
    return loaded


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert not [name for name, value in mine.items() if not torch.equal(value, theirs[name])]
    np.testing.assert_array_equal(losses(one), losses(other))


def test_bf16_learns_as_float32_does(demonstrations: Path, tmp_path: Path) -> None:
    if DEVICE == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    for name in ("no", "bf16"):
        network = {"hidden_dim": 64, "dropout": 0.0, "lr": 2e-4}
        train(demonstrations, tmp_path / name, mixed_precision=name, num_steps=200, **network)
    exact, rounded = (losses(tmp_path / name).reshape(4, 50).mean(axis=1) for name in ("no", "bf16"))
    assert exact[-1] < 0.7 * exact[0]
    np.testing.assert_allclose(rounded, exact, rtol=0.03)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_graphs_give_the_losses_of_the_eager_policy(demonstrations: Path, tmp_path: Path, accumulate: int) -> None:
    """Also with gradient accumulation, under which a replayed graph must not overwrite gradients."""
    steps = {"gradient_accumulation_steps": accumulate, "num_steps": 30, "dropout": 0.0}
    for name, compiled in (("eager", False), ("compiled", True)):
        train(demonstrations, tmp_path / name, compile=compiled, **steps)
    np.testing.assert_allclose(losses(tmp_path / "compiled"), losses(tmp_path / "eager"), rtol=2e-3)
    eager, compiled_weights = weights(tmp_path / "eager"), weights(tmp_path / "compiled")
    for name, value in eager.items():
        if value.is_floating_point():
            torch.testing.assert_close(compiled_weights[name], value, rtol=0.02, atol=2e-3, msg=name)


def test_nothing_is_compiled_after_the_first_step(demonstrations: Path, tmp_path: Path) -> None:
    counters = torch._dynamo.utils.counters
    counters.clear()
    trainer = train(demonstrations, tmp_path / "run", compile=True, num_epochs=3)
    assert len(trainer.data.training) % 32, "the last batch of an epoch has to be a smaller one"
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    if DEVICE == "cuda":
        assert not counters["inductor"]["cudagraph_skips"]


@pytest.mark.parametrize("compiled", [False, True])
def test_resuming_is_exact(demonstrations: Path, tmp_path: Path, compiled: bool) -> None:
    """To the last bit, with graphs, averaged weights and augmentation."""
    run = {"compile": compiled, "ema_decay": 0.99, "augment": True, "mixed_precision": "bf16"}
    train(demonstrations, tmp_path / "whole", num_epochs=2, **run)
    train(demonstrations, tmp_path / "again", num_epochs=2, **run)
    assert_same(tmp_path / "whole", tmp_path / "again")  # else no resuming can be exact here
    torch.compiler.reset()
    train(demonstrations, tmp_path / "half", num_epochs=1, **run)
    torch.compiler.reset()
    last = tmp_path / "half" / "checkpoint" / "act-train-last.pth"
    train(demonstrations, tmp_path / "half", last, num_epochs=2, **run)
    assert_same(tmp_path / "whole", tmp_path / "half")


@needs_gpu
def test_too_large_a_batch_ends_in_a_sentence_and_the_largest_is_found(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [64, 64], size=(480, 640), cameras=("top",))
    settings = {"encoder": {"name": "pri3d", "fuse": "tokens"}, "cameras": ["top"], "val_split": 0.0, "num_steps": 2}
    free, total = torch.cuda.mem_get_info()
    filler = torch.empty(max(0, int(0.85 * total) - (total - free)), dtype=torch.uint8, device=DEVICE)
    with pytest.raises(UserError, match=r"out of memory with batch_size 128: try --batch_size 64"):
        train(dataset, tmp_path / "large", batch_size=128, **settings)
    torch.cuda.empty_cache()
    trainer = train(dataset, tmp_path / "found", auto_batch_size=True, **settings)
    assert 1 <= trainer.config.batch_size < 128
    assert np.isfinite(losses(tmp_path / "found")).all()
    del filler


@needs_gpu
def test_a_step_whose_gradients_overflow_is_skipped(demonstrations: Path, tmp_path: Path) -> None:
    prepared = prepare_run(settings_of(demonstrations, tmp_path / "run", mixed_precision="fp16"))
    trainer = ActTrainer(prepared)
    scaler = trainer.accelerator.scaler
    assert scaler is not None
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**60})
    before = {name: value.clone() for name, value in trainer.unwrapped_policy.named_parameters()}
    trainer.policy.train()
    steps = trainer._steps_left()
    assert torch.isfinite(trainer.train_step(*next(steps))).all()
    for name, value in trainer.unwrapped_policy.named_parameters():
        assert torch.equal(value, before[name]), name
    assert scaler.get_scale() < 2.0**60
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**10})
    trainer.train_step(*next(steps))
    assert any(not torch.equal(value, before[name]) for name, value in trainer.unwrapped_policy.named_parameters())


@needs_gpu
def test_page_locked_batches_are_whole_when_they_are_copied(demonstrations: Path, tmp_path: Path) -> None:
    """The copies wait behind seconds of other work, while the loader fills and frees more batches."""
    trainer = ActTrainer(prepare_run(settings_of(demonstrations, tmp_path / "run", num_workers=4)))
    wanted = [trainer.data.training.__getitems__(list(part.windows)) for part in _parts(trainer)]
    torch.cuda._sleep(2_000_000_000)
    copies = []
    for _, batches in trainer._steps_left():
        for batch in batches:
            assert batch[1].is_pinned()
            copies.append(to_device(batch, trainer.accelerator.device))
        del batch, batches
    torch.cuda.synchronize()
    assert len(copies) == len(wanted)
    for (obs, actions), (obs_wanted, actions_wanted) in zip(copies, wanted):
        assert torch.equal(actions.cpu(), actions_wanted)
        for name, value in obs_wanted.items():
            assert torch.equal(obs[name].cpu(), value), name


def _parts(trainer: ActTrainer) -> list[Any]:
    steps: list[Step] = list(trainer.order.steps())
    return [part for step in steps for part in step.parts]


@needs_gpu
def test_memory_does_not_grow(demonstrations: Path, tmp_path: Path) -> None:
    prepared = prepare_run(settings_of(demonstrations, tmp_path / "run", ema_decay=0.99, augment=True, num_epochs=100))
    trainer = ActTrainer(prepared)
    trainer.policy.train()
    seen = []
    while trainer.step < 1000:
        for step, batches in trainer._steps_left():
            trainer.train_step(step, batches)
            trainer.step += 1
            trainer.order.done += step.num_windows
            if trainer.step in (100, 1000):
                torch.cuda.synchronize()
                seen.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
        trainer.order.epoch, trainer.order.done = trainer.order.epoch + 1, 0
    (allocated, reserved), (allocated_then, reserved_then) = seen
    assert allocated_then <= allocated + (1 << 20) and reserved_then <= reserved + (64 << 20)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="needs SIGUSR2")
def test_a_preempted_training_continues_as_if_it_had_not_been(demonstrations: Path, tmp_path: Path) -> None:
    config = settings_of(demonstrations, tmp_path / "run", num_epochs=12, ema_decay=0.99)
    save_config(dataclasses.replace(config, output_dir=None), tmp_path / "config.yaml")

    def command(name: str, *more: str) -> list[str]:
        given = ["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / name), *more]
        return [sys.executable, "-c", EXACT, "train", *given]

    subprocess.run(command("whole"), check=True, capture_output=True, timeout=300)
    process = subprocess.Popen(command("stopped"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics, deadline = tmp_path / "stopped" / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and metrics.read_text().count("total_loss") >= 30):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(60) == 130
    done = len(losses(tmp_path / "stopped"))
    assert 30 <= done < len(losses(tmp_path / "whole")), "stopped in the middle"
    subprocess.run(command("stopped", "--resume_from", "auto"), check=True, capture_output=True, timeout=300)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


@needs_gpu
@needs_two
@pytest.mark.parametrize("more", [(), ("--compile", "true"), ("--gradient_accumulation_steps", "2")])
def test_two_gpus_train_as_one_does(demonstrations: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    config = settings_of(demonstrations, tmp_path / "run", num_steps=25, dropout=0.0)
    save_config(dataclasses.replace(config, output_dir=None), tmp_path / "config.yaml")
    launchers = {
        "one": ([sys.executable, "-c", EXACT, "train"], "32"),
        "two": ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"], "16"),
    }
    script = str(Path(__file__).parents[2] / "scripts" / "train_act.py")
    for name, (launcher, batch_size) in launchers.items():
        given = ["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / name), *more]
        command = [*launcher, *([script] if name == "two" else []), *given, "--batch_size", batch_size]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-3)


def test_a_policy_acts_on_the_gpu_as_on_the_cpu(demonstrations: Path, tmp_path: Path) -> None:
    train(demonstrations, tmp_path / "run", num_steps=20)
    here = bimact.load_policy(tmp_path / "run", device="cpu", precision="no")
    there = bimact.load_policy(tmp_path / "run", device=DEVICE, precision="no")
    dataset = bimact.open_dataset(demonstrations)
    for row in range(0, 200, 40):
        images = {f"image_{camera}": np.asarray(dataset.images[camera][row]) for camera in dataset.cameras}
        observation = {**images, "state": np.asarray(dataset.state[row])}
        expected, found = here.act(observation), there.act(observation)
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-3)  # products in TF32


def test_the_suite_says_what_it_ran_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The line to quote with a result: pytest -m gpu -s."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    with capsys.disabled():
        print("\n" + json.dumps({"gpus": gpus, "torch": torch.__version__, "cuda": torch.version.cuda}))
    assert gpus or DEVICE == "cpu"
