"""A run's demonstrations, divided into training and validation, and over the processes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from bimact.config import Config
from bimact.data.episodes import Episodes
from bimact.data.loader import Loader
from bimact.data.normalize import compute_statistics
from bimact.data.training_order import TrainingOrder
from bimact.data.windows import WindowDataset, WindowIndex, in_batches, split_episodes
from bimact.policy.act import ActPolicy
from bimact.train.ranks import Ranks


def fill_from_dataset(config: Config, episodes: Episodes) -> Config:
    """Settle what the config leaves to the dataset: cameras and the sizes of images, state and action."""
    cameras = list(episodes.cameras)  # by the dataset's own names, which the user may have given with a prefix
    sizes = {size for camera, size in episodes.recorded_sizes.items() if camera in cameras}
    return dataclasses.replace(
        config,
        cameras=cameras,
        image_size=list(sizes.pop()) if len(sizes) == 1 else None,
        state_dim=episodes.state.shape[1],
        action_dim=episodes.actions.shape[1],
    )


@dataclass
class Demonstrations:
    """What a run learns from and what it is validated on.

    Attributes:
        train_episodes: numbers of the training episodes; the statistics come from them alone.
        training: their windows.
        validation: windows of the episodes that are held out; None without any.
    """

    episodes: Episodes
    train_episodes: np.ndarray
    training: WindowDataset
    validation: WindowDataset | None

    @classmethod
    def split(cls, episodes: Episodes, config: Config) -> Demonstrations:
        def windows(chosen: np.ndarray) -> WindowDataset:
            index = WindowIndex.over(episodes, chosen, config.temporal_context, config.chunk_size)
            return WindowDataset(episodes, index, config.cameras)

        train_episodes, held_out = split_episodes(episodes.lengths, config.val_split, config.seed)
        return cls(episodes, train_episodes, windows(train_episodes), windows(held_out) if len(held_out) else None)

    def fit_normalizers(self, policy: ActPolicy) -> None:
        """Give a policy the statistics of the training episodes."""
        for normalizer, rows in (
            (policy.state_normalizer, self.episodes.state),
            (policy.action_normalizer, self.episodes.actions),
        ):
            parts = (rows[self.episodes.rows_of(number)] for number in self.train_episodes)
            normalizer.fit(compute_statistics(parts))


@dataclass
class Loaders:
    """Batches of this process.

    Attributes:
        order: decides what `training` gives when it is iterated.
        validation: this process's share; None without held-out episodes.
    """

    order: TrainingOrder
    training: Loader
    validation: Loader | None

    @classmethod
    def of(cls, demonstrations: Demonstrations, config: Config, ranks: Ranks, pin_memory: bool) -> Loaders:
        training, validation = demonstrations.training, demonstrations.validation
        order = TrainingOrder(
            training.index,
            config.batch_size,
            config.seed,
            accumulate=config.gradient_accumulation_steps,
            rank=ranks.rank,
            ranks=ranks.count,
        )
        return cls(
            order,
            Loader(training, order, num_workers=config.num_workers, pin_memory=pin_memory),
            None
            if validation is None
            else Loader(
                validation,
                in_batches(ranks.share(len(validation)), config.batch_size),
                num_workers=config.num_workers,
                pin_memory=pin_memory,
            ),
        )
