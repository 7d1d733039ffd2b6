"""Reads the guide's `observations.npy` in each of its three forms, and names every step that is faulty.

The forms are a structured array, which is mapped into memory; and two pickled ones, an object array of dictionaries
(one per step) and a dictionary of arrays over all steps, which are read in child processes.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
from bimact.data.npy_rows import NpyRows, open_array
from bimact.data.safe_pickle import load_pickled_npy, read_npy_header
from bimact.data.source import LeftOut
from bimact.data.workers import run_apart
from bimact.errors import UserError

OBSERVATIONS, LENGTHS = "observations.npy", "rollout_length.npy"
IMAGE_PREFIX, STATE = "image_", "state"
INVALID = "Invalid observation format: "
_IMAGES_FOR_WHITE = 8
_TIMEOUT = 900.0  # seconds for reading pickled observations

Form = tuple[np.dtype[Any], tuple[int, ...]]  # dtype and shape of a field in one observation
Fields = Mapping[Any, Form]


def observation_dtype(image_sizes: Mapping[str, tuple[int, int]], state_dim: int) -> np.dtype[Any]:
    """The structured type of one observation: camera → (height, width), and the size of the state."""
    images = [(IMAGE_PREFIX + camera, np.uint8, (*size, 3)) for camera, size in image_sizes.items()]
    return np.dtype([*images, (STATE, np.float32, (state_dim,))])


@dataclass(frozen=True)
class StepFaults:
    """Steps with the same kind of fault.

    Attributes:
        fields: those that cannot be used at these steps; none: the steps can be used.
        problems: row of the dataset → the predicate of a sentence whose subject is the step.
    """

    fields: tuple[str, ...]
    problems: Mapping[int, str]


@dataclass(frozen=True)
class Observations:
    """What can be read of the observations.

    Attributes:
        steps: number of them.
        state: (N, S) float32, zeros at faulty steps; None: there is none.
        state_dtype: in the file.
        images: camera → (N, H, W, 3) uint8, black at faulty steps.
        left_out: other fields.
        faults: of all observations: whole sentences.
        step_faults: steps that differ from most others.
        is_pickled: they cannot be mapped into memory.
    """

    steps: int
    state: Rows | None
    state_dtype: str | None
    images: Mapping[str, Rows]
    left_out: tuple[LeftOut, ...]
    faults: tuple[str, ...]
    step_faults: tuple[StepFaults, ...] = ()
    is_pickled: bool = False


def read_observations(path: Path) -> Observations:
    """Read `observations.npy` in any of its forms; the values of states and images are not looked at.

    Raises:
        UserError: if nothing in the file can be read, or the child that reads it crashes or runs out of memory.
    """
    if read_npy_header(path).is_pickled:
        pickled: Observations = run_apart(_read_pickled, path, what=str(path), timeout=_TIMEOUT)
        return pickled
    records = open_array(path)
    if records.ndim != 1:
        raise UserError(
            f"{INVALID}{path} has shape {records.shape}; "
            "save a structured array (steps,), an array of dictionaries or a dictionary of arrays"
        )
    if records.dtype.fields is None:
        raise UserError(
            f"{INVALID}{path} holds {records.dtype} without names; "
            "save a structured array, an array of dictionaries or a dictionary of arrays"
        )
    of_name = records.dtype.fields
    fields = {name: (of_name[name][0].base, of_name[name][0].shape) for name in records.dtype.names or ()}
    forms, left_out = camera_forms(fields)
    return Observations(
        len(records),
        NpyRows(path, STATE, np.float32) if _has_state(fields) else None,
        str(fields[STATE][0]) if _has_state(fields) else None,
        {camera: RgbRows.of(NpyRows(path, IMAGE_PREFIX + camera), form) for camera, form in forms.items()},
        left_out,
        tuple(_layout_faults(fields, f"{path}: each observation")),
    )


def _read_pickled(path: Path) -> Observations:
    """In a child: observations that are Python objects."""
    content = _loaded(path, _state_of(path))
    if isinstance(content, dict):
        return _read_columns(path, content)
    return _read_dictionaries(path, content)


def _read_columns(path: Path, content: dict[Any, np.ndarray]) -> Observations:
    """A dictionary of arrays over all steps."""
    columns = {name: column for name, column in content.items() if column.ndim}
    fields: Fields = {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}
    forms, others = camera_forms(fields)
    no_rows = [name for name, column in content.items() if not column.ndim]
    left_out = [
        *others,
        *(LeftOut("column", str(name), "is not an array with a row for each step") for name in no_rows),
    ]
    images = {camera: columns[IMAGE_PREFIX + camera] for camera in forms}
    steps = len(columns[STATE]) if STATE in columns else len(next(iter(images.values()), ()))
    if STATE in columns:
        for camera, column in list(images.items()):
            if len(column) != steps:
                reason = f"has {len(column)} steps, the state {steps}; save as many of both"
                left_out.append(LeftOut("image", camera, reason))
                del images[camera]

    def rows(name: str, dtype: np.dtype[Any]) -> PickledRows:
        return PickledRows(path, _state_of(path), name, (len(columns[name]), *columns[name].shape[1:]), dtype)

    return Observations(
        steps,
        rows(STATE, np.dtype(np.float32)) if _has_state(fields) else None,
        str(fields[STATE][0]) if _has_state(fields) else None,
        {name: RgbRows.of(rows(IMAGE_PREFIX + name, column.dtype), forms[name]) for name, column in images.items()},
        tuple(left_out),
        tuple(_layout_faults(fields, f"the dictionary in {path}")),
        is_pickled=True,
    )


def _read_dictionaries(path: Path, observations: np.ndarray) -> Observations:
    """An array of dictionaries: those that differ from most of them are faulty."""
    # What one step holds (of state and images: name, dtype and shape; of other fields: the name; the name of its type
    # if it is not a dictionary) → its rows: one entry if there is no fault.
    rows_of: dict[tuple[tuple[Any, Form | None], ...] | str, list[int]] = defaultdict(list)
    for row, observation in enumerate(observations):
        content: tuple[tuple[Any, Form | None], ...] | str = type(observation).__name__
        if isinstance(observation, dict):
            arrays = {name: as_array(value) for name, value in observation.items() if _is_needed(name)}
            content = tuple(
                (name, (arrays[name].dtype, arrays[name].shape) if name in arrays else None) for name in observation
            )
        rows_of[content].append(row)

    counts: dict[Any, Counter[Form | None]] = defaultdict(Counter)  # field → dtype and shape → steps
    total = 0
    for content, rows in rows_of.items():
        if not isinstance(content, str):
            total += len(rows)
            for name, form in content:
                counts[name][form] += len(rows)
    usual_forms = {name: of.most_common(1)[0][0] for name, of in counts.items() if 2 * of.total() >= total}
    usual: dict[Any, Form] = {name: form or (np.dtype(object), ()) for name, form in usual_forms.items()}
    forms, others = camera_forms(usual)
    odd = [LeftOut("column", str(name), "is not in most observations") for name in counts if name not in usual]
    faults: list[str] = []
    if total:
        of = "each" if len(rows_of) == 1 else "the usual"
        faults += _layout_faults(usual, f"{path}: {of} observation")

    needed = {name: form for name, form in usual.items() if _is_needed(name)}
    by_kind: dict[str, tuple[tuple[str, ...], dict[int, str]]] = {}
    for content, rows in rows_of.items():
        if isinstance(content, str):
            problem = f"is no dictionary but {content}; save a dictionary for each step"
            by_kind.setdefault("type", (tuple(needed) or (STATE,), {}))[1].update(dict.fromkeys(rows, problem))
            continue
        fields = dict(content)
        for name, normal in needed.items():
            found = fields.get(name)
            if found is None:
                kind = f"no {name}"
                problem = f"has no '{name}', which other steps have; save the same fields at each step"
            elif not _is_alike(name, found, normal):
                kind = f"form of {name}"
                problem = (
                    f"has '{name}' of {described(*found)}, other steps of {described(*normal)}; "
                    "fix or remove the episode"
                )
            else:
                continue
            by_kind.setdefault(kind, ((name,), {}))[1].update(dict.fromkeys(rows, problem))
        for name in fields:
            if _is_needed(name) and name not in usual:
                problem = f"has '{name}', which most steps lack: it will be ignored"
                by_kind.setdefault(f"odd {name}", ((), {}))[1].update(dict.fromkeys(rows, problem))

    def rows_with(name: str, dtype: np.dtype[Any]) -> PickledRows:
        gaps = {row for names, problems in by_kind.values() if name in names for row in problems}
        shape = (len(observations), *usual[name][1])
        return PickledRows(path, _state_of(path), name, shape, dtype, frozenset(gaps))

    return Observations(
        len(observations),
        rows_with(STATE, np.dtype(np.float32)) if _has_state(usual) else None,
        str(usual[STATE][0]) if _has_state(usual) else None,
        {
            camera: RgbRows.of(rows_with(IMAGE_PREFIX + camera, usual[IMAGE_PREFIX + camera][0]), form)
            for camera, form in forms.items()
        },
        (*others, *odd),
        tuple(faults),
        tuple(StepFaults(names, problems) for names, problems in by_kind.values()),
        is_pickled=True,
    )


def _is_needed(name: Any) -> bool:
    return is_image(name) or (isinstance(name, str) and name == STATE)


def _is_alike(name: str, form: Form, normal: Form) -> bool:
    """Whether a field is as usual. If the usual one is faulty, that is reported once and not for each step."""
    if name == STATE:
        return not _is_good_state(*normal) or (_is_good_state(*form) and form[1] == normal[1])
    return not isinstance(image_form(normal[1], normal[0], is_camera=True), ImageForm) or form == normal


# The layout of one observation ---------------------------------------------------------------------


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


def _layout_faults(fields: Fields, where: str) -> Iterator[str]:
    """What is wrong with an observation of these fields: sentences that begin with its place."""
    listed = ", ".join(ascii(name)[:40] for name in list(fields)[:8]) or "nothing"
    if STATE not in fields:
        yield f"{INVALID}{where} has no '{STATE}', but {listed}; save the robot's state so"
    if not any(is_image(name) for name in fields):
        yield f"{INVALID}{where} has no image, but {listed}; call them '{IMAGE_PREFIX}<camera>'"
    if STATE in fields and not _is_good_state(*fields[STATE]):
        yield f"{INVALID}{where} has a '{STATE}' of {described(*fields[STATE])}; it has to be (S,) float32"


def is_image(name: Any) -> bool:
    """Whether a field of this name is a camera's image."""
    return isinstance(name, str) and name.startswith(IMAGE_PREFIX) and name != IMAGE_PREFIX


def _has_state(fields: Fields) -> bool:
    return STATE in fields and _is_good_state(*fields[STATE])


def _is_good_state(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    return dtype.kind in "fiu" and len(shape) == 1 and shape[0] > 0


def described(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    return f"shape {shape} and type {dtype}"


# Rows ----------------------------------------------------------------------------------------------


def _state_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, state: tuple[int, int]) -> np.ndarray | dict[Any, np.ndarray]:
    """The content of a pickled observations.npy: an array (N,) of objects, or a dictionary of arrays.

    Loading takes 0.1 ms per step, so that each process keeps the last file.

    Raises:
        UserError: if it is neither, is damaged or holds anything but plain values.
    """
    content = load_pickled_npy(path)
    if content.ndim == 1:
        return content
    if content.ndim == 0 and isinstance(content.item(), dict):
        return {name: as_array(column) for name, column in content.item().items()}
    found = f"an array of shape {content.shape}" if content.ndim else type(content.item()).__name__
    raise UserError(
        f"{INVALID}{path} holds {found}; save an array of dictionaries, one for each step, or a dictionary of arrays"
    )


def as_array(value: Any) -> np.ndarray:
    """A value of an observation; a list of numbers becomes an array."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError):  # a ragged list
        return np.empty((), dtype=object)


@dataclass(frozen=True)
class PickledRows:
    """One field (N, …) of pickled observations, which each process loads for itself.

    Attributes:
        state: size and modification time that the file must still have.
        shape: (N, …).
        dtype: that values are converted to.
        gaps: rows without such a value, which read as zeros.
    """

    path: Path
    state: tuple[int, int]
    field: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    gaps: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if _state_of(self.path) != self.state:
            raise UserError(f"{self.path} was changed while it was read: try again when it is written")
        content = _loaded(self.path, self.state)
        with np.errstate(over="ignore"):  # becomes Inf, which is found
            if isinstance(content, dict):
                return content[self.field][rows].astype(self.dtype, copy=False)
            numbers = np.arange(len(self))[rows]
            values = np.zeros((*numbers.shape, *self.shape[1:]), self.dtype)
            for place, number in np.ndenumerate(numbers):
                if number not in self.gaps:
                    values[place] = as_array(content[number][self.field])
        return values


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
        some: list[np.ndarray] = []
        if form.is_float and len(whole):
            gaps = whole.gaps if isinstance(whole, PickledRows) else ()
            places = np.linspace(0, len(whole) - 1, _IMAGES_FOR_WHITE).astype(int).tolist()
            some = [whole[place] for place in places if place not in gaps]
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
