"""Small LeRobotDatasets of every version, as LeRobot writes them. Each picture tells its camera, episode and step."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bimact.data.source import Source
from bimact.machine import reset_scheduling

STATE, ACTION = "observation.state", "action"
TOP, LEFT = "observation.images.top", "observation.images.left_wrist"
SIZE = (48, 64)  # height, width
LENGTHS = (6, 4, 5)
_BITS = 8  # of a picture's number


@dataclass(frozen=True)
class Variant:
    """One way of writing a dataset.

    Attributes:
        version: "v2.0", "v2.1" or "v3.0".
        codec: of the videos in libav's names; None: images in the Parquet files.
        image_format: of those images.
        episodes_per_file: in v3.
        converted: v3 as the converter from v2.1 writes it: one row group a file, no quantiles.
    """

    version: str = "v3.0"
    codec: str | None = "libx264"
    image_format: str = "PNG"
    episodes_per_file: int = 2
    converted: bool = False


VARIANTS = {
    "v2.0 AV1": Variant("v2.0", "libsvtav1"),
    "v2.0 images": Variant("v2.0", None),
    "v2.1 H.264": Variant("v2.1", "libx264"),
    "v2.1 JPEG": Variant("v2.1", None, "JPEG"),
    "v3.0 AV1": Variant("v3.0", "libsvtav1"),
    "v3.0 MPEG-4": Variant("v3.0", "mpeg4"),
    "v3.0 converted": Variant("v3.0", "libx264", converted=True),
    "v3.0 images": Variant("v3.0", None, converted=True),
}
V2, V3, V2_IMAGES, V3_IMAGES = (Variant(version, codec) for codec in ("libx264", None) for version in ("v2.1", "v3.0"))


def write_lerobot(
    folder: Path,
    lengths: Sequence[int] = LENGTHS,
    variant: Variant | None = None,
    *,
    cameras: Sequence[str] = (TOP, LEFT),
    size: tuple[int, int] = SIZE,
    dim: int = 14,
    fps: int = 10,
) -> Path:
    """A dataset with two tasks whose vectors and pictures `vectors` and `picture` tell.

    Args:
        lengths: steps of each episode.
        cameras: keys of the features.
        size: height and width of the pictures.
        dim: of state and action.
    """
    variant = variant or Variant()
    writer = _Writer(folder, tuple(lengths), variant, tuple(cameras), size, dim, fps)
    writer.write()
    return folder


def vectors(episode: int, length: int, dim: int = 14) -> dict[str, np.ndarray]:
    """State and action (length, dim) float32 of an episode."""
    steps = np.arange(length)[:, None]
    state = (np.sin(0.1 * steps + np.arange(dim)) + episode).astype(np.float32)
    return {STATE: state, ACTION: state + np.float32(0.5)}


def picture(camera: int, episode: int, step: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8: a number as bars of light and dark, in a tone that tells the camera."""
    code = (episode * 40 + step) % (1 << _BITS)
    bars = np.array([220 if code >> bit & 1 else 40 for bit in range(_BITS)])
    row = bars[np.arange(size[1]) * _BITS // size[1]]
    image = np.repeat(np.repeat(row[None, :, None], size[0], 0), 3, 2)
    image[..., camera % 3] = image[..., camera % 3] // 2
    return image.astype(np.uint8)


def shows(image: np.ndarray, camera: int, episode: int, step: int) -> bool:
    """Whether an image that was compressed is a certain picture."""
    wanted = picture(camera, episode, step, image.shape[:2]).astype(int)
    return bool(np.abs(image.astype(int) - wanted).mean() < 12)


def episode_of(source: Source, number: int) -> int:
    """What the dataset itself calls an episode."""
    return int(source.episodes[number].name.removeprefix("episode "))


def assert_as_written(source: Source, cameras: tuple[str, ...] = ("top", "left_wrist")) -> None:
    """See that all vectors and pictures of a source are those of `write_lerobot`."""
    for number, episode in enumerate(source.episodes):
        index = episode_of(source, number)
        read = source.read_columns(number, [STATE, ACTION])
        for key, values in vectors(index, episode.length).items():
            assert read[key].dtype == np.float32
            np.testing.assert_array_equal(read[key], values)
        for position, camera in enumerate(cameras):
            images = list(source.read_frames(number, camera, range(episode.length)))
            assert len(images) == episode.length
            assert all(shows(image, position, index, step) for step, image in enumerate(images))


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    fps: int = 10,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    times: Callable[[int], float] | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> Path:
    """Encode frames (H, W, 3) uint8.

    Args:
        times: number of a frame → seconds, in steps of 1 / 1000; None: one frame each 1 / fps.
        prepare: takes the codec's context before it is opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unit = Fraction(1, fps if times is None else 1000)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, fps, options={"g": "2", "crf": "18", **(options or {})})
        for number, image in enumerate(frames):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = pixel_format
                stream.codec_context.time_base = unit
                if codec == "mpeg4":
                    stream.bit_rate = 4_000_000
                if prepare is not None:
                    prepare(stream.codec_context)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if times is None else round(times(number) * 1000)
            frame.time_base = unit
            container.mux(stream.encode(frame))
            if number == 0 and codec == "libsvtav1":
                reset_scheduling()
        container.mux(stream.encode())
    return path


def change_info(folder: Path, **changes: Any) -> None:
    """Replace keys of info.json; None removes them."""
    path = folder / "meta/info.json"
    info = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in info.items() if value is not None}))


def change_feature(folder: Path, key: str, **changes: Any) -> None:
    """Replace keys of one feature in info.json."""
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    change_info(folder, features={**features, key: {**features.get(key, {}), **changes}})


def change_table(path: Path, change: Callable[[pa.Table], pa.Table], row_group: int | None = None) -> None:
    """Write a Parquet file anew."""
    pq.write_table(change(pq.read_table(path)), path, row_group_size=row_group)


@dataclass(frozen=True)
class _Writer:
    folder: Path
    lengths: tuple[int, ...]
    variant: Variant
    cameras: tuple[str, ...]
    size: tuple[int, int]
    dim: int
    fps: int

    @property
    def is_v3(self) -> bool:
        return self.variant.version.startswith("v3")

    def write(self) -> None:
        (self.folder / "meta").mkdir(parents=True)
        self._write_info()
        if self.is_v3:
            self._write_v3()
        else:
            self._write_v2()

    def tasks(self, episode: int) -> list[str]:
        return ["hand the cube over" if episode % 2 == 0 else "insert the peg"]

    def _write_info(self) -> None:
        named = {"names": [f"joint {number}" for number in range(self.dim)]}
        scalar = {"shape": [1], "names": None}
        image = {"shape": [*self.size, 3], "names": ["height", "width", "channels"]}
        dtype = "image" if self.variant.codec is None else "video"
        details = {} if dtype == "image" else {"info": {"video.fps": self.fps, "video.is_depth_map": False}}
        features = {
            STATE: {"dtype": "float32", "shape": [self.dim], **named},
            ACTION: {"dtype": "float32", "shape": [self.dim], **named},
            "next.reward": {"dtype": "float32", **scalar},
            "next.done": {"dtype": "bool", **scalar},
            "language_instruction": {"dtype": "string", **scalar},
            **{camera: {"dtype": dtype, **image, **details} for camera in self.cameras},
            "timestamp": {"dtype": "float32", **scalar},
            **{key: {"dtype": "int64", **scalar} for key in ("frame_index", "episode_index", "index", "task_index")},
        }
        file = "file" if self.is_v3 else "episode"
        if self.is_v3:
            data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
            video = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        else:
            data = f"data/chunk-{{episode_chunk:03d}}/{file}_{{episode_index:06d}}.parquet"
            video = f"videos/chunk-{{episode_chunk:03d}}/{{video_key}}/{file}_{{episode_index:06d}}.mp4"
        info = {
            "codebase_version": self.variant.version,
            "robot_type": "aloha",
            "total_episodes": len(self.lengths),
            "total_frames": sum(self.lengths),
            "total_tasks": min(2, len(self.lengths)),
            "chunks_size": 1000 if self.is_v3 else 2,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.lengths)}"},
            "data_path": data,
            "video_path": None if self.variant.codec is None else video,
            "features": features,
        }
        (self.folder / "meta/info.json").write_text(json.dumps(info, indent=4))

    def _write_v2(self) -> None:
        meta = self.folder / "meta"
        texts = list(dict.fromkeys(text for episode in range(len(self.lengths)) for text in self.tasks(episode)))
        _write_lines(meta / "tasks.jsonl", [{"task_index": i, "task": text} for i, text in enumerate(texts)])
        numbers = range(len(self.lengths))
        listed = [{"episode_index": i, "tasks": self.tasks(i), "length": self.lengths[i]} for i in numbers]
        _write_lines(meta / "episodes.jsonl", listed)
        if self.variant.version == "v2.0":
            (meta / "stats.json").write_text(json.dumps(self._stats(0)))
        else:
            _write_lines(
                meta / "episodes_stats.jsonl", [{"episode_index": i, "stats": self._stats(i)} for i in numbers]
            )
        for episode in numbers:
            chunk = f"chunk-{episode // 2:03d}"
            self._write_data(self.folder / f"data/{chunk}/episode_{episode:06d}.parquet", [episode])
            for camera in self._videos():
                path = self.folder / f"videos/{chunk}/{self.cameras[camera]}/episode_{episode:06d}.mp4"
                self._write_video(path, camera, [episode])

    def _write_v3(self) -> None:
        listed = []
        count = self.variant.episodes_per_file
        for file, first in enumerate(range(0, len(self.lengths), count)):
            episodes = list(range(len(self.lengths))[first : first + count])
            self._write_data(self.folder / f"data/chunk-000/file-{file:03d}.parquet", episodes)
            for camera in self._videos():
                path = self.folder / f"videos/{self.cameras[camera]}/chunk-000/file-{file:03d}.mp4"
                self._write_video(path, camera, episodes)
            listed += [self._listed_v3(episode, file, first) for episode in episodes]
        path = self.folder / "meta/episodes/chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(listed), path)
        # As pandas writes a table whose index are the texts.
        texts = list(dict.fromkeys(text for episode in range(len(self.lengths)) for text in self.tasks(episode)))
        index = {
            "index_columns": ["__index_level_0__"],
            "column_indexes": [],
            "columns": [
                {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": kind, "metadata": None}
                for name, field, kind in (("task_index", "task_index", "int64"), (None, "__index_level_0__", "object"))
            ],
        }
        tasks = pa.table({"task_index": list(range(len(texts))), "__index_level_0__": texts})
        pq.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(index)}), self.folder / "meta/tasks.parquet")
        (self.folder / "meta/stats.json").write_text(json.dumps(self._stats(0)))

    def _listed_v3(self, episode: int, file: int, first: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            "episode_index": episode,
            "tasks": self.tasks(episode),
            "length": self.lengths[episode],
            "data/chunk_index": 0,
            "data/file_index": file,
            "dataset_from_index": sum(self.lengths[:episode]),
            "dataset_to_index": sum(self.lengths[: episode + 1]),
        }
        before = sum(self.lengths[first:episode])
        for camera in self._videos():
            prefix = f"videos/{self.cameras[camera]}/"
            row |= {prefix + "chunk_index": 0, prefix + "file_index": file}
            row |= {prefix + "from_timestamp": before / self.fps}
            row |= {prefix + "to_timestamp": (before + self.lengths[episode]) / self.fps}
        stats = self._stats(episode)
        row |= {f"stats/{key}/{name}": value for key, values in stats.items() for name, value in values.items()}
        return row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}

    def _stats(self, episode: int) -> dict[str, Any]:
        stats = {}
        for key, values in vectors(episode, self.lengths[episode], self.dim).items():
            kinds = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
            if self.is_v3 and not self.variant.converted:
                kinds |= {"q01": values.min(0), "q99": values.max(0)}
            count = {"count": [self.lengths[episode]]}
            stats[key] = {name: value.astype(float).tolist() for name, value in kinds.items()} | count
        return stats

    def _videos(self) -> range:
        return range(0 if self.variant.codec is None else len(self.cameras))

    def _write_video(self, path: Path, camera: int, episodes: Sequence[int]) -> None:
        assert self.variant.codec is not None
        pictures = (
            picture(camera, episode, step, self.size) for episode in episodes for step in range(self.lengths[episode])
        )
        write_video(path, pictures, fps=self.fps, codec=self.variant.codec)

    def _write_data(self, path: Path, episodes: Sequence[int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = [self._table(episode) for episode in episodes]
        if self.variant.converted:
            tables = [pa.concat_tables(tables)]
        with pq.ParquetWriter(path, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)

    def _table(self, episode: int) -> pa.Table:
        length = self.lengths[episode]
        steps = np.arange(length)
        columns: dict[str, pa.Array] = {
            key: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), self.dim)
            for key, values in vectors(episode, length, self.dim).items()
        }
        columns["next.reward"] = pa.array((steps / length).astype(np.float32))
        columns["next.done"] = pa.array(steps == length - 1)
        columns["language_instruction"] = pa.array(self.tasks(episode) * length)
        if self.variant.codec is None:
            for camera, key in enumerate(self.cameras):
                columns[key] = self._images(camera, episode)
        columns["timestamp"] = pa.array((steps / self.fps).astype(np.float32))
        columns["frame_index"] = pa.array(steps)
        columns["episode_index"] = pa.array(np.full(length, episode))
        columns["index"] = pa.array(steps + sum(self.lengths[:episode]))
        columns["task_index"] = pa.array(np.full(length, episode % 2))
        return pa.table(columns)

    def _images(self, camera: int, episode: int) -> pa.Array:
        cells = []
        for step in range(self.lengths[episode]):
            stream = io.BytesIO()
            Image.fromarray(picture(camera, episode, step, self.size)).save(stream, self.variant.image_format)
            cells.append({"bytes": stream.getvalue(), "path": f"frame-{step:06d}.png"})
        return pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
