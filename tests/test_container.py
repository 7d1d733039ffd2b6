"""The container, and the forge's files: linted where the linters are; the image is built where Docker works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LONG

from bimact.opengl import APT_PACKAGES

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"


def lint(*command: str | Path) -> None:
    program = Path(sys.executable).parent / command[0]
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed")
    result = subprocess.run([program, *command[1:]], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_dockerfile() -> None:
    lint("hadolint", "Dockerfile")
    text = (ROOT / "Dockerfile").read_text()
    assert all(package in text for package in APT_PACKAGES)
    stages = [line.split()[-1] for line in text.splitlines() if line.startswith("FROM ") and " AS " in line]
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["build"]["target"] in stages


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("github-workflows", "workflows/*.yml"),
        ("github-issue-forms", "ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", "ISSUE_TEMPLATE/config.yml"),
    ],
)
def test_forge_files_follow_their_schema(schema: str, pattern: str) -> None:
    files = sorted(GITHUB.glob(pattern))
    assert files
    lint("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


@pytest.mark.skipif(not LONG, reason="downloads some GB")
def test_image_runs_the_demo(tmp_path: Path) -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker, or its daemon does not run")
    subprocess.run(["docker", "build", "--tag", "bimact-test", ROOT], check=True)
    user = f"{os.getuid()}:{os.getgid()}"
    command = ["docker", "run", "--rm", "--user", user, "--volume", f"{tmp_path}:/work", "bimact-test"]
    subprocess.run([*command, "demo", "--quick"], check=True)
    assert (tmp_path / "runs" / "demo-transfer_cube-quick" / "report.html").is_file()
