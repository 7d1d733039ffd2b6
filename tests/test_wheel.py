"""The wheel in an environment and a directory of its own: it has all files, and the commands need no repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as for a release, from a copy of the repository's files."""
    folder = tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    copy = folder / "repository"
    for name in listed.stdout.split("\0"):
        if name and os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list(folder.glob("bimact-*.tar.gz"))) == 1
    (path,) = folder.glob("bimact-*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of a new environment: bimact from the wheel, its dependencies from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched, but the .pth files there are not read: the editable bimact is not found.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    installed = subprocess.run(pip, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    return folder / "bin"


def run(environment: Path, folder: Path, *command: str) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    variables["PATH"] = f"{environment}:{os.environ['PATH']}"
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    links = ("policy/", "train/")  # of guide_files
    wanted = {name.removeprefix("src/") for name in listed.split("\0") if name.startswith("src/bimact/")}
    wanted = {name for name in wanted if not (ROOT / "src" / name).is_dir()}
    wanted |= {f"bimact/guide_files/{name}" for name in listed.split("\0") if name.startswith(links)}
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.gl
def test_demo_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    """The main job in an empty directory."""
    where = run(environment, tmp_path, "python", "-c", "import bimact; print(bimact.__file__)")
    assert where.startswith(str(environment.parent))
    said = run(environment, tmp_path, "bimact", "demo", "--quick")
    assert "It tests the pipeline, not the policy." in said
    assert "$ bimact train --dataset_dir data/transfer_cube-2" in said and "--config demo" in said
    assert "Step 20: loss=" in said
    results = json.loads((tmp_path / "runs" / "demo-transfer_cube-quick" / "evaluation.json").read_text())
    assert results["rollouts"]["transfer_cube"]["rollouts"] == 2
    assert (tmp_path / "runs" / "demo-transfer_cube-quick" / "report.html").stat().st_size > 100_000


def test_guide_from_the_wheel(environment: Path, dataset: Path, tmp_path: Path) -> None:
    """Its script with its config, and its imports, in the directory that `bimact guide-files` makes."""
    run(environment, tmp_path, "bimact", "guide-files", "act")
    root = tmp_path / "act"
    for folder in ("configs", "policy", "scripts", "train"):
        shipped = {path.name: path.read_bytes() for path in (ROOT / folder).rglob("*.[py]*") if path.is_file()}
        for path in (path for path in (root / folder).rglob("*") if path.is_file()):
            assert path.read_bytes() == shipped[path.name] or path.name == "__init__.py"
    run(environment, root, "bash", "demo_training.sh", "--help")
    small = "--encoder.name conv --encoder.pretrained null --encoder.channels 8 --hidden_dim 16 --nheads 2"
    said = run(
        environment,
        root,
        *("python", "scripts/train_act.py", "--config", "configs/policy_act.yaml", "--dataset_dir", str(dataset)),
        *("--output_dir", "runs/x", "--device", "cpu", "--num_steps", "2", "--val_split", "0.25", *small.split()),
    )
    assert "Config: configs/policy_act.yaml" in said
    empty = tmp_path / "empty"  # where no configs/ is: the configs of the wheel are meant
    empty.mkdir()
    arguments = ["sweep", "configs/sweep.yaml", "--trials", "1", "--config", "policy_act", "--dataset_dir", "nowhere"]
    result = subprocess.run([environment / "bimact", *arguments], cwd=empty, capture_output=True, text=True)
    assert "dataset not found" in result.stderr and list(empty.iterdir()) == []
    code = "from policy.act import build_act_policy; from train.act_trainer import ActTrainer"
    run(environment, root, "python", "-c", code)
