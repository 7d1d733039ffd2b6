"""The guide's section on the environment: its one-liners, environment.yml, and what `bimact doctor` says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]

VERIFICATION = r"""
python -c "import torch; from policy.act import build_act_policy; \
print(f'PyTorch: {torch.__version__}'); \
print(f'CUDA: {torch.cuda.is_available()}'); \
print(f'GPUs: {torch.cuda.device_count()}'); \
print('✅ Environment ready!')"
"""
CHECK = 'python -c "import torch; print(torch.__version__, torch.cuda.is_available())"'

# Runs at each start of Python: whoever asks the network leaves a trace.
_NO_NETWORK = """
import os, socket

def _refuse(self, address, connect=socket.socket.connect):
    if self.family == socket.AF_UNIX:
        return connect(self, address)
    open(os.environ["NETWORK_TRACE"], "a").write(f"{address}\\n")
    raise OSError("no network")

socket.socket.connect = _refuse
"""


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def environment_yml() -> dict[str, list[object]]:
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert isinstance(content, dict)
    return content


def _pip_lines(environment_yml: dict[str, list[object]]) -> list[str]:
    (lines,) = [entry["pip"] for entry in environment_yml["dependencies"] if isinstance(entry, dict)]
    return list(lines)


def test_environment_has_the_guides_name_and_a_fitting_python(environment_yml: dict[str, list[object]]) -> None:
    assert environment_yml["name"] == "act_training"
    assert environment_yml["channels"] == ["conda-forge"]
    packages = [entry for entry in environment_yml["dependencies"] if isinstance(entry, str)]
    assert "pip" in packages
    (python,) = [entry.removeprefix("python") for entry in packages if entry.startswith("python")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for version in ("3.9", "3.10", "3.11", "3.12", "3.13"):
        assert SpecifierSet(python).contains(version) == (version != "3.9")
        assert SpecifierSet(project["requires-python"]).contains(version) == (version != "3.9")


def test_environment_installs_pytorch_for_the_guides_gpu_and_driver(environment_yml: dict[str, list[object]]) -> None:
    lines = [line for line in _pip_lines(environment_yml) if not line.startswith("--")]
    required = {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}
    assert set(required) == {"torch", "torchvision"}
    for version, fits in (("2.7.1", False), ("2.8.0", True), ("2.10.0", True), ("2.11.0", False)):
        assert required["torch"].contains(version) == fits


def test_environment_installs_the_project_with_extras_that_it_has(environment_yml: dict[str, list[object]]) -> None:
    (editable,) = [line for line in _pip_lines(environment_yml) if line.startswith("--")]
    match = re.fullmatch(r"--editable \.\[([a-z,]+)\]", editable)
    assert match is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(match[1].split(",")) == set(project["optional-dependencies"]) - {"docs"}
    torch_of_project = next(line for line in map(Requirement, project["dependencies"]) if line.name == "torch")
    assert torch_of_project.specifier.contains("2.8.0") and torch_of_project.specifier.contains("2.10.0")


@pytest.mark.slow
def test_quick_verification() -> None:
    result = shell(VERIFICATION, ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"PyTorch: {torch.__version__}",
        f"CUDA: {torch.cuda.is_available()}",
        f"GPUs: {torch.cuda.device_count()}",
        "✅ Environment ready!",
    ]


@pytest.mark.slow
def test_check_environment_line() -> None:
    result = shell(CHECK, ROOT)
    assert result.stdout == f"{torch.__version__} {torch.cuda.is_available()}\n", result.stderr


@pytest.mark.slow
def test_doctor_in_the_projects_root(tmp_path: Path) -> None:
    """Piped: a plain page, with the guide's rows, and no question to the network."""
    (tmp_path / "sitecustomize.py").write_text(_NO_NETWORK)
    trace = tmp_path / "trace"
    result = shell("bimact doctor", ROOT, PYTHONPATH=str(tmp_path), NETWORK_TRACE=str(trace), COLUMNS="40")
    assert result.returncode == 0, result.stdout + result.stderr
    assert not trace.exists(), trace.read_text()
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.split("└")[0].splitlines())) <= 120
    rows = dict(re.findall(r"^│ (\S.*?) +│ (\S+) ", result.stdout, re.MULTILINE))
    names = [
        "Environment",
        "Python",
        "PyTorch",
        "CUDA",
        "Driver",
        "GPUs",
        "ACT Code",
        "open_clip",
        "timm",
        "accelerate",
    ]
    assert list(rows)[: len(names)] == names
    assert {"wandb", "tensorboard", "optuna", "Simulation", "W&B login", "Disk", "CPU"} <= set(rows)
    assert rows["PyTorch"] == rows["ACT Code"] == rows["CPU"] == "✅"
    assert re.search(r"│ ACT Code +│ ✅ Ready +│ bimact \S+, all imports work", result.stdout)
    device = "GPU" if torch.cuda.is_available() else "CPU"
    assert result.stdout.splitlines()[-1] == f"✅ Ready for training on the {device}."


@pytest.mark.slow
def test_no_module_named_policy(tmp_path: Path) -> None:
    """Elsewhere than in the project's root, Python does not find `policy`; the doctor names the folder to go to."""
    result = shell(VERIFICATION, tmp_path)
    assert "No module named 'policy'" in result.stderr
    result = shell("bimact doctor", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"➖ ACT Code: cd {ROOT}" in result.stdout.splitlines()
