"""`bimact cache`: files on disk that can be recreated."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bimact.cli.arguments import Commands
from bimact.errors import UserError
from bimact.files import expand_home

if TYPE_CHECKING:
    from bimact.data.cache import CacheEntry


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "cache",
        allow_abbrev=False,
        help="list or remove converted copies, encoded images and downloads",
        description="List what is stored on disk to speed up training: converted copies of datasets, features of "
        "frozen encoders, downloads. All of it is recreated when it is needed.",
    )
    parser.add_argument(
        "dataset_dir", metavar="DATASET", nargs="?", type=expand_home, help="only of this dataset: a folder or file"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="list it (default)")
    action.add_argument("--clear", action="store_true", help="remove it")
    parser.add_argument("--json", action="store_true", help="print the list as JSON, sizes in bytes")
    parser.set_defaults(run=_cache)
    return parser


def _cache(options: argparse.Namespace) -> None:
    from bimact.data.cache import clear, find_caches

    dataset = None if options.dataset_dir is None else Path(options.dataset_dir)
    if dataset is not None and not dataset.exists():
        raise UserError(f"there is no {dataset.absolute()}")
    entries = find_caches(dataset)
    if options.json:
        rows = [{**dataclasses.asdict(entry), "path": str(entry.path)} for entry in entries]
        print(json.dumps({"caches": rows, "removed": options.clear}, indent=2))
        if options.clear:
            clear(entries)
        return
    if not entries:
        print("Nothing is cached" + (f" of {dataset}" if dataset else ""))
        return
    _print_table(entries)
    total = f"{len(entries)} in all, {_size(sum(entry.bytes for entry in entries))}"
    if options.clear:
        clear(entries)
    print(f"Removed: {total}" if options.clear else f"{total}. To remove: bimact cache --clear [DATASET]")


def _print_table(entries: Sequence[CacheEntry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bimact.errors import printable

    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("What", no_wrap=True)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Where", overflow="fold")
    for entry in entries:
        detail = Text(printable(entry.detail), "dim")
        where = Text.assemble(printable(entry.dataset or "of an unknown dataset"), "\n", (str(entry.path), "dim"))
        table.add_row(Text.assemble(entry.kind, "\n", detail), _size(entry.bytes), where)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(table)


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
