"""`bimact doctor`: is this machine ready for training?"""

from __future__ import annotations

import argparse
import json
import sys

from bimact.cli.arguments import Commands

_PIPED_WIDTH = 120


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "doctor",
        allow_abbrev=False,
        help="check whether this machine is ready for training: GPUs, packages, imports",
        description="Examine this machine and print what to do about each component that is not ready. "
        "Exit status 1 if something is broken that training needs, or a GPU that PyTorch cannot use.",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for bug reports")
    parser.set_defaults(run=_doctor)
    return parser


def _doctor(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bimact.doctor import examine

    if options.json:
        examination = examine()
        print(json.dumps(examination.as_json(), indent=2, ensure_ascii=False))
        sys.exit(1 if examination.broken else 0)
    # Piped output has no width.
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
    with console.status("Examining this machine"):
        examination = examine()

    components = Table("Component", "Status", "Details", title="Environment", title_justify="left")
    for row in examination.rows:
        components.add_row(row.component, Text(f"{row.state.value} {row.status}", no_wrap=True), Text(row.details))
    console.print(components)
    for row in examination.rows:
        if row.remedy:  # on one line, so that a command in it can be copied
            console.print(f"{row.state.value} {row.component}: {row.remedy}", markup=False, soft_wrap=True)

    if examination.gpus:
        columns = ("GPU", "Name", "Memory", "Compute Capability", "Driver")
        gpus = Table(*columns, title="GPU Information", title_justify="left")
        for index, gpu in enumerate(examination.gpus):
            memory = "unknown" if gpu.memory is None else f"{gpu.memory:.2f} GB"
            gpus.add_row(str(index), gpu.name, memory, gpu.architecture, examination.driver.version or "unknown")
        console.print(gpus)

    verdict = f"✅ Ready for training on {'the GPU' if examination.has_usable_gpu else 'the CPU'}."
    if examination.broken:
        verdict = f"❌ Not ready for training: {', '.join(examination.broken)}."
    console.print(verdict, markup=False, soft_wrap=True)
    if examination.broken:
        sys.exit(1)
