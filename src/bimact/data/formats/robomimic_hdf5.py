"""robomimic's demonstrations: one HDF5 file, with a group `data/demo_<number>` for each.

- `actions` (T, A); its rows are the demonstration's steps, and the attribute `num_samples` says as many;
- `obs/<key>`: cameras, (T, H, W, 3) or (T, 3, H, W) uint8 RGB, and vectors (T, D) or (T,). Both keep their key for a
  name, such as "agentview_image" and "robot0_eef_pos"; images of other shapes, such as depth, are left out, which the
  metadata say;
- `states`, `rewards`, `dones` and other vectors beside `actions` are columns too; `next_obs` is not read;
- `mask/<filter key>`: names of demonstrations, such as those for training.

The state is `eef_pos`, `eef_quat` and `gripper_qpos` of each robot and arm (`robot0_…`, `robot1_…`, `robot0_left_…`),
as in robomimic's own settings; without them, all vectors of `obs` but those of objects, which a robot does not feel.
The rate is the simulation's `control_freq` in `env_args`; the task is a demonstration's language, else the
environment's name.

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

from bimact.data.formats.hdf5 import (
    SUFFIXES,
    attribute,
    dataset_at,
    file_inside,
    find_dataset,
    find_group,
    has_signature,
    hdf5_files,
    json_of,
    members,
    natural_order,
    open_hdf5,
    printable,
    rate_of,
    read_texts,
    read_vectors,
    text_of,
)
from bimact.data.formats.hdf5_episodes import Contents, columns_in_common, described, frames_of, steps_of
from bimact.data.source import Format, Source, SourceEpisode
from bimact.errors import UserError

_ACTION = "actions"
_DEMO = re.compile(r"demo_\d+")
_STATE = re.compile(r"(robot\d+_(?:\w+_)?)(eef_pos|eef_quat|gripper_qpos)")
_STATE_PARTS = ("eef_pos", "eef_quat", "gripper_qpos")
_NO_STATE = re.compile("object")
_IMAGE_AXES = 4
_TASKS = ("language_instruction", "task", "prompt", "lang")
_LONGEST_TASK = 1000  # characters
_ADVICE = "remove the demonstration from the file"


@dataclass
class _Demo(Contents):
    """What one demonstration holds.

    Attributes:
        observed: columns that are observations.
    """

    name: str = ""
    task: str | None = None
    observed: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RobomimicHdf5(Source):
    """Demonstrations of one file.

    Attributes:
        file: relative to `path`; "." for the path itself.
        filter_keys: names of subsets → their demonstrations.
    """

    file: str
    filter_keys: Mapping[str, tuple[str, ...]]

    def filtered(self, name: str) -> RobomimicHdf5:
        """The demonstrations that the file lists under `mask/<name>`.

        Raises:
            UserError: if there is no such list, or it names others than there are.
        """
        if name not in self.filter_keys:
            has = ", ".join(self.filter_keys) or "none"
            raise UserError(f"{self.path} has no filter key '{name}'; it has {has}")
        chosen = set(self.filter_keys[name])
        episodes = tuple(episode for episode in self.episodes if episode.name in chosen)
        missing = natural_order(chosen - {episode.name for episode in episodes})
        if missing or not episodes:
            lacks = f"names {missing[0]}, which is not there" if missing else "names no demonstration"
            raise UserError(f"{self.path}: the filter key '{name}' {lacks}: choose another one")
        return dataclasses.replace(self, episodes=episodes)

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        with self._demo(episode) as demo:
            return {key: read_vectors(dataset_at(demo, key, f"obs/{key}")) for key in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        name = self.episodes[episode].name
        with self._demo(episode) as demo:
            yield from frames_of(
                dataset_at(demo, f"obs/{camera}"),
                steps,
                self.cameras[camera],
                swaps=False,
                describe=lambda step: f"{demo.file.filename}, {name}, camera {camera}, step {step}",
            )

    @contextmanager
    def _demo(self, episode: int) -> Iterator[h5py.Group]:
        with open_hdf5(file_inside(self.path, self.file)) as file:
            name = self.episodes[episode].name
            demo = find_group(file, f"data/{name}")
            if demo is None:
                raise UserError(f"{file.filename} has no data/{name} any more: copy it again")
            yield demo


def is_robomimic_hdf5(path: Path) -> bool:
    """Whether a path is such a file, or a folder with some. A single HDF5 file that is damaged counts as one."""
    names = ["."] if path.is_file() else hdf5_files(path)
    layouts = [_has_layout(path, name) for name in names]
    if layouts == [None]:
        file = path / names[0]
        return file.suffix.lower() in SUFFIXES and has_signature(file)
    return any(layouts)


def open_robomimic_hdf5(path: Path, cache_dir: Path | None) -> RobomimicHdf5:
    """Open a file, or the only such file in a folder. It is read as it is.

    Raises:
        UserError: if the file is damaged or holds what cannot be read without risk; or if a demonstration differs from
            most in its cameras, its images' sizes, or its state's or action's size.
    """
    path = path.absolute()
    name = "." if path.is_file() else _only_file(path)
    with open_hdf5(file_inside(path, name)) as file:
        data = find_group(file, "data")
        demos = [] if data is None else [_read(data, demo, str(path / name)) for demo in _demo_names(data)]
        used = [demo for demo in demos if demo.length]
        if data is None or not used:
            raise UserError(f"{path / name} holds no demonstrations with steps (data/demo_<number>)")
        environment = json_of(data, "env_args")
        general_task = _task_of(data) or _plain_text(environment.get("env_name"))
        filter_keys = _filter_keys(find_group(file, "mask"))
    parts = {name for demo in used for name in demo.columns if _STATE.fullmatch(name)}
    columns, left_out = columns_in_common(used, (_ACTION, *sorted(parts)), _ADVICE)
    return RobomimicHdf5(
        path=path,
        format="robomimic HDF5",
        episodes=tuple(SourceEpisode(demo.name, demo.length, (name,), demo.task or general_task) for demo in used),
        cameras=used[0].cameras,
        columns=columns,
        state_keys=_state_keys([key for key in columns if key in used[0].observed]),
        action_keys=(_ACTION,),
        fps=_fps(environment),
        files=(name,),
        skipped=tuple(f"{demo.where} has no steps" for demo in demos if not demo.length),
        metadata={**_about(environment, filter_keys), **described(left_out)},
        file=name,
        filter_keys=filter_keys,
    )


FORMAT = Format(name="robomimic's HDF5 file", recognizes=is_robomimic_hdf5, open=open_robomimic_hdf5)


# The file -------------------------------------------------------------------------------------------


def _has_layout(path: Path, name: str) -> bool | None:
    """Whether a file holds demonstrations; None: it cannot be read."""
    try:
        with open_hdf5(file_inside(path, name)) as file:
            data = find_group(file, "data")
            return data is not None and bool(_demo_names(data))
    except UserError:
        return None


def _only_file(folder: Path) -> str:
    names = hdf5_files(folder)
    found = [name for name in names if _has_layout(folder, name)] or names
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found)} files of demonstrations: name one of them, such as {found[0]}")
    return found[0]


def _demo_names(data: h5py.Group) -> list[str]:
    return natural_order(name for name in members(data) if _DEMO.fullmatch(name))


def _read(data: h5py.Group, name: str, path: str) -> _Demo:
    """What a demonstration holds; none of it is read."""
    group = find_group(data, name)
    where = f"{path}, {name}"
    if group is None:
        raise UserError(f"{where} is no group of datasets: {_ADVICE}")
    length = steps_of(find_dataset(group, _ACTION), _ACTION, where)
    samples = attribute(group, "num_samples")
    if samples is not None and samples != length:
        raise UserError(f"{where}: {_ACTION} has {length} rows, num_samples says {samples}: {_ADVICE}")
    demo = _Demo(where, length, name=name, task=_task_of(group))
    observations = find_group(group, "obs")
    if length:
        demo.add_columns(group, required=(_ACTION,))
    if length and observations is not None:
        _add_observations(demo, observations)
    return demo


def _add_observations(demo: _Demo, group: h5py.Group) -> None:
    before = set(demo.columns)
    for name in members(group):
        dataset = find_dataset(group, name)
        if dataset is None:
            continue
        demo.check_rows(dataset)
        if dataset.ndim == _IMAGE_AXES:
            demo.add_camera(name, dataset, decodes=False)
        else:
            demo.add_columns(group, [name], required=[name] if _STATE.fullmatch(name) else ())
    demo.observed = [name for name in demo.columns if name not in before]


def _state_keys(observed: Sequence[str]) -> tuple[str, ...]:
    """Columns that make up the state, among those that are observations."""
    matches = [match for name in observed if (match := _STATE.fullmatch(name))]
    arms = natural_order({match[1] for match in matches})
    usual = [f"{arm}{part}" for arm in arms for part in _STATE_PARTS if f"{arm}{part}" in observed]
    return tuple(usual or sorted(name for name in observed if not _NO_STATE.match(name)))


def _filter_keys(mask: h5py.Group | None) -> dict[str, tuple[str, ...]]:
    """Names of subsets → names of their demonstrations."""
    datasets = {key: find_dataset(mask, key) for key in members(mask)} if mask is not None else {}
    texts = {key: read_texts(dataset) for key, dataset in datasets.items() if dataset is not None}
    return {key: tuple(natural_order(set(names))) for key, names in texts.items()}


# Attributes -----------------------------------------------------------------------------------------


def _task_of(group: h5py.Group) -> str | None:
    """What a demonstration, or all of them, say of their task in words."""
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
