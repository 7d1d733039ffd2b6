"""The part of a dataset that is used: which cameras, columns, dimensions and episodes, at which control frequency.

Anything not selected is never read: a camera or column that is damaged, or differs between the selected episodes, is
left out with the reason, unless it was selected explicitly or is the only one.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bimact.config import Config
from bimact.data.default_state import is_action_name, why_not_in_state
from bimact.data.episodes import Episodes, Rows, SelectedRows
from bimact.data.source import Camera, Column, Fault, FramesNote, LeftOut, Source, SourceEpisode, Unusable
from bimact.errors import UserError, without_folder

STATE, ACTION = "state", "action"  # the columns of a selected source
_MOST_LISTED = 10  # episodes in one sentence
# Prefixes of column and camera names in the formats' files.
_PREFIXES = ("observations/images/", "observation.images.", "observations/", "observation.", "obs/", "data/")


@dataclass(frozen=True)
class Selection:
    """The part of a dataset to use; None: all, or the format's default.

    Attributes:
        cameras: by name, in this order; empty: no camera.
        state_keys: columns that are concatenated to the proprioceptive state. A name may stand for all columns of a
            group: "qpos" for "qpos/left_arm" and "qpos/right_arm".
        action_keys: columns that are concatenated to the action; "qpos@+1" is the column "qpos" one step later.
        state_dims: dimensions of that state to keep, such as "0:14" or "0:7,13:20,25".
        action_dims: dimensions of that action to keep.
        episodes: numbers, ranges and names of the episodes to use, such as ("0:40", "45").
        exclude_episodes: those to leave out.
        max_episodes: only the first N of these.
        skip_unreadable: leave out damaged episodes instead of stopping.
        fps: control frequency in Hz. If it differs from the dataset's, each step takes the latest recorded one.
        color_order: "rgb" or "bgr", where the files do not specify it.
        filter_key: a subset of episodes defined in the dataset itself (robomimic's `mask`).
        skip_failed: leave out episodes that the dataset marks as failed.
    """

    cameras: tuple[str, ...] | None = None
    state_keys: tuple[str, ...] | None = None
    action_keys: tuple[str, ...] | None = None
    state_dims: str | None = None
    action_dims: str | None = None
    episodes: tuple[str, ...] | None = None
    exclude_episodes: tuple[str, ...] | None = None
    max_episodes: int | None = None
    skip_unreadable: bool = False
    fps: float | None = None
    color_order: str | None = None
    filter_key: str | None = None
    skip_failed: bool = False

    @classmethod
    def of(cls, config: Config) -> Selection:
        """The selection in a training's settings."""
        values: dict[str, Any] = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(cls)}
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def applied_to(self, source: Source, *, with_depth: bool = False) -> SelectedSource:
        """The selected part of a source, with only the columns "state" and "action".

        Args:
            with_depth: where no cameras are named, use the depth cameras too.

        Raises:
            UserError: if the dataset has no such camera, column, dimension, episode or subset, or the selection cannot
                be used; the sentence lists the available ones.
        """
        if self.color_order is not None and source.color_order is not None:
            source = dataclasses.replace(source, color_order=self.color_order)
        elif self.color_order is not None and source.cameras:
            note = (
                f"color_order {self.color_order} has no effect: the format specifies the colour order of these images"
            )
            source = dataclasses.replace(source, notes=(*source.notes, note))
        if self.filter_key is not None:
            source = _filtered(source, self.filter_key)
        positions, unusable = _chosen_episodes(source, self)
        failed = [position for position in positions if source.episodes[position].is_failed]
        if failed and not self.skip_failed:
            note = f"{len(failed)} of {len(positions)} episodes are marked as failed and are used: --skip_failed true "
            source = dataclasses.replace(source, notes=(*source.notes, note + "leaves them out"))
        elif self.skip_failed:
            if not failed:
                note = "skip_failed has no effect: the dataset marks no episode as failed"
                source = dataclasses.replace(source, notes=(*source.notes, note))
            for position in failed:
                name = source.episodes[position].name
                unusable.append(Unusable(source.number_of(position), name, "it is marked as failed", is_missing=True))
            positions = [position for position in positions if position not in failed]
        left_out: dict[tuple[str, str], LeftOut] = {(entry.kind, entry.name): entry for entry in source.left_out}

        if self.action_keys is None:
            shifted = [(key, 0) for key in _consistent("column", source.action_keys, source, positions, left_out)]
        else:
            shifted = [pair for name in self.action_keys for pair in _columns_named("action_keys", name, source)]
        if self.state_keys is None:
            acted = {key for key, shift in shifted if shift == 0}
            default = tuple(key for key in source.state_keys if key not in acted and not is_action_name(key))
            state_keys = _consistent("column", default, source, positions, left_out)
        else:
            pairs = [pair for name in self.state_keys for pair in _columns_named("state_keys", name, source)]
            if any(shift for _, shift in pairs):
                raise UserError(f"state_keys is {','.join(self.state_keys)}: only actions can be of later steps")
            state_keys = tuple(key for key, _ in pairs)
        if not state_keys or not shifted:
            raise _nothing_chosen(not state_keys, not shifted, source)
        if self.cameras is None:
            names = (*source.cameras, *(source.depth_cameras if with_depth else ()))
            cameras = _consistent("image", names, source, positions, left_out)
        else:
            cameras = tuple(dict.fromkeys(_camera_named(name, source) for name in self.cameras))

        # An episode in which a selected camera or column differs from most others cannot be used.
        action_keys = tuple(key for key, _ in shifted)
        for name in cameras:
            left_out.pop(("depth", name), None)
        camera_forms = {name: _forms_in(name, source.all_cameras, source.camera_forms, positions) for name in cameras}
        keys = dict.fromkeys((*state_keys, *action_keys))
        column_forms = {key: _forms_in(key, source.columns, source.column_forms, positions) for key in keys}
        faults: dict[int, list[Fault]] = {}
        for what, (usual, others) in [
            *((f"camera {name}", forms) for name, forms in camera_forms.items()),
            *column_forms.items(),
        ]:
            for position, form in others.items():
                kind = form.kind if isinstance(form, Fault) else "absent"
                faults.setdefault(position, []).append(Fault(f"{what} {_differs(form, usual)}", kind))
        for position, its in faults.items():
            reasons = "; ".join(fault.reason for fault in its)
            is_missing = all(fault.kind == "missing" for fault in its)
            name = source.episodes[position].name
            unusable.append(Unusable(source.number_of(position), name, reasons, is_missing))
        positions = [position for position in positions if position not in faults][: self.max_episodes]
        if len(positions) == self.max_episodes:  # later episodes are not used
            unusable = [episode for episode in unusable if episode.number <= source.number_of(positions[-1])]

        columns = {key: column for key, (column, _) in column_forms.items()}
        shortest = min((source.episodes[position].length for position in positions), default=0)
        for key, shift in shifted:
            if shift and positions and shift >= shortest:
                raise UserError(
                    f"action_keys has {key}@+{shift}, and the shortest episode of {source.path} has {shortest} steps"
                )
        state = Vector.of("state_dims", state_keys, (), self.state_dims, columns)
        action = Vector.of("action_dims", action_keys, tuple(shift for _, shift in shifted), self.action_dims, columns)
        for key in source.columns if self.state_keys is None else ():
            reason = None if key in keys else why_not_in_state(key)
            if reason is not None:
                left_out.setdefault(("column", key), LeftOut("column", key, reason))
        return SelectedSource(
            path=source.path,
            format=source.format,
            episodes=tuple(_resampled(source, position, self.fps) for position in positions),
            cameras={name: camera for name, (camera, _) in camera_forms.items()},
            columns={STATE: state.column(columns), ACTION: action.column(columns)},
            state_keys=(STATE,),
            action_keys=(ACTION,),
            fps=self.fps or source.fps,
            color_order=source.color_order,
            files=source.files,
            video_cameras=tuple(name for name in source.video_cameras if name in camera_forms),
            unusable=tuple(sorted(unusable, key=lambda episode: episode.number)),
            left_out=tuple(left_out.values()),
            notes=source.notes,
            metadata=source.metadata,
            whole=source,
            selection=self,
            positions=tuple(positions),
            state=state,
            action=action,
        )


@dataclass(frozen=True)
class Vector:
    """Some dimensions of some columns, concatenated.

    Attributes:
        keys: the columns.
        sizes: of each.
        shifts: of each: number of steps by which it is taken later; the last step is repeated at the end.
        dims: dimensions of their concatenation.
    """

    keys: tuple[str, ...]
    sizes: tuple[int, ...]
    shifts: tuple[int, ...]
    dims: tuple[int, ...]

    @classmethod
    def of(
        cls,
        setting: str,
        keys: tuple[str, ...],
        shifts: tuple[int, ...],
        dims: str | None,
        columns: Mapping[str, Column],
    ) -> Vector:
        sizes = tuple(columns[key].size for key in keys)
        chosen = tuple(range(sum(sizes))) if dims is None else parse_dims(setting, dims, sum(sizes))
        return cls(keys, sizes, shifts or (0,) * len(keys), chosen)

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Each column's name, with its shift, and the number of its dimensions in use, in order."""
        ends = np.cumsum(self.sizes)
        owners = [int(np.searchsorted(ends, dim, side="right")) for dim in self.dims]
        counts = Counter(owners)
        names = [key if not shift else f"{key}@+{shift}" for key, shift in zip(self.keys, self.shifts)]
        return [(names[owner], counts[owner]) for owner in dict.fromkeys(owners)]

    def column(self, columns: Mapping[str, Column]) -> Column:
        parts = [columns[key] for key in self.keys]
        names = [name for part in parts for name in part.names or ()]
        is_named = all(part.names is not None for part in parts)
        return Column(
            len(self.dims),
            tuple(names[number] for number in self.dims) if is_named else None,
            str(np.result_type(*(np.dtype(part.dtype) for part in parts))),
        )

    def read(self, columns: Mapping[str, np.ndarray], steps: np.ndarray) -> np.ndarray:
        """Columns (R, …) as recorded → (T, D) at some of their steps."""
        last = len(steps) - 1
        parts = [
            columns[key][steps if not shift else steps[np.minimum(np.arange(len(steps)) + shift, last)]]
            for key, shift in zip(self.keys, self.shifts)
        ]
        joined = np.concatenate(parts, axis=1)
        is_all = self.dims == tuple(range(joined.shape[1]))
        return joined if is_all else joined[:, list(self.dims)]


@dataclass(frozen=True, kw_only=True)
class SelectedSource(Source):
    """A part of another source.

    Attributes:
        whole: the other source.
        selection: the requested part.
        positions: (E,) position of each episode in `whole`.
    """

    whole: Source
    selection: Selection
    positions: tuple[int, ...]
    state: Vector
    action: Vector

    @property
    def vectors(self) -> dict[str, Vector]:
        return {STATE: self.state, ACTION: self.action}

    def without(self, unusable: Iterable[Unusable]) -> SelectedSource:
        """The same part without episodes that turned out to be unusable."""
        more = tuple(unusable)
        gone = {episode.number for episode in more}
        kept = [place for place in range(len(self.episodes)) if self.number_of(place) not in gone]
        return dataclasses.replace(
            self,
            episodes=tuple(self.episodes[place] for place in kept),
            positions=tuple(self.positions[place] for place in kept),
            unusable=tuple(sorted((*self.unusable, *more), key=lambda episode: episode.number)),
        )

    def refuse_damaged(self) -> None:
        """Check that no episode is damaged (unless they are skipped) and at least one can be used.

        Raises:
            UserError: listing all of them.
        """
        damaged = [episode for episode in self.unusable if not episode.is_missing]
        if damaged and not self.selection.skip_unreadable:
            raise damaged_error(self, damaged)
        if not self.episodes:
            raise UserError(
                f"{self.path} has no episode that can be used: {_listed(self.unusable, self) or 'it is empty'}"
            )

    def require_camera(self) -> None:
        """Check that there is a camera if the dataset has images, unless none was requested.

        Raises:
            UserError: naming the images and why they cannot be used.
        """
        if self.cameras or self.selection.cameras is not None:
            return
        images = [entry for entry in self.left_out if entry.kind != "column"]
        if images:
            told = "; ".join(f"{entry.name} {entry.reason}" for entry in images[:_MOST_LISTED])
            raise UserError(
                f"{self.path} has images, but none that can be used ({told}): store them in a form listed in "
                'docs/formats.md, or train without cameras by --cameras ""'
            )

    def recorded_column(self, episode: int, key: str) -> np.ndarray:
        """(T, size) of a column of the whole dataset, at the steps of an episode of this part."""
        position = self.positions[episode]
        values = self.whole.read_columns(position, (key,))[key]
        recorded = self.whole.episodes[position]
        if len(values) != recorded.length:
            raise UserError(
                f"{self.path}, {recorded.name}: '{key}' has {len(values)} rows, the episode {recorded.length} steps"
            )
        return values[self._steps(episode)]

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        needed = {key for name in keys for key in self.vectors[name].keys}
        columns = self.whole.read_columns(self.positions[episode], sorted(needed))
        recorded = self.whole.episodes[self.positions[episode]]
        for key, values in columns.items():
            if len(values) != recorded.length:
                raise UserError(
                    f"{self.path}, {recorded.name}: '{key}' has {len(values)} rows, the episode {recorded.length} steps"
                )
        steps = self._steps(episode)
        return {name: self.vectors[name].read(columns, steps) for name in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        recorded = self._steps(episode)[list(steps)].tolist()
        size = self.cameras[camera]
        for step, image in zip(steps, self.whole.read_frames(self.positions[episode], camera, recorded)):
            if image.shape != (size.height, size.width, 3):
                raise UserError(
                    f"{self.path}, {self.episodes[episode].name}, step {step}: the image of camera {camera} has "
                    f"{image.shape[0]}×{image.shape[1]} pixels, in most episodes {size.height}×{size.width}"
                )
            yield image

    def read_timestamps(self, episode: int) -> np.ndarray | None:
        if not self._keeps_steps():  # resampled steps have no recorded timestamps
            return None
        return self.whole.read_timestamps(self.positions[episode])

    def frames_note(self, episode: int, camera: str) -> FramesNote | None:
        return self.whole.frames_note(self.positions[episode], camera)

    def video_frames(self, episode: int, camera: str, steps: range) -> tuple[Path, np.ndarray] | None:
        if not self._keeps_steps():
            return None
        return self.whole.video_frames(self.positions[episode], camera, steps)

    def mapped(self) -> Episodes | None:
        whole = self.whole.mapped()
        is_usual = self.state.keys == self.whole.state_keys and self.action.keys == self.whole.action_keys
        if whole is None or not is_usual or any(self.action.shifts) or not set(self.cameras) <= set(whole.images):
            return None
        starts = whole.starts
        rows = np.concatenate(
            [starts[position] + self._steps(number) for number, position in enumerate(self.positions)]
        )
        is_whole = np.array_equal(rows, np.arange(whole.num_steps))

        def part(source: Rows, dims: tuple[int, ...] | None = None) -> Rows:
            return SelectedRows.of(source, None if is_whole else rows, dims)

        return dataclasses.replace(
            whole,
            lengths=self.lengths,
            images={name: part(whole.images[name]) for name in self.cameras},
            state=part(whole.state, self.state.dims),
            actions=part(whole.actions, self.action.dims),
            fps=self.fps,
            joint_names=self.columns[ACTION].names,
            state_names=self.columns[STATE].names,
            episode_names=tuple(episode.name for episode in self.episodes),
        )

    def _keeps_steps(self) -> bool:
        return self.fps == self.whole.fps or self.whole.fps is None

    def _steps(self, episode: int) -> np.ndarray:
        """(T,) the recorded step of each step."""
        length = self.episodes[episode].length
        if self._keeps_steps():
            return np.arange(length)
        assert self.whole.fps is not None and self.fps is not None
        return _recorded_steps(length, self.fps, self.whole.fps)


def damaged_error(source: Source, damaged: Sequence[Unusable]) -> UserError:
    """The error about damaged episodes, with the remedy."""
    numbers = ",".join(str(episode.number) for episode in damaged)
    total = len(source.episodes) + sum(not episode.is_missing for episode in source.unusable)
    many = f"{len(damaged)} of {max(total, len(damaged))} episodes cannot be used"
    return UserError(
        f"{source.path}: {many}: {_listed(damaged, source)}; copy or record them again, leave them out by "
        f"--exclude_episodes {numbers}, or skip whatever is damaged by --skip_unreadable true"
    )


def _listed(episodes: Sequence[Unusable], source: Source) -> str:
    told = [without_folder(episode.sentence, source.path) for episode in episodes[:_MOST_LISTED]]
    more = [f"and {len(episodes) - _MOST_LISTED} more"] if len(episodes) > _MOST_LISTED else []
    return "; ".join([*told, *more])


# Episodes ------------------------------------------------------------------------------------------


def _chosen_episodes(source: Source, selection: Selection) -> tuple[list[int], list[Unusable]]:
    """Positions of the selected usable episodes, and the selected unusable ones."""
    numbers = [source.number_of(position) for position in range(len(source.episodes))]
    known = {number: source.episodes[position].name for position, number in enumerate(numbers)}
    known |= {episode.number: episode.name for episode in source.unusable}
    chosen = set(known)
    if selection.episodes is not None:
        chosen = _numbers("episodes", selection.episodes, known, source)
    if selection.exclude_episodes is not None:
        chosen -= _numbers("exclude_episodes", selection.exclude_episodes, known, source)
    if not chosen and known:
        raise UserError(f"{source.path}: episodes and exclude_episodes leave no episode: choose others")
    positions = [position for position, number in enumerate(numbers) if number in chosen]
    return positions, [episode for episode in source.unusable if episode.number in chosen]


def episodes_named(setting: str, items: Sequence[str], source: SelectedSource) -> set[int]:
    """Numbers of episodes of the whole dataset, by numbers, ranges such as 0:40, and names.

    Raises:
        UserError: if it has no such episode.
    """
    whole = source.whole
    known = {whole.number_of(position): episode.name for position, episode in enumerate(whole.episodes)}
    known |= {episode.number: episode.name for episode in (*whole.unusable, *source.unusable)}
    return _numbers(setting, items, known, whole)


def one_column(setting: str, name: str, source: Source) -> str:
    """The column of a name.

    Raises:
        UserError: if there is none, or several.
    """
    found = _columns_named(setting, name, source)
    if len(found) != 1 or found[0][1]:
        raise UserError(f"{setting}: '{name}' is not one column of {source.path}")
    return found[0][0]


def _numbers(setting: str, items: Sequence[str], known: Mapping[int, str], source: Source) -> set[int]:
    """Numbers, ranges such as 0:40, and names → numbers of episodes."""
    by_name = {name: number for number, name in known.items()}
    found: set[int] = set()
    for item in (item.strip() for item in items):
        span = re.fullmatch(r"(\d{0,12}):(\d{0,12})", item)
        if item in by_name:
            found.add(by_name[item])
        elif item.isdecimal() and int(item[:15]) in known:
            found.add(int(item))
        elif span is not None:
            inside = {n for n in known if int(span[1] or 0) <= n and (not span[2] or n < int(span[2]))}
            if not inside:
                raise UserError(f"{setting}: {source.path} has no episode in {item}; it has {_ranges(known)}")
            found |= inside
        else:
            raise UserError(
                f"{setting}: {source.path} has no episode '{item}'; it has {_ranges(known)}, to be chosen by numbers, "
                "ranges such as 0:40 (without 40) and names"
            )
    return found


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers in words: "episodes 0 to 7, 9"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:_MOST_LISTED]]
    return f"episodes {', '.join(told)}" + (", …" if len(runs) > _MOST_LISTED else "") if told else "none"


def _resampled(source: Source, position: int, fps: float | None) -> SourceEpisode:
    episode = dataclasses.replace(source.episodes[position], number=source.number_of(position))
    if fps is None or source.fps is None or fps == source.fps:
        return episode
    # New steps that begin before the last recorded step ends.
    count = int(np.ceil(episode.length * (fps / source.fps) - 5e-4 * (fps / source.fps)))
    return dataclasses.replace(episode, length=max(1, count))


def _recorded_steps(count: int, fps: float, recorded_fps: float) -> np.ndarray:
    """(count,) the latest recorded step at or before the time of each new step."""
    # Rounding errors of ratios such as 0.1: half a thousandth of a step counts as the next step.
    return np.floor(np.arange(count) * (recorded_fps / fps) + 5e-4).astype(np.int64)


def parse_dims(setting: str, text: str, size: int) -> tuple[int, ...]:
    """Dimensions such as "0:14" or "0:7,13:20,25", in the given order.

    Args:
        setting: their name in messages.
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
            raise UserError(f"{setting} is '{text}': {part} is not within the {size} dimensions")
        dims += range(first, end)
    return tuple(dims)


def _filtered(source: Source, filter_key: str) -> Source:
    filtered = getattr(source, "filtered", None)
    if filtered is None:
        raise UserError(f"{source.path} has no filter keys: remove filter_key '{filter_key}'")
    chosen: Source = filtered(filter_key)
    return chosen


# Cameras and columns -------------------------------------------------------------------------------


def _forms_in(
    name: str, usual: Mapping[str, Any], others: Mapping[str, Mapping[int, Any]], positions: Sequence[int]
) -> tuple[Any, dict[int, Any]]:
    """The form of a camera or column in most of some episodes, and the episodes in which it differs."""
    chosen = frozenset(positions)
    odd = {position: form for position, form in others.get(name, {}).items() if position in chosen}
    counts = Counter({usual[name]: len(positions) - len(odd)})
    counts.update(form for form in odd.values() if not isinstance(form, Fault))
    most, count = max(counts.items(), key=lambda entry: entry[1])
    if not count or most == usual[name]:
        return usual[name], odd
    forms = {position: odd.get(position, usual[name]) for position in positions}
    return most, {position: form for position, form in forms.items() if form != most}


def _consistent(
    kind: str,
    names: tuple[str, ...],
    source: Source,
    positions: Sequence[int],
    left_out: dict[tuple[str, str], LeftOut],
) -> tuple[str, ...]:
    """Those that are equal in all of some episodes; all if none is. Reasons for the others go to `left_out`.

    One that is damaged, or whose files are missing, in some episodes counts as equal: these episodes are unusable.
    """
    usual, others = (
        (source.all_cameras, source.camera_forms) if kind == "image" else (source.columns, source.column_forms)
    )
    found: dict[str, LeftOut] = {}
    for name in names:
        most, odd = _forms_in(name, usual, others, positions)
        bad = {position: form for position, form in odd.items() if not isinstance(form, Fault) or form.kind == "absent"}
        if bad or (odd and len(odd) == len(positions)):
            bad = bad or odd
            first = min(bad)
            count = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            reason = f"{_differs(bad[first], most)} ({source.episodes[first].name}{count})"
            found[name] = LeftOut("image" if kind == "image" else "column", name, reason)
    if len(found) == len(names):
        return names
    left_out.update({(entry.kind, entry.name): entry for entry in found.values()})
    return tuple(name for name in names if name not in found)


def _differs(form: Camera | Column | Fault, usual: Camera | Column) -> str:
    """How a camera or column differs from its usual form: the predicate of a sentence about it."""
    return form.reason if isinstance(form, Fault) else f"is {_size(form)}, in most episodes {_size(usual)}"


def _size(form: Camera | Column) -> str:
    return f"{form.height}×{form.width}" if isinstance(form, Camera) else f"of size {form.size}"


def _without_prefix(name: str) -> str:
    name = name.strip("/ ")
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)


def _found(name: str, known: Iterable[str]) -> str | None:
    """The known name that equals a name, with or without its format's prefix."""
    names = list(known)
    if name in names:
        return name
    same = [other for other in names if _without_prefix(other) == _without_prefix(name)]
    return same[0] if len(same) == 1 else None


def feature_named(name: str, source: Source) -> str | None:
    """The camera or column of this name, with or without its format's prefix; None: there is none."""
    return _found(name, (*source.all_cameras, *source.columns))


def _camera_named(name: str, source: Source) -> str:
    found = _found(name, source.all_cameras)
    if found is None:
        raise _unknown("camera", name, source.all_cameras, source)
    return found


def _columns_named(setting: str, name: str, source: Source) -> list[tuple[str, int]]:
    """(column, steps later) of a name such as "qpos", of a group such as "action", or of "qpos@+1"."""
    match = re.fullmatch(r"(.+)@\+(\d{1,3})", name)
    bare, shift = (match[1], int(match[2])) if match else (name, 0)
    found = _found(bare, source.columns)
    if found is not None:
        return [(found, shift)]
    group = _without_prefix(bare)
    inside = [key for key in source.columns if _without_prefix(key).startswith((f"{group}/", f"{group}."))]
    if not inside:
        raise _unknown("column", bare, source.columns, source)
    return [(key, shift) for key in inside]


def _unknown(kind: str, name: str, known: Iterable[str], source: Source) -> UserError:
    names = list(known)
    left_out = {entry.name: entry for entry in source.left_out}
    unused = _found(name, left_out)
    if unused is not None:
        return UserError(f"{source.path}: {kind} '{unused}' cannot be used: it {left_out[unused].reason}")
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return UserError(f"{source.path} has no {kind} '{name}'; it has {', '.join(names) or 'none'}{hint}")


def _nothing_chosen(no_state: bool, no_action: bool, source: Source) -> UserError:
    """The error about a dataset that does not define its state or action, with the columns to choose from."""
    what = " and ".join(name for name, holds in (("the state", no_state), ("the action", no_action)) if holds)
    options = " and ".join(
        f"--{name}_keys A,B" for name, holds in (("state", no_state), ("action", no_action)) if holds
    )
    columns = ", ".join(f"{key} ({column.size})" for key, column in source.columns.items()) or "none"
    cameras = ", ".join(f"{name} ({camera.height}×{camera.width})" for name, camera in source.cameras.items())
    text = (
        f"{source.path} ({source.format}) does not define which of its columns are {what}: choose by {options} among "
    )
    text += columns + (f"; its cameras are {cameras}" if cameras else "")
    if source.left_out:
        unread = [f"{entry.name} ({entry.reason})" for entry in source.left_out[:_MOST_LISTED]]
        text += f"; it also holds {', '.join(unread)}"
    kept_out = [key for key in source.columns if no_state and why_not_in_state(key)]
    if kept_out and not no_action:
        text += f"; excluded from the state because of their names: {', '.join(kept_out)}"
    if no_action and source.state_keys:
        text += f"; if the action should be the state of the next step, pass --action_keys {source.state_keys[0]}@+1"
    return UserError(text)
