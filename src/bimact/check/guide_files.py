"""A tolerant reader of the guide's dataset: the faults of each of its files, and what can be read in spite of them.

`guide_npy` refuses a dataset at its first fault; both ask the same functions what a fault is. Nothing is written: the
pickled forms of `observations.npy` are read where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bimact.check.findings import Findings
from bimact.check.guide_observations import inspect_observations, note_conversion
from bimact.check.scan import Files
from bimact.data.episodes import Episodes, Rows
from bimact.data.formats.guide_npy import (
    ACTIONS,
    FILES,
    JOURNAL,
    METADATA,
    GuideSource,
    negative_lengths,
    open_actions,
    open_lengths,
    read_metadata,
    refuse_missing,
    refuse_unfinished,
)
from bimact.data.formats.guide_observations import LENGTHS, OBSERVATIONS, Found, check_total
from bimact.data.source import LeftOut

FILES_OF_PARTS = Files(lengths=LENGTHS, state=OBSERVATIONS, action=ACTIONS)


@dataclass
class Parts:
    """What can be read of a dataset; None and empty: what cannot."""

    lengths: np.ndarray | None = None  # (E,) int64 as in the file
    state: Rows | None = None  # (N, S) float32; zeros at steps without a state of that size
    actions: Rows | None = None  # (N, A) float32
    images: Mapping[str, Rows] = field(default_factory=dict)  # camera → (N, H, W, 3) uint8
    left_out: tuple[LeftOut, ...] = ()  # other fields of the observations
    metadata: Mapping[str, Any] = field(default_factory=dict)  # as `Episodes` takes it

    def as_source(self, path: Path) -> GuideSource:
        """The dataset, all parts of which are there. Nothing is converted: pickled forms stay in memory."""
        assert self.lengths is not None and self.state is not None and self.actions is not None
        opened = Episodes(path, self.lengths, self.images, self.state, self.actions, **self.metadata)
        return GuideSource.of(opened, Found(left_out=self.left_out))


def inspect_guide_npy(path: Path, findings: Findings) -> Parts:
    """Find the faults in the form of the guide's files; values are not looked at.

    Args:
        path: the dataset's folder.
        findings: takes the faults, and gets the lengths of the episodes.
    """
    parts = Parts()
    present = _present_files(path, findings)
    if LENGTHS in present:
        with findings.catching("unreadable", LENGTHS):
            parts.lengths = _inspect_lengths(path / LENGTHS, findings)
    if ACTIONS in present:
        with findings.catching("unreadable", ACTIONS):
            parts.actions = actions = open_actions(path / ACTIONS)
            note_conversion(ACTIONS, "values", actions.array.dtype, findings)
            _compare_total(parts.lengths, len(actions), path / ACTIONS, findings)
    if OBSERVATIONS in present:
        with findings.catching("unreadable", OBSERVATIONS):
            observations = inspect_observations(path / OBSERVATIONS, findings)
            parts.state, parts.images = observations.state, observations.images
            parts.left_out = observations.left_out
            _compare_total(parts.lengths, observations.steps, path / OBSERVATIONS, findings)
    with findings.catching("unreadable", METADATA):
        parts.metadata = read_metadata(path / METADATA, None if parts.actions is None else parts.actions.shape[1])
    return parts


def _present_files(path: Path, findings: Findings) -> list[str]:
    with findings.catching("unreadable", JOURNAL):
        refuse_unfinished(path)
    is_unfinished = findings.has_errors  # then it has not all of its files yet
    present = [name for name in FILES if (path / name).is_file()]
    for name in FILES:
        if name not in present and not is_unfinished:
            with findings.catching("unreadable", name):
                refuse_missing(path / name)
    return present


def _inspect_lengths(path: Path, findings: Findings) -> np.ndarray:
    lengths = open_lengths(path)
    for episode, problem in negative_lengths(lengths).items():
        findings.add("unreadable", LENGTHS, f"{LENGTHS}: {problem}", episode=episode)
    findings.lengths = np.maximum(lengths, 0)
    return lengths


def _compare_total(lengths: np.ndarray | None, steps: int, path: Path, findings: Findings) -> None:
    if lengths is not None:
        with findings.catching("length-mismatch", path.name):
            check_total(lengths, steps, path)
