"""Frames of a video file: which belongs to which step of an episode, and decoding them once from front to back.

Where there are as many frames as steps, they belong together in their order, whatever the times say: robots whose clock
drops ticks, or runs at another rate than the camera is said to, are recorded so. Else a frame belongs to a step if it
is the nearest to the step's time and not more than half a frame away; the last steps may be up to one frame beyond the
last frame. Times that go back tell that the steps are in another order than the frames, unless something else says that
they are in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.format import VideoFormat as AvFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from bimact.data.source import FramesNote
from bimact.errors import UserError, in_words

# Both hold the time of each frame; and neither can name other files to read, as playlists can.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
_MAX_PIXELS = 1 << 25  # of a frame: far above any camera's, far below what fills the memory
_EXACT = 1e-3  # seconds: times are stored as float32, or in units of a millisecond
_LONGEST = 1e6  # seconds of a video
_FEWEST_GROUPS = 2  # groups of pictures that are worth a jump over them
# Matrices by their number in ISO/IEC 23091-2 → swscale's number, which older PyAV does not name:
# BT.709, FCC, SMPTE 240M, BT.2020 (both kinds). All others are taken for BT.601, and so is "unspecified".
_MATRICES = {1: 1, 4: 4, 7: 7, 9: 9, 10: 9}
_BT601 = 5
# Episodes are decoded in parallel by processes. PyAV before 17 knows no other number of threads.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


def frames_at(
    path: Path, times: Sequence[float], *, fps: float, describe: Callable[[int], str], as_codes: bool = False
) -> Iterator[np.ndarray]:
    """The frames that are nearest to some times.

    A video that ends before a wanted time has no frame for it, even if only its last frame is missing: nothing is
    repeated in its stead.

    Args:
        path: an MP4 or Matroska file.
        times: seconds since the file's first frame, ascending; a time may occur several times.
        fps: a frame may be half of 1 / fps away from the time that it is wanted for.
        describe: number of a time → what messages call it, such as "episode 3, step 170".
        as_codes: give the numbers as they are stored, of a grey video with more than 8 bits.

    Yields:
        (H, W, 3) uint8 RGB, or codes (H, W) uint16, for each time; the same array again if it is the same frame.

    Raises:
        UserError: if the file cannot be decoded or has no frame near one of the times.
    """
    with libav_errors(path, "opened"), open_video(path) as container:
        nearest = _nearest_frames(container, times)
        reformatter = VideoReformatter()  # keeps its tables from frame to frame
        shown: _TimedFrame | None = None
        image = np.empty(0, np.uint8)
        for number, time in enumerate(times):
            with libav_errors(path, f"decoded at {time:.2f} s ({describe(number)})"):
                found = next(nearest)
                if found is None or not abs(found.time - time) <= 0.5 / fps + _EXACT:
                    raise UserError(
                        f"{path} has no frame at {time:.2f} s ({describe(number)}), though it lists one: it is damaged"
                    )
                if found.frame.is_corrupt:
                    reason = f"{path} is damaged at {time:.2f} s ({describe(number)})"
                    raise UserError(f"{reason}: copy or record it again", reason)
                if found is not shown:
                    shown = found
                    image = _codes(found.frame) if as_codes else _as_rgb(found.frame, reformatter)
            yield image


@dataclass(frozen=True)
class VideoFormat:
    """What a video's frames are.

    Attributes:
        height: in pixels.
        width: in pixels.
        pixels: libav's name of how they are stored, such as yuv420p.
        channels: 1 (grey), 3, or 4 (the last one is transparency, and is dropped).
        rotation: degrees by which a player turns them; they are read as they are stored.
    """

    height: int
    width: int
    pixels: str
    channels: int
    rotation: int


def video_format(path: Path) -> VideoFormat:
    """What a video file's first frame is.

    Raises:
        UserError: if it cannot be decoded.
    """
    with libav_errors(path, "decoded"), open_video(path) as container:
        for frame in container.decode(container.streams.video[0]):
            rotation = round(frame.rotation) % 360
            return VideoFormat(frame.height, frame.width, frame.format.name, _channels(frame.format), rotation)
    raise UserError(f"{path} holds no frame")


@dataclass(frozen=True)
class VideoListing:
    """What a video file lists.

    Attributes:
        times: (N,) float64 ascending: when each frame is shown, in seconds since the first.
        is_key: (N,) bool: those that depend on no other frame.
        channels: of its frames, as in a `VideoFormat`; None: not told.
        videos: how many videos it holds; only the first one is read.
    """

    times: np.ndarray
    is_key: np.ndarray
    channels: int | None
    videos: int


def video_listing(path: Path) -> VideoListing:
    """What a video file lists. Nothing is decoded.

    Raises:
        UserError: if the file cannot be read.
    """
    status = path.stat()
    return _video_listing(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _video_listing(path: Path, size: int, mtime_ns: int) -> VideoListing:
    with libav_errors(path, "read"), open_video(path) as container:
        stream = container.streams.video[0]
        unit, origin = float(stream.time_base or 1), stream.start_time or 0
        pixels = stream.codec_context.format
        # A title picture is a video of its own to libav.
        videos = [its for its in container.streams.video if not its.disposition & Disposition.attached_pic]
        shown = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.pts is not None and not packet.is_discard
        ]
    numbers, is_key = np.array(sorted(shown), np.float64).reshape(-1, 2).T
    times = (numbers - origin) * unit
    times.setflags(write=False)
    return VideoListing(times, is_key > 0, None if pixels is None else _channels(pixels), len(videos))


def _channels(pixels: AvFormat) -> int:
    if any(component.is_alpha for component in pixels.components):
        return 4
    return 1 if len(pixels.components) == 1 and not pixels.has_palette else 3


class _TimedFrame(NamedTuple):
    time: float  # seconds since the file's first frame
    frame: VideoFrame


def _nearest_frames(container: InputContainer, times: Sequence[float]) -> Iterator[_TimedFrame | None]:
    """The frame nearest to each of some ascending times, None where there is none; long runs of others are skipped."""
    stream = container.streams.video[0]
    unit = float(stream.time_base or 1)  # seconds
    origin = (stream.start_time or 0) * unit
    present: _TimedFrame | None = None
    following: _TimedFrame | None = None
    last_key_time: float | None = None
    group_duration = 0.0  # the longest time between key frames so far, once there is one

    def decoded() -> Iterator[_TimedFrame]:
        nonlocal last_key_time, group_duration
        for frame in container.decode(stream):
            if frame.pts is None:  # belongs nowhere
                continue
            time = frame.pts * unit - origin
            if frame.key_frame:
                if last_key_time is not None:
                    group_duration = max(group_duration, time - last_key_time)
                last_key_time = time
            yield _TimedFrame(time, frame)

    frames = decoded()
    for time in times:
        if not abs(time) < _LONGEST:
            yield None
            continue
        if present is None or 0 < _FEWEST_GROUPS * group_duration < time - present.time:
            # Go to the last key frame before the time. Where frames are reordered some containers go to one that is
            # shown later; so try again further back.
            target, back = max(0.0, time), 1.0
            while True:
                container.seek(round((origin + target) / unit), stream=stream, backward=True)
                frames, last_key_time, following = decoded(), None, None
                present = next(frames, None)
                if target == 0 or (present is not None and present.time <= time + _EXACT):
                    break
                target, back = max(0.0, time - back), 2 * back
        while present is not None and abs(present.time - time) > _EXACT:
            following = next(frames, None) if following is None else following
            if following is None or abs(following.time - time) > abs(present.time - time):
                break
            present, following = following, None
        yield present


def open_video(path: Path) -> InputContainer:
    """Open a video file, which has at least one video.

    Raises:
        UserError: if it is no MP4 or Matroska file, or holds no video that libav decodes.
    """
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(str(path), options=options, metadata_errors="replace")
    except ValueError:  # InvalidDataError of av.error, and its ArgumentError, which versions before 17 lack
        raise UserError(
            f"{path} cannot be opened: it is no MP4 or Matroska video, or is cut off; copy or record it again"
        ) from None
    context = container.streams.video[0].codec_context if container.streams.video else None
    if context is None:
        container.close()
        raise UserError(f"{path} holds no video that libav decodes")
    context.thread_count = 1
    context.options = {"max_pixels": str(_MAX_PIXELS)}
    return container


@contextmanager
def libav_errors(path: Path, what: str) -> Iterator[None]:
    """Turn what libav raises on a damaged file into a `UserError`: "PATH cannot be WHAT"."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or in_words(error) or "it asks for too much memory"
        reason = f"{path} cannot be {what}: {reason}"
        raise UserError(f"{reason}; copy or record it again", reason) from None


def _as_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """(H, W, 3) uint8.

    The colour matrix and range are named, since older PyAV, such as 15, takes all video for BT.601 of limited range.
    """
    if frame.format.is_rgb:
        return frame.to_ndarray(format="rgb24")
    is_full_range = int(frame.color_range) == ColorRange.JPEG
    return reformatter.reformat(
        frame,
        format="rgb24",
        src_colorspace=_MATRICES.get(int(frame.colorspace), _BT601),
        dst_colorspace=_BT601,
        src_color_range=ColorRange.JPEG if is_full_range else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.BICUBIC,
        **_ONE_THREAD,
    ).to_ndarray()


def _codes(frame: VideoFrame) -> np.ndarray:
    """(H, W) uint16: the first plane, which has two bytes a pixel, the lower one first."""
    plane = frame.planes[0]
    return np.frombuffer(bytes(plane), "<u2").reshape(-1, plane.line_size // 2)[: frame.height, : frame.width]


# Matching --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """The frames of an episode.

    Attributes:
        times: (T,) seconds in the file at which the frame of each step is shown.
        note: what is not as the times say; None: all is.
    """

    times: np.ndarray
    note: FramesNote | None


def match_frames(
    frames: np.ndarray,
    begin: float,
    end: float,
    steps: np.ndarray,
    fps: float,
    describe: Callable[[int], str],
    *,
    is_ordered: bool = False,
) -> Matching:
    """Find the frame of each step.

    Args:
        frames: (N,) when the frames of the file are shown, ascending, in seconds.
        begin: second of the file at which the episode begins.
        end: second at which it ends; may be infinite.
        steps: (T,) times of the steps as recorded, in seconds; since the episode's beginning or any other time.
        fps: the frames' usual rate.
        describe: number of a step → what messages call it.
        is_ordered: something else than the times says that the steps are in their order.

    Raises:
        UserError: naming the first step that has no frame, or whose time goes back.
    """
    half = 0.5 / fps
    own = frames[(frames >= begin - half) & (frames < end - half)]
    if len(own) == 0:
        raise UserError(f"has no frame from {begin:.2f} s on ({describe(0)})")
    if not np.isfinite(steps).all():
        step = int(np.argmin(np.isfinite(steps)))
        if len(own) != len(steps):
            raise UserError(f"has {len(own)} frames for {len(steps)} steps, and {describe(step)} has no time")
        what = "some timestamps are NaN or infinite: frames and steps are matched in their order"
        return Matching(own, FramesNote(what))

    since_first = steps - steps[0]
    if len(own) == len(steps):
        by_time = _nearest(own, own[0] + since_first)
        if np.array_equal(by_time, np.arange(len(own))):
            return Matching(own, None)
        if not is_ordered:
            _refuse_going_back(since_first, len(own), describe)
        what = "timestamps and frames disagree, and are as many: they are matched in their order"
        return Matching(own, FramesNote(what, float(np.abs(own - own[0] - since_first).max())))

    # As the times say: since the episode's beginning, or else since their own.
    told: list[str] = []
    if len(own) > len(steps):
        told.append("there are more frames than steps: the times tell which are shown")
    wanted = begin + steps
    found = _nearest(own, wanted)
    if steps[0] != 0 and not _all_near(own[found], wanted, half):
        wanted = begin + since_first
        found = _nearest(own, wanted)
        told.append("timestamps do not begin at 0: the first one is subtracted")
    is_beyond = wanted > own[-1] + half + _EXACT
    if (
        is_beyond.any()
        and _all_near(own[found], np.minimum(wanted, own[-1]), half)
        and wanted.max() <= own[-1] + 2 * (half + _EXACT)
    ):
        told.append("the last step is up to a frame beyond the last frame, and shows that")
        wanted = np.minimum(wanted, own[-1])
    if not _all_near(own[found], wanted, half):
        step = int(np.argmax(np.abs(own[found] - wanted) > half + _EXACT))
        raise UserError(
            f"has no frame at {wanted[step]:.2f} s ({describe(step)}); it has {len(own)} frames for {len(steps)} steps"
        )
    _refuse_going_back(found, len(own), describe)
    if ((np.diff(found) == 0) & ~is_beyond[1:]).any() and len(own) < len(steps):
        told.append("there are fewer frames than steps: a frame is shown for several steps")
    return Matching(own[found], FramesNote("; ".join(told)) if told else None)


def _refuse_going_back(steps: np.ndarray, frames: int, describe: Callable[[int], str]) -> None:
    """See that times, or the frames found by them, do not go back."""
    back = np.diff(steps) < 0
    if back.any():
        step = int(back.argmax()) + 1
        raise UserError(
            f"has {frames} frames for {len(steps)} steps, whose timestamps go back ({describe(step)}): nothing tells "
            "which belong together"
        )


def _nearest(frames: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(T,) the number of the frame that is nearest to each time; the earlier one of two."""
    after = np.clip(np.searchsorted(frames, wanted), 1, max(1, len(frames) - 1))
    before = after - 1
    after = np.minimum(after, len(frames) - 1)
    is_before = np.abs(wanted - frames[before]) <= np.abs(frames[after] - wanted)
    nearest: np.ndarray = np.where(is_before, before, after)
    return nearest


def _all_near(found: np.ndarray, wanted: np.ndarray, half: float) -> bool:
    return bool((np.abs(found - wanted) <= half + _EXACT).all())
