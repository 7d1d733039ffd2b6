"""The findings on a terminal: grouped by their kind, the worst first."""

from __future__ import annotations

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


def print_report(report: DatasetReport, console: Console) -> None:
    """Facts first, then findings, then a line that counts them. Piped output is not wrapped."""
    if report.summary is not None:
        _print_counts(report.summary, console, is_valid=not report.errors)
        _print_facts(report.summary, report.size, console)
    for group in _groups(report.findings):
        _print_group(group, console)
    console.print()
    console.print(_total(report), soft_wrap=not console.is_terminal)


def _print_counts(summary: Summary, console: Console, *, is_valid: bool) -> None:
    """What the guide's own check of a dataset prints."""
    steps = int(summary.lengths.sum())
    for line in (
        f"Total timesteps: {steps}",
        f"Number of episodes: {len(summary.lengths)}",
        f"Action shape: {(steps, summary.action_size)}",
        f"Sum of rollout lengths: {steps}",
        *(["✅ Dataset valid!"] if is_valid else []),
        "",
    ):
        console.print(Text(line), soft_wrap=True)


def _print_facts(summary: Summary, size: int, console: Console) -> None:
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
        "Columns": f"state: {_columns(summary.state)}; action: {_columns(summary.action)}"
        + (f"; not used: {_columns(tuple(summary.unused.items()))}" if summary.unused else ""),
        "Size on disk": decimal(size),
    }
    for name, value in facts.items():
        if value is not None:
            console.print(Text(f"{name}: {printable(value)}"), soft_wrap=True)


def _columns(parts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {size}" for name, size in parts)


def _groups(findings: Iterable[Finding]) -> Iterator[list[Finding]]:
    """Findings of the same code and severity, the worst first, and then in the order of `KINDS`."""
    codes = list(KINDS)

    def key(finding: Finding) -> tuple[int, int]:
        return finding.severity.rank, codes.index(finding.code)

    for _, group in groupby(sorted(findings, key=key), key):
        yield list(group)


def _print_group(group: Sequence[Finding], console: Console) -> None:
    first, kind = group[0], KINDS[group[0].code]
    heading = Text.assemble(("● ", _STYLES[first.severity]), (first.severity.value, _STYLES[first.severity]), " ")
    heading.append(first.code, "bold").append(f"  {_places(group)}", "dim")
    lines = [Text(printable(finding.sentence)) for finding in group[:_MOST]]
    if len(group) > _MOST:
        lines.append(Text(_rest(group[_MOST:])))
    lines.append(Text(f"{kind.effect} {kind.advice}", "italic"))
    console.print()
    console.print(heading, no_wrap=True, overflow="ellipsis" if console.is_terminal else "ignore", crop=False)
    for line in lines:
        if console.is_terminal:
            console.print(Padding(line, (0, 0, 0, _INDENT), expand=False))
        else:
            console.print(Text(" " * _INDENT).append(line), soft_wrap=True)


def _places(group: Sequence[Finding]) -> str:
    """Where a kind of finding is: "in 12 episodes, first: episode 3, step 40"."""
    of_episodes = [finding for finding in group if finding.episode is not None]
    if len(of_episodes) < len(group):
        return "in the whole dataset" if len(group) == 1 else f"in {len(group)} places"
    first = of_episodes[0]
    place = f"{first.episode_name}" + ("" if first.step is None else f", step {first.step}")
    episodes = len({finding.episode for finding in of_episodes})
    return printable(f"in {place}" if episodes == 1 else f"in {episodes} episodes, first: {place}")


def _rest(group: Sequence[Finding]) -> str:
    """How many more there are, and in which episodes: "… and 10 more: episodes 5–12, 20, 31"."""
    numbers = sorted({finding.episode for finding in group if finding.episode is not None})
    ranges = []
    for _, run in groupby(enumerate(numbers), key=lambda entry: entry[1] - entry[0]):
        its = [number for _, number in run]
        ranges.append(f"{its[0]}" if len(its) == 1 else f"{its[0]}–{its[-1]}")
    listed = ", ".join(ranges[:20]) + (", …" if len(ranges) > 20 else "")
    return f"… and {len(group)} more" + (f": episodes {listed}" if listed else "")


def _total(report: DatasetReport) -> Text:
    """How much was found, or that nothing was."""
    looked_for = f"{len(report.looked_for)} kinds of faults were looked for"
    if not report.findings:
        return Text(f"Nothing was found; {looked_for}.", "bold green")
    total = Text()
    for severity in Severity:
        count = sum(finding.severity is severity for finding in report.findings)
        if count:
            words = f"{count} {severity.value}{'s' if count > 1 else ''}"
            total.append(", " if total else "").append(words, _STYLES[severity])
    return total.append("." if report.summary is None else f"; {looked_for}.")
