"""Run by tests that end it: a conversion that takes some seconds."""

from __future__ import annotations

import sys
from pathlib import Path

from conversions import converted, smooth_source

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    converted(smooth_source(folder / "source", [100] * 4, seconds_a_frame=0.02), folder / "out", "aloha_hdf5")
