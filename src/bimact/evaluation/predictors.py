"""What of predicted chunks may tell how well a policy does on the robot, where there is no simulation of it.

Letters: W windows of an episode, L its steps, C chunk_size, A action_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bimact.data.episodes import Rows
from bimact.data.windows import WindowIndex
from bimact.policy.ensembling import TemporalEnsemble
from bimact.policy.metadata import Execution

CRITICAL_SECONDS = 0.5  # before and after a gripper change
_HARDLY_LARGER = 1.05  # factor of the error up to which images of other moments change nothing
_STILL = 0.01  # a step's motion below this share of the joint's standard deviation is no motion


def gripper_changes(actions: np.ndarray, grippers: Sequence[int], limits: np.ndarray) -> np.ndarray:
    """Steps at which a gripper passes the middle of its range, up or down.

    It has passed when it is beyond the middle by a tenth of its range, so that noise about the middle is no change.

    Args:
        actions: (L, A) of an episode.
        grippers: columns of the grippers.
        limits: (A, 2) lowest and highest action of all episodes.

    Returns:
        the steps, sorted.
    """
    changes: set[int] = set()
    for gripper in grippers:
        low, high = limits[gripper]
        if high - low < 1e-6:
            continue
        opening = (actions[:, gripper] - low) / (high - low)
        side = np.where(opening > 0.6, 1, np.where(opening < 0.4, -1, 0))
        known = np.flatnonzero(side)
        passed = known[1:][side[known][1:] != side[known][:-1]]
        changes.update(passed.tolist())
    return np.array(sorted(changes), dtype=int)


def executed_actions(chunks: np.ndarray, steps: np.ndarray, execution: Execution, length: int) -> list[np.ndarray]:
    """What would be executed at the steps of an episode, from chunks that were predicted at its observations.

    Args:
        chunks: (W, C, A).
        steps: (W,) at which they were predicted, ascending.
        execution: of the policy.
        length: L.

    Returns:
        arrays (L, A), NaN where no chunk reaches. With temporal ensembling there is one. Otherwise one for each step k
        of a chunk that is executed, with the action of the chunk of k steps before: in a rollout, each of them acts
        equally often.
    """
    if execution.temporal_ensemble:
        executed = np.full((length, chunks.shape[2]), np.nan)
        ensemble = TemporalEnsemble(chunks.shape[1], execution.ensemble_coefficient, execution.ensemble_window)
        for number, step in enumerate(steps):
            if number and step != steps[number - 1] + 1:  # windows between them are left out
                ensemble.reset()
            executed[step] = ensemble.update(chunks[number][None])[0]
        return [executed]
    ahead = []
    for k in range(execution.execute_steps):
        executed = np.full((length, chunks.shape[2]), np.nan)
        real = steps + k < length
        executed[steps[real] + k] = chunks[real, k]
        ahead.append(executed)
    return ahead


def reversals(chunks: np.ndarray, real: np.ndarray, std: np.ndarray) -> tuple[int, int]:
    """How often motions reverse their direction from one step of a chunk to the next.

    Args:
        chunks: (N, C, A).
        real: (N,) how many steps of each are no padding.
        std: (A,) standard deviation of the training's actions.

    Returns:
        reversals, and pairs of neighbouring motions, over all joints.
    """
    motions = np.diff(chunks, axis=1) / std
    motions[np.abs(motions) < _STILL] = 0
    is_pair = np.arange(chunks.shape[1] - 2) + 3 <= real[:, None]  # three steps, two motions
    opposite = motions[:, 1:] * motions[:, :-1] < 0
    return int((opposite & is_pair[..., None]).sum()), int(is_pair.sum()) * chunks.shape[2]


class ChunkMetrics:
    """Collects predicted chunks, batch by batch.

    Args:
        execution: how the policy executes them.
        std: (A,) standard deviation of the training's actions.
        grippers: columns of the grippers; none: there is no error at their changes.
        index: of all windows, in the order in which they come.
        actions: (N, A) demonstrated, of all rows.
        fps: of the demonstrations; None: unknown, as 50.
    """

    def __init__(
        self,
        execution: Execution,
        std: np.ndarray,
        grippers: Sequence[int],
        index: WindowIndex,
        actions: Rows,
        fps: float | None,
    ) -> None:
        self._execution, self._std, self._grippers = execution, std, grippers
        self._index, self._actions = index, actions
        episodes = [actions[first : last + 1] for first, last in sorted(set(zip(index.first, index.last)))]
        self._limits = np.stack(
            [np.min([e.min(axis=0) for e in episodes], axis=0), np.max([e.max(axis=0) for e in episodes], axis=0)],
            axis=1,
        )
        self._chunks: list[np.ndarray] = []  # (B, C, A) of windows whose episode is not complete
        self._done = self._received = 0  # windows of complete episodes; all so far
        self._radius = max(1, round(CRITICAL_SECONDS * (fps or 50.0)))
        self._changes = 0
        self._errors: list[np.ndarray] = []  # (N,) mean over joints, at gripper changes
        self._reversals = np.zeros(2, dtype=int)
        self._demonstrated = np.zeros(2, dtype=int)
        self._spread, self._spread_count = 0.0, 0

    def add(self, chunks: np.ndarray) -> None:
        """The predictions (B, C, A) of the next windows."""
        self._chunks.append(chunks)
        self._received += len(chunks)
        first, last = self._index.first, self._index.last
        while self._done < self._received:
            end = int(np.searchsorted(first[self._done :] != first[self._done], True)) + self._done
            if end > self._received:
                return
            known = np.concatenate(self._chunks)
            rows = self._index.rows[self._done : end]
            start = int(first[self._done])
            actions = np.asarray(self._actions[start : int(last[self._done]) + 1], dtype=np.float32)
            self._add_episode(known[: len(rows)], rows - start, actions)
            self._chunks, self._done = [known[len(rows) :]], end

    def _add_episode(self, chunks: np.ndarray, steps: np.ndarray, actions: np.ndarray) -> None:
        """Predictions (W, C, A) at some steps (W,) of an episode, and its actions (L, A)."""
        length, chunk_size = len(actions), chunks.shape[1]
        changes = gripper_changes(actions, self._grippers, self._limits)
        self._changes += len(changes)
        is_critical = (np.abs(np.arange(length)[:, None] - changes) <= self._radius).any(axis=1)
        for executed in executed_actions(chunks, steps, self._execution, length):
            errors = np.abs(executed - actions).mean(axis=1)[is_critical]
            self._errors.append(errors[np.isfinite(errors)])
        real = np.minimum(length - steps, chunk_size)
        self._reversals += reversals(chunks, real, self._std)
        self._demonstrated += reversals(actions[None], np.array([length]), self._std)
        # Of each step, all chunks that reach it.
        sums, squares, counts = np.zeros(actions.shape), np.zeros(actions.shape), np.zeros(length)
        for k in range(chunk_size):
            there = steps[k < real] + k
            values = chunks[k < real, k].astype(np.float64)
            sums[there] += values
            squares[there] += values**2
            counts[there] += 1
        several = counts > 1
        mean = sums[several] / counts[several, None]
        variance = (squares[several] / counts[several, None] - mean**2).clip(min=0)
        self._spread += float(np.sqrt(variance).mean(axis=1).sum())
        self._spread_count += int(several.sum())

    def summary(self) -> dict[str, Any]:
        """`mae_at_gripper_changes` of executed actions (null without a change), `gripper_changes`,
        `direction_reversals` and those of the demonstrations, as shares of neighbouring motions; `chunk_spread`, the
        standard deviation over the chunks that reach a step, in the robot's units (null if none overlap)."""
        errors = np.concatenate(self._errors) if self._errors else np.zeros(0)
        return {
            "mae_at_gripper_changes": float(errors.mean()) if len(errors) else None,
            "gripper_changes": self._changes,
            "direction_reversals": float(self._reversals[0] / max(1, self._reversals[1])),
            "direction_reversals_demonstrated": float(self._demonstrated[0] / max(1, self._demonstrated[1])),
            "chunk_spread": self._spread / self._spread_count if self._spread_count else None,
        }


def predictors_line(offline: Mapping[str, Any]) -> str:
    """What of `evaluation.json` is told after the mean absolute error."""
    errors = [f"with changed images and states {offline['mae_perturbed']:.4f}"]
    errors[0] += f" (unchanged {offline['mae_of_the_same_windows']:.4f})"
    if "mae_with_other_images" in offline:
        errors.append(
            "with images of other moments {all:.4f} ({unchanged:.4f})".format(**offline["mae_with_other_images"])
        )
    if offline["mae_at_gripper_changes"] is not None:
        errors.insert(0, f"at gripper changes {offline['mae_at_gripper_changes']:.4f}")
    shares = (offline["direction_reversals"], offline["direction_reversals_demonstrated"])
    others = ["direction reversals {:.1%} of motions (demonstrations {:.1%})".format(*shares)]
    if offline["chunk_spread"] is not None:
        others.append(f"spread of overlapping chunks {offline['chunk_spread']:.4f}")
    return f"Error {', '.join(errors)}; {', '.join(others)}"


def unused_images(offline: Mapping[str, Any]) -> str | None:
    """A sentence on images that hardly matter to a policy's predictions; None: they do, or it was not measured."""
    errors = dict(offline.get("mae_with_other_images", {}))
    if not errors:
        return None
    unchanged, everything = errors.pop("unchanged"), errors.pop("all")
    told = f"with those of other moments the error is {everything:.4f} instead of {unchanged:.4f}"
    if everything < _HARDLY_LARGER * unchanged:
        return f"the policy hardly uses its images: {told}. It will not see where objects are"
    unused = [camera for camera, error in errors.items() if error < _HARDLY_LARGER * unchanged]
    return f"the policy hardly uses the images of {', '.join(unused)}: see mae_with_other_images" if unused else None
