"""LeRobotDataset v2.0, v2.1 and v3.0: vectors in Parquet files, cameras as videos or as images in the same files.

Which frame of a video belongs to a step, `video_frames.py` says. Episodes that are listed and whose files are missing
are left out, damaged ones are named, each with a sentence. Rows of an episode are found by their `episode_index`, in
whichever file they are. What is in the files and not in info.json (columns, videos) is left out and told.

The state is `observation.state` or the columns `observation.state.*`, the action `action` or `action.*`; without them,
a single column whose name ends in `state` (or `action`, `actions`), as openpi's datasets have.
Source: LeRobot 0.4.4, `datasets/lerobot_dataset.py` and `datasets/video_utils.py`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bimact.data.depth import DepthCodes, decode_depth, depth_form, depth_left_out, pack_depth, scale_of
from bimact.data.formats.images import (
    ImageForm,
    NoCamera,
    channels_of,
    conversion_notes,
    decode_image,
    encoded_form,
    image_form,
    is_depth,
    not_by_name,
    white_of,
)
from bimact.data.formats.lerobot_columns import TableFile, describe_table, read_cells, read_rows
from bimact.data.formats.lerobot_meta import (
    ACTION,
    BOOKKEEPING,
    EPISODE,
    FRAME,
    INDEX,
    INFO,
    STATE,
    TASK,
    TIME,
    DatasetFiles,
    Info,
    ListedEpisode,
    VideoPart,
    existing,
    is_depth_format,
    notes_on_choice,
    read_episodes,
    read_info,
    read_tasks,
    short_name,
)
from bimact.data.formats.video_frames import Matching, frames_at, match_frames, video_format, video_listing
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

_MAX_IMAGE_FILE = 1 << 28  # bytes
_EPISODES_FOR_SIZE = 3  # that a camera is looked at in, if the first ones are damaged
_MOST_LISTED = 10
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


@dataclass(frozen=True)
class _CameraFeature:
    """A camera.

    Attributes:
        key: of its feature.
        form: of its images, as they usually are.
        is_array: the images are arrays in the data files.
        white: the number that stands for white, of images that are arrays of floats.
        depth_scale: of a depth camera, millimetres per unit; None: it is a colour camera.
        depth_codes: of a depth camera whose images are a video.
    """

    key: str
    form: ImageForm
    is_array: bool = False
    white: float = 1.0
    depth_scale: float | None = None
    depth_codes: DepthCodes | None = None


@dataclass(frozen=True, kw_only=True)
class LeRobotSource(Source):
    """A LeRobotDataset's folder.

    Attributes:
        places: of the episodes.
        features: of the cameras.
        time_key: the column that tells a step's time: seconds, a frame's number, or None: steps are counted.
        begins: video file → the seconds at which the episodes begin that meta lists there, ascending.
        matched: the frames of each camera's video and episode that were asked for.
    """

    fps: float
    places: tuple[_Place, ...]
    features: Mapping[str, _CameraFeature]
    time_key: str | None
    begins: Mapping[str, tuple[float, ...]]
    matched: dict[tuple[int, str], Matching] = field(default_factory=dict, init=False, repr=False, compare=False)

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        path, start, length = self._rows_of(episode)
        order = [key for key in (EPISODE, FRAME) if key in describe_table(path).columns]
        rows = read_rows(path, start, start + length, [*keys, *order])
        if EPISODE in order:
            odd = np.flatnonzero(rows[EPISODE][:, 0] != self.episodes[episode].number)
            if len(odd):
                number, where = rows[EPISODE][odd[0], 0], self._where(episode, int(odd[0]))
                raise UserError(
                    f"{path} has rows whose {EPISODE} is {number} ({where}), which may not belong to its images: put "
                    f"the right file there, or correct the {EPISODE}"
                )
        if FRAME in order:
            back = np.flatnonzero(np.diff(rows[FRAME][:, 0]) < 0)
            if len(back):
                where = self._where(episode, int(back[0]) + 1)
                raise UserError(f"{path} has rows in another order than their {FRAME} ({where}): sort them")
        return {key: rows[key] for key in keys}

    def read_timestamps(self, episode: int) -> np.ndarray | None:
        if self.time_key != TIME:
            return None
        return self.read_columns(episode, [TIME])[TIME][:, 0].astype(np.float64)

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        found = self._video(episode, camera)
        if found is None:
            return self._images(episode, camera, steps)
        path, matching = found
        times: list[float] = matching.times[list(steps)].tolist()
        codes = self.features[camera].depth_codes
        frames = frames_at(
            path,
            times,
            fps=self.fps,
            describe=lambda number: self._where(episode, steps[number]),
            as_codes=codes is not None,
        )
        return frames if codes is None else (pack_depth(codes.millimetres(frame)) for frame in frames)

    def frames_note(self, episode: int, camera: str) -> FramesNote | None:
        found, feature = self._video(episode, camera), self.features[camera]
        if found is not None:
            return found[1].note
        if feature.is_array or feature.depth_scale is not None:
            return None
        path, start, length = self._rows_of(episode)
        its: set[int | None] = set()
        for cell in read_cells(path, range(start, start + length), feature.key):
            with suppress(UserError):  # whoever reads a damaged one is told
                its.add(channels_of(_image_content(self.path, cell, "")))
        told = [_CONVERTED[channels] for channels in (1, 3, 4) if channels in its - {feature.form.channels}]
        return FramesNote("; ".join(told)) if told else None

    def video_frames(self, episode: int, camera: str, steps: range) -> tuple[Path, np.ndarray] | None:
        if self.features[camera].depth_codes is not None:  # what is written again is millimetres
            return None
        found = self._video(episode, camera)
        return None if found is None else (found[0], found[1].times[steps.start : steps.stop])

    def _video(self, episode: int, camera: str) -> tuple[Path, Matching] | None:
        """The video of a camera, which of its frames belong to the steps of an episode, and all that is to be said.

        None: the images are in the data file.
        """
        video = self.places[episode].videos.get(self.features[camera].key)
        if video is None:
            return None
        path = existing(self.path, video.file)
        if (episode, camera) in self.matched:
            return path, self.matched[episode, camera]
        # When the steps were recorded, and when the frames of the file are shown.
        table, start, length = self._rows_of(episode)
        steps = np.arange(length) / self.fps
        if self.time_key is not None:
            steps = read_rows(table, start, start + length, [self.time_key])[self.time_key][:, 0].astype(np.float64)
            steps = steps if self.time_key == TIME else steps / self.fps
        listing = video_listing(path)
        frames, half = listing.times, 0.5 / self.fps

        # Where the episode ends in the file: as told, unless only its length gives as many frames as steps.
        by_length = video.start + length / self.fps
        end = by_length if video.end is None else video.end
        if math.isfinite(end):
            first = np.searchsorted(frames, video.start - half)
            counts = [np.searchsorted(frames, at - half) - first for at in (end, by_length)]
            end = by_length if counts[0] != length == counts[1] else end
        try:
            is_ordered = FRAME in describe_table(table).columns
            matching = match_frames(
                frames,
                video.start,
                end,
                steps,
                self.fps,
                lambda step: self._where(episode, step),
                is_ordered=is_ordered,
            )
        except UserError as error:
            raise UserError(f"{path} {error}") from None

        told = [] if matching.note is None else [matching.note.what]
        begins = self.begins.get(video.file, ())
        after = next((begin for begin in begins if begin > video.start), math.inf)
        is_of_none = (frames >= end - half) & (frames < after - half)
        if all(begin >= video.start for begin in begins):  # the first episode of the file
            is_of_none |= frames < video.start - half
        if is_of_none.any():
            told.append("frames before or after the episode in its file belong to none and are not used")
        if listing.videos > 1:
            told.append(f"the file holds {listing.videos} videos, and the first one is read")
        if listing.channels not in (None, self.features[camera].form.channels):
            told.append(_CONVERTED[listing.channels])
        seconds = None if matching.note is None else matching.note.seconds
        matching = replace(matching, note=FramesNote("; ".join(told), seconds) if told else None)
        self.matched[episode, camera] = matching
        return path, matching

    def _images(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        path, start, _ = self._rows_of(episode)
        feature = self.features[camera]
        rows = [start + step for step in steps]
        previous, image = -1, np.empty(0, np.uint8)
        for step, cell in zip(
            steps, read_cells(path, rows, feature.key, feature.form.shape if feature.is_array else None), strict=True
        ):
            where = f"{path}: {self._where(episode, step)}, "
            if feature.depth_scale is not None:
                try:
                    content = cell if feature.is_array else _image_content(self.path, cell, where + feature.key)
                    depth = content if feature.is_array else decode_depth(content)
                except (OSError, ValueError, SyntaxError) as error:
                    raise UserError(f"{where}camera {camera}: a depth image is damaged ({error})") from None
                image = pack_depth(np.asarray(depth), feature.depth_scale)
            elif feature.is_array:
                image = feature.form.as_rgb(cell, feature.white, f"{where}camera {camera}")
            elif step != previous:
                image = decode_image(_image_content(self.path, cell, where + feature.key), where + feature.key)
            previous = step
            yield image

    def _rows_of(self, episode: int) -> tuple[Path, int, int]:
        """An episode's data file, its first row there, and its steps."""
        place = self.places[episode]
        return existing(self.path, place.file), place.start, self.episodes[episode].length

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
    files = DatasetFiles(info.root)
    listed = read_episodes(info, files)
    tables = _Tables(info, files, listed)
    texts, task_notes = read_tasks(info)

    # Episodes.
    episodes: list[SourceEpisode] = []
    places: list[_Place] = []
    read: list[ListedEpisode] = []
    unusable: list[Unusable] = []
    seen: set[int] = set()
    for entry in listed:
        is_second = entry.index in seen
        seen.add(entry.index)
        if is_second or entry.fault is not None or entry.length == 0:
            place: _Place | Fault = Fault(
                entry.fault or ("it is listed twice" if is_second else "it has no steps"), "missing"
            )
        else:
            place = tables.place(entry)
        if isinstance(place, Fault):
            number = -1 - len(listed) - len(unusable) if is_second else entry.index
            name = f"{entry.name} (the second time)" if is_second else entry.name
            unusable.append(Unusable(number, name, place.reason, place.kind == "missing"))
            continue
        tasks: Sequence[str] = entry.tasks
        if not tasks and TASK in tables.known[place.file].columns:
            rows = read_rows(info.root / place.file, place.start, place.start + entry.length, [TASK])
            tasks = [texts.get(number, "") for number in dict.fromkeys(rows[TASK][:, 0].tolist())]
        used = (place.file, *dict.fromkeys(part.file for part in place.videos.values()))
        task = "; ".join(text for text in tasks if text) or None
        episodes.append(SourceEpisode(entry.name, entry.length, used, task, entry.index, entry.is_failed))
        places.append(place)
        read.append(entry)
    if not episodes:
        reasons = "; ".join(episode.sentence for episode in unusable[:_MOST_LISTED]) or "none is listed"
        more = f"; and {len(unusable) - _MOST_LISTED} more" if len(unusable) > _MOST_LISTED else ""
        raise UserError(f"{info.root} has no episode that can be read: {reasons}{more}; copy or record them again")

    # Cameras and columns.
    of_episodes = [tables.known[place.file] for place in places]
    features, no_cameras, camera_notes = _cameras(info, files, of_episodes, places)
    undeclared, of_none = _undeclared_images(info, files, listed)
    left_out = [*no_cameras, *_unread(info, of_episodes), *undeclared]
    columns, column_forms = usual_forms([_vectors(info, table, features) for table in of_episodes])
    faults = {
        name: _camera_faults(info, files, feature, read, places, of_episodes) for name, feature in features.items()
    }
    begins: dict[str, list[float]] = {}
    for entry in listed:
        for part in entry.videos.values():
            begins.setdefault(part.file, []).append(part.start)

    tasks_file = info.tasks_file()
    meta_files = [INFO, *([] if tasks_file is None else [tasks_file]), *info.episodes_files()]
    used_files = [name for episode in episodes for name in episode.files if files.fault_of(name) is None]
    colour = {name: its for name, its in features.items() if its.depth_scale is None}
    return LeRobotSource(
        path=info.root,
        format=f"LeRobotDataset {info.version}",
        episodes=tuple(episodes),
        cameras={name: Camera(its.form.height, its.form.width) for name, its in colour.items()},
        depth_cameras={
            name: Camera(its.form.height, its.form.width, is_depth=True)
            for name, its in features.items()
            if name not in colour
        },
        columns=columns,
        state_keys=_vector_keys(columns, STATE, ("state",), left_out),
        action_keys=_vector_keys(columns, ACTION, ("action", "actions"), left_out),
        fps=info.fps,
        files=tuple(dict.fromkeys((*meta_files, *used_files))),
        unusable=tuple(unusable),
        left_out=tuple(left_out),
        camera_forms={name: its for name, its in faults.items() if its},
        column_forms=column_forms,
        notes=(
            *notes_on_choice(info, listed),
            *files.notes.values(),
            *tables.notes(of_none),
            *task_notes,
            *conversion_notes(
                [{name: feature.form for name, feature in colour.items()}],
                {name: feature.white for name, feature in colour.items()},
            ),
            *camera_notes,
        ),
        metadata={} if info.robot_type is None else {"robot_type": info.robot_type},
        places=tuple(places),
        features=features,
        video_cameras=tuple(name for name, its in features.items() if info.features[its.key].dtype == "video"),
        time_key=next((key for key in (TIME, FRAME) if all(key in table.columns for table in of_episodes)), None),
        begins={file: tuple(sorted(its)) for file, its in begins.items()},
    )


def is_lerobot(path: Path) -> bool:
    return (path / INFO).is_file()


FORMAT = Format(name="LeRobotDataset", recognizes=is_lerobot, open=open_lerobot)


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
        self._faults: dict[str, Fault] = {}
        self._pieces: dict[str, dict[int, list[tuple[int, int]]]] = {}
        self._elsewhere: dict[int, list[str]] | None = None  # episode → its files, of all files
        self._moved: list[int] = []
        self._listed = listed
        self._listed_in: dict[str, list[ListedEpisode]] = {}
        for episode in listed:
            self._listed_in.setdefault(episode.data_file, []).append(episode)

    def place(self, listed: ListedEpisode) -> _Place | Fault:
        """Where an episode is; or why it cannot be used."""
        file, number = listed.data_file, listed.index
        fault = self._look_at(file)
        if self._info.is_v3 and (fault is not None or number not in self._pieces[file]):
            if self._elsewhere is None:
                self._elsewhere = {}
                for other in self._files.tables():
                    if self._look_at(other) is None:
                        for its in self._pieces[other]:
                            self._elsewhere.setdefault(its, []).append(other)
            others = self._elsewhere.get(number, [])
            if len(others) > 1:
                where = " and in ".join(others[:_MOST_LISTED])
                return Fault(f"its rows are in {where}: remove all but one of these files", "damaged")
            if others:
                file, fault = others[0], None
        if fault is not None:
            return fault
        pieces = self._pieces[file].get(number, [])
        if not pieces:
            return Fault(f"{file} has no rows of it", "missing")
        if len(pieces) > 1:
            reason = f"{file} has its rows in several places: write it again, with the rows of each episode together"
            return Fault(reason, "damaged")
        ((start, rows),) = pieces
        if rows != listed.length:
            return Fault(f"{file} has {rows} rows of it, meta lists {listed.length} steps", "damaged")
        if file != listed.data_file:
            self._moved.append(number)
        return _Place(file, start, listed.videos)

    def notes(self, videos: Sequence[str]) -> list[str]:
        """Where rows are that are not where meta says, and what no list of episodes names.

        Args:
            videos: that no episode is in.
        """
        numbers = {number for pieces in self._pieces.values() for number in pieces}
        unlisted = sorted(numbers - {episode.index for episode in self._listed})
        named = self._listed_in.keys() | self.known.keys()
        notes: dict[str, Sequence[int | str]] = {
            "the rows of episodes {} are in other files than meta says: they are found by " + EPISODE: self._moved,
            "rows of episodes {} are in the data files, and meta lists no such episodes: they are not used": unlisted,
            "no episode that meta lists is in {}: not used": [
                file for file in self._files.tables() if file not in named
            ],
            "no episode that meta lists is in the videos {}: not used": videos,
        }
        return [
            note.format(", ".join(map(str, which[:_MOST_LISTED])) + (", …" if len(which) > _MOST_LISTED else ""))
            for note, which in notes.items()
            if which
        ]

    def _look_at(self, file: str) -> Fault | None:
        """Read what a file says of itself; why it cannot be used."""
        if file not in self.known and file not in self._faults:
            fault = self._files.fault_of(file)
            try:
                if fault is None:
                    table = describe_table(self._info.root / file)
                    self._pieces[file] = self._pieces_of(file, table)
                    self.known[file] = table
            except UserError as error:
                fault = Fault(error.reason, "damaged")
            if fault is not None:
                self._faults[file] = fault
        return self._faults.get(file)

    def _pieces_of(self, file: str, table: TableFile) -> dict[int, list[tuple[int, int]]]:
        """Episode's number → (first row, rows) of each piece of it in a file.

        Raises:
            UserError: if nothing in the file tells whose its rows are, and it has other rows than the episodes that are
                listed in it.
        """
        path = self._info.root / file
        here = [episode for episode in self._listed_in.get(file, []) if episode.length]
        if not self._info.is_v3:
            return {episode.index: [(0, table.rows)] for episode in here if table.rows}
        if EPISODE in table.columns:
            numbers = read_rows(path, 0, table.rows, [EPISODE])[EPISODE][:, 0]
        else:
            spans = [(its.index, its.first_index, its.length) for its in here if its.first_index is not None]
            count = sum(episode.length for episode in here)
            if INDEX in table.columns:
                indices = read_rows(path, 0, table.rows, [INDEX])[INDEX][:, 0]
            elif table.rows == count:
                indices = np.arange(table.rows) + min((first for _, first, _ in spans), default=0)
            else:
                raise UserError(
                    f"{file} has {table.rows} rows, meta lists {count} steps in it, and no {EPISODE} tells whose rows "
                    "they are: write it again with that column"
                )
            numbers = np.full(table.rows, -1)
            for number, first, length in spans:
                numbers[(indices >= first) & (indices < first + length)] = number
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1)).tolist()
        pieces: dict[int, list[tuple[int, int]]] = {}
        for start, end in zip(starts, [*starts[1:], len(numbers)]):
            pieces.setdefault(int(numbers[start]), []).append((start, end - start))
        if EPISODE not in table.columns:
            pieces.pop(-1, None)  # rows of no episode that is listed
        return pieces


# Columns -------------------------------------------------------------------------------------------


def _vectors(info: Info, table: TableFile, cameras: Mapping[str, _CameraFeature]) -> dict[str, Column]:
    """The columns of numbers in a file: those that `info.json` names, then others."""
    images = {camera.key for camera in cameras.values()}
    known = [key for key in info.features if key in table.columns]
    columns: dict[str, Column] = {}
    for key in [*known, *sorted(table.columns.keys() - set(known))]:
        if key in BOOKKEEPING or key in images or _is_undeclared_image(info, table, key):
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


def _cameras(
    info: Info, files: DatasetFiles, tables: Sequence[TableFile], places: Sequence[_Place]
) -> tuple[dict[str, _CameraFeature], list[LeftOut], list[str]]:
    """Look at the features of a dataset, and at the first images of each that may be a camera.

    Returns:
        the cameras by name: "observation.images.top" becomes "top", and two that would be called the same keep their
        keys; what looks like a camera and is none; and how images are read otherwise than the files say.
    """
    forms: dict[str, ImageForm | NoCamera | None] = {}
    for key, feature in info.features.items():
        if feature.dtype in ("video", "image"):
            forms[key] = None  # the first image tells
            continue
        column = next((table for table in tables if key in table.columns), tables[0]).columns.get(key)
        if column is not None and math.prod(feature.shape) == column.size:
            form = image_form(feature.shape, np.dtype(column.dtype), is_camera=len(feature.shape) == 3)
            if form is not None:
                forms[key] = form
    short = {key: _file_name(short_name(key)) for key in forms}
    counts = Counter(short.values())
    names = {key: name if counts[name] == 1 else _file_name(key) for key, name in short.items()}
    if len(set(names.values())) != len(names):
        raise UserError(f"{INFO}: the cameras {', '.join(forms)} cannot be told apart by their names: rename them")

    cameras: dict[str, _CameraFeature] = {}
    left_out: list[LeftOut] = []
    notes: list[str] = []
    for key, form in forms.items():
        no_camera = info.features[key].no_camera
        found = no_camera or form or _first_image(info, files, tables, places, key, notes)
        if isinstance(found, NoCamera):
            depth = _depth_feature(info, tables, places, key) if found.is_distance else None
            if depth is not None:
                cameras[names[key]] = depth
                left_out.append(depth_left_out(names[key], depth.depth_scale or 1.0))
            else:
                left_out.append(LeftOut(found.kind, names[key], found.reason))
            continue
        firsts: list[np.ndarray] = []
        if form is not None and found.is_float:
            for place in places[:_EPISODES_FOR_SIZE]:
                with suppress(UserError):  # whoever reads them is told
                    firsts += read_cells(info.root / place.file, [place.start], key, found.shape)
        cameras[names[key]] = _CameraFeature(key, found, form is not None, white_of(firsts))
    return cameras, left_out, notes


def _depth_feature(
    info: Info, tables: Sequence[TableFile], places: Sequence[_Place], key: str
) -> _CameraFeature | None:
    """The depth camera that a feature is: arrays, PNG or TIFF files in the data files, or a video; None: another one.

    Depth in a video is read if info.json tells what its numbers mean, as LeRobot 0.6 does.
    """
    feature = info.features[key]
    told = {"m": 1000.0, "mm": 1.0, None: None}[feature.depth_unit]
    for table, place in zip(tables[:_EPISODES_FOR_SIZE], places):
        path = info.root / place.file
        try:
            if key in table.columns and math.prod(feature.shape) == table.columns[key].size:
                form = depth_form(feature.shape, np.dtype(table.columns[key].dtype))
                if form is None:
                    return None
                image = ImageForm(form.height, form.width, 1, None, is_float=False)
                (cell,) = read_cells(path, [place.start], key, image.shape)
                return _CameraFeature(key, image, is_array=True, depth_scale=told or scale_of(cell))
            if feature.dtype == "video":
                if feature.depth_codes is None or (video := place.videos.get(key)) is None:
                    continue
                found = video_format(info.root / video.file)
                if not found.pixels.endswith("12le"):
                    return None
                image = ImageForm(found.height, found.width, 1, None, is_float=False)
                return _CameraFeature(key, image, depth_scale=1.0, depth_codes=feature.depth_codes)
            if key in table.others:
                (cell,) = read_cells(path, [place.start], key)
                content = _image_content(info.root, cell, "")
                if not is_depth(content):
                    return None
                depth = decode_depth(content)
                image = ImageForm(depth.shape[0], depth.shape[1], 1, None, is_float=False)
                return _CameraFeature(key, image, depth_scale=told or scale_of(depth))
        except (UserError, OSError, ValueError, SyntaxError):
            continue
    return None


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
                fault = Fault("has no video") if video is None else files.fault_of(video.file)
                if video is None or fault is not None:
                    reason = fault.reason if fault else reason
                    continue
                found = video_format(info.root / video.file)
                if is_depth_format(found.pixels):
                    return NoCamera("depth", f"is depth: its pixels are {found.pixels}")
                if found.rotation:
                    told = f"{key}: {video.file} is to be turned by {found.rotation}° for display"
                    notes.append(f"{told}: its images are read as they are stored, not turned")
                return ImageForm(found.height, found.width, found.channels, 2, is_float=False)
            if key not in table.others:
                continue
            path = info.root / place.file
            where = f"{path}: row {place.start}, {key}"
            (cell,) = read_cells(path, [place.start], key)
            content = _image_content(info.root, cell, where)
            if is_depth(content):
                return NoCamera("depth", "is depth: its images have more than 8 bits per channel", is_distance=True)
            return encoded_form(content, where)
        except UserError as error:
            reason = f"cannot be read: {error}"
            tried += 1
            if tried == _EPISODES_FOR_SIZE:
                break
    return NoCamera("image", reason)


def _camera_faults(
    info: Info,
    files: DatasetFiles,
    camera: _CameraFeature,
    listed: Sequence[ListedEpisode],
    places: Sequence[_Place],
    tables: Sequence[TableFile],
) -> dict[int, Fault]:
    """Position of an episode → why a camera cannot be used in it.

    Args:
        listed: the episodes that can be read, and so are their places and tables.
    """
    faults: dict[int, Fault] = {}
    parts: dict[str, list[tuple[float, int]]] = {}  # video file → where episodes begin, and their positions
    for position, (episode, place, table) in enumerate(zip(listed, places, tables)):
        part, fault = episode.videos.get(camera.key), None
        if part is not None:
            parts.setdefault(part.file, []).append((part.start, position))
            fault = files.fault_of(part.file)
        elif info.features[camera.key].dtype == "video":
            fault = Fault(f"is not told: {episode.untold.get(camera.key, 'its video')}", "missing")
        elif camera.key not in (table.columns if camera.is_array else table.others):
            fault = Fault(f"is not in {place.file}")
        if fault is not None:
            faults[position] = fault
    for file, its in parts.items():
        for (start, one), (next_start, other) in itertools.pairwise(sorted(its)):
            if next_start < start + (listed[one].length - 0.5) / info.fps - 1 / info.fps:
                for position, claims in ((one, other), (other, one)):
                    reason = f"claims the same part of {file} as {listed[claims].name}"
                    faults.setdefault(position, Fault(reason, "damaged"))
    return faults


def _undeclared_images(
    info: Info, files: DatasetFiles, listed: Sequence[ListedEpisode]
) -> tuple[list[LeftOut], list[str]]:
    """Folders of videos and images that no feature of info.json names; and videos of a camera that no episode names."""
    used = {part.file for episode in listed for part in episode.videos.values()}
    keys, video_keys = (
        [f"/{part}/" for key in its for part in (key, short_name(key))] for its in (info.features, info.video_keys)
    )
    has_images = any(feature.dtype == "image" for feature in info.features.values())
    no_cameras = [short_name(key) for key, feature in info.features.items() if feature.no_camera is not None]
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
        left_out.append(LeftOut("image" if no_camera is None else no_camera.kind, _file_name(short_name(name)), reason))
    return left_out, of_none


def _file_name(name: str) -> str:
    """A name without "/", control characters or a leading "."."""
    return re.sub(r"[/\\\x00-\x1f\x7f]|^\.", "_", name) or "_"


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
