"""The largest batch size that fits into memory."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from bimact.config import Config
from bimact.data.windows import WindowDataset
from bimact.errors import UserError
from bimact.policy.act import ActPolicy, act_losses
from bimact.run_directory import recorded
from bimact.training.device import to_device
from bimact.training.optimizer import make_optimizer
from bimact.training.ranks import Ranks

_LARGEST = {"cpu": 64}  # where larger batches are no faster
_LARGEST_ANYWHERE = 1024
_FRACTION_OF_GPU = 0.9  # of its memory that the search may use


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is an allocator's failure, of a GPU or of the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def out_of_memory(config: Config, device: torch.device) -> UserError:
    """The error for a batch that does not fit, with the batch size and what to try next."""
    tried = config.batch_size
    if tried == 1:
        advice = "reduce hidden_dim, temporal_context or encoder.image_size"
    else:
        next_one = 1 << ((tried - 1).bit_length() - 1)  # the power of two below
        advice = (
            f"try --batch_size {next_one} (--gradient_accumulation_steps {-(-tried // next_one)} keeps the batch of an "
            "optimizer step), or --auto_batch_size true, which finds the largest that fits"
        )
    name = "CUDA" if device.type == "cuda" else str(device)
    return UserError(f"{name} out of memory with batch_size {tried}: {advice}")


def largest_batch_size(try_step: Callable[[int], None], most: int, device: torch.device) -> int:
    """The largest power of two that fits, found by trying 1, 2, 4, …

    Args:
        try_step: trains a step with a batch size; raises the allocator's error.
        most: number of samples in the dataset.
        device: on a CPU the search ends at 64, since larger batches are no faster there.

    Raises:
        UserError: if a single sample does not fit.
    """
    fits = 0
    size = 1
    while size <= min(most, _LARGEST.get(device.type, _LARGEST_ANYWHERE)):
        try:
            try_step(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            gc.collect()
            clear_device_cache()
        fits, size = size, 2 * size
    if fits == 0:
        raise UserError(
            f"{device} out of memory with batch_size 1: reduce hidden_dim, temporal_context or encoder.image_size"
        )
    return fits


@contextmanager
def _reserved_memory(device: torch.device) -> Iterator[None]:
    """Keep a part of a GPU's memory free: training fragments it, and data-parallel training has buffers of its own."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_per_process_memory_fraction(_FRACTION_OF_GPU)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def with_largest_batch(config: Config, windows: WindowDataset, accelerator: Accelerator, ranks: Ranks) -> Config:
    """The config with the largest `batch_size` that fits, found by training steps of a temporary policy."""
    device = accelerator.device
    policy = ActPolicy(recorded(config)).to(device).train()
    optimizer = make_optimizer(policy, config)

    def try_step(size: int) -> None:
        if ranks.is_main:
            print(f"Looking for the largest batch that fits: {size}", flush=True)
        obs, actions = to_device(windows.__getitems__(range(size)), device)
        with accelerator.autocast():
            _, output = policy(obs, actions)
        act_losses(output, policy.normalized(actions, obs), obs["action_is_pad"], config).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with _reserved_memory(device):
        found = largest_batch_size(try_step, len(windows), device)
    size = ranks.all_reduce_min(found)
    if ranks.is_main:
        print(f"batch_size is {size}\n", flush=True)
    return dataclasses.replace(config, batch_size=size, auto_batch_size=False)
