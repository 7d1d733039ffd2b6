"""Training samples: for each time step, the observation history, the future actions, and their padding mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset

from bimact.data.episodes import Episodes
from bimact.data.recombination import ArmRecombination
from bimact.errors import UserError

Batch = tuple[dict[str, Tensor], Tensor]


def split_episodes(lengths: Sequence[int] | np.ndarray, val_split: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split episodes, never their steps, into training and validation.

    Args:
        lengths: steps of each episode; only the number of episodes matters.
        val_split: fraction of episodes to hold out. Above 0 at least one is held out, and at least one is left for
            training.
        seed: of the random choice.

    Returns:
        the numbers of the training and of the validation episodes, each sorted.
    """
    count = len(lengths)
    held_out = min(max(1, round(val_split * count)), count - 1) if val_split > 0 else 0
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def split_each(episodes: Episodes, val_split: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`split_episodes`; of a mixture each dataset for itself, so that each has its share of validation episodes."""
    parts = list(episodes.episodes_of_parts.values()) or [np.arange(len(episodes.lengths))]
    splits = [(numbers, split_episodes(episodes.lengths[numbers], val_split, seed)) for numbers in parts]
    train, held_out = (np.concatenate([numbers[split[side]] for numbers, split in splits]) for side in (0, 1))
    return train, held_out


@dataclass(frozen=True)
class WindowIndex:
    """The rows of the window at each time step of some episodes.

    Before an episode's first step the first observation is repeated; after its last step the last action is
    repeated and marked as padding. No window crosses an episode boundary, and each step of the episodes is
    the current step of exactly one window.
    """

    temporal_context: int
    chunk_size: int
    rows: np.ndarray  # (W,) row of each window's current step
    first: np.ndarray  # (W,) first row of its episode
    last: np.ndarray  # (W,) last row of its episode

    @classmethod
    def over(cls, episodes: Episodes, chosen: np.ndarray, temporal_context: int, chunk_size: int) -> WindowIndex:
        starts, lengths = episodes.starts[chosen], episodes.lengths[chosen]
        rows = [np.arange(start, start + length) for start, length in zip(starts, lengths)]
        return cls(
            temporal_context=temporal_context,
            chunk_size=chunk_size,
            rows=np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64),
            first=np.repeat(starts, lengths),
            last=np.repeat(starts + lengths - 1, lengths),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def drawn(self, episodes: Episodes) -> WindowIndex:
        """The windows whose samples have a weight above 0."""
        if episodes.weights is None:
            return self
        kept = episodes.weights[self.rows] > 0
        return replace(self, rows=self.rows[kept], first=self.first[kept], last=self.last[kept])

    def observations(self, windows: np.ndarray) -> np.ndarray:
        """(B,) window numbers → (B, T) rows, oldest first."""
        past = np.arange(1 - self.temporal_context, 1)
        return np.maximum(self.rows[windows, None] + past, self.first[windows, None])

    def real_steps(self) -> np.ndarray:
        """(W,) number of actions of each window's chunk that are not padding."""
        return np.minimum(self.last - self.rows + 1, self.chunk_size)

    def actions(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) window numbers → (B, C) rows and (B, C) whether each is padding."""
        wanted = self.rows[windows, None] + np.arange(self.chunk_size)
        last = self.last[windows, None]
        return np.minimum(wanted, last), wanted > last


class WindowDataset(Dataset[Batch]):
    """Windows as whole batches: a list of window numbers in, one batch out.

    A batch is `obs, actions`: `image_<camera>` (B, T, 3, H, W) uint8, `state` (B, T, S) float32,
    `action_is_pad` (B, C) bool; actions (B, C, A) float32. Images are gathered from the memory map in one
    indexing operation per camera; their memory layout is (B, T, H, W, 3), the fastest for convolutions on
    channels-last tensors. If the episodes have an encoder's tokens, these replace the images: `features_<camera>`
    (B, T, rows, columns, E). Where they have tokens of augmented images too, in `views`,
    window w + v · W (W windows) has those of view v, counted from 1. With `recombination`, window
    w + (1 + r) · W has the left arm of the window at row r. Of episodes with task
    numbers there is `task` (B,) int64.
    """

    def __init__(
        self,
        episodes: Episodes,
        index: WindowIndex,
        cameras: Sequence[str] | None = None,
        recombination: ArmRecombination | None = None,
    ) -> None:
        self.episodes = episodes
        self.index = index
        self.recombination = recombination
        self.cameras = tuple(cameras) if cameras is not None else episodes.cameras
        unknown = [camera for camera in self.cameras if camera not in episodes.images]
        if unknown:
            raise UserError(
                f"{episodes.path} has no camera '{unknown[0]}'; it has {', '.join(episodes.cameras) or 'none'}"
            )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, window: int) -> Batch:
        obs, actions = self.__getitems__([window])
        return {name: value[0] for name, value in obs.items()}, actions[0]

    def __getitems__(self, windows: Sequence[int]) -> Batch:
        view, chosen = np.divmod(np.asarray(windows), len(self.index))
        partner = np.full(len(view), -1)
        if self.recombination is not None:
            partner, view = view - 1, np.zeros_like(view)
        observation_rows = self.index.observations(chosen)
        action_rows, is_pad = self.index.actions(chosen)
        obs = dict(self._seen(camera, observation_rows, view) for camera in self.cameras)
        state = _gather(self.episodes.state, observation_rows)
        obs["state"] = torch.from_numpy(np.ascontiguousarray(state, dtype=np.float32))
        if self.episodes.task_numbers is not None:
            obs["task"] = torch.from_numpy(self.episodes.task_numbers[self.index.rows[chosen]])
        obs["action_is_pad"] = torch.from_numpy(is_pad)
        actions = torch.from_numpy(np.ascontiguousarray(_gather(self.episodes.actions, action_rows), dtype=np.float32))
        if (partner >= 0).any():
            self._take_left_arms(obs, actions, partner)
        return obs, actions

    def _take_left_arms(self, obs: dict[str, Tensor], actions: Tensor, partner: np.ndarray) -> None:
        """Replace the left arms of the samples with a partner row (B,) that is not -1."""
        assert self.recombination is not None
        which = torch.from_numpy(np.flatnonzero(partner >= 0))
        rows = partner[partner >= 0]
        episode = self.recombination.episode_of(rows)
        first = self.recombination.starts[episode]
        index = replace(self.index, rows=rows, first=first, last=first + self.recombination.lengths[episode] - 1)
        cameras = [camera for camera in self.cameras if self.recombination.columns[camera][1]]
        other, other_actions = WindowDataset(self.episodes, index, cameras).__getitems__(range(len(rows)))
        of_left = torch.from_numpy(self.recombination.state)
        obs["state"][which] = torch.where(of_left, other["state"], obs["state"][which])
        of_left = torch.from_numpy(self.recombination.actions)
        actions[which] = torch.where(of_left, other_actions, actions[which])
        obs["action_is_pad"][which] |= other["action_is_pad"]
        for camera in cameras:
            begin, end = self.recombination.columns[camera]
            obs[f"image_{camera}"][which, ..., begin:end] = other[f"image_{camera}"][..., begin:end]

    def _seen(self, camera: str, rows: np.ndarray, view: np.ndarray) -> tuple[str, Tensor]:
        """A camera's entry of the observation at rows (B, T), each sample with its view (B,)."""
        if camera in self.episodes.features:
            views = (self.episodes.features, *self.episodes.views)
            source = views[view[0]][camera]
            gathered = _gather(source, rows)
            for other in np.unique(view[view != view[0]]):
                gathered[view == other] = _gather(views[other][camera], rows[view == other])
            features = torch.from_numpy(gathered)
            return f"features_{camera}", features.view(torch.bfloat16) if features.dtype == torch.uint16 else features
        return f"image_{camera}", torch.from_numpy(_gather(self.episodes.images[camera], rows)).permute(0, 1, 4, 2, 3)


def _gather(source: object, rows: np.ndarray) -> np.ndarray:
    """Rows, given in any shape, of an array (N, …)."""
    return np.ascontiguousarray(source[rows.reshape(-1)]).reshape(*rows.shape, *source.shape[1:])  # type: ignore


def in_batches(windows: Iterable[int], batch_size: int) -> BatchSampler:
    """Windows in order, as batches; the last one may be smaller."""
    return BatchSampler(windows, batch_size, drop_last=False)
