"""Small replay buffers as diffusion_policy writes them, in zarr v2 and v3, as folders and as .zip files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

UNCHANGED = object()


def replay_arrays(lengths: Sequence[int], *, size: tuple[int, int] = (16, 24), seed: int = 0) -> dict[str, np.ndarray]:
    """Two cameras, a state, an action and times for episodes of these lengths; no number but the first time is zero."""
    draw = np.random.default_rng(seed)
    steps = sum(lengths)
    return {
        "camera_0": draw.integers(1, 256, (steps, *size, 3), dtype=np.uint8),
        "camera_1": draw.integers(1, 256, (steps, *size, 3), dtype=np.uint8),
        "state": draw.normal(size=(steps, 14)).astype(np.float32),
        "action": draw.normal(size=(steps, 14)).astype(np.float32),
        "timestamp": np.concatenate(
            [1000.0 * number + np.arange(length) / 10 for number, length in enumerate(lengths)]
        ),
    }


def write_replay(
    path: Path,
    lengths: Sequence[int],
    arrays: Mapping[str, np.ndarray] | None = None,
    *,
    version: int = 2,
    chunk: int = 4,
    codecs: Mapping[str, Mapping[str, Any]] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a buffer as a folder.

    Args:
        arrays: those under `data`; None: those of `replay_arrays`.
        version: of zarr's format.
        chunk: steps in a chunk.
        codecs: key → more arguments for zarr, such as a compressor.
        attributes: of the whole hierarchy.
    """
    import zarr

    arrays = replay_arrays(lengths) if arrays is None else arrays
    ends = {"meta/episode_ends": np.cumsum(lengths, dtype=np.int64)}
    everything = {f"data/{key}": array for key, array in arrays.items()} | ends
    if zarr.__version__.startswith("2."):
        group = zarr.open_group(str(path), mode="w")
        for name, array in everything.items():
            more = dict((codecs or {}).get(name.removeprefix("data/"), {}))
            group.create_dataset(name, data=array, chunks=(chunk, *array.shape[1:]), **more)
    else:
        group = zarr.open_group(str(path), mode="w", zarr_format=version)
        for name, array in everything.items():
            more = dict((codecs or {}).get(name.removeprefix("data/"), {}))
            if "compressor" in more:
                more["compressors"] = more.pop("compressor")
            with zarr.config.set({"array.write_empty_chunks": True}):
                written = group.create_array(
                    name,
                    shape=array.shape,
                    chunks=more.pop("chunks", (chunk, *array.shape[1:])),
                    dtype=array.dtype,
                    **more,
                )
                written[:] = array
    group.attrs.update(attributes or {})
    return path


def zipped(folder: Path, path: Path, prefix: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    """The content of a folder as a .zip file, below a folder `prefix` inside it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path
