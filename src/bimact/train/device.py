"""Which device and which precision a run uses."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from bimact.config import Config
from bimact.data.windows import Batch
from bimact.errors import UserError
from bimact.kernels import missing_kernels
from bimact.machine import keep_freed_memory


def choose_device(name: str) -> torch.device:
    """`auto`, `cuda`, `cuda:1`, `mps` or `cpu` → a device that is there.

    Raises:
        UserError: if it is not.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device is '{name}', it has to be cuda, cuda:1, mps, cpu or auto") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise UserError(
                f"--device {name}: PyTorch finds no CUDA GPU here; use --device auto or --device cpu (`bimact doctor` "
                "tells why there is none)"
            )
        if (device.index or 0) >= count:
            raise UserError(f"--device {name}: there are only {count} GPUs, cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: no Apple GPU here; use --device auto or --device cpu")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` → bf16 where the device computes it in hardware, else full precision."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        return "bf16" if cpu_has_bf16() else "no"
    return "no"


def precision_dtype(precision: str) -> torch.dtype:
    """The number format of matrix products: of `no`, `bf16` or `fp16`."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX)."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return False
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))


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
    if AcceleratorState._shared_state:
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
