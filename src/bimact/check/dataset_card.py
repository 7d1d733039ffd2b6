"""A dataset on the Hugging Face hub: its files, and a dataset card made of what `bimact check` finds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.filesize import decimal

from bimact.check.dataset import check_dataset
from bimact.check.findings import DatasetReport, Summary
from bimact.data.cache import CACHE
from bimact.errors import UserError, printable
from bimact.hub import DATASET, Upload

CARD, CHECKED = "README.md", "check.md"
_MOST = 20  # findings on the card


def dataset_upload(
    dataset_dir: str | Path, name: str, *, license: str | None = None, images: bool = True
) -> tuple[Upload, DatasetReport, list[str]]:
    """The files of a dataset for the hub.

    Args:
        dataset_dir: its folder or file, in any format that bimact reads.
        name: of the repository, as "user/name".
        license: the hub's name of a licence, such as cc-by-4.0; None: the card says that none is given.
        images: whether images are checked too.

    Returns:
        the upload, the report of the check, and lines on what is left out or kept.

    Raises:
        UserError: if there is no dataset on this machine, or not all of it can be read.
    """
    path = Path(dataset_dir)
    if not path.exists():
        raise UserError(f"{path.absolute()} does not exist: give the folder or file of a dataset on this machine")
    report = check_dataset(path, images=images)
    if not report.is_whole:
        raise UserError(
            f"{path} cannot be read as a whole ({report.errors[0].sentence}): `bimact check {path}` lists what is wrong"
        )
    files: dict[str, Path | bytes] = {}
    notes, hidden, links = [], 0, []
    if path.is_file():
        files[path.name] = path
    else:
        for folder, folders, names in os.walk(path):
            hidden += sum(entry.startswith(".") for entry in (*folders, *names) if entry != CACHE)
            folders[:] = sorted(entry for entry in folders if not entry.startswith(".") and entry != CACHE)
            for entry in names:
                file = Path(folder) / entry
                if file.is_symlink():
                    links.append(file.relative_to(path).as_posix())
                elif not entry.startswith("."):
                    files[file.relative_to(path).as_posix()] = file
    if links:
        raise UserError(f"{path} has a link, {links[0]}: put the file itself there, then push again")
    if hidden:
        notes.append(f"{hidden} hidden file{'s' * (hidden > 1)} or folder{'s' * (hidden > 1)} left out")
    card = _card(name, report, license)
    if CARD in files:
        notes.append(f"the dataset's own {CARD} is kept, and what the check finds goes into {CHECKED}")
        card = card.partition("---\n")[2].partition("---\n\n")[2]
    files[CHECKED if CARD in files else CARD] = card.encode()
    paths = tuple({str(path.absolute()), str(path.resolve()), str(Path.cwd())})
    return Upload(DATASET, name, files, secrets=paths), report, notes


def _card(name: str, report: DatasetReport, license: str | None) -> str:
    summary = report.summary
    assert summary is not None
    is_lerobot = "lerobot" in summary.format.lower()
    header: dict[str, Any] = {"task_categories": ["robotics"]}
    header["tags"] = ["robotics", "bimact", "imitation-learning", *(["LeRobot"] if is_lerobot else [])]
    if license is not None:
        header["license"] = license
    cameras = ", ".join(f"`{camera}` {height} × {width}" for camera, (height, width) in summary.cameras.items())
    steps = int(summary.lengths.sum())
    hours = f" ({steps / summary.fps / 60:.1f} min)" if summary.fps else ""
    rows = [
        ("format", summary.format),
        ("episodes", str(len(summary.lengths))),
        ("steps", f"{steps:,}{hours}; {_lengths(summary)}"),
        ("control frequency", "not known" if summary.fps is None else f"{summary.fps:g} Hz"),
        ("cameras (height × width)", cameras or "none"),
        ("state", _columns(summary.state)),
        ("action", _columns(summary.action)),
        ("tasks", "; ".join(summary.tasks) or "not named"),
        ("size", decimal(report.size)),
    ]
    lines = ["---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True) + "---", ""]
    lines += [f"# {name.partition('/')[2]}", "", "Demonstrations of a robot for imitation learning.", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows), "", "## Check", ""]
    lines.append(f"`bimact check` looked for {len(report.looked_for)} kinds of faults.")
    for severity, found in (("error", report.errors), ("warning", report.warnings), ("info", report.infos)):
        shown = found[:_MOST]
        if found:
            lines += ["", f"**{len(found)} {severity}{'s' * (len(found) > 1)}**", ""]
            lines += [f"- {_cell(finding.sentence)}" for finding in shown]
            lines += [f"- and {len(found) - _MOST} more"] if len(found) > _MOST else []
    if not report.findings:
        lines.append("Nothing was found.")
    lines += ["", "## Use", "", "```bash", f"bimact check {name}", f"bimact train --dataset_dir {name}", "```"]
    lines += ["", "## Licence", "", license or "None is given: ask the author before you use the data."]
    return "\n".join(lines) + "\n"


def _lengths(summary: Summary) -> str:
    low, high = int(summary.lengths.min()), int(summary.lengths.max())
    return f"{low} each" if low == high else f"{low} to {high} each, median {np.median(summary.lengths):g}"


def _columns(parts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"`{name}` ({size})" for name, size in parts) or "none"


def _cell(text: str) -> str:
    return printable(" ".join(text.split())).replace("|", "\\|")
