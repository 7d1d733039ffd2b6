"""Out of memory: what is said, and the search for the largest batch, with an allocator that fails on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from omegaconf import OmegaConf

from bimact.errors import UserError
from bimact.policy.act import ActPolicy
from bimact.training import memory
from bimact.training.act_trainer import train_run
from bimact.training.memory import is_out_of_memory, largest_batch_size, out_of_memory
from bimact.training.prepare import prepare_run

CPU = torch.device("cpu")


def allocator_that_holds(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ActPolicy.forward

    def limited(self: ActPolicy, obs: dict[str, torch.Tensor], *arguments: object) -> object:
        if len(obs["state"]) > samples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, obs, *arguments)

    monkeypatch.setattr(ActPolicy, "forward", limited)


def test_real_allocator_failures_are_recognised() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(failure.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("size mismatch"))


def test_training_says_what_was_tried_and_what_to_try(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocator_that_holds(3, monkeypatch)
    with pytest.raises(UserError, match=r"out of memory with batch_size 6: try --batch_size 4 .*--auto_batch_size"):
        train_run(prepare_run(tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), batch_size=6)))
    assert "try --batch_size 4 " in str(out_of_memory(tiny_config(batch_size=8), CPU))
    assert "try --batch_size 8 (--gradient_accumulation_steps 2 " in str(out_of_memory(tiny_config(batch_size=9), CPU))
    assert "reduce hidden_dim" in str(out_of_memory(tiny_config(batch_size=1), CPU))
    assert str(out_of_memory(tiny_config(), torch.device("cuda"))).startswith("CUDA out of memory")


@pytest.mark.slow
@pytest.mark.parametrize(("holds", "found"), [(1, 1), (5, 4), (8, 8), (1000, 16)])
def test_search_ends_at_the_largest_power_of_two_that_fits(holds: int, found: int) -> None:
    tried: list[int] = []

    def step(size: int) -> None:
        tried.append(size)
        if size > holds:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert largest_batch_size(step, 31, CPU) == found
    assert tried == [2**k for k in range(len(tried))]


def test_search_passes_other_errors_on_and_gives_up_in_a_sentence() -> None:
    def broken(size: int) -> None:
        raise RuntimeError("size mismatch")

    def full(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(RuntimeError, match="size mismatch"):
        largest_batch_size(broken, 31, CPU)
    with pytest.raises(UserError, match="out of memory with batch_size 1"):
        largest_batch_size(full, 31, CPU)


def test_a_part_of_a_gpu_is_left_free_during_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    with pytest.raises(RuntimeError), memory._reserved_memory(torch.device("cuda")):
        assert shares == [0.9]
        raise RuntimeError
    assert shares == [0.9, 1.0]
    with memory._reserved_memory(CPU):
        pass
    assert len(shares) == 2


@pytest.mark.slow
def test_auto_batch_size_trains_with_what_it_found(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allocator_that_holds(11, monkeypatch)
    run = tmp_path / "run"
    changes = {"dataset_dir": str(dataset), "output_dir": str(run), "num_epochs": 1, "val_split": 0.0}
    train_run(prepare_run(tiny_config(auto_batch_size=True, **changes)))
    assert "batch_size is 8" in capsys.readouterr().out
    saved = OmegaConf.load(run / "config.yaml")
    assert (saved.batch_size, saved.auto_batch_size) == (8, False)
    # The search leaves nothing behind: the same run with that batch size from the beginning is bit-identical.
    changes["output_dir"] = str(tmp_path / "given")
    given = train_run(prepare_run(tiny_config(batch_size=8, **changes)))
    searched = torch.load(run / "checkpoint" / "act-train-1.pth")
    assert all(torch.equal(value, searched[name]) for name, value in given.policy.state_dict().items())
    # Going on keeps what was found, whatever the config says of the batch.
    changes["output_dir"] = str(run)
    assert prepare_run(tiny_config(auto_batch_size=True, **{**changes, "num_epochs": 2}), run).config.batch_size == 8
