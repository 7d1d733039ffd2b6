"""The part of a dataset that is used: which cameras, columns, dimensions and episodes, at how many steps a second."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bimact.config import Config
from bimact.data.episodes import Episodes, Rows, SelectedRows
from bimact.data.source import Column, Source, SourceEpisode
from bimact.errors import UserError

STATE, ACTION = "state", "action"  # the columns of a selected source


@dataclass(frozen=True)
class Selection:
    """What to use of a dataset; None: all, or what the format takes unless told otherwise.

    Attributes:
        cameras: by name, in this order.
        state_keys: columns whose values, one after the other, are the proprioceptive state.
        action_keys: columns whose values are the action.
        state_dims: dimensions of that state to keep, such as "0:14" or "0:7,13:20,25".
        action_dims: dimensions of that action to keep.
        max_episodes: the first so many episodes.
        fps: steps a second. Another number than the dataset's resamples: each step takes what was last recorded.
        color_order: "rgb" or "bgr", where the files leave open how their images are to be read.
        filter_key: a subset of the episodes that the dataset itself names (robomimic's `mask`).
    """

    cameras: tuple[str, ...] | None = None
    state_keys: tuple[str, ...] | None = None
    action_keys: tuple[str, ...] | None = None
    state_dims: str | None = None
    action_dims: str | None = None
    max_episodes: int | None = None
    fps: float | None = None
    color_order: str | None = None
    filter_key: str | None = None

    @classmethod
    def of(cls, config: Config) -> Selection:
        """What a training's settings say."""

        def names(value: Sequence[str] | None) -> tuple[str, ...] | None:
            return None if value is None else tuple(value)

        return cls(
            cameras=names(config.cameras),
            state_keys=names(config.state_keys),
            action_keys=names(config.action_keys),
            state_dims=config.state_dims,
            action_dims=config.action_dims,
            max_episodes=config.max_episodes,
            fps=config.fps,
            color_order=config.color_order,
            filter_key=config.filter_key,
        )

    def applied_to(self, source: Source) -> SelectedSource:
        """The part of a source, with the columns "state" and "action" alone.

        Raises:
            UserError: if the dataset has no such camera, column, dimension or subset; the sentence lists what it has.
        """
        source = _in_colors(source, self.color_order)
        if self.filter_key is not None:
            source = _filtered(source, self.filter_key)
        state_keys = _chosen("column", self.state_keys, source.columns, source) or source.state_keys
        action_keys = _chosen("column", self.action_keys, source.columns, source) or source.action_keys
        if not state_keys or not action_keys:
            missing = "state_keys" if not state_keys else "action_keys"
            raise UserError(
                f"{source.path} does not tell which of its columns are the {missing.partition('_')[0]}: choose by "
                f"--{missing} among {', '.join(source.columns) or 'none'}"
            )
        cameras = _chosen("camera", self.cameras, source.cameras, source)
        cameras = tuple(source.cameras) if cameras is None else cameras
        state = Vector.of("state_dims", state_keys, self.state_dims, source)
        action = Vector.of("action_dims", action_keys, self.action_dims, source)
        return SelectedSource(
            path=source.path,
            format=source.format,
            episodes=_resampled(source, self),
            cameras={name: source.cameras[name] for name in cameras},
            columns={STATE: state.column(source), ACTION: action.column(source)},
            state_keys=(STATE,),
            action_keys=(ACTION,),
            fps=self.fps or source.fps,
            files=source.files,
            skipped=source.skipped,
            metadata=source.metadata,
            whole=source,
            state=state,
            action=action,
        )


@dataclass(frozen=True)
class Vector:
    """Some dimensions of some columns, one after the other."""

    keys: tuple[str, ...]
    dims: tuple[int, ...]

    @classmethod
    def of(cls, setting: str, keys: tuple[str, ...], dims: str | None, source: Source) -> Vector:
        size = sum(source.columns[key].size for key in keys)
        return cls(keys, tuple(range(size)) if dims is None else parse_dims(setting, dims, size))

    def column(self, source: Source) -> Column:
        parts = [source.columns[key] for key in self.keys]
        names = [name for part in parts for name in part.names or ()]
        is_named = all(part.names is not None for part in parts)
        return Column(
            len(self.dims),
            tuple(names[number] for number in self.dims) if is_named else None,
            str(np.result_type(*(np.dtype(part.dtype) for part in parts))),
        )

    def read(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Columns (T, …) → (T, D)."""
        joined = np.concatenate([columns[key] for key in self.keys], axis=1)
        is_all = self.dims == tuple(range(joined.shape[1]))
        return joined if is_all else joined[:, list(self.dims)]


@dataclass(frozen=True, kw_only=True)
class SelectedSource(Source):
    """A part of another source."""

    whole: Source
    state: Vector
    action: Vector

    @property
    def vectors(self) -> dict[str, Vector]:
        return {STATE: self.state, ACTION: self.action}

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        needed = {key for name in keys for key in self.vectors[name].keys}
        columns = self.whole.read_columns(episode, sorted(needed))
        recorded = self.whole.episodes[episode]
        for key, values in columns.items():
            if len(values) != recorded.length:
                raise UserError(
                    f"{self.path}, {recorded.name}: '{key}' has {len(values)} rows, the episode {recorded.length} steps"
                )
        steps = self._steps(episode)
        return {name: self.vectors[name].read(columns)[steps] for name in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        return self.whole.read_frames(episode, camera, self._steps(episode)[list(steps)].tolist())

    def read_timestamps(self, episode: int) -> np.ndarray | None:
        times = self.whole.read_timestamps(episode)
        return times if times is None or self._keeps_steps() else None  # those of new steps are no recording

    def mapped(self) -> Episodes | None:
        whole = self.whole.mapped()
        if whole is None or self.state.keys != self.whole.state_keys or self.action.keys != self.whole.action_keys:
            return None
        starts = whole.starts
        rows = np.concatenate([starts[number] + self._steps(number) for number in range(len(self.episodes))])
        is_whole = np.array_equal(rows, np.arange(whole.num_steps))

        def part(source: Rows, dims: tuple[int, ...] | None = None) -> Rows:
            return SelectedRows.of(source, None if is_whole else rows, dims)

        names = whole.episode_names
        return dataclasses.replace(
            whole,
            lengths=self.lengths,
            images={name: part(whole.images[name]) for name in self.cameras},
            state=part(whole.state, self.state.dims),
            actions=part(whole.actions, self.action.dims),
            fps=self.fps,
            joint_names=self.columns[ACTION].names,
            state_names=self.columns[STATE].names,
            episode_names=None if names is None else names[: len(self.episodes)],
        )

    def _keeps_steps(self) -> bool:
        return self.fps == self.whole.fps or self.whole.fps is None

    def _steps(self, episode: int) -> np.ndarray:
        """(T,) the step of the whole source that each step is."""
        length = self.episodes[episode].length
        if self._keeps_steps():
            return np.arange(length)
        assert self.whole.fps is not None and self.fps is not None
        return _recorded_steps(length, self.fps, self.whole.fps)


def _recorded_steps(count: int, fps: float, recorded_fps: float) -> np.ndarray:
    """(count,) the last step that was recorded at or before each new step's time."""
    # A ratio such as 0.1 is no exact number: half a thousandth of a step belongs to the next one.
    return np.floor(np.arange(count) * (recorded_fps / fps) + 5e-4).astype(np.int64)


def _resampled(source: Source, selection: Selection) -> tuple[SourceEpisode, ...]:
    episodes = source.episodes[: selection.max_episodes]
    if selection.fps is None or source.fps is None or selection.fps == source.fps:
        return episodes
    ratio = selection.fps / source.fps

    def length(recorded: int) -> int:
        """New steps whose time is before the end of the last one that was recorded."""
        count = int(np.ceil(recorded * ratio - 5e-4 * ratio))
        return max(1, count)

    return tuple(dataclasses.replace(episode, length=length(episode.length)) for episode in episodes)


def parse_dims(setting: str, text: str, size: int) -> tuple[int, ...]:
    """Dimensions such as "0:14" or "0:7,13:20,25", in the order that they stand.

    Args:
        setting: what messages call them.
        size: of the vector.

    Raises:
        UserError: for anything else, and for dimensions that the vector does not have.
    """
    dims: list[int] = []
    for part in text.replace(" ", "").strip("[]").split(","):
        match = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", part)
        if match is None:
            raise UserError(f"{setting} is '{text}', it has to be ranges and numbers such as 0:14 or 0:7,13:20,25")
        first = int(match[1])
        end = first + 1 if match[2] is None else int(match[2])
        if end <= first or end > size:
            raise UserError(f"{setting} is '{text}': {part} is no part of the {size} dimensions that there are")
        dims += range(first, end)
    return tuple(dims)


def _chosen(kind: str, names: tuple[str, ...] | None, known: object, source: Source) -> tuple[str, ...] | None:
    """See that a dataset has what is asked for."""
    known_names = list(known)  # type: ignore[call-overload]
    for name in names or ():
        if name not in known_names:
            close = difflib.get_close_matches(name, known_names, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            has = ", ".join(known_names) or "none"
            raise UserError(f"{source.path} has no {kind} '{name}'; it has {has}{hint}")
    return names


def _in_colors(source: Source, color_order: str | None) -> Source:
    if color_order is None or source.color_order is None:
        return source
    return dataclasses.replace(source, color_order=color_order)


def _filtered(source: Source, filter_key: str) -> Source:
    filtered = getattr(source, "filtered", None)
    if filtered is None:
        raise UserError(f"{source.path} has no filter keys, so filter_key '{filter_key}' chooses nothing")
    chosen: Source = filtered(filter_key)
    return chosen
