"""The demonstrations that are measured on: recorded once by scripted demonstrators, 480 × 640, with noise."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from measuring import BUILD

EPISODES = 4


def _bimact(*command: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("bimact")), *command], check=True, stdout=sys.stderr)


def two_cameras() -> Path:
    """In the training guide's format, with the cameras top and left_wrist."""
    path = BUILD / "two-cameras"
    if not (path / "rollout_length.npy").exists():
        cameras = ("--cameras", "top,left_wrist", "--image_size", "480x640", "--noise", "0.01")
        _bimact("record", "--task", "transfer_cube", "--episodes", str(EPISODES), *cameras, "--output_dir", str(path))
    return path


def lerobot() -> Path:
    """The camera top as a LeRobotDataset v3.0, with AV1 videos."""
    path = BUILD / "lerobot-v30"
    if not (path / "meta" / "info.json").exists():
        shutil.rmtree(path, ignore_errors=True)
        _bimact("convert", str(two_cameras()), str(path), "--to", "lerobot", "--cameras", "top")
    return path
