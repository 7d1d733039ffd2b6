"""robomimic's demonstrations: one HDF5 file, with a group `data/demo_<number>` for each.

- `actions` (T, A); its rows are the demonstration's steps, also given by the attribute `num_samples`;
- `obs/<key>`: cameras, (T, H, W, 3) or (T, 3, H, W) uint8 RGB, and vectors (T, D) or (T,). Both are named by
  their keys, such as "agentview_image" and "robot0_eef_pos"; depth and unreadable content is left out with the reason;
- `states`, `rewards`, `dones` and other vectors next to `actions` are columns too; `next_obs` is not read;
- `mask/<filter key>`: names of demonstrations, such as those for training.

The state is `eef_pos`, `eef_quat` and `gripper_qpos` of each robot and arm (`robot0_…`, `robot1_…`, `robot0_left_…`),
as in robomimic's own settings; without them, the vectors of `obs` whose names denote robot measurements.
The control frequency is the simulation's `control_freq` in `env_args`; the task is a demonstration's language
instruction, else the environment's name.

Source: https://robomimic.github.io/docs/datasets/overview.html; robomimic/config/base_config.py and
robomimic/utils/dataset.py in https://github.com/ARISE-Initiative/robomimic.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bimact.data.default_state import guessed_state
from bimact.data.formats.hdf5 import (
    SUFFIXES,
    Contents,
    Value,
    agreed,
    attribute,
    dataset_at,
    file_inside,
    find_dataset,
    find_group,
    frames_of,
    has_signature,
    hdf5_files,
    is_link,
    is_no,
    json_of,
    members,
    natural_order,
    number_notes,
    numbers_in,
    open_hdf5,
    printable,
    rate_of,
    read_texts,
    read_vectors,
    steps_of,
    text_of,
    walk,
)
from bimact.data.formats.images import conversion_notes
from bimact.data.source import Format, LeftOut, Source, SourceEpisode, Unusable
from bimact.errors import UserError, some_of

_ACTION = "actions"
_STATE = re.compile(r"(robot\d+_(?:\w+_)?)(eef_pos|eef_quat|gripper_qpos)")
_STATE_PARTS = ("eef_pos", "eef_quat", "gripper_qpos")
_TASKS = ("language_instruction", "task", "prompt", "lang")
_LONGEST_TASK = 1000  # characters
_MOST_LISTED = 10
_IMAGE_AXES = 4


@dataclass
class _Demo(Contents):
    """The content of one demonstration.

    Attributes:
        observed: columns that are observations.
    """

    name: str = ""
    number: int = 0
    task: str | None = None
    success: Value | None = None
    observed: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RobomimicHdf5(Source):
    """Demonstrations in one file.

    Attributes:
        file: relative to `path`; "." for the path itself.
        filter_keys: names of subsets → their demonstrations.
        whites: camera of floats → the value of white.
        depth_scales: depth camera → millimetres per unit.
    """

    file: str
    filter_keys: Mapping[str, tuple[str, ...]]
    whites: Mapping[str, float]
    depth_scales: Mapping[str, float]

    def filtered(self, name: str) -> RobomimicHdf5:
        """The demonstrations listed under `mask/<name>`.

        Raises:
            UserError: if there is no such list, or it names missing demonstrations.
        """
        if name not in self.filter_keys:
            has = ", ".join(self.filter_keys) or "none"
            raise UserError(f"{self.path} has no filter key '{name}'; it has {has}")
        chosen = set(self.filter_keys[name])
        kept = [place for place, episode in enumerate(self.episodes) if episode.name in chosen]
        unusable = tuple(episode for episode in self.unusable if episode.name in chosen)
        known = {self.episodes[place].name for place in kept} | {episode.name for episode in unusable}
        missing = natural_order(chosen - known)
        if missing or not known:
            lacks = f"names {missing[0]}, which does not exist" if missing else "names no demonstration"
            raise UserError(f"{self.path}: the filter key '{name}' {lacks}: choose another one")

        def moved(forms: Mapping[str, Mapping[int, Any]]) -> dict[str, dict[int, Any]]:
            return {key: {new: of[old] for new, old in enumerate(kept) if old in of} for key, of in forms.items()}

        return dataclasses.replace(
            self,
            episodes=tuple(self.episodes[place] for place in kept),
            unusable=unusable,
            notes=tuple(note for note in self.notes if note not in _of_all_subsets(self.filter_keys)),
            camera_forms=moved(self.camera_forms),
            column_forms=moved(self.column_forms),
        )

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        with self._demo(episode) as demo:
            return {key: read_vectors(dataset_at(demo, key, f"obs/{key}")) for key in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        name, in_groups = self.episodes[episode].name, camera.replace(".", "/")
        with self._demo(episode) as demo:
            yield from frames_of(
                # As named by `_read`: next to the action, else in obs; "." stands for "/".
                dataset_at(demo, camera, f"obs/{camera}", f"obs/{in_groups}", in_groups),
                steps,
                swaps=False,
                white=self.whites.get(camera, 1.0),
                depth_scale=self.depth_scales.get(camera),
                describe=lambda step: f"{demo.file.filename}, {name}, camera {camera}, step {step}",
            )

    @contextmanager
    def _demo(self, episode: int) -> Iterator[h5py.Group]:
        with open_hdf5(file_inside(self.path, self.file)) as file:
            name = self.episodes[episode].name
            demo = find_group(file, f"data/{name}")
            if demo is None:
                raise UserError(f"{file.filename} no longer has data/{name}: copy it again")
            yield demo


def is_robomimic_hdf5(path: Path) -> bool:
    """Whether a path is such a file, or a folder that contains some. A single damaged HDF5 file counts as one."""
    names = ["."] if path.is_file() else hdf5_files(path)
    layouts = [_has_layout(path, name) for name in names]
    if layouts == [None]:
        file = path / names[0]
        return file.suffix.lower() in SUFFIXES and has_signature(file)
    return any(layouts)


def open_robomimic_hdf5(path: Path, cache_dir: Path | None) -> RobomimicHdf5:
    """Open a file, or the only such file in a folder; nothing is converted.

    Raises:
        UserError: if the file is damaged, or contains no readable demonstration with steps.
    """
    path = path.absolute()
    name = "." if path.is_file() else _only_file(path)
    where = str(path) if name == "." else str(path / name)
    with open_hdf5(file_inside(path, name)) as file:
        data = find_group(file, "data")
        names = [] if data is None else _demo_names(data)
        read = [] if data is None else [_read(data, demo, n, where) for demo, n in zip(names, numbers_in(names))]
        demos = [demo for demo in read if demo.fault is None]
        unusable = tuple(
            Unusable(demo.number, demo.name, demo.fault, demo.is_missing) for demo in read if demo.fault is not None
        )
        if data is None or not demos:
            told = "; ".join(episode.sentence for episode in unusable[:_MOST_LISTED])
            raise UserError(
                f"{where} contains no demonstrations with steps (data/demo_<number>)" + (f": {told}" if told else "")
            )
        environment = json_of(data, "env_args")
        aside = _left_aside(file, data, read)
        general_task = _task_of(data) or _plain_text(environment.get("env_name"))
        filter_keys = _filter_keys(find_group(file, "mask"))
    found = agreed(demos)
    observed = {key for demo in demos for key in demo.observed}
    return RobomimicHdf5(
        path=path,
        format="robomimic HDF5",
        episodes=tuple(
            SourceEpisode(demo.name, demo.length, (name,), demo.task or general_task, demo.number, is_no(demo.success))
            for demo in demos
        ),
        cameras=found.cameras,
        columns=found.columns,
        state_keys=_state_keys([key for key in found.columns if key in observed], found.left_out),
        action_keys=(_ACTION,) if _ACTION in found.columns else (),
        fps=_fps(environment),
        files=(name,),
        unusable=unusable,
        left_out=found.left_out,
        depth_cameras=found.depth_cameras,
        camera_forms=found.camera_forms,
        column_forms=found.column_forms,
        notes=(
            *number_notes(names, [demo.number for demo in read]),
            *aside,
            *_of_all_subsets(filter_keys),
            *conversion_notes([demo.forms for demo in demos], found.whites),
        ),
        metadata=_about(environment, filter_keys),
        file=name,
        filter_keys=filter_keys,
        whites=found.whites,
        depth_scales=found.depth_scales,
    )


FORMAT = Format(name="robomimic's HDF5 file", recognizes=is_robomimic_hdf5, open=open_robomimic_hdf5)


# The file -------------------------------------------------------------------------------------------


def _has_layout(path: Path, name: str) -> bool | None:
    """Whether a file contains demonstrations; None: it cannot be read."""
    try:
        with open_hdf5(file_inside(path, name)) as file:
            data = find_group(file, "data")
            return data is not None and bool(_demo_names(data))
    except UserError:
        return None


def _only_file(folder: Path) -> str:
    names = hdf5_files(folder)
    layouts = {name: _has_layout(folder, name) for name in names}
    found = [name for name, has_layout in layouts.items() if has_layout] or names
    if len(found) != 1:
        raise UserError(
            f"{folder} contains {len(found)} files of demonstrations: choose one of them, such as {found[0]}"
        )
    damaged = [name for name, has_layout in layouts.items() if has_layout is None and name != found[0]]
    if damaged:  # they may contain demonstrations, too
        raise UserError(
            f"{folder} contains {found[0]} and files that cannot be read ({some_of(damaged)}): copy these again, or "
            f"choose the file to use, such as {folder / found[0]}"
        )
    return found[0]


def _left_aside(file: h5py.File, data: h5py.Group, read: Sequence[_Demo]) -> list[str]:
    """Notes on unread content of a file."""
    known = {demo.name for demo in read}
    names = [f"data/{name}" for name in data if name not in known]
    names += [name for name in file if name not in ("data", "mask")]
    told = some_of([ascii(name)[1:-1] for name in names])
    notes = [f"not read, since demonstrations are groups in data without a leading dot in their names: {told}"]
    notes = notes if names else []
    total, steps = attribute(data, "total"), sum(demo.length for demo in read)
    if isinstance(total, int) and total > steps and not any(demo.fault for demo in read):
        notes.append(f"the attribute total is {total} steps, but the demonstrations have {steps}: some may be missing")
    return notes


def _demo_names(data: h5py.Group) -> list[str]:
    return natural_order(name for name in members(data) if is_link(data, name) or find_group(data, name) is not None)


def _read(data: h5py.Group, name: str, number: int, path: str) -> _Demo:
    """The content of a demonstration; only its first images are read."""
    demo = _Demo(f"{path}, {name}", name=name, number=number)
    try:
        group = find_group(data, name)
        action = None if group is None else find_dataset(group, _ACTION)
        if group is None or action is None:
            raise UserError(f"it has no {_ACTION}")
        demo.length = steps_of(action, demo.where)
        demo.task = _task_of(group)
        demo.success = attribute(group, "success")
        samples = attribute(group, "num_samples")
        if samples is not None and samples != demo.length:
            raise UserError(f"{_ACTION} has {demo.length} rows, num_samples says {samples}")
        if not demo.length:
            demo.fault, demo.is_missing = "it has no steps", True
            return demo
        for key in members(group):
            if is_link(group, key):
                demo.add(key, "is a link, and links are not followed")
            elif isinstance(group[key], h5py.Dataset):
                demo.add(key, group[key])
            elif key not in ("obs", "next_obs"):
                demo.add(key, "is a group; only the group obs is read")
        before = {*demo.columns, *demo.cameras, *demo.left_out}
        observations = find_group(group, "obs")
        for key, item in walk(observations) if observations is not None else ():
            name = f"obs/{key}" if key in before else key  # such as the previous action next to the action
            demo.add(
                name,
                item,
                camera=name.replace("/", "."),
                is_camera=not isinstance(item, str) and item.ndim == _IMAGE_AXES,
            )
        demo.observed = [key for key in demo.columns if key not in before]
    except UserError as error:
        demo.fault = error.reason
    return demo


def _of_all_subsets(filter_keys: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    if not filter_keys:
        return ()
    told = ", ".join(f"{key} ({len(names)})" for key, names in filter_keys.items())
    return (f"the demonstrations of all subsets are used; --filter_key chooses one of {told}",)


def _state_keys(observed: Sequence[str], left_out: Sequence[LeftOut]) -> tuple[str, ...]:
    """The columns of the state among the observations."""
    known = [*observed, *(entry.name for entry in left_out)]
    matches = [match for name in known if (match := _STATE.fullmatch(name))]
    arms = natural_order({match[1] for match in matches})
    usual = [f"{arm}{part}" for arm in arms for part in _STATE_PARTS if f"{arm}{part}" in observed]
    return tuple(usual) if matches else guessed_state(sorted(observed))


def _filter_keys(mask: h5py.Group | None) -> dict[str, tuple[str, ...]]:
    """Names of subsets → names of their demonstrations."""
    datasets = {key: find_dataset(mask, key) for key in members(mask)} if mask is not None else {}
    texts = {key: read_texts(dataset) for key, dataset in datasets.items() if dataset is not None}
    return {key: tuple(natural_order(set(names))) for key, names in texts.items()}


# Attributes -----------------------------------------------------------------------------------------


def _task_of(group: h5py.Group) -> str | None:
    """The task description of a demonstration, or of all of them."""
    told = [text_of(group, *_TASKS), json_of(group, "ep_meta").get("lang")]
    told.append(json_of(group, "problem_info").get("language_instruction"))
    return next((text for value in told if (text := _plain_text(value))), None)


def _plain_text(value: object) -> str | None:
    return printable(value)[:_LONGEST_TASK] or None if isinstance(value, str) else None


def _fps(environment: Mapping[str, Any]) -> float | None:
    settings = environment.get("env_kwargs")
    return rate_of(settings.get("control_freq")) if isinstance(settings, dict) else None


def _about(environment: Mapping[str, Any], filter_keys: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    name = _plain_text(environment.get("env_name"))
    keys = {key: list(names) for key, names in filter_keys.items()}
    return {**({"env_name": name} if name else {}), **({"filter_keys": keys} if keys else {})}
