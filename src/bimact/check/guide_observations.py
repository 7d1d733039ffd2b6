"""A tolerant reader of `observations.npy` in each of its forms: every faulty step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bimact.check.findings import Findings
from bimact.data.episodes import Rows
from bimact.data.formats.guide_npy import open_records
from bimact.data.formats.guide_observations import (
    IMAGE_PREFIX,
    INVALID,
    OBSERVATIONS,
    STATE,
    Fields,
    RgbRows,
    as_array,
    camera_forms,
    column_arrays,
    column_fields,
    described,
    even_cameras,
    invalid,
    is_good_image,
    is_good_state,
    is_image,
    layout_problems,
    load_observations,
    structured_fields,
)
from bimact.data.npy_rows import NpyRows
from bimact.data.safe_pickle import read_npy_header
from bimact.data.source import LeftOut
from bimact.progress import progress_bar


@dataclass(frozen=True)
class ReadObservations:
    """What can be read of the observations.

    Attributes:
        steps: how many there are.
        state: (N, S) float32, zeros at steps without a state of that size; None: there is none.
        images: camera → (N, H, W, 3) uint8, black at steps without an image of that size.
        left_out: fields that are neither.
    """

    steps: int
    state: Rows | None
    images: Mapping[str, Rows]
    left_out: tuple[LeftOut, ...]


def inspect_observations(path: Path, findings: Findings) -> ReadObservations:
    """Find the faults in the form of the observations.

    Args:
        path: observations.npy.
        findings: takes the faults; its lengths say which episode a step belongs to.

    Raises:
        UserError: if nothing in the file can be read.
    """
    if not read_npy_header(path).is_pickled:
        return _inspect_records(path, findings)
    content = load_observations(path)
    if isinstance(content, dict):
        return _inspect_columns(content, findings)
    return _inspect_dictionaries(content, findings)


def note_conversion(file: str, what: str, dtype: np.dtype[Any], findings: Findings) -> None:
    """Report numbers that training converts to another dtype."""
    if dtype != np.float32:
        sentence = f"{file} holds {what} of type {dtype}: training converts them to float32, so save them as that"
        findings.add("dtype", file, sentence)


def _find_layout_faults(fields: Fields, where: str, findings: Findings) -> None:
    for problem in layout_problems(fields):
        findings.add("wrong-format", OBSERVATIONS, str(invalid(where, problem)))
    if STATE in fields and is_good_state(*fields[STATE]):
        note_conversion(OBSERVATIONS, "states", fields[STATE][0], findings)


def _inspect_records(path: Path, findings: Findings) -> ReadObservations:
    """A structured array: all steps have the same type."""
    records = open_records(path)
    fields = structured_fields(records.dtype, path)
    _find_layout_faults(fields, f"{OBSERVATIONS}: each observation", findings)
    forms, left_out = camera_forms(fields)
    return ReadObservations(
        len(records),
        NpyRows(path, STATE, np.float32) if _has_state(fields) else None,
        {camera: RgbRows.of(NpyRows(path, IMAGE_PREFIX + camera), form) for camera, form in forms.items()},
        left_out,
    )


def _has_state(fields: Fields) -> bool:
    return STATE in fields and is_good_state(*fields[STATE])


def _inspect_columns(content: dict[Any, Any], findings: Findings) -> ReadObservations:
    """A dictionary of arrays over all steps."""
    where = f"the dictionary in {OBSERVATIONS}"
    arrays, no_arrays = column_arrays(content)
    fields = column_fields(arrays)
    _find_layout_faults(fields, where, findings)
    forms, left_out = camera_forms(fields)
    uneven: tuple[LeftOut, ...] = ()
    if STATE in arrays:
        forms, uneven = even_cameras(forms, arrays)
    images = [arrays[IMAGE_PREFIX + camera] for camera in forms]
    return ReadObservations(
        len(next(iter([arrays[STATE]] if STATE in arrays else images), ())),
        _as_float32(arrays[STATE]) if _has_state(fields) else None,
        {camera: RgbRows.of(arrays[IMAGE_PREFIX + camera], form) for camera, form in forms.items()},
        (*left_out, *uneven, *no_arrays),
    )


def _is_needed(name: Any) -> bool:
    return is_image(name) or (isinstance(name, str) and name == STATE)


def _as_float32(state: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes Inf, which is found
        return state.astype(np.float32)


# An array of dictionaries --------------------------------------------------------------------------

# What one step holds of state and images: name, type and shape; or the name of its type if it is not a dictionary.
_Content: TypeAlias = "tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...] | str"


def _inspect_dictionaries(observations: np.ndarray, findings: Findings) -> ReadObservations:
    """An array of dictionaries: those that differ from most of them are faulty.

    The conversion goes by most of them too.
    """
    rows_of = _rows_by_content(observations)
    usual = _usual_fields(rows_of)
    first = next((step for step in observations if isinstance(step, dict)), None)
    if first is not None:
        # Of other fields, only the names are reported.
        others = {name: (np.dtype(object), ()) for name in first if not _is_needed(name)}
        of = "each" if len(rows_of) == 1 else "the usual"
        _find_layout_faults({**usual, **others}, f"{OBSERVATIONS}: {of} observation", findings)
    problems: dict[str, dict[int, str]] = defaultdict(dict)  # by their kind, then by row
    for content, rows in rows_of.items():
        for kind, problem in _deviations(content, usual):
            problems[kind].update(dict.fromkeys(rows, problem))
        _note_unusual(content, rows, usual, findings)
    for of_kind in problems.values():
        findings.add_steps("wrong-format", OBSERVATIONS, of_kind, heading=INVALID)
    # Of other fields only the names are known.
    forms, left_out = camera_forms(
        {**usual, **({name: (np.dtype(object), ()) for name in first or {} if not _is_needed(name)})}
    )
    images = {
        camera: StepImages(observations, IMAGE_PREFIX + camera, *usual[IMAGE_PREFIX + camera]) for camera in forms
    }
    return ReadObservations(
        len(observations),
        _stacked_states(observations, usual[STATE][1]) if _has_state(usual) else None,
        {camera: RgbRows.of(rows, forms[camera]) for camera, rows in images.items()},
        left_out,
    )


def _rows_by_content(observations: np.ndarray) -> dict[_Content, list[int]]:
    """What steps hold → the rows of those that hold it; one entry, if all is well."""
    rows_of: dict[_Content, list[int]] = defaultdict(list)
    with progress_bar(f"reading {OBSERVATIONS}", len(observations)) as progress:
        for row, observation in enumerate(observations):
            rows_of[_content(observation)].append(row)
            progress.advance()
    return rows_of


def _content(observation: Any) -> _Content:
    if not isinstance(observation, dict):
        return type(observation).__name__
    arrays = ((name, as_array(value)) for name, value in observation.items() if _is_needed(name))
    return tuple((name, array.dtype, array.shape) for name, array in arrays)


def _usual_fields(rows_of: Mapping[_Content, list[int]]) -> Fields:
    """The fields that at least half of the dictionaries have, in the type and shape that is most frequent."""
    forms: dict[str, Counter[tuple[np.dtype[Any], tuple[int, ...]]]] = defaultdict(Counter)
    total = 0
    for content, rows in rows_of.items():
        if isinstance(content, str):
            continue
        total += len(rows)
        for name, dtype, shape in content:
            forms[name][dtype, shape] += len(rows)
    return {name: of.most_common(1)[0][0] for name, of in forms.items() if 2 * of.total() >= total}


def _deviations(content: _Content, usual: Fields) -> Iterator[tuple[str, str]]:
    """What is wrong with steps: kind of the problem, end of a sentence that begins with the place."""
    if isinstance(content, str):
        yield "type", f"is no dictionary but {content}; save a dictionary for each step"
        return
    fields = {name: (dtype, shape) for name, dtype, shape in content}
    for name, normal in usual.items():
        if name not in fields:
            yield f"no {name}", f"has no '{name}', which other steps have; save the same fields at each step"
        elif not _is_alike(name, fields[name], normal):
            found, expected = described(*fields[name]), described(*normal)
            yield f"form of {name}", f"has '{name}' of {found}, other steps of {expected}; fix or remove the episode"


_Form: TypeAlias = "tuple[np.dtype[Any], tuple[int, ...]]"


def _is_alike(name: str, form: _Form, normal: _Form) -> bool:
    """Whether a field is as usual. If the usual one is faulty, that is reported once and not for each step."""
    if name == STATE:
        return not is_good_state(*normal) or (is_good_state(*form) and form[1] == normal[1])
    return not is_good_image(*normal) or form == normal


def _note_unusual(content: _Content, rows: list[int], usual: Fields, findings: Findings) -> None:
    """Fields that most steps lack, which the conversion ignores."""
    for name, *_ in () if isinstance(content, str) else content:
        if name not in usual:
            problem = f"has '{name}', which most steps lack: it will be ignored"
            findings.add_steps("ignored-field", OBSERVATIONS, dict.fromkeys(rows, problem))


def _stacked_states(observations: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(N, S) float32; zeros where a step has no state of that shape."""
    states = np.zeros((len(observations), *shape), np.float32)
    for row, observation in enumerate(observations):
        state = as_array(observation.get(STATE)) if isinstance(observation, dict) else None
        if state is not None and is_good_state(state.dtype, state.shape) and state.shape == shape:
            states[row] = _as_float32(state)
    return states


class StepImages:
    """One camera's images (N, …) in an array of dictionaries; zeros where a step has none of that form."""

    def __init__(self, observations: np.ndarray, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.shape = (len(observations), *shape)
        self.dtype = dtype
        self._observations = observations
        self._name = name

    def __len__(self) -> int:
        return len(self._observations)

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.arange(len(self))[rows]
        images = np.zeros((*numbers.shape, *self.shape[1:]), self.dtype)
        for place, number in np.ndenumerate(numbers):
            observation = self._observations[number]
            image = as_array(observation.get(self._name)) if isinstance(observation, dict) else None
            if image is not None and image.dtype == self.dtype and image.shape == self.shape[1:]:
                images[place] = image
        return images
