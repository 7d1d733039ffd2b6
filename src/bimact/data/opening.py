"""The known dataset formats, and `open_source` and `open_dataset`, which recognise them."""

from __future__ import annotations

import dataclasses
import difflib
import os
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from bimact.data.cache import DESCRIPTION
from bimact.data.cached_copy import cached_copy
from bimact.data.episodes import Episodes
from bimact.data.formats import MODULES
from bimact.data.reading import without_nonfinite
from bimact.data.remote import local_copy
from bimact.data.selection import SelectedSource, Selection
from bimact.data.source import Format, LeftOut, Source
from bimact.data.summary import note_lines
from bimact.data.workers import run_apart
from bimact.errors import UserError, some_of

# The first one that recognises a dataset opens it. The modules are imported when a dataset is opened, since each format
# needs libraries of its own.
_PATIENCE = 900.0  # seconds for listing a dataset's files: possibly 100,000 on a slow disk

_DATA = (
    *(".hdf5", ".h5", ".hdf", ".he5", ".npy", ".npz", ".pkl", ".pickle", ".parquet", ".arrow", ".tfrecord", ".bag"),
    *(".mcap", ".db3", ".zarr.zip", ".zarr"),
)
_VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm")
_OF_BUFFERS = {"videos", "video", "images"}  # of formats that list their files in a folder meta
_OF_OTHERS = ({"config.yaml", "metrics.jsonl"}, {"config.yaml", "checkpoint"}, {DESCRIPTION})
_MOST_ENTRIES = 200_000
_MOST_LISTED = 5


def known_formats() -> list[Format]:
    """Formats of bimact, of other packages (entry points in the group `bimact.formats`), and last any HDF5."""
    any_hdf5: Format = import_module("bimact.data.formats.aloha_hdf5").ANY_HDF5
    bundled: list[Format] = [import_module(name).FORMAT for name in MODULES]
    return [*bundled, *_plugins(), any_hdf5]


def _plugins() -> list[Format]:
    return [point.load() for point in entry_points(group="bimact.formats")]


def open_source(path: str | Path, *, selection: Selection | None = None, cache_dir: str | Path | None = None) -> Source:
    """Open demonstrations in any known format; nothing is decoded or converted yet.

    Args:
        path: a folder or file; the name of a dataset on the Hugging Face hub, such as
            "lerobot/aloha_sim_insertion_human"; or a URL supported by fsspec (s3://, gs://, hf://).
        selection: the part to use; None: all of it, with the original column names.
        cache_dir: where downloads and converted copies go.

    Raises:
        UserError: if there is no such dataset, no format recognises it, its content is faulty, or it lacks what is
            selected.
    """
    cache = None if cache_dir is None else Path(cache_dir)
    local = local_copy(str(path), cache) or Path(path)
    if not local.exists():
        raise UserError(_not_found(local))
    source = _open(local.absolute(), cache)
    return source if selection is None else selection.applied_to(source)


def open_dataset(
    path: str | Path,
    *,
    selection: Selection | None = None,
    cache_dir: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
) -> Episodes:
    """Open demonstrations for training: as arrays on disk, converted once if the format requires it.

    Prints what is left out, skipped, guessed or read differently from what the files specify.

    Args:
        path: as `open_source` takes it.
        selection: the part to use.
        cache_dir: where downloads and converted copies go; None: next to the dataset, or the user's cache folder.
        image_size: height and width to which a converted copy's larger images are resized. None: original size.

    Raises:
        UserError: as `open_source`; listing all damaged episodes; if none of the images can be used; or if the copy
            cannot be written.
    """
    source = (selection or Selection()).applied_to(open_source(path, cache_dir=cache_dir))
    source.require_camera()
    episodes, source = arrays_of(source, cache_dir, image_size)
    for line in note_lines(source):
        print(line)
    return episodes


def arrays_of(
    source: SelectedSource, cache_dir: str | Path | None, image_size: tuple[int, int] | None = None
) -> tuple[Episodes, SelectedSource]:
    """A source as arrays on disk: its own files, or a copy that is created if necessary.

    Returns:
        the arrays; and the source, without the episodes that could not be read or hold NaN.

    Raises:
        UserError: listing all episodes that are damaged or hold NaN, unless the selection skips them, after all have
            been read; or if the copy cannot be written.
    """
    if not source.episodes:
        source.refuse_damaged()
    mapped = source.mapped()
    if mapped is not None:
        return without_nonfinite(mapped, source)
    return cached_copy(source, None if cache_dir is None else Path(cache_dir), image_size)


def _open(path: Path, cache_dir: Path | None) -> Source:
    guide: Format = import_module("bimact.data.formats.guide_npy").FORMAT
    for candidate in (guide, *_plugins()):
        if candidate.in_process and candidate.recognizes(path):
            return _with_unread_files(candidate.open(path, cache_dir))
    source: Source = run_apart(_open_first, path, cache_dir, what=str(path), timeout=_PATIENCE)
    return source


def _open_first(path: Path, cache_dir: Path | None) -> Source:
    """In a child: open a dataset by the first format that recognises it."""
    formats = known_formats()
    for candidate in formats:
        if not candidate.in_process and candidate.recognizes(path):
            source = candidate.open(path, cache_dir)
            others = [
                other.name
                for other in formats[: len(formats) - 1]  # the last one accepts any HDF5 file
                if other is not candidate and not other.in_process and other.recognizes(path)
            ]
            notes = (f"another dataset in the same folder is not read: {', '.join(others)}",)
            source = dataclasses.replace(source, notes=(*source.notes, *notes)) if others else source
            return _with_unread_files(source)
    names = "; ".join(candidate.name for candidate in formats)
    raise UserError(f"{path.resolve()} is no dataset in a format that bimact knows ({names})")


def _with_unread_files(source: Source) -> Source:
    """The same source, with notes on unread data files in its folder."""
    left_out, notes = unread_files(source)
    return dataclasses.replace(source, left_out=(*source.left_out, *left_out), notes=(*source.notes, *notes))


def _not_found(path: Path) -> str:
    """The error message: the absolute path, and similar names next to it."""
    absolute = path.resolve()
    parent = absolute.parent
    siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    close = difflib.get_close_matches(absolute.name, siblings, n=3)
    hint = f"; near it there is {', '.join(str(parent / name) for name in close)}" if close else ""
    return f"dataset not found: {absolute}{hint}"


def unread_files(source: Source) -> tuple[list[LeftOut], list[str]]:
    """Data files below a dataset's folder, and zarr folders, that its source does not read.

    Judged by names only. Hidden files, runs, converted copies, and folders whose files the format lists itself are
    ignored; so are videos, which are often made for viewing, if there is a camera.

    Returns:
        the videos, if there is no camera: they may be the images of these demonstrations; and a note on the others.
    """
    if not source.path.is_dir():
        return [], []
    known = {*source.files, *source.ignored_files, *(episode.name for episode in source.unusable)}
    folders: set[str] = set()  # folders with files of the source
    for name in known:
        while (name := name.rpartition("/")[0]) and name not in folders:
            folders.add(name)
    own = {name for name in folders if "/" not in name} | _OF_BUFFERS if "meta" in folders else set()
    found: list[str] = []
    seen, waiting = 0, [""]
    while waiting and seen < _MOST_ENTRIES:
        folder = waiting.pop()
        try:
            with os.scandir(source.path / folder) as entries:
                here = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError:
            continue
        seen += len(here)
        if folder and any(names <= here.keys() for names in _OF_OTHERS):
            continue
        for name, is_folder in here.items():
            place = f"{folder}/{name}" if folder else name
            if name.startswith(".") or place in own or place in known:
                continue
            if is_folder and not name.endswith(".zarr"):
                waiting.append(place)
            elif name.lower().endswith((*_DATA, *_VIDEOS)) and place not in folders:
                found.append(place)
    videos = [name for name in sorted(found) if name.lower().endswith(_VIDEOS)]
    others = [name for name in sorted(found) if not name.lower().endswith(_VIDEOS)]
    several = " is" if len(others) == 1 else "s are"
    reason = "is next to the data, but this format does not read videos"
    return (
        [LeftOut("image", some_of(videos, _MOST_LISTED), reason)] if videos and not source.cameras else [],
        [f"{len(others)} data file{several} in the folder and not read: {some_of(others, _MOST_LISTED)}"]
        if others
        else [],
    )
