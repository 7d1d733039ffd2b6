"""The content of a dataset's files before any conversion: the interface of all format readers.

A `Source` is small and picklable: it lists episodes, cameras and columns, and reads a part of one episode at a time.
Everything that reads a dataset (the cached copy for training, `bimact check`, `view`, `convert`) uses it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from bimact.data.episodes import Episodes


@dataclass(frozen=True)
class Camera:
    """Height and width of a camera's images in the files, in pixels; whether they are distances (`data/depth.py`)."""

    height: int
    width: int
    is_depth: bool = field(default=False, kw_only=True)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}{' (depth)' if self.is_depth else ''}"


@dataclass(frozen=True)
class Column:
    """A vector recorded at each step.

    Attributes:
        size: number of dimensions.
        names: of the dimensions, such as joints; None: unknown.
        dtype: as stored in the files.
    """

    size: int
    names: tuple[str, ...] | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class SourceEpisode:
    """One demonstration.

    Attributes:
        name: used in messages, such as "episode_3.hdf5" or "episode 3".
        length: steps, at least one.
        files: files it is read from, relative to the dataset.
        task: language description of the task; None: unknown.
        number: the dataset's own episode number, which `--episodes` selects by; None: its position.
        is_failed: the dataset marks the demonstration as failed.
    """

    name: str
    length: int
    files: tuple[str, ...]
    task: str | None = None
    number: int | None = None
    is_failed: bool = False


@dataclass(frozen=True)
class Unusable:
    """An episode listed by the dataset that cannot be used.

    Attributes:
        number: as in `SourceEpisode`.
        reason: the end of a sentence that begins with the name and a colon.
        is_missing: its files or metadata are missing: it is skipped. False: it is present but damaged, so that training
            stops unless it is excluded.
    """

    number: int
    name: str
    reason: str
    is_missing: bool

    @property
    def sentence(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Fault:
    """Why a camera or column cannot be used in an episode.

    Attributes:
        reason: the end of a sentence that begins with the camera or column, such as "is missing".
        kind: "absent": the episode lacks it, or has it in another form; "damaged": it is present but cannot be read;
            "missing": its file is missing, so that the episode is skipped if the camera or column is selected.
    """

    reason: str
    kind: Literal["absent", "damaged", "missing"] = "absent"


@dataclass(frozen=True)
class FramesNote:
    """How a camera's frames are matched with an episode's steps, where this deviates from their timestamps.

    Attributes:
        what: the kind of matching; equal for all episodes that share it.
        seconds: largest difference between timestamps and frames; None: not meaningful.
    """

    what: str
    seconds: float | None = None

    def __str__(self) -> str:
        return self.what + ("" if self.seconds is None else f" (up to {self.seconds:.2g} s apart)")


@dataclass(frozen=True)
class LeftOut:
    """Content of the files that is not used as a camera or column.

    Attributes:
        kind: "image": presumably camera images, but not readable as such; "depth": depth images; "column": an unused
            vector.
        name: as it would be selected.
        reason: the end of a sentence that begins with the name, such as "has shape (40, 3)".
    """

    kind: Literal["image", "depth", "column"]
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A dataset as stored in its files. Quantities are in the robot's own units.

    Attributes:
        path: the dataset's folder or file, absolute.
        format: display name of the format, such as "LeRobotDataset v3.0".
        episodes: readable episodes in the dataset's order.
        cameras: colour cameras, by name; a name holds neither "/" nor a leading ".".
        depth_cameras: the same of depth cameras, which are used if they are asked for by name.
        columns: vectors by the format's own key, such as "observation.state" or "qpos".
        state_keys: columns of the proprioceptive state by default.
        action_keys: columns of the action by default.
        read_as_float32: columns converted by the reader → their dtype in the files.
        fps: control frequency in Hz; None: unknown.
        color_order: "rgb" or "bgr" where the format does not specify it: the reader's choice, which may be overridden.
            None: specified by the format.
        files: all files of the content, relative to `path` ("." for the path itself).
        unusable: listed episodes that cannot be used, by number.
        left_out: unused content of the files, with the reason.
        camera_forms: camera → position of an episode → its form there, where it differs from `cameras`.
        column_forms: column → position of an episode → its form there, where it differs from `columns`.
        video_cameras: cameras whose images are in video files, which may be copied instead of encoded again.
        ignored_files: other data files, relative to `path`; `notes` give the reason why they are not read.
        notes: whole sentences on what was guessed, or read differently from what the files specify.
        metadata: further information to keep, such as {"robot_type": "aloha"}; JSON types only.
    """

    path: Path
    format: str
    episodes: tuple[SourceEpisode, ...]
    cameras: Mapping[str, Camera]
    columns: Mapping[str, Column]
    state_keys: tuple[str, ...]
    action_keys: tuple[str, ...]
    read_as_float32: Mapping[str, str] = field(default_factory=dict)
    fps: float | None = None
    color_order: str | None = None
    files: tuple[str, ...] = ()
    depth_cameras: Mapping[str, Camera] = field(default_factory=dict)
    video_cameras: tuple[str, ...] = ()
    ignored_files: tuple[str, ...] = ()
    unusable: tuple[Unusable, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    camera_forms: Mapping[str, Mapping[int, Camera | Fault]] = field(default_factory=dict)
    column_forms: Mapping[str, Mapping[int, Column | Fault]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_cameras(self) -> dict[str, Camera]:
        """Colour and depth cameras."""
        return {**self.cameras, **self.depth_cameras}

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int64: steps of each episode."""
        return np.array([episode.length for episode in self.episodes], dtype=np.int64)

    @property
    def num_steps(self) -> int:
        return sum(episode.length for episode in self.episodes)

    def number_of(self, episode: int) -> int:
        """The dataset's own number of the episode at a position."""
        number = self.episodes[episode].number
        return episode if number is None else number

    @abstractmethod
    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors of one episode: key → (T, size) in the files' own type.

        Raises:
            UserError: if they cannot be read.
        """

    @abstractmethod
    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        """The images (H, W, 3) uint8 RGB of one camera at some steps of one episode, one by one.

        Images have their size in the files; `SelectedSource` checks that it is the camera's.

        Args:
            steps: ascending; a step may occur several times.

        Raises:
            UserError: naming file, episode and step if an image cannot be read.
        """

    def read_timestamps(self, episode: int) -> np.ndarray | None:
        """(T,) float64 seconds as recorded; None: not stored by the format."""
        return None

    def frames_note(self, episode: int, camera: str) -> FramesNote | None:
        """How frames are matched with steps, where this deviates from their timestamps.

        Raises:
            UserError: if they cannot be matched.
        """
        return None

    def video_frames(self, episode: int, camera: str, steps: range) -> tuple[Path, np.ndarray] | None:
        """The video file of one of `video_cameras`, and the seconds (T,) since its first frame of the steps' frames.

        None: the images of this episode are not in a video file, or not one frame per step.

        Raises:
            UserError: if frames cannot be matched with steps.
        """
        return None

    def mapped(self) -> Episodes | None:
        """The whole dataset as arrays on disk, if its files can be memory-mapped; else None."""
        return None


@dataclass(frozen=True)
class Format:
    """A dataset format: how it is recognised and how it is opened.

    Both run in a child process with limited memory and time, since a damaged file can crash the library that reads it.
    Other packages add formats through an entry point in the group `bimact.formats`.

    Attributes:
        name: display name.
        recognizes: looks at file names and first bytes; takes the dataset's folder or file.
        open: takes the path and a folder for converted copies (None: the format's own choice); raises a `UserError`
            if files are missing or damaged.
        in_process: the reader is pure Python and robust against damaged files: no child process is needed.
    """

    name: str
    recognizes: Callable[[Path], bool]
    open: Callable[[Path, Path | None], Source]
    in_process: bool = False


_Form = TypeVar("_Form", Camera, Column)
_ABSENT = Fault("is not there")


def usual_forms(
    contents: Sequence[Mapping[str, _Form]],
    faults: Sequence[Mapping[str, Fault]] = (),
) -> tuple[dict[str, _Form], dict[str, dict[int, _Form | Fault]]]:
    """Compare the content of episodes.

    Args:
        contents: of each episode, by name.
        faults: of each episode: why something is not in its contents; anything not named there is absent.

    Returns:
        name → its form in most episodes that have it; and name → position of an episode → its form there, where it
        differs. Columns of equal size count as equal, with a common dtype.
    """
    usual: dict[str, _Form] = {}
    others: dict[str, dict[int, _Form | Fault]] = {}
    for name in dict.fromkeys(name for content in contents for name in content):
        absent = [of.get(name, _ABSENT) for of in faults] or [_ABSENT] * len(contents)
        forms: list[_Form | Fault] = [content.get(name, fault) for content, fault in zip(contents, absent)]
        dtypes: dict[int, set[str]] = {}
        for form in set(forms):
            if isinstance(form, Column):
                dtypes.setdefault(form.size, set()).add(form.dtype)
        if any(len(of_size) > 1 for of_size in dtypes.values()):
            common = {size: str(np.result_type(*map(np.dtype, of_size))) for size, of_size in dtypes.items()}
            forms = [
                replace(form, dtype=common[form.size]) if isinstance(form, Column) else form  # type: ignore[call-arg]
                for form in forms
            ]
        counts = Counter(form for form in forms if not isinstance(form, Fault))
        usual[name] = counts.most_common(1)[0][0]
        odd = {number: form for number, form in enumerate(forms) if form != usual[name]}
        if odd:
            others[name] = odd
    return usual, others
