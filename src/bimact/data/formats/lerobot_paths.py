"""Paths that a dataset's own files name: filled in, found, and looked for where they are not as they are named."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from bimact.errors import UserError
from bimact.files import real_file

# {name}, {name:d}, {name:3d}, {name:03d}: what LeRobot uses of Python's format strings, and nothing else of them.
_FIELD = re.compile(r"\{([a-z_]{1,40})(?::(0?\d{0,2})d)?\}")
# What others call the fields: any of a group stands for the one of it that the version has.
_SYNONYMS = (
    {"episode_chunk", "chunk_index", "chunk", "chunk_id"},
    {"episode_index", "episode", "episode_id", "file_index", "file", "file_id"},
    {"video_key", "camera", "camera_key", "camera_name", "image_key", "key"},
)
_MOST_FILES = 1_000_000


class DatasetFiles:
    """Finds the files of a dataset by the templates in its info.json.

    Attributes:
        notes: how files were found that are not where the templates say: whole sentences.
    """

    def __init__(self, root: Path, where: str) -> None:
        self.notes: dict[str, str] = {}
        self._root = root
        self._where = where
        self._all: list[str] | None = None
        self._listed: dict[tuple[str, int], list[str]] | None = None
        self._faults: dict[str, tuple[str, bool] | None] = {}

    def fault_of(self, path: str) -> tuple[str, bool] | None:
        """Why a file cannot be read, and whether it is missing; None: it is there."""
        if path not in self._faults:
            try:
                is_there = find(self._root, path) is not None
                self._faults[path] = None if is_there else (f"{path} is missing", True)
            except UserError as error:
                self._faults[path] = str(error), False
        return self._faults[path]

    def named(self, setting: str, template: str, values: Mapping[str, str | int]) -> str:
        """The path of a file, relative to the dataset; it may not be there.

        Args:
            setting: of info.json that the template stands in.
            template: such as "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".
            values: of its fields.

        Raises:
            UserError: if the template has unknown fields or another notation, and no file fits.
        """
        fault: UserError | None = None
        path = ""
        try:
            known, renamed = _with_synonyms(template, values)
            path = fill_in(template, known, f"{self._where}: {setting}")
        except UserError as error:
            fault, renamed = error, {}
        if path and self.fault_of(path) != (f"{path} is missing", True):
            for theirs, ours in renamed.items():
                self.notes[f"{setting} {theirs}"] = f"{setting} has {{{theirs}}}, which is taken for {{{ours}}}"
            return path
        found = self._look_for(Path(template).suffix, values)
        if found is not None:
            folder = found.split("/")[0]
            self.notes[f"{setting} {folder}"] = (
                f"{setting} is '{template}', where there is no file: '{found}' and others like it are taken, which "
                "have the same numbers in their names"
            )
            return found
        if fault is not None:
            raise fault
        return path

    def _look_for(self, suffix: str, values: Mapping[str, str | int]) -> str | None:
        """The only file whose last number is that of the file or episode, and whose folders do not contradict."""
        if self._listed is None:
            self._listed = {}
            for path in self.all():
                numbers = re.findall(r"\d{1,9}", Path(path).stem)
                if numbers:
                    self._listed.setdefault((Path(path).suffix, int(numbers[-1])), []).append(path)
        number = values.get("file_index", values.get("episode_index"))
        chunk = values.get("chunk_index", values.get("episode_chunk"))
        found = self._listed.get((suffix, int(number or 0)), [])
        if "video_key" in values:
            key = _plain(str(values["video_key"]))
            short = _plain(re.sub(r"^observation\.(images?\.)?", "", str(values["video_key"])))
            found = [path for path in found if {key, short} & {_plain(part) for part in path.split("/")[:-1]}]
        chunks = {path: int(match[1]) if (match := re.search(r"chunk\D?(\d+)", path)) else None for path in found}
        same = [path for path in found if chunks[path] == chunk]
        # The number of an episode is there once, that of a file once in each chunk.
        others = found if "episode_index" in values else [path for path in found if chunks[path] is None]
        found = same or others
        return found[0] if len(found) == 1 else None

    def all(self) -> list[str]:
        """All files but hidden ones and those of the metadata, sorted."""
        if self._all is None:
            self._all = sorted(_all_files(self._root))
        return self._all

    def tables(self) -> list[str]:
        """Those that are Parquet files."""
        return [path for path in self.all() if path.endswith(".parquet")]


def _all_files(root: Path) -> list[str]:
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root).as_posix()
        folders[:] = [name for name in folders if not name.startswith(".") and not (inside == "." and name == "meta")]
        found += files if inside == "." else [f"{inside}/{name}" for name in files]
        if len(found) > _MOST_FILES:
            break
    return found


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def _with_synonyms(template: str, values: Mapping[str, str | int]) -> tuple[dict[str, str | int], dict[str, str]]:
    """The values, also by other names that a template has for them; and those names → ours."""
    known, renamed = dict(values), {}
    for match in _FIELD.finditer(template):
        for group in _SYNONYMS:
            ours = [name for name in values if name in group]
            if match[1] in group and match[1] not in values and len(ours) == 1:
                known[match[1]] = values[ours[0]]
                renamed[match[1]] = ours[0]
    return known, renamed


def fill_in(template: str, values: Mapping[str, str | int], where: str) -> str:
    """Put values into a path such as "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".

    `str.format` would let an untrusted file read attributes of objects and ask for widths of gigabytes.

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
