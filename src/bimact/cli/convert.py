"""`bimact convert`: a dataset in another format."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bimact.cli.arguments import Commands, add_selection, selection_of
from bimact.errors import printable
from bimact.files import expand_home

if TYPE_CHECKING:
    from bimact.convert.dataset import PlannedConversion

_EPILOG = """\
what is kept:
  State, action and other columns are kept bit for bit, depth to the millimetre (except in the guide's format), colour
  images as follows.

  lerobot                AV1 videos as LeRobot encodes them: close to the source's images, not equal; the videos of
                         a LeRobotDataset are copied
  lerobot --lossless     PNG images in the tables: equal, at ten to twenty times the size
  aloha_hdf5             equal
  aloha_hdf5 --compress  JPEG images as ACT++ stores them: close, not equal
  guide                  equal; other columns are left out, and float64 is rounded to float32
  zarr                   equal

DST appears when it is complete. An interrupted conversion starts again; the hidden folder that a killed one leaves next
to DST is removed by the next run of the same command.
"""


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "convert",
        allow_abbrev=False,
        help="write a dataset, or a part of it, in another format",
        description="Write a dataset, or a part of it, in another format. The dataset itself is not changed.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "source", metavar="SRC", type=expand_home, help="the demonstrations: a folder, a file, or a name on the hub"
    )
    parser.add_argument(
        "target", metavar="DST", type=expand_home, help="the folder to create; must not exist, or be empty"
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=("lerobot", "aloha_hdf5", "guide", "zarr"),
        help="LeRobotDataset v3.0, ALOHA's HDF5 files, the training guide's .npy files, Diffusion Policy's replay "
        "buffer",
    )
    parser.add_argument("--task", metavar="TEXT", help="task description for episodes that have none")
    add_writing(parser)
    add_selection(parser)
    parser.set_defaults(run=_convert)
    return parser


def add_writing(parser: argparse.ArgumentParser) -> None:
    """The options on how a dataset is written."""
    parser.add_argument(
        "--codec",
        choices=("av1", "h264", "hevc"),
        help="lerobot: encode all videos with this codec (default: copy videos where possible, else av1)",
    )
    parser.add_argument("--lossless", action="store_true", help="lerobot: PNG images instead of videos")
    parser.add_argument("--compress", action="store_true", help="aloha_hdf5: JPEG images, as ACT++ stores them")
    parser.add_argument("--workers", metavar="N", type=int, help="number of processes (default: one per core)")
    parser.add_argument("--cache_dir", metavar="DIR", type=expand_home, help="where downloads and converted copies go")


def _convert(options: argparse.Namespace) -> None:
    from bimact.convert.content import Content
    from bimact.convert.dataset import HOLD_DEPTH, check_target, prepare_conversion
    from bimact.convert.writer import Options
    from bimact.data.opening import open_source
    from bimact.data.reading import read_through
    from bimact.data.selection import Selection, damaged_error
    from bimact.errors import UserError

    written = Options(options.codec, options.lossless, options.compress, options.workers)
    source = open_source(options.source, cache_dir=options.cache_dir)
    check_target(source.path, options.target, options.to, written)
    chosen = (selection_of(options) or Selection()).applied_to(source, with_depth=options.to in HOLD_DEPTH)
    is_damaged = any(not episode.is_missing for episode in chosen.unusable)
    # All damaged episodes are reported together, or skipped: for that, the whole dataset is read first.
    faults, matched = read_through(chosen, decodes=is_damaged or chosen.selection.skip_unreadable)
    chosen = dataclasses.replace(chosen.without(faults), notes=(*chosen.notes, *matched))
    content = Content.of(chosen, options.task)
    conversion = prepare_conversion(content, options.target, options.to, written)
    notes = list(chosen.notes)
    if chosen.color_order is not None and "color_order" in chosen.metadata and options.color_order is None:
        other = "rgb" if chosen.color_order == "bgr" else "bgr"
        notes.append(
            f"images are read as {chosen.color_order}, which the files do not specify: if red and blue are swapped, "
            f"convert with --color_order {other}"
        )
    try:
        write(conversion, notes, options.target)
    except UserError as error:
        faults, _ = read_through(chosen)  # there may be more than this one
        raise damaged_error(chosen, faults) if faults else error from None


def write(conversion: PlannedConversion, notes: Sequence[str], target: str) -> None:
    """Print what is written and what is not, and write it.

    Args:
        notes: sentences on the content, printed before those of the writer.
        target: the folder as given by the user.
    """
    from rich.filesize import decimal

    writer = conversion.writer
    left_out = writer.left_out()
    depth = writer.content.depth_cameras
    _print_facts(conversion)
    if depth:
        notes = [*notes, f"depth ({', '.join(depth)}) is written as whole millimetres, 16 bits per pixel"]
    for note in (*notes, *(f"left out: {what}" for what in left_out), *writer.notes()):
        print(f"Note: {printable(note)}")
    size = conversion.run()
    print(f"\nWritten: {conversion.target}, {_counted(writer.content.lengths)}, {decimal(size)}")
    for sentence in (*writer.done, *(f"Left out: {what}" for what in left_out)):
        print(printable(sentence[:1].upper() + sentence[1:]))
    print(f"Train on it: bimact train --dataset_dir {shlex.quote(target)}")


def _print_facts(conversion: PlannedConversion) -> None:
    from rich.filesize import decimal

    from bimact.data.summary import left_out_lines, unusable_lines

    content = conversion.writer.content
    chosen = content.chosen
    cameras = [f"{name} {camera}" for name, camera in content.cameras.items()]
    columns = [f"{name} {column.size}" for name, column in content.columns.items()]
    state, action = ([f"{key} {size}" for key, size in vector.parts] for vector in (chosen.state, chosen.action))
    facts = {
        "From": f"{chosen.path} ({chosen.format})",
        "To": f"{conversion.target} ({conversion.writer.format})",
        "Content": _counted(content.lengths),
        "Cameras": ", ".join(cameras) or "none",
        "Columns": ", ".join(columns),
        "State": ", ".join(state),
        "Action": ", ".join(action),
        "Disk": f"about {decimal(conversion.needed)} needed, {decimal(conversion.free)} free",
    }
    for name, value in facts.items():
        print(f"{name + ':':<9}{printable(value)}")
    for line in (*left_out_lines(chosen.left_out), *unusable_lines(chosen)):
        print(printable(line))


def _counted(lengths: Sequence[int]) -> str:
    return f"{len(lengths)} episode{'s' if len(lengths) > 1 else ''}, {sum(lengths)} steps"
