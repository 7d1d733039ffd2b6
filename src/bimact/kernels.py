"""Whether this PyTorch can compute on this machine's GPUs; if not, why, and what to do."""

from __future__ import annotations

import os
import re
import warnings
from typing import NamedTuple

import torch

from bimact.errors import first_line
from bimact.nvidia import Driver, Gpu

_ARCH = re.compile(r"(sm|compute)_(\d+)([af]?)")
_OLDEST_OF_CUDA_12_8 = (7, 5)
_OLDEST_OF_CUDA_12_6 = (5, 0)
# NVIDIA's minimum on Linux for any release of that CUDA generation
_OLDEST_DRIVER = {"12": 525, "13": 580}


# On Linux, these releases come with CUDA 12.8.
INSTALL_CUDA_12_8 = "pip uninstall -y torch torchvision && pip install 'torch>=2.8,<2.11' torchvision"


def usable_gpus() -> list[Gpu]:
    """The GPUs that PyTorch sees, in the order of `cuda:0`, `cuda:1`, ..."""
    with warnings.catch_warnings():  # why_unusable has a better message
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Gpu(gpu.name, gpu.total_memory / 2**30, (gpu.major, gpu.minor)) for gpu in found]


def missing_kernels(device_index: int = 0) -> str | None:
    """Whether PyTorch was built without kernels for a GPU, so that any computation fails with "no kernel image".

    Args:
        device_index: of an existing GPU, as in `cuda:1`.

    Returns:
        A sentence that names the GPU, PyTorch's architectures, and what to install; None if it has kernels.
    """
    architectures = torch.cuda.get_arch_list()
    if torch.version.cuda is None or not architectures:  # AMD's GPUs; a build without a list
        return None
    capability = torch.cuda.get_device_capability(device_index)
    if any(_runs_on(name, capability) for name in architectures):
        return None
    gpu = Gpu(torch.cuda.get_device_name(device_index), None, capability)
    return (
        f"{gpu.name} has compute capability {gpu.architecture}, for which PyTorch {torch.__version__} has no "
        f"kernels (it has {' '.join(architectures)}): {_build_for(capability)}"
    )


def _runs_on(name: str, capability: tuple[int, int]) -> bool:
    """Whether code for `name`, such as sm_86, sm_90a, sm_120f or compute_80, runs on a GPU.

    Binaries run on their own major version from their minor version on, PTX is compiled for any later GPU. A suffix
    restricts both: `a` to one compute capability, `f` to its family.
    """
    match = _ARCH.fullmatch(name)
    if match is None:
        return False
    kind, number, suffix = match.groups()
    built_for = divmod(int(number), 10)
    if suffix == "a":
        return capability == built_for
    if kind == "compute" and not suffix:
        return capability >= built_for
    return capability[0] == built_for[0] and capability >= built_for


def _build_for(capability: tuple[int, int]) -> str:
    if capability < _OLDEST_OF_CUDA_12_6:
        return "no PyTorch that bimact supports has them; use --device cpu"
    if capability < _OLDEST_OF_CUDA_12_8:
        return "install PyTorch for CUDA 12.6, the last with GPUs of that age, as PyTorch's installation page says"
    return f"install PyTorch 2.8 or newer with CUDA 12.8 or newer: {INSTALL_CUDA_12_8}"


def failed_computation(device_index: int) -> str | None:
    """Compute something on a GPU.

    Returns:
        The first line of the error; None if it works.
    """
    try:
        ones = torch.ones(8, 8, device=f"cuda:{device_index}")
        (ones @ ones).sum().item()
    except RuntimeError as error:
        return first_line(error)
    return None


class Unusable(NamedTuple):
    """Why GPUs cannot be used, and what to do."""

    reason: str
    advice: str
    is_hidden: bool = False  # by CUDA_VISIBLE_DEVICES


def why_unusable(driver: Driver) -> Unusable:
    """Why PyTorch sees none of the driver's GPUs."""
    if torch.version.cuda is None:
        return Unusable(
            f"PyTorch {torch.__version__} is a build without CUDA", f"install one with it: {INSTALL_CUDA_12_8}"
        )
    reason = "PyTorch finds no GPU and gives no reason"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
    if "driver on your system is too old" in reason:
        return Unusable(f"driver {driver.version} is too old for CUDA {torch.version.cuda}", _for_old_driver(driver))
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        advice = f"unset it, or name the GPUs to use, from 0 to {len(driver.gpus) - 1}"
        return Unusable(
            f"CUDA_VISIBLE_DEVICES='{visible}' hides all {len(driver.gpus)} of them", advice, is_hidden=True
        )
    return Unusable(reason, "if `nvidia-smi` reports no error, restart the machine or reinstall its driver")


def _for_old_driver(driver: Driver) -> str:
    generation = str(torch.version.cuda).partition(".")[0]
    newest, needed = max(_OLDEST_DRIVER), _OLDEST_DRIVER.get(generation)
    advice = f"update the driver to {needed} or newer" if needed else "update the driver"
    if generation >= newest and driver.major >= _OLDEST_DRIVER["12"]:
        return f"{advice}, or install PyTorch for the CUDA that it has: {INSTALL_CUDA_12_8}"
    return advice
