"""`bimact doctor`: is this machine fit for training?"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from bimact.cli.arguments import Commands

if TYPE_CHECKING:
    from rich.table import Table

    from bimact.doctor import Examination

_PIPED_WIDTH = 120


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "doctor",
        allow_abbrev=False,
        help="is this machine fit for training? GPUs, packages, imports, and what to do about faults",
        description="Examine this machine and say what to do about each component that is not ready. "
        "Exit status 1 if something is broken that training needs, or a GPU that PyTorch cannot use.",
    )
    parser.set_defaults(run=_doctor)
    return parser


def _doctor(options: argparse.Namespace) -> None:
    from rich.console import Console

    from bimact.doctor import examine

    # Piped output has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
    with console.status("Examining this machine"):
        examination = examine()
    console.print(_components(examination))
    for row in examination.rows:
        if row.remedy:  # on one line however long, so that a command in it can be copied
            console.print(f"{row.state.value} {row.component}: {row.remedy}", markup=False, soft_wrap=True)
    if examination.gpus:
        console.print(_gpus(examination))
    console.print(_verdict(examination), markup=False, soft_wrap=True)
    if examination.broken:
        sys.exit(1)


def _components(examination: Examination) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("Component", "Status", "Details", title="Environment", title_justify="left")
    for row in examination.rows:
        table.add_row(row.component, Text(f"{row.state.value} {row.status}", no_wrap=True), Text(row.details))
    return table


def _gpus(examination: Examination) -> Table:
    from rich.table import Table

    columns = ("GPU", "Name", "Memory", "Compute Capability", "Driver")
    table = Table(*columns, title="GPU Information", title_justify="left")
    for index, gpu in enumerate(examination.gpus):
        memory = "unknown" if gpu.memory is None else f"{gpu.memory:.2f} GB"
        table.add_row(str(index), gpu.name, memory, gpu.architecture, examination.driver.version or "unknown")
    return table


def _verdict(examination: Examination) -> str:
    if examination.broken:
        return f"❌ Not ready for training: {', '.join(examination.broken)}."
    return f"✅ Ready for training on {'the GPU' if examination.has_usable_gpu else 'the CPU'}."
