"""`bimact check`: is a dataset fit for training?"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys

from bimact.cli.arguments import Commands, add_selection, selection_of
from bimact.errors import UserError
from bimact.files import expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="find everything that is wrong with a dataset",
        description="Find everything that is wrong with a dataset, or may be, in any format that can be trained on. "
        "The dataset is not changed. docs/checking.md lists what is looked for. Exit status: 0 nothing worse than "
        "infos; 1 errors or warnings; 2 not all of the dataset could be read.",
    )
    parser.add_argument(
        "dataset_dir", metavar="DATASET", type=expand_home, help="the demonstrations: a folder or file, hub name or URL"
    )
    parser.add_argument(
        "--config", type=expand_home, help="YAML with settings to compare the dataset with, such as action_dim"
    )
    parser.add_argument("--cache_dir", type=expand_home, help="where downloads go")
    parser.add_argument("--no_images", action="store_true", help="leave out the images, which take most of the time")
    parser.add_argument(
        "--fail_on",
        choices=("error", "warning"),
        default="warning",
        help="lowest severity for exit status 1 (default: warning)",
    )
    parser.add_argument("--json", action="store_true", help="print all findings as JSON, and progress on stderr")
    add_selection(parser)
    parser.set_defaults(run=_check)
    return parser


def _check(options: argparse.Namespace) -> None:
    from rich.console import Console

    from bimact.check.dataset import check_dataset
    from bimact.check.kinds import Severity
    from bimact.check.table import print_report
    from bimact.config import load_config
    from bimact.configs import find_config

    config = load_config(find_config(options.config)) if options.config else None
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        report = check_dataset(
            options.dataset_dir,
            config,
            options.cache_dir or (config.cache_dir if config else None),
            selection=selection_of(options),
            images=not options.no_images,
        )
    if options.json:
        print(json.dumps(report.as_json(options.dataset_dir), indent=2))
    else:
        print_report(report, Console(highlight=False, markup=False), options.dataset_dir)
    status = report.exit_status(Severity(options.fail_on))
    if status == 2:
        count = len(report.errors)
        raise UserError(f"{report.path} has {count} error{'s' if count > 1 else ''}: mend what is listed, check again")
    if status:
        sys.exit(status)
