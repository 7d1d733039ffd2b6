"""The content of a conversion: the selected part of a dataset, and its columns other than state and action."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bimact.data.depth import unpack_depth
from bimact.data.selection import ACTION, STATE, SelectedSource, Vector
from bimact.data.source import Camera, Column
from bimact.errors import UserError

# Prefixes of columns and cameras in several formats.
_PREFIXES = ("observation.images.", "observation.", "observations/", "obs/")


@dataclass(frozen=True)
class Content:
    """The content to write. Small and picklable; quantities are in the robot's own units.

    Attributes:
        chosen: the episodes and cameras, with the columns "state" and "action".
        extras: the other columns by the dataset's own keys, each as the column "state" of a source.
        tasks: the task description of each episode; "" where there is none.
        odd: other columns, which differ in size or type between episodes and are left out.
    """

    chosen: SelectedSource
    extras: Mapping[str, SelectedSource]
    tasks: tuple[str, ...]
    odd: tuple[str, ...] = ()

    @classmethod
    def of(cls, chosen: SelectedSource, task: str | None = None) -> Content:
        """The content of a dataset to convert.

        Args:
            chosen: the selected part.
            task: description for the episodes that have none.

        Raises:
            UserError: if episodes are damaged and not skipped, or none is left.
        """
        chosen.refuse_damaged()
        source = chosen.whole
        used = {*chosen.state.keys, *chosen.action.keys}
        others = [key for key in source.columns if key not in used]
        odd = {key: set(chosen.positions) & source.column_forms.get(key, {}).keys() for key in others}
        extras = {
            key: dataclasses.replace(
                chosen,
                columns={STATE: source.columns[key], ACTION: chosen.columns[ACTION]},
                state=Vector.of("state_dims", (key,), (), None, source.columns),
            )
            for key in others
            if not odd[key]
        }
        tasks = tuple(episode.task or task or "" for episode in chosen.episodes)
        return cls(chosen, extras, tasks, tuple(key for key in others if odd[key]))

    @property
    def cameras(self) -> Mapping[str, Camera]:
        return self.chosen.cameras

    @property
    def depth_cameras(self) -> list[str]:
        return [name for name, camera in self.cameras.items() if camera.is_depth]

    @property
    def columns(self) -> dict[str, Column]:
        """State, action, then the others, by their keys."""
        return {**self.chosen.columns, **{key: source.columns[STATE] for key, source in self.extras.items()}}

    @property
    def fps(self) -> float | None:
        return None if self.chosen.fps is None else float(self.chosen.fps)

    @property
    def lengths(self) -> list[int]:
        return [episode.length for episode in self.chosen.episodes]

    @property
    def starts(self) -> list[int]:
        """The dataset's row at which each episode begins."""
        return [0, *np.cumsum(self.lengths)[:-1].tolist()]

    @property
    def num_steps(self) -> int:
        return sum(self.lengths)

    @property
    def column_bytes(self) -> int:
        """Size of all columns over all steps."""
        return self.num_steps * sum(column.size * np.dtype(column.dtype).itemsize for column in self.columns.values())

    def vectors(self, episode: int) -> dict[str, np.ndarray]:
        """The columns of one episode: key → (T, size) in the dtype that the source declares."""
        extras = {key: source.read_columns(episode, [STATE])[STATE] for key, source in self.extras.items()}
        vectors = {**self.chosen.read_columns(episode, [STATE, ACTION]), **extras}
        return {key: values.astype(self.columns[key].dtype, copy=False) for key, values in vectors.items()}

    def frames(self, episode: int, camera: str, steps: range) -> Iterator[np.ndarray]:
        """Images (H, W, 3) uint8 RGB, or distances (H, W) uint16 in millimetres of a depth camera, one at a time.

        Raises:
            UserError: if an image cannot be read, or there are fewer than the episode has steps.
        """
        count = 0
        for image in self.chosen.read_frames(episode, camera, steps):
            count += 1
            yield unpack_depth(image) if self.cameras[camera].is_depth else image
        if count != len(steps):
            raise UserError(f"{self.where(episode)}: camera '{camera}' ends at step {steps.start + count}")

    def where(self, episode: int) -> str:
        """Dataset and episode, for the beginning of a message."""
        return f"{self.chosen.path}, {self.chosen.episodes[episode].name}"


def short_names(keys: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Keys of one format → unique names without "/" for another one.

    Args:
        taken: names already in use.

    Raises:
        UserError: if two of them would have the same name.
    """
    names: dict[str, str] = {}
    in_use = set(taken)
    for key in keys:
        name = next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)
        name = name.replace("/", ".")
        if name in in_use:
            name = key.replace("/", ".")
        if name in in_use or not name:
            raise UserError(f"two of the dataset's columns and cameras would both be named '{name}': rename one")
        names[key] = name
        in_use.add(name)
    return names
