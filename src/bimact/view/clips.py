"""Videos of episodes for the page: one frame per step, encoded when the page asks for them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from bimact.data.depth import depth_picture
from bimact.data.source import Source
from bimact.data.workers import run_apart
from bimact.errors import UserError
from bimact.machine import usable_cores
from bimact.video import H264, VideoWriter
from bimact.view.content import shown_fps

_STEPS_BETWEEN_KEYFRAMES = 10  # key frame interval: maximum number of frames that a browser decodes to show one step
_BT709 = 1  # of primaries, transfer and matrix, in ITU-T H.273
_SECONDS, _SECONDS_PER_STEP = 60.0, 0.5  # timeout of a child process

_SECONDS_UNTIL_CANCELLED = 3.0  # since a page last asked for the episode; it asks several times per second
_SECONDS_TO_END = 2.0
_MOST_CLIPS = 200  # on disk


class Cancelled(UserError):
    """The cancellation token of a video was removed."""


def encode_clip(
    source: Source, episode: int, camera: str, path: Path, fps: float, token: Path, max_width: int | None = None
) -> None:
    """Encode one camera's view of one episode as H.264, with step n at n / fps, in this process.

    Args:
        path: the MP4 file; it appears when it is complete.
        token: cancellation token: a file that exists as long as the video is needed, and contains the number of
            finished steps.
        max_width: wider images are scaled down; None: all keep their size.

    Raises:
        Cancelled: the token was removed.
        UserError: an image cannot be read, or the file cannot be written.
    """
    name, length = source.episodes[episode].name, source.episodes[episode].length
    # Without B-frames the first frame is at 0 and each one at its step.
    options = {**H264, "bf": "0", "sc_threshold": "0"}
    try:
        with token.open("r+b", buffering=0) as progress, VideoWriter(path, fps, options=options) as video:
            context = video.stream.codec_context
            context.gop_size = _STEPS_BETWEEN_KEYFRAMES
            # Undeclared, browsers guess the colours by the image's size.
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = ColorRange.MPEG
            count, shape, width, height = 0, (0, 0, 3), 0, 0
            frames = source.read_frames(episode, camera, range(length))
            if source.cameras[camera].is_depth:
                frames = map(depth_picture, frames)
            for image in islice(frames, length):
                if count == 0:
                    shape = image.shape
                    height, width = shape[:2]
                    if max_width is not None and width > max_width:
                        height, width = max(1, round(height * max_width / width)), max_width
                    height, width = height + height % 2, width + width % 2  # H.264 needs even numbers
                if image.shape != shape:
                    raise UserError(
                        f"{name}, step {count}: the image of camera {camera} has {image.shape[0]}×{image.shape[1]} "
                        f"pixels, the first one {shape[0]}×{shape[1]}"
                    )
                missing = height - shape[0], width - shape[1]
                if max(missing) == 1 and min(missing) >= 0:  # repeat an odd edge rather than stretch the image
                    image = np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="edge")
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                area = Interpolation.AREA
                video.add(
                    frame.reformat(width, height, "yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=area)
                )
                count += 1
                progress.seek(0)
                progress.write(b"%d" % count)
                if not token.exists():
                    raise Cancelled(f"{name}, camera {camera}: no longer wanted")
            if count < length:
                raise UserError(f"{name} has {count} images of camera {camera}, not {length}")
    except OSError as error:
        raise UserError(f"cannot write the video {path}: {error}") from None


def clip_timeout(source: Source, episode: int) -> float:
    """Seconds after which the process that encodes a video is considered hung."""
    return _SECONDS + _SECONDS_PER_STEP * source.episodes[episode].length


@dataclass
class _Clip:
    """A video: waiting, being encoded (its token exists), ready, or failed."""

    episode: int
    camera: str
    path: Path
    token: Path
    asked: float
    is_started: bool = False
    is_ready: bool = False
    error: str | None = None


class ClipStore:
    """Videos of a dataset's episodes in a folder, which are encoded when they are asked for.

    Args:
        source: the dataset.
        folder: an existing one, used only for the videos.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._clips: dict[tuple[int, str], _Clip] = {}
        self._changed = threading.Condition()
        self._is_open = True
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(usable_cores())]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Encode no more videos, and cancel those that are being encoded."""
        with self._changed:
            self._is_open = False
            for clip in self._clips.values():
                clip.token.unlink(missing_ok=True)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)

    def progress(self, episode: int) -> dict[str, dict[str, Any]]:
        """Ask for the videos of an episode.

        Returns:
            for each camera, how many steps are `done`, whether it is `ready`, and an `error` or None.
        """
        found = {}
        with self._changed:
            for clip in self._ask(episode):
                done = self._source.episodes[episode].length
                if not clip.is_ready:
                    try:
                        done = int(clip.token.read_text() or 0)
                    except FileNotFoundError:
                        done = 0
                found[clip.camera] = {"done": done, "ready": clip.is_ready, "error": clip.error}
        return found

    def path(self, episode: int, camera: str) -> Path:
        """The file of a video; waits until it is encoded.

        Raises:
            UserError: it cannot be encoded.
        """
        with self._changed:
            while True:
                clip = next(clip for clip in self._ask(episode) if clip.camera == camera)
                if clip.is_ready:
                    return clip.path
                if clip.error is not None:
                    raise UserError(clip.error)
                self._changed.wait(_SECONDS_UNTIL_CANCELLED / 3)

    def _ask(self, episode: int) -> list[_Clip]:
        """The clips of an episode, now requested; clips that are no longer requested are cancelled."""
        now = time.monotonic()
        for number, camera in enumerate(self._source.cameras):
            if (episode, camera) not in self._clips:
                path = self._folder / f"{episode}-{number}.mp4"  # a camera's name may not be a valid file name
                self._clips[episode, camera] = _Clip(episode, camera, path, path.with_suffix(".token"), now)
                self._changed.notify_all()
        clips = [self._clips[episode, camera] for camera in self._source.cameras]
        for clip in clips:
            clip.asked = now
        for clip in list(self._clips.values()):
            if now - clip.asked > _SECONDS_UNTIL_CANCELLED and not clip.is_ready:
                clip.token.unlink(missing_ok=True)
                if not clip.is_started:
                    del self._clips[clip.episode, clip.camera]
        return clips

    def _work(self) -> None:
        """A thread: encodes clips, the one asked for last first, until the store is closed."""
        while True:
            with self._changed:
                while self._is_open and all(clip.is_started for clip in self._clips.values()):
                    self._changed.wait()
                if not self._is_open:
                    return
                clip = max((c for c in self._clips.values() if not c.is_started), key=lambda clip: clip.asked)
                clip.is_started = True
                clip.token.touch()
            episode, fps, error = clip.episode, shown_fps(self._source), None
            what = f"{self._source.path}, {self._source.episodes[episode].name}, camera {clip.camera}"
            arguments = (self._source, episode, clip.camera, clip.path, fps, clip.token)
            try:
                run_apart(encode_clip, *arguments, what=what, timeout=clip_timeout(self._source, episode))
            except (UserError, OSError) as reason:
                error = str(reason)
            with self._changed:
                is_wanted = clip.token.exists()
                clip.token.unlink(missing_ok=True)
                clip.error, clip.is_ready = error, is_wanted and error is None
                if not is_wanted:
                    del self._clips[episode, clip.camera]
                ready = sorted((clip for clip in self._clips.values() if clip.is_ready), key=lambda clip: clip.asked)
                for oldest in ready[: max(0, len(ready) - _MOST_CLIPS)]:
                    oldest.path.unlink(missing_ok=True)
                    del self._clips[oldest.episode, oldest.camera]
                self._changed.notify_all()
