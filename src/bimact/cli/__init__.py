"""The `bimact` command. Each of its commands is a module here that parses options and calls the other packages."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from bimact import __version__
from bimact.cli import (
    cache,
    check,
    compare,
    completion,
    convert,
    convert_checkpoint,
    demo,
    doctor,
    edit,
    estimate,
    evaluate,
    export,
    guide_files,
    latency,
    proof,
    push,
    push_dataset,
    record,
    report,
    serve,
    sim_robot,
    sweep,
    train,
    view,
)
from bimact.cli.examples import EXAMPLES
from bimact.errors import UserError, printable

# In the order of `bimact --help`. A command imports what it needs when it runs: `--help` is fast, and recording needs
# no PyTorch.
_COMMANDS = (
    *(demo, record, check, view, edit, convert, estimate, train, sweep, evaluate, compare, report, proof),
    *(serve, sim_robot, export, latency, convert_checkpoint, push, push_dataset),
    *(cache, doctor, guide_files, completion),
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a `bimact` command and exit (0 done, 2 wrong input, 130 interrupted)."""
    for name in ("matplotlib", "matplotlib.font_manager"):
        logging.getLogger(name).addFilter(_is_not_about_caches)
    options = parse(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run_command(options.run, options))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; `options.run(options)` runs its command.

    Raises:
        SystemExit: with status 2 for an option that the command does not have.
    """
    parser, commands = _parser()
    options, rest = parser.parse_known_args(list(arguments))
    if rest and options.command not in ("train", "sweep", "estimate", "view"):
        commands[options.command].error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    return options


def train_main() -> NoReturn:
    """The command line of `scripts/train_act.py`: the same as `bimact train`."""
    main(["train", *sys.argv[1:]])


def _is_not_about_caches(record: logging.LogRecord) -> bool:
    """False for matplotlib's messages on its temporary cache, used if the home directory is not writable."""
    news = ("mkdir -p failed for path", "Matplotlib created a temporary cache", "Matplotlib is building the font cache")
    return not str(record.msg).startswith(news)


def _run_command(command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a command; returns its exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends a command as Ctrl-C does
    try:
        try:
            command(options)
        except UserError as error:
            if options.debug:
                raise
            print(f"{options.command}{_rank()}: {printable(str(error))}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # the reading end of a pipe, such as `head`, was closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"interrupted{_rank()}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the rest may be interrupted


def _rank() -> str:
    """The rank of a process of a distributed training, if it is not the main process."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f" (process {rank})"


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="bimact",
        description="Train ACT on bimanual demonstrations, and prove the policy by its success rate.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bimact {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = [command.add(commands) for command in _COMMANDS]
    for entry in parsers:
        entry.add_argument("--debug", action="store_true", help="show the traceback of an error")
        entry.formatter_class = _HelpFormatter
        if examples := EXAMPLES.get(entry.prog.split()[-1]):
            examples = examples.strip().replace("\n", "\n  ")
            entry.epilog = "\n\n".join([*filter(None, [entry.epilog]), f"examples:\n  {examples}\n"])
    return parser, {entry.prog.split()[-1]: entry for entry in parsers}


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs, but keeps the lines of multi-line text."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return indent + text if "\n" in text else super()._fill_text(text, width, indent)
