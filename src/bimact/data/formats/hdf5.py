"""Reads HDF5 files; damaged and malicious ones end in a `UserError`.

Only hard links are followed: soft and external links, virtual datasets and external storage may lead to any file. The
size of each dataset is compared with the file's actual storage before it is read.

Source: the HDF5 file format specification, version 3.0 (https://support.hdfgroup.org/documentation/hdf5/latest).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

import h5py
import numpy as np

from bimact.data.depth import decode_depth, depth_form, depth_left_out, pack_depth, scale_of
from bimact.data.formats.images import (
    ImageForm,
    NoCamera,
    decode_image,
    encoded_form,
    image_form,
    is_depth,
    is_encoded,
    not_by_name,
    other_file,
    white_in,
)
from bimact.data.source import Camera, Column, Fault, LeftOut, usual_forms
from bimact.errors import UserError, some_of
from bimact.files import real_file, refuse_pointer

SUFFIXES = (".hdf5", ".h5")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_LARGEST_ATTRIBUTE = 4 << 20  # bytes
_BLOCK = 64 << 20  # bytes of rows per read
_LONGEST_TEXT = 200  # characters of a library's error
_DEEPEST = 6  # nesting of groups

_LARGEST_VECTOR = 4096
_MOST_STEPS = 10**8
_NO = {"false", "0", "0.0", "no"}
_SMALLEST_IMAGE = 24  # minimum height and width in pixels to report an array with too many channels as an image

Value: TypeAlias = "str | int | float | bool"


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading.

    Raises:
        UserError: naming the file, if HDF5 cannot open it or fails inside the block.
    """
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # h5py raises nearly any type on damaged files
        advice = "; copy or record it again"
        try:
            is_empty = path.stat().st_size == 0
            path.open("rb").close()
        except OSError as unopened:
            reason, advice = unopened.strerror or str(unopened), ""
        else:
            said = printable(str(error))[:_LONGEST_TEXT] or type(error).__name__
            reason = f"it is damaged or cut off ({said})"
            if is_empty:
                reason = "it is empty"
            elif "lock file" in said or "already open" in said:
                reason, advice = "another program is writing to it; wait until it has finished", ""
            elif isinstance(error, MemoryError):
                reason = "it requests more memory than available, so it is damaged"
        raise UserError(f"cannot read {path}: {reason}{advice}", reason) from None


def has_signature(path: Path) -> bool:
    """Whether a file begins with the HDF5 signature, damaged or not."""
    try:
        with path.open("rb") as file:
            return file.read(len(_SIGNATURE)) == _SIGNATURE
    except OSError:
        return False


def hdf5_files(folder: Path) -> list[str]:
    """The names of a folder's HDF5 files, 2 before 10.

    Raises:
        UserError: if the folder cannot be read.
    """
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    return natural_order(name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))


def file_inside(dataset: Path, name: str) -> Path:
    """A file of a dataset; "." is the dataset itself.

    Raises:
        UserError: if it does not exist, or is a link out of the dataset.
    """
    if name == ".":
        refuse_pointer(dataset)
        return dataset
    if real_file(dataset, name) is None:
        raise UserError(f"{dataset / name} no longer exists")
    return dataset / name


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted with numbers by value: demo_2 before demo_10."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.findall(r"\d+|\D+", name)
        # Not int(), which limits the number of digits.
        return [
            (0, len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (1, 0, part) for part in parts
        ], name

    return sorted(names, key=key)


def numbers_in(names: Sequence[str]) -> list[int]:
    """Episode numbers: the last number in each name if all have one and they are unique; else positions."""
    found = [re.findall(r"\d{1,9}", Path(name).stem) for name in names]
    numbers = [int(digits[-1]) for digits in found if digits]
    return numbers if len(set(numbers)) == len(names) else list(range(len(names)))


def number_notes(names: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Notes on episode numbers that differ from the numbers in the names."""
    own = [re.findall(r"\d{1,9}", Path(name).stem) for name in names]
    if names == ["."] or all(digits and int(digits[-1]) == number for digits, number in zip(own, numbers)):
        return []
    told = some_of([f"{number} is {name}" for name, number in zip(names, numbers)])
    return [f"episodes are numbered by position, since the numbers in their names are not unique:  {told}"]


def printable(text: str) -> str:
    """Text in one line, without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


# Content of a file ----------------------------------------------------------------------------------


def find(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset | None:
    """The item at a path inside a group; None: there is none.

    Raises:
        UserError: if the path leads through a soft or external link.
    """
    here: Any = group
    for part in path.split("/"):
        if not isinstance(here, h5py.Group) or not here.id.links.exists(part.encode()):
            return None
        if is_link(here, part):
            raise UserError(
                f"{name_of(here)}/{part} in {group.file.filename} is a link, and links are not followed, since they "
                "may lead to any file: store the data itself there"
            )
        here = here[part]
    return here if isinstance(here, h5py.Group | h5py.Dataset) else None


def find_dataset(group: h5py.Group, *paths: str) -> h5py.Dataset | None:
    """The first existing dataset among some paths; None: there is none."""
    return next((item for path in paths if isinstance(item := find(group, path), h5py.Dataset)), None)


def dataset_at(group: h5py.Group, *paths: str) -> h5py.Dataset:
    """The first existing dataset among some paths.

    Raises:
        UserError: if there is none.
    """
    found = find_dataset(group, *paths)
    if found is None:
        raise UserError(f"{group.file.filename} no longer has {name_of(group)}/{paths[-1]}: copy it again")
    return found


def find_group(group: h5py.Group, path: str) -> h5py.Group | None:
    item = find(group, path)
    return item if isinstance(item, h5py.Group) else None


def members(group: h5py.Group | None) -> list[str]:
    """The names in a group, sorted; without those that cannot be printed or used as a file name."""
    names = [] if group is None else [name for name in group if isinstance(name, str)]  # bytes: not UTF-8
    return sorted(name for name in names if name.isprintable() and not name.startswith("."))


def walk(
    group: h5py.Group, prefix: str = "", depth: int = 0, seen: frozenset[int] = frozenset()
) -> Iterator[tuple[str, h5py.Dataset | str]]:
    """All datasets in a group and its subgroups, by path; or the reason why one is not read."""
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:  # a group that contains itself
        return
    shown = members(group)
    for name in group:
        if name not in shown:
            yield prefix + ascii(name)[1:-1], "has a name that cannot be printed"
    for name in shown:
        path = f"{prefix}{name}"
        if is_link(group, name):
            yield path, "is a link, and links are not followed"
            continue
        item = group[name]
        if isinstance(item, h5py.Dataset):
            yield path, item
        elif isinstance(item, h5py.Group) and depth == _DEEPEST:
            yield path, f"is nested in more than {_DEEPEST} groups"
        elif isinstance(item, h5py.Group):
            yield from walk(item, f"{path}/", depth + 1, seen | {address})


def is_link(group: h5py.Group, name: str) -> bool:
    """Whether a name is a soft or external link."""
    kind: int = group.id.links.get_info(name.encode()).type
    return kind != h5py.h5l.TYPE_HARD


def name_of(item: h5py.Group | h5py.Dataset) -> str:
    """Its path in the file."""
    return printable(str(item.name or "").rstrip("/"))


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> Value | None:
    """A single text or number; None: there is none, or it has another type."""
    if not h5py.h5a.exists(item.id, name.encode()):
        return None
    opened = h5py.h5a.open(item.id, name.encode())
    is_plain = opened.get_type().get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)
    is_one = opened.get_space().get_simple_extent_npoints() == 1
    if not is_plain or not is_one or opened.get_storage_size() > _LARGEST_ATTRIBUTE:
        return None
    value = np.asarray(item.attrs[name]).reshape(-1)[0]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, int | float) else None


def read_texts(dataset: h5py.Dataset) -> list[str]:
    """The texts (N,) of a dataset, each in one line; empty if it has another type.

    Raises:
        UserError: if it cannot be read.
    """
    if dataset.ndim != 1 or h5py.check_string_dtype(dataset.dtype) is None:
        return []
    check(dataset)
    return [printable(text) for text in dataset.asstr(errors="replace")[()]]


def text_of(item: h5py.Group | h5py.Dataset, *names: str) -> str | None:
    """The first attribute that is non-empty text."""
    values = (attribute(item, name) for name in names)
    return next((value for value in values if isinstance(value, str) and value), None)


def rate_of(value: object) -> float | None:
    """A control frequency in Hz; None: the value is not one."""
    is_rate = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
    return float(value) if is_rate else None  # type: ignore[arg-type]


def json_of(item: h5py.Group | h5py.Dataset, name: str) -> dict[str, Any]:
    """The JSON object in an attribute; empty if it is anything else."""
    try:
        content = json.loads(text_of(item, name) or "{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


# Datasets -------------------------------------------------------------------------------------------


def fault_of(dataset: h5py.Dataset, *, may_be_sparse: bool = False) -> str | None:
    """Why a dataset is not read, as the predicate of a sentence; None: it can be read.

    Args:
        may_be_sparse: unwritten parts are legitimate zeros, as in the padding of JPEG files.
    """
    settings = dataset.id.get_create_plist()
    if dataset.is_virtual or settings.get_external_count():
        return "keeps its data in other files: store it in this one"
    if dataset.shape is None or not dataset.shape:
        return "holds no rows"
    for number in range(settings.get_nfilters()):
        code, _, _, name = settings.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            said = printable(name.decode(errors="replace")) or "unnamed"
            return (
                f"needs the HDF5 filter {code} ({said}), which is not installed: install hdf5plugin and set "
                "HDF5_PLUGIN_PATH to its PLUGIN_PATH, or write the data without that filter"
            )
    # HDF5 reads what was never written as zeros.
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored, end = dataset.id.get_storage_size(), dataset.file.id.get_filesize()
    offset = dataset.id.get_offset()  # None for chunks, for data in the header, and for unwritten data
    if stored > end or (offset is not None and offset + size > end):
        return f"has {size} bytes, beyond the end of the file: copy or record it again"
    if dataset.chunks is None:
        return "was never written, although the file declares it: record it again" if stored < size else None
    parts = math.prod(-(-rows // chunk) for rows, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    lacking = parts - dataset.id.get_num_chunks()
    if lacking > 0 and not may_be_sparse:
        return f"lacks {lacking} of {parts} parts, which were never written: record it again"
    return None


def check(dataset: h5py.Dataset, *, may_be_sparse: bool = False) -> None:
    """Check that a dataset can be read.

    Raises:
        UserError: naming file and dataset.
    """
    fault = fault_of(dataset, may_be_sparse=may_be_sparse)
    if fault is not None:
        name = name_of(dataset)
        raise UserError(f"{name} in {dataset.file.filename} {fault}", f"{name} {fault}")


def is_numeric(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A dtype in this machine's byte order; that of the numbers for an enumeration."""
    return np.dtype(dtype.newbyteorder("=").str)


def one_number(dataset: h5py.Dataset | None) -> float | None:
    """The value of a dataset with a single number; None: it has another content, or cannot be read."""
    if dataset is None or dataset.size != 1 or not is_numeric(dataset.dtype):
        return None
    is_here = not dataset.is_virtual and not dataset.id.get_create_plist().get_external_count()
    if not is_here or (dataset.shape and fault_of(dataset) is not None):
        return None
    number: float = np.asarray(dataset[()]).reshape(-1)[0].item()
    return number


def read_vectors(dataset: h5py.Dataset) -> np.ndarray:
    """(T, D) numbers of a dataset (T, D) or (T,).

    Raises:
        UserError: if it cannot be read.
    """
    check(dataset)
    values = np.asarray(dataset[()]).reshape(len(dataset), -1)
    return np.ascontiguousarray(values, native(dataset.dtype))


def read_rows(dataset: h5py.Dataset, steps: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(step, its row) for each of some ascending steps; a repeated step yields the same row again.

    Rows of one chunk are read together, so that it is decompressed once.
    """
    together = 1 if dataset.chunks is None else dataset.chunks[0]
    row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    at_once = max(1, min(together, _BLOCK // max(1, row_bytes)))
    for _, group in groupby(steps, key=lambda step: step // at_once):
        wanted = list(group)
        block = dataset[wanted[0] : wanted[-1] + 1]
        for step in wanted:
            yield step, block[step - wanted[0]]


# Episodes ------------------------------------------------------------------------------------------


@dataclass
class Contents:
    """The content of one episode.

    Attributes:
        where: its name in messages.
        length: steps.
        forms: form of each camera's images.
        encoded: cameras whose images are JPEG or PNG files.
        depth_scales: of depth cameras, millimetres per unit in the first image.
        whites: of cameras of floats, the value of white in the first image; None: it is too dark.
        left_out: content of this episode that is neither a camera nor a column, by name.
        damaged: the unreadable ones of these that would be a camera or a column.
        fault: why the whole episode is unusable.
        is_missing: it has no steps.
    """

    where: str
    length: int = 0
    cameras: dict[str, Camera] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    forms: dict[str, ImageForm] = field(default_factory=dict)
    encoded: tuple[str, ...] = ()
    depth_scales: dict[str, float] = field(default_factory=dict)
    whites: dict[str, float | None] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    fault: str | None = None
    is_missing: bool = False

    def add(
        self, name: str, dataset: h5py.Dataset | str, *, camera: str | None = None, is_camera: bool = False
    ) -> None:
        """Add a dataset as a camera or a column, or leave it out with the reason.

        Args:
            name: of the column.
            dataset: or text: why it is not read.
            camera: its name if it is a camera; None: the name of the column.
            is_camera: its path implies that it contains images.
        """
        camera = camera or name
        if camera in self.cameras or name in self.columns:
            where = name if isinstance(dataset, str) else name_of(dataset).lstrip("/")
            self._leave_out("column", where, "has the name of another array: rename one of the two")
            return
        if isinstance(dataset, str) or not dataset.shape:
            reason = dataset if isinstance(dataset, str) else "holds no rows"
            if is_camera or isinstance(dataset, str):  # a single number belongs to the whole episode, such as a rate
                self._leave_out("image" if is_camera else "column", name, reason)
            return
        try:
            if not self._add_camera(camera, dataset, is_camera):
                self._add_column(name, dataset)
        except UserError as error:
            self._leave_out("image" if is_camera else "column", camera if is_camera else name, str(error))
            self.damaged.add(camera if is_camera else name)

    def _add_camera(self, name: str, dataset: h5py.Dataset, is_camera: bool) -> bool:
        """Whether a dataset contains images, readable or not."""
        form = image_form(dataset.shape[1:], dataset.dtype, is_camera=is_camera)
        may_be_encoded = _holds_files(dataset) and (is_camera or self._begins_as_image(dataset))
        looks_like_images = is_camera or may_be_encoded or form is not None
        no_camera = not_by_name(name) if looks_like_images else None
        if isinstance(form, NoCamera):
            no_camera = no_camera or form
        depth = depth_form(dataset.shape[1:], dataset.dtype)
        if no_camera is not None and no_camera.is_distance and depth is not None:
            self._check(dataset)
            self.cameras[name] = Camera(depth.height, depth.width, is_depth=True)
            self.depth_scales[name] = scale_of(dataset[0])
            return True
        if no_camera is not None and not (no_camera.is_distance and may_be_encoded):
            self._leave_out(no_camera.kind, name, no_camera.reason)
            return True
        if form is None and not may_be_encoded:
            if is_camera:
                what = f"has shape {dataset.shape} and type {dataset.dtype}"
                self._leave_out("image", name, f"{what}; images are (steps, height, width, 3) uint8, or encoded files")
            return is_camera
        self._check(dataset, may_be_sparse=form is None)
        if form is None:
            content = next(_rows(dataset, [0]))[1]
            other = other_file(content)
            if other is not None:
                self._leave_out("image", name, f"holds {other} files, which are not read: store PNG or JPEG files")
                return True
            if is_depth(content):
                image = decode_depth(content)
                self.cameras[name] = Camera(image.shape[0], image.shape[1], is_depth=True)
                self.depth_scales[name] = 1.0
                return True
            if no_camera is not None:
                self._leave_out(no_camera.kind, name, no_camera.reason)
                return True
            form = encoded_form(content, f"camera {name}, step 0")
            self.encoded += (name,)
        elif isinstance(form, ImageForm) and form.is_float:
            self.whites[name] = white_in(dataset[0])
        if isinstance(form, ImageForm):
            self.cameras[name], self.forms[name] = Camera(form.height, form.width), form
        return True

    def _begins_as_image(self, dataset: h5py.Dataset) -> bool:
        if fault_of(dataset, may_be_sparse=True) is not None:
            return False
        _, row = next(_rows(dataset, [0]))
        return is_encoded(row) or other_file(row) is not None

    def _add_column(self, name: str, dataset: h5py.Dataset) -> None:
        if not is_numeric(dataset.dtype):
            self._leave_out("column", name, f"holds {dataset.dtype} instead of numbers")
        elif dataset.ndim == 4 and dataset.dtype == np.uint8 and min(sorted(dataset.shape[1:])[1:]) >= _SMALLEST_IMAGE:
            self._leave_out("image", name, f"has shape {dataset.shape}; images have 1, 3 or 4 channels")
        elif dataset.ndim > 2 or not 0 < math.prod(dataset.shape[1:]) <= _LARGEST_VECTOR:
            self._leave_out("column", name, f"has shape {dataset.shape}; vectors are ({self.length}, size)")
        else:
            self._check(dataset)
            self.columns[name] = Column(math.prod(dataset.shape[1:]), dtype=str(native(dataset.dtype)))

    def _check(self, dataset: h5py.Dataset, may_be_sparse: bool = False) -> None:
        """Check that a dataset has a readable row per step; a fault is the predicate of a sentence."""
        if dataset.shape[0] != self.length:
            raise UserError(f"has {dataset.shape[0]} rows, the action {self.length}")
        fault = fault_of(dataset, may_be_sparse=may_be_sparse)
        if fault is not None:
            raise UserError(fault)

    def _leave_out(self, kind: Literal["image", "depth", "column"], name: str, reason: str) -> None:
        self.left_out[name] = LeftOut(kind, name, reason)


def steps_of(action: h5py.Dataset, where: str) -> int:
    """The number of rows of the action: the episode's steps.

    Raises:
        UserError: if it cannot be read.
    """
    check(action)
    if len(action) > _MOST_STEPS:
        reason = f"{name_of(action)} has {len(action)} rows, so it is damaged"
        raise UserError(f"{where}: {reason}", reason)
    return len(action)


@dataclass(frozen=True)
class Agreed:
    """The common content of episodes, as in `Source`.

    Attributes:
        depth_cameras: depth cameras.
        depth_scales: of each, millimetres per unit.
        left_out: content that is neither a camera nor a column in any episode; and depth cameras, which are selected by
            name.
        whites: camera of floats → the value of white in most episodes.
    """

    cameras: dict[str, Camera]
    depth_cameras: dict[str, Camera]
    depth_scales: dict[str, float]
    columns: dict[str, Column]
    camera_forms: dict[str, dict[int, Camera | Fault]]
    column_forms: dict[str, dict[int, Column | Fault]]
    left_out: tuple[LeftOut, ...]
    whites: dict[str, float]


def agreed(episodes: Sequence[Contents]) -> Agreed:
    """Compare episodes. A camera of floats is left out of episodes with another value range than most."""
    told: dict[str, Counter[float]] = {}
    for episode in episodes:
        for name, white in episode.whites.items():
            told.setdefault(name, Counter()).update([] if white is None else [white])
    whites = {name: counts.most_common(1)[0][0] if counts else 1.0 for name, counts in sorted(told.items())}
    for episode in episodes:
        for name, white in episode.whites.items():
            if white is not None and white != whites[name] and name in episode.cameras:
                del episode.cameras[name], episode.forms[name]
                what = f"holds floats from 0 to {white:g}, in most episodes from 0 to {whites[name]:g}"
                episode.left_out[name] = LeftOut("image", name, what)
                episode.damaged.add(name)

    faults = [
        {
            name: Fault(entry.reason, "damaged" if name in episode.damaged else "absent")
            for name, entry in episode.left_out.items()
        }
        for episode in episodes
    ]
    cameras, camera_forms = usual_forms([episode.cameras for episode in episodes], faults)
    columns, column_forms = usual_forms([episode.columns for episode in episodes], faults)
    left_out: dict[str, LeftOut] = {}
    for episode in episodes:
        for name, entry in episode.left_out.items():
            if name not in cameras and name not in columns:
                left_out.setdefault(name, entry)
    scales: dict[str, float] = {}
    for episode in episodes:
        scales = episode.depth_scales | scales
    depth = {name: camera for name, camera in cameras.items() if camera.is_depth}
    left_out |= {name: depth_left_out(name, scales[name]) for name in depth}
    in_order = tuple(left_out[name] for name in sorted(left_out))
    colour = {name: camera for name, camera in cameras.items() if not camera.is_depth}
    return Agreed(colour, depth, scales, columns, camera_forms, column_forms, in_order, whites)


def is_no(value: object) -> bool:
    """Whether an attribute such as `success` is false; None counts as true."""
    return value is not None and str(value).lower() in _NO


# Images ---------------------------------------------------------------------------------------------


def encoded_images(
    dataset: h5py.Dataset, steps: Sequence[int], describe: Callable[[int], str]
) -> Iterator[tuple[int, np.ndarray]]:
    """(step, image (H, W, 3) uint8 RGB) of JPEG, PNG or WebP files for some ascending steps.

    A repeated step yields the same array again.

    Args:
        dataset: rows (T, bytes) or byte strings (T,) padded with zeros, or rows of any length (T,).
        describe: step → its name in messages.
    """
    last, image = -1, np.empty(0, np.uint8)
    for step, content in _rows(dataset, steps):
        if step != last:
            last, image = step, decode_image(content, describe(step))
        yield step, image


def _rows(dataset: h5py.Dataset, steps: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """(step, the file's bytes)."""
    for step, row in read_rows(dataset, steps):
        # Without the padding, so that a truncated file is recognised.
        yield step, np.asarray(row).tobytes().rstrip(b"\0")


def frames_of(
    dataset: h5py.Dataset,
    steps: Sequence[int],
    *,
    swaps: bool,
    white: float,
    depth_scale: float | None,
    describe: Callable[[int], str],
) -> Iterator[np.ndarray]:
    """Images of a camera, as `Source.read_frames` gives them.

    Args:
        swaps: exchange red and blue of encoded files.
        white: the value of white in images of floats.
        depth_scale: of a depth camera, millimetres per unit.

    Raises:
        UserError: if an image cannot be read.
    """
    if depth_scale is not None:
        is_array = depth_form(dataset.shape[1:], dataset.dtype) is not None
        check(dataset, may_be_sparse=not is_array)
        for step, row in read_rows(dataset, steps):
            try:
                image = np.squeeze(row) if is_array else decode_depth(np.asarray(row).tobytes().rstrip(b"\0"))
            except (OSError, ValueError, SyntaxError) as error:
                raise UserError(f"{describe(step)}: a depth image is damaged ({error})") from None
            yield pack_depth(image, depth_scale)
        return
    form = image_form(dataset.shape[1:], dataset.dtype, is_camera=True)
    if isinstance(form, ImageForm):
        check(dataset)
        last, image = -1, np.empty(0, np.uint8)
        for step, row in read_rows(dataset, steps):
            if step != last:
                last, image = step, form.as_rgb(row, white, describe(step))
            yield image
    else:
        check(dataset, may_be_sparse=True)
        for _, image in encoded_images(dataset, steps, describe):
            # Channel by channel: far faster than a copy of image[..., ::-1].
            yield np.dstack([image[..., channel] for channel in (2, 1, 0)]) if swaps else image


def _holds_files(dataset: h5py.Dataset) -> bool:
    """Whether its rows may be encoded files."""
    if dataset.ndim == 2:
        return bool(dataset.dtype == np.uint8)
    is_opaque = dataset.dtype.kind == "V" and dataset.dtype.names is None
    is_of_any_length = h5py.check_vlen_dtype(dataset.dtype) == np.uint8
    return dataset.ndim == 1 and (dataset.dtype.kind == "S" or is_opaque or is_of_any_length)
