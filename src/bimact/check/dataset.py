"""Looks through a dataset for all that is wrong with it, before training on it costs a night."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from bimact.check.checks import checks
from bimact.check.facts import Vectors
from bimact.check.findings import DatasetReport, Finding, Findings, Summary, in_order
from bimact.check.guide_files import FILES_OF_PARTS, Parts, inspect_guide_npy
from bimact.check.kinds import ERROR, KINDS, READING, WARNING
from bimact.check.scan import NO_FILES, Files, scan
from bimact.check.values import nonfinite_value
from bimact.config import Config
from bimact.data.cache_places import CACHE
from bimact.data.formats.guide_npy import LENGTHS, is_guide_npy
from bimact.data.opening import open_source
from bimact.data.remote import local_copy
from bimact.data.selection import SelectedSource, Selection
from bimact.data.source import Source
from bimact.data.unread_files import unread_files
from bimact.errors import UserError
from bimact.progress import progress_bar

_BLOCK_ROWS = 1 << 16
_OF_SKIPPED = ("unreadable", "nan")  # what an episode is skipped for


def check_dataset(
    path: str | Path,
    config: Config | None = None,
    cache_dir: str | Path | None = None,
    *,
    selection: Selection | None = None,
    images: bool = True,
) -> DatasetReport:
    """Look through a whole dataset for everything that is wrong with it, or may be. Nothing of it is changed.

    Args:
        path: as `open_source` takes it.
        config: the training's settings, which the dataset has to fit; None: the defaults.
        cache_dir: where downloads go.
        selection: the part to look at; what it leaves open is as the config says. None: all.
        images: False: leave out the images, which take most of the time.

    Raises:
        UserError: if there is no dataset, or it has no such part.
    """
    local = local_copy(str(path), None if cache_dir is None else Path(cache_dir)) or Path(path)
    local = local.absolute()
    findings = Findings(local)
    if local.exists() and is_guide_npy(local):
        parts = inspect_guide_npy(local, findings)
        source: Source | None = None if findings.has_errors else parts.as_source(local)
        for note in () if source is None else unread_files(source)[1]:
            findings.add("read-otherwise", "", note)
        files, apart = FILES_OF_PARTS, False
        if source is None:
            for episode in np.flatnonzero(parts.lengths == 0).tolist() if parts.lengths is not None else ():
                sentence = f"{LENGTHS}: episode {episode} has 0 steps; leave empty episodes out"
                findings.add("unreadable", LENGTHS, sentence, episode=episode)
            _note_nonfinite(parts, findings)
    else:
        source, files, apart = _opened(local, path, cache_dir, findings), NO_FILES, True
    if source is None:
        return DatasetReport(local, in_order(findings.found), None, _size_on_disk(local), tuple(sorted(READING)))
    selected = _selected(source, selection, config, findings)
    _note_unused(selected, findings)
    if not selected.episodes:
        return DatasetReport(local, in_order(findings.found), None, _size_on_disk(local), tuple(sorted(READING)))
    found = examine(selected, images=images, apart=apart, config=config, files=files)
    if selected.selection.skip_unreadable:
        findings.found[:], found = ([_as_skipped(finding) for finding in of] for of in (findings.found, found))
    looked_for = {*READING, *(code for codes in checks(images=images).values() for code in codes)}
    return DatasetReport(
        path=local,
        findings=in_order([*findings.found, *found]),
        summary=_summary(selected),
        size=_size_on_disk(local),
        looked_for=tuple(code for code in KINDS if code in looked_for),
    )


def examine(
    source: SelectedSource,
    *,
    images: bool = True,
    apart: bool = True,
    config: Config | None = None,
    files: Files = NO_FILES,
) -> list[Finding]:
    """Read a source and put it to all checks.

    Args:
        images: False: leave out the images.
        apart: False: read in this process, for a reader that guards itself.
        config: the training's settings.
        files: how findings name the parts of the dataset.
    """
    facts, problems = scan(source, images=images, apart=apart, config=config, files=files)
    return problems + [finding for check in checks(images=images) for finding in check(facts)]


def _opened(local: Path, path: str | Path, cache_dir: str | Path | None, findings: Findings) -> Source | None:
    """A source in any format but the guide's; None: it cannot be opened, which is a finding."""
    try:
        return open_source(local if local.exists() else path, cache_dir=cache_dir)
    except UserError as error:
        if not local.exists():
            raise
        findings.add("unreadable", "", str(error))
        return None


def _selected(
    source: Source, selection: Selection | None, config: Config | None, findings: Findings
) -> SelectedSource:  # fmt: skip
    """The part to look at; what the config asks for and the dataset does not have is a finding."""
    chosen = selection or Selection()
    if config is not None:
        given = {name: value for name, value in dataclasses.asdict(chosen).items() if value not in (None, False)}
        try:
            return dataclasses.replace(Selection.of(config), **given).applied_to(source)
        except UserError as error:
            part = chosen.applied_to(source)  # what the command line asks for has to be there
            findings.add("config-mismatch", "", f"{error}, but the config asks for it")
            return part
    return chosen.applied_to(source)


def _note_unused(source: SelectedSource, findings: Findings) -> None:
    """What training would leave out, skip or read otherwise."""
    for episode in source.unusable:
        code = "missing-episode" if episode.is_missing else "unreadable"
        sentence = episode.sentence.replace(f"{source.path}/", "")
        findings.found.append(Finding(code, sentence, KINDS[code].severity, episode_name=episode.name))
    has_no_camera = not source.cameras and source.selection.cameras is None
    for entry in source.left_out:
        if entry.kind == "column" or (entry.kind == "depth" and not has_no_camera):
            what = "column" if entry.kind == "column" else "image"
            findings.add("left-out", "", f"{what} '{entry.name}': {entry.reason}")
        else:
            severity = ERROR if has_no_camera else KINDS["unread-image"].severity
            sentence = f"image '{entry.name}': {entry.reason}".replace(f"{source.path}/", "")
            findings.found.append(Finding("unread-image", sentence, severity))
    for note in source.notes:
        findings.add("read-otherwise", "", note)


def _as_skipped(finding: Finding) -> Finding:
    """What makes an episode unusable is no error where such episodes are skipped."""
    is_skipped = finding.code in _OF_SKIPPED and finding.episode_name is not None
    return dataclasses.replace(finding, severity=WARNING) if is_skipped and finding.severity is ERROR else finding


def _summary(source: SelectedSource) -> Summary:
    return Summary(
        format=source.format,
        lengths=source.lengths,
        cameras={name: (camera.height, camera.width) for name, camera in source.cameras.items()},
        state=tuple(source.state.parts),
        action=tuple(source.action.parts),
        unused={
            key: column.size
            for key, column in source.whole.columns.items()
            if key not in (*source.state.keys, *source.action.keys)
        },
        fps=source.fps,
        tasks=tuple(dict.fromkeys(episode.task for episode in source.episodes if episode.task)),
    )


def _note_nonfinite(parts: Parts, findings: Findings) -> None:
    """Name each episode with a state or action that is NaN or infinite, in a dataset that is not whole."""
    both = (
        (Vectors("state", (), file=FILES_OF_PARTS.state), parts.state),
        (Vectors("action", (), file=FILES_OF_PARTS.action), parts.actions),
    )
    sources = [(vectors, rows) for vectors, rows in both if rows is not None]
    with progress_bar("looking for NaN", sum(len(rows) for _, rows in sources)) as progress:
        for vectors, rows in sources:
            problems: dict[int, str] = {}
            for begin in range(0, len(rows), _BLOCK_ROWS):
                values = rows[begin : begin + _BLOCK_ROWS]
                for row in np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist():
                    problems[begin + row] = nonfinite_value(values[row], vectors)
                progress.advance(len(values))
            findings.add_steps("nan", vectors.file, problems)


def _size_on_disk(path: Path) -> int:
    """Bytes of a dataset without its converted copies."""
    files = [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files if CACHE not in file.relative_to(path).parts)
