"""`bimact proof`: the shipped recipes over several training seeds, with a page of results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bimact.cli.arguments import Commands
from bimact.errors import UserError
from bimact.files import expand_home
from bimact.recipes import RECIPES


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "proof",
        allow_abbrev=False,
        help="train the shipped recipes with several seeds, roll them out, and write a page of results (hours)",
        description="Record, train and roll out the recipes for the simulated tasks over several training seeds, and "
        "write a page with protocol, intervals and spread. The cost is printed first. The same command resumes.",
    )
    parser.add_argument("--tasks", default=",".join(RECIPES), help=f"(default: {','.join(RECIPES)})")
    parser.add_argument("--seeds", help="of the trainings, comma-separated (default: 0,1,2,3,4)")
    parser.add_argument("--rollouts", type=int, help="of each policy (default: 500)")
    parser.add_argument("--first_scene", type=int, default=2000, help="seed of the first scene (default: 2000)")
    parser.add_argument("--output_dir", type=expand_home, help="of datasets and runs (default: runs/proof)")
    parser.add_argument(
        "--page",
        type=expand_home,
        metavar="FILE",
        help="Markdown to write (default: OUTPUT_DIR/results.md); its figures are put beside it as JSON, and rows of "
        "other machines that are there already stay",
    )
    parser.add_argument("--quick", action="store_true", help="minutes: test the pipeline, not the policies")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry_run", action="store_true", help="print the cost alone")
    only.add_argument("--page_only", action="store_true", help="write the page of what there is")
    parser.set_defaults(run=_proof)
    return parser


def _proof(options: argparse.Namespace) -> None:
    from rich.console import Console

    from bimact.evaluation.proof import ProofSettings, cost, prove, write_page
    from bimact.files import check_writable

    seeds = options.seeds or ("0,1" if options.quick else "0,1,2,3,4")
    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise UserError(f"--seeds is '{seeds}', it has to be numbers such as 0,1,2") from None
    folder = Path(options.output_dir or ("runs/proof-quick" if options.quick else "runs/proof"))
    settings = ProofSettings(
        tasks=tuple(options.tasks.split(",")),
        seeds=numbers,
        rollouts=options.rollouts or (2 if options.quick else 500),
        first_scene=options.first_scene,
        folder=folder,
        page=Path(options.page or folder / "results.md"),
        quick=options.quick,
    )
    settings.check()
    if options.page_only:
        check_writable(settings.page.parent)
        write_page(settings)
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(cost(settings))
        if options.dry_run:
            return
        prove(settings)
    print(f"Results: {settings.page}")
