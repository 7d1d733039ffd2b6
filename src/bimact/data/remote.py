"""Remote datasets: on the Hugging Face hub, or at any URL supported by fsspec."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from bimact.data.mirror import mirrored
from bimact.hub import DATASET, HUB_NAME, snapshot

_HUB_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_FILES = (".hdf5", ".h5", ".npy", ".zarr", ".zip", ".parquet", ".mp4")  # not the end of a hub dataset's name


def local_copy(path: str, cache_dir: Path | None) -> Path | None:
    """The local copy of a remote dataset; files that were downloaded before are reused.

    If the hub does not answer and there is a complete copy, that is used and a note is printed.

    Args:
        path: a dataset's name on the Hugging Face hub, such as "lerobot/aloha_sim_insertion_human", with "@revision"
            if it is not the latest; "hf://datasets/owner/name", optionally with a folder; a URL of fsspec, such
            as "s3://bucket/folder"; or a local path.
        cache_dir: folder for copies of URLs; None: the user's cache folder. Datasets of the hub are stored in
            huggingface_hub's cache.

    Returns:
        the folder, or the dataset's only file; None: `path` is local.

    Raises:
        UserError: if it does not exist, access is denied, it cannot be reached, or it does not fit on the disk.
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
