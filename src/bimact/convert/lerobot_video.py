"""Videos as LeRobot encodes them by default, and their joining without encoding again.

Source: video_utils.py of LeRobot.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from bimact.data.source import Camera

# One thread each: many parts are encoded at once. Of two frames each, at most one depends on another.
_QUALITY = {"g": "2", "crf": "30"}


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg, its options, and the smallest height and width in pixels that it is sure to take."""

    encoder: str
    options: tuple[tuple[str, str], ...]
    smallest: int = 16


CODECS = {
    "av1": Codec("libsvtav1", (("preset", "12"), ("svtav1-params", "lp=1"))),
    "h264": Codec("libx264", (("threads", "1"),)),
    "hevc": Codec("libx265", (("x265-params", "bframes=0:pools=1:frame-threads=1:log-level=error"),), smallest=64),
}


def fits_video(camera: Camera, codec: str) -> bool:
    """Whether a camera's images can be encoded, with colours at half the size (yuv420p)."""
    is_even = camera.height % 2 == 0 and camera.width % 2 == 0
    return is_even and min(camera.height, camera.width) >= CODECS[codec].smallest


def rate_of(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(100_000)


def encode(frames: Iterable[np.ndarray], file: Path | io.BytesIO, camera: Camera, fps: float, codec: str) -> None:
    """Write an MP4 file.

    Args:
        frames: (H, W, 3) uint8 RGB.
        codec: one of `CODECS`.
    """
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 speaks of errors only
    chosen, rate = CODECS[codec], rate_of(fps)
    target: Any = str(file) if isinstance(file, Path) else file
    with av.open(target, "w", format="mp4") as container:
        stream: Any = container.add_stream(chosen.encoder, rate, options={**_QUALITY, **dict(chosen.options)})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = camera.height, camera.width
        stream.codec_context.time_base = 1 / rate
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def encoded_bytes(frames: Sequence[np.ndarray], fps: float, codec: str) -> int:
    """What some frames take as a video."""
    file = io.BytesIO()
    encode(frames, file, Camera(*frames[0].shape[:2]), fps, codec)
    return len(file.getvalue())


def join(parts: Sequence[tuple[Path, int]], path: Path, fps: float) -> None:
    """Put videos of the same kind one after the other into one file, and remove them.

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
                ticks = before / rate_of(fps) / source.time_base
                for packet in opened.demux(source):
                    if packet.dts is None:  # the end
                        continue
                    packet.pts, packet.dts = _moved(packet.pts, ticks), _moved(packet.dts, ticks)
                    packet.stream = target
                    container.mux(packet)
            before += frames
    for part, _ in parts:
        part.unlink()


def _moved(time: int | None, ticks: Fraction) -> int:
    assert time is not None
    assert ticks.denominator == 1
    return time + ticks.numerator


def video_info(path: Path, fps: float) -> dict[str, Any]:
    """What a LeRobotDataset says of a camera's videos."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return {
            "video.height": stream.height,
            "video.width": stream.width,
            "video.codec": stream.codec_context.codec.canonical_name,
            "video.pix_fmt": stream.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": int(rate_of(fps)),
            "video.channels": 3,
            "has_audio": False,
        }
