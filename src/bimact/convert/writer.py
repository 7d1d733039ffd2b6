"""The base class of all writers: parts of episodes are written in parallel by child processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

from bimact.convert.content import Content
from bimact.data.workers import run_apart, run_jobs
from bimact.progress import ProgressBar

_STEPS_PER_SPAN = 1000  # at most: a long episode is written by several processes, and the progress bar moves
_SECONDS, _SECONDS_PER_FRAME = 300.0, 1.0  # timeout of a child process
_SAMPLED_FRAMES = 8  # images whose encoded size is extrapolated to all


@dataclass(frozen=True)
class Options:
    """How the dataset is written.

    Attributes:
        codec: of LeRobot's videos: "av1", "h264" or "hevc"; None: AV1.
        lossless: store LeRobot's images as PNG files in its tables instead of videos.
        compress: store ALOHA's images as JPEG files.
        workers: number of processes; None: one per core.
        as_images: cameras that are stored as with `lossless`.
    """

    codec: str | None = None
    lossless: bool = False
    compress: bool = False
    workers: int | None = None
    as_images: tuple[str, ...] = ()


@dataclass(frozen=True)
class EpisodeSpan:
    """The steps of an episode from `first` to `end` (exclusive)."""

    episode: int
    first: int
    end: int

    @property
    def steps(self) -> range:
        return range(self.first, self.end)


@dataclass(frozen=True)
class Writer(ABC):
    """Writes a dataset in one format.

    Attributes:
        done: sentences on what was done; complete after `write`.

    Raises:
        UserError: if the format cannot hold it.
    """

    content: Content
    options: Options
    done: list[str] = field(default_factory=list)

    format: ClassVar[str]  # its name in messages

    def __post_init__(self) -> None:
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Check that the format can hold the content."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Sentences on differences from the source."""

    def left_out(self) -> list[str]:
        """Content that is not written, with the reasons."""
        odd = self.content.odd
        chosen = self.content.chosen
        unread = [entry.name for entry in chosen.left_out if entry.kind == "depth"]
        depth = dict.fromkeys([*unread, *(name for name in chosen.whole.depth_cameras if name not in chosen.cameras)])
        left_out = [f"{', '.join(depth)} (depth)"] if depth else []
        return [*left_out, *([f"{', '.join(odd)}, which differ between episodes"] if odd else [])]

    @abstractmethod
    def bytes_needed(self) -> int:
        """Size of the dataset on disk; may be an estimate."""

    @abstractmethod
    def write(self, folder: Path, progress: ProgressBar) -> None:
        """Write the dataset into an empty folder.

        Args:
            progress: counts images (steps, if there are no cameras).
        """

    def names_left_out(self) -> list[str]:
        """The names of dimensions, for formats that cannot store them."""
        named = [key for key, column in self.content.columns.items() if column.names is not None]
        return [f"the names of dimensions of {', '.join(named)}, which the format cannot store"] if named else []

    def whole_episodes(self) -> list[EpisodeSpan]:
        return [EpisodeSpan(episode, 0, length) for episode, length in enumerate(self.content.lengths)]

    def spans(self) -> list[EpisodeSpan]:
        """The episodes, long ones divided."""
        return [
            EpisodeSpan(whole.episode, first, min(whole.end, first + _STEPS_PER_SPAN))
            for whole in self.whole_episodes()
            for first in range(0, whole.end, _STEPS_PER_SPAN)
        ]

    def run(
        self,
        function: Callable[..., Any],
        jobs: Sequence[tuple[Any, ...]],
        take: Callable[[int, Any], None] | None = None,
        *,
        progress: ProgressBar | None = None,
        images_per_step: int = 1,
    ) -> None:
        """Call a function of (content, span, …) for each job in child processes.

        Args:
            function: a module-level function.
            take: called with each job's number and result as they finish.
            images_per_step: images that each job writes per step, for the progress bar.
        """
        longest = max((len(job[1].steps) for job in jobs), default=0)
        finished = run_jobs(
            function,
            jobs,
            describe=lambda content, span, *_: content.where(span.episode),
            timeout=_SECONDS + _SECONDS_PER_FRAME * longest * max(1, images_per_step),
            workers=self.options.workers,
        )
        # Closed immediately, so that no child continues to write after an error or Ctrl-C.
        with closing(cast(Generator[tuple[int, Any], None, None], finished)):
            for number, result in finished:
                if take is not None:
                    take(number, result)
                if progress is not None:
                    progress.advance(len(jobs[number][1].steps) * images_per_step)

    def image_bytes(self, cameras: Iterable[str], encode: Callable[..., int], *arguments: Any) -> int:
        """An estimate of the encoded size of all images of some cameras, from a sample of each.

        Args:
            encode: a module-level function: (images, *arguments) → their total size in bytes.
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
    """Encoded size of some images from the middle of the first episode."""
    first = (content.lengths[0] - count) // 2
    steps = range(first, first + count)
    return sum(encode(list(content.frames(0, camera, steps)), *arguments) for camera in cameras)
