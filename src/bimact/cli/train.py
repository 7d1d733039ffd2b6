"""`bimact train`, which is `scripts/train_act.py` too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bimact.cli.arguments import Commands
from bimact.errors import UserError


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train a policy on demonstrations",
        description="Train a policy. Every setting of the config can be given as --key value.",
        epilog="settings: " + ", ".join(_setting_names()),
    )
    parser.add_argument("--config", default="configs/policy_act.yaml", help="YAML (default: %(default)s)")
    parser.add_argument("--resume_from", help="go on from this checkpoint (.pth)")
    parser.set_defaults(run=_train)
    return parser


def _setting_names() -> list[str]:
    from bimact.config import setting_names

    return setting_names()


def _train(options: argparse.Namespace) -> None:
    from bimact.config import load_config

    config = load_config(options.config, _settings(options.rest))
    print("=== ACT Training ===")
    print(f"Config: {options.config}")
    print(f"Dataset: {config.dataset_dir}")
    print(f"Output: {config.output_dir}\n", flush=True)
    from bimact.train.act_trainer import ActTrainer

    ActTrainer(config, options.resume_from).fit()


def _settings(arguments: Sequence[str]) -> list[str]:
    """`--key value`, `--key=value` and a bare `--flag` → `key=value`."""
    settings: list[str] = []
    waiting: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            if waiting is not None:
                settings.append(f"{waiting}=true")
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
        settings.append(f"{waiting}=true")
    return settings
