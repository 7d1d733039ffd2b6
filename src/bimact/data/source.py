"""What a dataset's files hold, before anything is converted: what each format's reader gives.

A `Source` is small and picklable: it lists episodes, cameras and columns, and reads one episode's part at a time. All
that looks through a dataset (the cached copy for training, `bimact check`, `view`, `convert`) goes through it.
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
    """Height and width of a camera's images in the files, in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class Column:
    """A vector that each step has.

    Attributes:
        size: numbers in it.
        names: of its dimensions, such as the joints'; None: not told.
        dtype: in the files.
    """

    size: int
    names: tuple[str, ...] | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class SourceEpisode:
    """One demonstration.

    Attributes:
        name: what messages call it, such as "episode_3.hdf5" or "episode 3".
        length: steps, at least one.
        files: those that it is read from, relative to the dataset.
        task: what was to be done, in words; None: not told.
        number: the dataset's own, by which `--episodes` chooses it; None: its position.
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
    """An episode that the dataset lists and that cannot be used.

    Attributes:
        number: as of a `SourceEpisode`.
        reason: the end of a sentence that begins with the name and a colon.
        is_missing: its files, or what the metadata must tell of it, are not there: it is skipped. False: it is there
            and damaged, so that training stops unless it is excluded.
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
        reason: the end of a sentence that begins with the camera or column, such as "is not there".
        kind: "absent": the episode does not have it, or as something else; "damaged": it is there and cannot be read;
            "missing": its file is not there, so that whoever needs it skips the episode.
    """

    reason: str
    kind: Literal["absent", "damaged", "missing"] = "absent"


@dataclass(frozen=True)
class FramesNote:
    """How the frames of a camera are matched with the steps of an episode, where that is not as their times say.

    Attributes:
        what: the same for all episodes with this.
        seconds: by how much times and frames disagree, at most; None: that says nothing here.
    """

    what: str
    seconds: float | None = None

    def __str__(self) -> str:
        return self.what + ("" if self.seconds is None else f" (up to {self.seconds:.2g} s apart)")


@dataclass(frozen=True)
class LeftOut:
    """Something in the files that is neither a camera nor a column in use.

    Attributes:
        kind: "image": it looks like a camera's images and cannot be read as such; "depth": depth images; "column":
            a vector that is not used.
        name: as the user would choose it.
        reason: the end of a sentence that begins with the name, such as "has shape (40, 3)".
    """

    kind: Literal["image", "depth", "column"]
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A dataset as its files hold it. Quantities are in the robot's own units.

    Attributes:
        path: the dataset's folder or file, absolute.
        format: the format's name for people, such as "LeRobotDataset v3.0".
        episodes: those that can be read, in the dataset's order.
        cameras: colour cameras, by name; a name holds neither "/" nor a leading ".".
        columns: vectors by the format's own key, such as "observation.state" or "qpos".
        state_keys: columns that make up the proprioceptive state unless the user chooses others.
        action_keys: columns that make up the action unless the user chooses others.
        read_as_float32: columns that the reader itself converts → their type in the files.
        fps: control frequency in Hz; None: unknown.
        color_order: "rgb" or "bgr", where the format leaves open how its images are to be read: what the reader took,
            which may be replaced. None: there is no doubt.
        files: all files that the content depends on, relative to `path` ("." for the path itself).
        unusable: episodes that are listed and cannot be used, by their numbers.
        left_out: what else is in the files, and why it is not used.
        camera_forms: camera → position of an episode → what it is there, where it is not as in `cameras`.
        column_forms: column → position of an episode → what it is there, where it is not as in `columns`.
        video_cameras: cameras whose images are in video files, which may be copied instead of encoded again.
        left_aside: data files beside these, relative to `path`, of which `notes` tell why they are not read.
        notes: what was guessed, or read otherwise than the files say: whole sentences.
        metadata: whatever else is worth keeping, such as {"robot_type": "aloha"}; JSON's types only.
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
    video_cameras: tuple[str, ...] = ()
    left_aside: tuple[str, ...] = ()
    unusable: tuple[Unusable, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    camera_forms: Mapping[str, Mapping[int, Camera | Fault]] = field(default_factory=dict)
    column_forms: Mapping[str, Mapping[int, Column | Fault]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

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
        """The images (H, W, 3) uint8 RGB of one camera at some steps of one episode, one after the other.

        Their size is what it is in the files: a `SelectedSource` sees that it is the camera's.

        Args:
            steps: ascending; a step may occur several times.

        Raises:
            UserError: naming file, episode and step if an image cannot be read.
        """

    def read_timestamps(self, episode: int) -> np.ndarray | None:
        """(T,) float64 seconds as recorded; None: the format keeps none."""
        return None

    def frames_note(self, episode: int, camera: str) -> FramesNote | None:
        """How frames are matched with steps, where that is not as their times say.

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
        """The whole dataset as arrays on disk, if its own files can be mapped into memory; None: they cannot."""
        return None


@dataclass(frozen=True)
class Format:
    """A dataset format: how it is recognised and how it is opened.

    Both run in a process of their own with limited memory and time, since a damaged file can crash the library that
    reads it. Packages outside bimact add formats by an entry point in the group `bimact.formats` that names one.

    Attributes:
        name: for people.
        recognizes: looks at file names and first bytes; takes the dataset's folder or file.
        open: takes the path and a folder for converted copies (None: the format's own choice); raises a `UserError`
            if files are missing or damaged.
        in_process: the reader is pure Python and guards itself: no process of its own is needed.
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
    """Compare what episodes hold.

    Args:
        contents: of each episode, by name.
        faults: of each episode: why something is not among its contents; what is not named there either is absent.

    Returns:
        name → what it is in most episodes that have it; and name → position of an episode → what it is there, where it
        is not so. Columns of one size are the same; their type is the one that holds the numbers of all of them.
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
