"""The guide's dataset: `observations.npy`, `actions.npy`, `rollout_length.npy` in one folder.

`observations.npy` comes in three forms: a structured array (the one that bimact writes: it needs no pickle
and maps into memory), a pickled object array of dictionaries, and a pickled dictionary of arrays. The pickled
forms are converted into the first one once. Fields are `image_<camera>` (H, W, 3) uint8 and `state` (S,)
float32; others are left out, with the reason. `metadata.json` beside them is optional.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bimact.data.cache import ArrayFolder, build_once, check_space, size_of
from bimact.data.episodes import Episodes
from bimact.data.formats.guide_observations import (
    IMAGE_PREFIX,
    LENGTHS,
    OBSERVATIONS,
    STATE,
    Found,
    Layout,
    PickledObservations,
    RgbRows,
    camera_forms,
    check_total,
    observation_dtype,
    rgb_notes,
    structured_fields,
)
from bimact.data.formats.raw_memmap import is_raw_memmap
from bimact.data.npy_rows import NpyRows
from bimact.data.safe_pickle import read_npy_header
from bimact.data.source import Camera, Column, Fault, Format, Source, SourceEpisode, Unusable
from bimact.errors import UserError, in_words
from bimact.files import refuse_pointer

__all__ = [
    "ACTIONS",
    "FORMAT",
    "IMAGE_PREFIX",
    "JOURNAL",
    "LENGTHS",
    "METADATA",
    "OBSERVATIONS",
    "observation_dtype",
]

ACTIONS, METADATA = "actions.npy", "metadata.json"
ACTION = "action"  # the column of a source
FILES = (OBSERVATIONS, ACTIONS, LENGTHS)
_VERSION = 5  # of converted observations: another number makes them anew
JOURNAL = "recording.json"  # of a recording that is under way


def is_guide_npy(path: Path) -> bool:
    """Whether a folder holds any of the format's files: opening it tells which others are missing."""
    return any((path / name).is_file() for name in (*FILES, JOURNAL)) and not is_raw_memmap(path)


def _converted(observations: Path, lengths: np.ndarray, cache_dir: Path | None) -> Path:
    """The folder with a structured array of pickled observations, and what was found in them."""

    def origin() -> list[Any]:
        status = observations.stat()
        return [status.st_size, status.st_mtime_ns, hashlib.sha256(lengths.tobytes()).hexdigest()[:12]]

    def make(folder: ArrayFolder) -> None:
        pickled = PickledObservations(observations, lengths)
        check_space(observations, folder.path.parent, size_of(pickled.arrays))
        try:
            folder.reserve(pickled.arrays)
            pickled.write(folder.unfinished)
            if origin() != before:
                raise UserError(f"{observations} was changed while it was converted: try again when it is written")
            folder.finish()
        finally:
            folder.discard()  # a conversion is not resumed

    before = origin()
    description = {
        "version": _VERSION,
        "dataset": str(observations.parent.resolve()),
        "file": observations.name,
        "origin": before,
    }
    return build_once(observations, cache_dir, "observations-", description, make)


@dataclass(frozen=True, kw_only=True)
class GuideSource(Source):
    """The guide's dataset as a source: its arrays, cut into episodes.

    Attributes:
        opened: its arrays, without episodes that have no steps.
    """

    opened: Episodes

    @classmethod
    def open(cls, path: Path, cache_dir: Path | None) -> GuideSource:
        """Open the guide's dataset; the pickled forms are converted first.

        Args:
            path: the dataset's folder.
            cache_dir: folder for converted copies; None: beside the dataset, or the user's cache folder.

        Raises:
            UserError: if files are missing or damaged, contradict each other or have another format; the sentence
                names the file and, where there is one, the step. Values are not looked at (see `bimact check`).
        """
        path = path.absolute()
        refuse_unfinished(path)
        for name in FILES:
            refuse_missing(path / name)
        lengths = open_lengths(path / LENGTHS)
        for problem in negative_lengths(lengths).values():
            raise UserError(f"{path / LENGTHS}: {problem}")
        actions = open_actions(path / ACTIONS)
        check_total(lengths, len(actions), path / ACTIONS)
        observations = path / OBSERVATIONS
        found: Found | None = None
        if read_npy_header(observations).is_pickled:
            # What is wrong with its observations is told by episode.
            copy = _converted(observations, lengths, cache_dir)
            observations = copy / OBSERVATIONS
            found = Found.read(copy)
        records = open_records(observations)
        check_total(lengths, len(records), path / OBSERVATIONS)  # they may have changed since a copy was made
        fields = structured_fields(records.dtype, path / OBSERVATIONS)
        if found is None:  # else it was looked at when it was converted
            layout = Layout.of_fields(fields, f"{path / OBSERVATIONS}: each observation")
            found = Found(left_out=layout.left_out, state_dtype=str(fields[STATE][0]))
        forms, _ = camera_forms(fields)
        state = NpyRows(observations, STATE, np.float32)
        opened = Episodes(
            path=path,
            lengths=lengths,
            images={
                camera: RgbRows.of(NpyRows(observations, IMAGE_PREFIX + camera), form) for camera, form in forms.items()
            },
            state=state,
            actions=actions,
            **read_metadata(path / METADATA, actions.shape[1], state.shape[1]),
        )
        dtypes = {STATE: found.state_dtype, ACTION: str(actions.array.dtype)}
        return dataclasses.replace(cls.of(opened, found), read_as_float32=dtypes)

    @classmethod
    def of(cls, opened: Episodes, found: Found) -> GuideSource:
        """Arrays that are open already, and what else was found in the observations."""
        numbers = np.flatnonzero(opened.lengths > 0).tolist()

        def faults_of(field: str) -> dict[int, Fault]:
            reasons = {place: found.faults.get(number, {}).get(field) for place, number in enumerate(numbers)}
            return {place: Fault(reason, "damaged") for place, reason in reasons.items() if reason is not None}

        empty = [number for number, length in enumerate(opened.lengths.tolist()) if not length]
        unusable = [Unusable(number, f"episode {number}", "it has no steps", is_missing=True) for number in empty]
        return cls(
            path=opened.path,
            format=FORMAT.name,
            episodes=tuple(
                SourceEpisode(f"episode {number}", int(opened.lengths[number]), FILES, opened.task, number)
                for number in numbers
            ),
            cameras={name: Camera(*rows.shape[1:3]) for name, rows in opened.images.items()},
            columns={
                STATE: Column(opened.state.shape[1], opened.state_names),
                ACTION: Column(opened.actions.shape[1], opened.joint_names),
            },
            state_keys=(STATE,),
            action_keys=(ACTION,),
            fps=opened.fps,
            files=tuple(name for name in (*FILES, METADATA) if (opened.path / name).exists()),
            unusable=tuple(unusable),
            left_out=found.left_out,
            camera_forms={name: faults_of(IMAGE_PREFIX + name) for name in opened.images},
            column_forms={STATE: faults_of(STATE)},
            notes=(*found.notes, *rgb_notes(opened.images)),
            metadata=opened.metadata,
            opened=dataclasses.replace(opened, lengths=opened.lengths[opened.lengths > 0]),
        )

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        columns = {STATE: self.opened.state, ACTION: self.opened.actions}
        return {key: columns[key][self.opened.rows_of(episode)] for key in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        start = int(self.opened.starts[episode])
        rows = self.opened.images[camera]
        return (np.asarray(rows[start + step]) for step in steps)

    def mapped(self) -> Episodes:
        return self.opened


FORMAT = Format(
    name="the guide's observations.npy, actions.npy, rollout_length.npy",
    recognizes=is_guide_npy,
    open=GuideSource.open,
    in_process=True,
)


# The files -----------------------------------------------------------------------------------------


def refuse_missing(path: Path) -> None:
    """See that one of the dataset's files is there."""
    refuse_pointer(path)
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}: a dataset has {OBSERVATIONS}, {ACTIONS} and {LENGTHS}")


def refuse_unfinished(path: Path) -> None:
    """See that no recording is under way in a folder."""
    journal = path / JOURNAL
    if not journal.exists():
        return
    try:
        content = json.loads(journal.read_text())
        progress = f": {len(content['episodes'])} of {content['settings']['episodes']} episodes are done"
    except (OSError, ValueError, LookupError, TypeError):
        progress = ""
    raise UserError(
        f"{path} holds an unfinished recording{progress}; run the same `bimact record` command again to finish it"
    )


def open_array(path: Path) -> np.ndarray:
    """The memory map of a .npy file without Python objects, once it is known to be whole."""
    header = read_npy_header(path)
    if header.is_pickled:
        raise UserError(f"{path} holds Python objects instead of numbers: save it as a plain array")
    promised = header.offset + math.prod(header.shape) * header.dtype.itemsize
    size = path.stat().st_size
    if size < promised:
        raise UserError(f"{path} is cut off: it has {size} of {promised} bytes; copy or record it again")
    try:
        return NpyRows(path).array
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {path}: {in_words(error)}") from None


def open_lengths(path: Path) -> np.ndarray:
    """(E,) int64 steps of each episode, as they stand in the file: some may be 0, or below it.

    Raises:
        UserError: if the file holds anything else.
    """
    lengths = open_array(path)
    if lengths.ndim != 1:
        raise UserError(f"{path} has shape {lengths.shape}: it has to be (episodes,), one length an episode")
    if lengths.dtype.kind not in "iu":
        raise UserError(f"{path} holds {lengths.dtype}: lengths have to be integers, save them as int64")
    if len(lengths) == 0:
        raise UserError(f"{path} lists no episodes: record at least one")
    if not lengths.any():
        raise UserError(f"{path} lists no episode with a step: record at least one")
    # int64 could overflow in the sum, Python's integers do not.
    if sum(abs(length) for length in lengths.tolist()) > np.iinfo(np.int64).max:
        raise UserError(f"{path} holds lengths that no dataset has: it is damaged")
    return np.array(lengths, dtype=np.int64)


def negative_lengths(lengths: np.ndarray) -> dict[int, str]:
    """Episodes with fewer than no steps → what is wrong with each."""
    return {
        int(
            episode
        ): f"episode {episode} has {lengths[episode]} steps; leave empty episodes out, or copy the file again"
        for episode in np.flatnonzero(lengths < 0)
    }


def open_actions(path: Path) -> NpyRows:
    """(N, A) actions, read as float32.

    Raises:
        UserError: if the file holds anything else.
    """
    actions = open_array(path)
    if actions.ndim != 2 or actions.shape[1] == 0:
        raise UserError(f"{path} has shape {actions.shape}: it has to be (steps, size of an action)")
    if actions.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {actions.dtype}: actions have to be numbers, save them as float32")
    return NpyRows(path, dtype=np.float32)


def open_records(path: Path) -> NpyRows:
    """(N,) observations in a file without Python objects.

    Raises:
        UserError: if the file is damaged, or has another shape.
    """
    observations = open_array(path)
    if observations.ndim != 1:
        raise UserError(
            f"Invalid observation format: {path} has shape {observations.shape}; "
            "save a structured array (steps,), an array of dictionaries or a dictionary of arrays"
        )
    return NpyRows(path)


def read_metadata(path: Path, action_dim: int | None, state_dim: int | None = None) -> dict[str, Any]:
    """What `Episodes` takes of metadata.json.

    Args:
        action_dim: what the number of joint names is compared with; None: nothing.
        state_dim: what the number of state names is compared with, likewise.

    Raises:
        UserError: if it is no JSON or says what cannot be.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no readable JSON ({in_words(error)}): correct or remove it") from None
    if not isinstance(content, dict):
        raise UserError(f'{path} has to hold one JSON object, such as {{"fps": 50}}: correct or remove it')
    fps, task = content.pop("fps", None), content.pop("task", None)
    if fps is not None and (type(fps) not in (int, float) or not 0 < fps < 1e6):
        raise UserError(f"{path}: fps is {fps!r}, it has to be a number above 0")
    names: dict[str, tuple[str, ...] | None] = {}
    for key, what, dim in (("joint_names", "an action", action_dim), ("state_names", "a state", state_dim)):
        found = content.pop(key, None)
        if found is not None:
            if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
                raise UserError(f"{path}: {key} has to be a list of names")
            if dim is not None and len(found) != dim:
                raise UserError(f"{path}: {key} has {len(found)} names, {what} has {dim} values")
        names[key] = None if found is None else tuple(found)
    if task is not None and not isinstance(task, str):
        raise UserError(f"{path}: task is {task!r}, it has to be text")
    return {
        "fps": None if fps is None else float(fps),
        **names,
        "task": task,
        "metadata": content,
    }
