"""Whether this PyTorch can compute on this machine's GPUs, and if not, why and what helps."""

from __future__ import annotations

import os
import re
import warnings

import torch

from bimact.nvidia import Driver, Gpu

_ARCH = re.compile(r"(sm|compute)_(\d+)([af]?)")
_OLDEST_OF_CUDA_12_8 = (7, 5)
_OLDEST_OF_CUDA_12_6 = (5, 0)
# NVIDIA's minimum on Linux for any release of that CUDA generation
_OLDEST_DRIVER = {"12": 525, "13": 580}


# On Linux, these releases come with CUDA 12.8.
INSTALL_CUDA_12_8 = "pip uninstall -y torch torchvision && pip install 'torch>=2.8,<2.11' torchvision"


def usable_gpus() -> list[Gpu]:
    """The GPUs that PyTorch sees, in its order, which is that of `cuda:0`, `cuda:1`, ..."""
    if not _cuda_is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Gpu(gpu.name, gpu.total_memory / 2**30, (gpu.major, gpu.minor)) for gpu in found]


def missing_kernels(device_index: int = 0) -> str | None:
    """Whether PyTorch was built without kernels for a GPU, so that its first one ends in "no kernel image".

    Args:
        device_index: of a GPU that is there, as in `cuda:1`.

    Returns:
        A sentence that names the GPU, what PyTorch has, and what to install; None if all is well.
    """
    architectures = torch.cuda.get_arch_list()
    if torch.version.cuda is None or not architectures:  # AMD's GPUs; a build that does not tell
        return None
    capability = torch.cuda.get_device_capability(device_index)
    if any(_runs_on(name, capability) for name in architectures):
        return None
    gpu = Gpu(torch.cuda.get_device_name(device_index), None, capability)
    return (
        f"{gpu.name} has compute capability {gpu.architecture}, for which PyTorch {torch.__version__} holds no "
        f"kernels (it has {' '.join(architectures)}): {_build_for(capability)}"
    )


def _runs_on(name: str, capability: tuple[int, int]) -> bool:
    """Whether code for `name`, such as sm_86, sm_90a, sm_120f or compute_80, runs on a GPU.

    Binaries run on their own major version from their minor version on, PTX is compiled for any later GPU. A
    suffix binds both: `a` to one compute capability, `f` to its family.
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
        return "no PyTorch that bimact runs with has them; use --device cpu"
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
        return _first_line(error)
    return None


def why_unusable(driver: Driver) -> tuple[str, str]:
    """Why PyTorch sees none of the driver's GPUs.

    Returns:
        The reason, and what to do.
    """
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is a build without CUDA", f"install one with it: {INSTALL_CUDA_12_8}"
    reason = _refusal()
    if "driver on your system is too old" in reason:
        return f"driver {driver.version} is too old for CUDA {torch.version.cuda}", _for_old_driver(driver)
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        advice = f"unset it, or name the GPUs to use, from 0 to {len(driver.gpus) - 1}"
        return f"CUDA_VISIBLE_DEVICES='{visible}' hides all {len(driver.gpus)} of them", advice
    return reason, "if `nvidia-smi` is content, restart the machine or install its driver anew"


def _refusal() -> str:
    """What CUDA says when it is started."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return _first_line(error)
    return "PyTorch finds no GPU and does not say why"


def _for_old_driver(driver: Driver) -> str:
    generation = str(torch.version.cuda).partition(".")[0]
    newest, needed = max(_OLDEST_DRIVER), _OLDEST_DRIVER.get(generation)
    advice = f"update the driver to {needed} or newer" if needed else "update the driver"
    if generation >= newest and driver.major >= _OLDEST_DRIVER["12"]:
        return f"{advice}, or install PyTorch for the CUDA that it has: {INSTALL_CUDA_12_8}"
    return advice


def _cuda_is_available() -> bool:
    with warnings.catch_warnings():  # why_unusable says it better
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
