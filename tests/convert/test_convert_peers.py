"""What LeRobot itself reads; tests/peers/README.md tells how to make the environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import SmoothSource, converted, images_of, smooth_source

from bimact.convert.lerobot_v30 import column_key
from bimact.data.formats.lerobot_meta import camera_key
from bimact.data.source import Camera

PYTHON = os.environ.get("BIMACT_LEROBOT_PYTHON")
SCRIPT = Path(__file__).parents[1] / "peers" / "lerobot_dataset.py"


def expected_of(source: SmoothSource) -> dict[str, Any]:
    """What LeRobot has to find, as the script wants it."""
    found: dict[str, Any] = {"fps": source.fps}
    for number, episode in enumerate(source.episodes):
        found[f"{number}/task"] = episode.task or ""
        for key, values in source.read_columns(number, list(source.columns)).items():
            found[f"{number}/{column_key('state' if key == 'qpos' else key)}"] = values
        for camera in source.cameras:
            found[f"{number}/{camera_key(camera)}"] = images_of(source, camera, number)
    return found


@pytest.mark.skipif(not PYTHON, reason="BIMACT_LEROBOT_PYTHON names no Python with LeRobot")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "fps"),
    [({}, 10.0), ({"codec": "h264"}, 50.0), ({"codec": "hevc"}, 30000 / 1001), ({"lossless": True}, 29.97)],
    ids=str,
)
def test_lerobot_reads_what_was_written(options: dict[str, Any], fps: float, tmp_path: Path) -> None:
    cameras = {"top": Camera(64, 96), "odd": Camera(35, 48)}
    source = smooth_source(tmp_path / "source", cameras=cameras, fps=fps)
    folder = converted(source, tmp_path / "out", "lerobot", **options)
    np.savez(tmp_path / "expected.npz", **expected_of(source))
    result = subprocess.run(
        [str(PYTHON), str(SCRIPT), str(folder), str(tmp_path / "expected.npz")],
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    noise = json.loads(result.stdout.splitlines()[-1])
    assert noise.pop("observation.images.odd") is None
    assert (
        (noise["observation.images.top"] is None) if options.get("lossless") else noise["observation.images.top"] > 33
    )
