"""Whether this machine is ready for training: components, their state, and what to do about faults."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import netrc
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

import bimact
from bimact.errors import first_line
from bimact.machine import usable_cores
from bimact.nvidia import Driver, Gpu, has_nvidia_card, query_driver
from bimact.opengl import choose_backend, missing_opengl, opengl_works

_LITTLE_DISK = 10.0  # GiB: a checkpoint of the guide's policy takes 1.2, with the state for resuming
_EXTRAS = "[sim,sweep,serve]"
_PACKAGES = (  # component, module that training imports, distribution
    ("open_clip", "open_clip", "open_clip_torch"),
    ("timm", "timm", "timm"),
    ("accelerate", "accelerate", "accelerate"),
    ("wandb", "wandb", "wandb"),
    ("tensorboard", "torch.utils.tensorboard", "tensorboard"),
)
_SIMULATION = ("mujoco", "gymnasium", "gym_aloha")
_GUIDE_IMPORTS = "from policy.act import build_act_policy; from train.act_trainer import ActTrainer"
_GUIDE_MODULES_ARE_FOUND = (
    "from importlib.util import find_spec; assert find_spec('policy.act') and find_spec('train.act_trainer')"
)


class State(Enum):
    """The state of a component, as its mark."""

    READY = "✅"
    WITHOUT = "➖"  # training runs without it
    BROKEN = "❌"  # training does not run, or not on an existing GPU


@dataclass(frozen=True)
class Row:
    """One component: its state, a word for it, details, and what to do if it is not ready."""

    component: str
    state: State
    status: str
    details: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Examination:
    """All rows, and the GPUs that PyTorch or else the driver sees."""

    rows: tuple[Row, ...]
    gpus: tuple[Gpu, ...]
    driver: Driver

    @property
    def has_usable_gpu(self) -> bool:
        return any(row.component == "GPUs" and row.state is State.READY for row in self.rows)

    @property
    def broken(self) -> list[str]:
        """Names of the components without which training does not run."""
        return [row.component for row in self.rows if row.state is State.BROKEN]

    def as_json(self) -> dict[str, Any]:
        """Everything, and the platform; paths and names of this machine's user are in `details`."""
        rows = [{**asdict(row), "state": row.state.name.lower()} for row in self.rows]
        return {
            "bimact": bimact.__version__,
            "platform": platform.platform(),
            "ready": not self.broken,
            "components": rows,
            "gpus": [{**asdict(gpu), "architecture": gpu.architecture} for gpu in self.gpus],
            "driver": self.driver.version,
        }


def examine(runs: Path = Path("runs")) -> Examination:
    """Examine this machine; takes some seconds, changes nothing and does not use the network.

    Args:
        runs: the folder of future runs.
    """
    driver = query_driver()
    torch_problem = _import_problem("torch")
    gpus = driver.gpus
    rows = [_environment(), Row("Python", State.READY, platform.python_version(), sys.executable)]
    if torch_problem:
        rows += [Row("PyTorch", State.BROKEN, "Broken", torch_problem, _install(_EXTRAS)), _driver(driver)]
    else:
        import torch

        kernels = "kernels: " + (" ".join(torch.cuda.get_arch_list()) or "CPU")
        rows.append(Row("PyTorch", State.READY, torch.__version__, kernels))
        if torch.version.cuda:
            rows.append(Row("CUDA", State.READY, torch.version.cuda, "that PyTorch was built with and includes"))
        else:
            rows.append(Row("CUDA", State.WITHOUT, "None", "a build of PyTorch without CUDA"))
        found, gpu_row = _gpus(driver)
        gpus = found or gpus
        rows += [_driver(driver), gpu_row]
    rows += [_act_code(), *(_package(*package) for package in _PACKAGES), _optuna(), *_simulation()]
    rows += [_wandb_login(), _disk(runs), _cpu(not torch_problem)]
    return Examination(tuple(rows), gpus, driver)


# Python and the packages ------------------------------------------------------------------------------


def _environment() -> Row:
    prefix = Path(sys.prefix)
    if (prefix / "conda-meta").is_dir():
        return Row("Environment", State.READY, "Ready", f"{prefix.name} (conda)")
    if sys.prefix != sys.base_prefix:
        return Row("Environment", State.READY, "Ready", f"{prefix.name} (virtualenv in {prefix.parent})")
    advice = "a virtual environment isolates its packages: `make setup`, or mamba with environment.yml"
    return Row("Environment", State.WITHOUT, "None", f"the Python of {prefix}", advice)


def _import_problem(module: str) -> str | None:
    """Why a module cannot be imported; None if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # a damaged package raises anything: seen are OSError, RuntimeError, ValueError
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _package(component: str, module: str, distribution: str) -> Row:
    problem = _import_problem(module)
    if problem:
        return Row(component, State.BROKEN, "Broken", problem, _install(_EXTRAS))
    return Row(component, State.READY, "Ready", importlib.metadata.version(distribution))


def _optuna() -> Row:
    if importlib.util.find_spec("optuna") is None:
        advice = f"only for hyperparameter searches: {_install('[sweep]')}"
        return Row("optuna", State.WITHOUT, "None", "not installed", advice)
    return _package("optuna", "optuna", "optuna")


def _run_python(code: str, folder: Path | None = None) -> tuple[bool, str]:
    """Run code in a new Python process, in a folder or the current one.

    Returns:
        Whether it succeeded, and the last line of its error message.
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    lines = result.stderr.strip().splitlines()
    return result.returncode == 0, lines[-1] if lines else f"Python ended with status {result.returncode}"


def project_root() -> Path | None:
    """The folder with `policy/` and `train/`; None if bimact is not an editable installation."""
    root = Path(bimact.__file__).resolve().parents[2]
    return root if (root / "policy" / "act").is_dir() else None


def _install(extras: str) -> str:
    """How to install bimact with extras such as `[sim]`."""
    if project_root() is None:
        return f"pip install 'bimact{extras}'"
    return f"pip install --editable '.{extras}' in the project's root"


def _act_code() -> Row:
    """The guide's imports in the project's root, and whether they work in the current folder."""
    root, version = project_root(), f"bimact {bimact.__version__}"
    if root is None:
        if _run_python(_GUIDE_IMPORTS)[0]:
            return Row("ACT Code", State.READY, "Ready", f"{version}, all imports work")
        advice = "`bimact guide-files DIR` writes what the training guide's commands need in their working directory"
        return Row("ACT Code", State.WITHOUT, "Partly", f"{version}, without policy and train here", advice)
    works, said = _run_python(_GUIDE_IMPORTS, root)
    if not works:
        return Row("ACT Code", State.BROKEN, "Broken", said, _install(_EXTRAS))
    if root == Path.cwd().resolve() or _run_python(_GUIDE_MODULES_ARE_FOUND)[0]:
        return Row("ACT Code", State.READY, "Ready", f"{version}, all imports work")
    return Row("ACT Code", State.WITHOUT, "Partly", f"policy and train can be imported only in {root}", f"cd {root}")


# PyTorch and the GPUs ---------------------------------------------------------------------------------


def _driver(driver: Driver) -> Row:
    if driver.problem:
        advice = "restart the machine; if that does not help, reinstall the NVIDIA driver"
        return Row("Driver", State.BROKEN, "Broken", driver.problem, advice)
    if driver.version:
        return Row("Driver", State.READY, driver.version, "NVIDIA")
    if has_nvidia_card():
        advice = (
            "install the NVIDIA driver (570 or newer for an RTX 5090), or start the container with its GPUs, "
            "as in `docker run --gpus all`"
        )
        return Row(
            "Driver", State.WITHOUT, "None", "this machine has an NVIDIA card, but there is no nvidia-smi", advice
        )
    return Row("Driver", State.WITHOUT, "None", "no nvidia-smi")


def _gpus(driver: Driver) -> tuple[tuple[Gpu, ...], Row]:
    """PyTorch's GPUs, and their row."""
    import torch

    from bimact.kernels import failed_computation, missing_kernels, usable_gpus, why_unusable

    gpus = tuple(usable_gpus())
    for index, gpu in enumerate(gpus):
        if problem := missing_kernels(index):
            return gpus, Row("GPUs", State.BROKEN, "Unusable", f"no kernels for {gpu.name}", problem)
        if problem := failed_computation(index):
            advice = "see in `nvidia-smi` whether another process holds the GPU; restart the machine if none does"
            return gpus, Row("GPUs", State.BROKEN, "Unusable", f"cuda:{index}: {problem}", advice)
    if gpus:
        names = ", ".join(f"{count}x {name}" for name, count in Counter(gpu.name for gpu in gpus).items())
        hidden, visible = len(driver.gpus) - len(gpus), os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible and hidden > 0:
            names += f"; CUDA_VISIBLE_DEVICES='{visible}' hides {hidden} more"
        return gpus, Row("GPUs", State.READY, "Working", names)
    if driver.gpus:
        why = why_unusable(driver)
        state, word = (State.WITHOUT, "Hidden") if why.is_hidden else (State.BROKEN, "Unusable")
        return gpus, Row("GPUs", state, word, why.reason, why.advice)
    if torch.backends.mps.is_available():
        return gpus, Row("GPUs", State.READY, "Working", "Apple GPU (mps)")
    if driver.problem:
        return gpus, Row("GPUs", State.WITHOUT, "None", "none without the driver")
    advice = "start with configs/demo.yaml, which is for training on a CPU"
    return gpus, Row("GPUs", State.WITHOUT, "None", "training runs on the CPU", advice)


# Simulation, tracking, the machine --------------------------------------------------------------------


def _simulation() -> Iterator[Row]:
    """The simulation's packages in one process, then rendering in another: either may crash."""
    if missing := [name for name in _SIMULATION if importlib.util.find_spec(name) is None]:
        advice = f"only to record and roll out: {_install('[sim]')}"
        yield Row("Simulation", State.WITHOUT, "None", f"not installed: {', '.join(missing)}", advice)
        return
    choose_backend()
    works, said = _run_python(f"import {', '.join(_SIMULATION)}")
    if not works:
        yield Row("Simulation", State.WITHOUT, "Broken", said, _install(_EXTRAS))
        return
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _SIMULATION)
    yield Row("Simulation", State.READY, "Ready", versions)
    if opengl_works():
        yield Row("OpenGL", State.READY, "Ready", f"headless, MUJOCO_GL={os.environ.get('MUJOCO_GL', 'glfw')}")
    else:
        yield Row("OpenGL", State.WITHOUT, "None", "MuJoCo cannot render", str(missing_opengl()))


def wandb_login() -> str | None:
    """Where Weights & Biases finds its API key, without a request to its server.

    Returns:
        The environment variable or the file; None without a login.
    """
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return str(path) if netrc.netrc(path).authenticators(host) else None
    except (OSError, netrc.NetrcParseError):
        return None


def _wandb_login() -> Row:
    place = wandb_login()
    if place:
        return Row("W&B login", State.READY, "Ready", f"key in {place}")
    return Row("W&B login", State.WITHOUT, "None", "runs with --wandb_project are kept offline", "wandb login")


def _disk(runs: Path) -> Row:
    folder = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free / 2**30
    details = f"{free:.0f} GB free for {runs.absolute()}"
    if free < _LITTLE_DISK:
        advice = "make room, choose another disk with --output_dir, or save less often: --checkpoint_frequency 100"
        return Row("Disk", State.WITHOUT, "Low", details, advice)
    return Row("Disk", State.READY, "Ready", details)


def _cpu(torch_works: bool) -> Row:
    details = f"{usable_cores()} cores, {psutil.virtual_memory().total / 2**30:.0f} GB of memory"
    if torch_works and _import_problem("bimact.training.device") is None:
        from bimact.device import cpu_has_bf16

        details += ", bf16 in hardware" if cpu_has_bf16() else ", no bf16 in hardware: full precision"
    return Row("CPU", State.READY, "Ready", details)
