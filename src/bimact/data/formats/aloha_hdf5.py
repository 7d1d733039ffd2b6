"""ALOHA's demonstrations: one HDF5 file an episode, as ACT, ACT++ and Mobile ALOHA record them.

- `/action` (T, A); its rows are the episode's steps;
- `/observations/qpos`, on real robots also `qvel` and `effort` (T, S);
- `/observations/images/<camera>`: (T, H, W, 3) uint8 RGB; or JPEG files as rows (T, bytes) padded with zeros (ACT++'s
  `compress`), or as byte strings (T,). What `/compress_len` says is not needed: a JPEG file tells its own end;
- `/base_action` (T, 2) of Mobile ALOHA's wheels, joined to the action as ACT++ does. ACT++ also averages it over 5
  steps when it loads a file; here it stays as it was recorded;
- any other (T, D) or (T,) numbers at the top or under `/observations` are columns too. Cameras whose name holds
  `_depth` and images of other shapes are left out, which the metadata say.

The files tell no rate unless they have an attribute `fps`: ALOHA is controlled 50 times a second. Fourteen numbers are
two arms of six joints and a gripper, the left arm first. Which way JPEG files keep red and blue is told by an attribute
`color_order` ("rgb": as the JPEG standard says; "bgr": red and blue swapped), else by `color_order.py` from the images.

Source: record_sim_episodes.py and constants.py in https://github.com/tonyzhaozh/act; compress_data.py and utils.py in
https://github.com/MarkFzp/act-plus-plus; record_episodes.py in https://github.com/MarkFzp/mobile-aloha.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bimact.data.formats.color_order import BGR, RGB, colors_of
from bimact.data.formats.hdf5 import (
    SUFFIXES,
    Value,
    attribute,
    dataset_at,
    file_inside,
    find_dataset,
    find_group,
    hdf5_files,
    members,
    open_hdf5,
    rate_of,
    read_vectors,
    text_of,
)
from bimact.data.formats.hdf5_episodes import Contents, columns_in_common, decoded, described, frames_of, steps_of
from bimact.data.source import Column, Format, Source, SourceEpisode
from bimact.errors import UserError

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
_DEPTH = "_depth"
_TASKS = ("task", "language_instruction", "prompt", "instruction")
_EPISODE = re.compile(r"episode[_-]?\d", re.IGNORECASE)
_FILES_TO_RECOGNIZE = 3
_FRAMES_FOR_COLORS = (3, 4)  # episodes, and steps of each
_ADVICE = "record the episode again, or remove it from the dataset"


@dataclass
class _File(Contents):
    """What one episode's file holds."""

    name: str = ""
    task: str | None = None
    fps: float | None = None
    color_order: str | None = None
    sim: Value | None = None


@dataclass(frozen=True, kw_only=True)
class AlohaHdf5(Source):
    """Episodes in files of their own."""

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        with open_hdf5(self._file(episode)) as file:
            return {key: read_vectors(dataset_at(file, key, f"observations/{key}")) for key in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        with open_hdf5(self._file(episode)) as file:
            yield from frames_of(
                dataset_at(file, f"{_IMAGES}/{camera}"),
                steps,
                self.cameras[camera],
                swaps=self.color_order == BGR,
                describe=lambda step: f"{file.filename}, camera {camera}, step {step}",
            )

    def _file(self, episode: int) -> Path:
        return file_inside(self.path, self.episodes[episode].files[0])


def is_aloha_hdf5(path: Path) -> bool:
    """Whether a path is an episode's file, or a folder of them; files called episode_<number> may be damaged."""
    names = ["."] if path.is_file() else _episode_files(path)
    layouts = (_has_layout(path, name) for name in names)
    readable = list(islice((layout for layout in layouts if layout is not None), _FILES_TO_RECOGNIZE))
    if readable:
        return any(readable)
    files = [path / name for name in names]
    return any(file.suffix.lower() in SUFFIXES and _EPISODE.search(file.name) is not None for file in files)


def open_aloha_hdf5(path: Path, cache_dir: Path | None) -> AlohaHdf5:
    """Open a folder of episodes' files, or one such file. They are read as they are.

    Args:
        path: files in it are taken in natural order, or those in its folders if it has none. If some are called
            episode_<number>, all others are left aside.

    Raises:
        UserError: if a file is damaged, holds what cannot be read without risk, or differs from most in its cameras,
            its images' sizes, or its state's or action's size.
    """
    path = path.absolute()
    names = ["."] if path.is_file() else _episode_files(path)
    if not names:
        raise UserError(f"{path} holds no .hdf5 files")
    read = [_read(path, name) for name in names]
    files = [file for file in read if file.length]
    if not files:
        raise UserError(f"{path} holds no steps: /action has no rows")
    columns, left_out = columns_in_common(files, (_STATE, _ACTION, _BASE), _ADVICE)
    source = AlohaHdf5(
        path=path,
        format="ALOHA HDF5",
        episodes=tuple(
            SourceEpisode(path.name if file.name == "." else file.name, file.length, (file.name,), file.task)
            for file in files
        ),
        cameras=files[0].cameras,
        columns={key: _with_names(key, columns[key]) for key in _in_order(columns)},
        state_keys=tuple(key for key in (_STATE,) if key in columns),
        action_keys=tuple(key for key in (_ACTION, _BASE) if key in columns),
        fps=_common_fps(files),
        files=tuple(names),
        skipped=tuple(f"{file.where} has no steps" for file in read if not file.length),
        metadata={**_sim(files), **described(left_out)},
    )
    return _with_color_order(source, files)


FORMAT = Format(name="ALOHA's episode_{i}.hdf5", recognizes=is_aloha_hdf5, open=open_aloha_hdf5)


# Files ----------------------------------------------------------------------------------------------


def _episode_files(folder: Path) -> list[str]:
    """The episodes' files, relative to the folder, in natural order."""
    names = hdf5_files(folder)
    if not names:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        names = [f"{entry.name}/{name}" for entry in entries if entry.is_dir() for name in hdf5_files(entry)]
    return [name for name in names if _EPISODE.search(Path(name).name)] or names


def _has_layout(path: Path, name: str) -> bool | None:
    """Whether a file looks like an episode; None: it cannot be read."""
    try:
        with open_hdf5(file_inside(path, name)) as file:
            observations = find_group(file, "observations")
            is_there = observations is not None and {_STATE, "images"} & {*members(observations)}
            return bool(is_there or (observations is not None and _ACTION in members(file)))
    except UserError:
        return None


def _read(path: Path, name: str) -> _File:
    """What a file holds. Images are looked at as far as their size needs it."""
    where = str(path / name)
    with open_hdf5(file_inside(path, name)) as file:
        found = _File(
            where,
            steps_of(find_dataset(file, _ACTION), f"/{_ACTION}", where),
            name=name,
            task=text_of(file, *_TASKS),
            fps=rate_of(attribute(file, "fps")),
            color_order=text_of(file, "color_order"),
            sim=attribute(file, "sim"),
        )
        observations = find_group(file, "observations")
        if found.length:
            found.add_columns(file, [key for key in members(file) if key not in _NO_COLUMNS], required=_KNOWN)
        if found.length and observations is not None:
            found.add_columns(observations, required=_KNOWN)
            _add_cameras(found, file)
    return found


def _add_cameras(found: _File, file: h5py.File) -> None:
    for name in members(find_group(file, _IMAGES)):
        dataset = find_dataset(file, f"{_IMAGES}/{name}")
        if dataset is None or _DEPTH in name:
            found.left_out[name] = "is no colour camera"
        else:
            found.add_camera(name, dataset, decodes=True)


# What all files say ---------------------------------------------------------------------------------


def _in_order(columns: dict[str, Column]) -> list[str]:
    return [*(key for key in _KNOWN if key in columns), *sorted(key for key in columns if key not in _KNOWN)]


def _with_names(key: str, column: Column) -> Column:
    is_named = (column.size == 14 and key in _KNOWN) or (column.size == 2 and key == _BASE)
    return dataclasses.replace(column, names=_NAMES[column.size]) if is_named else column


def _common_fps(files: Sequence[_File]) -> float:
    rates = {file.fps or _FPS: file for file in files}
    if len(rates) > 1:
        (one, first), (other, second) = list(rates.items())[:2]
        raise UserError(
            f"{first.where} was recorded at {one:g} steps a second, {second.where} at {other:g}: keep those of one "
            "rate in one dataset"
        )
    return next(iter(rates))


def _sim(files: Sequence[_File]) -> dict[str, Any]:
    """Whether the robot was simulated, if all files say the same."""
    said = {bool(file.sim) for file in files if file.sim is not None}
    return {"sim": said.pop()} if len(said) == 1 else {}


def _with_color_order(source: AlohaHdf5, files: Sequence[_File]) -> AlohaHdf5:
    """Decide how JPEG images are to be read, and say in the metadata why."""
    encoded = [file for file in files if file.encoded]
    if not encoded:
        return source
    told = {file.color_order for file in encoded}
    if told in ({RGB}, {BGR}):
        return dataclasses.replace(source, color_order=told.pop())
    episodes, steps = _FRAMES_FOR_COLORS
    colors = colors_of(image for file in _spread(encoded, episodes) for image in _some_images(source.path, file, steps))
    why = {"warmth": round(colors.warmth, 3), "frames": colors.frames, "is_sure": colors.is_sure}
    return dataclasses.replace(source, color_order=colors.order, metadata={**source.metadata, "color_order": why})


def _some_images(path: Path, file: _File, count: int) -> Iterator[np.ndarray]:
    """Images as the JPEG standard says, at some steps of all cameras."""
    with open_hdf5(file_inside(path, file.name)) as opened:
        for camera in file.encoded:
            where = f"{file.where}, camera {camera}"
            images = dataset_at(opened, f"{_IMAGES}/{camera}")
            for _, image in decoded(images, _spread(range(file.length), count), partial("{}, step {}".format, where)):
                yield image


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many items, as far from each other as can be."""
    numbers = sorted({round(number) for number in np.linspace(0, len(items) - 1, count)})
    return [items[number] for number in numbers]
