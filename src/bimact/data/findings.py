"""What a look through a dataset finds: sentences, each with the place that it speaks of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bimact.data.episodes import Episodes
from bimact.errors import UserError


@dataclass(frozen=True)
class Finding:
    """A fault, which has to be mended before training, or a warning.

    Attributes:
        sentence: names file, episode and step, and says what to do.
        is_fault: False: a warning.
        file: the file that it is in, as named in the dataset's folder.
        episode: None: it concerns the whole file.
        step: of the episode; the first of `count` steps that have the same.
        count: steps of this episode.
    """

    sentence: str
    is_fault: bool
    file: str
    episode: int | None = None
    step: int | None = None
    count: int = 1


@dataclass(frozen=True)
class DatasetReport:
    """What is known of a dataset after a look through all of it.

    Attributes:
        findings: those of whole files first, then by episode and step.
        episodes: the dataset; None if faults leave no whole one.
        size: bytes on disk, without converted copies.
    """

    path: Path
    findings: tuple[Finding, ...]
    episodes: Episodes | None
    size: int

    @property
    def faults(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.is_fault)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.is_fault)


class Findings:
    """Collects findings. Rows of the dataset become episodes and steps once `lengths` are known.

    Args:
        folder: of the dataset; sentences name its files without it.
    """

    def __init__(self, folder: Path) -> None:
        self.lengths = np.zeros(0, np.int64)  # (E,) steps of each episode, none below 0
        self._folder = folder
        self._found: list[Finding] = []

    @property
    def has_faults(self) -> bool:
        return any(finding.is_fault for finding in self._found)

    def add(self, file: str, sentence: str, *, is_fault: bool = True, episode: int | None = None) -> None:
        self._found.append(Finding(sentence, is_fault, file, episode))

    @contextmanager
    def catching(self, file: str) -> Iterator[None]:
        """Take a `UserError` of the block as a fault of a file, and go on after the block."""
        try:
            yield
        except UserError as error:
            self.add(file, str(error).replace(f"{self._folder}/", ""))

    def add_steps(self, file: str, problems: Mapping[int, str], *, heading: str = "", is_fault: bool = True) -> None:
        """Add one finding for each episode that has some of these rows, in the words of the first of them.

        Args:
            problems: row of the dataset → the end of a sentence that begins with the place.
            heading: what comes before the place.
        """
        rows = np.array(sorted(problems), dtype=np.int64)
        of_row = np.searchsorted(np.cumsum(self.lengths), rows, side="right")
        for episode, first, count in zip(*np.unique(of_row, return_index=True, return_counts=True)):
            row, step = int(rows[first]), int(rows[first])
            number: int | None = None
            where = f"{file}, step {row} of all"  # where it is beyond the last episode, or no lengths are known
            if episode < len(self.lengths):
                number, step = int(episode), row - int(self.lengths[:episode].sum())
                where = f"{file}, episode {number}, step {step}"
            first_of = f" (the first of {count})" if count > 1 else ""
            sentence = f"{heading}{where}{first_of} {problems[row]}"
            self._found.append(Finding(sentence, is_fault, file, number, step, int(count)))

    def listed(self) -> tuple[Finding, ...]:
        """Those of whole files, then those of episodes, by episode and step."""
        return tuple(sorted(self._found, key=lambda found: (_order(found.episode), _order(found.step))))


def _order(number: int | None) -> int:
    return -1 if number is None else number
