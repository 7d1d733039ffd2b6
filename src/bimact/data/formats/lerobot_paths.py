"""Paths that a dataset's own files name: filled in, and found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bimact.data.formats.inside import real_file
from bimact.errors import UserError

# {name}, {name:d}, {name:3d}, {name:03d}: what LeRobot uses of Python's format strings, and nothing else of them.
_FIELD = re.compile(r"\{([a-z_]{1,40})(?::(0?\d{0,2})d)?\}")


def fill_in(template: str, values: Mapping[str, str | int], where: str) -> str:
    """Put values into a path such as "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".

    `str.format` would let a stranger's file reach into objects and ask for widths of gigabytes.

    Args:
        where: what messages begin with, such as a file and a key.

    Raises:
        UserError: if the template has other fields or another notation.
    """

    def filled(match: re.Match[str]) -> str:
        name, width = match[1], match[2]
        value = values.get(name)
        if value is None or (width is not None and isinstance(value, str)):
            known = ", ".join("{" + known + "}" for known in values)
            raise UserError(f"{where} has {match[0]}; it may have {known}")
        return str(value) if width is None else format(int(value), f"{width}d")

    text = _FIELD.sub(filled, template)
    if re.search(r"[{}]", _FIELD.sub("", template)):
        raise UserError(f"{where} is '{template[:200]}', which is no path with fields such as {{file_index:03d}}")
    return text


def find(root: Path, relative: str) -> Path | None:
    """One of a dataset's files; None: it is missing.

    Args:
        root: the dataset's folder.
        relative: to it, with "/".

    Raises:
        UserError: if it leads out of the dataset (see `real_file`).
    """
    if ".." in relative.split("/"):
        raise UserError(f"{root} names '{relative}' as one of its files, which leaves the dataset: copy it again")
    return None if real_file(root, relative) is None else root / relative


def existing(root: Path, relative: str) -> Path:
    """One of a dataset's files.

    Raises:
        UserError: if it is missing or leads out of the dataset.
    """
    path = find(root, relative)
    if path is None:
        raise UserError(f"{root / relative} is missing: copy or record the dataset again")
    return path
