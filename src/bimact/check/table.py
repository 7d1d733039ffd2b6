"""The report on a terminal: facts, and findings grouped by kind, the most severe first."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from statistics import median

from rich.console import Console
from rich.filesize import decimal
from rich.padding import Padding
from rich.text import Text

from bimact.check.findings import DatasetReport, Finding, Summary
from bimact.check.kinds import KINDS, Severity
from bimact.errors import printable

_MOST = 5  # sentences of one kind
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan"}
_INDENT = 2


def print_report(report: DatasetReport, console: Console, given: str) -> None:
    """Print facts, findings, a line that counts them, and the command that repairs them. Piped output is not wrapped.

    Args:
        given: the dataset as given by the user.
    """
    if report.summary is not None:
        for line in _facts(report.summary, report.size, is_valid=not report.errors):
            console.print(Text(line), soft_wrap=True)

    codes = list(KINDS)

    def rank(finding: Finding) -> tuple[int, int]:
        return finding.severity.rank, codes.index(finding.code)

    for _, group in groupby(sorted(report.findings, key=rank), rank):
        _print_group(list(group), console)

    looked_for = f"{len(report.looked_for)} kinds of faults were looked for"
    total = Text()
    for severity in Severity:
        count = sum(finding.severity is severity for finding in report.findings)
        if count:
            words = f"{count} {severity.value}{'s' if count > 1 else ''}"
            total.append(", " if total else "").append(words, _STYLES[severity])
    total.append("." if report.summary is None else f"; {looked_for}.")
    if not report.findings:
        total = Text(f"Nothing was found; {looked_for}.", "bold green")
    console.print()
    console.print(total, soft_wrap=not console.is_terminal)
    if report.repair is not None:
        console.print()
        console.print(Text(f"To repair: {shlex.join(report.repair.command(given))}"), soft_wrap=True)
        console.print(Text(report.repair.sentence), soft_wrap=not console.is_terminal)


def _facts(summary: Summary, size: int, *, is_valid: bool) -> Iterator[str]:
    """First the output of the guide's own dataset check, then all other facts."""
    steps = int(summary.lengths.sum())
    yield f"Total timesteps: {steps}"
    yield f"Number of episodes: {len(summary.lengths)}"
    yield f"Action shape: {(steps, summary.action_size)}"
    yield f"Sum of rollout lengths: {steps}"
    if is_valid:
        yield "✅ Dataset valid!"
    yield ""

    def columns(parts: Iterable[tuple[str, int]]) -> str:
        return ", ".join(f"{name} {size}" for name, size in parts)

    lengths, tasks = sorted(summary.lengths.tolist()), summary.tasks
    cameras = ", ".join(f"{name} {height}x{width}" for name, (height, width) in summary.cameras.items())
    spread = f"{lengths[0]} to {lengths[-1]} steps, median {median(lengths):g}"
    facts = {
        "Format": summary.format,
        "Cameras (height x width)": cameras or "none",
        "State size": str(sum(size for _, size in summary.state)),
        "Episode length": spread if lengths[0] < lengths[-1] else f"{lengths[0]} steps",
        "Steps a second": None if summary.fps is None else f"{summary.fps:g}",
        "Task": tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks" if tasks else None,
        "Columns": f"state: {columns(summary.state)}; action: {columns(summary.action)}"
        + (f"; not used: {columns(summary.unused.items())}" if summary.unused else ""),
        "Size on disk": decimal(size),
    }
    yield from (f"{name}: {printable(value)}" for name, value in facts.items() if value is not None)


def _print_group(group: Sequence[Finding], console: Console) -> None:
    first, kind = group[0], KINDS[group[0].code]
    heading = Text.assemble(("● ", _STYLES[first.severity]), (first.severity.value, _STYLES[first.severity]), " ")
    heading.append(first.code, "bold").append(f"  {_places(group)}", "dim")
    lines = [Text(printable(finding.sentence)) for finding in group[:_MOST]]
    if len(group) > _MOST:
        # Number and episodes of the others: "… and 10 more: episodes 5–12, 20, 31".
        numbers = sorted({finding.episode for finding in group[_MOST:] if finding.episode is not None})
        ranges = []
        for _, run in groupby(enumerate(numbers), key=lambda entry: entry[1] - entry[0]):
            its = [number for _, number in run]
            ranges.append(f"{its[0]}" if len(its) == 1 else f"{its[0]}–{its[-1]}")
        listed = ", ".join(ranges[:20]) + (", …" if len(ranges) > 20 else "")
        lines.append(Text(f"… and {len(group) - _MOST} more" + (f": episodes {listed}" if listed else "")))
    lines.append(Text(f"{kind.effect} {kind.advice}", "italic"))
    console.print()
    console.print(heading, no_wrap=True, overflow="ellipsis" if console.is_terminal else "ignore", crop=False)
    for line in lines:
        if console.is_terminal:
            console.print(Padding(line, (0, 0, 0, _INDENT), expand=False))
        else:
            console.print(Text(" " * _INDENT).append(line), soft_wrap=True)


def _places(group: Sequence[Finding]) -> str:
    """The location of a group: "in 12 episodes, first: episode 3, step 40"."""
    of_episodes = [finding for finding in group if finding.episode is not None]
    if len(of_episodes) < len(group):
        return "in the whole dataset" if len(group) == 1 else f"in {len(group)} places"
    first = of_episodes[0]
    place = f"{first.episode_name}" + ("" if first.step is None else f", step {first.step}")
    episodes = len({finding.episode for finding in of_episodes})
    return printable(f"in {place}" if episodes == 1 else f"in {episodes} episodes, first: {place}")
