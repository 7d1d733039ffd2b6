"""`bimact completion`: completion of commands, options and settings in a shell."""

from __future__ import annotations

import argparse

from bimact.cli.arguments import Commands
from bimact.config import settings

_SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
_FOLDERS = {"dataset_dir", "output_dir", "run_dir", "resume_from", "cache_dir", "source", "target", "output", "model"}
_FILES = {"config", "file"}


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "completion",
        allow_abbrev=False,
        help="print a shell's completion of all commands, options and settings",
        description="Print the completion of a shell: all commands, their options, and the settings of bimact train "
        "and bimact sweep with their choices. docs/command-line.md describes where each shell expects it.",
    )
    parser.add_argument("shell", choices=_SHELLS, help="the shell")
    parser.set_defaults(run=_completion)
    return parser


def _completion(options: argparse.Namespace) -> None:
    import shtab

    from bimact.cli import _parser

    parser, commands = _parser()
    # Their settings are not options of the parser, which does not know their types.
    for name in ("train", "sweep", "estimate"):
        group = commands[name].add_argument_group("settings")
        known = {option for action in commands[name]._actions for option in action.option_strings}
        for key, entry in settings().items():
            if f"--{key}" not in known:
                choices = entry.metadata["choices"]
                group.add_argument(f"--{key}", help=entry.metadata["meaning"].replace("%", "%%"), choices=choices)
    for command in commands.values():
        for action in command._actions:
            kind = shtab.DIRECTORY if action.dest in _FOLDERS else shtab.FILE if action.dest in _FILES else None
            if kind and not action.choices:
                action.complete = kind  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
