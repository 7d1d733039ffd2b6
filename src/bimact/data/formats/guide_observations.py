"""What the guide's `observations.npy` holds: its layout, and the pickled forms made into the structured one.

The pickled forms are an object array of dictionaries, one a step, and a dictionary of arrays over all steps.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bimact.data.cache import Arrays, RowWriter
from bimact.data.episodes import Rows, identity_of
from bimact.data.formats.images import (
    ImageForm,
    NoCamera,
    conversion_notes,
    has_two_whites,
    image_form,
    not_by_name,
    white_of,
)
from bimact.data.safe_pickle import load_pickled_npy
from bimact.data.source import LeftOut
from bimact.errors import UserError
from bimact.files import write_json
from bimact.progress import progress_bar

OBSERVATIONS, LENGTHS = "observations.npy", "rollout_length.npy"
FOUND = "found.json"  # beside converted observations
_IMAGES_FOR_WHITE = 8
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
    """What each observation holds.

    Attributes:
        forms: camera → how its images are held.
        state_dim: size of the state.
        left_out: other fields.
    """

    forms: Mapping[str, ImageForm]
    state_dim: int
    left_out: tuple[LeftOut, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return observation_dtype({name: (form.height, form.width) for name, form in self.forms.items()}, self.state_dim)

    @classmethod
    def of_fields(cls, fields: Fields, where: str) -> Layout:
        """The layout of one observation.

        Raises:
            UserError: if there is no state or no image, or the state has a wrong type or shape. `where` names the
                observation.
        """
        for problem in layout_problems(fields):
            raise invalid(where, problem)
        forms, left_out = camera_forms(fields)
        return cls(forms, fields[STATE][1][0], left_out)


def camera_forms(fields: Fields) -> tuple[dict[str, ImageForm], tuple[LeftOut, ...]]:
    """Camera → how its images are held; and the fields that are neither cameras nor the state."""
    forms: dict[str, ImageForm] = {}
    left_out = []
    for name, (dtype, shape) in fields.items():
        if not is_image(name):
            if name != STATE:
                left_out.append(LeftOut("column", str(name), f"is neither '{STATE}' nor '{IMAGE_PREFIX}<camera>'"))
            continue
        camera = name.removeprefix(IMAGE_PREFIX)
        form = image_form(shape, dtype, is_camera=True)
        no_camera = not_by_name(camera)
        if no_camera is None and not isinstance(form, ImageForm):
            what = f"has {described(dtype, shape)}; images have to be (height, width, 3) uint8 RGB"
            no_camera = form or NoCamera("image", what)
        if no_camera is not None:
            left_out.append(LeftOut(no_camera.kind, camera, no_camera.reason))
        elif isinstance(form, ImageForm):
            forms[camera] = form
    return forms, tuple(left_out)


class RgbRows:
    """Images (N, H, W, 3) uint8 RGB of rows that hold them in another form.

    Args:
        whole: (N, …).
        form: of each row.
        white: the number that stands for white, of floats.
        is_mixed: some images seem to have another white.
    """

    def __init__(self, whole: Rows, form: ImageForm, white: float, is_mixed: bool = False) -> None:
        self.shape = (len(whole), form.height, form.width, 3)
        self.dtype = np.dtype(np.uint8)
        self.form, self.white, self.is_mixed = form, white, is_mixed
        self._whole = whole

    @classmethod
    def of(cls, whole: Rows, form: ImageForm) -> Rows:
        """The rows themselves if they are such images."""
        if not form.is_float and form.channels == 3 and form.channel_axis == 2:
            return whole
        places = np.linspace(0, max(0, len(whole) - 1), _IMAGES_FOR_WHITE).astype(int)
        some = [whole[place] for place in places] if form.is_float and len(whole) else []
        return cls(whole, form, white_of(some), has_two_whites(some))

    @property
    def identity(self) -> dict[str, Any] | None:
        whole = identity_of(self._whole)
        return None if whole is None else {**whole, "form": str(self.form), "white": self.white}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        images = np.asarray(self._whole[rows])
        where = "an image"
        if images.ndim == len(self._whole.shape) - 1:
            return self.form.as_rgb(images, self.white, where)
        return np.stack([self.form.as_rgb(image, self.white, where) for image in images])


def rgb_notes(images: Mapping[str, Rows]) -> tuple[str, ...]:
    """What is said of cameras whose rows hold images in another form than RGB."""
    rows = {camera: rows for camera, rows in images.items() if isinstance(rows, RgbRows)}
    notes = conversion_notes(
        [{camera: of.form for camera, of in rows.items()}], {c: of.white for c, of in rows.items()}
    )
    return (*notes, *two_whites_notes(camera for camera, of in rows.items() if of.is_mixed))


def two_whites_notes(cameras: Iterable[str]) -> Iterator[str]:
    for camera in cameras:
        yield (
            f"camera {camera}: some of its images seem to be floats from 0 to 1, others to 255, and all are taken for "
            "0 to 255: save them alike"
        )


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


def is_image(name: Any) -> bool:
    """Whether a field of this name is a camera's image."""
    return isinstance(name, str) and name.startswith(IMAGE_PREFIX) and name != IMAGE_PREFIX


def is_good_image(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    return isinstance(image_form(shape, dtype, is_camera=True), ImageForm)


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


class PickledObservations:
    """Observations in one of the pickled forms, ready to be written as a structured array.

    Args:
        path: observations.npy.
        lengths: (E,) steps of each episode.

    Raises:
        UserError: if the file is damaged, wants anything but plain values, does not fit to `lengths`, or most
            observations have a wrong layout.
    """

    def __init__(self, path: Path, lengths: np.ndarray) -> None:
        self._path = path
        self._lengths = lengths
        self._steps = int(lengths.sum())
        content = load_observations(path)
        self._columns: dict[str, np.ndarray] | None = None
        if isinstance(content, dict):
            arrays, no_arrays = column_arrays(content)
            self._usual: Fields = column_fields(arrays)
            layout = Layout.of_fields(self._usual, f"the dictionary in {path}")
            check_total(lengths, len(arrays[STATE]), path)
            even, uneven = even_cameras(layout.forms, arrays)
            self.layout = replace(layout, forms=even, left_out=(*layout.left_out, *uneven, *no_arrays))
            self._columns = {name: arrays[name] for name in self.layout.dtype.names or ()}
        else:
            check_total(lengths, len(content), path)
            self._observations = content
            self.layout = self._usual_layout()
        some = {name: list(self._some(name)) for name, form in self.layout.forms.items() if form.is_float}
        self._whites = {name: white_of(images) for name, images in some.items()}
        self._mixed = [name for name, images in some.items() if has_two_whites(images)]

    @property
    def arrays(self) -> Arrays:
        """The files that `write` fills."""
        return {OBSERVATIONS: (self.layout.dtype, (self._steps,))}

    def write(self, folder: Path) -> None:
        """Fill the structured array `observations.npy`, and write as `found.json` what is wrong with some episodes.

        These have zeros where a field of an observation is not as in most of them.

        Raises:
            OSError: if it cannot be written.
        """
        dtype = self.layout.dtype
        rows = max(1, _BLOCK_BYTES // dtype.itemsize)
        faults: dict[int, dict[str, str]] = defaultdict(dict)  # episode → field → what is wrong
        with (
            RowWriter(folder / OBSERVATIONS) as writer,
            progress_bar(f"converting {self._path.name} once", self._steps) as progress,
        ):
            for first in range(0, self._steps, rows):
                block = np.zeros(min(rows, self._steps - first), dtype)
                with np.errstate(over="ignore"):  # becomes inf, which `find_nonfinite` finds
                    for number in range(len(block)):
                        for name in dtype.names or ():
                            try:
                                block[name][number] = self._value(first + number, name)
                            except UserError as error:
                                episode, _ = episode_and_step(first + number, self._lengths)
                                faults[episode].setdefault(name, f"is damaged: {error}")
                writer.write(first, block)
                progress.advance(len(block))
        left_out = [[entry.kind, entry.name, entry.reason] for entry in self.layout.left_out]
        notes = [*conversion_notes([self.layout.forms], self._whites), *two_whites_notes(self._mixed)]
        found = {"faults": faults, "left_out": left_out, "notes": notes, "state_dtype": str(self._usual[STATE][0])}
        write_json(folder / FOUND, found)

    def _value(self, step: int, name: str) -> np.ndarray:
        """A field of a step, as the structured array holds it.

        Raises:
            UserError: if it is not as in most observations.
        """
        value = self._recorded(step, name)
        if name == STATE:
            return value
        camera = name.removeprefix(IMAGE_PREFIX)
        where = f"{self._where(step)}: camera {camera}"
        return self.layout.forms[camera].as_rgb(value, self._whites.get(camera, 1), where)

    def _recorded(self, step: int, name: str) -> np.ndarray:
        """A field of a step in the file's own form.

        Raises:
            UserError: if it is not as in most observations.
        """
        if self._columns is not None:
            values: np.ndarray = self._columns[name][step]
            return values
        observation = self._observations[step]
        if not isinstance(observation, dict):
            kind = type(observation).__name__
            raise invalid(self._where(step), f"is no dictionary but {kind}; save a dictionary for each step")
        if name not in observation:
            raise invalid(self._where(step), f"has no '{name}', which most observations have")
        value = as_array(observation[name])
        dtype, shape = self._usual[name]
        is_alike = value.dtype.kind in "fiu" if name == STATE else value.dtype == dtype
        if value.shape != shape or not is_alike:
            found, normal = described(value.dtype, value.shape), described(dtype, shape)
            raise invalid(self._where(step), f"has '{name}' of {found}; most observations have {normal}")
        return value

    def _usual_layout(self) -> Layout:
        """What most observations hold: each field that at least half of them have, in its most frequent form."""
        forms: dict[Any, Counter[tuple[np.dtype[Any], tuple[int, ...]]]] = defaultdict(Counter)
        steps = [step for step, observation in enumerate(self._observations) if isinstance(observation, dict)]
        if not steps:
            kind = type(self._observations[0]).__name__
            raise invalid(self._where(0), f"is no dictionary but {kind}; save a dictionary for each step")
        for step in steps:
            for name, value in self._observations[step].items():
                array = as_array(value)
                forms[name][array.dtype, array.shape] += 1
        self._usual = {name: of.most_common(1)[0][0] for name, of in forms.items() if 2 * of.total() >= len(steps)}
        layout = Layout.of_fields(self._usual, self._where(steps[0]))
        odd = [LeftOut("column", str(name), "is not in most observations") for name in forms if name not in self._usual]
        return replace(layout, left_out=(*layout.left_out, *odd))

    def _some(self, camera: str) -> Iterator[np.ndarray]:
        """Some of a camera's images, to tell the number that stands for white."""
        for step in np.linspace(0, self._steps - 1, _IMAGES_FOR_WHITE).astype(int).tolist():
            with contextlib.suppress(UserError):
                yield self._recorded(step, IMAGE_PREFIX + camera)

    def _where(self, step: int) -> str:
        episode, step_in_it = episode_and_step(step, self._lengths)
        return f"step {step} (episode {episode}, step {step_in_it}) of {self._path}"


@dataclass(frozen=True)
class Found:
    """What was found in observations beside images and states.

    Attributes:
        faults: episode → field → what is wrong with it.
        left_out: other fields.
        notes: how images were converted: whole sentences.
        state_dtype: of the states before they were converted.
    """

    faults: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    state_dtype: str = "float32"

    @classmethod
    def read(cls, folder: Path) -> Found:
        """What `PickledObservations.write` has written beside the observations."""
        content = json.loads((folder / FOUND).read_text())
        faults = {int(episode): of_fields for episode, of_fields in content["faults"].items()}
        left_out = tuple(LeftOut(*entry) for entry in content["left_out"])
        return cls(faults, left_out, tuple(content["notes"]), content["state_dtype"])


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


def as_array(value: Any) -> np.ndarray:
    """A value of an observation; what is no array becomes one if it is numbers."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError):  # a ragged list
        return np.empty((), dtype=object)


def column_arrays(columns: Mapping[Any, Any]) -> tuple[dict[Any, np.ndarray], tuple[LeftOut, ...]]:
    """The arrays over all steps in a dictionary, and what it holds besides."""
    arrays = {name: as_array(column) for name, column in columns.items()}
    left_out = [
        LeftOut("column", str(name), "is not an array with a row for each step")
        for name in arrays
        if not arrays[name].ndim
    ]
    return {name: array for name, array in arrays.items() if array.ndim}, tuple(left_out)


def column_fields(arrays: Mapping[Any, np.ndarray]) -> Fields:
    """What one step of arrays over all steps holds."""
    return {name: (value.dtype, value.shape[1:]) for name, value in arrays.items()}


def even_cameras(
    forms: Mapping[str, ImageForm], arrays: Mapping[Any, np.ndarray]
) -> tuple[dict[str, ImageForm], tuple[LeftOut, ...]]:
    """Of the cameras in a dictionary of arrays, those with as many steps as the state; and the others."""
    steps = len(arrays[STATE])
    counts = {camera: len(arrays[IMAGE_PREFIX + camera]) for camera in forms}
    uneven = tuple(
        LeftOut("image", camera, f"has {count} steps, the state {steps}; save as many of both")
        for camera, count in counts.items()
        if count != steps
    )
    return {camera: form for camera, form in forms.items() if counts[camera] == steps}, uneven
