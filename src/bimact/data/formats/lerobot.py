"""LeRobotDataset v2.0, v2.1 and v3.0: vectors in Parquet files, cameras as videos or as images in the same files.

A frame of a video belongs to a step if it is the nearest to the step's timestamp and not more than half a step away.
Episodes that are listed and whose files are missing, damaged or of another length are left out, each with a sentence.
Source: LeRobot 0.4.4, `datasets/lerobot_dataset.py` and `datasets/video_utils.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bimact.data.formats.images import decode_image
from bimact.data.formats.lerobot_columns import TableFile, describe_table, read_cells, read_rows
from bimact.data.formats.lerobot_meta import (
    INFO,
    Info,
    ListedEpisode,
    VideoPart,
    meta_files,
    read_episodes,
    read_info,
    read_tasks,
)
from bimact.data.formats.lerobot_paths import existing, find
from bimact.data.formats.video_frames import frame_size, frames_at
from bimact.data.source import Camera, Column, Format, Source, SourceEpisode
from bimact.errors import UserError

_STATE, _ACTION = "observation.state", "action"
_TIME, _FRAME, _EPISODE, _TASK = "timestamp", "frame_index", "episode_index", "task_index"
_BOOKKEEPING = (_TIME, _FRAME, _EPISODE, "index", _TASK)
_MAX_IMAGE_FILE = 1 << 28  # bytes


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
        time_key: the column that tells a step's time: seconds, a frame's number, or None: steps are counted.
    """

    fps: float
    places: tuple[_Place, ...]
    features: Mapping[str, str]
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
        images = self._images(episode, key, steps) if video is None else self._frames(episode, video, steps)
        file = self.places[episode].file if video is None else video.file
        size = self.cameras[camera]
        for step, image in zip(steps, images, strict=True):
            if image.shape[:2] != (size.height, size.width):
                raise UserError(
                    f"{self.path / file}: {self._where(episode, step)}, camera {camera}: the image has "
                    f"{image.shape[0]}×{image.shape[1]} pixels, the first episode's have {size.height}×{size.width}; "
                    "leave the episode out or record it again"
                )
            yield image

    def _frames(self, episode: int, video: VideoPart, steps: Sequence[int]) -> Iterator[np.ndarray]:
        times = video.start + self._times(episode)[list(steps)]
        return frames_at(
            existing(self.path, video.file),
            times.tolist(),
            fps=self.fps,
            describe=lambda number: self._where(episode, steps[number]),
        )

    def _times(self, episode: int) -> np.ndarray:
        """(T,) seconds of each step since the episode's video began."""
        if self.time_key is None:
            return np.arange(self.episodes[episode].length) / self.fps
        times = self.read_columns(episode, [self.time_key])[self.time_key][:, 0].astype(np.float64)
        return times if self.time_key == _TIME else times / self.fps

    def _images(self, episode: int, key: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        place = self.places[episode]
        path = existing(self.path, place.file)
        previous, image = -1, np.empty(0, np.uint8)
        for step, cell in zip(steps, read_cells(path, [place.start + step for step in steps], key), strict=True):
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
    listed = sorted(read_episodes(info), key=lambda episode: episode.index)
    files = _DataFiles(info, listed)
    episodes, places, skipped = _usable_episodes(info, files, listed)
    if not episodes:
        reasons = f": {skipped[0]}" if skipped else ""
        more = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        raise UserError(f"{info.root} has no episode that can be read{reasons}{more}")
    columns = _vectors(info, files.first)
    features = _camera_names(_camera_keys(info))
    used = [name for episode in episodes for name in episode.files]
    return LeRobotSource(
        path=info.root,
        format=f"LeRobotDataset {info.version}",
        episodes=tuple(episodes),
        cameras={name: _camera(info, places[0], key) for name, key in features.items()},
        columns=columns,
        state_keys=_vector_keys(columns, _STATE),
        action_keys=_vector_keys(columns, _ACTION),
        fps=info.fps,
        files=tuple(dict.fromkeys([*meta_files(info), *used])),
        skipped=tuple(skipped),
        metadata={} if info.robot_type is None else {"robot_type": info.robot_type},
        places=tuple(places),
        features=features,
        time_key=next((key for key in (_TIME, _FRAME) if key in files.first.columns), None),
    )


def is_lerobot(path: Path) -> bool:
    return (path / INFO).is_file()


FORMAT = Format(name="LeRobotDataset", recognizes=is_lerobot, open=open_lerobot)


# Episodes ------------------------------------------------------------------------------------------


class _DataFiles:
    """The data files of a dataset, each looked at once."""

    def __init__(self, info: Info, listed: Sequence[ListedEpisode]) -> None:
        self._info = info
        self._tables: dict[str, TableFile | str] = {}
        self._pieces: dict[str, dict[int, tuple[int, int]]] = {}
        self._first: TableFile | None = None
        # The index in the whole dataset of each file's first step.
        self._first_indices: dict[str, int] = {}
        for episode in listed:
            if episode.first_index is not None:
                known = self._first_indices.get(episode.data_file, episode.first_index)
                self._first_indices[episode.data_file] = min(known, episode.first_index)

    @property
    def first(self) -> TableFile:
        """The first file that is used, which the others have to be like."""
        assert self._first is not None
        return self._first

    def place(self, listed: ListedEpisode) -> _Place | str:
        """Where an episode is, or why it cannot be used."""
        table = self._table(listed.data_file)
        if isinstance(table, str):
            return table
        start, rows = self._rows(listed, table)
        if rows != listed.length:
            return f"{listed.data_file} has {rows} rows of it, meta lists {listed.length} steps"
        fault = _fault_of(table, self._info, self._first)
        if fault is not None:
            return f"{listed.data_file} {fault}"
        self._first = self._first or table
        return _Place(listed.data_file, start, listed.videos)

    def task_numbers(self, listed: ListedEpisode, place: _Place) -> list[int]:
        """What the steps' task_index says, each number once."""
        if _TASK not in self.first.columns:
            return []
        path = existing(self._info.root, place.file)
        numbers = read_rows(path, place.start, place.start + listed.length, [_TASK])[_TASK][:, 0]
        return list(dict.fromkeys(numbers.tolist()))

    def _table(self, file: str) -> TableFile | str:
        if file not in self._tables:
            self._tables[file] = self._look_at(file)
        return self._tables[file]

    def _look_at(self, file: str) -> TableFile | str:
        try:
            path = find(self._info.root, file)
            if path is None:
                return f"{file} is missing"
            table = describe_table(path)
            self._pieces[file] = _pieces(path, table) if self._info.is_v3 and _EPISODE in table.columns else {}
        except UserError as error:
            return str(error)
        return table

    def _rows(self, listed: ListedEpisode, table: TableFile) -> tuple[int, int]:
        """(first row, rows) of an episode in its file."""
        if not self._info.is_v3:
            return 0, table.rows
        if _EPISODE in table.columns:
            return self._pieces[listed.data_file].get(listed.index, (0, 0))
        if listed.first_index is None:
            return 0, 0
        start = listed.first_index - self._first_indices[listed.data_file]
        return start, max(0, min(listed.length, table.rows - start))


def _usable_episodes(
    info: Info, files: _DataFiles, all_listed: Sequence[ListedEpisode]
) -> tuple[list[SourceEpisode], list[_Place], list[str]]:
    """(episodes, their places, a sentence for each one that is left out)."""
    episodes: list[SourceEpisode] = []
    places: list[_Place] = []
    skipped: list[str] = []
    texts = read_tasks(info)
    seen: set[int] = set()
    for listed in all_listed:
        name = f"episode {listed.index}"
        fault = "it is listed twice" if listed.index in seen else _fault_of_listing(info, listed)
        seen.add(listed.index)
        place = fault or files.place(listed)
        if isinstance(place, str):
            skipped.append(f"{name}: {place}")
            continue
        tasks = listed.tasks or tuple(texts.get(number, "") for number in files.task_numbers(listed, place))
        used = (place.file, *dict.fromkeys(part.file for part in place.videos.values()))
        task = "; ".join(text for text in tasks if text) or None
        episodes.append(SourceEpisode(name, listed.length, used, task))
        places.append(place)
    return episodes, places, skipped


def _fault_of_listing(info: Info, listed: ListedEpisode) -> str | None:
    """What is wrong with an episode before its data file is looked at."""
    if listed.length == 0:
        return "it has no steps"
    missing = [part.file for part in listed.videos.values() if find(info.root, part.file) is None]
    return listed.fault or (f"{missing[0]} is missing" if missing else None)


def _fault_of(table: TableFile, info: Info, first: TableFile | None) -> str | None:
    """Why a file cannot be used beside the first one."""
    for key, feature in info.features.items():
        if feature.dtype == "image" and not feature.is_depth and key not in table.others:
            return f"has no images {key}"
    for key, column in first.columns.items() if first is not None else ():
        if (key in info.features or key in (_TIME, _FRAME)) and table.columns.get(key, Column(0)).size != column.size:
            return f"has not the {column.size} values of {key} a step that the other files have"
    return None


def _pieces(path: Path, table: TableFile) -> dict[int, tuple[int, int]]:
    """Episode's number → (first row, rows) of the first piece of it in a file."""
    numbers = read_rows(path, 0, table.rows, [_EPISODE])[_EPISODE][:, 0]
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
    ends = [*starts[1:].tolist(), len(numbers)]
    pieces: dict[int, tuple[int, int]] = {}
    for start, end in zip(starts.tolist(), ends):
        pieces.setdefault(int(numbers[start]), (start, end - start))
    return pieces


# Columns and cameras -------------------------------------------------------------------------------


def _vectors(info: Info, table: TableFile) -> dict[str, Column]:
    """The columns of numbers that `info.json` names, as the files hold them."""
    columns = {}
    for key, feature in info.features.items():
        if key in table.columns and key not in _BOOKKEEPING:
            column = table.columns[key]
            has_names = feature.names is not None and len(feature.names) == column.size
            columns[key] = replace(column, names=feature.names if has_names else None)
    return columns


def _vector_keys(columns: Mapping[str, Column], key: str) -> tuple[str, ...]:
    """A column, or those that it is divided into."""
    return (key,) if key in columns else tuple(name for name in columns if name.startswith(f"{key}."))


def _camera_keys(info: Info) -> list[str]:
    return [
        key for key, feature in info.features.items() if feature.dtype in ("video", "image") and not feature.is_depth
    ]


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


def _camera(info: Info, place: _Place, key: str) -> Camera:
    """The size of a camera's images in the first episode."""
    video = place.videos.get(key)
    if video is not None:
        return Camera(*frame_size(existing(info.root, video.file)))
    path = existing(info.root, place.file)
    where = f"{path}: row {place.start}, {key}"
    (cell,) = read_cells(path, [place.start], key)
    height, width, _ = decode_image(_image_content(info.root, cell, where), where).shape
    return Camera(height, width)


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
