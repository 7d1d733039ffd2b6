"""`bimact convert`: writes a dataset in another format, completely or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from rich.filesize import decimal

from bimact.convert.content import Content
from bimact.convert.writer import Options, Writer
from bimact.data.source import Source
from bimact.errors import UserError
from bimact.files import flush_to_disk, lock_file
from bimact.progress import progress_bar

# --to → module and class, imported when needed
FORMATS = {
    "lerobot": ("lerobot_v30", "LeRobotWriter"),
    "aloha_hdf5": ("aloha_hdf5", "AlohaWriter"),
    "guide": ("guide_npy", "GuideWriter"),
    "zarr": ("zarr_replay", "ZarrWriter"),
}

HOLD_DEPTH = ("lerobot", "aloha_hdf5", "zarr")

# prefix of a source's format → the corresponding one of `FORMATS`
_SAME = {"LeRobotDataset": "lerobot", "ALOHA": "aloha_hdf5", "the guide's": "guide", "zarr": "zarr"}

_LOCK = "lock"
_MANY_FILES = 1000


@dataclass(frozen=True)
class PlannedConversion:
    """A conversion that has passed all checks: the target is free, and the disk has room for it.

    Attributes:
        target: the folder that will be created.
        needed: estimated size in bytes.
        free: free bytes on the disk.
    """

    writer: Writer
    target: Path
    needed: int
    free: int

    def run(self) -> int:
        """Write the dataset; returns its size in bytes.

        Unfinished work is in a hidden folder next to the target, which is removed when a conversion is interrupted,
        or by the next conversion to the same target if this one is killed.

        Raises:
            UserError: if the source cannot be read or the target cannot be written.
        """
        cameras = len(self.writer.content.cameras)
        frames = self.writer.content.num_steps * max(1, cameras)
        try:
            with _unfinished(self.target) as folder:
                with progress_bar("writing images" if cameras else "writing steps", frames) as progress:
                    self.writer.write(folder, progress)
                files = [path for path in folder.rglob("*") if path.is_file()]
                if len(files) > _MANY_FILES and hasattr(os, "sync"):  # Windows has none
                    os.sync()  # one by one would take minutes where each image is a file
                else:
                    for path in files:
                        flush_to_disk(path)
                size = sum(path.stat().st_size for path in files)
                folder.rename(self.target)
                flush_to_disk(self.target.parent)
        except OSError as error:
            # HDF5's own sentence is a page long.
            reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
            raise UserError(f"cannot write {self.target}: {reason}") from None
        return size


def prepare_conversion(content: Content, target: str | Path, to: str, options: Options) -> PlannedConversion:
    """Check everything that a conversion needs.

    Args:
        target: the folder to create.
        to: one of `FORMATS`.

    Raises:
        UserError: if the target is in use, the format cannot hold the content, or the disk is too small.
    """
    target = check_target(content.chosen.path, target, to, options)
    module, name = FORMATS[to]
    writer: Writer = getattr(import_module(f"bimact.convert.{module}"), name)(content, options)
    needed = writer.bytes_needed()
    place = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"the converted dataset needs about {decimal(needed)} and {place} has {decimal(free)} free: choose fewer "
            "--cameras or --max_episodes, or another disk"
        )
    return PlannedConversion(writer, target, needed, free)


def format_of(source: Source) -> str | None:
    """The one of `FORMATS` that a dataset has; None: it has another one."""
    return next((to for beginning, to in _SAME.items() if source.format.startswith(beginning)), None)


def check_target(source: Path, target: str | Path, to: str, options: Options) -> Path:
    """Check that a dataset may be written to a folder, before anything of its source is read.

    Args:
        source: the dataset to convert.

    Returns:
        the absolute path of the target.

    Raises:
        UserError: if the target is in use or cannot be created, or options contradict each other.
    """
    target = Path(target).expanduser().absolute()
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target} is inside the dataset {source}: choose another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty: choose another folder, or remove it")
    place = next(parent for parent in target.parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {target}: {place} is not a writable folder")
    formats = {"codec": "lerobot", "lossless": "lerobot", "compress": "aloha_hdf5"}
    for name, of in formats.items():
        if getattr(options, name) and to != of:
            raise UserError(f"--{name} is an option of --to {of}, not of --to {to}: leave it out")
    if options.codec not in (None, "av1", "h264", "hevc"):
        raise UserError(f"--codec is '{options.codec}', it has to be av1, h264 or hevc")
    if options.codec and options.lossless:
        raise UserError("--lossless writes no videos, so --codec has no effect: leave one of them out")
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers is {options.workers}, it has to be at least 1")
    return target


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """A folder next to the target for unfinished work; remains of an earlier conversion are removed."""
    place = target.parent / f".{target.name}.converting"
    place.mkdir(parents=True, exist_ok=True)
    lock = lock_file(place / _LOCK)
    if lock is None:
        raise UserError(f"another process is writing {target}: wait for it, or choose another folder")
    with lock:
        left = [entry for entry in place.iterdir() if entry.name != _LOCK]
        if left:
            print(f"{target}: removing the files of an interrupted conversion, and starting again")
        for entry in left:
            shutil.rmtree(entry)
        # A new name each time: a process of a killed conversion may still write for a moment.
        folder = place / uuid.uuid4().hex
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(place, ignore_errors=True)
