"""The folder `meta` of a LeRobotDataset: what it holds, which episodes, in which files.

Versions 2.0 and 2.1 have one data file and one video for each episode, listed in `episodes.jsonl`; in version 3 a
file holds many episodes, listed in the Parquet files of `meta/episodes`. Source: LeRobot 0.4.4, `datasets/utils.py`,
`datasets/lerobot_dataset.py` and `datasets/v30/convert_dataset_v21_to_v30.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from bimact.data.formats.images import NoCamera, not_by_name
from bimact.data.formats.lerobot_columns import column_names, read_table
from bimact.data.formats.lerobot_paths import DatasetFiles, existing, find
from bimact.errors import UserError

INFO = "meta/info.json"
_TASKS_V2, _TASKS_V3 = "meta/tasks.jsonl", "meta/tasks.parquet"
_EPISODES_V2, _EPISODES_V3 = "meta/episodes.jsonl", "meta/episodes"
_CHUNK = "chunk-{episode_chunk:03d}"
_DEFAULT_PATHS = {
    2: (
        f"data/{_CHUNK}/episode_{{episode_index:06d}}.parquet",
        f"videos/{_CHUNK}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
    ),
    3: (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}
_MAX_JSON = 1 << 28  # bytes
_MOST_SPLITS = 10
# What people call the success of an episode, and its failure: no part of LeRobot's own lists.
_SUCCESS = ("success", "is_success", "successful", "episode_success")
_FAILURE = ("failed", "is_failed", "failure", "is_failure")


@dataclass(frozen=True)
class Feature:
    """One of the things that each step has.

    Attributes:
        dtype: "video", "image", "string" or a type of numbers.
        names: of its dimensions, if the file gives any.
        shape: as the file gives it; empty: it does not.
        no_camera: why it is no colour camera; None: nothing says so.
    """

    dtype: str
    names: tuple[str, ...] | None
    shape: tuple[int, ...]
    no_camera: NoCamera | None


@dataclass(frozen=True)
class Info:
    """What `info.json` says.

    Attributes:
        root: the dataset's folder.
        version: such as "v2.1".
        splits: name → its episodes, such as "0:40".
    """

    root: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    data_path: str
    video_path: str
    chunks_size: int
    robot_type: str | None
    total_episodes: int | None
    total_frames: int | None
    splits: Mapping[str, Any]

    @property
    def is_v3(self) -> bool:
        return self.version.startswith("v3")

    @property
    def video_keys(self) -> list[str]:
        """Features that are colour videos."""
        return [key for key, feature in self.features.items() if feature.dtype == "video" and feature.no_camera is None]


@dataclass(frozen=True)
class VideoPart:
    """Where an episode's video is: a file, relative to the dataset, and from which to which second of it.

    Attributes:
        end: None: not told; infinite: to the file's end.
    """

    file: str
    start: float
    end: float | None


@dataclass(frozen=True)
class ListedEpisode:
    """An episode as `meta` lists it.

    Attributes:
        index: its number; below 0 where that is not told.
        length: steps.
        tasks: texts of what was to be done; none: they are to be found by the steps' task_index.
        data_file: relative to the dataset.
        first_index: number of its first step in the whole dataset, if listed.
        videos: by feature.
        untold: features whose video is not told, and what is missing.
        fault: why it cannot be used, if so.
        name: what messages call it.
        is_failed: the list says that the demonstration did not succeed.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data_file: str
    first_index: int | None
    videos: Mapping[str, VideoPart]
    untold: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None
    name: str = ""
    is_failed: bool = False


def read_info(root: Path) -> Info:
    """Read `meta/info.json`.

    Raises:
        UserError: naming the key, if it is damaged or says what cannot be.
    """
    path = root / INFO
    content = _Record(_parsed(_read_text(root, INFO), str(path)), path)
    version = _version(content, root)
    data_path, video_path = _DEFAULT_PATHS[3 if version.startswith("v3") else 2]
    features, splits = content.values.get("features"), content.values.get("splits")
    if not isinstance(features, dict):
        raise UserError(
            f"{path}: features is {shortened(features)}, it has to be an object with the columns and cameras"
        )
    return Info(
        root=root,
        version=version,
        fps=content.number("fps"),
        features={key: _feature(key, _Record(value, path, f"features.{key}.")) for key, value in features.items()},
        data_path=content.text("data_path") or data_path,
        video_path=content.text("video_path") or video_path,
        chunks_size=content.integer("chunks_size", 1000, least=1),
        robot_type=content.text("robot_type"),
        total_episodes=None if content.is_missing("total_episodes") else content.integer("total_episodes"),
        total_frames=None if content.is_missing("total_frames") else content.integer("total_frames"),
        splits=splits if isinstance(splits, dict) else {},
    )


def notes_on_choice(info: Info, listed: Sequence[ListedEpisode]) -> list[str]:
    """What the lists say of episodes that might be left out, and are used."""
    notes = []
    told = ", ".join(f"{shortened(name)} {shortened(span)}" for name, span in list(info.splits.items())[:_MOST_SPLITS])
    if len(info.splits) > 1:
        notes.append(f"the episodes of all splits are used ({told}); --episodes chooses")
    for span in info.splits.values() if len(info.splits) == 1 else ():
        bounds = re.fullmatch(r"(\d{1,15}):(\d{1,15})", str(span))
        inside = range(int(bounds[1]), int(bounds[2])) if bounds else span
        if not isinstance(inside, (range, list)):
            continue
        if any(episode.index >= 0 and episode.index not in inside for episode in listed):
            notes.append(
                f"{INFO} has one split ({told}), and other episodes are listed: they are used too; --episodes chooses"
            )
    return notes


def read_tasks(info: Info) -> tuple[dict[int, str], list[str]]:
    """The text of each task by its number, nothing if the dataset has no list of them; and what cannot be read."""
    file = _tasks_file(info)
    texts: dict[int, str] = {}
    if file is None:
        return texts, []
    try:
        key = "task"
        records: list[_Record | UserError] = []
        if file == _TASKS_V2:
            records += _read_json_lines(info.root, file)
        else:
            path = existing(info.root, file)
            # Pandas' index: LeRobot leaves it without a name.
            names = [name for name in column_names(path) if name != "task_index"]
            key = "task" if "task" in names else next(iter(names), "task")
            records += [_Record(row, path) for row in read_table(path, ["task_index", key])]
        for record in records:
            if isinstance(record, UserError):
                raise record
            texts[record.integer("task_index")] = record.text(key) or ""
    except UserError as error:
        return texts, [f"some tasks are not known by their texts: {error}"]
    return texts, []


def read_episodes(info: Info, files: DatasetFiles) -> list[ListedEpisode]:
    """All episodes that `meta` lists, by their numbers. One of which it does not tell enough has a fault.

    Args:
        files: finds those that the episodes are in.

    Raises:
        UserError: if nothing of the lists can be read, or paths in info.json are of no known form.
    """
    listed = []
    for row, record in enumerate(_episode_records(info)):
        index, name = -1 - row, f"row {row} of the list of episodes"
        try:
            if isinstance(record, UserError):
                raise record
            index = record.integer("episode_index")
            name = f"episode {index}"
            length, tasks = record.integer("length"), record.texts("tasks")
            places = _places_v3(record) if info.is_v3 else {"episode_chunk": index // info.chunks_size}
            first = None
            if info.is_v3 and not record.is_missing("dataset_from_index"):
                first = record.integer("dataset_from_index")
        except UserError as error:
            listed.append(ListedEpisode(index, 0, (), "", None, {}, fault=str(error), name=name))
            continue
        if not info.is_v3:
            places["episode_index"] = index
        videos: dict[str, VideoPart] = {}
        untold: dict[str, str] = {}
        for key in info.video_keys:
            try:
                its = _video_places_v3(record, key) if info.is_v3 else (places, 0.0, math.inf)
            except UserError as error:
                untold[key] = str(error)
                continue
            file = files.named("video_path", info.video_path, {**its[0], "video_key": key})
            videos[key] = VideoPart(file, its[1], its[2])
        data_file = files.named("data_path", info.data_path, places)
        is_failed = _is_failed(record.values)
        listed.append(ListedEpisode(index, length, tasks, data_file, first, videos, untold, None, name, is_failed))
    return sorted(listed, key=lambda episode: episode.index)


def meta_files(info: Info) -> list[str]:
    """Files that the above is read from, relative to the dataset."""
    tasks = _tasks_file(info)
    return [INFO, *([] if tasks is None else [tasks]), *_episodes_files(info)]


# Episodes ------------------------------------------------------------------------------------------


def _episodes_files(info: Info) -> list[str]:
    if not info.is_v3:
        return [_EPISODES_V2]
    found = sorted((info.root / _EPISODES_V3).glob("*/*.parquet"))
    return [path.relative_to(info.root).as_posix() for path in found]


def _episode_records(info: Info) -> Iterator[_Record | UserError]:
    """What each row of the lists says, or why it cannot be read."""
    files = _episodes_files(info)
    if not files:
        raise UserError(f"{info.root / _EPISODES_V3}, which lists the episodes, is empty or missing: copy it again")
    for file in files:
        if not info.is_v3:
            yield from _read_json_lines(info.root, file)
            continue
        path = existing(info.root, file)
        keys = [key for key in column_names(path) if not key.startswith("stats/")]
        for row in read_table(path, keys):
            yield _Record(row, path)


def _is_failed(values: Mapping[str, Any]) -> bool:
    """Whether the list says that an episode did not succeed."""
    told = {key: str(values[key]).lower() for key in (*_SUCCESS, *_FAILURE) if values.get(key) is not None}
    no, yes = ("false", "0", "0.0", "no", "failure", "fail", "failed"), ("true", "1", "1.0", "yes")
    return any(told.get(key) in no for key in _SUCCESS) or any(told.get(key) in yes for key in _FAILURE)


def _places_v3(record: _Record) -> dict[str, str | int]:
    return {"chunk_index": record.integer("data/chunk_index"), "file_index": record.integer("data/file_index")}


def _video_places_v3(record: _Record, key: str) -> tuple[dict[str, str | int], float, float | None]:
    """Numbers of the file of an episode's video, and the seconds at which it begins and ends in there."""
    prefix = f"videos/{key}/"
    numbers: dict[str, str | int] = {name: record.integer(prefix + name) for name in ("chunk_index", "file_index")}
    end = None if record.is_missing(prefix + "to_timestamp") else record.number(prefix + "to_timestamp", least=0.0)
    return numbers, record.number(prefix + "from_timestamp", least=0.0), end


# info.json -----------------------------------------------------------------------------------------


def _version(content: _Record, root: Path) -> str:
    version = content.text("codebase_version")
    if version is None:
        return "v3.0" if (root / _EPISODES_V3).is_dir() else "v2.1"
    if not re.fullmatch(r"v[23]\.\d{1,3}", version):
        raise UserError(
            f"{root / INFO}: codebase_version is {shortened(version)}; bimact reads LeRobotDataset v2.0, v2.1 and v3.0"
        )
    return version


def _feature(key: str, record: _Record) -> Feature:
    shape = record.values.get("shape")
    is_shape = isinstance(shape, list) and all(type(size) is int for size in shape)
    return Feature(
        dtype=record.text("dtype") or "",
        names=_names(record.values.get("names")),
        shape=tuple(shape) if is_shape else (),  # type: ignore[arg-type]
        no_camera=_no_camera(key, record.values),
    )


def _no_camera(key: str, values: Mapping[str, Any]) -> NoCamera | None:
    """Why a feature is no colour camera: a flag, a format of pixels, or its name says so."""
    details = [part for name in ("info", "video_info", "image_info") if isinstance(part := values.get(name), dict)]
    for part in (*details, values):
        for prefix in ("", "video.", "image."):
            flag = part.get(f"{prefix}is_depth_map", part.get(f"{prefix}is_depth"))
            if flag is True or (isinstance(flag, (int, float)) and flag) or str(flag).lower() in ("true", "yes", "1"):
                return NoCamera("depth", "is depth, as info.json says")
            pixels = part.get(f"{prefix}pix_fmt")
            if isinstance(pixels, str) and is_depth_format(pixels):
                return NoCamera("depth", f"is depth: its pixels are {shortened(pixels)}")
    return not_by_name(key)


def is_depth_format(pixel_format: str) -> bool:
    """Whether pixels are grey with more than 8 bits, such as gray10le, gray12le and gray16le."""
    return re.fullmatch(r"(gray|y)(9|1\d|32|f)\w*", pixel_format) is not None


def _names(names: Any) -> tuple[str, ...] | None:
    """Names in a list, in a list of lists or in an object such as {"motors": [...]}, in their order."""
    if isinstance(names, dict):
        names = list(names.values())
    if not isinstance(names, list):
        return None
    if any(isinstance(part, list) for part in names):
        names = [name for part in names for name in (part if isinstance(part, list) else [part])]
    return tuple(names) if names and all(isinstance(name, str) for name in names) else None


def _tasks_file(info: Info) -> str | None:
    """LeRobot's documentation of v3 names the list of v2, so look for both."""
    names = (_TASKS_V3, _TASKS_V2) if info.is_v3 else (_TASKS_V2, _TASKS_V3)
    return next((name for name in names if find(info.root, name) is not None), None)


# JSON ----------------------------------------------------------------------------------------------


class _Record:
    """An object of a file, and what messages call the file and the object's keys."""

    def __init__(self, values: Any, path: Path, prefix: str = "") -> None:
        if not isinstance(values, dict):
            raise UserError(
                f"{path}: {prefix.rstrip('.') or 'its content'} is {shortened(values)}, it has to be an object"
            )
        self.values: Mapping[str, Any] = values
        self._path = path
        self._prefix = prefix

    def is_missing(self, key: str) -> bool:
        """Whether there is no value, as where a table has NaN."""
        value = self.values.get(key)
        return value is None or value != value

    def integer(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, float) and value.is_integer():  # a table in which some rows lack it
            value = int(value)
        if type(value) is not int or not least <= value < 1 << 53:
            raise self._error(key, f"a whole number, at least {least}")
        return value

    def number(self, key: str, least: float = 1e-6) -> float:
        value: Any = self.values.get(key)
        if type(value) not in (int, float) or not least <= value < 1e6:
            raise self._error(key, "a number above 0" if least > 0 else f"a number from {least:g} on")
        return float(value)

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self._error(key, "text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts without repetitions; one text is a list of it."""
        value = self.values.get(key)
        value = [value] if isinstance(value, str) else value or []
        if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
            raise self._error(key, "a list of texts")
        return tuple(dict.fromkeys(value))

    def _error(self, key: str, wanted: str) -> UserError:
        found = shortened(self.values.get(key))
        return UserError(f"{self._path}: {self._prefix}{key} is {found}, it has to be {wanted}")


def _read_json_lines(root: Path, file: str) -> Iterator[_Record | UserError]:
    """What each line says, or why it cannot be read."""
    path = root / file
    for number, line in enumerate(_read_text(root, file).split("\n"), start=1):
        if line.strip():
            try:
                yield _Record(_parsed(line, f"{path}, line {number},"), path, f"line {number}: ")
            except UserError as error:
                yield error


def _read_text(root: Path, file: str) -> str:
    path = existing(root, file)
    try:
        if path.stat().st_size > _MAX_JSON:
            raise UserError(f"{path} has {path.stat().st_size} bytes, which is far too much: it is damaged")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy or record it again") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no readable JSON ({error}): copy or record it again") from None
