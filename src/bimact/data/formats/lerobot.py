"""LeRobotDataset v2.0, v2.1 and v3.0: vectors in Parquet files, cameras as videos or as images in the same files.

Which frame of a video belongs to a step, `frame_matching.py` says. Episodes that are listed and whose files are
missing are left out, damaged ones are named, each with a sentence. Rows of an episode are found by their
`episode_index`, in whichever file they are.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bimact.data.formats.frame_matching import Matching, match_frames
from bimact.data.formats.images import (
    ImageForm,
    NoCamera,
    conversion_notes,
    decode_image,
    encoded_form,
    image_form,
    is_depth,
    white_of,
)
from bimact.data.formats.in_common import usual_forms
from bimact.data.formats.lerobot_columns import TableFile, describe_table, read_arrays, read_cells, read_rows
from bimact.data.formats.lerobot_meta import (
    INFO,
    Feature,
    Info,
    ListedEpisode,
    VideoPart,
    is_depth_format,
    meta_files,
    read_episodes,
    read_info,
    read_tasks,
)
from bimact.data.formats.lerobot_paths import DatasetFiles, existing
from bimact.data.formats.video_frames import frame_times, frames_at, video_format
from bimact.data.source import Camera, Column, Fault, Format, FramesNote, LeftOut, Source, SourceEpisode, Unusable
from bimact.errors import UserError

_STATE, _ACTION = "observation.state", "action"
_TIME, _FRAME, _EPISODE, _TASK = "timestamp", "frame_index", "episode_index", "task_index"
_BOOKKEEPING = (_TIME, _FRAME, _EPISODE, "index", _TASK)
_MAX_IMAGE_FILE = 1 << 28  # bytes
_EPISODES_FOR_SIZE = 3  # that a camera is looked at in, if the first ones are damaged
_MOST_TOLD = 10


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
        time_key: the column that tells a step's time: seconds, a frame's number, or None: steps are counted.
    """

    fps: float
    places: tuple[_Place, ...]
    features: Mapping[str, str]
    arrays: Mapping[str, ImageForm]
    whites: Mapping[str, float]
    time_key: str | None

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        place = self.places[episode]
        length = self.episodes[episode].length
        return read_rows(existing(self.path, place.file), place.start, place.start + length, keys)

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
        return None if video is None else self._matching(episode, video).note

    def _matching(self, episode: int, video: VideoPart) -> Matching:
        path = existing(self.path, video.file)
        length = self.episodes[episode].length
        times = np.arange(length) / self.fps
        if self.time_key is not None:
            times = self.read_columns(episode, [self.time_key])[self.time_key][:, 0].astype(np.float64)
            times = times if self.time_key == _TIME else times / self.fps
        frames, half = frame_times(path), 0.5 / self.fps
        end = by_length = video.start + length / self.fps
        if video.end is not None and not math.isfinite(video.end):
            end = video.end
        elif video.end is not None:
            counts = [
                np.searchsorted(frames, at - half) - np.searchsorted(frames, video.start - half)
                for at in (video.end, by_length)
            ]
            end = by_length if counts[0] != length == counts[1] else video.end
        try:
            return match_frames(frames, video.start, end, times, self.fps, lambda step: self._where(episode, step))
        except UserError as error:
            raise UserError(f"{path} {error}") from None

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
        episodes.append(SourceEpisode(name, entry.length, used, task, entry.index))
        places.append(place)
        read.append(entry)
    if not episodes:
        reasons = "; ".join(episode.sentence for episode in unusable[:_MOST_TOLD]) or "none is listed"
        more = f"; and {len(unusable) - _MOST_TOLD} more" if len(unusable) > _MOST_TOLD else ""
        raise UserError(f"{info.root} has no episode that can be read: {reasons}{more}")

    of_episodes = [tables.known[place.file] for place in places]
    cameras = _Cameras.found(info, files, of_episodes, places)
    left_out = [*cameras.left_out, *_unread(info, of_episodes[0])]
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
            elif key not in of_episodes[position].others and camera not in cameras.arrays:
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
            *info.notes,
            *_other_counts(info, listed),
            *files.notes.values(),
            *tables.notes(),
            *task_notes,
            *conversion_notes([cameras.forms], cameras.whites),
        ),
        metadata={} if info.robot_type is None else {"robot_type": info.robot_type},
        places=tuple(places),
        features=cameras.features,
        arrays=cameras.arrays,
        whites=cameras.whites,
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
        self._elsewhere: dict[int, str] | None = None  # episode → its file, of all files
        self._moved: list[int] = []
        self._listed = {episode.index for episode in listed}
        self._listed_files = {episode.data_file for episode in listed}
        # The index in the whole dataset of each file's first step.
        self._first_indices: dict[str, int] = {}
        for episode in listed:
            if episode.first_index is not None:
                known = self._first_indices.get(episode.data_file, episode.first_index)
                self._first_indices[episode.data_file] = min(known, episode.first_index)

    def place(self, listed: ListedEpisode) -> _Place | tuple[str, bool]:
        """Where an episode is; or why it cannot be used, and whether it is missing."""
        file = listed.data_file
        fault = self._look_at(file)
        if fault is None:
            start, rows = self._rows(listed, file)
        if self._info.is_v3 and (fault is not None or not rows):
            other = self._other_file(listed)
            if other is not None:
                file, fault = other, None
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

    def notes(self) -> list[str]:
        """Where rows are that are not where meta says, and what no list of episodes names."""
        unlisted = sorted({number for pieces in self._pieces.values() for number in pieces} - self._listed)
        of_none = [file for file in self._files.tables() if file not in self._listed_files | self.known.keys()]
        notes: dict[str, Sequence[int | str]] = {
            "the rows of episodes {} are in other files than meta says: they are found by " + _EPISODE: self._moved,
            "rows of episodes {} are in the data files, and meta lists no such episodes: they are not used": unlisted,
            "no episode that meta lists is in {}: not used": of_none,
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
                has_index = self._info.is_v3 and _EPISODE in table.columns
                self._pieces[file] = _pieces(path, table) if has_index else {}
                self.known[file] = table
            except UserError as error:
                self._faults[file] = str(error), False
        return self._faults.get(file)

    def _rows(self, listed: ListedEpisode, file: str) -> tuple[int, int]:
        """(first row, rows) of an episode in a file."""
        table = self.known[file]
        if not self._info.is_v3:
            return 0, table.rows
        if _EPISODE in table.columns:
            return self._pieces[file].get(listed.index, [(0, 0)])[0]
        if listed.first_index is None or file not in self._first_indices:
            return 0, 0
        start = listed.first_index - self._first_indices[file]
        return start, max(0, min(listed.length, table.rows - start))

    def _other_file(self, listed: ListedEpisode) -> str | None:
        """Another file than meta says that has rows of an episode."""
        if self._elsewhere is None:
            self._elsewhere = {}
            for file in self._files.tables():
                if self._look_at(file) is None:
                    for number in self._pieces[file]:
                        self._elsewhere.setdefault(number, file)
        return self._elsewhere.get(listed.index)


def _pieces(path: Path, table: TableFile) -> dict[int, list[tuple[int, int]]]:
    """Episode's number → (first row, rows) of each piece of it in a file."""
    numbers = read_rows(path, 0, table.rows, [_EPISODE])[_EPISODE][:, 0]
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
    ends = [*starts[1:].tolist(), len(numbers)]
    pieces: dict[int, list[tuple[int, int]]] = {}
    for start, end in zip(starts.tolist(), ends):
        pieces.setdefault(int(numbers[start]), []).append((start, end - start))
    return pieces


# Columns -------------------------------------------------------------------------------------------


def _vectors(info: Info, table: TableFile, cameras: Mapping[str, str]) -> dict[str, Column]:
    """The columns of numbers in a file: those that `info.json` names, then others."""
    known = [key for key in info.features if key in table.columns]
    columns: dict[str, Column] = {}
    for key in [*known, *sorted(table.columns.keys() - set(known))]:
        if key in _BOOKKEEPING or key in cameras.values():
            continue
        column = table.columns[key]
        names = info.features[key].names if key in info.features else None
        columns[key] = replace(column, names=names if names is not None and len(names) == column.size else None)
    return columns


def _unread(info: Info, table: TableFile) -> list[LeftOut]:
    """Features that are neither cameras nor columns of numbers."""
    return [
        LeftOut("column", key, f"holds {feature.dtype}" if key in table.others else "is not in the files")
        for key, feature in info.features.items()
        if feature.dtype not in ("video", "image") and key not in table.columns
    ]


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
    """

    sizes: dict[str, Camera]
    features: dict[str, str]
    forms: dict[str, ImageForm]
    arrays: dict[str, ImageForm]
    whites: dict[str, float]
    left_out: list[LeftOut]

    @classmethod
    def found(cls, info: Info, files: DatasetFiles, tables: Sequence[TableFile], places: Sequence[_Place]) -> _Cameras:
        """Look at the features of a dataset, and at the first images of each that may be a camera."""
        forms = {key: form for key, feature in info.features.items() if (form := _array_form(key, feature, tables[0]))}
        keys = [key for key, feature in info.features.items() if feature.dtype in ("video", "image") or key in forms]
        cameras = cls({}, {}, {}, {}, {}, [])
        for name, key in _camera_names(keys).items():
            feature, form = info.features[key], forms.get(key)
            found: ImageForm | NoCamera
            if feature.no_camera is not None:
                found = feature.no_camera
            elif form is not None:
                found = form
            else:
                found = _first_image(info, files, tables, places, key)
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
) -> ImageForm | NoCamera:
    """What a camera's images are in the first episode in which it can be read; or why it is none."""
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
                channels = 1 if found.pixels.startswith("gray") else 3
                return ImageForm(found.height, found.width, channels, 2, is_float=False)
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


def _white(info: Info, places: Sequence[_Place], key: str, form: ImageForm) -> float:
    """The number that stands for white in a camera of floats, by the first images of some episodes."""

    def images() -> Iterator[np.ndarray]:
        for place in places[:_EPISODES_FOR_SIZE]:
            with suppress(UserError):  # whoever reads them is told
                yield from read_arrays(existing(info.root, place.file), [place.start], key, _array_shape(form))

    return white_of(images())


def _camera_names(keys: Sequence[str]) -> dict[str, str]:
    """Camera → feature: "observation.images.top" becomes "top"; two that would be called the same keep their keys."""
    short = {key: _file_name(re.sub(r"^observation\.(images?\.(?=.))?", "", key)) for key in keys}
    counts = Counter(short.values())
    names = {key: name if counts[name] == 1 else _file_name(key) for key, name in short.items()}
    if len(set(names.values())) != len(names):
        raise UserError(f"{INFO}: the cameras {', '.join(keys)} cannot be told apart by their names: rename them")
    return {name: key for key, name in names.items()}


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
