"""Episodes in HDF5 files: what groups of datasets hold, in what they agree, and their images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import h5py
import numpy as np

from bimact.data.formats.hdf5 import check, fault_of, is_numeric, name_of, native, read_rows, sound_heaps
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
from bimact.data.source import Camera, Column, Fault, LeftOut
from bimact.errors import UserError

_LARGEST_VECTOR = 4096
_MOST_STEPS = 10**8
_MOST_TOLD = 20  # numbers of episodes in one sentence
_NO = {"false", "0", "0.0", "no"}
_CHANNELS = 3
_SMALLEST_IMAGE = 24  # pixels of height and width, in arrays of more channels than images have


@dataclass
class Contents:
    """What one episode holds.

    Attributes:
        where: what messages call it.
        length: steps.
        forms: how the images of each camera are held.
        encoded: cameras whose images are JPEG or PNG files.
        whites: of cameras of floats, the number that stands for white in the first image; None: it is too dark.
        left_out: what is neither a camera nor a column in this episode, by its name.
        damaged: those of it that cannot be read, though others of their kind can.
        fault: why none of it can be used.
        is_missing: it has no steps.
    """

    where: str
    length: int = 0
    cameras: dict[str, Camera] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    forms: dict[str, ImageForm] = field(default_factory=dict)
    encoded: tuple[str, ...] = ()
    whites: dict[str, float | None] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    fault: str | None = None
    is_missing: bool = False

    def add(
        self, name: str, dataset: h5py.Dataset | str, *, camera: str | None = None, is_camera: bool = False
    ) -> None:
        """Take a dataset as a camera or a column, or leave it out with the reason.

        Args:
            name: of the column.
            dataset: text: why it is not read.
            camera: its name if it is a camera; None: that of the column.
            is_camera: its place says that it holds images.
        """
        camera = camera or name
        if camera in self.cameras or name in self.columns:
            where = name if isinstance(dataset, str) else name_of(dataset).lstrip("/")
            self._leave_out("column", where, "has the name of another array: rename one of the two")
            return
        if isinstance(dataset, str) or not dataset.shape:
            reason = dataset if isinstance(dataset, str) else "holds no rows"
            if is_camera or isinstance(dataset, str):  # one number is of the whole episode, such as a rate
                self._leave_out("image" if is_camera else "column", name, reason)
            return
        try:
            if not self._add_camera(camera, dataset, is_camera):
                self._add_column(name, dataset)
        except UserError as error:
            reason = str(error).removeprefix(f"{name_of(dataset)} in ").removeprefix(self.where).lstrip(":, ")
            self._leave_out("image" if is_camera else "column", camera if is_camera else name, reason)
            self.damaged.add(camera if is_camera else name)

    def _add_camera(self, name: str, dataset: h5py.Dataset, is_camera: bool) -> bool:
        """Whether a dataset holds images, readable or not."""
        form = image_form(dataset.shape[1:], dataset.dtype, is_camera=is_camera)
        may_be_encoded = _holds_files(dataset) and (is_camera or self._begins_as_image(dataset))
        looks_like_images = is_camera or may_be_encoded or form is not None
        no_camera = not_by_name(name) if looks_like_images else None
        if isinstance(form, NoCamera):
            no_camera = no_camera or form
        if no_camera is not None:
            self._leave_out(no_camera.kind, name, no_camera.reason)
            return True
        if form is None and not may_be_encoded:
            if is_camera:
                what = f"has shape {dataset.shape} and type {dataset.dtype}"
                self._leave_out("image", name, f"{what}; images are (steps, height, width, 3) uint8, or encoded files")
            return is_camera
        self._check_rows(dataset)
        check(dataset, may_be_sparse=form is None)
        if form is None:
            content = next(_rows(dataset, [0]))[1]
            other = other_file(content)
            if other is not None:
                self._leave_out("image", name, f"holds {other} files, which are not read: store PNG or JPEG files")
                return True
            if is_depth(content):
                self._leave_out("depth", name, "is depth: its files have more than 8 bits per channel")
                return True
            form = encoded_form(content, f"{self.where}, camera {name}, step 0")
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
            self._check_rows(dataset)
            check(dataset)
            self.columns[name] = Column(math.prod(dataset.shape[1:]), dtype=str(native(dataset.dtype)))

    def _check_rows(self, dataset: h5py.Dataset) -> None:
        """See that a dataset has a row for each step."""
        if dataset.shape[0] != self.length:
            raise UserError(f"has {dataset.shape[0]} rows, the action {self.length}")

    @property
    def faults(self) -> dict[str, Fault]:
        """What cannot be used of what other episodes may have."""
        return {
            name: Fault(entry.reason, "damaged" if name in self.damaged else "absent")
            for name, entry in self.left_out.items()
        }

    def _leave_out(self, kind: Literal["image", "depth", "column"], name: str, reason: str) -> None:
        self.left_out[name] = LeftOut(kind, name, reason)


def steps_of(action: h5py.Dataset, where: str) -> int:
    """The rows of the action, which are the episode's steps.

    Raises:
        UserError: if it may not be read.
    """
    check(action)
    if len(action) > _MOST_STEPS:
        raise UserError(f"{where}: {name_of(action)} has {len(action)} rows, so it is damaged")
    return len(action)


def in_no_episode(episodes: Sequence[Contents]) -> tuple[LeftOut, ...]:
    """What is neither a camera nor a column in any episode."""
    known = {name for episode in episodes for name in (*episode.cameras, *episode.columns)}
    left_out: dict[str, LeftOut] = {}
    for episode in episodes:
        for name, entry in episode.left_out.items():
            if name not in known:
                left_out.setdefault(name, entry)
    return tuple(left_out[name] for name in sorted(left_out))


def refuse_other_whites(episodes: Sequence[Contents]) -> None:
    """A camera whose floats are of another range than in most episodes cannot be used in that episode."""
    usual = whites(episodes)
    for episode in episodes:
        for camera, white in episode.whites.items():
            if white is not None and white != usual[camera] and camera in episode.cameras:
                del episode.cameras[camera], episode.forms[camera]
                what = f"holds floats from 0 to {white:g}, in most episodes from 0 to {usual[camera]:g}"
                episode._leave_out("image", camera, what)
                episode.damaged.add(camera)


def whites(episodes: Sequence[Contents]) -> dict[str, float]:
    """Camera of floats → the number that stands for white in most episodes."""
    told: dict[str, Counter[float]] = {}
    for episode in episodes:
        for name, white in episode.whites.items():
            told.setdefault(name, Counter()).update([] if white is None else [white])
    return {name: counts.most_common(1)[0][0] if counts else 1.0 for name, counts in sorted(told.items())}


def failed_notes(episodes: Mapping[int, object]) -> list[str]:
    """What is said of episodes whose attribute `success` says no.

    Args:
        episodes: number → the attribute; None: there is none.
    """
    failed = [number for number, value in episodes.items() if value is not None and str(value).lower() in _NO]
    numbers = ",".join(str(number) for number in failed[:_MOST_TOLD]) + (",…" if len(failed) > _MOST_TOLD else "")
    note = f"{len(failed)} of {len(episodes)} episodes say by their attribute success that they failed, and are used"
    return [f"{note}: --exclude_episodes {numbers} leaves them out"] if failed else []


# Images ---------------------------------------------------------------------------------------------


def encoded_images(
    dataset: h5py.Dataset, steps: Sequence[int], describe: Callable[[int], str]
) -> Iterator[tuple[int, np.ndarray]]:
    """(step, image (H, W, 3) uint8 RGB) of JPEG, PNG or WebP files for some ascending steps.

    A repeated step gives the same array again.

    Args:
        dataset: rows (T, bytes) or byte strings (T,) padded with zeros, or rows of any length (T,).
        describe: step → what messages call it.
    """
    last, image = -1, np.empty(0, np.uint8)
    for step, content in _rows(dataset, steps):
        if step != last:
            last, image = step, decode_image(content, describe(step))
        yield step, image


def _rows(dataset: h5py.Dataset, steps: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """(step, the file's bytes)."""
    is_of_any_length = h5py.check_vlen_dtype(dataset.dtype) is not None
    with sound_heaps(dataset) if is_of_any_length else nullcontext(dataset) as rows:
        for step, row in read_rows(rows, steps):
            # Without the padding, so that a file that was cut off is not taken for a whole one.
            yield step, np.asarray(row).tobytes().rstrip(b"\0")


def frames_of(
    dataset: h5py.Dataset,
    steps: Sequence[int],
    *,
    swaps: bool,
    white: float,
    describe: Callable[[int], str],
) -> Iterator[np.ndarray]:
    """Images of a camera, as `Source.read_frames` gives them.

    Args:
        swaps: red and blue of encoded files change places.
        white: the number that stands for white in images of floats.

    Raises:
        UserError: if an image cannot be read.
    """
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
            yield _swapped(image) if swaps else image


def _swapped(image: np.ndarray) -> np.ndarray:
    """An image with red and blue exchanged; channel by channel, which is far faster than a copy backwards."""
    exchanged = np.empty_like(image)
    for channel in range(_CHANNELS):
        exchanged[..., channel] = image[..., _CHANNELS - 1 - channel]
    return exchanged


def _holds_files(dataset: h5py.Dataset) -> bool:
    """Whether its rows may be encoded files."""
    if dataset.ndim == 2:
        return bool(dataset.dtype == np.uint8)
    is_opaque = dataset.dtype.kind == "V" and dataset.dtype.names is None
    is_of_any_length = h5py.check_vlen_dtype(dataset.dtype) == np.uint8
    return dataset.ndim == 1 and (dataset.dtype.kind == "S" or is_opaque or is_of_any_length)
