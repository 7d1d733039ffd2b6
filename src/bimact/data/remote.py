"""Datasets that are elsewhere: on the Hugging Face hub, or at any URL that fsspec knows."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from bimact.data.mirror import library_errors, mirrored
from bimact.errors import UserError

_HUB_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS_TO_ANSWER = 10.0
_FILES = (".hdf5", ".h5", ".npy", ".zarr", ".zip", ".parquet", ".mp4")  # what ends so is no hub's dataset


def local_copy(path: str, cache_dir: Path | None) -> Path | None:
    """A dataset's local copy, if it is elsewhere; whatever of it is here already is not fetched again.

    Where the hub does not answer, and a whole copy is here, that is taken and a line on standard output tells it.

    Args:
        path: a dataset's name on the Hugging Face hub, such as "lerobot/aloha_sim_insertion_human", with "@revision"
            if it is not the newest; "hf://datasets/owner/name", with a folder of it behind; a URL that fsspec knows,
            such as "s3://bucket/folder"; or a local path.
        cache_dir: where copies of URLs go; None: the user's cache folder. Those of the hub go where huggingface_hub
            keeps them.

    Returns:
        the folder, or the file if the dataset is one; None: `path` is a local one.

    Raises:
        UserError: if it is not there, may not be read, cannot be reached, or does not fit on the disk.
    """
    hub_url = _HUB_URL.fullmatch(path)
    if hub_url:
        name, revision, folder = hub_url.groups()
        return _from_hub(name, revision and unquote(revision), (folder or "").strip("/"), path)
    if os.path.lexists(path):
        return None
    if "://" in path:
        return mirrored(path, cache_dir)
    hub_name = _HUB_NAME.fullmatch(path)
    if hub_name is None or hub_name[1].lower().endswith(_FILES):
        return None
    return _from_hub(hub_name[1], hub_name[2], "", path)


def _from_hub(name: str, revision: str | None, folder: str, path: str) -> Path:
    """The snapshot of a dataset in huggingface_hub's cache, or a folder of it."""
    from huggingface_hub import errors, snapshot_download

    patterns = [f"{folder}/**", folder] if folder else None
    silence = None if revision is not None and _COMMIT.fullmatch(revision) else _silence_of_hub(name, revision)
    try:
        snapshot = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except errors.GatedRepoError:
        raise UserError(
            f"{path}: the dataset {name} is gated: accept its conditions at https://huggingface.co/datasets/{name} and "
            "log in by `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"there is neither a folder {Path(path).absolute()} nor a dataset {name} on the Hugging Face hub that you "
            "may read: correct the name, or log in by `hf auth login` if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{path}: the dataset {name} on the Hugging Face hub has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(_unreachable(name, path)) from None
    except library_errors() as error:
        raise UserError(
            f"cannot download {name} from the Hugging Face hub ({_in_words(error)}): run the same command again, it "
            "goes on from there"
        ) from None
    found = Path(snapshot) / folder
    if not found.exists():
        raise UserError(f"the dataset {name} on the Hugging Face hub has no folder {folder!r}")
    if silence is not None:
        day = datetime.fromtimestamp(Path(snapshot).stat().st_mtime)
        print(
            f"Note: the Hugging Face hub does not answer for {name} ({silence}): the copy of {day:%Y-%m-%d} is used, "
            f"which may not be the newest ({snapshot})",
            flush=True,
        )
    return found


def _silence_of_hub(name: str, revision: str | None) -> str | None:
    """Why the hub does not tell which is the newest version of a dataset, so that an older copy may be taken.

    `snapshot_download` takes that copy without a word.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:  # the user knows
        return None
    try:
        HfApi().dataset_info(
            name, revision=revision or constants.DEFAULT_REVISION, timeout=_SECONDS_TO_ANSWER, expand=["sha"]
        )
    except library_errors() as error:
        return _in_words(error)
    return None


def _unreachable(name: str, path: str) -> str:
    from huggingface_hub import constants

    where = f"there is no folder {Path(path).absolute()}, and the Hugging Face cache holds no whole copy of {name}"
    if constants.HF_HUB_OFFLINE:
        return f"{where}, which HF_HUB_OFFLINE forbids to download: unset it once"
    return f"{where}, and the hub cannot be reached: connect to the internet, or give the folder of a copy"


def _in_words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
