"""MP4 files of RGB images: written image by image, and joined without encoding again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import numpy as np

from bimact.machine import reset_scheduling

H264 = {"crf": "23", "preset": "veryfast"}  # for any browser


class VideoWriter:
    """Encodes images (H, W, 3) uint8 RGB as they come, the n-th shown from n / fps on; H and W have to be even.

    A file gets its name when it is closed, so that a video that can be seen is a complete one. As a context manager,
    it leaves no file behind after an error.

    Args:
        file: the path, whose folder is created; or a buffer.
        fps: frames per second.
        encoder: of FFmpeg, for pixels in yuv420p, which all browsers decode.
        options: of the encoder.
        is_streamable: the index comes first in the file, so that a browser can begin before it has all of it.
    """

    def __init__(
        self,
        file: str | Path | io.BytesIO,
        fps: float,
        encoder: str = "libx264",
        options: Mapping[str, str] = H264,
        *,
        is_streamable: bool = True,
    ) -> None:
        self._path: Path | None = None
        self._partial: Any = file
        if not isinstance(file, io.BytesIO):
            self._path = Path(file)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._partial = self._path.with_name(f".{self._path.name}.partial")
        self._rate = frame_rate(fps)
        self._count = 0
        target = self._partial if self._path is None else str(self._partial)
        flags = {"movflags": "+faststart"} if is_streamable else {}
        self._container = av.open(target, "w", format="mp4", options=flags)
        self.stream = cast(av.VideoStream, self._container.add_stream(encoder, rate=self._rate, options=dict(options)))
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = 1 / self._rate

    def add(self, image: np.ndarray | av.VideoFrame) -> None:
        """Append an image, or a frame that is in the encoder's pixel format already."""
        frame = image if isinstance(image, av.VideoFrame) else av.VideoFrame.from_ndarray(image, format="rgb24")
        if self._count == 0:
            self.stream.height, self.stream.width = frame.height, frame.width
        frame.pts, frame.time_base = self._count, 1 / self._rate
        self._container.mux(self.stream.encode(frame))
        if self._count == 0 and self.stream.codec_context.name == "libsvtav1":
            reset_scheduling()
        self._count += 1

    def close(self) -> None:
        self._container.mux(self.stream.encode())
        self._container.close()
        if self._path is not None:
            self._partial.replace(self._path)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
            else:
                self._container.close()
        finally:
            if self._path is not None:
                self._partial.unlink(missing_ok=True)


def frame_rate(fps: float) -> Fraction:
    """Frames per second as a fraction, such as 30000/1001."""
    return Fraction(fps).limit_denominator(100_000)


def join_videos(parts: Sequence[tuple[Path, int]], path: Path, fps: float) -> None:
    """Concatenate videos of the same kind into one file, and remove them.

    Args:
        parts: files and their numbers of frames.
    """
    before = 0  # frames
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        target: Any = None
        for part, frames in parts:
            with av.open(str(part)) as opened:
                source = opened.streams.video[0]
                if target is None:
                    target = container.add_stream_from_template(source, opaque=True)
                    target.time_base = source.time_base
                assert source.time_base is not None
                offset = before / frame_rate(fps) / source.time_base
                assert offset.denominator == 1
                for packet in opened.demux(source):
                    if packet.dts is None:  # the end
                        continue
                    assert packet.pts is not None
                    packet.pts, packet.dts = packet.pts + offset.numerator, packet.dts + offset.numerator
                    packet.stream = target
                    container.mux(packet)
            before += frames
    for part, _ in parts:
        part.unlink()
