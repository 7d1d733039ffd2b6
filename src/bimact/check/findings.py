"""Findings about a dataset: sentences with their location, and the report of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bimact.check.kinds import ERROR, INFO, KINDS, READING, WARNING, Severity
from bimact.errors import UserError, without_folder

if TYPE_CHECKING:
    from bimact.check.repair import Repair


@dataclass(frozen=True)
class Finding:
    """A fault, or a possible one.

    Attributes:
        code: of its kind (`bimact.check.kinds`), which has its effect on training and advice.
        sentence: what was found; names file, episode and step.
        file: where it is, if the format has one file for each part.
        episode: index in the dataset; None: it concerns the whole dataset or file.
        episode_name: the episode's name in the format.
        step: of the episode; the first of `count` steps with the same fault.
        count: number of such steps.
    """

    code: str
    sentence: str
    severity: Severity
    file: str = ""
    episode: int | None = None
    episode_name: str | None = None
    step: int | None = None
    count: int = 1
    camera: str | None = None

    def as_json(self) -> dict[str, Any]:
        kind = KINDS[self.code]
        return {
            "code": self.code,
            "severity": self.severity.value,
            "sentence": self.sentence,
            "effect": kind.effect,
            "advice": kind.advice,
            "episode": self.episode,
            "episode_name": self.episode_name,
            "step": self.step,
            "count": self.count,
            "camera": self.camera,
            "file": self.file or None,
        }


@dataclass(frozen=True)
class Summary:
    """The facts about a dataset that could be opened.

    Attributes:
        lengths: (E,) steps of each episode.
        cameras: name → (height, width) in pixels.
        state: the columns of the state, and their sizes.
        action: the columns of the action, and their sizes.
        unused: other columns, and their sizes.
        tasks: all different task descriptions.
    """

    format: str
    lengths: np.ndarray
    cameras: Mapping[str, tuple[int, int]]
    state: tuple[tuple[str, int], ...]
    action: tuple[tuple[str, int], ...]
    unused: Mapping[str, int]
    fps: float | None
    tasks: tuple[str, ...]

    @property
    def action_size(self) -> int:
        return sum(size for _, size in self.action)

    def as_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "episodes": len(self.lengths),
            "steps": int(self.lengths.sum()),
            "shortest": int(self.lengths.min()),
            "longest": int(self.lengths.max()),
            "cameras": {name: {"height": size[0], "width": size[1]} for name, size in self.cameras.items()},
            "state_size": sum(size for _, size in self.state),
            "action_size": self.action_size,
            "state": dict(self.state),
            "action": dict(self.action),
            "unused_columns": dict(self.unused),
            "fps": self.fps,
            "tasks": list(self.tasks),
        }


@dataclass(frozen=True)
class DatasetReport:
    """The result of checking a dataset.

    Attributes:
        findings: those of the whole dataset first, then by episode and step.
        summary: None: the dataset could not be opened.
        size: bytes on disk, without converted copies.
        looked_for: codes of all kinds of findings that were looked for.
        repair: repair by `bimact edit`; None: not possible.
    """

    path: Path
    findings: tuple[Finding, ...]
    summary: Summary | None
    size: int
    looked_for: tuple[str, ...]
    repair: Repair | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        return self._of(ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return self._of(WARNING)

    @property
    def infos(self) -> tuple[Finding, ...]:
        return self._of(INFO)

    def _of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is severity)

    @property
    def is_whole(self) -> bool:
        """Whether all of the dataset could be read."""
        return self.summary is not None and not any(finding.code in READING for finding in self.errors)

    def exit_status(self, fail_on: Severity = WARNING) -> int:
        """0: no finding is as severe as `fail_on`; 1: one is; 2: not all of the dataset could be read."""
        if not self.is_whole:
            return 2
        return int(any(finding.severity.rank <= fail_on.rank for finding in self.findings))

    def as_json(self, given: str | None = None) -> dict[str, Any]:
        """The report in JSON types, as described in docs/checking.md.

        Args:
            given: the dataset as given by the user; None: its path.
        """
        return {
            "dataset": str(self.path),
            "bytes": self.size,
            "summary": None if self.summary is None else self.summary.as_json(),
            "is_whole": self.is_whole,
            "counts": {severity.value: len(self._of(severity)) for severity in Severity},
            "looked_for": list(self.looked_for),
            "findings": [finding.as_json() for finding in self.findings],
            "repair": None if self.repair is None else self.repair.as_json(given or str(self.path)),
        }


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """Findings of the whole dataset, then those of episodes, by episode and step."""

    def key(finding: Finding) -> tuple[int, int]:
        return (-1 if finding.episode is None else finding.episode, -1 if finding.step is None else finding.step)

    return tuple(sorted(findings, key=key))


def at_steps(place: str, step: int, count: int) -> str:
    """A location with the first of some steps."""
    return f"{place}, step {step}" + (f" (the first of {count})" if count > 1 else "")


class Findings:
    """Collects findings in files in which all episodes are concatenated.

    Rows of the files become episodes and steps once `lengths` are known.

    Args:
        folder: of the dataset; sentences name its files without it.
    """

    def __init__(self, folder: Path) -> None:
        self.lengths = np.zeros(0, np.int64)  # (E,) steps of each episode, none below 0
        self.found: list[Finding] = []
        self._folder = folder

    @property
    def has_errors(self) -> bool:
        return any(finding.severity is ERROR for finding in self.found)

    def add(self, code: str, file: str, sentence: str, *, episode: int | None = None) -> None:
        self.found.append(Finding(code, sentence, KINDS[code].severity, file, episode, _name(episode)))

    @contextmanager
    def catching(self, code: str, file: str) -> Iterator[None]:
        """Turn a `UserError` of the block into a finding in a file, and continue after the block."""
        try:
            yield
        except UserError as error:
            self.add(code, file, without_folder(str(error), self._folder))

    def add_steps(self, code: str, file: str, problems: Mapping[int, str], *, heading: str = "") -> None:
        """Add one finding for each episode with some of these rows, with the message of its first row.

        Args:
            problems: row of the dataset → the predicate of a sentence that begins with the location.
            heading: text before the location.
        """
        rows = np.array(sorted(problems), dtype=np.int64)
        of_row = np.searchsorted(np.cumsum(self.lengths), rows, side="right")
        for episode, first, count in zip(*np.unique(of_row, return_index=True, return_counts=True)):
            row, step = int(rows[first]), int(rows[first])
            number: int | None = None
            where = f"{file}, step {row} of all"  # beyond the last episode, or with unknown lengths
            if episode < len(self.lengths):
                number, step = int(episode), row - int(self.lengths[:episode].sum())
                where = at_steps(f"{file}, episode {number}", step, int(count))
            sentence = f"{heading}{where} {problems[row]}"
            severity = KINDS[code].severity
            self.found.append(Finding(code, sentence, severity, file, number, _name(number), step, int(count)))


def _name(episode: int | None) -> str | None:
    return None if episode is None else f"episode {episode}"
