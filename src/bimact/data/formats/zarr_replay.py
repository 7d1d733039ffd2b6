"""Replay buffers of diffusion_policy: a zarr hierarchy of version 2 or 3, as a folder or as a .zip file.

`data/` contains arrays whose first axis is the steps of all episodes, `meta/episode_ends` (E,) the row after each
episode's last step. The meaning of an array follows from its shape and name:

- cameras: (N, H, W, 3) or (N, 3, H, W), also with 4, 1 or no channels, uint8, or floats up to 255 or up to 1;
- columns: (N,) and (N, D) numbers;
- the action: `action`, or `actions`. UMI's buffers have neither: the user chooses;
- the state: the first existing one of `state`, `robot_state`, `agent_pos`, `qpos`, `robot_eef_pose` (diffusion_policy's
  real robots) and `robot_joint`; else all of `robot<i>_eef_pos`, `robot<i>_eef_rot_axis_angle`,
  `robot<i>_gripper_width` and the like (UMI, robomimic), robot by robot; else the columns whose names denote
  robot measurements and not actions (`default_state.py`).

Source: diffusion_policy/common/replay_buffer.py in https://github.com/real-stanford/diffusion_policy, and the buffers
of https://github.com/real-stanford/universal_manipulation_interface.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bimact.data.default_state import guessed_state, words_of
from bimact.data.depth import DepthForm, depth_form, depth_left_out, pack_depth, scale_of
from bimact.data.formats.images import ImageForm, NoCamera, conversion_notes, image_form, not_by_name, white_of
from bimact.data.formats.zarr_arrays import ZarrArray, ZarrFiles, open_files
from bimact.data.source import Camera, Column, Fault, Format, LeftOut, Source, SourceEpisode, Unusable
from bimact.errors import UserError

_ENDS, _TIMES = "meta/episode_ends", "timestamp"
_SUFFIXES = (".zarr", ".zarr.zip")
_LARGEST_VECTOR = 100_000
_MOST_EPISODES, _MOST_STEPS = 10**6, 10**9
_ROWS_FOR_FPS = 1000
_IMAGES_FOR_SCALE = 8
_MOST_LISTED = 10
_IMAGE_WORDS = {"img", "imgs", "image", "images", "rgb", "color", "cam", "camera", "view", "pixels"}
_ACTIONS = ("action", "actions")
_STATES = ("state", "robot_state", "agent_pos", "qpos", "robot_eef_pose", "robot_joint")
_STATE_PARTS = re.compile(
    r"robot\d+_(eef_pos|eef_rot_axis_angle|eef_quat|eef_pose|joint|joint_pos|qpos|gripper_width|gripper_qpos)"
)
_AXES_OF_IMAGES = 3  # axes along which chunks are numbered
_PICTURES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".png", ".jpg", ".jpeg")
_SLOWEST, _FASTEST = 0.5, 2000.0  # Hz; beyond this, timestamps are not in seconds
_FPS_ATTRIBUTES = ("fps", "frequency", "control_frequency", "control_freq", "hz")


@dataclass(frozen=True)
class _Places:
    """Names of a buffer's rows for messages."""

    starts: tuple[int, ...]  # (E,) ascending: each episode's first row
    names: tuple[str, ...]

    def __call__(self, row: int) -> str:
        episode = max(0, bisect_right(self.starts, row) - 1)
        return f"{self.names[episode]}, step {row - self.starts[episode]}"


@dataclass(frozen=True, kw_only=True)
class ZarrReplay(Source):
    """A replay buffer.

    Attributes:
        arrays: cameras and columns in `data`.
        places: position of each episode in them.
        whites: camera of floats → the value of white.
        depth_scales: depth camera → millimetres per unit.
    """

    arrays: Mapping[str, ZarrArray]
    places: _Places
    whites: Mapping[str, float]
    depth_scales: Mapping[str, float]

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        start, length = self.places.starts[episode], self.episodes[episode].length
        return {key: self.arrays[key].read(start, start + length, self.places).reshape(length, -1) for key in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        array = self.arrays[camera]
        form, white = _camera_form(array), self.whites.get(camera, 1.0)
        depth_scale = self.depth_scales.get(camera)
        rows = [self.places.starts[episode] + step for step in steps]
        for _, group in itertools.groupby(rows, lambda row: row // array.rows_at_once):
            wanted = list(group)
            block = array.read(wanted[0], wanted[-1] + 1, self.places)
            for row in wanted:
                where = f"{array.files.where(array.name)} ({self.places(row)})"
                if depth_scale is not None:
                    yield pack_depth(np.asarray(block[row - wanted[0]]).squeeze(), depth_scale)
                    continue
                assert form is not None
                yield form.as_rgb(block[row - wanted[0]], white, where)

    def read_timestamps(self, episode: int) -> np.ndarray | None:
        if _TIMES not in self.columns or self.columns[_TIMES].size != 1:
            return None
        return self.read_columns(episode, [_TIMES])[_TIMES][:, 0].astype(np.float64)


def is_zarr_replay(path: Path) -> bool:
    """Whether a path is a zarr folder, a .zarr.zip file, or a folder that contains some of them."""
    if path.is_file():
        return path.name.endswith(".zarr.zip")
    return path.name.endswith(".zarr") or _is_buffer(path) or bool(_buffers_in(path))


def open_zarr_replay(path: Path, cache_dir: Path | None) -> ZarrReplay:
    """Open a replay buffer; nothing is converted.

    Args:
        path: its folder or .zip file, or a folder that contains exactly one.

    Raises:
        UserError: if it is damaged, or cannot be read safely.
    """
    path = path.absolute()
    buffer = _buffer_of(path)
    files = open_files(buffer)
    names, links = files.names()
    ends = _read_ends(files)
    arrays, left_out = _arrays(files, names, links, ends)
    if not arrays:
        told = "; ".join(f"{entry.name} {entry.reason}" for entry in left_out[:_MOST_LISTED])
        raise UserError(f"{files.where('data')} contains no numeric arrays: copy the dataset again ({told or 'none'})")
    lengths = [end - start for start, end in zip([0, *ends], ends)]
    numbers = [number for number, length in enumerate(lengths) if length]
    episode_names = tuple(f"episode {number}" for number in numbers)
    places = _Places(tuple(ends[number] - lengths[number] for number in numbers), episode_names)
    unread = {entry.name for entry in left_out}
    forms = {key: form for key, array in arrays.items() if (form := _camera_form(array)) is not None}
    cameras = {key: arrays[key] for key in forms}
    whites = {key: _white(array, places) for key, array in cameras.items() if forms[key].is_float}
    depths = {key: depth for key, array in arrays.items() if key not in cameras and (depth := _depth_form(key, array))}
    depth_scales = {key: _depth_scale(arrays[key], places) for key in depths}
    left_out += [depth_left_out(key, scale) for key, scale in depth_scales.items()]
    columns = {key: array for key, array in arrays.items() if key not in cameras and key not in depths}
    fps, fps_note = _fps(files, columns.get(_TIMES), places, ends[-1])
    faults = {key: _too_short(array, places, lengths) for key, array in arrays.items()}
    longer = {key: array.shape[0] - ends[-1] for key, array in arrays.items() if array.shape[0] > ends[-1]}
    after = f"{', '.join(longer)}: up to {max(longer.values(), default=0)} rows after the last episode"
    beyond = [f"{after} belong to no episode and are not used"] if longer else []
    read_from = _relative(path, buffer, [f"data/{key}" for key in arrays])
    return ZarrReplay(
        path=path,
        format=f"zarr v{next((array.version for array in arrays.values()), 2)} replay buffer",
        episodes=tuple(
            SourceEpisode(name, lengths[number], read_from, number=number)
            for name, number in zip(episode_names, numbers, strict=True)
        ),
        cameras={key: Camera(form.height, form.width) for key, form in forms.items()},
        columns={key: Column(math.prod(array.shape[1:]), dtype=str(array.dtype)) for key, array in columns.items()},
        state_keys=_state_keys(columns, unread),
        action_keys=tuple(key for key in _ACTIONS if key in columns and unread.isdisjoint(_ACTIONS))[:1],
        fps=fps,
        files=_relative(path, buffer, [name for name in names if name.startswith(("data/", "meta/", ".z", "zarr."))]),
        unusable=tuple(
            Unusable(number, f"episode {number}", "it has no steps", is_missing=True)
            for number, length in enumerate(lengths)
            if not length
        ),
        left_out=tuple(left_out),
        depth_cameras={key: Camera(depth.height, depth.width, is_depth=True) for key, depth in depths.items()},
        camera_forms={key: faults[key] for key in (*cameras, *depths) if faults[key]},
        column_forms={key: faults[key] for key in columns if faults[key]},
        notes=(*beyond, *conversion_notes([forms], whites), *fps_note),
        arrays=arrays,
        places=places,
        whites=whites,
        depth_scales=depth_scales,
    )


FORMAT = Format(name="zarr replay buffer of diffusion_policy", recognizes=is_zarr_replay, open=open_zarr_replay)


# Location ------------------------------------------------------------------------------------------


def _is_buffer(path: Path) -> bool:
    return any((path / _ENDS / name).is_file() for name in (".zarray", "zarr.json"))


def _buffers_in(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.name.endswith(_SUFFIXES))


def _buffer_of(path: Path) -> Path:
    """The buffer at a path, or the only one in a folder."""
    if path.is_file() or path.name.endswith(".zarr") or _is_buffer(path):
        return path
    buffers = _buffers_in(path)
    if len(buffers) > 1:
        raise UserError(f"{path} contains several datasets: choose one of them, such as {buffers[0]}")
    return buffers[0]


def _relative(path: Path, buffer: Path, names: list[str]) -> tuple[str, ...]:
    """Names inside a buffer → names inside the dataset; for a .zip file, the file itself."""
    inside = "" if buffer == path else buffer.name
    if buffer.is_file():
        return (inside or ".",)
    return tuple(f"{inside}/{name}" if inside else name for name in names)


# Arrays --------------------------------------------------------------------------------------------


def _read_ends(files: ZarrFiles) -> list[int]:
    """The row after each episode's last step."""
    array = ZarrArray.open(files, _ENDS)
    where = files.where(_ENDS)
    if array is None:
        raise UserError(f"{where} is missing: this is not a replay buffer, or an incomplete copy")
    if array.dtype is None or array.dtype.kind not in "iu" or len(array.shape) != 1:
        raise UserError(f"{where} is {_described(array)}: it has to be (episodes,) of int64")
    if not 0 < array.shape[0] <= _MOST_EPISODES:
        raise UserError(f"{where} lists {array.shape[0]} episodes: record at least one, or copy the dataset again")
    ends: list[int] = array.read(0, array.shape[0], lambda row: f"episode {row}").tolist()
    for episode, (start, end) in enumerate(zip([0, *ends], ends)):
        if end < start:
            raise UserError(f"{where} is damaged: episode {episode} ends at row {end} and begins at row {start}")
    if not 0 < ends[-1] <= _MOST_STEPS:
        raise UserError(f"{where} lists {ends[-1]} steps: record some, or copy the dataset again")
    return ends


def _arrays(
    files: ZarrFiles, names: list[str], links: Mapping[str, list[str]], ends: Sequence[int]
) -> tuple[dict[str, ZarrArray], list[LeftOut]]:
    """The cameras and columns in `data`, and the rest.

    An array too short for more than half of the episodes does not have a row per step.
    """
    arrays: dict[str, ZarrArray] = {}
    left_out: list[LeftOut] = []
    groups = {"", "data", *(name.removesuffix("/.zgroup") for name in names if name.endswith("/.zgroup"))}
    documented: set[str] = set()
    for name in names:
        folder, _, document = name.rpartition("/")
        place, _, key = folder.partition("/")
        if document not in (".zarray", "zarr.json") or place in ("", "meta"):
            continue
        key = key if place == "data" else folder
        documented.add(folder)
        try:
            array = ZarrArray.open(files, folder)
        except UserError as error:
            kind: Literal["image", "column"] = "column" if _IMAGE_WORDS.isdisjoint(words_of(key)) else "image"
            left_out.append(LeftOut(kind, key, f"cannot be read: {error}"))
            continue
        if array is None:
            groups.add(folder)
            continue
        if place != "data":
            left_out.append(LeftOut("column", key, "is outside of data"))
            continue
        form = None if array.dtype is None else image_form(array.shape[1:], array.dtype)
        is_camera, is_column = isinstance(form, ImageForm), _is_column(array)
        no_camera = form if isinstance(form, NoCamera) else not_by_name(key) if form is not None else None
        is_depth = _depth_form(key, array) is not None
        if no_camera is not None and not is_depth:
            left_out.append(LeftOut(no_camera.kind, key, no_camera.reason))
        elif not key.isprintable() or key.startswith(".") or not (is_camera or is_column or is_depth):
            is_odd = array.dtype is None and not _IMAGE_WORDS.isdisjoint(words_of(key))  # such as encoded images
            is_odd |= array.dtype == np.uint8 and len(array.shape) > _AXES_OF_IMAGES
            left_out.append(LeftOut("image" if is_odd or is_camera else "column", key, f"is {_described(array)}"))
        elif is_camera and "/" in key:
            left_out.append(LeftOut("image", key, "is in a group: cameras must be in data itself"))
        elif array.shape[0] < ends[(len(ends) - 1) // 2]:
            what: Literal["image", "depth", "column"] = "image" if is_camera else "depth" if is_depth else "column"
            reason = f"has {array.shape[0]} steps, {_ENDS} lists {ends[-1]}"
            left_out.append(LeftOut(what, key, reason))
        else:
            arrays[key] = array
    return arrays, [*left_out, *_unassigned_files(names, links, documented, groups)]


def _unassigned_files(
    names: Sequence[str], links: Mapping[str, list[str]], documented: set[str], groups: set[str]
) -> list[LeftOut]:
    """Files and links that belong to no array, such as chunks of an array whose metadata file was not copied.

    Args:
        documented: folders with a metadata file, which are not examined.
        groups: folders that contain arrays.
    """
    groups = groups.union(folder[: match.start()] for folder in documented for match in re.finditer("/", folder))
    found: dict[str, list[str]] = {}
    for name in (*names, *links):
        parts = name.split("/")
        depth = 1
        while depth < len(parts) and "/".join(parts[:depth]) in groups:
            depth += 1
        place = "/".join(parts[:depth])
        is_known = place in documented or parts[0] == "meta" or parts[-1] == "zarr.json"
        is_beside = len(parts) == 1 and name not in links  # such as a README
        if not (is_known or is_beside or any(part.startswith(".") for part in parts)):
            found.setdefault(place, []).extend(links.get(name, ["/".join(parts[depth:]) or name]))
    left_out = []
    for place, inside in found.items():
        chunks = [re.findall(r"\d+", name) for name in inside if re.fullmatch(r"(c[./])?\d+([./]\d+)*", name)]
        is_image = (
            not _IMAGE_WORDS.isdisjoint(words_of(place))
            or any(len(axes) >= _AXES_OF_IMAGES for axes in chunks)
            or any(name.lower().endswith(_PICTURES) for name in inside)
        )
        if place in links:
            reason = "is a link to a folder, and links are not followed: copy the folder itself there"
        elif chunks:
            reason = "has chunks but no .zarray or zarr.json: copy the dataset again"
        else:
            reason = "is not a zarr array"
        left_out.append(LeftOut("image" if is_image else "column", place.removeprefix("data/"), reason))
    return left_out


def _too_short(array: ZarrArray, places: _Places, lengths: Sequence[int]) -> dict[int, Fault]:
    """Positions of the episodes that end after an array's last row."""
    ends = [start + length for start, length in zip(places.starts, filter(None, lengths), strict=True)]
    reason = f"has {array.shape[0]} rows, but {_ENDS} says that the episode ends at row {{}}"
    return {position: Fault(reason.format(end), "damaged") for position, end in enumerate(ends) if end > array.shape[0]}


def _described(array: ZarrArray) -> str:
    return f"{array.shape!s:.80} of {array.kind:.40}"


def _is_column(array: ZarrArray) -> bool:
    return array.dtype is not None and len(array.shape) in (1, 2) and 0 < math.prod(array.shape[1:]) <= _LARGEST_VECTOR


def _camera_form(array: ZarrArray) -> ImageForm | None:
    form = None if array.dtype is None else image_form(array.shape[1:], array.dtype)
    return form if isinstance(form, ImageForm) else None


def _depth_form(key: str, array: ZarrArray) -> DepthForm | None:
    """How an array holds depth images; None: it holds something else."""
    if array.dtype is None:
        return None
    form = image_form(array.shape[1:], array.dtype)
    no_camera = form if isinstance(form, NoCamera) else not_by_name(key) if form is not None else None
    is_distance = no_camera is not None and no_camera.is_distance
    return depth_form(array.shape[1:], array.dtype) if is_distance else None


def _depth_scale(array: ZarrArray, places: _Places) -> float:
    """Millimetres per unit, by the first image."""
    with suppress(UserError):  # whoever reads it is told
        return scale_of(array.read(0, 1, places))
    return 1.0


def _state_keys(columns: Mapping[str, ZarrArray], unread: set[str]) -> tuple[str, ...]:
    for key in _STATES:
        if key in columns:
            return (key,)
        if key in unread:  # nothing else replaces it
            return ()
    return tuple(key for key in columns if _STATE_PARTS.fullmatch(key)) or guessed_state(columns)


def _white(array: ZarrArray, places: _Places) -> float:
    """The value of white in a camera of floats, from the first images of some episodes."""

    def images() -> Iterator[np.ndarray]:
        for start in places.starts[:_IMAGES_FOR_SCALE]:
            with suppress(UserError):  # reported when they are read
                yield array.read(start, start + 1, places)

    return white_of(images())


def _fps(
    files: ZarrFiles, times: ZarrArray | None, places: _Places, steps: int
) -> tuple[float | None, tuple[str, ...]]:
    """The control frequency in Hz, from an attribute or from timestamps; and a note on the latter."""
    for folder in ("", "data/", "meta/"):
        attributes: object = files.read_json(f"{folder}.zattrs")
        if attributes is None:  # of version 3
            attributes = (files.read_json(f"{folder}zarr.json") or {}).get("attributes")
        attributes = attributes if isinstance(attributes, dict) else {}
        for value in (attributes.get(name) for name in _FPS_ATTRIBUTES):
            if isinstance(value, (int, float)) and 0 < value < 1e6:
                return float(value), ()
    if times is None or math.prod(times.shape[1:]) != 1:
        return None, ()
    rows = min(steps, _ROWS_FOR_FPS, times.shape[0])
    try:
        seconds = times.read(0, rows, places).reshape(-1).astype(np.float64)
    except UserError:
        return None, ()  # reported when the timestamps are read
    with np.errstate(all="ignore"):
        gaps = np.delete(np.diff(seconds), [start - 1 for start in places.starts if 0 < start < rows])
        middle = float(np.median(gaps)) if len(gaps) else 0.0
    if not 0 < middle < np.inf:
        return None, ()
    rate = round(1 / middle, 2)
    if not _SLOWEST <= rate <= _FASTEST:
        told = f"its steps are {middle:g} apart, which cannot be seconds"
        return None, (
            f"no attribute specifies the control frequency, and neither does {times.name} ({told}): give --fps",
        )
    return rate, (
        f"no attribute specifies the control frequency: {rate:g} Hz is taken from {times.name}, read as seconds",
    )
