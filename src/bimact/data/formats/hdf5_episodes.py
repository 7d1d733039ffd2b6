"""Episodes in HDF5 files: what groups of datasets hold, in what they agree, and their images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from bimact.data.formats.hdf5 import (
    check,
    fault_of,
    find_dataset,
    is_link,
    is_numeric,
    members,
    name_of,
    native,
    read_rows,
)
from bimact.data.formats.images import decode_image
from bimact.data.source import Camera, Column
from bimact.errors import UserError

_LARGEST_VECTOR = 4096
_MOST_STEPS = 10**8
_CHANNELS = 3


@dataclass
class Contents:
    """What one episode holds.

    Attributes:
        where: what messages call it.
        length: steps.
        encoded: cameras whose images are JPEG files.
        left_out: name → why it is neither a camera nor a column.
    """

    where: str
    length: int
    cameras: dict[str, Camera] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    encoded: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def add_columns(
        self, group: h5py.Group, names: Sequence[str] | None = None, *, required: Collection[str] = ()
    ) -> None:
        """Take the vectors that stand in a group, unless there are some of the same names already.

        Args:
            names: those to look at; None: all.
            required: names whose faults are errors; others are left out.

        Raises:
            UserError: naming both numbers if a required one has another number of rows than the action.
        """
        for name in members(group) if names is None else names:
            if name in self.columns:
                continue
            if name not in required and is_link(group, name):
                self.left_out[name] = "is a link, and links are not followed"
                continue
            dataset = find_dataset(group, name)
            if dataset is None:
                continue
            fault = self._fault_of_column(dataset)
            if fault is None:
                self.columns[name] = Column(math.prod(dataset.shape[1:]), dtype=str(native(dataset.dtype)))
            elif name in required:
                self.check_rows(dataset)
                raise UserError(f"{self.where}: {name_of(dataset)} {fault}")
            else:
                self.left_out[name] = fault

    def add_camera(self, name: str, dataset: h5py.Dataset, *, decodes: bool) -> None:
        """Take a dataset of images, or leave it out with the reason.

        Args:
            decodes: (T, bytes) is taken for JPEG files.

        Raises:
            UserError: if it may not be read, or has another number of rows than the action.
        """
        is_encoded = decodes and _holds_files(dataset)
        if not is_encoded and _channel_axis(dataset) is None:
            self.left_out[name] = (
                f"has shape {dataset.shape} and type {dataset.dtype}; images are (steps, height, width, 3) uint8"
            )
            return
        check(dataset, may_be_sparse=is_encoded)
        self.check_rows(dataset)
        if is_encoded:
            _, image = next(decoded(dataset, [0], lambda step: f"{self.where}, camera {name}, step {step}"))
            height, width = image.shape[:2]
            self.encoded += (name,)
        else:
            height, width = (size for axis, size in enumerate(dataset.shape[1:], 1) if axis != _channel_axis(dataset))
        self.cameras[name] = Camera(height, width)

    def check_rows(self, dataset: h5py.Dataset) -> None:
        """See that a dataset has a row for each step."""
        if dataset.shape and dataset.shape[0] != self.length:
            raise UserError(
                f"{self.where}: {name_of(dataset)} has {dataset.shape[0]} rows and the action {self.length}: record "
                "the episode again or remove it"
            )

    def _fault_of_column(self, dataset: h5py.Dataset) -> str | None:
        if not is_numeric(dataset.dtype):
            return f"holds {dataset.dtype} instead of numbers"
        fault = fault_of(dataset)
        if fault is not None:
            return fault
        if (
            dataset.ndim > 2
            or dataset.shape[0] != self.length
            or not 0 < math.prod(dataset.shape[1:]) <= _LARGEST_VECTOR
        ):
            return f"has shape {dataset.shape}; vectors are (steps, size) with {self.length} steps"
        return None


def steps_of(action: h5py.Dataset | None, name: str, where: str) -> int:
    """The rows of the action, which are the episode's steps.

    Raises:
        UserError: if there is no action, or none that may be read.
    """
    if action is None:
        raise UserError(f"{where} has no {name}: record the episode again or remove it")
    check(action)
    if len(action) > _MOST_STEPS:
        raise UserError(f"{where}: {name_of(action)} has {len(action)} rows, so it is damaged")
    return len(action)


def columns_in_common(
    episodes: Sequence[Contents], essential: Sequence[str], advice: str
) -> tuple[dict[str, Column], dict[str, str]]:
    """See that episodes agree in cameras and essential columns.

    Args:
        essential: columns that all have to have, in one size, if most have them.
        advice: end of the sentence about one that differs.

    Returns:
        the columns that all have in one size, and why others are left out.

    Raises:
        UserError: naming the first episode that differs from most, and in what.
    """
    ((usual_items, _),) = Counter(_signature(episode, essential) for episode in episodes).most_common(1)
    usual = dict(usual_items)
    for episode in episodes:
        mine = dict(_signature(episode, essential))
        for name in sorted(usual.keys() | mine.keys()):
            if mine.get(name) != usual.get(name):
                raise UserError(
                    f"{episode.where}: {name} is {mine.get(name, 'not there')}, in most episodes it is "
                    f"{usual.get(name, 'not there')}: {advice}"
                )
    left_out = {name: why for episode in reversed(episodes) for name, why in episode.left_out.items()}
    columns: dict[str, Column] = {}
    for name in dict.fromkeys(name for episode in episodes for name in episode.columns):
        found = [episode.columns[name] for episode in episodes if name in episode.columns]
        if len(found) == len(episodes) and len({column.size for column in found}) == 1:
            columns[name] = Column(found[0].size, dtype=str(np.result_type(*(np.dtype(c.dtype) for c in found))))
        else:
            left_out[name] = "is not in all episodes in one size"
    return columns, left_out


def _signature(episode: Contents, essential: Sequence[str]) -> frozenset[tuple[str, str]]:
    """What is in an episode → its size."""
    cameras = {f"camera {name}": f"{camera.height}×{camera.width}" for name, camera in episode.cameras.items()}
    columns = {name: f"of size {episode.columns[name].size}" for name in essential if name in episode.columns}
    return frozenset({**cameras, **columns}.items())


# Images ---------------------------------------------------------------------------------------------


def decoded(
    dataset: h5py.Dataset, steps: Sequence[int], describe: Callable[[int], str]
) -> Iterator[tuple[int, np.ndarray]]:
    """(step, image (H, W, 3) uint8 RGB) for some ascending steps; a repeated step gives the same array again.

    Args:
        dataset: images (T, H, W, 3) or (T, 3, H, W); or JPEG files as rows (T, bytes) or byte strings (T,), padded with
            zeros.
        describe: step → what messages call it.
    """
    axis = _channel_axis(dataset)
    last, image = -1, np.empty(0, np.uint8)
    for step, row in read_rows(dataset, steps):
        if step != last:
            if axis is None:
                # Without the padding, so that a file that was cut off is not taken for a whole one.
                image = decode_image(np.asarray(row).tobytes().rstrip(b"\0"), describe(step))
            else:
                image = row if axis == 3 else np.ascontiguousarray(row.transpose(1, 2, 0))
            last = step
        yield step, image


def frames_of(
    dataset: h5py.Dataset, steps: Sequence[int], camera: Camera, *, swaps: bool, describe: Callable[[int], str]
) -> Iterator[np.ndarray]:
    """Images of a camera, as `Source.read_frames` gives them.

    Args:
        swaps: red and blue of JPEG files change places.

    Raises:
        UserError: if an image cannot be read or has another size.
    """
    check(dataset, may_be_sparse=_holds_files(dataset))
    for step, image in decoded(dataset, steps, describe):
        if image.shape != (camera.height, camera.width, _CHANNELS):
            raise UserError(
                f"{describe(step)}: the image is {image.shape[0]}×{image.shape[1]}, the camera's first one "
                f"{camera.height}×{camera.width}"
            )
        yield _swapped(image) if swaps and _holds_files(dataset) else image


def _swapped(image: np.ndarray) -> np.ndarray:
    """An image with red and blue exchanged; channel by channel, which is far faster than a copy backwards."""
    exchanged = np.empty_like(image)
    for channel in range(_CHANNELS):
        exchanged[..., channel] = image[..., _CHANNELS - 1 - channel]
    return exchanged


def _channel_axis(dataset: h5py.Dataset) -> int | None:
    """The axis of red, green and blue; None: it holds no such images."""
    if dataset.dtype != np.uint8 or dataset.ndim != 4 or min(dataset.shape[1:]) < 1:
        return None
    return next((axis for axis in (3, 1) if dataset.shape[axis] == _CHANNELS), None)


def _holds_files(dataset: h5py.Dataset) -> bool:
    """Whether its rows may be JPEG files."""
    return (dataset.dtype == np.uint8 and dataset.ndim == 2) or (dataset.dtype.kind == "S" and dataset.ndim == 1)


def described(left_out: Mapping[str, str]) -> dict[str, Any]:
    """What metadata say of what was left out."""
    return {"left_out": dict(sorted(left_out.items()))} if left_out else {}
