"""Keeps the videos that the page asks for: makes them when they are wanted, and no others."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimact.data.source import Source
from bimact.errors import UserError
from bimact.machine import usable_cores
from bimact.view.clips import Unwanted, make_clip, steps_done
from bimact.view.content import shown_fps

_SECONDS_UNTIL_UNWANTED = 3.0  # since a page last asked for the episode; it asks several times a second
_SECONDS_TO_END = 2.0
_MOST_CLIPS = 200  # on disk


@dataclass
class _Clip:
    """A video: waiting, being made (it has a ticket), ready, or with an error."""

    episode: int
    camera: str
    path: Path
    ticket: Path
    asked: float
    is_started: bool = False
    is_ready: bool = False
    error: str | None = None


class ClipStore:
    """Videos of a dataset's episodes in a folder.

    Args:
        source: the dataset.
        folder: that the videos go to; it is there, and nobody else's.
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
        """Make no more videos, and give up those that are being made."""
        with self._changed:
            self._is_open = False
            for clip in self._clips.values():
                clip.ticket.unlink(missing_ok=True)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)

    def progress(self, episode: int) -> dict[str, dict[str, Any]]:
        """Ask for the videos of an episode.

        Returns:
            for each camera, how many steps are `done`, whether it is `ready`, and an `error` or None.
        """
        with self._changed:
            clips = self._ask(episode)
            return {clip.camera: self._progress_of(clip) for clip in clips}

    def path(self, episode: int, camera: str) -> Path:
        """The file of a video, once it is made.

        Raises:
            UserError: it cannot be made.
        """
        with self._changed:
            while True:
                clip = next(clip for clip in self._ask(episode) if clip.camera == camera)
                if clip.is_ready:
                    return clip.path
                if clip.error is not None:
                    raise UserError(clip.error)
                self._changed.wait(_SECONDS_UNTIL_UNWANTED / 3)

    def _ask(self, episode: int) -> list[_Clip]:
        """The clips of an episode, which are wanted from now on; those of others, for which nobody waits, are not."""
        now = time.monotonic()
        for number, camera in enumerate(self._source.cameras):
            if (episode, camera) not in self._clips:
                path = self._folder / f"{episode}-{number}.mp4"  # no camera's name: it may not be fit for a file's
                self._clips[episode, camera] = _Clip(episode, camera, path, path.with_suffix(".ticket"), now)
                self._changed.notify_all()
        clips = [self._clips[episode, camera] for camera in self._source.cameras]
        for clip in clips:
            clip.asked = now
        for clip in list(self._clips.values()):
            if now - clip.asked > _SECONDS_UNTIL_UNWANTED and not clip.is_ready:
                clip.ticket.unlink(missing_ok=True)
                if not clip.is_started:
                    del self._clips[clip.episode, clip.camera]
        return clips

    def _progress_of(self, clip: _Clip) -> dict[str, Any]:
        length = self._source.episodes[clip.episode].length
        done = length if clip.is_ready else steps_done(clip.ticket)
        return {"done": done, "ready": clip.is_ready, "error": clip.error}

    def _work(self) -> None:
        while (clip := self._take()) is not None:
            self._make(clip)

    def _take(self) -> _Clip | None:
        """Wait for something to do; None: the store is closed."""
        with self._changed:
            while self._is_open:
                clip = self._next()
                if clip is not None:
                    clip.is_started = True
                    clip.ticket.touch()
                    return clip
                self._changed.wait()
        return None

    def _next(self) -> _Clip | None:
        """What was asked for last comes first."""
        waiting = [clip for clip in self._clips.values() if not clip.is_started]
        return max(waiting, key=lambda clip: clip.asked, default=None)

    def _make(self, clip: _Clip) -> None:
        error: str | None = None
        is_wanted = True
        try:
            fps = shown_fps(self._source)
            make_clip(self._source, clip.episode, clip.camera, clip.path, fps=fps, ticket=clip.ticket)
        except Unwanted:
            is_wanted = False
        except (UserError, OSError) as reason:
            error = str(reason)
        with self._changed:
            clip.ticket.unlink(missing_ok=True)
            clip.error, clip.is_ready = error, is_wanted and error is None
            if not is_wanted:
                del self._clips[clip.episode, clip.camera]
            self._drop_oldest()
            self._changed.notify_all()

    def _drop_oldest(self) -> None:
        ready = sorted((clip for clip in self._clips.values() if clip.is_ready), key=lambda clip: clip.asked)
        for clip in ready[: max(0, len(ready) - _MOST_CLIPS)]:
            clip.path.unlink(missing_ok=True)
            del self._clips[clip.episode, clip.camera]
