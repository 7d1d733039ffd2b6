"""What the writers of all formats share: parts of episodes that are written in child processes, side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from bimact.convert.content import Content
from bimact.data.workers import run_apart, run_jobs
from bimact.progress import ProgressBar

LEFT_OUT = "left out: "  # what notes of what is not written begin with

_STEPS_OF_A_PART = 1000  # at most: a long episode is written by several processes, and the progress bar moves
_SECONDS, _SECONDS_A_FRAME = 300.0, 1.0  # after which a child is taken to hang
_SAMPLED_FRAMES = 8  # whose encoded size tells that of all


@dataclass(frozen=True)
class Options:
    """How it is written.

    Attributes:
        codec: "av1", "h264" or "hevc": of LeRobot's videos.
        lossless: LeRobot's images are PNG files in its tables instead of videos.
        compress: ALOHA's images are JPEG files.
        workers: processes; None: one for each core.
    """

    codec: str | None = None
    lossless: bool = False
    compress: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class EpisodeSpan:
    """The steps of an episode from `first` to the one before `end`."""

    episode: int
    first: int
    end: int

    @property
    def steps(self) -> range:
        return range(self.first, self.end)


@dataclass(frozen=True)
class Writer(ABC):
    """Writes a content in one format.

    Raises:
        UserError: if the format cannot hold it.
    """

    content: Content
    options: Options

    format: ClassVar[str]  # for people

    def __post_init__(self) -> None:
        self.check()

    @abstractmethod
    def check(self) -> None:
        """See that the format can hold the content."""

    @abstractmethod
    def notes(self) -> list[str]:
        """A sentence for all that differs from the source, or is to be known."""

    @abstractmethod
    def bytes_needed(self) -> int:
        """What the dataset takes on the disk; may be an estimate."""

    @abstractmethod
    def write(self, folder: Path, progress: ProgressBar) -> None:
        """Write the dataset into an empty folder.

        Args:
            progress: counts images (steps, if there are no cameras).
        """

    def names_left_out(self) -> list[str]:
        """A note for formats that have no place for the names of dimensions."""
        named = [key for key, column in self.content.columns.items() if column.names is not None]
        if not named:
            return []
        return [f"{LEFT_OUT}the names of dimensions of {', '.join(named)}, for which the format has no place"]

    def whole_episodes(self) -> list[EpisodeSpan]:
        return [EpisodeSpan(episode, 0, length) for episode, length in enumerate(self.content.lengths)]

    def parts(self) -> list[EpisodeSpan]:
        """The episodes, long ones divided."""
        return [
            EpisodeSpan(whole.episode, first, min(whole.end, first + _STEPS_OF_A_PART))
            for whole in self.whole_episodes()
            for first in range(0, whole.end, _STEPS_OF_A_PART)
        ]

    def run(
        self,
        function: Callable[..., Any],
        jobs: Sequence[tuple[Any, ...]],
        take: Callable[[int, Any], None] | None = None,
        *,
        progress: ProgressBar | None = None,
        images_a_step: int = 1,
    ) -> None:
        """Call a function of (content, part, …) for each job in child processes.

        Args:
            function: of a module's top level.
            take: gets each job's number and result as they are done.
            images_a_step: that each job writes; they move the progress bar.
        """
        longest = max((len(job[1].steps) for job in jobs), default=0)
        finished = run_jobs(
            function,
            jobs,
            describe=lambda content, part, *_: content.where(part.episode),
            timeout=_SECONDS + _SECONDS_A_FRAME * longest * max(1, images_a_step),
            workers=self.options.workers,
        )
        # Closed at once, so that no child writes on after an error or Ctrl-C.
        with closing(cast(Generator[tuple[int, Any], None, None], finished)):
            for number, result in finished:
                if take is not None:
                    take(number, result)
                if progress is not None:
                    progress.advance(len(jobs[number][1].steps) * images_a_step)

    def image_bytes(self, cameras: Iterable[str], encode: Callable[..., int], *arguments: Any) -> int:
        """An estimate of what all images of some cameras take, from some frames of each.

        Args:
            encode: of a module's top level; (frames, *arguments) → the bytes that they take together.
        """
        cameras = tuple(cameras)
        if not cameras:
            return 0
        sampled = min(_SAMPLED_FRAMES, self.content.lengths[0])
        what = self.content.where(0)
        size: int = run_apart(_encode_sample, self.content, cameras, sampled, encode, arguments, what=what)
        return size * self.content.num_steps // sampled


def _encode_sample(
    content: Content, cameras: Sequence[str], count: int, encode: Callable[..., int], arguments: tuple[Any, ...]
) -> int:
    """What some images from the middle of the first episode take."""
    first = (content.lengths[0] - count) // 2
    steps = range(first, first + count)
    return sum(encode(list(content.frames(0, camera, steps)), *arguments) for camera in cameras)
