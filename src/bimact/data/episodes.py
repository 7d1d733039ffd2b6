"""The view of a dataset that training and evaluation use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bimact.errors import UserError, in_quotes


class Rows(Protocol):
    """Something that is indexed like an array by an array of row numbers: a memory map, or a column of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


def identity_of(rows: Rows) -> dict[str, Any] | None:
    """Which rows these are: "file", its "state" and what of it, for JSON; None if they come from no file."""
    identity: dict[str, Any] | None = getattr(rows, "identity", None)
    return identity


@dataclass(frozen=True)
class Episodes:
    """Demonstrations, one after the other along the first axis of each array.

    All quantities are in the robot's own units. Images stay on disk until rows are indexed.
    """

    path: Path
    lengths: np.ndarray  # (E,) int64: steps of each episode
    images: Mapping[str, Rows]  # camera → (N, H, W, 3) uint8 RGB, N = lengths.sum()
    state: Rows  # (N, S) float32
    actions: Rows  # (N, A) float32
    fps: float | None = None
    joint_names: tuple[str, ...] | None = None  # of the actions
    state_names: tuple[str, ...] | None = None
    task: str | None = None
    episode_names: tuple[str, ...] | None = None  # what the files call them; None: by their number
    camera_sizes: Mapping[str, tuple[int, int]] | None = None  # (H, W) in the files; None: those of `images`
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str | None, ...] | None = None  # of each episode; None: not told
    task_numbers: np.ndarray | None = None  # (N,) int64: of each step, for a policy that is told its task
    depth_cameras: tuple[str, ...] = ()  # those of `images` that carry distances, as data/depth.py says
    weights: np.ndarray | None = None  # (N,) float64: how often the sample at each step is drawn; None: equally often
    # camera → (N, rows, columns, E): the tokens that a frozen encoder makes of its images, in float32, float16 or,
    # as uint16, the bits of bfloat16. Windows have them in the images' stead.
    features: Mapping[str, Rows] = field(default_factory=dict)
    views: tuple[Mapping[str, Rows], ...] = ()  # the same of augmented images, for training alone
    parts: Mapping[str, Episodes] = field(default_factory=dict)  # of `joined`: the datasets, by name, in their order

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.images)

    @property
    def recorded_sizes(self) -> dict[str, tuple[int, int]]:
        """camera → (H, W) as recorded; `images` may hold smaller ones."""
        return {name: (rows.shape[1], rows.shape[2]) for name, rows in self.images.items()} | dict(
            self.camera_sizes or {}
        )

    @property
    def num_steps(self) -> int:
        return int(self.lengths.sum())

    @property
    def fingerprint(self) -> str:
        """Which demonstrations these are, by their lengths and the sizes of what they hold."""
        sizes = (self.state.shape, self.actions.shape, {name: rows.shape for name, rows in self.images.items()})
        known = hashlib.sha256(repr((self.lengths.tolist(), sizes)).encode())
        if self.weights is not None:
            known.update(self.weights.tobytes())
        return known.hexdigest()

    @property
    def starts(self) -> np.ndarray:
        """(E,) int64: the row of each episode's first step."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    @property
    def episodes_of_parts(self) -> dict[str, np.ndarray]:
        """Name of each dataset of a mixture → the numbers of its episodes here; empty for a single dataset."""
        ends = np.cumsum([len(part.lengths) for part in self.parts.values()])
        return {name: np.arange(end - len(part.lengths), end) for (name, part), end in zip(self.parts.items(), ends)}

    @classmethod
    def joined(cls, parts: Mapping[str, Episodes]) -> Episodes:
        """Datasets, given by name, one after the other: the same cameras and sizes in all; nothing is copied.

        Joints and frame rate are those of the first dataset that tells them.
        """
        all_parts = list(parts.values())
        first = all_parts[0]
        tasks = {part.task for part in all_parts}
        is_weighted = any(part.weights is not None for part in all_parts)

        def told(values: Iterable[Any]) -> Any:
            return next((value for value in values if value is not None), None)

        def rows(name: str, camera: str | None = None) -> Rows:
            values = [getattr(part, name) for part in all_parts]
            return JoinedRows(tuple(values if camera is None else [of_cameras[camera] for of_cameras in values]))

        return cls(
            path=Path(" + ".join(str(part.path) for part in all_parts)),
            lengths=np.concatenate([part.lengths for part in all_parts]),
            images={camera: rows("images", camera) for camera in first.images},
            state=rows("state"),
            actions=rows("actions"),
            fps=told(part.fps for part in all_parts),
            joint_names=told(part.joint_names for part in all_parts),
            state_names=told(part.state_names for part in all_parts),
            task=tasks.pop() if len(tasks) == 1 else None,
            episode_names=tuple(
                f"{name}/{f'episode {number}' if part.episode_names is None else part.episode_names[number]}"
                for name, part in parts.items()
                for number in range(len(part.lengths))
            ),
            camera_sizes=first.recorded_sizes,
            depth_cameras=first.depth_cameras,
            weights=np.concatenate(
                [np.ones(part.num_steps) if part.weights is None else part.weights for part in all_parts]
            )
            if is_weighted
            else None,
            tasks=tuple(task for part in all_parts for task in part.tasks or (None,) * len(part.lengths)),
            features={camera: rows("features", camera) for camera in first.features},
            views=tuple(
                {camera: JoinedRows(tuple(part.views[number][camera] for part in all_parts)) for camera in view}
                for number, view in enumerate(first.views)
            ),
            parts=dict(parts),
        )

    def with_task_numbers(self, tasks: Sequence[str]) -> Episodes:
        """The same, where windows have the number of their task among `tasks`.

        Raises:
            UserError: if an episode has no task, or another one.
        """
        numbers = []
        for episode, task in enumerate(self.tasks or (None,) * len(self.lengths)):
            name = f"episode {episode}" if self.episode_names is None else self.episode_names[episode]
            if task is None:
                raise UserError(
                    f"{self.path}: {name} has no task, which task_conditioning needs: give the dataset one, as in "
                    "datasets: [{path: DATASET, task: pour tea}], or leave the episode out"
                )
            if task not in tasks:
                known = f"the policy knows {in_quotes(tasks)}"
                raise UserError(f"{self.path}: {name} has the task '{task}', which is new: {known}")
            numbers.append(list(tasks).index(task))
        return replace(self, task_numbers=np.repeat(np.array(numbers, dtype=np.int64), self.lengths))

    def with_features(self, features: Mapping[str, Rows], views: Sequence[Mapping[str, Rows]] = ()) -> Episodes:
        return replace(self, features=features, views=tuple(views))

    def only(self, numbers: Sequence[int]) -> Episodes:
        """Some of the episodes, in their order; nothing is copied."""
        if list(numbers) == list(range(len(self.lengths))):
            return self
        slices = [self.rows_of(number) for number in numbers]
        rows = np.concatenate([np.arange(0), *(np.arange(part.start, part.stop) for part in slices)])

        def part(whole: Rows) -> Rows:
            return SelectedRows(whole, rows, None)

        names = self.episode_names
        return replace(
            self,
            lengths=self.lengths[list(numbers)],
            images={name: part(images) for name, images in self.images.items()},
            state=part(self.state),
            actions=part(self.actions),
            tasks=None if self.tasks is None else tuple(self.tasks[number] for number in numbers),
            task_numbers=None if self.task_numbers is None else self.task_numbers[rows],
            weights=None if self.weights is None else self.weights[rows],
            episode_names=None if names is None else tuple(names[number] for number in numbers),
        )

    def rows_of(self, episode: int) -> slice:
        start = int(self.starts[episode])
        return slice(start, start + int(self.lengths[episode]))


@dataclass(frozen=True)
class SelectedRows:
    """Some rows and columns of other rows, chosen when they are read.

    Attributes:
        whole: (M, …).
        rows: (N,) int64; None: all.
        columns: of the second axis; None: all.
    """

    whole: Rows
    rows: np.ndarray | None
    columns: tuple[int, ...] | None

    @classmethod
    def of(cls, whole: Rows, rows: np.ndarray | None, columns: tuple[int, ...] | None) -> Rows:
        """`whole` itself if all of it is chosen."""
        if columns == (tuple(range(whole.shape[1])) if len(whole.shape) > 1 else None):
            columns = None
        return whole if rows is None and columns is None else cls(whole, rows, columns)

    @property
    def shape(self) -> tuple[int, ...]:
        steps, *rest = self.whole.shape
        if self.columns is not None:
            rest[0] = len(self.columns)
        return (steps if self.rows is None else len(self.rows), *rest)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.whole.dtype

    @property
    def identity(self) -> dict[str, Any] | None:
        whole = identity_of(self.whole)
        rows = None if self.rows is None else hashlib.sha256(self.rows.tobytes()).hexdigest()
        return None if whole is None else {**whole, "rows": rows, "columns": self.columns}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = self.whole[rows if self.rows is None else self.rows[rows]]
        return chosen if self.columns is None else chosen[..., list(self.columns)]


@dataclass(frozen=True)
class JoinedRows:
    """Rows of several datasets, one after the other; all of one shape but for their number.

    Attributes:
        parts: of each dataset (N, …).
    """

    parts: tuple[Rows, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(*(part.dtype for part in self.parts))

    @property
    def identity(self) -> dict[str, Any] | None:
        found = [identity_of(part) for part in self.parts]
        return None if None in found else {"parts": found}

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        wanted = np.asarray(rows)
        ends = np.cumsum([len(part) for part in self.parts])
        owners = np.searchsorted(ends, wanted, side="right")
        found = np.empty((*wanted.shape, *self.shape[1:]), self.dtype)
        for number in np.unique(owners).tolist():
            part, is_own = self.parts[number], owners == number
            found[is_own] = part[wanted[is_own] - (int(ends[number]) - len(part))]
        return found
