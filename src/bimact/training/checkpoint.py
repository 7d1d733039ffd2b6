"""Checkpoints of a run, for inference and for exact resumption: each file appears complete or not at all.

`checkpoint/act-train-N.pth` is the policy's plain state dict after epoch N. The rest of the training state
is in `act-train-N.state` beside it. `best` and `last` are further names of such a pair.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimact.config import Config, keep_rules
from bimact.errors import UserError, in_words
from bimact.files import atomic_write, flush_to_disk, refuse_pointer, sha256_of
from bimact.policy.loading import load_weights
from bimact.run_directory import STATE, WEIGHTS, Run, unfinished

_WITHOUT_STATE = "without that file training resumes from the weights alone"
_DIGEST = "weights_sha256"  # in the state: SHA-256 of its weights file


def save_checkpoint(run: Run, name: str | int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Save a policy's state dict and the trainer's state under a name.

    The pair is replaced atomically, by the rename of the state, which holds the digest of the new weights. Before it
    the old pair is valid; after it `finish_interrupted_saves` finds the new weights, even if they were not renamed.

    Returns:
        the path of the weights.

    Raises:
        UserError: if the disk is full or cannot be written; the previous checkpoint is kept.
    """
    path = run.checkpoints / f"act-train-{name}{WEIGHTS}"
    new = unfinished(path)
    try:
        with atomic_write(new) as file:
            torch.save(dict(weights), file)
        with atomic_write(path.with_suffix(STATE)) as file:
            torch.save({**state, _DIGEST: sha256_of(new)}, file)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # PyTorch's writer hides it
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot write {path} ({cause.strerror or cause}): fix that, then resume from the last checkpoint by "
            f"--resume_from {run.path}"
        ) from error
    new.replace(path)
    flush_to_disk(path.parent)
    return path


def copy_checkpoint(path: Path, name: str) -> None:
    """Give a saved checkpoint a further name, without a second copy on disk where links are possible."""
    target = path.with_name(f"act-train-{name}{WEIGHTS}")
    temporary = target.with_name(f".{target.stem}{STATE}.tmp")
    _link(path, unfinished(target))
    _link(path.with_suffix(STATE), temporary)
    temporary.replace(target.with_suffix(STATE))
    unfinished(target).replace(target)
    flush_to_disk(path.parent)


def delete_checkpoints(run: Run, config: Config, newest: Path) -> None:
    """Delete the numbered checkpoints, and training states, that the settings do not keep.

    A training state goes before its weights, so that a kill leaves no state without weights. `best` and `last` are
    files of their own and always stay.

    Args:
        run: whose checkpoints.
        config: with `keep_checkpoints`, `keep_states` and `max_run_size`.
        newest: the checkpoint that was just saved, which stays.
    """
    folder = run.checkpoints
    numbered = {}
    for path in folder.glob(f"act-train-*{WEIGHTS}"):
        name = path.stem.removeprefix("act-train-")
        if name.isdigit() and path != newest:
            numbered[int(name)] = path
    dropped = []
    rules = keep_rules(config)
    if rules is not None:
        last, every = rules
        is_numbered = newest.stem.removeprefix("act-train-").isdigit()
        newer = sorted(numbered, reverse=True)[: max(0, last - is_numbered)]
        dropped = [epoch for epoch in sorted(numbered) if epoch not in newer and not (every and epoch % every == 0)]
    if config.max_run_size is not None:
        kept = [epoch for epoch in sorted(numbered) if epoch not in dropped]
        while kept and _size(folder, {numbered[epoch] for epoch in dropped}) > config.max_run_size * 1e9:
            dropped.append(kept.pop(0))
    for epoch in dropped:
        numbered[epoch].with_suffix(STATE).unlink(missing_ok=True)
        numbered[epoch].unlink(missing_ok=True)
    if config.keep_states == "last":
        for path in folder.glob(f"act-train-*{STATE}"):
            if path.stem != "act-train-last":
                path.unlink(missing_ok=True)


def _size(folder: Path, without: set[Path]) -> int:
    """Bytes of the checkpoints, those with several names once."""
    files = {}
    for path in folder.glob("act-train-*"):
        if path.with_suffix(WEIGHTS) not in without:
            status = path.stat()
            files[status.st_ino] = status.st_size
    return sum(files.values())


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def finish_interrupted_saves(run: Run) -> None:
    """Complete the saves that a kill has interrupted, and remove partial files.

    Only for the one process that writes checkpoints there.
    """
    folder = run.checkpoints
    for new in folder.glob(f".act-train-*{WEIGHTS}.new"):
        path = new.with_name(new.name.removeprefix(".").removesuffix(".new"))
        state = load_state(path)
        if state is not None and state.get(_DIGEST) == sha256_of(new):
            new.replace(path)
        else:
            new.unlink()
    for left_over in folder.glob(".*act-train-*.tmp"):
        left_over.unlink()


def load_pair(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """A checkpoint's weights, and the trainer's state that belongs to them.

    Returns:
        the state is None if there is none beside the weights, or one that was saved with other weights.

    Raises:
        UserError: as `load_weights` does.
    """
    path = Path(path)
    state = load_state(path)
    if state is None:
        return load_weights(path), None
    belonging = [file for file in (path, unfinished(path)) if file.exists() and sha256_of(file) == state.get(_DIGEST)]
    return (load_weights(belonging[0]), state) if belonging else (load_weights(path), None)


def load_state(path: str | Path) -> dict[str, Any] | None:
    """The trainer's state beside a weights file; None if there is none.

    Raises:
        UserError: if it cannot be read.
    """
    state = Path(path).with_suffix(STATE)
    if not state.exists():
        return None
    refuse_pointer(state)
    try:
        content = torch.load(state, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(
            f"{state} cannot be read ({in_words(error) or type(error).__name__}): {_WITHOUT_STATE}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{state} holds no training state but a {type(content).__name__}: {_WITHOUT_STATE}")
    return content
