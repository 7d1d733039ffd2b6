"""The compact facts about a dataset that checks use: vectors of all steps, and a few numbers for each image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from bimact.check.findings import Finding, at_steps
from bimact.check.kinds import KINDS, Severity
from bimact.config import Config
from bimact.data.idle import spans
from bimact.data.source import SourceEpisode

_SAMPLED_ROWS = 200_000  # for quantiles: their error is far below the tolerance of thresholds
_CLOSENESS = 0.5  # correlation with states above which actions are joint positions, even if they lag
GRIPPER_OF_ALOHA = (6, 13)
_ALOHA_SIZE = 14


@dataclass(frozen=True)
class Vectors:
    """The state or the action of all steps.

    Attributes:
        what: "state" or "action".
        parts: of each episode (T, D) float32; no rows where they could not be read.
        names: of the dimensions; None: unknown.
        dtype: in the files.
        file: where they are stored, if the format has one file for all.
    """

    what: Literal["state", "action"]
    parts: tuple[np.ndarray, ...]
    names: tuple[str, ...] | None = None
    dtype: str = "float32"
    file: str = ""

    @property
    def size(self) -> int:
        return int(self.parts[0].shape[1])

    def name(self, number: int) -> str:
        return f"{self.what}[{number}]" + (f" ({self.names[number]})" if self.names else "")

    def listed(self, numbers: np.ndarray, most: int = 8) -> str:
        names = ", ".join(self.name(int(number)) for number in numbers[:most])
        return names + (f" and {len(numbers) - most} more" if len(numbers) > most else "")

    def clean(self, episode: int) -> np.ndarray:
        """(T, D) with non-finite rows replaced by the last finite one; no rows if none is finite."""
        values = self.parts[episode]
        is_good = np.isfinite(values).all(axis=1)
        if is_good.all():
            return values
        if not is_good.any():
            return values[:0]
        last_good = np.maximum.accumulate(np.where(is_good, np.arange(len(values)), -1))
        return values[np.where(last_good < 0, np.argmax(is_good), last_good)]

    @cached_property
    def _sample(self) -> np.ndarray:
        """(K, D) evenly chosen finite rows."""
        every = max(1, sum(len(part) for part in self.parts) // _SAMPLED_ROWS)
        rows: np.ndarray = np.concatenate([part[::every] for part in self.parts])
        finite: np.ndarray = rows[np.isfinite(rows).all(axis=1)]
        return finite

    @cached_property
    def span(self) -> np.ndarray:
        """(D,) spans over the dataset (`bimact.data.idle.spans`)."""
        return spans(self._sample)

    @property
    def scale(self) -> np.ndarray:
        """(D,) the span; for a constant dimension, the median of the others; infinite if all are constant."""
        moving = np.isfinite(self.span)
        return np.where(moving, self.span, np.median(self.span[moving]) if moving.any() else np.inf)

    @cached_property
    def usual_change(self) -> np.ndarray:
        """(D,) 99% quantile of the change per step."""
        every = max(1, sum(len(part) for part in self.parts) // _SAMPLED_ROWS)
        sampled = (self.clean(episode) for episode in range(0, len(self.parts), every))
        changes = [np.abs(np.diff(values, axis=0)) for values in sampled if len(values) > 1]
        return np.quantile(np.concatenate(changes), 0.99, axis=0) if changes else np.zeros(self.size)

    @cached_property
    def limits(self) -> np.ndarray:
        """(2, E, D) minimum and maximum of each episode; NaN where an episode has no finite row."""
        found = np.full((2, len(self.parts), self.size), np.nan)
        for episode in range(len(self.parts)):
            values = self.clean(episode)
            if len(values):
                found[:, episode] = values.min(axis=0), values.max(axis=0)
        return found

    @cached_property
    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """(D,) minimum and (D,) maximum of all; NaN if there is no finite row."""
        low, high = self.limits
        known = ~np.isnan(low[:, 0])
        if not known.any():
            return np.full(self.size, np.nan), np.full(self.size, np.nan)
        return low[known].min(axis=0), high[known].max(axis=0)

    def dims_named(self, *words: str) -> np.ndarray:
        """(D,) bool: the dimensions with one of these words in their names.

        Without names, the grippers of two arms of six joints are identified by their indices.
        """
        if self.names is not None:
            return np.array([any(word in name.lower() for word in words) for name in self.names], dtype=bool)
        chosen = np.zeros(self.size, dtype=bool)
        if self.size == _ALOHA_SIZE:
            chosen[list(GRIPPER_OF_ALOHA)] = True
        return chosen


@dataclass(frozen=True)
class Cut:
    """A change from one image to the next.

    Attributes:
        step: of the second image.
        before: the first image's thumbnail (12, 16, 3) uint8.
        after: the second image's.
    """

    step: int
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class FrameFacts:
    """One camera's images in one episode, T of them. Brightness is in grey levels from 0 to 255.

    Attributes:
        brightness: (T,) float16: mean.
        spread: (T,) float16: standard deviation over the image, mean of the colours.
        change: (T,) float16: mean absolute difference to the image before; 0 for the first.
        change_over_two: (T,) float16: to the one before that; 0 for the first two.
        is_repeat: (T,) bool: the image before, to the last bit.
        average: (12, 16, 3) uint8: mean of all thumbnails.
        cuts: the largest changes, in the order of steps.
        digest: of all images.
    """

    brightness: np.ndarray
    spread: np.ndarray
    change: np.ndarray
    change_over_two: np.ndarray
    is_repeat: np.ndarray
    average: np.ndarray
    cuts: tuple[Cut, ...]
    digest: bytes

    def __len__(self) -> int:
        return len(self.change)


def pair_dimensions(
    state_names: Sequence[str] | None, action_names: Sequence[str] | None, state_size: int, action_size: int
) -> list[tuple[int, int]]:
    """Dimensions of state and action that belong to one joint: of the same name, a name that occurs twice in order.

    Where no names are known or none occurs in both, those of the same index, if state and action have the same size.
    """
    if state_names is None or action_names is None or not set(state_names) & set(action_names):
        return [(number, number) for number in range(state_size)] if state_size == action_size else []
    unpaired = dict(enumerate(action_names))
    pairs = []
    for number, name in enumerate(state_names):
        match = next((other for other, its_name in unpaired.items() if its_name == name), None)
        if match is not None:
            del unpaired[match]
            pairs.append((number, match))
    return pairs


@dataclass(frozen=True)
class Facts:
    """The facts about a dataset that checks use.

    Attributes:
        timestamps: of each episode (T,) seconds; None: the format has none.
        frames: camera → of each episode; None: left out, or unreadable.
        state_parts: the columns of the state, and their sizes.
        action_keys: the columns of the action.
        is_action_later_state: the user selected a later state as the action.
        is_state_chosen: the user selected the state's columns.
        config: the settings of the training; None: not given.
        lengths_file: the file that lengths are in, where the format has one.
    """

    episodes: tuple[SourceEpisode, ...]
    state: Vectors
    action: Vectors
    timestamps: tuple[np.ndarray | None, ...]
    frames: Mapping[str, tuple[FrameFacts | None, ...]]
    fps: float | None = None
    color_order: str | None = None
    state_parts: tuple[tuple[str, int], ...] = ()
    action_keys: tuple[str, ...] = ()
    is_action_later_state: bool = False
    is_state_chosen: bool = False
    config: Config | None = None
    lengths_file: str = ""

    @property
    def vectors(self) -> tuple[Vectors, Vectors]:
        return self.state, self.action

    @property
    def lengths(self) -> np.ndarray:
        return np.array([episode.length for episode in self.episodes])

    def steps_in(self, seconds: float, otherwise: int) -> int:
        """Number of steps in some seconds, at least 1; `otherwise` where the fps is unknown."""
        return otherwise if self.fps is None else max(1, round(seconds * self.fps))

    @cached_property
    def pairs(self) -> np.ndarray:
        """(K, 2) dimensions of state and action that belong to one joint."""
        found = pair_dimensions(self.state.names, self.action.names, self.state.size, self.action.size)
        return np.array(found, dtype=int).reshape(-1, 2)

    @cached_property
    def position_pairs(self) -> np.ndarray:
        """(K, 2) the pairs if actions are joint positions, which the state follows; (0, 2) if they are relative."""
        chosen = self.pairs
        correlations = [value for pair in chosen if (value := self._closeness(*pair)) is not None]
        return chosen if correlations and np.median(correlations) > _CLOSENESS else chosen[:0]

    def _closeness(self, state: int, action: int) -> float | None:
        """Correlation of two dimensions over all steps; None: one is constant."""
        if np.isinf(self.state.span[state]) or np.isinf(self.action.span[action]):
            return None
        sampled = range(0, len(self.episodes), max(1, len(self.episodes) // 200))
        values = [(its_state[:, state], its_action[:, action]) for its_state, its_action in map(self.both, sampled)]
        joined = np.concatenate([np.stack(pair) for pair in values], axis=1, dtype=np.float64)  # (2, N)
        if joined.shape[1] < 3 or (np.ptp(joined, axis=1) == 0).any():
            return None
        return float(np.asarray(np.corrcoef(joined))[0, 1])

    def both(self, episode: int) -> tuple[np.ndarray, np.ndarray]:
        """State and action of an episode, without NaN; no rows if one of them has none."""
        state, action = self.state.clean(episode), self.action.clean(episode)
        steps = min(len(state), len(action))
        return state[:steps], action[:steps]

    def finding(
        self,
        code: str,
        text: str,
        *,
        episode: int | None = None,
        steps: Sequence[int] | np.ndarray = (),
        camera: str | None = None,
        file: str = "",
        severity: Severity | None = None,
        is_predicate: bool = False,
    ) -> Finding:
        """A finding whose sentence begins with its location.

        Args:
            text: what was found.
            is_predicate: the text continues the location to a sentence; otherwise a colon separates them.
            steps: the steps of the episode that it concerns, ascending.
        """
        name = None if episode is None else self.episodes[episode].name
        place = ", ".join(part for part in (file, name) if part)
        step, count = (int(steps[0]), len(steps)) if len(steps) else (None, 1)
        if step is not None:
            place = at_steps(place, step, count)
        join = " " if is_predicate else ": "
        sentence = f"{place}{join}{text}" if place else text
        kind = KINDS[code]
        return Finding(code, sentence, severity or kind.severity, file, episode, name, step, count, camera)

    def findings_of(
        self, code: str, episodes: Sequence[int], text: str, *, camera: str | None = None, file: str = ""
    ) -> Iterator[Finding]:
        """A finding for each of some episodes; a single one if it concerns all."""
        if len(episodes) == len(self.episodes) > 1:
            place = ", ".join(part for part in (file, f"all {len(self.episodes)} episodes") if part)
            yield self.finding(code, f"{place}: {text}", camera=camera)
            return
        for episode in episodes:
            yield self.finding(code, text, episode=episode, camera=camera, file=file)
