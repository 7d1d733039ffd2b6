"""A run's demonstrations: opened as its config selects them, split for training and validation, divided among ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bimact.config import Config
from bimact.data.default_state import action_in_state
from bimact.data.episodes import Episodes, Rows
from bimact.data.loader import Loader
from bimact.data.normalize import Statistics, compute_statistics, relative_chunk_statistics
from bimact.data.opening import arrays_of, open_source
from bimact.data.recombination import ArmRecombination
from bimact.data.sample_weights import with_sample_weights
from bimact.data.selection import ACTION, STATE, SelectedSource, Selection, parse_dims
from bimact.data.source import Source
from bimact.data.summary import dataset_lines, unusable_lines
from bimact.data.training_order import TrainingOrder
from bimact.data.windows import WindowDataset, WindowIndex, in_batches, split_each
from bimact.encoder.base import input_size
from bimact.errors import UserError
from bimact.policy.act import ActPolicy
from bimact.policy.metadata import Interface
from bimact.training.ranks import Ranks


def open_demonstrations(
    config: Config, path: str | Path, log: Callable[[str], None] = print, *, for_training: bool = True
) -> tuple[Episodes, SelectedSource]:
    """Open a dataset, the columns and cameras that a policy uses, with images in the size that its encoder needs.

    Args:
        log: prints lines on the data that are used, left out and skipped.
        for_training: False: a state that contains the action is reported, not refused.

    Returns:
        the demonstrations as arrays, and their source.

    Raises:
        UserError: as `open_dataset`; if sizes of state or action differ from the config's, the dataset has images of
            which none can be read, or its state contains the action.
    """
    source = select_demonstrations(config, path)
    for line in dataset_lines(source):
        log(line)
    return read_demonstrations(config, source, log, for_training=for_training)


def select_demonstrations(config: Config, path: str | Path, opened: Source | None = None) -> SelectedSource:
    """The first half of `open_demonstrations`: nothing is decoded yet."""
    source = Selection.of(config).applied_to(opened or open_source(path, cache_dir=config.cache_dir))
    source.require_camera()
    for setting, wanted, size in (
        ("state_dim", config.state_dim, source.columns[STATE].size),
        ("action_dim", config.action_dim, source.columns[ACTION].size),
    ):
        if wanted not in (None, size):  # before images are decoded, which may take hours
            raise UserError(
                f"{setting} is {wanted} in the config, but {source.path} has {size}: set {setting} to {size} or null, "
                f"or select dimensions by {setting}s"
            )
    return source


def read_demonstrations(
    config: Config, source: SelectedSource, log: Callable[[str], None], *, for_training: bool = True
) -> tuple[Episodes, SelectedSource]:
    """The second half of `open_demonstrations`."""
    episodes, read = arrays_of(source, config.cache_dir, input_size(config.encoder))
    episodes = dataclasses.replace(episodes, tasks=tuple(episode.task for episode in read.episodes))
    episodes, read = with_sample_weights(config, episodes, read)
    for line in unusable_lines(read, known=source.unusable):
        log(line)
    if len(read.episodes) < len(source.episodes):
        log(f"Episodes: {len(read.episodes)} are left, {read.num_steps} steps")
    for note in read.notes[len(source.notes) :]:
        log(f"Note:     {note}")
    sentence = None
    if not any(read.action.shifts):  # else the action was asked for as a later state
        rows = [episodes.rows_of(number) for number in range(len(episodes.lengths))]
        states, actions = ([values[part] for part in rows] for values in (episodes.state, episodes.actions))
        sentence = action_in_state(states, actions, read.state.parts, read.action.keys)
    if sentence is not None:
        if for_training and read.selection.state_keys is None:
            raise UserError(
                f"{read.path}: {sentence}, so that a policy would copy it: choose other columns by --state_keys, or "
                "name this one there if it is meant"
            )
        log(f"Note:     {sentence}")
    return episodes, read


def fill_from_dataset(config: Config, episodes: Episodes) -> Config:
    """Fill in the config's null keys from the dataset: cameras and the sizes of images, state and action."""
    relative_to = None
    if config.action_mode == "relative":
        relative_to = _relative_to(config, episodes)
    cameras = list(episodes.cameras)  # the dataset's own names; the user may have given them with a prefix
    tasks = None
    if config.task_conditioning != "none":
        tasks = sorted({task for task in episodes.tasks or () if task is not None})
        episodes.with_task_numbers(tasks)
    sizes = {size for camera, size in episodes.recorded_sizes.items() if camera in cameras}
    return dataclasses.replace(
        config,
        cameras=cameras,
        image_size=list(sizes.pop()) if len(sizes) == 1 else None,
        state_dim=episodes.state.shape[1],
        action_dim=episodes.actions.shape[1],
        relative_to=relative_to,
        tasks=tasks,
        depth_cameras=[camera for camera in cameras if camera in episodes.depth_cameras] or None,
    )


def _relative_to(config: Config, episodes: Episodes) -> list[int]:
    """The state's dimension that each dimension of the action is relative to: by name, or else by index."""
    states, names = episodes.state_names, episodes.joint_names
    size, state_size = episodes.actions.shape[1], episodes.state.shape[1]
    if config.relative_dims is not None:
        chosen = set(parse_dims("relative_dims", config.relative_dims, size))
    else:
        chosen = {place for place in range(size) if names is None or "gripper" not in names[place].lower()}
    found = []
    for place in range(size):
        name = str(place) if names is None else f"{place} ({names[place]})"
        if place not in chosen:
            found.append(-1)
        elif names is not None and states is not None and states.count(names[place]) == 1:
            found.append(states.index(names[place]))
        elif state_size == size:
            found.append(place)
        else:
            raise UserError(
                f"action_mode is relative, but no dimension of the state belongs to dimension {name} of the action: "
                "leave it out by relative_dims, or choose a state with the same dimensions by state_keys"
            )
    return found


@dataclass
class Demonstrations:
    """The demonstrations of a run, split into training and validation.

    Attributes:
        train_episodes: numbers of the training episodes; the statistics come from them alone.
        training: their windows.
        validation: windows of the held-out episodes; None without any.
        validation_parts: of a mixture, name of each dataset that has held-out episodes → their windows.
    """

    episodes: Episodes
    train_episodes: np.ndarray
    training: WindowDataset
    validation: WindowDataset | None
    validation_parts: dict[str, WindowDataset] = field(default_factory=dict)

    @classmethod
    def split(cls, episodes: Episodes, config: Config) -> Demonstrations:
        def windows(chosen: np.ndarray, recombination: ArmRecombination | None = None) -> WindowDataset:
            index = WindowIndex.over(episodes, chosen, config.temporal_context, config.chunk_size)
            return WindowDataset(episodes, index.drawn(episodes), config.cameras, recombination)

        train_episodes, held_out = split_each(episodes, config.val_split, config.seed)
        recombination = ArmRecombination.of(config, episodes, train_episodes) if config.recombine_arms else None
        parts = {name: np.intersect1d(numbers, held_out) for name, numbers in episodes.episodes_of_parts.items()}
        return cls(
            episodes,
            train_episodes,
            windows(train_episodes, recombination),
            windows(held_out) if len(held_out) else None,
            {name: windows(numbers) for name, numbers in parts.items() if len(numbers)},
        )

    def statistics(self, config: Config) -> tuple[Statistics, Statistics]:
        """Of states and of actions, over the training episodes."""
        state, actions = (
            compute_statistics(self._training_rows(rows), quantiles=mode == "quantile")
            for rows, mode in (
                (self.episodes.state, config.state_normalization),
                (self.episodes.actions, config.action_normalization),
            )
        )
        return state, actions

    def _training_rows(self, rows: Rows) -> Iterator[np.ndarray]:
        return (rows[self.episodes.rows_of(number)] for number in self.train_episodes)

    def fit(self, policy: ActPolicy, config: Config, state: Statistics, actions: Statistics) -> None:
        """Give a new policy the normalisation of the training episodes."""
        policy.state_normalizer.fit(state, config.state_normalization)
        policy.action_normalizer.fit(actions, config.action_normalization)
        if policy.relative_normalizer is not None:
            each_step = relative_chunk_statistics(
                list(self._training_rows(self.episodes.state)),
                list(self._training_rows(self.episodes.actions)),
                config.relative_to or (),
                config.chunk_size,
                quantiles=config.action_normalization == "quantile",
            )
            policy.relative_normalizer.fit(each_step, config.action_normalization)

    def interface(self, config: Config, state: Statistics, actions: Statistics) -> Interface:
        """The inputs and outputs of a policy, from the demonstrations."""
        episodes = self.episodes
        return Interface(
            cameras={camera: episodes.recorded_sizes[camera] for camera in episodes.cameras},
            state_names=episodes.state_names,
            action_names=episodes.joint_names,
            control_frequency=episodes.fps,
            state_range=tuple(zip(state.low.tolist(), state.high.tolist())),
            action_range=tuple(zip(actions.low.tolist(), actions.high.tolist())),
            task=episodes.task,
            tasks=None if config.tasks is None else tuple(config.tasks),
        )


@dataclass
class Loaders:
    """Batches of this process.

    Attributes:
        training: in the given order.
        validation: this process's part, for each dataset of a mixture; empty without held-out episodes.
    """

    training: Loader
    validation: dict[str, Loader]

    @classmethod
    def of(cls, data: Demonstrations, order: TrainingOrder, config: Config, ranks: Ranks, pin_memory: bool) -> Loaders:
        parts = data.validation_parts or ({} if data.validation is None else {"": data.validation})
        validation = {}
        for name, windows in parts.items():
            share = in_batches(ranks.share(len(windows)), config.batch_size)
            validation[name] = Loader(windows, share, num_workers=config.num_workers, pin_memory=pin_memory)
        return cls(Loader(data.training, order, num_workers=config.num_workers, pin_memory=pin_memory), validation)
