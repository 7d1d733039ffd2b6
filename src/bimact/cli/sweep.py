"""`bimact sweep`: hyperparameter search by many trainings, without an account."""

from __future__ import annotations

import argparse
import shlex
import sys

from bimact.cli.arguments import Commands
from bimact.errors import UserError


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "sweep",
        allow_abbrev=False,
        help="hyperparameter search: many trainings, bad ones pruned, one report",
        description="Run a W&B sweep file with Optuna on this machine: each trial is a training in S/trial-NUMBER. "
        "The same command continues a sweep; machines with a common --storage share it. Further settings, such as "
        "--num_epochs 20, apply to each trial.",
    )
    parser.add_argument("file", metavar="FILE", help="W&B's sweep file, or the name of bimact's: sweep")
    parser.add_argument("--dataset_dir", help="the demonstrations")
    parser.add_argument("--trials", type=int, help="number of trials (default: all of a grid, or the file's run_cap)")
    parser.add_argument("--config", help="YAML that each trial starts from (default: that of bimact train)")
    parser.add_argument(
        "--output_dir", metavar="S", help="folder of the sweep (default: sweeps/NAME, by the file's name)"
    )
    parser.add_argument("--storage", metavar="URL", help="database that machines share (default: S/study.db)")
    parser.add_argument("--jobs", type=int, default=1, help="concurrent trials, each on its own GPU (default: 1)")
    parser.add_argument("--timeout", type=float, metavar="MINUTES", help="then save the running trials and end")
    parser.add_argument("--no_pruning", action="store_true", help="let bad trials run to the end")
    parser.set_defaults(run=_sweep)
    return parser


def _sweep(options: argparse.Namespace) -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("sweeps need Optuna: pip install 'optuna>=4'") from None
    from bimact.cli.train import settings_of
    from bimact.configs import DEFAULT, existing_or_shipped, find_config
    from bimact.sweep.plan import plan_sweep
    from bimact.sweep.run import run_sweep
    from bimact.sweep.study import shown_url
    from bimact.sweep.sweep_file import read_sweep

    sweep = read_sweep(existing_or_shipped(options.file))
    dataset = [] if options.dataset_dir is None else [f"--dataset_dir={options.dataset_dir}"]
    settings = dict(item.split("=", 1) for item in settings_of([*sweep.arguments, *dataset, *options.rest]))
    config = settings.pop("config", None)
    arguments = sys.argv[1:]
    if options.storage:  # the page may be shared, the password must not
        arguments = [item.replace(options.storage, shown_url(options.storage)) for item in arguments]
    plan = plan_sweep(
        sweep,
        find_config(options.config or config or DEFAULT),
        settings,
        output_dir=options.output_dir,
        storage=options.storage,
        trials=options.trials,
        jobs=options.jobs,
        timeout=options.timeout,
        pruning=not options.no_pruning,
        command=shlex.join(["bimact", *arguments]),
    )
    run_sweep(plan)
