"""LeRobotDataset v2.0, v2.1 and v3.0: vectors in Parquet files, cameras as videos or as images in the same files.

Which frame of a video belongs to a step, `frame_matching.py` says. Episodes that are listed and whose files are
missing are left out, damaged ones are named, each with a sentence. Rows of an episode are found by their
`episode_index`, in whichever file they are. What is in the files and not in info.json (columns, videos) is left out and
told.

The state is `observation.state` or the columns `observation.state.*`, the action `action` or `action.*`; without them,
a single column whose name ends in `state` (or `action`, `actions`), as openpi's datasets have.
Source: LeRobot 0.4.4, `datasets/lerobot_dataset.py` and `datasets/video_utils.py`.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bimact.data.formats.frame_matching import Matching, match_frames
from bimact.data.formats.images import (
    ImageForm,
    NoCamera,
    conversion_notes,
    decode_image,
    encoded_form,
    image_form,
    is_depth,
    not_by_name,
    white_of,
)
from bimact.data.formats.lerobot_columns import TableFile, describe_table, read_arrays, read_cells, read_rows
from bimact.data.formats.lerobot_meta import (
    INFO,
    Feature,
    Info,
    ListedEpisode,
    VideoPart,
    is_depth_format,
    meta_files,
    notes_on_choice,
    read_episodes,
    read_info,
    read_tasks,
)
from bimact.data.formats.lerobot_paths import DatasetFiles, existing
from bimact.data.formats.video_frames import frames_at, video_format, video_listing
from bimact.data.source import (
    Camera,
    Column,
    Fault,
    Format,
    FramesNote,
    LeftOut,
    Source,
    SourceEpisode,
    Unusable,
    usual_forms,
)
from bimact.errors import UserError

_STATE, _ACTION = "observation.state", "action"
_TIME, _FRAME, _EPISODE, _INDEX, _TASK = "timestamp", "frame_index", "episode_index", "index", "task_index"
_BOOKKEEPING = (_TIME, _FRAME, _EPISODE, _INDEX, _TASK)
_MAX_IMAGE_FILE = 1 << 28  # bytes
_EPISODES_FOR_SIZE = 3  # that a camera is looked at in, if the first ones are damaged
_MOST_TOLD = 10
_SMALLEST_IMAGE = 3 * 32 * 32  # numbers of uint8 in a cell that are an image rather than a vector
_VIDEOS, _IMAGES = (".mp4", ".mkv", ".mov", ".webm", ".avi"), (".png", ".jpg", ".jpeg", ".webp")
# Folders that files are in and that name no camera.
_NO_CAMERA_FOLDER = re.compile(r"(chunk|episodes?|files?|frames?|videos?|images?|data)?[-_ ]*\d*", re.IGNORECASE)
_CONVERTED = {
    1: "some images are grey, so that red, green and blue are the same",
    3: "some images have colours",
    4: "some images have a fourth channel, which is dropped",
}


@dataclass(frozen=True)
class _Place:
    """Where an episode is: from which row on in its data file, and its videos by feature."""

    file: str
    start: int
    videos: Mapping[str, VideoPart]


@dataclass(frozen=True, kw_only=True)
class LeRobotSource(Source):
    """A LeRobotDataset's folder.

    Attributes:
        places: of the episodes.
        features: the feature of each camera.
        arrays: the form of cameras whose images are arrays in the data files.
        whites: camera of floats → the number that stands for white.
        channels: of each camera's images, as they usually are: 1 (grey), 3 or 4.
        time_key: the column that tells a step's time: seconds, a frame's number, or None: steps are counted.
        begins: video file → the seconds at which the episodes begin that meta lists there, ascending.
    """

    fps: float
    places: tuple[_Place, ...]
    features: Mapping[str, str]
    arrays: Mapping[str, ImageForm]
    whites: Mapping[str, float]
    channels: Mapping[str, int]
    time_key: str | None
    begins: Mapping[str, tuple[float, ...]]

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        place = self.places[episode]
        path = existing(self.path, place.file)
        order = [key for key in (_EPISODE, _FRAME) if key in describe_table(path).columns]
        rows = read_rows(path, place.start, place.start + self.episodes[episode].length, [*keys, *order])
        if _EPISODE in order:
            odd = np.flatnonzero(rows[_EPISODE][:, 0] != self.episodes[episode].number)
            if len(odd):
                number, where = rows[_EPISODE][odd[0], 0], self._where(episode, int(odd[0]))
                raise UserError(
                    f"{path} has rows whose {_EPISODE} is {number} ({where}), which may not belong to its images: put "
                    f"the right file there, or correct the {_EPISODE}"
                )
        if _FRAME in order:
            back = np.flatnonzero(np.diff(rows[_FRAME][:, 0]) < 0)
            if len(back):
                where = self._where(episode, int(back[0]) + 1)
                raise UserError(f"{path} has rows in another order than their {_FRAME} ({where}): sort them")
        return {key: rows[key] for key in keys}

    def read_timestamps(self, episode: int) -> np.ndarray | None:
        if self.time_key != _TIME:
            return None
        return self.read_columns(episode, [_TIME])[_TIME][:, 0].astype(np.float64)

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        key = self.features[camera]
        video = self.places[episode].videos.get(key)
        if video is None:
            return self._images(episode, camera, steps)
        times = self._matching(episode, video).times[list(steps)]
        return frames_at(
            existing(self.path, video.file),
            times.tolist(),
            fps=self.fps,
            describe=lambda number: self._where(episode, steps[number]),
        )

    def frames_note(self, episode: int, camera: str) -> FramesNote | None:
        video = self.places[episode].videos.get(self.features[camera])
        if video is None:
            its = self._channels_of_images(episode, camera)
            told = [_CONVERTED[channels] for channels in sorted(its - {self.channels[camera]})]
            return FramesNote("; ".join(told)) if told else None
        matching, listing = self._matching(episode, video), video_listing(existing(self.path, video.file))
        told = [] if matching.note is None else [matching.note.what]
        if self._frames_of_none(video, self.episodes[episode].length, listing.times):
            told.append("frames before or after the episode in its file belong to none and are not used")
        if listing.videos > 1:
            told.append(f"the file holds {listing.videos} videos, and the first one is read")
        if listing.channels not in (None, self.channels[camera]):
            told.append(_CONVERTED[listing.channels])
        return FramesNote("; ".join(told), matching.note.seconds if matching.note else None) if told else None

    def video_frames(self, episode: int, camera: str, steps: range) -> tuple[Path, np.ndarray] | None:
        video = self.places[episode].videos.get(self.features[camera])
        if video is None:
            return None
        return existing(self.path, video.file), self._matching(episode, video).times[steps.start : steps.stop]

    def _matching(self, episode: int, video: VideoPart) -> Matching:
        path = existing(self.path, video.file)
        length = self.episodes[episode].length
        times = np.arange(length) / self.fps
        place = self.places[episode]
        table = existing(self.path, place.file)
        if self.time_key is not None:
            rows = read_rows(table, place.start, place.start + length, [self.time_key])
            times = rows[self.time_key][:, 0].astype(np.float64)
            times = times if self.time_key == _TIME else times / self.fps
        frames = video_listing(path).times
        end = self._end(video, length, frames)
        try:
            return match_frames(
                frames,
                video.start,
                end,
                times,
                self.fps,
                lambda step: self._where(episode, step),
                is_ordered=_FRAME in describe_table(table).columns,
            )
        except UserError as error:
            raise UserError(f"{path} {error}") from None

    def _end(self, video: VideoPart, length: int, frames: np.ndarray) -> float:
        """The second of a file at which an episode ends."""
        by_length, half = video.start + length / self.fps, 0.5 / self.fps
        if video.end is None or not math.isfinite(video.end):
            return by_length if video.end is None else video.end
        counts = [
            np.searchsorted(frames, at - half) - np.searchsorted(frames, video.start - half)
            for at in (video.end, by_length)
        ]
        return by_length if counts[0] != length == counts[1] else video.end

    def _frames_of_none(self, video: VideoPart, length: int, frames: np.ndarray) -> bool:
        """Whether a file has frames between an episode and its neighbours that belong to none."""
        half, begins = 0.5 / self.fps, self.begins.get(video.file, ())
        after = next((begin for begin in begins if begin > video.start), math.inf)
        end = self._end(video, length, frames)
        is_first = all(begin >= video.start for begin in begins)
        is_free = (frames >= end - half) & (frames < after - half)
        return bool((is_free | (frames < video.start - half) if is_first else is_free).any())

    def _channels_of_images(self, episode: int, camera: str) -> set[int]:
        """What the images of an episode in the data files are: 1 (grey), 3 or 4 channels."""
        if camera in self.arrays:
            return set()
        key, place = self.features[camera], self.places[episode]
        path = existing(self.path, place.file)
        rows = range(place.start, place.start + self.episodes[episode].length)
        found = set()
        for cell in read_cells(path, rows, key):
            with suppress(UserError):  # whoever reads a damaged one is told
                found.add(_channels(_image_content(self.path, cell, "")))
        return found

    def _images(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        key, place = self.features[camera], self.places[episode]
        path = existing(self.path, place.file)
        rows = [place.start + step for step in steps]
        form = self.arrays.get(camera)
        if form is not None:
            shape = _array_shape(form)
            for step, array in zip(steps, read_arrays(path, rows, key, shape), strict=True):
                yield form.as_rgb(
                    array, self.whites.get(camera, 1.0), f"{path}: {self._where(episode, step)}, camera {camera}"
                )
            return
        previous, image = -1, np.empty(0, np.uint8)
        for step, cell in zip(steps, read_cells(path, rows, key), strict=True):
            if step != previous:
                where = f"{path}: {self._where(episode, step)}, {key}"
                previous, image = step, decode_image(_image_content(self.path, cell, where), where)
            yield image

    def _where(self, episode: int, step: int) -> str:
        return f"{self.episodes[episode].name}, step {step}"


def open_lerobot(path: Path, cache_dir: Path | None = None) -> LeRobotSource:
    """Open a LeRobotDataset.

    Args:
        path: the folder that holds `meta`, `data` and `videos`.
        cache_dir: unused: the files are read as they are.

    Raises:
        UserError: if `meta` is damaged or no episode can be read.
    """
    info = read_info(path.absolute())
    files = DatasetFiles(info.root, str(info.root / INFO))
    listed = read_episodes(info, files)
    tables = _Tables(info, files, listed)
    texts, task_notes = read_tasks(info)

    episodes: list[SourceEpisode] = []
    places: list[_Place] = []
    read: list[ListedEpisode] = []
    unusable: list[Unusable] = []
    seen: set[int] = set()
    for entry in listed:
        place: _Place | tuple[str, bool]
        if entry.index in seen or entry.fault is not None or entry.length == 0:
            reason = entry.fault or ("it is listed twice" if entry.index in seen else "it has no steps")
            place = reason, True
        else:
            place = tables.place(entry)
        name = f"{entry.name} (the second time)" if entry.index in seen else entry.name
        seen.add(entry.index)
        if not isinstance(place, _Place):
            number = -1 - len(listed) - len(unusable) if name != entry.name else entry.index
            unusable.append(Unusable(number, name, *place))
            continue
        tasks = entry.tasks or tuple(texts.get(number, "") for number in tables.task_numbers(entry, place))
        used = (place.file, *dict.fromkeys(part.file for part in place.videos.values()))
        task = "; ".join(text for text in tasks if text) or None
        episodes.append(SourceEpisode(name, entry.length, used, task, entry.index, entry.is_failed))
        places.append(place)
        read.append(entry)
    if not episodes:
        reasons = "; ".join(episode.sentence for episode in unusable[:_MOST_TOLD]) or "none is listed"
        more = f"; and {len(unusable) - _MOST_TOLD} more" if len(unusable) > _MOST_TOLD else ""
        raise UserError(f"{info.root} has no episode that can be read: {reasons}{more}")

    of_episodes = [tables.known[place.file] for place in places]
    cameras = _Cameras.found(info, files, of_episodes, places)
    undeclared, of_none = _undeclared_images(info, files, listed)
    left_out = [*cameras.left_out, *_unread(info, of_episodes), *undeclared]
    columns, column_forms = usual_forms([_vectors(info, table, cameras.features) for table in of_episodes])
    forms: dict[str, dict[int, Camera | Fault]] = {}
    for camera, key in cameras.features.items():
        for position, (entry, place) in enumerate(zip(read, places)):
            why, kind = None, "missing"
            if info.features[key].dtype == "video":
                part = entry.videos.get(key)
                if part is None:
                    why = f"is not told: {entry.untold.get(key, 'its video')}"
                elif (fault := files.fault_of(part.file)) is not None:
                    why, kind = fault[0], "missing" if fault[1] else "damaged"
            elif key not in (
                of_episodes[position].columns if camera in cameras.arrays else of_episodes[position].others
            ):
                why, kind = f"is not in {place.file}", "absent"
            if why is not None:
                forms.setdefault(camera, {})[position] = Fault(why, kind)  # type: ignore[arg-type]
    for camera, key in cameras.features.items():
        for position, other in _overlaps(places, episodes, key, info.fps).items():
            reason = f"claims the same part of {places[position].videos[key].file} as {episodes[other].name}"
            forms.setdefault(camera, {}).setdefault(position, Fault(reason, "damaged"))
    used_files = [name for episode in episodes for name in episode.files if files.fault_of(name) is None]
    return LeRobotSource(
        path=info.root,
        format=f"LeRobotDataset {info.version}",
        episodes=tuple(episodes),
        cameras=cameras.sizes,
        columns=columns,
        state_keys=_vector_keys(columns, _STATE, ("state",), left_out),
        action_keys=_vector_keys(columns, _ACTION, ("action", "actions"), left_out),
        fps=info.fps,
        files=tuple(dict.fromkeys((*meta_files(info), *used_files))),
        unusable=tuple(unusable),
        left_out=tuple(left_out),
        camera_forms=forms,
        column_forms=column_forms,
        notes=(
            *notes_on_choice(info, listed),
            *_other_counts(info, listed),
            *files.notes.values(),
            *tables.notes(of_none),
            *task_notes,
            *conversion_notes([cameras.forms], cameras.whites),
            *cameras.notes,
        ),
        metadata={} if info.robot_type is None else {"robot_type": info.robot_type},
        places=tuple(places),
        features=cameras.features,
        video_cameras=tuple(name for name, key in cameras.features.items() if info.features[key].dtype == "video"),
        arrays=cameras.arrays,
        whites=cameras.whites,
        channels={name: form.channels for name, form in cameras.forms.items()},
        begins=_begins(listed),
        time_key=next((key for key in (_TIME, _FRAME) if all(key in table.columns for table in of_episodes)), None),
    )


def is_lerobot(path: Path) -> bool:
    return (path / INFO).is_file()


FORMAT = Format(name="LeRobotDataset", recognizes=is_lerobot, open=open_lerobot)


def _other_counts(info: Info, listed: Sequence[ListedEpisode]) -> list[str]:
    """Notes on totals in info.json that are not those of the episodes that are listed."""
    counts = {
        "episodes": (info.total_episodes, len(listed)),
        "steps": (info.total_frames, sum(episode.length for episode in listed)),
    }
    return [
        f"{INFO} counts {told} {what}, and {found} are listed"
        for what, (told, found) in counts.items()
        if told not in (None, found)
    ]


def _overlaps(places: Sequence[_Place], episodes: Sequence[SourceEpisode], key: str, fps: float) -> dict[int, int]:
    """Positions of episodes whose part of a video file is another's, too → that of the other one."""
    parts: dict[str, list[tuple[float, int]]] = {}
    for position, place in enumerate(places):
        if key in place.videos:
            parts.setdefault(place.videos[key].file, []).append((place.videos[key].start, position))
    found: dict[int, int] = {}
    for its in parts.values():
        its.sort()
        for (start, one), (next_start, other) in itertools.pairwise(its):
            if next_start < start + (episodes[one].length - 0.5) / fps - 1 / fps:
                found.setdefault(one, other)
                found.setdefault(other, one)
    return found


def _begins(listed: Sequence[ListedEpisode]) -> dict[str, tuple[float, ...]]:
    """Video file → the seconds at which episodes begin in it."""
    found: dict[str, list[float]] = {}
    for episode in listed:
        for part in episode.videos.values():
            found.setdefault(part.file, []).append(part.start)
    return {file: tuple(sorted(begins)) for file, begins in found.items()}


# Rows ----------------------------------------------------------------------------------------------


class _Tables:
    """The data files of a dataset, each looked at once.

    Attributes:
        known: files that could be read.
    """

    def __init__(self, info: Info, files: DatasetFiles, listed: Sequence[ListedEpisode]) -> None:
        self.known: dict[str, TableFile] = {}
        self._info = info
        self._files = files
        self._faults: dict[str, tuple[str, bool]] = {}
        self._pieces: dict[str, dict[int, list[tuple[int, int]]]] = {}
        self._elsewhere: dict[int, list[str]] | None = None  # episode → its files, of all files
        self._moved: list[int] = []
        self._listed = {episode.index for episode in listed}
        self._listed_files = {episode.data_file for episode in listed}
        self._listed_in: dict[str, list[ListedEpisode]] = {}
        for episode in listed:
            self._listed_in.setdefault(episode.data_file, []).append(episode)

    def place(self, listed: ListedEpisode) -> _Place | tuple[str, bool]:
        """Where an episode is; or why it cannot be used, and whether it is missing."""
        file = listed.data_file
        fault = self._look_at(file)
        if fault is None:
            start, rows = self._rows(listed, file)
        if self._info.is_v3 and (fault is not None or not rows):
            others = self._other_files(listed)
            if len(others) > 1:
                return (
                    f"its rows are in {' and in '.join(others[:_MOST_TOLD])}: remove all but one of these files",
                    False,
                )
            if others:
                file, fault = others[0], None
                start, rows = self._rows(listed, file)
        if fault is not None:
            return fault
        if not rows:
            return f"{file} has no rows of it", True
        if len(self._pieces[file].get(listed.index, ())) > 1:
            return (
                f"{file} has its rows in several places: write it again, with the rows of each episode together",
                False,
            )
        if rows != listed.length:
            return f"{file} has {rows} rows of it, meta lists {listed.length} steps", False
        if file != listed.data_file:
            self._moved.append(listed.index)
        return _Place(file, start, listed.videos)

    def notes(self, videos: Sequence[str]) -> list[str]:
        """Where rows are that are not where meta says, and what no list of episodes names.

        Args:
            videos: that no episode is in.
        """
        unlisted = sorted({number for pieces in self._pieces.values() for number in pieces} - self._listed)
        of_none = [file for file in self._files.tables() if file not in self._listed_files | self.known.keys()]
        notes: dict[str, Sequence[int | str]] = {
            "the rows of episodes {} are in other files than meta says: they are found by " + _EPISODE: self._moved,
            "rows of episodes {} are in the data files, and meta lists no such episodes: they are not used": unlisted,
            "no episode that meta lists is in {}: not used": of_none,
            "no episode that meta lists is in the videos {}: not used": videos,
        }
        return [
            note.format(", ".join(map(str, which[:_MOST_TOLD])) + (", …" if len(which) > _MOST_TOLD else ""))
            for note, which in notes.items()
            if which
        ]

    def task_numbers(self, listed: ListedEpisode, place: _Place) -> list[int]:
        """What the steps' task_index says, each number once."""
        if _TASK not in self.known[place.file].columns:
            return []
        path = existing(self._info.root, place.file)
        numbers = read_rows(path, place.start, place.start + listed.length, [_TASK])[_TASK][:, 0]
        return list(dict.fromkeys(numbers.tolist()))

    def _look_at(self, file: str) -> tuple[str, bool] | None:
        """Read what a file says of itself; why it cannot be used, and whether it is missing."""
        if file not in self.known and file not in self._faults:
            try:
                fault = self._files.fault_of(file)
                if fault is not None:
                    self._faults[file] = fault
                    return fault
                path = existing(self._info.root, file)
                table = describe_table(path)
                pieces = {}
                if self._info.is_v3 and _EPISODE in table.columns:
                    pieces = _pieces(path, table)
                elif self._info.is_v3:
                    pieces = _pieces_by_index(path, table, file, self._listed_in.get(file, []))
                self._pieces[file] = pieces
                self.known[file] = table
            except UserError as error:
                self._faults[file] = str(error), False
        return self._faults.get(file)

    def _rows(self, listed: ListedEpisode, file: str) -> tuple[int, int]:
        """(first row, rows) of an episode in a file."""
        if not self._info.is_v3:
            return 0, self.known[file].rows
        return self._pieces[file].get(listed.index, [(0, 0)])[0]

    def _other_files(self, listed: ListedEpisode) -> list[str]:
        """Other files than meta says that have rows of an episode."""
        if self._elsewhere is None:
            self._elsewhere = {}
            for file in self._files.tables():
                if self._look_at(file) is None:
                    for number in self._pieces[file]:
                        self._elsewhere.setdefault(number, []).append(file)
        return self._elsewhere.get(listed.index, [])


def _pieces(path: Path, table: TableFile) -> dict[int, list[tuple[int, int]]]:
    """Episode's number → (first row, rows) of each piece of it in a file."""
    numbers = read_rows(path, 0, table.rows, [_EPISODE])[_EPISODE][:, 0]
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
    ends = [*starts[1:].tolist(), len(numbers)]
    pieces: dict[int, list[tuple[int, int]]] = {}
    for start, end in zip(starts.tolist(), ends):
        pieces.setdefault(int(numbers[start]), []).append((start, end - start))
    return pieces


def _pieces_by_index(
    path: Path, table: TableFile, file: str, listed: Sequence[ListedEpisode]
) -> dict[int, list[tuple[int, int]]]:
    """The same of a file without numbers of episodes, by the place of each step in the whole dataset.

    Raises:
        UserError: if the file does not tell that either, and has other rows than the episodes that are listed in it.
    """
    known = [(episode.index, episode.first_index, episode.length) for episode in listed if episode.length]
    spans = [(number, first, first + length) for number, first, length in known if first is not None]
    if _INDEX in table.columns:
        indices = read_rows(path, 0, table.rows, [_INDEX])[_INDEX][:, 0]
        pieces: dict[int, list[tuple[int, int]]] = {}
        for number, first, end in spans:
            rows = np.flatnonzero((indices >= first) & (indices < end))
            for its in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else ():
                pieces.setdefault(number, []).append((int(its[0]), len(its)))
        return pieces
    count = sum(length for _, _, length in known)
    if table.rows != count:
        raise UserError(
            f"{file} has {table.rows} rows, meta lists {count} steps in it, and no {_EPISODE} tells whose rows they "
            "are: write it again with that column"
        )
    begin = min((first for _, first, _ in spans), default=0)
    return {number: [(first - begin, max(0, min(end, begin + table.rows) - first))] for number, first, end in spans}


# Columns -------------------------------------------------------------------------------------------


def _vectors(info: Info, table: TableFile, cameras: Mapping[str, str]) -> dict[str, Column]:
    """The columns of numbers in a file: those that `info.json` names, then others."""
    known = [key for key in info.features if key in table.columns]
    columns: dict[str, Column] = {}
    for key in [*known, *sorted(table.columns.keys() - set(known))]:
        if key in _BOOKKEEPING or key in cameras.values() or _is_undeclared_image(info, table, key):
            continue
        column = table.columns[key]
        names = info.features[key].names if key in info.features else None
        columns[key] = replace(column, names=names if names is not None and len(names) == column.size else None)
    return columns


def _is_undeclared_image(info: Info, table: TableFile, key: str) -> bool:
    """Whether a column that info.json does not name holds images as arrays, to judge by its type and size."""
    column = table.columns[key]
    return key not in info.features and column.dtype == "uint8" and column.size >= _SMALLEST_IMAGE


def _unread(info: Info, tables: Sequence[TableFile]) -> list[LeftOut]:
    """Features, and what else is in the data files, that are neither cameras nor columns of numbers."""
    columns = {key for table in tables for key in table.columns}
    others = {key: what for table in reversed(tables) for key, what in table.others.items()}
    left_out = [
        LeftOut(
            "image" if others.get(key) == "images" else "column",
            key,
            f"holds {feature.dtype}" if key in others else "is not in the files",
        )
        for key, feature in info.features.items()
        if feature.dtype not in ("video", "image") and key not in columns
    ]
    arrays = {key: table for table in tables for key in table.columns if _is_undeclared_image(info, table, key)}
    others.update((key, f"{table.columns[key].size} numbers of uint8") for key, table in arrays.items())
    for key, what in others.items():
        if key not in info.features and (key in arrays or key not in columns):
            is_image = key in arrays or what == "images"
            left_out.append(LeftOut("image" if is_image else "column", key, f"holds {what}, and is not in {INFO}"))
    return left_out


def _vector_keys(
    columns: Mapping[str, Column], key: str, endings: Sequence[str], left_out: Sequence[LeftOut]
) -> tuple[str, ...]:
    """A column, or those that it is divided into; else the only one with a name that ends so."""
    exact = (key,) if key in columns else tuple(name for name in columns if name.startswith(f"{key}."))
    if exact or any(entry.name == key for entry in left_out):  # nothing else is taken in its stead
        return exact
    ending = [name for name in columns if re.split(r"[./]", name)[-1] in endings]
    return tuple(ending) if len(ending) == 1 else ()


# Cameras -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cameras:
    """The cameras of a dataset.

    Attributes:
        sizes: by name.
        features: name → feature.
        forms: name → how its images are held.
        arrays: those of it whose images are arrays in the data files.
        whites: name → the number that stands for white, if they are floats.
        left_out: features that look like cameras and are none.
        notes: how images are read otherwise than the files say: whole sentences.
    """

    sizes: dict[str, Camera]
    features: dict[str, str]
    forms: dict[str, ImageForm]
    arrays: dict[str, ImageForm]
    whites: dict[str, float]
    left_out: list[LeftOut]
    notes: list[str]

    @classmethod
    def found(cls, info: Info, files: DatasetFiles, tables: Sequence[TableFile], places: Sequence[_Place]) -> _Cameras:
        """Look at the features of a dataset, and at the first images of each that may be a camera."""
        first = {key: next((table for table in tables if key in table.columns), tables[0]) for key in info.features}
        forms = {key: form for key, feature in info.features.items() if (form := _array_form(key, feature, first[key]))}
        keys = [key for key, feature in info.features.items() if feature.dtype in ("video", "image") or key in forms]
        cameras = cls({}, {}, {}, {}, {}, [], [])
        for name, key in _camera_names(keys).items():
            feature, form = info.features[key], forms.get(key)
            found: ImageForm | NoCamera
            if feature.no_camera is not None:
                found = feature.no_camera
            elif form is not None:
                found = form
            else:
                found = _first_image(info, files, tables, places, key, cameras.notes)
            if isinstance(found, NoCamera):
                cameras.left_out.append(LeftOut(found.kind, name, found.reason))
                continue
            cameras.sizes[name] = Camera(found.height, found.width)
            cameras.features[name] = key
            cameras.forms[name] = found
            if isinstance(form, ImageForm):
                cameras.arrays[name] = form
                if form.is_float:
                    cameras.whites[name] = _white(info, places, key, form)
        return cameras


def _array_form(key: str, feature: Feature, table: TableFile) -> ImageForm | NoCamera | None:
    """How a column of numbers holds images; None: it holds something else."""
    column = table.columns.get(key)
    if column is None or feature.dtype in ("video", "image") or math.prod(feature.shape) != column.size:
        return None
    return image_form(feature.shape, np.dtype(column.dtype), is_camera=len(feature.shape) == 3)


def _array_shape(form: ImageForm) -> tuple[int, ...]:
    sides = (form.height, form.width)
    return {None: sides, 0: (form.channels, *sides), 2: (*sides, form.channels)}[form.channel_axis]


def _first_image(
    info: Info,
    files: DatasetFiles,
    tables: Sequence[TableFile],
    places: Sequence[_Place],
    key: str,
    notes: list[str],
) -> ImageForm | NoCamera:
    """What a camera's images are in the first episode in which it can be read; or why it is none.

    Args:
        notes: takes what is read otherwise than the file says.
    """
    reason = "is in none of the files"
    tried = 0
    for table, place in zip(tables, places):
        video = place.videos.get(key)
        try:
            if info.features[key].dtype == "video":
                fault = ("has no video", True) if video is None else files.fault_of(video.file)
                if video is None or fault is not None:
                    reason = fault[0] if fault else reason
                    continue
                found = video_format(existing(info.root, video.file))
                if is_depth_format(found.pixels):
                    return NoCamera("depth", f"is depth: its pixels are {found.pixels}")
                if found.rotation:
                    told = f"{key}: {video.file} is to be turned by {found.rotation}° for display"
                    notes.append(f"{told}: its images are read as they are stored, not turned")
                return ImageForm(found.height, found.width, found.channels, 2, is_float=False)
            if key not in table.others:
                continue
            path = existing(info.root, place.file)
            where = f"{path}: row {place.start}, {key}"
            (cell,) = read_cells(path, [place.start], key)
            content = _image_content(info.root, cell, where)
            if is_depth(content):
                return NoCamera("depth", "is depth: its images have more than 8 bits per channel")
            return encoded_form(content, where)
        except UserError as error:
            reason = f"cannot be read: {error}"
            tried += 1
            if tried == _EPISODES_FOR_SIZE:
                break
    return NoCamera("image", reason)


def _undeclared_images(
    info: Info, files: DatasetFiles, listed: Sequence[ListedEpisode]
) -> tuple[list[LeftOut], list[str]]:
    """Folders of videos and images that no feature of info.json names; and videos of a camera that no episode names."""
    used = {part.file for episode in listed for part in episode.videos.values()}
    keys, video_keys = (
        [f"/{part}/" for key in its for part in (key, _short(key))] for its in (info.features, info.video_keys)
    )
    has_images = any(feature.dtype == "image" for feature in info.features.values())
    no_cameras = [_short(key) for key, feature in info.features.items() if feature.no_camera is not None]
    found: dict[str, list[str]] = {}
    of_none = []
    for path in files.all():
        *folders, file = path.split("/")
        stem, _, ending = file.rpartition(".")
        is_image = f".{ending.lower()}" in _IMAGES and folders[:1] in (["images"], ["videos"], ["video"])
        # Images may be files that the cells of a column name.
        is_image &= not has_images or any(folder.startswith("observation.") for folder in folders)
        if path in used or not (is_image or f".{ending.lower()}" in _VIDEOS):
            continue
        if any(key in f"/{path}" for key in keys):
            of_none += [path] if not is_image and any(key in f"/{path}" for key in video_keys) else []
            continue
        if any(name in stem for name in no_cameras):
            continue
        names = [folder for folder in folders if not _NO_CAMERA_FOLDER.fullmatch(folder)]
        found.setdefault(names[-1] if names else path, []).append(path)
    left_out = []
    for name, paths in found.items():
        more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
        no_camera = not_by_name(name)
        reason = f"is in {paths[0]}{more}, and not in {INFO}"
        left_out.append(LeftOut("image" if no_camera is None else no_camera.kind, _file_name(_short(name)), reason))
    return left_out, of_none


def _white(info: Info, places: Sequence[_Place], key: str, form: ImageForm) -> float:
    """The number that stands for white in a camera of floats, by the first images of some episodes."""

    def images() -> Iterator[np.ndarray]:
        for place in places[:_EPISODES_FOR_SIZE]:
            with suppress(UserError):  # whoever reads them is told
                yield from read_arrays(existing(info.root, place.file), [place.start], key, _array_shape(form))

    return white_of(images())


def _camera_names(keys: Sequence[str]) -> dict[str, str]:
    """Camera → feature: "observation.images.top" becomes "top"; two that would be called the same keep their keys."""
    short = {key: _file_name(_short(key)) for key in keys}
    counts = Counter(short.values())
    names = {key: name if counts[name] == 1 else _file_name(key) for key, name in short.items()}
    if len(set(names.values())) != len(names):
        raise UserError(f"{INFO}: the cameras {', '.join(keys)} cannot be told apart by their names: rename them")
    return {name: key for key, name in names.items()}


def _short(key: str) -> str:
    return re.sub(r"^observation\.(images?\.(?=.))?", "", key)


def _file_name(name: str) -> str:
    """A name without "/", control characters or a leading "."."""
    return re.sub(r"[/\\\x00-\x1f\x7f]|^\.", "_", name) or "_"


def _channels(content: bytes) -> int:
    """1 (grey), 3 or 4 channels of an encoded image, by its header."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as image:
            return {"L": 1, "1": 1, "LA": 1, "RGBA": 4}.get(image.mode, 3)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"an image is damaged ({error})") from None


def _image_content(root: Path, cell: Any, where: str) -> bytes:
    """The encoded image in a cell: its bytes, or a struct of bytes and the path of a file of the dataset."""
    content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(content, bytes):
        return content
    if content is not None or not isinstance(name, str):
        raise UserError(f"{where} holds no image: leave the episode out or record it again")
    path = existing(root, name)
    try:
        with path.open("rb") as file:
            return file.read(_MAX_IMAGE_FILE)
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read ({error.strerror})") from None
