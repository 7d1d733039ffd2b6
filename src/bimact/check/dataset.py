"""Finds the faults of a dataset before a training run is spent on it; the list of all checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from bimact.check import cameras, episodes, motion, values
from bimact.check import images as image_checks
from bimact.check.depth import depth_faults
from bimact.check.facts import Facts, Vectors
from bimact.check.findings import DatasetReport, Finding, Findings, Summary, in_order
from bimact.check.kinds import ERROR, KINDS, READING, WARNING
from bimact.check.repair import repair_of
from bimact.check.scan import NO_FILES, Files, scan
from bimact.config import Config
from bimact.data.cache import CACHE
from bimact.data.formats.guide_npy import ACTIONS, LENGTHS, OBSERVATIONS, GuideFiles, is_guide_npy, read_guide_files
from bimact.data.formats.guide_observations import INVALID
from bimact.data.opening import open_source, unread_files
from bimact.data.remote import local_copy
from bimact.data.selection import SelectedSource, Selection
from bimact.data.source import Source
from bimact.errors import UserError, without_folder
from bimact.progress import progress_bar

Check: TypeAlias = Callable[[Facts], Iterator[Finding]]

_OF_IMAGES: dict[Check, tuple[str, ...]] = {
    image_checks.blank_images: ("blank-image",),
    image_checks.frozen_cameras: ("frozen-camera",),
    image_checks.slow_cameras: ("slow-camera",),
    image_checks.glitches: ("image-glitch",),
    cameras.same_cameras: ("same-camera",),
    cameras.swapped_cameras: ("swapped-cameras",),
    cameras.changed_images: ("changed-image",),
    cameras.odd_views: ("odd-view",),
    episodes.color_order: ("color-order",),
}

_OF_VECTORS: dict[Check, tuple[str, ...]] = {
    episodes.settings: ("config-mismatch", "action-size"),
    episodes.short_episodes: ("short-episode",),
    episodes.types: ("dtype",),
    values.nonfinite: ("nan",),
    values.far_values: ("far-value",),
    values.jumps: ("jump", "wrapped-angle"),
    values.constant: ("constant",),
    values.frozen_dimensions: ("frozen-dimension",),
    values.still_grippers: ("still-gripper",),
    values.saturated: ("saturated",),
    values.out_of_reach: ("out-of-reach",),
    values.unit_mismatch: ("unit-mismatch",),
    motion.copied_states: ("copied-state",),
    motion.delays: ("late-action", "long-lag", "odd-lag"),
    motion.frozen_states: ("frozen-state",),
    motion.still_episodes: ("still-episode",),
    motion.idle_ends: ("idle-head", "idle-tail"),
    motion.no_fps: ("no-fps",),
    motion.wrong_fps: ("wrong-fps",),
    motion.uneven_timestamps: ("unordered-timestamps", "dropped-steps", "irregular-timestamps"),
    episodes.duplicates: ("duplicate-episode",),
    episodes.odd_lengths: ("odd-length",),
    episodes.dominant_episodes: ("dominant-episode",),
    episodes.tasks: ("missing-task", "no-task", "several-tasks"),
}


_GUIDE_FILES = Files(lengths=LENGTHS, state=OBSERVATIONS, action=ACTIONS)
_BLOCK_ROWS = 1 << 16
_SKIPPED = ("unreadable", "nan")  # what --skip_unreadable skips an episode for


def checks(*, images: bool) -> dict[Check, tuple[str, ...]]:
    """Each check with the codes that it can find; without the checks of images, if these were not read."""
    return {**_OF_VECTORS, **_OF_IMAGES} if images else dict(_OF_VECTORS)


def check_dataset(
    path: str | Path,
    config: Config | None = None,
    cache_dir: str | Path | None = None,
    *,
    selection: Selection | None = None,
    images: bool = True,
) -> DatasetReport:
    """Find everything in a dataset that is wrong, or may be. The dataset is not changed.

    Args:
        path: as in `open_source`.
        config: settings of the training, which the dataset has to fit; None: the defaults.
        cache_dir: where downloads go.
        selection: the part to check; unset fields are those of the config. None: all.
        images: False: leave out the images, which take most of the time.

    Raises:
        UserError: if there is no dataset, or it lacks the selected part.
    """
    local = local_copy(str(path), None if cache_dir is None else Path(cache_dir)) or Path(path)
    local = local.absolute()
    local_files = [local] if local.is_file() else (file for file in local.rglob("*") if file.is_file())
    size = sum(file.stat().st_size for file in local_files if CACHE not in file.relative_to(local).parts)
    findings = Findings(local)
    source: Source | None = None
    names = NO_FILES
    if local.exists() and is_guide_npy(local):
        names = _GUIDE_FILES
        files = read_guide_files(local)
        _find_file_faults(files, findings)
        if not findings.has_errors:
            source = files.as_source()
            for note in unread_files(source)[1]:
                findings.add("read-otherwise", "", note)
    else:
        try:
            source = open_source(local if local.exists() else path, cache_dir=cache_dir)
        except UserError as error:
            if not local.exists():
                raise
            findings.add("unreadable", "", str(error))

    selected: SelectedSource | None = None
    if source is not None:
        selected = _select(source, selection or Selection(), config, findings)
        _find_unused(selected, findings)
    if selected is None or not selected.episodes:
        return DatasetReport(local, in_order(findings.found), None, size, tuple(sorted(READING)))

    is_mapped = selected.whole.mapped() is not None  # needs no child process
    found = findings.found + examine(selected, images=images, apart=not is_mapped, config=config, files=names)
    if images:
        found += depth_faults(selected)
    if selected.selection.skip_unreadable:  # then an unusable episode is not an error
        found = [
            dataclasses.replace(finding, severity=WARNING)
            if finding.code in _SKIPPED and finding.episode_name is not None and finding.severity is ERROR
            else finding
            for finding in found
        ]
    used = (*selected.state.keys, *selected.action.keys)
    summary = Summary(
        format=selected.format,
        lengths=selected.lengths,
        cameras={name: (camera.height, camera.width) for name, camera in selected.cameras.items()},
        state=tuple(selected.state.parts),
        action=tuple(selected.action.parts),
        unused={key: column.size for key, column in selected.whole.columns.items() if key not in used},
        fps=selected.fps,
        tasks=tuple(dict.fromkeys(episode.task for episode in selected.episodes if episode.task)),
    )
    looked_for = {*READING, *(code for codes in checks(images=images).values() for code in codes)}
    looked_for |= {"depth-holes", "depth-saturated"} if images else set()
    codes = tuple(code for code in KINDS if code in looked_for)
    return DatasetReport(local, in_order(found), summary, size, codes, repair_of(found, selected))


def examine(
    source: SelectedSource,
    *,
    images: bool = True,
    apart: bool = True,
    config: Config | None = None,
    files: Files = NO_FILES,
) -> list[Finding]:
    """Read a source and run all checks on it.

    Args:
        images: False: leave out the images.
        apart: False: read in this process instead of child processes.
        config: settings of the training.
        files: names of the files for findings.
    """
    facts, problems = scan(source, images=images, apart=apart, config=config, files=files)
    return problems + [finding for check in checks(images=images) for finding in check(facts)]


def _select(source: Source, selection: Selection, config: Config | None, findings: Findings) -> SelectedSource:
    """The part to check; settings of the config that the dataset cannot satisfy are findings."""
    if config is not None:
        given = {name: value for name, value in dataclasses.asdict(selection).items() if value not in (None, False)}
        try:
            return dataclasses.replace(Selection.of(config), **given).applied_to(source)
        except UserError as error:
            part = selection.applied_to(source)  # selections on the command line must exist
            findings.add("config-mismatch", "", f"{error}, but the config requires it")
            return part
    return selection.applied_to(source)


def _find_unused(source: SelectedSource, findings: Findings) -> None:
    """What training would leave out, skip or read differently."""
    for episode in source.unusable:
        code = "missing-episode" if episode.is_missing else "unreadable"
        sentence = without_folder(episode.sentence, source.path)
        findings.found.append(Finding(code, sentence, KINDS[code].severity, episode_name=episode.name))
    has_no_camera = not source.cameras and source.selection.cameras is None
    for entry in source.left_out:
        if entry.kind == "column" or (entry.kind == "depth" and not has_no_camera):
            what = "column" if entry.kind == "column" else "image"
            findings.add("left-out", "", f"{what} '{entry.name}': {entry.reason}")
        else:
            severity = ERROR if has_no_camera else KINDS["unread-image"].severity
            sentence = without_folder(f"image '{entry.name}': {entry.reason}", source.path)
            findings.found.append(Finding("unread-image", sentence, severity))
    for note in source.notes:
        findings.add("read-otherwise", "", note)


def _find_file_faults(files: GuideFiles, findings: Findings) -> None:
    """The faults of the guide's files; where they prevent opening, also empty episodes and each NaN or Inf."""
    if files.lengths is not None:
        findings.lengths = np.maximum(files.lengths, 0)
    for fault in files.faults:
        findings.add(fault.kind, fault.file, without_folder(fault.sentence, files.path), episode=fault.episode)
    for faults in files.step_faults:
        if faults.fields:
            findings.add_steps("wrong-format", OBSERVATIONS, faults.problems, heading=INVALID)
        else:
            findings.add_steps("ignored-field", OBSERVATIONS, faults.problems)
    if not findings.has_errors:
        return
    for episode in np.flatnonzero(files.lengths == 0).tolist() if files.lengths is not None else ():
        sentence = f"{LENGTHS}: episode {episode} has 0 steps; leave empty episodes out"
        findings.add("unreadable", LENGTHS, sentence, episode=episode)
    state = None if files.observations is None else files.observations.state
    both = ((Vectors("state", (), file=OBSERVATIONS), state), (Vectors("action", (), file=ACTIONS), files.actions))
    parts = [(vectors, rows) for vectors, rows in both if rows is not None]
    with progress_bar("looking for NaN", sum(len(rows) for _, rows in parts)) as progress:
        for vectors, rows in parts:
            problems: dict[int, str] = {}
            for begin in range(0, len(rows), _BLOCK_ROWS):
                block = rows[begin : begin + _BLOCK_ROWS]
                for row in np.flatnonzero(~np.isfinite(block).all(axis=1)).tolist():
                    problems[begin + row] = values.nonfinite_value(block[row], vectors)
                progress.advance(len(block))
            findings.add_steps("nan", vectors.file, problems)
