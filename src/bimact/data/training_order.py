"""The windows of each optimizer step and their division over processes: resumable at any sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from bimact.data.recombination import ArmRecombination
from bimact.data.windows import WindowIndex


@dataclass(frozen=True)
class Part:
    """A batch of one process, and its weight in its optimizer step.

    The losses of a step are means over all windows of all processes: over real action steps (the action loss) and
    over windows (the KL divergence). Data-parallel training averages gradients over processes, so a part's own
    means are multiplied by these weights, which make the average over processes and the sum over parts exact.
    """

    windows: np.ndarray  # (B,); those from W on have a view or a partner, as `WindowDataset` says
    samples: slice  # their positions among all windows of the step
    action_weight: float  # processes x real action steps of the part / of the step
    window_weight: float  # processes x windows of the part / of the step


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    num_windows: int  # of all processes
    parts: tuple[Part, ...]  # of this process: at least one


class TrainingOrder(Sampler[list[int]]):
    """The windows of each epoch, over all processes, in an order that depends on the seed and the epoch alone.

    An epoch has as many samples as there are windows. Without weights each window occurs once; with weights, in
    proportion to its weight, rounded up or down at random so that the proportion holds over epochs.

    As a batch sampler it yields the windows of each part of this process. With R processes and A parts per step, a step
    takes the next R x A x batch_size windows of the order, divided equally over processes; an epoch's last step divides
    the remaining ones. A process without a share then takes one window with weight 0, since it has to take part in the
    all-reduce.

    Args:
        index: of the training windows.
        batch_size: windows of a part.
        seed: of the order.
        accumulate: A.
        rank: this process's number.
        ranks: R.
        weights: (W,) relative sampling frequencies of the windows; None: uniform.
        views: of each window's cached features; a sample has one of them, by seed, epoch and its place in the epoch.
        recombination: of arms; a sample's partner, too, depends on seed, epoch and its place in the epoch alone.

    Attributes:
        epoch: of the next iteration.
        done: windows of that epoch that are done already and skipped.
    """

    def __init__(
        self,
        index: WindowIndex,
        batch_size: int,
        seed: int,
        *,
        accumulate: int = 1,
        rank: int = 0,
        ranks: int = 1,
        weights: np.ndarray | None = None,
        views: int = 0,
        recombination: ArmRecombination | None = None,
    ) -> None:
        self._views = views
        self._index, self._recombination = index, recombination
        self._real_steps = index.real_steps()
        is_equal = weights is None or len(weights) == 0 or bool((weights == weights[0]).all())
        self._share = None if is_equal or weights is None else weights / weights.sum()
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._ranks = rank, ranks
        self.windows_per_step = batch_size * accumulate * ranks
        self.epoch = self.done = 0

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            for part in step.parts:
                yield part.windows.tolist()

    @property
    def num_windows(self) -> int:
        return len(self._real_steps)

    @property
    def steps_left(self) -> int:
        """Remaining optimizer steps of the epoch."""
        return -(-(self.num_windows - self.done) // self.windows_per_step)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_windows // self.windows_per_step)

    def length_of_run(self, step: int, num_epochs: int, num_steps: int | None) -> tuple[int, int]:
        """Optimizer steps and epochs of a whole run that has done `step` steps; `num_steps` has precedence."""
        if num_steps is None:
            after = num_epochs - self.epoch - 1
            return step + (self.steps_left + after * self.steps_per_epoch if after >= 0 else 0), num_epochs
        left = max(0, num_steps - step - self.steps_left)
        return num_steps, self.epoch + 1 + -(-left // self.steps_per_epoch)

    def state_dict(self) -> dict[str, int]:
        """The position, and the division of windows."""
        division = {"windows_a_step": self.windows_per_step, "ranks": self._ranks}
        return {"epoch": self.epoch, "done": self.done, **division}

    def load_state_dict(self, state: dict[str, int]) -> str | None:
        """Restore a position.

        Returns:
            a note if windows were divided differently; else None.
        """
        self.epoch, self.done = state["epoch"], state["done"]
        if (state["windows_a_step"], state["ranks"]) == (self.windows_per_step, self._ranks):
            return None
        return (
            f"A step takes {self.windows_per_step} samples in {_processes(self._ranks)}, it took "
            f"{state['windows_a_step']} in {_processes(state['ranks'])}: each epoch still has the same samples, but "
            "the losses are not those of a run without the change"
        )

    def steps(self) -> Iterator[Step]:
        """The steps of the epoch that are not done yet."""
        order = self._order()
        for first in range(self.done, self.num_windows, self.windows_per_step):
            yield self._divide(order[first : first + self.windows_per_step])

    def _order(self) -> np.ndarray:
        """(W,) the epoch's windows, with views and partners as `WindowDataset` numbers them.

        With weights, by systematic sampling: the windows, in random order, divide a line of length W in proportion to
        their weights, and the points u, u + 1, u + 2, … on it are drawn.
        """
        draw = np.random.default_rng((self._seed, self.epoch))
        order = draw.permutation(self.num_windows)
        if self._share is not None:
            ends = np.cumsum(self._share[order])
            points = (np.arange(self.num_windows) + draw.random()) / self.num_windows
            order = draw.permutation(order[np.searchsorted(ends / ends[-1], points, side="right")])
        if self._views:
            order = order + self.num_windows * draw.integers(1, self._views + 1, size=self.num_windows)
        if self._recombination is not None:
            partners = self._recombination.partners(self._index.rows[order], self._index.first[order], draw)
            order = order + self.num_windows * (1 + partners)
        return order

    def _divide(self, windows: np.ndarray) -> Step:
        count = len(windows)
        first, last = (count * rank // self._ranks for rank in (self._rank, self._rank + 1))
        real_steps = self._num_real_steps(windows)
        if first == last:
            return Step(count, (Part(windows[:1], slice(0, 1), 0.0, 0.0),))
        parts = []
        for begin in range(first, last, self._batch_size):
            samples = slice(begin, min(begin + self._batch_size, last))
            own = windows[samples]
            action_weight = self._ranks * self._num_real_steps(own) / real_steps
            parts.append(Part(own, samples, float(action_weight), self._ranks * len(own) / count))
        return Step(count, tuple(parts))

    def _num_real_steps(self, windows: np.ndarray) -> int:
        """Action steps of some windows that are not padding, also not in a partner's chunk."""
        real_steps = self._real_steps[windows % self.num_windows]
        if self._recombination is not None:
            partner = windows // self.num_windows - 1
            left = self._recombination.steps_left(np.maximum(partner, 0))
            real_steps = np.where(partner >= 0, np.minimum(real_steps, left), real_steps)
        return int(real_steps.sum())


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
