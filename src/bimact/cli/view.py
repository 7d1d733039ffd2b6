"""`bimact view`: demonstrations in the browser."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bimact.cli.arguments import Commands, add_selection, given_settings, selection_of
from bimact.errors import UserError
from bimact.files import expand_home

if TYPE_CHECKING:
    from bimact.check.findings import Finding
    from bimact.data.source import Source

_FRAMES = 2  # of each camera, for --augment
_VIEWER = ""  # value of `--rerun` without a file


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "view",
        allow_abbrev=False,
        help="view demonstrations: videos, joints, findings",
        description="View demonstrations: synchronised cameras and plots of state and action, the findings of `bimact "
        "check`, and distributions of values. Serves a page to browsers on this machine until Ctrl-C.",
    )
    parser.add_argument(
        "dataset_dir", metavar="DATASET", type=expand_home, help="the demonstrations: a folder, a file, or a hub name"
    )
    parser.add_argument("--episode", metavar="N", type=int, default=0, help="the first one to show (default: 0)")
    parser.add_argument("--port", metavar="P", type=int, default=0, help="port of the page (default: a free one)")
    opening = parser.add_mutually_exclusive_group()
    opening.add_argument("--open", dest="open", action="store_true", default=None, help="open a browser")
    opening.add_argument(
        "--no_open", dest="open", action="store_false", help="do not (default: open one if there is a display)"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--export", metavar="FILE.html", type=expand_home, help="write one episode as a page that needs no server"
    )
    instead.add_argument(
        "--rerun",
        metavar="FILE.rrd",
        nargs="?",
        const=_VIEWER,
        help="open one episode in the Rerun viewer, or save it for the viewer",
    )
    instead.add_argument(
        "--augment",
        metavar="FILE.png",
        type=expand_home,
        help="draw some frames of each camera as training with `augment: true` sees them; settings of --config, or "
        "given as for training, such as --augmentation.translate 0.1",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=expand_home, help="--augment: YAML with settings of a training"
    )
    parser.add_argument(
        "--export_width", metavar="PIXELS", type=int, default=640, help="maximum width of the videos (default: 640)"
    )
    parser.add_argument("--cache_dir", metavar="DIR", type=expand_home, help="where downloads and converted copies go")
    add_selection(parser)
    parser.set_defaults(run=_view)
    return parser


def _view(options: argparse.Namespace) -> None:
    from bimact.data.opening import open_source
    from bimact.data.selection import Selection
    from bimact.data.summary import dataset_lines

    if options.rest and options.augment is None:
        raise UserError(f"unrecognized arguments: {' '.join(options.rest)}; settings of a training belong to --augment")
    for file in map(Path, filter(None, (options.export, options.rerun, options.augment))):
        if file.exists():
            raise UserError(f"{file} exists already: choose another name, or remove it")
        if not file.absolute().parent.is_dir():
            raise UserError(f"there is no folder {file.absolute().parent}: create it first")
    source = whole = open_source(options.dataset_dir, cache_dir=options.cache_dir)
    chosen = selection_of(options)
    if chosen is not None:
        source = chosen.applied_to(whole)
    try:
        lines = dataset_lines((chosen or Selection()).applied_to(whole))
    except UserError as error:  # it can be viewed without selecting state and action
        lines = [str(error)]
    print("\n".join(lines), flush=True)
    if not 0 <= options.episode < len(source.episodes):
        raise UserError(f"--episode is {options.episode}, {source.path} has episodes 0 to {len(source.episodes) - 1}")
    if options.export is not None:
        from rich.filesize import decimal

        from bimact.view.export import export_page

        if options.export_width < 16:
            raise UserError(f"--export_width is {options.export_width}, it has to be 16 or more pixels")
        path = Path(options.export)
        export_page(source, options.episode, path, options.export_width)
        print(f"{path}: {decimal(path.stat().st_size)}")
    elif options.augment is not None:
        _draw_augmentation(source, options)
    elif options.rerun == _VIEWER:
        from bimact.view.rerun_log import show_in_rerun

        show_in_rerun(source, options.episode)
    elif options.rerun is not None:
        from bimact.view.rerun_log import save_rerun

        save_rerun(source, options.episode, Path(options.rerun))
        print(f"{options.rerun}: open it by `rerun {shlex.quote(options.rerun)}`")
    else:
        _serve(source, options)


def _draw_augmentation(source: Source, options: argparse.Namespace) -> None:
    """Draw frames of two random steps of each camera, as recorded and as training sees them."""
    from bimact.cli.train import settings_of
    from bimact.config import load_config
    from bimact.configs import find_config
    from bimact.data.samples import sample_histories
    from bimact.training.augmentation_figure import augmentation_figure, kinds_line

    path = find_config(options.config) if options.config else None
    config = load_config(path, [*given_settings(options), *settings_of(options.rest)])
    cameras = [name for name, camera in source.cameras.items() if not camera.is_depth]
    if not cameras:
        raise UserError(f"{source.path} has no colour camera, so there is nothing to augment")
    config = dataclasses.replace(config, cameras=cameras, temporal_context=1)
    found = sample_histories(config, options.dataset_dir, count=_FRAMES, seed=config.seed)
    frames = {camera: found[f"image_{camera}"][:, 0] for camera in cameras}
    figure = augmentation_figure(frames, config, config.seed)
    figure.savefig(options.augment, format="png", dpi=110)
    print(f"Augmentation: {kinds_line(config)}")
    if not config.augment:
        print("augment is false in these settings, so that training changes no image: set it to true for this")
    if config.recombine_arms:
        print("recombine_arms puts images of two demonstrations together, which is not drawn here")
    print(options.augment)


def _serve(source: Source, options: argparse.Namespace) -> None:
    from rich.console import Console

    from bimact.check.dataset import check_dataset
    from bimact.view.server import Background, ViewServer

    def findings() -> Sequence[Finding]:
        chosen = selection_of(options)
        return check_dataset(options.dataset_dir, cache_dir=options.cache_dir, selection=chosen).findings

    if not 0 <= options.port < 1 << 16:
        raise UserError(f"--port is {options.port}, it has to be a number from 1 to 65535")
    background = Background(source, findings)
    with (
        tempfile.TemporaryDirectory(prefix="bimact-view-", ignore_cleanup_errors=True) as folder,
        ViewServer(source, Path(folder), background, options.port) as server,
    ):
        address = server.address + (f"#episode={options.episode}" if options.episode else "")
        background.start()
        try:
            print(f"{address} (Ctrl-C ends it)", flush=True)
            if _has_display() if options.open is None else options.open:
                webbrowser.open(address)
            server.serve_forever()
        except KeyboardInterrupt:
            background.stop()
            Console().show_cursor()  # a progress bar may have hidden it
            print("ended")


def _has_display() -> bool:
    """Whether a browser would be visible to the user of this terminal."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
