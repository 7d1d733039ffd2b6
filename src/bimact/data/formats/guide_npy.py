"""The guide's dataset: `observations.npy`, `actions.npy`, `rollout_length.npy` in one folder.

`observations.npy` comes in three forms: a structured array (the one that bimact writes: it needs no pickle
and maps into memory), a pickled object array of dictionaries, and a pickled dictionary of arrays. The pickled
forms are decoded once for training, as other formats are. Fields are `image_<camera>` (H, W, 3) uint8 and `state` (S,)
float32; others are left out, with the reason. `metadata.json` beside them is optional.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bimact.data.episodes import Episodes
from bimact.data.formats.guide_observations import (
    IMAGE_PREFIX,
    INVALID,
    LENGTHS,
    OBSERVATIONS,
    STATE,
    Observations,
    StepFaults,
    observation_dtype,
    read_observations,
    rgb_notes,
)
from bimact.data.formats.raw_memmap import is_raw_memmap
from bimact.data.npy_rows import NpyRows, open_array
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
JOURNAL = "recording.json"  # of a recording that is under way


def is_guide_npy(path: Path) -> bool:
    """Whether a folder holds any of the format's files: opening it tells which others are missing."""
    return any((path / name).is_file() for name in (*FILES, JOURNAL)) and not is_raw_memmap(path)


@dataclass(frozen=True)
class FileFault:
    """A fault of a file as a whole, or of an episode in it.

    Attributes:
        kind: "unreadable"; "length-mismatch": it has another number of steps than the episodes; "wrong-format": its
            observations have no usable layout; "dtype": training converts its numbers to float32.
        file: its name.
        sentence: names the file by its path.
    """

    kind: Literal["unreadable", "length-mismatch", "wrong-format", "dtype"]
    file: str
    sentence: str
    episode: int | None = None


@dataclass(frozen=True)
class GuideFiles:
    """All faults of the guide's files, and what can be read in spite of them.

    Attributes:
        path: the folder.
        faults: in the order in which the files are read.
        lengths: (E,) int64 as in the file; None: it cannot be read.
        observations: None: nothing of them can be read.
        actions: (N, A) float32.
        metadata: as `Episodes` takes it.
    """

    path: Path
    faults: tuple[FileFault, ...]
    lengths: np.ndarray | None
    observations: Observations | None
    actions: NpyRows | None
    metadata: Mapping[str, Any]

    @property
    def step_faults(self) -> tuple[StepFaults, ...]:
        """Steps with a faulty observation."""
        return () if self.observations is None else self.observations.step_faults

    def as_source(self) -> GuideSource:
        """The dataset.

        Raises:
            UserError: the first fault that leaves it without lengths, states or actions that fit together.
        """
        for fault in self.faults:
            if fault.kind != "dtype":
                raise UserError(fault.sentence)
        lengths, observations, actions = self.lengths, self.observations, self.actions
        assert lengths is not None and observations is not None and actions is not None
        if observations.state is None:  # not one step is a dictionary
            row, problem = next(iter(self.step_faults[0].problems.items()))
            raise UserError(f"{INVALID}step {row} of {self.path / OBSERVATIONS} {problem}")
        opened = Episodes(self.path, lengths, observations.images, observations.state, actions, **self.metadata)
        numbers = np.flatnonzero(lengths > 0).tolist()
        place_of = {number: place for place, number in enumerate(numbers)}
        ends = np.cumsum(lengths)
        column_forms: dict[int, Fault] = {}
        camera_forms: dict[str, dict[int, Fault]] = {camera: {} for camera in observations.images}
        for faults in observations.step_faults:
            for row in sorted(faults.problems):
                episode = int(np.searchsorted(ends, row, side="right"))
                step = row - int(ends[episode] - lengths[episode])
                reason = f"is damaged: {INVALID}step {step} {faults.problems[row]}"
                fault_here = Fault(reason, "damaged")
                for field in faults.fields:
                    of_episodes = column_forms if field == STATE else camera_forms.get(field.removeprefix(IMAGE_PREFIX))
                    if of_episodes is not None:
                        of_episodes.setdefault(place_of[episode], fault_here)
        empty = [number for number, length in enumerate(lengths.tolist()) if not length]
        return GuideSource(
            path=self.path,
            format=FORMAT.name,
            episodes=tuple(
                SourceEpisode(f"episode {number}", int(lengths[number]), FILES, opened.task, number)
                for number in numbers
            ),
            cameras={name: Camera(*rows.shape[1:3]) for name, rows in opened.images.items()},
            columns={
                STATE: Column(opened.state.shape[1], opened.state_names),
                ACTION: Column(opened.actions.shape[1], opened.joint_names),
            },
            state_keys=(STATE,),
            action_keys=(ACTION,),
            read_as_float32={STATE: observations.state_dtype or "float32", ACTION: str(actions.array.dtype)},
            fps=opened.fps,
            files=tuple(name for name in (*FILES, METADATA) if (self.path / name).exists()),
            unusable=tuple(Unusable(n, f"episode {n}", "it has no steps", is_missing=True) for n in empty),
            left_out=observations.left_out,
            camera_forms=camera_forms,
            column_forms={STATE: column_forms},
            notes=rgb_notes(opened.images),
            metadata=opened.metadata,
            opened=dataclasses.replace(opened, lengths=lengths[lengths > 0]),
            is_pickled=observations.is_pickled,
        )


def read_guide_files(path: Path) -> GuideFiles:
    """Read the guide's files as far as they can be read; the values of states, actions and images are not looked at.

    Args:
        path: the dataset's folder, absolute.
    """
    faults: list[FileFault] = []

    @contextmanager
    def catching(kind: Literal["unreadable", "length-mismatch"], file: str) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            faults.append(FileFault(kind, file, str(error)))

    def compare_total(steps: int, file: str) -> None:
        total = None if lengths is None else int(lengths.sum())
        if total is not None and total != steps:
            sentence = (
                f"Rollout length mismatch: {LENGTHS} adds up to {total} steps, {file} has {steps} "
                f"(in {path}); write all files from the same recording"
            )
            faults.append(FileFault("length-mismatch", file, sentence))

    def note_conversion(file: str, what: str, dtype: str) -> None:
        if dtype != "float32":
            sentence = (
                f"{path / file} holds {what} of type {dtype}: training converts them to float32, so save them as that"
            )
            faults.append(FileFault("dtype", file, sentence))

    with catching("unreadable", JOURNAL):
        refuse_unfinished(path)
    is_unfinished = bool(faults)  # then it has not all of its files yet
    present: list[str] = []
    for name in FILES:
        with catching("unreadable", name):
            refuse_pointer(path / name)
            if (path / name).is_file():
                present.append(name)
            elif not is_unfinished:
                raise UserError(f"{path} has no {name}: a dataset has {OBSERVATIONS}, {ACTIONS} and {LENGTHS}")

    lengths: np.ndarray | None = None
    actions: NpyRows | None = None
    observations: Observations | None = None
    if LENGTHS in present:
        with catching("unreadable", LENGTHS):
            lengths = open_lengths(path / LENGTHS)
            for episode in np.flatnonzero(lengths < 0).tolist():
                problem = (
                    f"episode {episode} has {lengths[episode]} steps; leave empty episodes out, or copy the file again"
                )
                faults.append(FileFault("unreadable", LENGTHS, f"{path / LENGTHS}: {problem}", episode))
    if ACTIONS in present:
        with catching("unreadable", ACTIONS):
            actions = open_actions(path / ACTIONS)
            note_conversion(ACTIONS, "values", str(actions.array.dtype))
            compare_total(len(actions), ACTIONS)
    if OBSERVATIONS in present:
        with catching("unreadable", OBSERVATIONS):
            observations = read_observations(path / OBSERVATIONS)
            faults += [FileFault("wrong-format", OBSERVATIONS, sentence) for sentence in observations.faults]
            if observations.state_dtype is not None:
                note_conversion(OBSERVATIONS, "states", observations.state_dtype)
            compare_total(observations.steps, OBSERVATIONS)
    metadata: Mapping[str, Any] = {}
    with catching("unreadable", METADATA):
        state = None if observations is None else observations.state
        sizes = [None if rows is None else rows.shape[1] for rows in (actions, state)]
        metadata = read_metadata(path / METADATA, *sizes)
    return GuideFiles(path, tuple(faults), lengths, observations, actions, metadata)


@dataclass(frozen=True, kw_only=True)
class GuideSource(Source):
    """The guide's dataset as a source: its arrays, cut into episodes.

    Attributes:
        opened: its arrays, without episodes that have no steps.
        is_pickled: observations have to be decoded: they cannot be mapped into memory.
    """

    opened: Episodes
    is_pickled: bool

    @classmethod
    def open(cls, path: Path, cache_dir: Path | None) -> GuideSource:
        """Open the guide's dataset. Values are not looked at (see `bimact check`).

        Args:
            path: the dataset's folder.
            cache_dir: not used: no file is converted here.

        Raises:
            UserError: if files are missing or damaged, contradict each other or have another format; the sentence
                names the file and, where there is one, the step.
        """
        return read_guide_files(path.absolute()).as_source()

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        columns = {STATE: self.opened.state, ACTION: self.opened.actions}
        return {key: columns[key][self.opened.rows_of(episode)] for key in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        start = int(self.opened.starts[episode])
        rows = self.opened.images[camera]
        return (np.asarray(rows[start + step]) for step in steps)

    def mapped(self) -> Episodes | None:
        return None if self.is_pickled else self.opened


FORMAT = Format(
    name="the guide's observations.npy, actions.npy, rollout_length.npy",
    recognizes=is_guide_npy,
    open=GuideSource.open,
    in_process=True,
)


# The files -----------------------------------------------------------------------------------------


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
