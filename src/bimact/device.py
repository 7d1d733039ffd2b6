"""Which device and which precision are used."""

from __future__ import annotations

import torch

from bimact.errors import UserError


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
                "says why)"
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
