"""`bimact convert-checkpoint`: reads a policy of any known software and writes it for another."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bimact.config import save_config
from bimact.errors import UserError
from bimact.files import atomic_folder, atomic_write
from bimact.interop.assembly import Converted
from bimact.interop.lerobot_reader import CONFIG, lerobot_folder, read_lerobot, weights_of
from bimact.interop.lerobot_writer import refuse_inexpressible, write_lerobot
from bimact.interop.original_act import HEADS, IMAGE_SIZE, original_checkpoint, read_original
from bimact.policy.loading import load_run
from bimact.policy.weights import BIMACT, ORIGINAL, read_policy_weights
from bimact.run_directory import CHECKPOINTS, RUN_CONFIG, Run, recorded

FORMATS = ("bimact", "lerobot")


@dataclass(frozen=True)
class PolicyFiles:
    """A policy to convert, and settings that its files may lack.

    Attributes:
        path: the folder of a LeRobot policy; the folder or checkpoint of an original ACT policy; or a run directory of
            bimact, or its folder of checkpoints.
        cameras: names for the cameras; None: as in the files.
        stats: the original ACT's `dataset_stats.pkl`; None: next to the checkpoint.
        nheads: number of attention heads; None: as in the files, or the original ACT's.
        image_size: height and width of the cameras' images; None: as in the files, or the original ACT's.
        checkpoint: of a run; None: the best.
    """

    path: Path
    cameras: Sequence[str] | None = None
    stats: Path | None = None
    nheads: int | None = None
    image_size: tuple[int, int] | None = None
    checkpoint: str | None = None

    @property
    def is_run(self) -> bool:
        return not self.path.is_file() and any(
            (path / RUN_CONFIG).is_file() and (path / CHECKPOINTS).is_dir()
            for path in (self.path, Run.of(self.path).path)
        )


def convert(source: PolicyFiles, target: Path, to: str | None = None) -> Converted:
    """Convert a policy.

    Args:
        source: the policy.
        target: the folder to write, which must not exist. It appears complete or not at all.
        to: one of `FORMATS`; None: the one that the source is not in.

    Returns:
        the policy, with notes.

    Raises:
        UserError: if the source cannot be read or expressed in the format, or the target exists or cannot be written.
    """
    if os.path.lexists(target):
        raise UserError(f"{target} exists already: choose a free name")
    to = to or ("lerobot" if source.is_run else "bimact")
    if source.is_run and to == "bimact":
        raise UserError(f"{source.path} is a run of bimact already")
    converted = read(source)
    if to == "lerobot":
        refuse_inexpressible(converted.policy)
    with atomic_folder(target) as folder:
        if to == "lerobot":
            write_lerobot(converted, folder)
        else:
            config = dataclasses.replace(recorded(converted.policy.config), output_dir=str(target))
            save_config(config, folder / RUN_CONFIG)
            best, last = (folder / CHECKPOINTS / f"act-train-{name}.pth" for name in ("best", "last"))
            with atomic_write(best) as file:
                torch.save(converted.policy.state_dict(), file)
            try:
                os.link(best, last)
            except OSError:  # a file system without hard links
                shutil.copy2(best, last)
    return converted


def read(source: PolicyFiles) -> Converted:
    """The policy in files.

    Raises:
        UserError: if there is none that bimact knows.
    """
    path = source.path
    if source.is_run:
        _refuse_options(source, "a run of bimact", ("cameras", "stats", "nheads"))
        run = load_run(path, source.checkpoint or "best", "cpu")
        config = run.network.config
        if source.image_size is not None:
            run.network.config = dataclasses.replace(config, image_size=list(source.image_size))
        is_windowed = config.temporal_ensemble and config.ensemble_window is not None
        window_notes = ("LeRobot averages all chunks: ensemble_window is left out",) if is_windowed else ()
        return Converted(run.network, f"run of bimact, checkpoint {run.checkpoint.name}", window_notes)
    lerobot: tuple[Path, Path | None] | None = None  # folder, and a file of weights that is not the folder's
    original: Path | None = None
    notes: list[str] = []
    if path.name == CONFIG and path.is_file():
        lerobot = path.parent, None
    elif path.is_file():
        software = read_policy_weights(path).software
        if software is BIMACT:
            raise UserError(f"{path} is a checkpoint of bimact: give the folder of its run, which has {RUN_CONFIG}")
        if software is ORIGINAL:
            original = path
        elif (path.parent / CONFIG).is_file():
            lerobot = path.parent, path
        else:
            raise UserError(
                f"{path} holds weights of {software.name}, but its settings are missing: put its {CONFIG} next to it"
            )
    elif path.is_dir():
        folder, checkpoint = lerobot_folder(path), original_checkpoint(path)
        # A fork of the original ACT may keep a config.json too.
        if folder is not None and (checkpoint is None or weights_of(folder[0]).is_file()):
            lerobot, notes = (folder[0], None), folder[1]
        elif checkpoint is not None:
            original, notes = checkpoint
    else:
        raise UserError(f"{path.absolute()} does not exist")
    if lerobot is not None:
        _refuse_options(source, "a policy of LeRobot", ("stats", "nheads", "image_size", "checkpoint"))
        converted = read_lerobot(lerobot[0], source.cameras, lerobot[1])
    elif original is not None:
        _refuse_options(source, "the original ACT", ("checkpoint",))
        heads, size = source.nheads or HEADS, source.image_size or IMAGE_SIZE
        converted = read_original(original, source.cameras, source.stats, heads, size)
    else:
        raise UserError(
            f"{path} has no policy that bimact knows: it takes a folder with LeRobot's config.json and "
            "model.safetensors, one with the original ACT's policy_best.ckpt and dataset_stats.pkl, a file of weights "
            "of either, or a run of bimact"
        )
    return dataclasses.replace(converted, notes=(*notes, *converted.notes))


def _refuse_options(source: PolicyFiles, what: str, names: Sequence[str]) -> None:
    given = [f"--{name}" for name in names if getattr(source, name) is not None]
    if given:
        verb, them = ("does", "it") if len(given) == 1 else ("do", "them")
        raise UserError(f"{source.path} is {what}, to which {' and '.join(given)} {verb} not apply: leave {them} out")
