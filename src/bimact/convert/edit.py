"""`bimact edit`: some episodes and steps of one or more datasets, under other names, as one `Source`.

Nothing is copied: an `EditedSource` reads from the original datasets, and a writer writes it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bimact.check.motion import idle_ends
from bimact.check.scan import NO_FILES, scan
from bimact.convert.video_copy import begins_at_key_frame
from bimact.data.selection import SelectedSource, episodes_named, feature_named
from bimact.data.source import Camera, Column, Fault, FramesNote, LeftOut, Source, SourceEpisode
from bimact.data.workers import run_jobs
from bimact.errors import UserError

_KEPT_IDLE = (
    0.2,
    5,
)  # seconds, or steps where the fps is unknown, that stay before the first and after the last motion
_TO_KEY_FRAME = (0.3, 8)  # by which an episode may begin earlier so that its videos can be copied
_SECONDS_TO_LOOK = 120.0  # timeout of looking for a key frame
_MOST_LISTED = 10

_Form = TypeVar("_Form", Camera, Column)


@dataclass(frozen=True)
class Edits:
    """The changes. Episodes are numbers or names of the first dataset; steps are those of the file.

    Attributes:
        trim: episode → (first step to keep, end); end None: to the last one.
        trim_idle: remove the steps without motion at the beginning and the end of episodes, as `bimact check` finds
            them, except for a fifth of a second.
        split: episode → the steps at which a new episode begins.
        drop_features: cameras and columns to leave out.
        rename: camera or column → its new name.
    """

    trim: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    trim_idle: bool = False
    split: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    drop_features: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """The steps from `first` to `end` (exclusive) of one episode of one of the datasets, which become an episode."""

    dataset: int
    position: int
    first: int
    end: int


@dataclass(frozen=True, kw_only=True)
class EditedSource(Source):
    """Pieces of other sources.

    Attributes:
        datasets: the other sources.
        pieces: (E,) the origin of each episode.
        keys: of each dataset: camera or column → its name there.
    """

    datasets: tuple[Source, ...]
    pieces: tuple[Piece, ...]
    keys: tuple[Mapping[str, str], ...]

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        piece = self.pieces[episode]
        old = {key: self.keys[piece.dataset][key] for key in keys}
        recorded = self.datasets[piece.dataset].read_columns(piece.position, list(old.values()))
        return {key: recorded[name][piece.first : piece.end] for key, name in old.items()}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        piece = self.pieces[episode]
        recorded = [piece.first + step for step in steps]
        name = self.keys[piece.dataset][camera]
        return self.datasets[piece.dataset].read_frames(piece.position, name, recorded)

    def read_timestamps(self, episode: int) -> np.ndarray | None:
        piece = self.pieces[episode]
        times = self.datasets[piece.dataset].read_timestamps(piece.position)
        return None if times is None else times[piece.first : piece.end]

    def frames_note(self, episode: int, camera: str) -> FramesNote | None:
        piece = self.pieces[episode]
        return self.datasets[piece.dataset].frames_note(piece.position, self.keys[piece.dataset][camera])

    def video_frames(self, episode: int, camera: str, steps: range) -> tuple[Path, np.ndarray] | None:
        piece = self.pieces[episode]
        recorded = range(piece.first + steps.start, piece.first + steps.stop)
        return self.datasets[piece.dataset].video_frames(piece.position, self.keys[piece.dataset][camera], recorded)


def edit(chosen: Sequence[SelectedSource], edits: Edits, *, copies_videos: bool) -> tuple[EditedSource, list[str]]:
    """Apply edits.

    Args:
        chosen: the datasets, with the episodes to keep; edits name episodes of the first one.
        copies_videos: trim idle steps at a nearby key frame, if there is one, so that videos can be copied.

    Returns:
        the edited dataset; and a sentence for each edit.

    Raises:
        UserError: if a named episode, step or feature does not exist, or the datasets do not match.
    """
    datasets = [source.whole for source in chosen]
    keys = _renamed(datasets, edits)
    _refuse_differences(datasets, keys)
    spans = [
        {position: (0, source.whole.episodes[position].length) for position in source.positions} for source in chosen
    ]
    told = []
    if edits.trim_idle:
        told.append(_trim_idle(chosen, spans, copies_videos))
    first, its = datasets[0], spans[0]
    for name, (begin, end) in edits.trim.items():
        position = _position("--trim", name, chosen[0], its)
        length = first.episodes[position].length
        if not 0 <= begin < (length if end is None else end) <= length:
            raise UserError(f"--trim {name}@{begin}:{end or ''}: {first.episodes[position].name} has {length} steps")
        its[position] = max(begin, its[position][0]), min(length if end is None else end, its[position][1])
        if its[position][0] >= its[position][1]:
            raise UserError(f"--trim {name}@{begin}:{end or ''} and --trim_idle leave no step of it: use one of them")
    cuts = {_position("--split", name, chosen[0], its): (name, steps) for name, steps in edits.split.items()}
    pieces: list[Piece] = []
    for dataset, of_dataset in enumerate(spans):
        for position, (begin, end) in of_dataset.items():
            name, steps = cuts.get(position, ("", ())) if dataset == 0 else ("", ())
            for step in steps:
                if not begin < step < end:
                    raise UserError(
                        f"--split {name}@{step}: {name} has the steps {begin} to {end - 1}, cut within them"
                    )
            edges = [begin, *sorted(set(steps)), end]
            pieces += [Piece(dataset, position, *pair) for pair in itertools.pairwise(edges)]
    if edits.split:
        told.append(f"split: {', '.join(first.episodes[position].name for position in cuts)}")

    names = [
        {new: old for new, old in of_dataset.items() if old in (*source.all_cameras, *source.columns)}
        for source, of_dataset in zip(datasets, keys)
    ]
    cameras, camera_forms = _forms([source.all_cameras for source in datasets], names, datasets, pieces, "camera_forms")
    columns, column_forms = _forms([source.columns for source in datasets], names, datasets, pieces, "column_forms")
    state, action = _keys_of(datasets[0].state_keys, names[0]), _keys_of(datasets[0].action_keys, names[0])
    return EditedSource(
        path=first.path,
        format=first.format,
        episodes=tuple(_episode(datasets, piece) for piece in pieces),
        cameras={name: camera for name, camera in cameras.items() if not camera.is_depth},
        depth_cameras={name: camera for name, camera in cameras.items() if camera.is_depth},
        columns=columns,
        state_keys=state,
        action_keys=action,
        fps=first.fps,
        color_order=first.color_order,
        left_out=tuple(entry for source in datasets for entry in _left_out(source, datasets)),
        camera_forms=camera_forms,
        column_forms=column_forms,
        video_cameras=tuple(
            name
            for name in cameras
            if all(name not in its or its[name] in source.video_cameras for source, its in zip(datasets, names))
        ),
        notes=tuple(dict.fromkeys(note for source in chosen for note in source.notes)),
        metadata=first.metadata,
        datasets=tuple(datasets),
        pieces=tuple(pieces),
        keys=tuple(names),
    ), [line for line in told if line]


# Names -----------------------------------------------------------------------------------------------


def _renamed(datasets: Sequence[Source], edits: Edits) -> list[dict[str, str]]:
    """Of each dataset: new name → camera or column."""
    changed: list[dict[str, str | None]] = [{} for _ in datasets]
    wanted: list[tuple[str, str, str | None]] = [("--rename", old, new) for old, new in edits.rename.items()]
    wanted += [("--drop_features", name, None) for name in edits.drop_features]
    for setting, old, new in wanted:
        found = [feature_named(old, source) for source in datasets]
        if not any(found):
            its = ", ".join((*datasets[0].all_cameras, *datasets[0].columns))
            raise UserError(f"{setting}: {datasets[0].path} has no camera or column '{old}'; it has {its}")
        if new is not None and (not new or "/" in new or new.startswith(".")):
            raise UserError(f"--rename {old}={new}: a name needs at least one character, no '/' and no leading '.'")
        for key, of_dataset in zip(found, changed):
            if key is not None:
                of_dataset[key] = new
    names = []
    for source, of_dataset in zip(datasets, changed):
        new_names: dict[str, str] = {}
        for kind in (source.all_cameras, source.columns):
            for old in kind:
                changed_name = of_dataset.get(old, old)
                if changed_name is None:
                    continue
                if changed_name in new_names:
                    raise UserError(
                        f"--rename: '{new_names[changed_name]}' and '{old}' of {source.path} would both be named "
                        f"'{changed_name}': choose another name"
                    )
                new_names[changed_name] = old
        for what in ("state_keys", "action_keys"):
            its = getattr(source, what)
            if its and all(of_dataset.get(key, key) is None for key in its):
                raise UserError(f"--drop_features leaves no {what.removesuffix('_keys')} in {source.path}: keep one")
        names.append(new_names)
    return names


def _keys_of(keys: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    new_names = {old: new for new, old in names.items()}
    return tuple(new_names[key] for key in keys if key in new_names)


def _refuse_differences(datasets: Sequence[Source], keys: Sequence[Mapping[str, str]]) -> None:
    """Check that datasets to merge have the same cameras, state, action and control frequency.

    Raises:
        UserError: listing all differences.
    """

    def described(source: Source, names: Mapping[str, str]) -> dict[str, str]:
        facts = {"fps": "unknown" if source.fps is None else f"{source.fps:g}"}
        for new, old in names.items():
            camera = source.all_cameras.get(old)
            if camera is not None:
                facts[f"camera {new}"] = str(camera)
        for what, its in (("state", source.state_keys), ("action", source.action_keys)):
            sizes = {key: source.columns[names[key]].size for key in _keys_of(its, names)}
            facts[what] = ", ".join(f"{key} {size}" for key, size in sizes.items()) or "none"
        return facts

    facts = [described(source, names) for source, names in zip(datasets, keys)]
    differing = [
        what for what in dict.fromkeys(what for of in facts for what in of) if len({of.get(what) for of in facts}) > 1
    ]
    if differing:
        table = "; ".join(f"{what}: " + " | ".join(of.get(what, "none") for of in facts) for what in differing)
        paths = " | ".join(str(source.path) for source in datasets)
        raise UserError(
            f"--merge: {paths} do not match: {table}; rename by --rename OLD=NEW, leave out by "
            "--drop_features, or convert one of them first"
        )


# Content of the pieces ----------------------------------------------------------------------------------


def _episode(datasets: Sequence[Source], piece: Piece) -> SourceEpisode:
    recorded = datasets[piece.dataset].episodes[piece.position]
    name = recorded.name if piece.dataset == 0 else f"{datasets[piece.dataset].path}: {recorded.name}"
    if (piece.first, piece.end) != (0, recorded.length):
        name += f" (steps {piece.first} to {piece.end - 1})"
    return dataclasses.replace(recorded, name=name, length=piece.end - piece.first, number=None, files=())


def _forms(
    contents: Sequence[Mapping[str, _Form]],
    names: Sequence[Mapping[str, str]],
    datasets: Sequence[Source],
    pieces: Sequence[Piece],
    attribute: str,
) -> tuple[dict[str, _Form], dict[str, dict[int, Any]]]:
    """The usual forms of cameras or columns; and name → episode → its form there, where it differs."""
    usual: dict[str, _Form] = {}
    for content, of_dataset in zip(contents, names):
        for new, old in of_dataset.items():
            if old in content:
                usual.setdefault(new, content[old])
    others: dict[str, dict[int, Any]] = {}
    for new, form in usual.items():
        for episode, piece in enumerate(pieces):
            name = names[piece.dataset].get(new)
            content = contents[piece.dataset]
            here: Any = Fault("is not there")
            if name is not None and name in content:
                forms = getattr(datasets[piece.dataset], attribute)
                here = forms.get(name, {}).get(piece.position, content[name])
            if here != form:
                others.setdefault(new, {})[episode] = here
    return usual, others


def _left_out(source: Source, datasets: Sequence[Source]) -> list[LeftOut]:
    left_out = [entry for entry in source.left_out if entry.name not in source.depth_cameras]
    if source is datasets[0]:
        return left_out
    return [dataclasses.replace(entry, name=f"{source.path}: {entry.name}") for entry in left_out]


def _position(setting: str, name: str, source: SelectedSource, spans: Mapping[int, object]) -> int:
    """The position of the episode with a number or name."""
    (number, *more) = episodes_named(setting, [name], source)
    if more:
        raise UserError(f"{setting}: '{name}' names {len(more) + 1} episodes: choose one at a time")
    found = [position for position in spans if source.whole.number_of(position) == number]
    if not found:
        raise UserError(f"{setting}: episode '{name}' of {source.path} is left out: remove it from {setting}")
    return found[0]


# Idle steps ---------------------------------------------------------------------------------------------


def _trim_idle(
    chosen: Sequence[SelectedSource], spans: Sequence[dict[int, tuple[int, int]]], copies_videos: bool
) -> str:
    """Shorten the spans of episodes that begin or end without motion; returns a sentence on it."""
    removed: dict[str, int] = {}
    for source, of_dataset in zip(chosen, spans):
        facts, problems = scan(source, images=False, apart=True, config=None, files=NO_FILES)
        for problem in problems:
            raise UserError(f"{source.path}, {problem.sentence}: leave the episode out by --drop_episodes")
        kept = facts.steps_in(*_KEPT_IDLE)
        heads: dict[int, int] = {}
        for finding in idle_ends(facts):
            assert finding.episode is not None and finding.step is not None
            position = source.positions[finding.episode]
            begin, end = of_dataset[position]
            if finding.code == "idle-head":
                begin = max(begin, finding.step + finding.count - kept)
                heads[position] = begin
            else:
                end = min(end, finding.step + kept)
            of_dataset[position] = begin, end
        if copies_videos and heads and source.video_cameras:
            # A nearby step with a key frame in all cameras, if there is one: then videos need not be encoded again.
            back = facts.steps_in(*_TO_KEY_FRAME)
            jobs = [(source.whole, position, begin, back) for position, begin in heads.items()]
            found = run_jobs(_key_step, jobs, describe=_described, timeout=_SECONDS_TO_LOOK)
            for number, step in found:
                _, position, *_ = jobs[number]
                of_dataset[position] = step, of_dataset[position][1]
        for position, (begin, end) in of_dataset.items():
            episode = source.whole.episodes[position]
            if end - begin < episode.length:
                removed[episode.name] = episode.length - end + begin
    if not removed:
        return "idle steps: none at the beginning or end of an episode"
    listed = [f"{name} {count}" for name, count in removed.items()]
    more = f" and {len(listed) - _MOST_LISTED} more episodes" if len(listed) > _MOST_LISTED else ""
    return f"idle steps removed: {sum(removed.values())} ({', '.join(listed[:_MOST_LISTED])}{more})"


def _described(source: Source, position: int, *_: int) -> str:
    return f"{source.path}, {source.episodes[position].name}"


def _key_step(source: Source, position: int, begin: int, back: int) -> int:
    """In a child: the last step from `begin` - `back` to `begin` that all videos can begin at; `begin` if none is."""
    steps = range(max(0, begin - back), begin + 1)
    possible = np.ones(len(steps), bool)
    for camera in source.video_cameras:
        found = source.video_frames(position, camera, steps)
        possible &= begins_at_key_frame(*found) if found is not None else True
    return steps[int(np.flatnonzero(possible)[-1])] if possible.any() else begin
