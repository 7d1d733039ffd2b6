"""`bimact check`: is a dataset fit for training?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from bimact.cli.arguments import Commands
from bimact.errors import UserError

if TYPE_CHECKING:
    from bimact.data.episodes import Episodes
    from bimact.data.findings import Finding

_MOST = 20  # lines of one kind


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="look through a dataset for everything that is wrong with it",
        description="Look through a whole dataset. Faults are listed and have to be mended before training (exit "
        "status 2); warnings are worth a look. Nothing in the dataset is changed.",
    )
    parser.add_argument("dataset_dir", metavar="DIR", help="the demonstrations")
    parser.add_argument("--config", help="YAML: the settings that the dataset has to fit, such as action_dim")
    parser.add_argument("--cache_dir", help="where a converted copy goes, if the format needs one")
    parser.set_defaults(run=_check)
    return parser


def _check(options: argparse.Namespace) -> None:
    from bimact.config import load_config
    from bimact.data.checks import check_dataset

    config = load_config(options.config) if options.config else None
    cache_dir = options.cache_dir or (config.cache_dir if config else None)
    report = check_dataset(options.dataset_dir, config, cache_dir)
    if not report.faults and report.episodes is not None:
        _print_counts(report.episodes)
        _print_facts(report.episodes, report.size)
    _print_findings("fault", report.faults)
    _print_findings("warning", report.warnings)
    if report.faults:
        count = len(report.faults)
        raise UserError(f"{report.path} has {count} fault{'s' if count > 1 else ''}: mend what is listed, check again")


def _print_counts(episodes: Episodes) -> None:
    """What the guide's own check of a dataset prints."""
    print(f"Total timesteps: {len(episodes.actions)}")
    print(f"Number of episodes: {len(episodes.lengths)}")
    print(f"Action shape: {episodes.actions.shape}")
    print(f"Sum of rollout lengths: {episodes.lengths.sum()}")
    print("✅ Dataset valid!")


def _print_facts(episodes: Episodes, size: int) -> None:
    from rich.filesize import decimal

    lengths = sorted(episodes.lengths.tolist())
    cameras = ", ".join(f"{name} {rows.shape[1]}x{rows.shape[2]}" for name, rows in episodes.images.items())
    spread = f"{lengths[0]} to {lengths[-1]} steps, median {median(lengths):g}"
    facts = {
        "Cameras (height x width)": cameras or "none",
        "State size": str(episodes.state.shape[1]),
        "Episode length": spread if lengths[0] < lengths[-1] else f"{lengths[0]} steps",
        "Steps a second": None if episodes.fps is None else f"{episodes.fps:g}",
        "Size on disk": decimal(size),
    }
    print()
    for name, value in facts.items():
        if value is not None:
            print(f"{name}: {_printable(value)}")


def _print_findings(kind: str, findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    if not findings:
        return
    title = f"\n{len(findings)} {kind}{'s' if len(findings) > 1 else ''}:"
    style = "bold red" if kind == "fault" else "bold yellow"
    Console(highlight=False, soft_wrap=True).print(Text(title, style=style))
    for finding in findings[:_MOST]:
        print(f"  {_printable(finding.sentence)}")
    if len(findings) > _MOST:
        print(f"  … and {len(findings) - _MOST} more")


def _printable(text: str) -> str:
    """Names in a stranger's file must not steer the terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
