"""Videos of episodes for the page: one frame a step, at the dataset's rate, so that time and step are one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from bimact.data.source import Source
from bimact.data.workers import run_apart
from bimact.errors import UserError

_STEPS_BETWEEN_KEYFRAMES = 10  # what a browser decodes at most to show one step
_BT709 = 1  # of primaries, transfer and matrix, in ITU-T H.273
_SECONDS, _SECONDS_A_STEP = 60.0, 0.5  # until a child is taken to hang


class Unwanted(UserError):
    """Nobody wants the video any more."""


def make_clip(
    source: Source, episode: int, camera: str, path: Path, *, fps: float, ticket: Path, max_width: int | None = None
) -> None:
    """Write one camera's view of one episode as an H.264 video, in a child process.

    Frame n is step n and is shown from n / fps on. The file has its name once it is whole.

    Args:
        path: the MP4 file.
        fps: steps a second.
        ticket: a file that is there as long as the video is wanted; it tells how many steps are done.
        max_width: wider images are scaled down; None: they stay as they are.

    Raises:
        Unwanted: the ticket was removed.
        UserError: an image cannot be read.
    """
    chosen = source.episodes[episode]
    timeout = clip_timeout(source, episode)
    what = f"{source.path}, {chosen.name}, camera {camera}"
    try:
        run_apart(encode_clip, source, episode, camera, path, fps, ticket, max_width, what=what, timeout=timeout)
    except UserError:
        if ticket.exists():
            raise
    if not ticket.exists():
        raise Unwanted(f"{what}: no longer wanted")


def steps_done(ticket: Path) -> int:
    """How far the video of a ticket is."""
    try:
        return int(ticket.read_text() or 0)
    except FileNotFoundError:
        return 0


def clip_timeout(source: Source, episode: int) -> float:
    """Seconds after which making a video is taken to hang."""
    return _SECONDS + _SECONDS_A_STEP * source.episodes[episode].length


def encode_clip(
    source: Source, episode: int, camera: str, path: Path, fps: float, ticket: Path, max_width: int | None
) -> None:
    """What `make_clip` does, in this process; it ends without a file once the ticket is removed."""
    length = source.episodes[episode].length
    partial = path.with_suffix(".partial")
    rate = Fraction(fps).limit_denominator(10_000)
    try:
        with ticket.open("r+b", buffering=0) as progress, _writer(partial, rate) as (container, stream):
            count, size = 0, (0, 0, 3)
            for image in islice(source.read_frames(episode, camera, range(length)), length):
                if count == 0:
                    size = image.shape
                    stream.height, stream.width = _video_size(image, max_width)
                if image.shape != size:
                    raise UserError(
                        f"{source.episodes[episode].name}, step {count}: the image of camera {camera} has "
                        f"{image.shape[0]}×{image.shape[1]} pixels, the first one {size[0]}×{size[1]}"
                    )
                frame = _frame(image, stream.height, stream.width)
                frame.pts, frame.time_base = count, 1 / rate
                container.mux(stream.encode(frame))
                count += 1
                progress.seek(0)
                progress.write(b"%d" % count)
                if not ticket.exists():
                    return
            container.mux(stream.encode())
        if count < length:
            raise UserError(f"{source.episodes[episode].name} has {count} images of camera {camera}, not {length}")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write the video {path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _writer(path: Path, rate: Fraction) -> Iterator[tuple[av.container.OutputContainer, av.VideoStream]]:
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # Without B-frames the first frame is at 0 and each one is where its step is.
        options = {"crf": "23", "preset": "veryfast", "bf": "0", "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"  # what all browsers decode
        context = stream.codec_context
        context.time_base = 1 / rate
        context.gop_size = _STEPS_BETWEEN_KEYFRAMES
        # Untold, browsers guess the colours by the image's size.
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
        yield container, stream


def _video_size(image: np.ndarray, max_width: int | None) -> tuple[int, int]:
    """Height and width for images (H, W, 3); even numbers, which H.264 needs."""
    height, width = image.shape[:2]
    if max_width is not None and width > max_width:
        height, width = max(1, round(height * max_width / width)), max_width
    return height + height % 2, width + width % 2


def _frame(image: np.ndarray, height: int, width: int) -> av.VideoFrame:
    """(H, W, 3) uint8 RGB → a frame of the video's size; an odd edge is repeated rather than the image stretched."""
    missing = height - image.shape[0], width - image.shape[1]
    if max(missing) == 1 and min(missing) >= 0:
        image = np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(width, height, "yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=Interpolation.AREA)
