"""What the NVIDIA driver reports about this machine's GPUs, without PyTorch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits")
_TIMEOUT = 30.0  # seconds: nvidia-smi waits forever for a GPU that hangs
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA_VENDOR, _DISPLAY_CLASS = "0x10de", "0x03"

_ARCHITECTURES = {
    (5, 0): "Maxwell",
    (6, 0): "Pascal",
    (7, 0): "Volta",
    (7, 5): "Turing",
    (8, 0): "Ampere",
    (8, 9): "Ada Lovelace",
    (9, 0): "Hopper",
    (10, 0): "Blackwell",
}
_LAST_MAJOR = 12  # of Blackwell


@dataclass(frozen=True)
class Gpu:
    """One GPU: memory in GiB if the driver reports it, compute capability as (major, minor)."""

    name: str
    memory: float | None
    capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        """`12.0 (Blackwell)`; only the number for a later one."""
        number = "{}.{}".format(*self.capability)
        if not (5, 0) <= self.capability < (_LAST_MAJOR + 1, 0):
            return number
        return f"{number} ({_ARCHITECTURES[max(first for first in _ARCHITECTURES if first <= self.capability)]})"


@dataclass(frozen=True)
class Driver:
    """The driver's version (None without a working driver), all its GPUs, and its fault."""

    version: str | None
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""

    @property
    def major(self) -> int:
        """570 of `570.181`; 0 where it is unknown."""
        return int((self.version or "0").partition(".")[0])


def query_driver() -> Driver:
    """Ask `nvidia-smi`, which ignores CUDA_VISIBLE_DEVICES."""
    if shutil.which("nvidia-smi") is None:
        return Driver(None)
    try:
        answer = subprocess.run(_QUERY, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        return Driver(None, problem=f"nvidia-smi gave no answer within {_TIMEOUT:.0f} s")
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode != 0:
        said = lines or answer.stderr.split("\n")
        return Driver(None, problem=f"nvidia-smi fails: {said[0].strip() or f'status {answer.returncode}'}")
    gpus, version = [], None
    for line in lines:
        name, mebibytes, capability, version = (field.strip() for field in line.split(","))
        major, _, minor = capability.partition(".")
        memory = float(mebibytes) / 1024 if mebibytes.isdigit() else None  # [N/A] where CPU and GPU share it
        gpus.append(Gpu(name, memory, (int(major), int(minor))))
    return Driver(version, tuple(gpus))


def has_nvidia_card() -> bool:
    """Whether the PCI bus has an NVIDIA display adapter, with or without a driver (Linux only)."""
    if not _PCI_DEVICES.is_dir():
        return False
    return any(
        _read(device / "vendor") == _NVIDIA_VENDOR and _read(device / "class").startswith(_DISPLAY_CLASS)
        for device in _PCI_DEVICES.iterdir()
    )


def _read(path: Path) -> str:
    return path.read_text().strip() if os.access(path, os.R_OK) else ""
