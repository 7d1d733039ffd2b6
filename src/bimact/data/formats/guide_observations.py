"""What the guide's `observations.npy` holds: its layout, and the pickled forms made into the structured one.

The pickled forms are an object array of dictionaries, one a step, and a dictionary of arrays over all steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bimact.data.safe_pickle import load_pickled_npy
from bimact.errors import UserError
from bimact.progress import progress_bar

OBSERVATIONS, LENGTHS = "observations.npy", "rollout_length.npy"
IMAGE_PREFIX, STATE = "image_", "state"
INVALID = "Invalid observation format: "
_BLOCK_BYTES = 32 << 20

Fields = Mapping[Any, tuple[np.dtype[Any], tuple[int, ...]]]  # name → type and shape in one observation


def observation_dtype(image_sizes: Mapping[str, tuple[int, int]], state_dim: int) -> np.dtype[Any]:
    """The structured type of one observation: camera → (height, width), and the size of the state."""
    images = [(IMAGE_PREFIX + camera, np.uint8, (*size, 3)) for camera, size in image_sizes.items()]
    return np.dtype([*images, (STATE, np.float32, (state_dim,))])


@dataclass(frozen=True)
class Layout:
    """What each observation holds: camera → (height, width) of its images, and the size of the state."""

    image_sizes: Mapping[str, tuple[int, int]]
    state_dim: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return observation_dtype(self.image_sizes, self.state_dim)

    @classmethod
    def of_fields(cls, fields: Fields, where: str) -> Layout:
        """The layout of one observation; fields of other names are ignored.

        Raises:
            UserError: if there is no state or no image, or one has a wrong type or shape. `where` names the
                observation.
        """
        for problem in layout_problems(fields):
            raise invalid(where, problem)
        sizes = {name.removeprefix(IMAGE_PREFIX): fields[name][1] for name in fields if is_image(name)}
        return cls({camera: (height, width) for camera, (height, width, _) in sizes.items()}, fields[STATE][1][0])

    @classmethod
    def of_structured(cls, dtype: np.dtype[Any], path: Path) -> Layout:
        """The layout of a structured array of observations."""
        return cls.of_fields(structured_fields(dtype, path), f"{path}: each observation")


def structured_fields(dtype: np.dtype[Any], path: Path) -> Fields:
    """The fields of a structured array of observations, in the order in which they are stored.

    Raises:
        UserError: if the type has no fields.
    """
    if dtype.fields is None:
        raise UserError(
            f"Invalid observation format: {path} holds {dtype} without names; "
            "save a structured array, an array of dictionaries or a dictionary of arrays"
        )
    fields = {name: (field[0].base, field[0].shape) for name, field in dtype.fields.items()}
    return {name: fields[name] for name in dtype.names or ()}


def layout_problems(fields: Fields) -> Iterator[str]:
    """What is wrong with an observation of these fields, each as the end of a sentence that begins with its place."""
    if STATE not in fields:
        yield f"has no '{STATE}', but {_listed(fields)}; save the robot's state so"
    images = [name for name in fields if is_image(name)]
    if not images:
        yield f"has no image, but {_listed(fields)}; call them '{IMAGE_PREFIX}<camera>'"
    if STATE in fields and not is_good_state(*fields[STATE]):
        yield f"has a '{STATE}' of {described(*fields[STATE])}; it has to be (S,) float32"
    for name in images:
        if not is_good_image(*fields[name]):
            yield f"has an '{name}' of {described(*fields[name])}; images have to be (height, width, 3) uint8 RGB"


def is_image(name: Any) -> bool:
    """Whether a field of this name is a camera's image."""
    return isinstance(name, str) and name.startswith(IMAGE_PREFIX) and name != IMAGE_PREFIX


def is_good_image(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    return dtype == np.uint8 and len(shape) == 3 and shape[2] == 3 and 0 not in shape


def is_good_state(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    return dtype.kind in "fiu" and len(shape) == 1 and shape[0] > 0


def invalid(where: str, problem: str) -> UserError:
    return UserError(f"{INVALID}{where} {problem}")


def described(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    return f"shape {shape} and type {dtype}"


def _listed(names: Iterable[Any]) -> str:
    listed = ", ".join(ascii(name)[:40] for name in list(names)[:8])
    return listed or "nothing"


def episode_and_step(row: int, lengths: np.ndarray) -> tuple[int, int]:
    """The episode that a row of the dataset belongs to, and which of its steps it is."""
    ends = np.cumsum(lengths)
    episode = int(np.searchsorted(ends, row, side="right"))
    return episode, row - int(ends[episode] - lengths[episode])


def check_total(lengths: np.ndarray, steps: int, path: Path) -> None:
    """Refuse a file that does not have as many steps as the episodes together."""
    total = int(lengths.sum())
    if total != steps:
        raise UserError(
            f"Rollout length mismatch: {LENGTHS} adds up to {total} steps, {path.name} has {steps} "
            f"(in {path.parent}); write all files from the same recording"
        )


class _Form(Protocol):
    """One of the pickled forms."""

    layout: Layout

    def fill(self, block: np.ndarray, first: int) -> None:
        """Write the observations from step `first` on into a block of the structured array."""
        ...


class PickledObservations:
    """Observations in one of the pickled forms, ready to be written as a structured array.

    Args:
        path: observations.npy.
        lengths: (E,) steps of each episode.

    Raises:
        UserError: if the file is damaged, wants anything but plain values, does not fit to `lengths`, or its
            first observation has a wrong layout.
    """

    def __init__(self, path: Path, lengths: np.ndarray) -> None:
        self._path = path
        self._steps = int(lengths.sum())
        content = load_observations(path)
        self._form: _Form
        if isinstance(content, dict):
            self._form = _Columns(path, content, lengths)
        else:
            self._form = _Dictionaries(path, content, lengths)

    @property
    def size(self) -> int:
        """Bytes of the structured array."""
        return self._steps * self._form.layout.dtype.itemsize + 4096  # and the file's header

    def write(self, folder: Path) -> None:
        """Write the structured array as `observations.npy`.

        Raises:
            UserError: if an observation is not like the first one.
            OSError: if it cannot be written.
        """
        dtype = self._form.layout.dtype
        mapped = np.lib.format.open_memmap(folder / OBSERVATIONS, "w+", dtype, (self._steps,))
        offset = mapped.offset
        del mapped
        rows = max(1, _BLOCK_BYTES // dtype.itemsize)
        # Written as a file, not through the map: where the disk becomes full, a map kills the process.
        with (
            (folder / OBSERVATIONS).open("r+b") as file,
            progress_bar(f"converting {self._path.name} once", self._steps) as progress,
        ):
            file.seek(offset)
            for first in range(0, self._steps, rows):
                block = np.empty(min(rows, self._steps - first), dtype)
                with np.errstate(over="ignore"):  # becomes inf, which `find_nonfinite` finds
                    self._form.fill(block, first)
                file.write(block.view(np.uint8).data)
                progress.advance(len(block))


def load_observations(path: Path) -> np.ndarray | dict[Any, Any]:
    """The content of a pickled observations.npy: an array (N,) of objects, or one dictionary.

    Raises:
        UserError: if it is neither, is damaged, or wants anything but plain values.
    """
    content = load_pickled_npy(path)
    if content.ndim == 1:
        return content
    if content.ndim == 0 and isinstance(content.item(), dict):
        return dict(content.item())
    found = f"an array of shape {content.shape}" if content.ndim else type(content.item()).__name__
    raise UserError(
        f"Invalid observation format: {path} holds {found}; "
        "save an array of dictionaries, one for each step, or a dictionary of arrays"
    )


class _Dictionaries:
    """An array of dictionaries, one for each step."""

    def __init__(self, path: Path, observations: np.ndarray, lengths: np.ndarray) -> None:
        self._path = path
        self._lengths = lengths
        check_total(lengths, len(observations), path)
        self._observations = observations
        first = self._fields(0)
        self.layout = Layout.of_fields(first, self._where(0))
        self._norm = {name: first[name] for name in self.layout.dtype.names or ()}

    def fill(self, block: np.ndarray, first: int) -> None:
        columns = {name: block[name] for name in self._norm}
        for number in range(len(block)):
            observation = self._observation(first + number)
            for name, column in columns.items():
                column[number] = self._value(observation, name, first + number)

    def _value(self, observation: dict[Any, Any], name: str, step: int) -> np.ndarray:
        if name not in observation:
            raise invalid(self._where(step), f"has no '{name}'; all steps need what the first one has")
        value = as_array(observation[name])
        dtype, shape = self._norm[name]
        is_alike = value.dtype.kind in "fiu" if name == STATE else value.dtype == dtype
        if value.shape != shape or not is_alike:
            found, normal = described(value.dtype, value.shape), described(dtype, shape)
            raise invalid(self._where(step), f"has '{name}' of {found}; the first step has {normal}")
        return value

    def _fields(self, step: int) -> Fields:
        arrays = {name: as_array(value) for name, value in self._observation(step).items()}
        return {name: (value.dtype, value.shape) for name, value in arrays.items()}

    def _observation(self, step: int) -> dict[Any, Any]:
        observation = self._observations[step]
        if not isinstance(observation, dict):
            kind = type(observation).__name__
            raise invalid(self._where(step), f"is no dictionary but {kind}; save a dictionary for each step")
        return observation

    def _where(self, step: int) -> str:
        episode, step_in_it = episode_and_step(step, self._lengths)
        return f"step {step} (episode {episode}, step {step_in_it}) of {self._path}"


def as_array(value: Any) -> np.ndarray:
    """A value of an observation; what is no array becomes one if it is numbers."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError):  # a ragged list
        return np.empty((), dtype=object)


class _Columns:
    """A dictionary of arrays over all steps."""

    def __init__(self, path: Path, columns: dict[Any, Any], lengths: np.ndarray) -> None:
        arrays = column_arrays(columns)
        where = f"the dictionary in {path}"
        self.layout = Layout.of_fields(column_fields(arrays), where)
        self._columns = {name: arrays[name] for name in self.layout.dtype.names or ()}
        for problem in uneven_columns(self._columns):
            raise invalid(where, problem)
        check_total(lengths, len(self._columns[STATE]), path)

    def fill(self, block: np.ndarray, first: int) -> None:
        for name, column in self._columns.items():
            block[name] = column[first : first + len(block)]


def column_arrays(columns: Mapping[Any, Any]) -> dict[Any, np.ndarray]:
    """The arrays over all steps in a dictionary, which may hold other things besides."""
    return {name: column for name, column in columns.items() if getattr(column, "ndim", 0)}


def column_fields(arrays: Mapping[Any, np.ndarray]) -> Fields:
    """What one step of arrays over all steps holds."""
    return {name: (value.dtype, value.shape[1:]) for name, value in arrays.items()}


def uneven_columns(arrays: Mapping[Any, np.ndarray]) -> Iterator[str]:
    """Which arrays do not have as many steps as the state, each as the end of a sentence."""
    steps = len(arrays[STATE])
    for name, column in arrays.items():
        if len(column) != steps:
            yield f"has {len(column)} steps of '{name}' and {steps} of '{STATE}'; save as many of both"
