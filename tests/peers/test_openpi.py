"""openpi's own client, from PyPI and unchanged, against our server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import running, small_policy

from bimact.deploy.server import ServerSettings, resized

HERE = Path(__file__).parent
# What openpi-client needs and does not declare: typing_extensions.
PACKAGES = ["openpi-client==0.1.2", "numpy<2", "typing_extensions"]


@pytest.fixture(scope="module")
def openpi_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with openpi-client: BIMACT_OPENPI_PYTHON, or one that is made here."""
    given = os.environ.get("BIMACT_OPENPI_PYTHON")
    if given:
        return given
    folder = tmp_path_factory.mktemp("openpi")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    made = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    if made.returncode != 0:
        pytest.skip(f"openpi-client cannot be installed here: {made.stderr.strip().splitlines()[-1:]}")
    return str(python)


def observation(step: int) -> dict[str, Any]:
    """As `openpi_robot.py` makes it."""
    draw = np.random.default_rng(step)
    image = draw.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    return {"state": draw.normal(size=14), "image_left": image, "image_right": image}


@pytest.mark.slow
def test_openpi_client_broker_and_runtime(openpi_python: str) -> None:
    policy = small_policy()
    with running(policy, ServerSettings(port=0, api_key="sesame")) as port:
        command = [openpi_python, str(HERE / "openpi_robot.py"), str(port), "sesame"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert found["metadata"]["action_dim"] == 14 and found["metadata"]["prompt"].startswith("ignored")
    np.testing.assert_array_equal(np.float32(found["first"]), policy.predict_chunk(observation(0)))
    # The broker executes three steps of each chunk.
    expected = [policy.predict_chunk(observation(3 * chunk))[:3] for chunk in range(4)]
    np.testing.assert_array_equal(np.float32(found["executed"]), np.concatenate(expected))
    assert "the observation has no 'image_left'" in found["refused"] and "Traceback" not in found["refused"]
    # Our padding is openpi's.
    padded = resized(observation(3)["image_right"], (20, 20), "pad")
    np.testing.assert_array_equal(padded, np.uint8(found["padded"]))
