"""Training samples with the left arm of one demonstration and the right arm of another (`recombine_arms`).

Counterfactual data augmentation (CoDA, Pitis et al. 2020, arXiv:2007.02863) for two arms: as long as neither arm's
motion depends on the other's object, N demonstrations at the same step show N² scenes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bimact.config import Config
from bimact.data.episodes import Episodes
from bimact.errors import UserError


@dataclass(frozen=True)
class ArmRecombination:
    """What belongs to the left arm, and from which demonstrations it may come.

    Attributes:
        probability: that a sample's left arm is of another demonstration.
        state: (S,) bool, dimensions of the left arm.
        actions: (A,) bool, dimensions of the left arm.
        columns: camera → the columns of its images that show the left arm, first and end.
        groups: (E,) number of each episode's dataset and task; only episodes of one group are recombined; -1: an
            episode that is not used.
        starts: (E,) first row of each episode.
        lengths: (E,) steps of each episode.
        weights: (N,) of the samples at each step; a weight of 0 is left out; None: all are used.
    """

    probability: float
    state: np.ndarray
    actions: np.ndarray
    columns: Mapping[str, tuple[int, int]]
    groups: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray | None

    @classmethod
    def of(cls, config: Config, episodes: Episodes, chosen: np.ndarray) -> ArmRecombination:
        """The recombination of some episodes, named by their numbers.

        A dimension is of the left arm if its name has `left`; without names the first half is. A wrist camera shows its
        arm alone; any other one shows the left arm in the left half of the encoder's crop.

        Raises:
            UserError: if no name, or each, has `left`, or a camera may show the arms elsewhere.
        """
        _, left, _, width = config.encoder.crop or (0.0, 0.0, 1.0, 1.0)
        columns = {}
        for camera in config.cameras or ():
            wide, name = episodes.images[camera].shape[2], camera.lower()
            is_left, is_right = "left" in name, "right" in name
            is_on_arm = any(part in name for part in ("wrist", "hand", "gripper")) or name in ("left", "right")
            if (is_left or is_right) != is_on_arm or (is_left and is_right):
                raise UserError(
                    f"recombine_arms cannot tell by the name of camera '{camera}' where its images show the left arm: "
                    "leave it out by --cameras, or set recombine_arms to 0"
                )
            columns[camera] = (0, round((left + width / 2) * wide) if not is_on_arm else wide if is_left else 0)
        parts = list(episodes.episodes_of_parts.values()) or [np.arange(len(episodes.lengths))]
        tasks = episodes.tasks or (None,) * len(episodes.lengths)
        groups, numbers = np.full(len(episodes.lengths), -1), dict[tuple[int, str | None], int]()
        for part, members in enumerate(parts):
            for episode in np.intersect1d(members, chosen):
                groups[episode] = numbers.setdefault((part, tasks[episode]), len(numbers))
        return cls(
            probability=config.recombine_arms,
            state=_of_left_arm(episodes, "state", episodes.state_names, episodes.state.shape[1]),
            actions=_of_left_arm(episodes, "action", episodes.joint_names, episodes.actions.shape[1]),
            columns=columns,
            groups=groups,
            starts=episodes.starts,
            lengths=episodes.lengths,
            weights=episodes.weights,
        )

    def partners(self, rows: np.ndarray, first: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """The rows whose left arm samples get: the same step of an episode of the same group, drawn equally often.

        Args:
            rows: (B,) of the samples' current steps.
            first: (B,) first row of each one's episode.
            draw: random numbers.

        Returns:
            (B,) rows; -1: the sample keeps its own left arm, also if the drawn episode is too short.
        """
        chance, choice = draw.random((2, len(rows)))
        group = self.groups[self.episode_of(rows)]
        partner = np.zeros(len(rows), np.int64)
        for number in np.unique(group):
            members, of_group = np.flatnonzero(self.groups == number), group == number
            partner[of_group] = members[(choice[of_group] * len(members)).astype(np.int64)]
        step = rows - first
        is_used = (chance < self.probability) & (step < self.lengths[partner])
        found = np.where(is_used, self.starts[partner] + step, 0)
        if self.weights is not None:
            is_used &= self.weights[found] > 0
        return np.where(is_used, found, -1)

    def episode_of(self, rows: np.ndarray) -> np.ndarray:
        """(B,) episodes that rows belong to."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def steps_left(self, rows: np.ndarray) -> np.ndarray:
        """(B,) steps from rows to the ends of their episodes, both included."""
        episode = self.episode_of(rows)
        return np.asarray(self.starts[episode] + self.lengths[episode] - rows)

    def line(self) -> str:
        """What is recombined, in one line."""
        shown = "".join(f", columns {begin}-{end - 1} of {name}" for name, (begin, end) in self.columns.items() if end)
        return (
            f"recombine_arms: {self.probability:.0%} of the samples get the left arm of another demonstration at the "
            f"same step: dimensions {_numbers(self.state)} of the state, {_numbers(self.actions)} of the action{shown}"
        )


def _of_left_arm(episodes: Episodes, kind: str, names: tuple[str, ...] | None, size: int) -> np.ndarray:
    if names is None:
        return np.arange(size) < size // 2
    found = np.array(["left" in name.lower() for name in names])
    if not found.any() or found.all():
        raise UserError(
            f"{episodes.path}: recombine_arms needs names of {kind} dimensions of which some have 'left', and these "
            f"are {', '.join(names)}: set recombine_arms to 0"
        )
    return found


def _numbers(chosen: np.ndarray) -> str:
    """Dimensions as ranges, such as `0-6`."""
    numbers = np.flatnonzero(chosen)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs if len(run))
