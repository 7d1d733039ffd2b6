"""Raw memory maps with the names of .npy files, as written by the recorder of the training guide's own repository.

It saves arrays of zeros by `np.save`, maps the files into memory from their first byte on and writes rollouts there.
The header is thus overwritten, and as many unused bytes remain at the end.

- `observations.npy`: rows of float32: left image, right image (each H x W x 3, from 0 to 1), qpos (16), qvel (16).
- `actions.npy`: rows of 14 float32. Both files have space for all requested rows, filled or not.
- `rollout_length.npy`: uint16 steps of each rollout, a proper .npy file.
- `metadata.txt`: one line such as `total_sample_count=1000 max_steps_per_rollout=600 camera_height=128 camera_width=128
  skip_frames=0 sample_count=1000 rollout_count=5`.

The last rollout may be longer than the remaining space: then only its beginning is stored.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bimact.data.npy_rows import open_array
from bimact.data.source import Camera, Column, Format, Source, SourceEpisode, Unusable
from bimact.errors import UserError
from bimact.files import real_file

OBSERVATIONS, ACTIONS, LENGTHS, METADATA = "observations.npy", "actions.npy", "rollout_length.npy", "metadata.txt"
CAMERAS = ("left", "right")
JOINTS, ACTION_SIZE = 16, 14
_MAGIC = b"\x93NUMPY"
_FLOAT = np.dtype("<f4")
_HEADERS = (128, 80, 0)  # bytes of the headers of NumPy's versions
_MOST_LEFT_OVER = 1024  # bytes
_LARGEST_SIDE = 8192  # pixels
_LARGEST_METADATA = 65_536  # bytes
_WIDE_SIZES = (  # (H, W) of cameras, in addition to squares; some 16:9 sizes have as many pixels as a square
    *((side * 3 // 4, side) for side in (80, 128, 160, 256, 320, 400, 512, 640, 800, 1024, 1280)),
    *((side * 9 // 16, side) for side in (128, 160, 256, 320, 480, 640, 960, 1280, 1920)),
)


@dataclass(frozen=True)
class _Layout:
    """Number of rows that the files have space for, and size of their images."""

    rows: int
    height: int
    width: int

    @property
    def image_floats(self) -> int:
        return self.height * self.width * 3

    @property
    def row_bytes(self) -> int:
        return (len(CAMERAS) * self.image_floats + 2 * JOINTS) * _FLOAT.itemsize


@dataclass(frozen=True, kw_only=True)
class RawMemmap(Source):
    """A folder of raw memory maps.

    Attributes:
        layout: of the files' rows.
        starts: (E,) each episode's first row.
    """

    layout: _Layout
    starts: tuple[int, ...]

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        start, length = self.starts[episode], self.episodes[episode].length
        found = {}
        if "action" in keys:
            row_bytes = ACTION_SIZE * _FLOAT.itemsize
            found["action"] = self._floats(ACTIONS, [start * row_bytes], length * ACTION_SIZE).reshape(length, -1)
        if {"qpos", "qvel"} & set(keys):
            row_bytes, joint_bytes = self.layout.row_bytes, 2 * JOINTS * _FLOAT.itemsize
            ends = [(start + step + 1) * row_bytes for step in range(length)]
            joints = self._floats(OBSERVATIONS, [end - joint_bytes for end in ends], 2 * JOINTS)
            found |= {"qpos": joints[:, :JOINTS], "qvel": joints[:, JOINTS:]}
        return {key: found[key] for key in keys}

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        count = self.layout.image_floats
        for step in steps:
            begin = (self.starts[episode] + step) * self.layout.row_bytes
            begin += CAMERAS.index(camera) * count * _FLOAT.itemsize
            with np.errstate(over="ignore", invalid="ignore"):  # is refused below
                colors = np.rint(self._floats(OBSERVATIONS, [begin], count)[0] * 255)
            if not ((colors >= 0) & (colors <= 255)).all():
                raise UserError(
                    f"{self.path / OBSERVATIONS}: the {camera} image of {self.episodes[episode].name}, step {step} has "
                    "values outside of 0 to 1: record the episode again, or correct the image size in metadata.txt"
                )
            yield colors.astype(np.uint8).reshape(self.layout.height, self.layout.width, 3)

    def _floats(self, name: str, begins: Sequence[int], count: int) -> np.ndarray:
        """(len(begins), count) floats of a file, from some offsets on."""
        rows = np.empty((len(begins), count), np.float32)
        file_path = _required(self.path, name)
        try:
            with file_path.open("rb") as file:
                for row, begin in zip(rows, begins, strict=True):
                    file.seek(begin)
                    content = file.read(row.nbytes)
                    if len(content) < row.nbytes:
                        raise UserError(f"{self.path / name} has become shorter while it was read: copy it again")
                    row[:] = np.frombuffer(content, _FLOAT)
        except OSError as error:
            raise UserError(f"cannot read {self.path / name}: {error.strerror}") from None
        return rows


def is_raw_memmap(path: Path) -> bool:
    """Whether a folder's observations.npy and actions.npy both lack the header of .npy files."""
    return all(_lacks_magic(path / name) for name in (OBSERVATIONS, ACTIONS))


def open_raw_memmap(path: Path, cache_dir: Path | None) -> RawMemmap:
    """Open a folder of raw memory maps; nothing is converted.

    Raises:
        UserError: if a file is missing, cut off or contradicts another, or the image size is unknown.
    """
    path = path.absolute()
    numbers = _read_metadata(path)
    layout, guess = _layout(path, numbers)
    all_lengths = _read_lengths(path)
    recorded = all_lengths[: numbers.get("rollout_count")]
    lengths = _stored_lengths(recorded, layout.rows, path)
    starts = [0, *itertools.accumulate(lengths[:-1])]
    kept = [number for number, length in enumerate(lengths) if length]
    files = tuple(name for name in (OBSERVATIONS, ACTIONS, LENGTHS, METADATA) if (path / name).exists())
    source = RawMemmap(
        path=path,
        format="raw memory maps",
        episodes=tuple(
            SourceEpisode(f"episode {number}", lengths[number], files[:3], number=number) for number in kept
        ),
        cameras={camera: Camera(layout.height, layout.width) for camera in CAMERAS},
        columns={"qpos": Column(JOINTS), "qvel": Column(JOINTS), "action": Column(ACTION_SIZE)},
        state_keys=("qpos",),
        action_keys=("action",),
        files=files,
        unusable=tuple(
            Unusable(
                number,
                f"episode {number}",
                f"{METADATA} counts {len(recorded)} rollouts, so this one was not finished"
                if number >= len(lengths)
                else "it has no steps in the files",
                is_missing=True,
            )
            for number in range(len(all_lengths))
            if number >= len(lengths) or not lengths[number]
        ),
        notes=(
            *guess,
            *_missing_notes(numbers, all_lengths),
            *(
                f"episode {number} has {length} steps, but only {fit} fit into the files: these are used"
                for number, (length, fit) in enumerate(zip(recorded, lengths, strict=True))
                if 0 < fit < length
            ),
        ),
        metadata={key: numbers[key] for key in ("max_steps_per_rollout", "skip_frames") if key in numbers},
        layout=layout,
        starts=tuple(starts[number] for number in kept),
    )
    for name, row_bytes in ((OBSERVATIONS, layout.row_bytes), (ACTIONS, ACTION_SIZE * _FLOAT.itemsize)):
        _refuse_cut_off(source, name, row_bytes)
    return source


FORMAT = Format(
    name="raw memory maps (observations.npy without a header)", recognizes=is_raw_memmap, open=open_raw_memmap
)


# The files -----------------------------------------------------------------------------------------


def _lacks_magic(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            begin = file.read(len(_MAGIC))
    except OSError:
        return False
    return len(begin) == len(_MAGIC) and begin != _MAGIC


def _required(path: Path, name: str) -> Path:
    real = real_file(path, name)
    if real is None:
        raise UserError(f"{path} has no {name}: copy it from where the dataset came from")
    return real


def _read_metadata(path: Path) -> dict[str, int]:
    """The named numbers in metadata.txt, and unnamed ones under "0", "1", ..."""
    real = real_file(path, METADATA)
    if real is None:
        return {}
    try:
        with real.open("rb") as file:
            text = file.read(_LARGEST_METADATA).decode(errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path / METADATA}: {error.strerror}") from None
    named = re.findall(r"([A-Za-z_]+)['\"]?\s*[=:]\s*(\d{1,15})\b", text)
    listed = re.findall(r"\d{1,15}", text)
    return {key.lower(): int(number) for key, number in named} | {
        str(n): int(number) for n, number in enumerate(listed)
    }


def _read_lengths(path: Path) -> list[int]:
    real = _required(path, LENGTHS)
    array = open_array(real)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(
            f"{path / LENGTHS} holds {array.dtype} of shape {array.shape}: it has to be (episodes,) integers"
        )
    lengths: list[int] = array.tolist()
    if min(lengths, default=0) < 0 or sum(lengths) > np.iinfo(np.int64).max:
        raise UserError(f"{path / LENGTHS} holds lengths that no dataset has: it is damaged, copy it again")
    return lengths


def _stored_lengths(lengths: list[int], rows: int, path: Path) -> list[int]:
    """(E,) stored steps of each rollout; of the last one possibly only the first steps."""
    if not any(lengths):
        raise UserError(f"{path / LENGTHS} lists no episode with a step: record at least one")
    before_last = sum(lengths[:-1])
    if before_last + bool(lengths[-1]) > rows:
        raise UserError(
            f"{path / LENGTHS} adds up to {sum(lengths)} steps, but the files have space for {rows}: write all files "
            "from the same recording"
        )
    return [*lengths[:-1], min(lengths[-1], rows - before_last)]


def _missing_notes(numbers: dict[str, int], lengths: list[int]) -> list[str]:
    """Notes on rollouts and steps that metadata.txt counts and rollout_length.npy does not list."""
    counts = {"rollouts": ("rollout_count", len(lengths)), "steps": ("sample_count", sum(lengths))}
    return [
        f"{METADATA} counts {numbers[key]} {what}, but {LENGTHS} {listed}: the rest is not read"
        for what, (key, listed) in counts.items()
        if numbers.get(key, 0) > listed
    ]


def _layout(path: Path, numbers: dict[str, int]) -> tuple[_Layout, list[str]]:
    """The layout of the rows, from metadata.txt or inferred from file sizes; and notes on guesses."""
    size, action_bytes = (_required(path, name).stat().st_size for name in (OBSERVATIONS, ACTIONS))
    height, width = (numbers.get(f"camera_{side}", numbers.get(side)) for side in ("height", "width"))
    if height is None or width is None:
        return _inferred_layout(path, numbers, size, action_bytes)
    if not (0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE):
        raise UserError(f"{path / METADATA} specifies images of {height} x {width} pixels: correct it")
    layout = _Layout(0, height, width)
    rows = numbers.get("total_sample_count", size // layout.row_bytes)
    if size - rows * layout.row_bytes > _MOST_LEFT_OVER:
        raise UserError(
            f"{path / OBSERVATIONS} has {size} bytes but {METADATA} specifies {rows} rows of {layout.row_bytes}: "
            "correct its camera_height, camera_width or total_sample_count"
        )
    return _Layout(rows, height, width), []


def _inferred_layout(path: Path, numbers: dict[str, int], size: int, action_bytes: int) -> tuple[_Layout, list[str]]:
    listed = [numbers[str(n)] for n in range(len(numbers)) if str(n) in numbers]
    for header in _HEADERS:
        rows, rest = divmod(action_bytes - header, ACTION_SIZE * _FLOAT.itemsize)
        if rest or rows < 1 or (size - header) % (rows * _FLOAT.itemsize):
            continue
        pixels, rest = divmod((size - header) // (rows * _FLOAT.itemsize) - 2 * JOINTS, 3 * len(CAMERAS))
        if rest or pixels < 1:
            continue
        told = {pair for pair in itertools.pairwise(listed) if math.prod(pair) == pixels}
        side = math.isqrt(pixels)
        usual = {pair for pair in (*_WIDE_SIZES, (side, side)) if math.prod(pair) == pixels}
        choices = told or usual
        if len(choices) == 1 and pixels <= _LARGEST_SIDE**2:
            by = f"{METADATA} lists these numbers" if told else f"an image has {pixels} pixels"
            height, width = choices.pop()
            note = f"the image size is not specified: height {height} and width {width} are assumed, since {by}"
            return _Layout(rows, height, width), [f"{note}; write camera_height=... camera_width=... if that is wrong"]
    raise UserError(
        f"the size of the images in {path / OBSERVATIONS} is unknown: write camera_height=... camera_width=... into "
        f"{path / METADATA}"
    )


def _refuse_cut_off(source: RawMemmap, name: str, row_bytes: int) -> None:
    """Check that a file has all rows of all episodes."""
    rows = _required(source.path, name).stat().st_size // row_bytes
    last = source.starts[-1] + source.episodes[-1].length
    if rows < last:
        episode = bisect_right(source.starts, rows) - 1
        raise UserError(
            f"{source.path / name} is cut off: it ends in {source.episodes[episode].name}, step "
            f"{rows - source.starts[episode]}, and {last - rows} steps are missing; copy it again"
        )
