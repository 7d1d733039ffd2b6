"""`bimact estimate`: what a training will cost on this machine."""

from __future__ import annotations

import argparse

from bimact.cli.arguments import Commands
from bimact.cli.train import settings_of
from bimact.configs import DEFAULT
from bimact.errors import UserError


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "estimate",
        allow_abbrev=False,
        help="print what a training will cost: memory, disk space, time",
        description="Measure some training steps on this device, on random batches of the dataset's shapes, and print "
        "the cost of the whole training: parameters, memory by batch size, disk space of caches and checkpoints, time. "
        "Nothing is decoded, downloaded or written. Every setting of `bimact train` can be given as --key value; "
        "without --dataset_dir the training guide's robot is assumed.",
    )
    parser.add_argument("--config", help=f"YAML file, or name of a config of bimact (default: {DEFAULT})")
    parser.add_argument(
        "--batch_sizes", metavar="B,B", help="to measure, besides the config's (default: half and double of it)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, and progress on stderr")
    parser.set_defaults(run=_estimate)
    return parser


def _estimate(options: argparse.Namespace) -> None:
    import dataclasses
    import json
    import os
    import sys

    from bimact.files import expand_home
    from bimact.training.estimate import estimate
    from bimact.training.mixture import with_datasets
    from bimact.training.prepare import request

    sizes = None
    if options.batch_sizes is not None:
        try:
            sizes = [int(size) for size in options.batch_sizes.split(",")]
        except ValueError:
            sizes = [0]
        if min(sizes) < 1:
            raise UserError(f"--batch_sizes is '{options.batch_sizes}', it has to be numbers from 1, such as 8,32,64")
    config = request(options.config, settings_of(options.rest)).config
    config = with_datasets(config)
    if config.datasets is not None:
        raise UserError(
            "bimact estimate measures one dataset: give one of yours by --dataset_dir, with --datasets null if the "
            "config has several"
        )
    dataset = config.dataset_dir or expand_home(os.environ.get("ACT_DATASET_DIR", "")) or None
    found = estimate(
        dataclasses.replace(config, dataset_dir=dataset), sizes, lambda line: print(line, file=sys.stderr, flush=True)
    )
    if options.json:
        print(json.dumps(found.as_dict(), indent=2))
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    facts = {
        "Device": found.device,
        "Parameters": f"{found.parameters:,}, of which {found.trainable:,} are trained",
        "Checkpoint": f"{_size(found.weights_file)}, and {_size(found.state_file)} to resume exactly",
    }
    if found.episodes is not None:
        facts["Dataset"] = f"{found.episodes[0]} training and {found.episodes[1]} validation episodes"
        facts["Training"] = (
            f"{found.optimizer_steps:,} optimizer steps, {found.epochs:,} epochs of {found.steps:,} windows"
        )
        facts["Computation"] = (
            f"{found.step_flop / 1e9:,.0f} GFLOP of matrix products in a step, "
            f"{found.step_flop * (found.optimizer_steps or 0) / 1e12:,.1f} TFLOP in all"
        )
        facts["Disk"] = (
            f"{_size(found.checkpoints)} for up to {found.checkpoints_kept} checkpoints, "
            f"{_size(found.decoded_copy)} decoded images, {_size(found.feature_cache)} cached features"
        )
        facts["Time"] = f"{_duration(found.training_seconds)} of training" + (
            f", after {_duration(found.encoding_seconds)} of encoding images once" if found.encoding_seconds else ""
        )
    console = Console(highlight=False, markup=False)
    for name, value in facts.items():
        console.print(f"{name + ':':<13}{value}", soft_wrap=True)
    table = Table(box=box.SIMPLE)
    for column in ("batch size", "memory", "ms per step", "samples per second"):
        table.add_column(column, justify="right")
    for cost in found.batches:
        if cost.seconds is None:
            table.add_row(str(cost.batch_size), "does not fit", "", "")
        else:
            per_second = cost.batch_size / cost.seconds
            table.add_row(str(cost.batch_size), _size(cost.memory), f"{1000 * cost.seconds:.1f}", f"{per_second:,.0f}")
    console.print(table)
    for note in found.notes:
        console.print(f"Note: {note}", soft_wrap=True)


def _size(count: int | None) -> str:
    count = count or 0
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float | None) -> str:
    seconds = seconds or 0
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
