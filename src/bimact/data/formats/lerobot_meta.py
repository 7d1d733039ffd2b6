"""The folder `meta` of a LeRobotDataset: what it holds, which episodes, in which files; and how files are found.

Versions 2.0 and 2.1 have one data file and one video for each episode, listed in `episodes.jsonl`; in version 3 a
file holds many episodes, listed in the Parquet files of `meta/episodes`. Source: LeRobot 0.4.4, `datasets/utils.py`,
`datasets/lerobot_dataset.py` and `datasets/v30/convert_dataset_v21_to_v30.py`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from bimact.data.depth import DepthCodes
from bimact.data.formats.images import NoCamera, not_by_name
from bimact.data.formats.lerobot_columns import read_table
from bimact.data.source import Fault
from bimact.errors import UserError
from bimact.files import real_file


@dataclass(frozen=True)
class Layout:
    """Where the files of a dataset are, relative to it.

    Attributes:
        data: template of the data files.
        video: template of the videos.
        tasks: the list of tasks.
        episodes: the list of episodes: a file, or a template of several.
        stats: statistics, which are not read here.
    """

    data: str
    video: str
    tasks: str
    episodes: str
    stats: str


_EPISODE, _FILE = "chunk-{episode_chunk:03d}", "chunk-{chunk_index:03d}/file-{file_index:03d}"
V2 = Layout(
    f"data/{_EPISODE}/episode_{{episode_index:06d}}.parquet",
    f"videos/{_EPISODE}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
    "meta/tasks.jsonl",
    "meta/episodes.jsonl",
    "meta/episodes_stats.jsonl",
)
V3 = Layout(
    f"data/{_FILE}.parquet",
    f"videos/{{video_key}}/{_FILE}.mp4",
    "meta/tasks.parquet",
    f"meta/episodes/{_FILE}.parquet",
    "meta/stats.json",
)
INFO = "meta/info.json"
FILES_PER_CHUNK = 1000  # of data files and videos in a folder, unless info.json says another number
STATE, ACTION = "observation.state", "action"
TIME, FRAME, EPISODE, INDEX, TASK = "timestamp", "frame_index", "episode_index", "index", "task_index"
BOOKKEEPING = {TIME: "float32", FRAME: "int64", EPISODE: "int64", INDEX: "int64", TASK: "int64"}  # column → dtype

_MAX_JSON = 1 << 28  # bytes
_MAX_FILES = 1_000_000
_MOST_SPLITS = 10
_FARTHEST_DEPTH = 1e6  # metres; more is a damaged file
# What people call the success of an episode, and its failure: no part of LeRobot's own lists.
_SUCCESS = ("success", "is_success", "successful", "episode_success")
_FAILURE = ("failed", "is_failed", "failure", "is_failure")
_NO, _YES = ("false", "0", "0.0", "no", "failure", "fail", "failed"), ("true", "1", "1.0", "yes")
# {name}, {name:d}, {name:3d}, {name:03d}: what LeRobot uses of Python's format strings, and nothing else of them.
_FIELD = re.compile(r"\{([a-z_]{1,40})(?::(0?\d{0,2})d)?\}")
# What others call the fields: any of a group stands for the one of it that the version has.
_SYNONYMS = (
    {"episode_chunk", "chunk_index", "chunk", "chunk_id"},
    {"episode_index", "episode", "episode_id", "file_index", "file", "file_id"},
    {"video_key", "camera", "camera_key", "camera_name", "image_key", "key"},
)


@dataclass(frozen=True)
class Feature:
    """One of the things that each step has.

    Attributes:
        dtype: "video", "image", "string" or a type of numbers.
        names: of its dimensions, if the file gives any.
        shape: as the file gives it; empty: it does not.
        no_camera: why it is no colour camera; None: nothing says so.
        depth_codes: how the numbers of a depth video stand for distances; None: it is none, or that is not told.
        depth_unit: "m" or "mm" of depth images that are no video; None: not told.
    """

    dtype: str
    names: tuple[str, ...] | None
    shape: tuple[int, ...]
    no_camera: NoCamera | None
    depth_codes: DepthCodes | None = None
    depth_unit: str | None = None


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
        """Features that are colour videos, or depth videos of which is told what their numbers mean."""
        return [
            key
            for key, feature in self.features.items()
            if feature.dtype == "video" and (feature.no_camera is None or feature.depth_codes is not None)
        ]

    def tasks_file(self) -> str | None:
        """The list of tasks; None: there is none. LeRobot's documentation of v3 names the list of v2: either counts."""
        names = (V3.tasks, V2.tasks) if self.is_v3 else (V2.tasks, V3.tasks)
        return next((name for name in names if find(self.root, name) is not None), None)

    def episodes_files(self) -> list[str]:
        """The lists of episodes."""
        if not self.is_v3:
            return [V2.episodes]
        found = sorted((self.root / V3.episodes).parents[1].glob("*/*.parquet"))
        return [path.relative_to(self.root).as_posix() for path in found]


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
    version = content.text("codebase_version")
    if version is None:
        version = "v3.0" if (root / V3.episodes).parents[1].is_dir() else "v2.1"
    if not re.fullmatch(r"v[23]\.\d{1,3}", version):
        raise UserError(
            f"{path}: codebase_version is {shortened(version)}; bimact reads LeRobotDataset v2.0, v2.1 and v3.0"
        )
    layout = V3 if version.startswith("v3") else V2
    declared, splits = content.values.get("features"), content.values.get("splits")
    if not isinstance(declared, dict):
        raise UserError(
            f"{path}: features is {shortened(declared)}, it has to be an object with the columns and cameras"
        )
    fps = content.number("fps")
    features: dict[str, Feature] = {}
    for key, value in declared.items():
        its = _Record(value, path, f"features.{key}.")
        shape = its.values.get("shape")
        is_shape = isinstance(shape, list) and all(type(size) is int for size in shape)
        features[key] = Feature(
            its.text("dtype") or "",
            _names(its.values.get("names")),
            tuple(shape) if is_shape else (),  # type: ignore[arg-type]
            _no_camera(key, its.values),
            _depth_codes(its.values),
            next((unit for part in _details(its.values) if (unit := part.get("depth_unit")) in ("m", "mm")), None),
        )
    return Info(
        root=root,
        version=version,
        fps=fps,
        features=features,
        data_path=content.text("data_path") or layout.data,
        video_path=content.text("video_path") or layout.video,
        chunks_size=content.integer("chunks_size", FILES_PER_CHUNK, least=1),
        robot_type=content.text("robot_type"),
        total_episodes=None if content.is_missing("total_episodes") else content.integer("total_episodes"),
        total_frames=None if content.is_missing("total_frames") else content.integer("total_frames"),
        splits=splits if isinstance(splits, dict) else {},
    )


def _names(names: Any) -> tuple[str, ...] | None:
    """Names in a list, in a list of lists or in an object such as {"motors": [...]}, in their order."""
    if isinstance(names, dict):
        names = list(names.values())
    if not isinstance(names, list):
        return None
    if any(isinstance(part, list) for part in names):
        names = [name for part in names for name in (part if isinstance(part, list) else [part])]
    return tuple(names) if names and all(isinstance(name, str) for name in names) else None


def _no_camera(key: str, values: Mapping[str, Any]) -> NoCamera | None:
    """Why a feature is no colour camera: a flag, a format of pixels, or its name says so."""
    for part in _details(values):
        for prefix in ("", "video.", "image."):
            flag = part.get(f"{prefix}is_depth_map", part.get(f"{prefix}is_depth"))
            if flag is True or (isinstance(flag, (int, float)) and flag) or str(flag).lower() in ("true", "yes", "1"):
                return NoCamera("depth", "is depth, as info.json says", is_distance=True)
            pixels = part.get(f"{prefix}pix_fmt")
            if isinstance(pixels, str) and is_depth_format(pixels):
                return NoCamera("depth", f"is depth: its pixels are {shortened(pixels)}", is_distance=True)
    return not_by_name(key)


def _details(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Where a feature says more of its images: some objects, and itself."""
    parts = [part for name in ("info", "video_info", "image_info") if isinstance(part := values.get(name), dict)]
    return [*parts, values]


def _depth_codes(values: Mapping[str, Any]) -> DepthCodes | None:
    for part in _details(values):
        numbers: list[Any] = [part.get(f"video.{name}") for name in ("depth_min", "depth_max", "shift")]
        is_logarithmic = part.get("video.use_log")
        are_numbers = all(type(number) in (int, float) and abs(number) < _FARTHEST_DEPTH for number in numbers)
        if isinstance(is_logarithmic, bool) and are_numbers:
            nearest, farthest, shift = map(float, numbers)
            if 0 <= nearest < farthest and not (is_logarithmic and nearest + shift <= 0):
                return DepthCodes(nearest, farthest, shift, is_logarithmic)
    return None


def is_depth_format(pixel_format: str) -> bool:
    """Whether pixels are grey with more than 8 bits, such as gray10le, gray12le and gray16le."""
    return re.fullmatch(r"(gray|y)(9|1\d|32|f)\w*", pixel_format) is not None


def short_name(key: str) -> str:
    """A feature's key without "observation.images." and the like."""
    return re.sub(r"^observation\.(images?\.(?=.))?", "", key)


def camera_key(name: str) -> str:
    """The key of the feature of a camera with this name; one that is such a key already stays."""
    return name if name.startswith("observation.") else f"observation.images.{name}"


def read_tasks(info: Info) -> tuple[dict[int, str], list[str]]:
    """The text of each task by its number, nothing if the dataset has no list of them; and what cannot be read."""
    texts: dict[int, str] = {}
    file = info.tasks_file()
    try:
        if file == V2.tasks:
            for record in _read_json_lines(info.root, file):
                if isinstance(record, UserError):
                    raise record
                texts[record.integer(TASK)] = record.text("task") or ""
        elif file is not None:
            path = existing(info.root, file)
            for row in read_table(path):
                # Pandas' index: LeRobot leaves it without a name.
                key = "task" if "task" in row else next((name for name in row if name != TASK), "task")
                record = _Record(row, path)
                texts[record.integer(TASK)] = record.text(key) or ""
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
        first = None
        try:
            if isinstance(record, UserError):
                raise record
            index = record.integer("episode_index")
            name = f"episode {index}"
            length, tasks = record.integer("length"), record.texts("tasks")
            if info.is_v3:
                place = {number: record.integer(f"data/{number}") for number in ("chunk_index", "file_index")}
                if not record.is_missing("dataset_from_index"):
                    first = record.integer("dataset_from_index")
            else:
                place = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        except UserError as error:
            listed.append(ListedEpisode(index, 0, (), "", None, {}, fault=str(error), name=name))
            continue
        videos: dict[str, VideoPart] = {}
        untold: dict[str, str] = {}
        for key in info.video_keys:
            its, start, prefix = place, 0.0, f"videos/{key}/"
            end: float | None = math.inf
            if info.is_v3:
                try:
                    its = {number: record.integer(prefix + number) for number in ("chunk_index", "file_index")}
                    is_open = record.is_missing(f"{prefix}to_timestamp")
                    end = None if is_open else record.number(f"{prefix}to_timestamp", least=0.0)
                    start = record.number(f"{prefix}from_timestamp", least=0.0)
                except UserError as error:
                    untold[key] = str(error)
                    continue
            videos[key] = VideoPart(files.named("video_path", info.video_path, {**its, "video_key": key}), start, end)
        data_file = files.named("data_path", info.data_path, place)
        told = {key: str(value).lower() for key, value in record.values.items() if value is not None}
        is_failed = any(told.get(key) in _NO for key in _SUCCESS) or any(told.get(key) in _YES for key in _FAILURE)
        listed.append(ListedEpisode(index, length, tasks, data_file, first, videos, untold, None, name, is_failed))
    return sorted(listed, key=lambda episode: episode.index)


def _episode_records(info: Info) -> Iterator[_Record | UserError]:
    """What each row of the lists of episodes says, or why it cannot be read."""
    files = info.episodes_files()
    if not files:
        folder = (info.root / V3.episodes).parents[1]
        raise UserError(f"{folder}, which lists the episodes, is empty or missing: copy it again")
    for file in files:
        if info.is_v3:
            path = existing(info.root, file)
            for row in read_table(path, besides="stats/"):
                yield _Record(row, path)
        else:
            yield from _read_json_lines(info.root, file)


def notes_on_choice(info: Info, listed: Sequence[ListedEpisode]) -> list[str]:
    """What the lists say of episodes that might be left out, and are used; and totals that are not theirs."""
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
    steps = sum(episode.length for episode in listed)
    for what, total, found in (("episodes", info.total_episodes, len(listed)), ("steps", info.total_frames, steps)):
        if total not in (None, found):
            notes.append(f"{INFO} counts {total} {what}, and {found} are listed")
    return notes


# Files ---------------------------------------------------------------------------------------------


class DatasetFiles:
    """Finds the files of a dataset by the templates in its info.json.

    Attributes:
        notes: how files were found that are not where the templates say: whole sentences.
    """

    def __init__(self, root: Path) -> None:
        self.notes: dict[str, str] = {}
        self._root = root
        self._all: list[str] | None = None
        self._listed: dict[tuple[str, int], list[str]] | None = None
        self._faults: dict[str, Fault | None] = {}

    def fault_of(self, path: str) -> Fault | None:
        """Why a file cannot be read; None: it is there."""
        if path not in self._faults:
            try:
                is_there = find(self._root, path) is not None
                self._faults[path] = None if is_there else Fault(f"{path} is missing", "missing")
            except UserError as error:
                self._faults[path] = Fault(str(error), "damaged")
        return self._faults[path]

    def all(self) -> list[str]:
        """All files but hidden ones and those of the metadata, sorted."""
        if self._all is None:
            found: list[str] = []
            for folder, folders, names in os.walk(self._root):
                inside = Path(folder).relative_to(self._root).as_posix()
                is_root = inside == "."
                folders[:] = [name for name in folders if not name.startswith(".") and not (is_root and name == "meta")]
                found += names if is_root else [f"{inside}/{name}" for name in names]
                if len(found) > _MAX_FILES:
                    break
            self._all = sorted(found)
        return self._all

    def tables(self) -> list[str]:
        """Those that are Parquet files."""
        return [path for path in self.all() if path.endswith(".parquet")]

    def named(self, setting: str, template: str, values: Mapping[str, str | int]) -> str:
        """The path of a file, relative to the dataset; it may not be there.

        Args:
            setting: of info.json that the template stands in.
            template: such as "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".
            values: of its fields.

        Raises:
            UserError: if the template has unknown fields or another notation, and no file fits.
        """
        known, renamed = dict(values), {}
        for match in _FIELD.finditer(template):
            for group in _SYNONYMS:
                ours = [name for name in values if name in group]
                if match[1] in group and match[1] not in values and len(ours) == 1:
                    known[match[1]] = values[ours[0]]
                    renamed[match[1]] = ours[0]
        path, fault = "", None
        try:
            path = _fill_in(template, known, f"{self._root / INFO}: {setting}")
        except UserError as error:
            fault = error
        if path and ((its := self.fault_of(path)) is None or its.kind != "missing"):
            for theirs, name in renamed.items():
                self.notes[f"{setting} {theirs}"] = f"{setting} has {{{theirs}}}, which is taken for {{{name}}}"
            return path
        found = self._look_for(Path(template).suffix, values)
        if found is not None:
            self.notes[f"{setting} {found.split('/')[0]}"] = (
                f"{setting} is '{template}', where there is no file: '{found}' and others like it are taken, which "
                "have the same numbers in their names"
            )
            return found
        if fault is not None:
            raise fault
        return path

    def _look_for(self, suffix: str, values: Mapping[str, str | int]) -> str | None:
        """The only file whose last number is that of the file or episode, and whose folders do not contradict."""
        if self._listed is None:
            self._listed = {}
            for path in self.all():
                numbers = re.findall(r"\d{1,9}", Path(path).stem)
                if numbers:
                    self._listed.setdefault((Path(path).suffix, int(numbers[-1])), []).append(path)
        number = values.get("file_index", values.get("episode_index"))
        chunk = values.get("chunk_index", values.get("episode_chunk"))
        found = self._listed.get((suffix, int(number or 0)), [])
        if "video_key" in values:

            def plain(text: str) -> str:
                return re.sub(r"[^a-z0-9]+", "_", text.lower())

            key = str(values["video_key"])
            keys = {plain(key), plain(short_name(key))}
            found = [path for path in found if keys & {plain(part) for part in path.split("/")[:-1]}]
        chunks = {path: int(match[1]) if (match := re.search(r"chunk\D?(\d+)", path)) else None for path in found}
        same = [path for path in found if chunks[path] == chunk]
        # The number of an episode is there once, that of a file once in each chunk.
        others = found if "episode_index" in values else [path for path in found if chunks[path] is None]
        found = same or others
        return found[0] if len(found) == 1 else None


def _fill_in(template: str, values: Mapping[str, str | int], where: str) -> str:
    """Put values into a path such as "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".

    `str.format` would let an untrusted file read attributes of objects and ask for widths of gigabytes.

    Args:
        where: what messages begin with, such as a file and a key.

    Raises:
        UserError: if the template has other fields or another notation.
    """

    def filled(match: re.Match[str]) -> str:
        name, width = match[1], match[2]
        value = values.get(name)
        if value is None or (width is not None and isinstance(value, str)):
            known = ", ".join("{" + known + "}" for known in values)
            raise UserError(f"{where} has {match[0]}; it may have {known}")
        return str(value) if width is None else format(int(value), f"{width}d")

    text = _FIELD.sub(filled, template)
    if re.search(r"[{}]", _FIELD.sub("", template)):
        raise UserError(f"{where} is '{template[:200]}', which is no path with fields such as {{file_index:03d}}")
    return text


def find(root: Path, relative: str) -> Path | None:
    """One of a dataset's files; None: it is missing.

    Args:
        root: the dataset's folder.
        relative: to it, with "/".

    Raises:
        UserError: if it leads out of the dataset (see `real_file`).
    """
    if ".." in relative.split("/"):
        raise UserError(f"{root} names '{relative}' as one of its files, which leaves the dataset: copy it again")
    return None if real_file(root, relative) is None else root / relative


def existing(root: Path, relative: str) -> Path:
    """One of a dataset's files.

    Raises:
        UserError: if it is missing or leads out of the dataset.
    """
    path = find(root, relative)
    if path is None:
        raise UserError(f"{root / relative} is missing: copy or record the dataset again")
    return path


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
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error}): copy or record it again") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except Exception as error:
        raise UserError(f"{where} is no readable JSON ({error}): copy or record it again") from None
