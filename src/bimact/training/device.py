"""Accelerate for a run: its device, its precision, its processes."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import InitProcessGroupKwargs

from bimact.config import Config
from bimact.data.windows import Batch
from bimact.device import choose_device, choose_precision
from bimact.errors import UserError
from bimact.kernels import missing_kernels
from bimact.machine import keep_freed_memory


def make_accelerator(config: Config) -> Accelerator:
    """accelerate's view of the device, the precision and the processes that `torchrun` has started.

    Raises:
        UserError: if the device is not there.
    """
    device = choose_device(config.device)
    if device.index is not None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(
                f"--device {config.device} is one GPU, but several processes train: give --device cuda, and choose "
                "GPUs by CUDA_VISIBLE_DEVICES"
            )
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    if device.type == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        problem = missing_kernels(local_rank if device.index is None else device.index)
        if problem is not None:
            raise UserError(problem)
    if is_initialized():
        # accelerate keeps the first precision and device of a process; a notebook's next training may want others.
        AcceleratorState._reset_state(reset_partial_state=int(os.environ.get("WORLD_SIZE", 1)) == 1)
    if device.type == "cpu":
        keep_freed_memory()
    # Others wait so long while one converts a dataset; a process that dies is noticed at once.
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=choose_precision(config.mixed_precision, device),
        kwargs_handlers=[waiting],
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on the device; from page-locked memory the copy does not hold the CPU up."""
    obs, actions = batch
    return (
        {name: value.to(device, non_blocking=True) for name, value in obs.items()},
        actions.to(device, non_blocking=True),
    )
