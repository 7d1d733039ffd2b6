"""Writes diffusion_policy's replay buffer: `data/<key>` over all steps, `meta/episode_ends`, in zarr's format 2.

The format is small (a JSON file and compressed chunks for each array), so it is written here: versions of zarr differ
in how they write it, and omit chunks that are all zeros, such as black images.

Source: diffusion_policy/common/replay_buffer.py of Diffusion Policy;
https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from bimact.convert.content import Content, short_names
from bimact.convert.writer import EpisodeSpan, Writer
from bimact.data.selection import ACTION, STATE
from bimact.files import write_json
from bimact.progress import ProgressBar

# Any blosc setting can be read. Pixels compress better and faster without shuffle, floats with it.
_IMAGE_CODEC = numcodecs.Blosc(cname="zstd", clevel=3, shuffle=numcodecs.Blosc.NOSHUFFLE)
_VECTOR_CODEC = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
_CHUNK_BYTES = 2_000_000  # of vectors


class ZarrWriter(Writer):
    """A chunk is one image, so that no two processes write to the same one; the main process writes the vectors."""

    format = "zarr replay buffer of Diffusion Policy"

    def check(self) -> None:
        self._cameras()

    def left_out(self) -> list[str]:
        return [*self.names_left_out(), *super().left_out()]

    def notes(self) -> list[str]:
        return []

    def bytes_needed(self) -> int:
        images = self.image_bytes(self.content.cameras, _blosc_bytes)
        return self.content.column_bytes + 8 * len(self.content.lengths) + images

    def write(self, folder: Path, progress: ProgressBar) -> None:
        attributes: dict[str, Any] = {} if self.content.fps is None else {"fps": self.content.fps}
        if any(self.content.tasks):
            attributes["tasks"] = self.content.tasks
        write_json(folder / ".zattrs", attributes)
        for group in (folder, folder / "data", folder / "meta"):
            write_json(group / ".zgroup", {"zarr_format": 2})
        _write_vectors(folder / "meta" / "episode_ends", np.cumsum(self.content.lengths, dtype=np.int64))

        columns, starts, names = self.content.columns, self.content.starts, self._columns()
        vectors = {
            names[key]: np.empty((self.content.num_steps, column.size), column.dtype) for key, column in columns.items()
        }

        def take(episode: int, read: dict[str, np.ndarray]) -> None:
            for key, values in read.items():
                vectors[names[key]][starts[episode] : starts[episode] + len(values)] = values

        self.run(_read_vectors, [(self.content, span) for span in self.whole_episodes()], take)
        for name, values in vectors.items():
            _write_vectors(folder / "data" / name, values)

        jobs = []
        for key, name in self._cameras().items():
            camera = self.content.cameras[key]
            shape = (self.content.num_steps, camera.height, camera.width)
            if camera.is_depth:
                array = _ZarrArray(folder / "data" / name, shape, np.dtype(np.uint16), 1, _VECTOR_CODEC)
            else:
                array = _ZarrArray(folder / "data" / name, (*shape, 3), np.dtype(np.uint8), 1, _IMAGE_CODEC)
            array.write_description()
            jobs += [(self.content, span, key, array) for span in self.spans()]
        self.run(_write_images, jobs, progress=progress)

    def _columns(self) -> dict[str, str]:
        return {STATE: STATE, ACTION: ACTION, **short_names(self.content.extras, (STATE, ACTION))}

    def _cameras(self) -> dict[str, str]:
        return short_names(self.content.cameras, self._columns().values())


@dataclass(frozen=True)
class _ZarrArray:
    """An array on disk in chunks of some rows each."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: int
    codec: numcodecs.Blosc

    def write_description(self) -> None:
        described = {
            "zarr_format": 2,
            "shape": self.shape,
            "chunks": (self.rows, *self.shape[1:]),
            "dtype": self.dtype.str,
            "compressor": self.codec.get_config(),
            "fill_value": False if self.dtype.kind == "b" else 0,
            "order": "C",
            "filters": None,
        }
        write_json(self.path / ".zarray", described)

    def write_chunk(self, number: int, rows: np.ndarray) -> None:
        """Write a chunk; the last one may have fewer rows, and is padded."""
        missing = self.rows - len(rows)
        if missing:
            rows = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
        name = ".".join(["0"] * (len(self.shape) - 1))
        path = self.path / (f"{number}.{name}" if name else str(number))
        path.write_bytes(self.codec.encode(np.ascontiguousarray(rows)))


def _write_vectors(path: Path, values: np.ndarray) -> None:
    rows = min(len(values), max(1, _CHUNK_BYTES // values[:1].nbytes))
    array = _ZarrArray(path, values.shape, values.dtype, rows, _VECTOR_CODEC)
    array.write_description()
    for number, first in enumerate(range(0, len(values), rows)):
        array.write_chunk(number, values[first : first + rows])


def _read_vectors(content: Content, span: EpisodeSpan) -> dict[str, np.ndarray]:
    return content.vectors(span.episode)


def _write_images(content: Content, span: EpisodeSpan, camera: str, array: _ZarrArray) -> None:
    first = content.starts[span.episode]
    for step, image in zip(span.steps, content.frames(span.episode, camera, span.steps)):
        array.write_chunk(first + step, image[None])


def _blosc_bytes(frames: Sequence[np.ndarray]) -> int:
    return sum(len(_IMAGE_CODEC.encode(np.ascontiguousarray(frame))) for frame in frames)
