"""`bimact edit`: a dataset without some episodes, steps or cameras, with others', or under other names."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from bimact.cli.arguments import Commands
from bimact.cli.convert import add_writing, write
from bimact.errors import UserError
from bimact.files import expand_home

if TYPE_CHECKING:
    from bimact.convert.edit import Edits
    from bimact.data.selection import SelectedSource
    from bimact.data.source import Unusable

_EPILOG = """\
E is the number of an episode in SRC, as printed by `bimact check`, or its name; steps are those of SRC. All edits of
one command refer to the original numbers. SRC is never changed, and DST appears when it is
complete. docs/editing.md lists what is kept.
"""


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "edit",
        allow_abbrev=False,
        help="repair a dataset: drop, trim, split, merge, rename",
        description="Write a dataset without some episodes, steps or cameras, together with others, or under other "
        "names. SRC itself is not changed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    parser.add_argument("source", metavar="SRC", type=expand_home, help="a folder, a file, or a name on the hub")
    parser.add_argument(
        "target", metavar="DST", type=expand_home, help="the folder to create; must not exist, or be empty"
    )
    edits = parser.add_argument_group("edits")
    edits.add_argument("--drop_episodes", metavar="E", help="episodes to leave out, such as 3,7:9 (without 9)")
    edits.add_argument("--episodes", metavar="E", help="episodes to keep; all others are left out")
    edits.add_argument(
        "--skip_unreadable", action="store_true", help="leave out the episodes that are damaged, instead of stopping"
    )
    edits.add_argument(
        "--trim_idle",
        action="store_true",
        help="remove the steps without motion at the beginning and the end of episodes that `bimact check` finds "
        "(idle-head, idle-tail), except for a fifth of a second",
    )
    edits.add_argument(
        "--trim", metavar="E@FIRST:END,…", help="keep only these steps of an episode, such as 7@120:400 (without 400)"
    )
    edits.add_argument(
        "--split", metavar="E@STEP,…", help="begin a new episode at a step, such as 7@120, or at several: 7@120@300"
    )
    edits.add_argument(
        "--merge", metavar="SRC", nargs="+", type=expand_home, default=[], help="append all episodes of other datasets"
    )
    edits.add_argument("--rename", metavar="OLD=NEW,…", help="new names of cameras or columns, in all datasets")
    edits.add_argument("--drop_features", metavar="A,B", help="cameras and columns to leave out")
    edits.add_argument("--task", metavar="TEXT", help="task description for episodes that have none")
    writing = parser.add_argument_group("how DST is written")
    writing.add_argument(
        "--to",
        choices=("lerobot", "aloha_hdf5", "guide", "zarr"),
        help="its format (default: that of SRC, if it is one of these)",
    )
    writing.add_argument("--color_order", choices=("rgb", "bgr"), help="of images whose format does not specify it")
    add_writing(parser)
    parser.set_defaults(run=_edit)
    return parser


def _edit(options: argparse.Namespace) -> None:
    from bimact.convert.content import Content
    from bimact.convert.dataset import HOLD_DEPTH, check_target, format_of, prepare_conversion
    from bimact.convert.edit import edit
    from bimact.convert.writer import Options
    from bimact.data.opening import open_source
    from bimact.data.reading import read_through
    from bimact.data.selection import Selection, episodes_named

    edits = _edits_of(options)
    chosen: list[SelectedSource] = []
    to: str | None = options.to
    for path in (options.source, *options.merge):
        source = open_source(path, cache_dir=options.cache_dir)
        to = to or format_of(source)
        if to is None:
            raise UserError(f"{source.path} is {source.format}, which cannot be written: choose a format by --to")
        written = Options(options.codec, options.lossless, options.compress, options.workers)
        check_target(source.path, options.target, to, written)
        for setting in () if chosen else ("episodes", "drop_episodes"):  # messages name these options
            named = getattr(options, setting)
            if named is not None:
                episodes_named(f"--{setting}", named.split(","), Selection().applied_to(source))
        of_first = {} if chosen else {"episodes": options.episodes, "exclude_episodes": options.drop_episodes}
        selection = Selection(
            **{name: tuple(value.split(",")) for name, value in of_first.items() if value is not None},  # type: ignore[arg-type]
            skip_unreadable=options.skip_unreadable,
            color_order=options.color_order,
        )
        part = selection.applied_to(source, with_depth=to in HOLD_DEPTH)
        is_damaged = any(not episode.is_missing for episode in part.unusable)
        faults, matched = read_through(part, decodes=is_damaged or options.skip_unreadable)
        part = dataclasses.replace(part.without(faults), notes=(*part.notes, *matched))
        _refuse_damaged(part, part.unusable, options, is_first=not chosen)
        chosen.append(part)
    assert to is not None

    edited, done = edit(chosen, edits, copies_videos=to == "lerobot" and not (options.codec or options.lossless))
    if to == "lerobot" and chosen[0].format.startswith("LeRobot"):
        as_images = tuple(name for name in edited.cameras if name not in edited.video_cameras)
        written = dataclasses.replace(written, as_images=as_images)
    content = Content.of(Selection().applied_to(edited, with_depth=to in HOLD_DEPTH), options.task)
    conversion = prepare_conversion(content, options.target, to, written)
    dropped = sum(len(part.whole.episodes) + len(part.whole.unusable) - len(part.episodes) for part in chosen)
    notes = [f"episodes left out: {dropped}"] if dropped else []
    notes += [f"skipped: {episode.sentence}" for part in chosen for episode in part.unusable]
    try:
        write(conversion, [*notes, *done, *edited.notes], options.target)
    except UserError:
        for number, part in enumerate(chosen):
            faults, _ = read_through(part)  # there may be more than this one
            _refuse_damaged(part, faults, options, is_first=number == 0)
        raise


def _refuse_damaged(
    part: SelectedSource, faults: list[Unusable] | tuple[Unusable, ...], options: argparse.Namespace, *, is_first: bool
) -> None:
    """Check that no episode is damaged, and at least one is left.

    Raises:
        UserError: listing all damaged ones, with the option to leave them out.
    """
    damaged = [episode for episode in faults if not episode.is_missing]
    if damaged and not options.skip_unreadable:
        numbers = ",".join(str(episode.number) for episode in damaged)
        told = "; ".join(episode.sentence for episode in damaged[:10])
        drop = f"--drop_episodes {numbers} or " if is_first else ""
        raise UserError(
            f"{part.path}: {len(damaged)} of its episodes cannot be read: {told}; leave them out by {drop}"
            "--skip_unreadable"
        )
    if not part.episodes:
        raise UserError(f"{part.path}: no episode is left")


def _edits_of(options: argparse.Namespace) -> Edits:
    """The edits given by options.

    Raises:
        UserError: for an invalid option, or if there is none.
    """
    from bimact.convert.edit import Edits

    def wrong(setting: str, value: str, example: str) -> UserError:
        return UserError(f"--{setting} is '{value}', it has to look like {example}")

    trim: dict[str, tuple[int, int | None]] = {}
    for item in (options.trim or "").split(",") if options.trim else ():
        name, at, span = item.strip().rpartition("@")
        first, colon, end = span.partition(":")
        if not (name and at and colon) or not all(part == "" or part.isdecimal() for part in (first, end)):
            raise wrong("trim", options.trim, "7@120:400,9@30:")
        trim[name] = int(first or 0), int(end) if end else None
    split: dict[str, tuple[int, ...]] = {}
    for item in (options.split or "").split(",") if options.split else ():
        name, *steps = item.strip().split("@")
        if not name or not steps or not all(step.isdecimal() for step in steps):
            raise wrong("split", options.split, "7@120,9@40@80")
        split[name] = tuple(int(step) for step in steps)
    rename: dict[str, str] = {}
    for item in (options.rename or "").split(",") if options.rename else ():
        old, equals, new = (part.strip() for part in item.partition("="))
        if not (old and equals and new):
            raise wrong("rename", options.rename, "cam_high=front,cam_low=table")
        rename[old] = new
    dropped = tuple(name.strip() for name in (options.drop_features or "").split(",") if name.strip())
    edits = Edits(trim=trim, trim_idle=options.trim_idle, split=split, drop_features=dropped, rename=rename)
    others = (options.drop_episodes, options.episodes, options.skip_unreadable, options.merge, options.task)
    if edits == Edits() and not any(others):
        raise UserError("nothing to change: give an edit such as --drop_episodes, or use `bimact convert`")
    return edits
