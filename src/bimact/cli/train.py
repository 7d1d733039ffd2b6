"""`bimact train`, which is `scripts/train_act.py` too."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence

from bimact.cli.arguments import Commands
from bimact.configs import DEFAULT
from bimact.errors import UserError


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train a policy on demonstrations",
        description="Train a policy. Every setting of the config can be given as --key value or --key=value.",
        epilog=_settings_help(),
    )
    parser.add_argument(
        "--config",
        help=f"YAML file, or name of a config of bimact (default: {DEFAULT}; when resuming: the run's)",
    )
    parser.add_argument(
        "--resume_from",
        help="resume from this checkpoint (.pth), or from the last one of this run directory; USER/NAME: begin with "
        "the weights of a policy on the Hugging Face hub; auto: resume what is in "
        "--output_dir, or start there",
    )
    parser.add_argument("--override_config", action="store_true", help="resume with other settings than the run had")
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
    from bimact.api import train_request
    from bimact.training.prepare import request

    asked = request(options.config, settings_of(options.rest), options.resume_from)
    run = train_request(asked, options.resume_from, options.override_config)
    if os.environ.get("RANK", "0") == "0":
        print(f"Next: bimact evaluate --run {shlex.quote(str(run.path))}")


def settings_of(arguments: Sequence[str]) -> list[str]:
    """`--key value`, `--key=value` and a bare `--flag` → `key=value`, with the value as given.

    Raises:
        UserError: for a value without a key, or a key without a value that cannot be true.
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
