"""Copies some frames of a video file into another one without encoding them again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import av
import numpy as np

from bimact.data.formats.video_frames import libav_errors, open_video, video_listing
from bimact.video import frame_rate


def begins_at_key_frame(path: Path, times: np.ndarray) -> np.ndarray:
    """(T,) bool: whether a copy can begin at the frame of each time (T,), in seconds since the file's first frame.

    Raises:
        UserError: if the file cannot be read.
    """
    listing = video_listing(path)
    nearest = np.abs(listing.times[listing.is_key][:, None] - times).min(axis=0, initial=np.inf)
    return np.asarray(nearest < 1e-4)


def copy_frames(path: Path, times: np.ndarray, target: Path, fps: float) -> str | None:
    """Copy the frames of some times into a new MP4 file, with frame n at n / fps seconds.

    Args:
        times: (T,) seconds since the file's first frame, ascending.

    Returns:
        a digest of the properties that joined videos must share; None: these frames cannot be copied, since the first
        one is not a key frame, a time occurs twice, or some depend on frames outside of the range.

    Raises:
        UserError: if the file cannot be read.
    """
    with libav_errors(path, "read"), open_video(path) as container:
        stream = container.streams.video[0]
        if stream.time_base is None:
            return None
        unit, origin = float(stream.time_base), stream.start_time or 0
        wanted = np.round(times / unit).astype(np.int64) + origin
        if (np.diff(wanted) <= 0).any():
            return None
        # The frames have to be consecutive packets beginning with a key frame.
        container.seek(int(wanted[0]), stream=stream, backward=True)
        packets: list[Any] = []
        for packet in container.demux(stream):
            if packet.pts is None or packet.is_discard or (not packets and packet.pts != wanted[0]):
                continue
            packets.append(packet)
            if len(packets) == len(wanted):
                break
        order = {int(pts): number for number, pts in enumerate(wanted)}
        shown = [order.get(packet.pts) for packet in packets]
        if len(packets) < len(wanted) or None in shown or not packets[0].is_keyframe:
            return None
        numbers = np.array(shown)
        delay = int((np.arange(len(numbers)) - numbers).max())  # decoding precedes presentation
        unit_out = 1 / frame_rate(fps)
        try:
            with av.open(str(target), "w", format="mp4") as out:
                copied = out.add_stream_from_template(stream, opaque=True)
                copied.time_base = unit_out
                for number, (packet, frame) in enumerate(zip(packets, shown)):
                    packet.stream = copied
                    packet.time_base = unit_out
                    packet.pts, packet.dts, packet.duration = frame, number - delay, 1
                    out.mux(packet)
        except (av.error.FFmpegError, ValueError):  # MP4 does not support this codec
            target.unlink(missing_ok=True)
            return None
        context = stream.codec_context
        common = (context.name, context.width, context.height, context.pix_fmt, context.extradata, delay)
        return hashlib.sha256(repr(common).encode()).hexdigest()


def codec_name(path: Path) -> str:
    """libav's name of a video file's codec, such as "av1" or "h264".

    Raises:
        UserError: if the file cannot be read.
    """
    with libav_errors(path, "read"), open_video(path) as container:
        return str(container.streams.video[0].codec_context.codec.canonical_name)
