"""`bimact report`: one page on a run."""

from __future__ import annotations

import argparse
import shlex
import sys

from bimact.cli.arguments import Commands
from bimact.files import expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "report",
        allow_abbrev=False,
        help="one page on a run: settings, curves, errors, success rate, videos",
        description="Write R/report.html: one self-contained page on a run.",
    )
    parser.add_argument("--run", dest="run_dir", required=True, type=expand_home, help="the training run's folder")
    parser.set_defaults(run=_report)
    return parser


def _report(options: argparse.Namespace) -> None:
    from rich.console import Console

    from bimact.evaluation.report import summary_table, write_report

    write_report(options.run_dir)
    # Piped output has no width of its own: paths should stay on one line there.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(summary_table(options.run_dir))
    print(f"Next: bimact serve --run {shlex.quote(options.run_dir)}")
