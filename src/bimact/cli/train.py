"""`bimact train`, which is `scripts/train_act.py` too."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

import bimact
from bimact.cli.arguments import Commands
from bimact.config import Config
from bimact.errors import UserError
from bimact.files import expand_home

DEFAULT_CONFIG = Path("configs/policy_act.yaml")


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train a policy on demonstrations",
        description="Train a policy. Every setting of the config can be given as --key value or --key=value.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_settings_help(),
    )
    parser.add_argument("--config", help=f"YAML (default: {DEFAULT_CONFIG}; of a resumed run: its own)")
    parser.add_argument(
        "--resume_from", help="go on from this checkpoint (.pth) or from the last one of this run's folder"
    )
    parser.add_argument("--override_config", action="store_true", help="go on with other settings than the run had")
    parser.set_defaults(run=_train)
    return parser


def _settings_help() -> str:
    from bimact.config import settings

    width = max(map(len, settings()))
    lines = []
    for name, entry in settings().items():
        choices = f" ({', '.join(entry.metadata['choices'])})" if entry.metadata["choices"] else ""
        lines.append(f"  --{name:<{width}}  {entry.metadata['meaning']}{choices}")
    return "\n".join(["settings:", *lines, "", "defaults and ranges: docs/configuration.md"])


def _train(options: argparse.Namespace) -> None:
    from bimact.config import load_config
    from bimact.train.device import make_accelerator
    from bimact.train.ranks import Ranks
    from bimact.train.resume import dataset_of, run_of

    run = None if options.resume_from is None else run_of(options.resume_from)
    path = _config_path(options.config, run)
    settings = settings_of(options.rest)
    if run is not None and options.config is None:
        settings.insert(0, f"output_dir={run}")  # where it lies now; its own config knows where it began
    config = load_config(path, settings)
    moved = None
    if run is not None and options.config is None and not any(item.startswith("dataset_dir=") for item in settings):
        dataset, moved = dataset_of(config, run)
        config = dataclasses.replace(config, dataset_dir=dataset)
    accelerator = make_accelerator(config)
    ranks = Ranks(accelerator)
    dataset = config.dataset_dir or expand_home(os.environ.get("ACT_DATASET_DIR", "")) or None
    output = config.output_dir or run or ranks.main_ones(_free_output_dir(config, dataset))
    config = dataclasses.replace(config, dataset_dir=dataset, output_dir=str(output))
    if ranks.is_main:
        print(f"=== ACT Training ===\nConfig: {path}\nDataset: {dataset}\nOutput: {output}\n", flush=True)
        if moved is not None:
            print(moved, flush=True)
    from bimact.train.act_trainer import ActTrainer

    try:
        ActTrainer(config, options.resume_from, override_config=options.override_config, accelerator=accelerator).fit()
    except RuntimeError as error:
        if ranks.lost(error):
            raise _other_process_ended(Path(str(output))) from error
        raise
    accelerator.end_training()  # the processes part


def _other_process_ended(run: Path) -> UserError:
    go_on = f", and go on from the last checkpoint by --resume_from {run}" if (run / "checkpoint").is_dir() else ""
    return UserError(f"another process of this training has ended: see its message{go_on}")


def _config_path(given: str | None, run: Path | None) -> Path:
    """The config to use: as given, else that of the run that goes on, else the guide's."""
    if given is not None:
        return Path(expand_home(given))
    if run is not None and (run / "config.yaml").is_file():
        return run / "config.yaml"
    project = Path(bimact.__file__).parents[2]  # where an editable installation comes from
    return DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else project / DEFAULT_CONFIG


def _free_output_dir(config: Config, dataset: str | None) -> str:
    """A folder of its own for a run that got none."""
    sweep, trial = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if sweep and trial:  # started by `wandb agent`
        return f"runs/sweep-{sweep}/{trial}"
    name = Path(dataset).resolve().name if dataset else "act"
    return f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def settings_of(arguments: Sequence[str]) -> list[str]:
    """`--key value`, `--key=value` and a bare `--flag` → `key=value`, with the value as it is given.

    Raises:
        UserError: for a value that belongs to no key, or a key without one that cannot be true.
    """
    from bimact.config import may_be_true

    def flag(name: str) -> str:
        if not may_be_true(name):
            raise UserError(
                f"--{name} is given without a value: give it as --{name} VALUE, or as --{name}=VALUE where the value "
                "begins with --"
            )
        return f"{name}=true"

    settings: list[str] = []
    waiting: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            if waiting is not None:
                settings.append(flag(waiting))
            name, equals, value = argument[2:].partition("=")
            waiting = None if equals else name
            if equals:
                settings.append(f"{name}={value}")
        elif waiting is not None:
            settings.append(f"{waiting}={argument}")
            waiting = None
        else:
            raise UserError(f"'{argument}' belongs to no setting: settings are given as --key value")
    if waiting is not None:
        settings.append(flag(waiting))
    return settings
