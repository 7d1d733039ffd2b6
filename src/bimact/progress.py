"""Progress bars for long operations: live on a terminal, an occasional line where output is piped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 15.0


class ProgressBar:
    """Counts the steps of an operation."""

    def __init__(self, title: str, total: int, done: int, live: Progress | None) -> None:
        self.title = title
        self.total = total
        self.done = done
        self._at_start = done
        self._live = live
        self._task = live.add_task(title, total=total, completed=done, note="") if live else None
        self._began = self._last_line = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add finished steps; `note` is shown after the bar."""
        self.done += count
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.done, note=note)
            return
        now = time.monotonic()
        if now - self._last_line > _SECONDS_BETWEEN_LINES or (self.done == self.total and self.total > 1):
            self._last_line = now
            each = (now - self._began) / max(1, self.done - self._at_start)
            left = f", {each * (self.total - self.done):.0f} s left" if self.done < self.total else ""
            print(f"{self.title}: {self.done}/{self.total}{left}{' · ' + note if note else ''}", flush=True)


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[ProgressBar]:
    """A progress bar with the remaining time, for a block that calls `advance`."""
    console = Console()
    if not console.is_terminal:
        yield ProgressBar(title, total, done, None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as live:
        yield ProgressBar(title, total, done, live)
