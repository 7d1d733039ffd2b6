"""H.264 video files that any browser plays."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


class VideoWriter:
    """Encodes frames (H, W, 3) uint8 RGB as they come; H and W have to be even.

    The file gets its name when it is closed, so that a video that can be seen is a whole one.
    """

    def __init__(self, path: str | Path, fps: int) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "veryfast"})
        self._stream.pix_fmt = "yuv420p"  # what all browsers decode
        self._stream.time_base = Fraction(1, fps)

    def add(self, frame: np.ndarray) -> None:
        if not self._stream.codec_context.is_open:
            self._stream.height, self._stream.width = frame.shape[:2]
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
            self._container.mux(packet)

    def close(self) -> None:
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        self._partial.replace(self.path)
