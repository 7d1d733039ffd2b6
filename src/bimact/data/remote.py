"""Datasets that are elsewhere: on the Hugging Face hub, or at any URL that fsspec knows."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from bimact.data.mirror import mirrored
from bimact.hub import DATASET, HUB_NAME, snapshot

_HUB_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
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
        return snapshot(DATASET, name, revision and unquote(revision), (folder or "").strip("/"), path)
    if os.path.lexists(path):
        return None
    if "://" in path:
        return mirrored(path, cache_dir)
    hub_name = HUB_NAME.fullmatch(path)
    if hub_name is None or hub_name[1].lower().endswith(_FILES):
        return None
    return snapshot(DATASET, hub_name[1], hub_name[2], "", path)
