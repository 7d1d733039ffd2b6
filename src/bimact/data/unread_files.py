"""Finds data files in a dataset's folder that its format does not read: what was forgotten there, or misnamed."""

from __future__ import annotations

import os

from bimact.data.cache import DESCRIPTION
from bimact.data.source import LeftOut, Source
from bimact.errors import some_of

_DATA = (
    *(".hdf5", ".h5", ".hdf", ".he5", ".npy", ".npz", ".pkl", ".pickle", ".parquet", ".arrow", ".tfrecord", ".bag"),
    *(".mcap", ".db3", ".zarr.zip", ".zarr"),
)
_VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm")
_OF_BUFFERS = {"videos", "video", "images"}  # of a format that lists its files in a folder meta
_OF_OTHERS = ({"config.yaml", "metrics.jsonl"}, {"config.yaml", "checkpoint"}, {DESCRIPTION})
_MOST_ENTRIES = 200_000
_MOST_TOLD = 5


def unread_files(source: Source) -> tuple[list[LeftOut], list[str]]:
    """Data files below a dataset's folder, and folders of zarr, that its source does not name.

    Only names are looked at. Hidden files, runs, converted copies, and folders whose files the format lists itself are
    passed over; and so are videos, which people make of demonstrations to look at them, if there is a camera.

    Returns:
        the videos, if there is no camera: they may be the images of these demonstrations; and a note on the others.
    """
    if not source.path.is_dir():
        return [], []
    known = {*source.files, *source.left_aside, *(episode.name for episode in source.unusable)}
    folders: set[str] = set()  # that hold files of the source
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
    reason = "lies beside the data, and this format reads no videos"
    return (
        [LeftOut("image", some_of(videos, _MOST_TOLD), reason)] if videos and not source.cameras else [],
        [f"{len(others)} data file{several} in the folder and not read: {some_of(others, _MOST_TOLD)}"]
        if others
        else [],
    )
