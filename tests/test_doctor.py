"""What `bimact doctor` finds: real processes where they can be had, PyTorch's own answers replaced for GPUs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bimact import doctor, kernels, nvidia
from bimact.cli import main
from bimact.doctor import Examination, Row, State
from bimact.nvidia import Driver, Gpu, query_driver

ROOT = Path(__file__).parents[1]
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", 31.36, (12, 0))
DRIVER = Driver("570.181", (RTX_5090, RTX_5090))


def run_doctor(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "50", **environment}
    command = [sys.executable, "-m", "bimact", "doctor"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def fake_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `nvidia-smi` that is found first."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def fake_cuda(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], architectures: str, version: str = "12.8"
) -> None:
    """PyTorch's answers on a machine with two GPUs."""
    properties = SimpleNamespace(
        name="NVIDIA GeForce RTX 5090", total_memory=31.36 * 2**30, major=capability[0], minor=capability[1]
    )
    monkeypatch.setattr(torch.version, "cuda", version)
    for name, answer in (
        ("is_available", True),
        ("device_count", 2),
        ("get_arch_list", architectures.split()),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: properties.name)


# Kernels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("sm_50 sm_80 sm_86 sm_90", (12, 0), False),  # PyTorch 2.6 on an RTX 5090
        ("sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120", (12, 0), True),  # PyTorch 2.8 with CUDA 12.8
        ("sm_120", (12, 1), True),  # binaries run on later minor versions
        ("sm_86", (8, 9), True),
        ("sm_86", (9, 0), False),  # but not on another major version
        ("sm_86", (8, 0), False),  # nor on an earlier minor one
        ("compute_80", (12, 0), True),  # PTX is compiled for any later GPU
        ("compute_80", (7, 5), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (12, 0), False),
        ("compute_90a", (12, 0), False),
        ("sm_100a", (10, 3), False),
        ("sm_120f", (12, 1), True),
        ("compute_100f", (12, 0), False),
        ("sm_75 sm_120", (6, 1), False),
    ],
)
def test_kernels_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, architectures: str, capability: tuple[int, int], runs: bool
) -> None:
    fake_cuda(monkeypatch, capability, architectures)
    assert (kernels.missing_kernels(0) is None) == runs


def test_missing_kernels_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, (12, 0), "sm_80 sm_86 sm_90")
    message = kernels.missing_kernels(0) or ""
    assert message.startswith("NVIDIA GeForce RTX 5090 has compute capability 12.0 (Blackwell)")
    assert "it has sm_80 sm_86 sm_90" in message
    assert "install PyTorch 2.8 or newer with CUDA 12.8 or newer" in message
    assert "pip install 'torch>=2.8,<2.11' torchvision" in message
    fake_cuda(monkeypatch, (6, 1), "sm_75 sm_120")
    message = kernels.missing_kernels(0) or ""
    assert "6.1 (Pascal)" in message and "install PyTorch for CUDA 12.6" in message
    fake_cuda(monkeypatch, (3, 5), "sm_75 sm_120")
    assert "--device cpu" in (kernels.missing_kernels(0) or "")


def test_no_verdict_on_kernels_without_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, (12, 0), "")
    assert kernels.missing_kernels(0) is None
    fake_cuda(monkeypatch, (9, 0), "gfx90a gfx942")
    monkeypatch.setattr(torch.version, "cuda", None)  # as in a build for AMD's GPUs
    assert kernels.missing_kernels(0) is None


@pytest.mark.parametrize(
    ("capability", "text"),
    [
        ((6, 1), "6.1 (Pascal)"),
        ((7, 0), "7.0 (Volta)"),
        ((7, 5), "7.5 (Turing)"),
        ((8, 6), "8.6 (Ampere)"),
        ((8, 9), "8.9 (Ada Lovelace)"),
        ((9, 0), "9.0 (Hopper)"),
        ((12, 0), "12.0 (Blackwell)"),
        ((13, 0), "13.0"),
        ((3, 5), "3.5"),
    ],
)
def test_names_of_architectures(capability: tuple[int, int], text: str) -> None:
    assert Gpu("", 1.0, capability).architecture == text


# The driver -------------------------------------------------------------------------------------------


def test_driver_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["NVIDIA GeForce RTX 5090, 32607, 12.0, 570.181", "NVIDIA GB10, [N/A], 12.1, 570.181"]
    fake_smi(tmp_path, "\n".join(f"echo '{line}'" for line in lines), monkeypatch)
    driver = query_driver()
    assert (driver.version, driver.major, driver.problem) == ("570.181", 570, "")
    assert [gpu.capability for gpu in driver.gpus] == [(12, 0), (12, 1)]
    assert [gpu.memory for gpu in driver.gpus] == [32607 / 1024, None]


def test_driver_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", monkeypatch)
    row = doctor._driver(query_driver())
    assert row.state is State.BROKEN
    assert row.details == "nvidia-smi fails: Failed to initialize NVML: Driver/library version mismatch"
    assert row.remedy.startswith("restart the machine")


def test_driver_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(nvidia, "_TIMEOUT", 0.3)
    assert "gave no answer" in query_driver().problem


@pytest.mark.parametrize("vendor", ["0x10de", "0x8086"])
def test_card_without_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str) -> None:
    for name, kind, maker in (("00:00.0", "0x060000", "0x10de"), ("01:00.0", "0x030000", vendor)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{maker}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    monkeypatch.setattr(nvidia, "_PCI_DEVICES", tmp_path)
    row = doctor._driver(Driver(None))
    assert row.state is State.WITHOUT
    assert ("install the NVIDIA driver" in row.remedy) == (vendor == "0x10de")


# GPUs -------------------------------------------------------------------------------------------------


def test_gpus_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, (12, 0), "sm_90 sm_120")
    monkeypatch.setattr(kernels, "failed_computation", lambda index: None)
    gpus, row = doctor._gpus(DRIVER)
    assert gpus == DRIVER.gpus
    assert (row.state, row.status, row.details) == (State.READY, "Working", "2x NVIDIA GeForce RTX 5090")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    _, row = doctor._gpus(Driver("570.181", (RTX_5090,) * 4))
    assert row.details == "2x NVIDIA GeForce RTX 5090; CUDA_VISIBLE_DEVICES='2,0' hides 2 more"


def test_gpus_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, (12, 0), "sm_80 sm_90", version="12.4")
    _, row = doctor._gpus(DRIVER)
    assert (row.state, row.details) == (State.BROKEN, "no kernels for NVIDIA GeForce RTX 5090")
    assert "PyTorch 2.8 or newer with CUDA 12.8" in row.remedy


def test_gpu_on_which_nothing_can_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The computation itself is real: without a GPU it fails, as on one that another process holds."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    fake_cuda(monkeypatch, (12, 0), "sm_120")
    _, row = doctor._gpus(DRIVER)
    assert row.state is State.BROKEN
    assert row.details.startswith("cuda:0: ") and len(row.details.splitlines()) == 1
    assert "nvidia-smi" in row.remedy


def _none_usable(monkeypatch: pytest.MonkeyPatch, refusal: Exception, version: str | None = "12.8") -> Row:
    def init() -> None:
        raise refusal

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", version)
    gpus, row = doctor._gpus(DRIVER)
    assert gpus == ()
    return row


def test_pytorch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    row = _none_usable(monkeypatch, AssertionError("Torch not compiled with CUDA enabled"), version=None)
    assert row.state is State.BROKEN
    assert row.details == f"PyTorch {torch.__version__} is a build without CUDA"
    assert "pip install 'torch>=2.8,<2.11' torchvision" in row.remedy


def test_hidden_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    row = _none_usable(monkeypatch, RuntimeError("No CUDA GPUs are available"))
    assert (row.state, row.status) == (State.WITHOUT, "Hidden")
    assert row.details == "CUDA_VISIBLE_DEVICES='' hides all 2 of them"
    assert row.remedy == "unset it, or name the GPUs to use, from 0 to 1"


def test_unknown_refusal_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    row = _none_usable(monkeypatch, RuntimeError("CUDA unknown error - this may be due to\nan environment"))
    assert (row.state, row.details) == (State.BROKEN, "CUDA unknown error - this may be due to")


@pytest.mark.parametrize(("cuda", "driver", "other_build"), [("13.2", "570.181", True), ("12.8", "470.57", False)])
def test_advice_for_an_old_driver(monkeypatch: pytest.MonkeyPatch, cuda: str, driver: str, other_build: bool) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    advice = kernels._for_old_driver(Driver(driver))
    assert f"update the driver to {580 if cuda == '13.2' else 525} or newer" in advice
    assert ("or install PyTorch for the CUDA that it has" in advice) == other_build


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.skipif(torch.version.cuda is None or torch.cuda.is_available(), reason="needs PyTorch with CUDA, no GPU")
def test_old_driver_is_recognised_by_what_cuda_says(tmp_path: Path) -> None:
    """PyTorch's real refusal, on top of a driver library that says that it has CUDA 11.0."""
    source = "int cuDriverGetVersion(int *version) { *version = 11000; return 0; }"
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", tmp_path / "libcuda.so.1", "-x", "c", "-"]
    subprocess.run(command, input=source, text=True, check=True)
    code = "from bimact import kernels, nvidia; assert not kernels.usable_gpus()\n"
    code += "print(kernels.why_unusable(nvidia.Driver('450.51')))"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert f"driver 450.51 is too old for CUDA {torch.version.cuda}" in result.stdout, result.stderr
    assert "UserWarning" not in result.stderr


def test_no_gpu_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    _, row = doctor._gpus(Driver(None))
    assert (row.state, row.status, row.details) == (State.WITHOUT, "None", "training runs on the CPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    _, row = doctor._gpus(Driver(None))
    assert (row.state, row.details) == (State.READY, "Apple GPU (mps)")


# The rest of the machine ------------------------------------------------------------------------------


def test_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "act_training"))
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert doctor._environment().details == f"act_training (virtualenv in {tmp_path})"
    (tmp_path / "act_training" / "conda-meta").mkdir(parents=True)
    assert doctor._environment().details == "act_training (conda)"
    monkeypatch.setattr(sys, "prefix", "/usr")
    row = doctor._environment()
    assert row.state is State.WITHOUT and "environment.yml" in row.remedy


def test_wandb_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    keys = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(keys))
    row = doctor._wandb_login()
    assert (row.state, row.remedy) == (State.WITHOUT, "wandb login")
    keys.write_text("machine wandb.my-house.net\n  login user\n  password secret\n")
    assert doctor.wandb_login() is None
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.my-house.net")
    assert doctor._wandb_login().details == f"key in {keys}"
    keys.write_text("no netrc at all")
    assert doctor.wandb_login() is None
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    row = doctor._wandb_login()
    assert (row.state, row.details) == (State.READY, "key in WANDB_API_KEY")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"GB free for {tmp_path / 'runs' / 'later'}" in doctor._disk(tmp_path / "runs" / "later").details
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(3 * 2**30))
    row = doctor._disk(tmp_path)
    assert (row.state, row.status) == (State.WITHOUT, "Low")
    assert "--output_dir" in row.remedy


def test_missing_opengl_ends_the_probe_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gym_aloha")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/nowhere")
    simulation, opengl = doctor._simulation()
    assert simulation.state is State.READY and "gym_aloha" in simulation.details
    assert opengl.state is State.WITHOUT and "apt-get install" in opengl.remedy


def test_missing_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    (simulation,) = doctor._simulation()
    assert simulation.state is State.WITHOUT and "'.[sim]'" in simulation.remedy
    assert doctor._optuna().state is State.WITHOUT and "'.[sweep]'" in doctor._optuna().remedy


# The command ------------------------------------------------------------------------------------------


def _printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *rows: Row) -> tuple[int | None, str]:
    monkeypatch.setattr(doctor, "examine", lambda: Examination(rows, DRIVER.gpus, DRIVER))
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    code = stop.value.code
    assert code is None or isinstance(code, int)
    return code, capsys.readouterr().out


def test_tables_of_a_machine_with_two_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ready = Row("GPUs", State.READY, "Working", "2x NVIDIA GeForce RTX 5090")
    status, text = _printed(monkeypatch, capsys, Row("PyTorch", State.READY, "2.8.0+cu128"), ready)
    assert status == 0
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert cells == [
        ["PyTorch", "✅ 2.8.0+cu128", ""],
        ["GPUs", "✅ Working", "2x NVIDIA GeForce RTX 5090"],
        ["0", "NVIDIA GeForce RTX 5090", "31.36 GB", "12.0 (Blackwell)", "570.181"],
        ["1", "NVIDIA GeForce RTX 5090", "31.36 GB", "12.0 (Blackwell)", "570.181"],
    ]
    assert text.splitlines()[-1] == "✅ Ready for training on the GPU."


def test_faults_have_a_line_each_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "install it: " + "word " * 60 + "end"
    broken = Row("PyTorch", State.BROKEN, "Broken", "OSError: [no such] library", long)
    status, text = _printed(monkeypatch, capsys, broken, Row("W&B login", State.WITHOUT, "None", "", "wandb login"))
    assert status == 1
    assert f"❌ PyTorch: {long}" in text.splitlines()
    assert "➖ W&B login: wandb login" in text.splitlines()
    assert "OSError: [no such] library" in text
    assert text.splitlines()[-1] == "❌ Not ready for training: PyTorch."


@pytest.mark.slow
def test_a_damaged_package_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    package = tmp_path / "accelerate"
    package.mkdir()
    (package / "__init__.py").write_text("raise ValueError('numpy.dtype size changed')")
    result = run_doctor(ROOT, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1, result.stderr
    assert re.search(r"│ accelerate +│ ❌ Broken +│ ValueError: numpy.dtype size changed", result.stdout)
    assert re.search(r"│ ACT Code +│ ❌ Broken +│ ValueError", result.stdout)
    assert re.search(r"│ CPU +│ ✅ Ready +│ \d+ cores", result.stdout)
    assert "Traceback" not in result.stderr


def test_help_names_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "Exit status 1" in capsys.readouterr().out
