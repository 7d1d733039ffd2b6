"""ALOHA's demonstrations: one HDF5 file per episode, as recorded by ACT, ACT++ and Mobile ALOHA.

- `/action` (T, A); its rows are the episode's steps;
- `/observations/qpos`, on real robots also `qvel` and `effort` (T, S);
- `/observations/images/<camera>`: (T, H, W, 3) uint8 RGB; or JPEG files as rows (T, bytes) padded with zeros (ACT++'s
  `compress`), or as byte strings (T,). `/compress_len` is not needed: a JPEG file contains its own end;
- `/base_action` (T, 2) of Mobile ALOHA's wheels, appended to the action as in ACT++. ACT++ also averages it over 5
  steps on loading; here it stays as recorded;
- any other (T, D) or (T,) numbers are columns, named by their path without `observations/`, such as `left/force`;
  images elsewhere in the file are cameras. Of two with the same name, such as `/observations/qpos` and `/qpos`, the
  second one is `root/qpos`. Depth and unreadable content is left out with the reason.

Files of another layout are read in the same way, except that the user chooses the columns of state and action. Without
an attribute `fps` the control frequency is ALOHA's 50 Hz. Fourteen dimensions are two arms of six joints and a gripper,
the left arm first. The colour order of JPEG files is taken from an attribute `color_order` ("rgb": as in the JPEG
standard; "bgr": red and blue swapped), else detected from the images by `color_order.py`.

Source: record_sim_episodes.py and constants.py in https://github.com/tonyzhaozh/act; compress_data.py and utils.py in
https://github.com/MarkFzp/act-plus-plus; record_episodes.py in https://github.com/MarkFzp/mobile-aloha.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bimact.data.formats.color_order import BGR, RGB, colors_of
from bimact.data.formats.hdf5 import (
    SUFFIXES,
    Contents,
    Value,
    agreed,
    attribute,
    dataset_at,
    encoded_images,
    file_inside,
    find_dataset,
    find_group,
    frames_of,
    has_signature,
    hdf5_files,
    is_link,
    is_no,
    members,
    number_notes,
    numbers_in,
    one_number,
    open_hdf5,
    rate_of,
    read_vectors,
    steps_of,
    text_of,
    walk,
)
from bimact.data.formats.images import conversion_notes
from bimact.data.source import Column, Fault, Format, Source, SourceEpisode, Unusable
from bimact.errors import UserError, some_of

_FPS = 50.0
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
_NAMES = {
    14: tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _JOINTS),
    2: ("base_linear_velocity", "base_angular_velocity"),
}
_STATE, _ACTION, _BASE = "qpos", "action", "base_action"
_KNOWN = (_STATE, "qvel", "effort", _ACTION, _BASE)
_NO_COLUMNS = ("compress_len",)
_IMAGES = "observations/images"
_RATES = ("fps", "frequency", "freq", "hz", "control_frequency", "control_freq", "control_hz", "sampling_rate")
_TASKS = ("task", "language_instruction", "prompt", "instruction")
_EPISODE = re.compile(r"episode[_-]?\d+", re.IGNORECASE)
_FILES_TO_RECOGNIZE = 3
_FRAMES_FOR_COLORS = (3, 4)  # episodes, and steps of each
_MOST_LISTED = 10


@dataclass
class _File(Contents):
    """The content of one episode's file."""

    name: str = ""
    number: int = 0
    task: str | None = None
    fps: float | None = None
    rate_from: str | None = None  # where the control frequency is from, if not from the attribute fps
    odd_fps: str | None = None  # an attribute fps that is not a rate
    color_order: str | None = None
    odd_colors: str | None = None  # an attribute color_order that is neither rgb nor bgr
    sim: Value | None = None
    success: Value | None = None
    paths: dict[str, str] = field(default_factory=dict)  # camera or column → its path in the file


@dataclass(frozen=True, kw_only=True)
class AlohaHdf5(Source):
    """Episodes in separate files.

    Attributes:
        paths: camera or column → its possible paths in files, in order of preference.
        whites: camera of floats → the value of white.
        depth_scales: depth camera → millimetres per unit.
    """

    paths: Mapping[str, tuple[str, ...]]
    whites: Mapping[str, float]
    depth_scales: Mapping[str, float]

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        with open_hdf5(self._file(episode)) as file:
            return {key: read_vectors(dataset_at(file, *self.paths[key])) for key in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        with open_hdf5(self._file(episode)) as file:
            yield from frames_of(
                dataset_at(file, *self.paths[camera]),
                steps,
                swaps=self.color_order == BGR,
                white=self.whites.get(camera, 1.0),
                depth_scale=self.depth_scales.get(camera),
                describe=lambda step: f"{file.filename}, camera {camera}, step {step}",
            )

    def _file(self, episode: int) -> Path:
        return file_inside(self.path, self.episodes[episode].files[0])


def is_aloha_hdf5(path: Path) -> bool:
    """Whether a path is an episode's file, or a folder of them; files named episode_<number> may be damaged."""
    names = ["."] if path.is_file() else _episode_files(path)[0]
    layouts = (_has_layout(path, name) for name in names)
    readable = list(islice((layout for layout in layouts if layout is not None), _FILES_TO_RECOGNIZE))
    if readable:
        return any(readable)
    files = [path / name for name in names]
    return any(file.suffix.lower() in SUFFIXES and _EPISODE.fullmatch(file.stem) is not None for file in files)


def is_hdf5(path: Path) -> bool:
    """Whether a path is an HDF5 file, or a folder that contains some."""
    return (
        (path.suffix.lower() in SUFFIXES and has_signature(path)) if path.is_file() else bool(_episode_files(path)[0])
    )


def open_aloha_hdf5(path: Path, cache_dir: Path | None) -> AlohaHdf5:
    """Open a folder of episodes' files, or one such file; nothing is converted.

    Args:
        path: its files in natural order, or those in its subfolders if it has none. If some are named
            episode_<number>, all others are ignored.

    Raises:
        UserError: if no file contains steps, or the files have different control frequencies.
    """
    return _open(path.absolute(), "ALOHA HDF5", _FPS)


def open_hdf5_episodes(path: Path, cache_dir: Path | None) -> AlohaHdf5:
    """Open files of another layout, one per episode: the user chooses the columns of state and action."""
    return _open(path.absolute(), "HDF5, one file per episode", None)


def _open(path: Path, format_name: str, usual_fps: float | None) -> AlohaHdf5:
    names, ignored_files = (["."], []) if path.is_file() else _episode_files(path)
    if not names:
        raise UserError(f"{path} contains no .hdf5 files")
    read = [_read(path, name, number) for name, number in zip(names, numbers_in(names))]
    # Episodes whose rate, or whose color_order of encoded images, differs from most others.
    rates = Counter(file.fps or usual_fps for file in read if file.fault is None)
    for file in read if len(rates) > 1 else ():
        most, rate = rates.most_common(1)[0][0], file.fps or usual_fps
        if file.fault is None and rate != most:
            file.fault = f"was recorded at {rate or 'an unknown number of'} Hz, most episodes at {most}"
    orders = Counter(file.color_order for file in read if file.fault is None and file.encoded and file.color_order)
    for file in read if len(orders) > 1 else ():
        usual = orders.most_common(1)[0][0]
        if file.fault is None and file.encoded and file.color_order not in (None, usual):
            file.fault = f"its attribute color_order is {file.color_order}, in most episodes {usual}"
    files = [file for file in read if file.fault is None]
    unusable = tuple(
        Unusable(file.number, path.name if file.name == "." else file.name, file.fault, file.is_missing)
        for file in read
        if file.fault is not None
    )
    if not files:
        told = "; ".join(episode.sentence for episode in unusable[:_MOST_LISTED])
        more = f"; and {len(unusable) - _MOST_LISTED} more" if len(unusable) > _MOST_LISTED else ""
        raise UserError(f"{path} contains no readable episode: {told}{more}")
    found = agreed(files)
    cameras = found.cameras
    in_order = [*(key for key in _KNOWN if key in found.columns), *sorted(found.columns.keys() - set(_KNOWN))]
    columns = {key: _with_names(key, found.columns[key]) for key in in_order}
    places_of: dict[str, set[str]] = {}
    for file in files:
        for name, place in file.paths.items():
            places_of.setdefault(name, set()).add(place)
    paths = {name: tuple(sorted(places, key=_order)) for name, places in places_of.items()}
    sim = {bool(file.sim) for file in files if file.sim is not None}
    fps, notes = _fps_notes(files, usual_fps)
    notes += [
        f"{name} is {' in some files and '.join(f'/{place}' for place in places)} in others: both are treated as one"
        for name, places in paths.items()
        if len(places) > 1 and (name in cameras or name in columns)
    ]
    notes += conversion_notes([file.forms for file in files], found.whites)
    notes += number_notes(names, [file.number for file in read])
    if ignored_files:
        notes.append(f"not read, since others are named episode_<number>: {some_of(ignored_files)}")
    source = AlohaHdf5(
        path=path,
        format=format_name,
        episodes=tuple(
            SourceEpisode(
                path.name if file.name == "." else file.name,
                file.length,
                (file.name,),
                file.task,
                file.number,
                is_no(file.success),
            )
            for file in files
        ),
        cameras=cameras,
        columns=columns,
        state_keys=tuple(key for key in (_STATE,) if key in columns),
        action_keys=tuple(key for key in (_ACTION, _BASE) if key in columns),
        fps=fps,
        files=tuple(file.name for file in files),
        ignored_files=tuple(ignored_files),
        unusable=unusable,
        left_out=found.left_out,
        depth_cameras=found.depth_cameras,
        camera_forms=found.camera_forms,
        column_forms={
            key: {n: form if isinstance(form, Fault) else _with_names(key, form) for n, form in forms.items()}
            for key, forms in found.column_forms.items()
        },
        notes=tuple(notes),
        metadata={"sim": sim.pop()} if len(sim) == 1 else {},
        paths=paths,
        whites=found.whites,
        depth_scales=found.depth_scales,
    )
    return _with_color_order(source, files)


FORMAT = Format(name="ALOHA's episode_{i}.hdf5", recognizes=is_aloha_hdf5, open=open_aloha_hdf5)
ANY_HDF5 = Format(name="other HDF5 files, one per episode", recognizes=is_hdf5, open=open_hdf5_episodes)


# Files ----------------------------------------------------------------------------------------------


def _episode_files(folder: Path) -> tuple[list[str], list[str]]:
    """The episodes' files, relative to the folder, in natural order; and the other HDF5 files."""
    names = hdf5_files(folder)
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    inside = [f"{entry.name}/{name}" for entry in entries for name in hdf5_files(entry)]
    named = [name for name in names or inside if _EPISODE.fullmatch(Path(name).stem)]
    used = named or names or inside
    return used, [name for name in (*names, *inside) if name not in set(used)]


def _has_layout(path: Path, name: str) -> bool | None:
    """Whether a file has the layout of an episode; None: it cannot be read."""
    try:
        with open_hdf5(file_inside(path, name)) as file:
            observations = find_group(file, "observations")
            is_there = observations is not None and {_STATE, "images"} & {*members(observations)}
            return bool(is_there or (observations is not None and _ACTION in members(file)))
    except UserError:
        return None


def _read(path: Path, name: str, number: int) -> _File:
    """The content of a file. Images are decoded only to find their size."""
    where = str(path if name == "." else path / name)
    found = _File(where, name=name, number=number)
    try:
        with open_hdf5(file_inside(path, name)) as file:
            datasets = [(place, item) for place, item in walk(file) if place not in _NO_COLUMNS]
            action = find_dataset(file, _ACTION)
            if action is not None:
                found.length = steps_of(action, where)
            else:  # the number of rows of most arrays
                rows = Counter(item.shape[0] for _, item in datasets if not isinstance(item, str) and item.shape)
                found.length = max(rows, key=lambda count: (rows[count], count), default=0)
            found.task = text_of(file, *_TASKS)
            _read_rate(file, found)
            told = attribute(file, "color_order")
            found.color_order = told.lower() if isinstance(told, str) and told.lower() in (RGB, BGR) else None
            found.odd_colors = None if told is None or found.color_order is not None else str(told)
            found.sim, found.success = attribute(file, "sim"), attribute(file, "success")
            if not found.length:
                found.fault, found.is_missing = "it has no steps", True
                return found
            taken: set[str] = set()
            for place, item in sorted(datasets, key=lambda entry: _order(entry[0])):
                is_camera = place.startswith(f"{_IMAGES}/")
                key = place.removeprefix(f"{_IMAGES}/" if is_camera else "observations/")
                if key in taken:  # both /qpos and /observations/qpos
                    key = place if place != key else f"root/{place}"
                taken.add(key)
                camera = key.replace("/", ".")
                before = {*found.cameras, *found.columns}
                found.add(key, item, camera=camera, is_camera=is_camera)
                found.paths |= dict.fromkeys(({*found.cameras, *found.columns} - before), place)
    except UserError as error:
        found.fault = error.reason
    return found


def _order(place: str) -> tuple[bool, list[str]]:
    """Sort key of paths: images first, then in the order of `walk`."""
    return not place.startswith(f"{_IMAGES}/"), place.split("/")


# All files together ---------------------------------------------------------------------------------


def _with_names(key: str, column: Column) -> Column:
    is_named = (column.size == 14 and key in _KNOWN) or (column.size == 2 and key == _BASE)
    return dataclasses.replace(column, names=_NAMES[column.size]) if is_named else column


def _read_rate(file: h5py.File, found: _File) -> None:
    """Read a file's rate from its attribute `fps`; else from another attribute or dataset with a suitable name."""
    told = attribute(file, "fps")
    found.fps = rate_of(told)
    if found.fps is None and h5py.h5a.exists(file.id, b"fps"):
        found.odd_fps = "no single number" if told is None else str(told)
    for name in _RATES if found.fps is None else ():
        dataset = find_dataset(file, name) if name in members(file) and not is_link(file, name) else None
        values = {f"dataset {name}": one_number(dataset), f"attribute {name}": attribute(file, name)}
        for found.rate_from, value in values.items():
            found.fps = rate_of(value)
            if found.fps is not None:
                return
    found.rate_from = None


def _fps_notes(files: Sequence[_File], usual: float | None) -> tuple[float | None, list[str]]:
    """The control frequency in Hz, and notes on where it is from."""
    notes = [
        f"{file.where}: the attribute fps is {file.odd_fps}, which is not a rate"
        for file in files
        if file.odd_fps is not None
    ][:_MOST_LISTED]
    told = next((file.fps for file in files if file.fps is not None), None)
    for name in dict.fromkeys(file.rate_from for file in files if file.rate_from is not None):
        notes.append(f"the control frequency, {told:g} Hz, is taken from the {name} of the files")
    if told is None and usual is not None:
        notes.append(f"the files do not specify the control frequency: {usual:g} Hz is assumed, as for ALOHA")
    return told or usual, notes


def _with_color_order(source: AlohaHdf5, files: Sequence[_File]) -> AlohaHdf5:
    """Choose the colour order of JPEG images, and record the reason in the metadata."""
    notes = [
        f"{file.where}: the attribute color_order is {file.odd_colors}, which is neither rgb nor bgr"
        for file in files
        if file.odd_colors is not None
    ][:_MOST_LISTED]
    swapped = [file for file in files if file.color_order == BGR]
    arrays = dict.fromkeys(name for file in swapped for name in file.cameras if name not in file.encoded)
    if arrays:
        notes.append(
            f"the attribute color_order is bgr, which is for encoded images: those of camera {', '.join(arrays)} "
            "are arrays and read as RGB"
        )
    source = dataclasses.replace(source, notes=(*source.notes, *notes))
    encoded = [file for file in files if file.encoded]
    if not encoded:
        return source
    told = [file.color_order for file in encoded if file.color_order is not None]
    if told:  # all equal
        silent = len(encoded) - len(told)
        note = f"{silent} of {len(encoded)} files do not specify color_order: {told[0]} is assumed, as in the others"
        return dataclasses.replace(source, color_order=told[0], notes=(*source.notes, *([note] if silent else [])))
    episodes, steps = _FRAMES_FOR_COLORS
    colors = colors_of(image for file in _spread(encoded, episodes) for image in _some_images(source.path, file, steps))
    why = {"warmth": round(colors.warmth, 3), "frames": colors.frames, "is_sure": colors.is_sure}
    return dataclasses.replace(source, color_order=colors.order, metadata={**source.metadata, "color_order": why})


def _some_images(path: Path, file: _File, count: int) -> Iterator[np.ndarray]:
    """Images decoded as the JPEG standard specifies, at some steps of all cameras."""
    with open_hdf5(file_inside(path, file.name)) as opened:
        for camera in file.encoded:
            where = f"{file.where}, camera {camera}"
            images = dataset_at(opened, file.paths[camera])
            steps = _spread(range(file.length), count)
            with suppress(UserError):  # reported when the damaged image is read
                for _, image in encoded_images(images, steps, partial("{}, step {}".format, where)):
                    yield image


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items at equal distances."""
    numbers = sorted({round(number) for number in np.linspace(0, len(items) - 1, count)})
    return [items[number] for number in numbers]
