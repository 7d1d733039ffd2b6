"""Writes a LeRobotDataset v3.0: tables of steps, episodes and tasks, and one video or more for each camera.

Episodes are first written separately by several processes; then files are joined up to LeRobot's size limits. Videos of
the source are copied packet by packet, without loss, if an episode begins at a key frame.

Sources: lerobot_dataset.py, utils.py and video_utils.py of LeRobot 0.4.4.
"""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from bimact.convert import lerobot_stats, lerobot_tables
from bimact.convert.content import Content
from bimact.convert.lerobot_stats import Stats
from bimact.convert.lerobot_tables import Features
from bimact.convert.video_copy import codec_name, copy_frames
from bimact.convert.writer import EpisodeSpan, Writer
from bimact.data.formats import lerobot_meta as meta
from bimact.data.formats.lerobot_meta import BOOKKEEPING, FILES_PER_CHUNK, V3, camera_key
from bimact.data.formats.video_frames import frames_at
from bimact.data.selection import ACTION, STATE
from bimact.errors import UserError
from bimact.files import write_json
from bimact.progress import ProgressBar
from bimact.video import VideoWriter, frame_rate, join_videos

_DATA_MB, _VIDEO_MB = 100, 200  # LeRobot's limits on file sizes
_EPISODES_PER_TABLE = 1000
_MOST_LISTED = 10
_PARTS = "parts"  # folder of unjoined files


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg, its options, and the smallest height and width in pixels that it surely accepts."""

    encoder: str
    options: tuple[tuple[str, str], ...]
    smallest: int = 16


# One thread each, since many videos are encoded at the same time.
_CODECS = {
    "av1": Codec("libsvtav1", (("preset", "12"), ("svtav1-params", "lp=1"))),
    "h264": Codec("libx264", (("threads", "1"),)),
    "hevc": Codec("libx265", (("x265-params", "bframes=0:pools=1:frame-threads=1:log-level=error"),), smallest=64),
}
_QUALITY = {"g": "2", "crf": "30"}  # every second frame is a key frame


class LeRobotWriter(Writer):
    format = "LeRobotDataset v3.0"

    def check(self) -> None:
        if self.content.fps is None:
            raise UserError(f"{self.content.chosen.path} has no fps, which a LeRobotDataset needs: pass --fps N")
        self._features()

    def notes(self) -> list[str]:
        notes = []
        by_choice = (*self.options.as_images, *self.content.depth_cameras)
        as_images = [name for name in self._stored_as("image") if name not in by_choice]
        if as_images and not self.options.lossless:
            smallest = _CODECS[self._codec].smallest
            notes.append(
                f"PNG images instead of video, which needs an even height and width of at least {smallest} pixels: "
                f"{', '.join(as_images)}"
            )
        if "" in self.content.tasks:
            count = self.content.tasks.count("")
            notes.append(f"{count} episode{'s have' if count > 1 else ' has'} no task description: pass one by --task")
        return notes

    def bytes_needed(self) -> int:
        rows = self.content.column_bytes + 36 * self.content.num_steps
        meta = 80_000 + 5_000 * len(self.content.lengths)
        images = self.image_bytes(self._stored_as("image"), lerobot_tables.png_bytes)
        videos = self.image_bytes(self._stored_as("video"), _encoded_bytes, self.content.fps, self._codec)
        return rows + meta + images + videos

    @property
    def _codec(self) -> str:
        return self.options.codec or "av1"

    def _stored_as(self, kind: str) -> list[str]:
        """The cameras that are stored as "video" (with colours at half the resolution, yuv420p) or as "image".

        Depth is stored as images: LeRobot 0.6 has videos for it, which round distances, and earlier versions none.
        """
        smallest = _CODECS[self._codec].smallest
        stored: dict[str, list[str]] = {"video": [], "image": []}
        for name, camera in self.content.cameras.items():
            is_even = camera.height % 2 == 0 and camera.width % 2 == 0
            fits = is_even and min(camera.height, camera.width) >= smallest and not camera.is_depth
            is_image = self.options.lossless or name in self.options.as_images or not fits
            stored["image" if is_image else "video"].append(name)
        return stored[kind]

    def _copied(self) -> list[str]:
        """The cameras whose videos are copied where possible: all with videos, unless another codec is requested."""
        videos = self._stored_as("video") if self.options.codec is None else []
        return [name for name in videos if name in self.content.chosen.video_cameras]

    def _features(self) -> dict[str, dict[str, Any]]:
        """Features of meta/info.json, without facts on videos, which are known only after encoding."""
        videos = self._stored_as("video")
        cameras: dict[str, dict[str, Any]] = {
            camera_key(name): {
                "dtype": "video" if name in videos else "image",
                "shape": [camera.height, camera.width, 1 if camera.is_depth else 3],
                "names": ["height", "width", "channels"],
                **({"info": {"is_depth_map": True, "depth_unit": "mm"}} if camera.is_depth else {}),
            }
            for name, camera in self.content.cameras.items()
        }
        columns: dict[str, dict[str, Any]] = {
            column_key(key): {
                "dtype": str(np.dtype(column.dtype)),
                "shape": [column.size],
                "names": None if column.names is None else list(column.names),
            }
            for key, column in self.content.columns.items()
        }
        bookkeeping: dict[str, dict[str, Any]] = {
            key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in BOOKKEEPING.items()
        }
        features = {**cameras, **columns, **bookkeeping}
        if len(features) < len(cameras) + len(self.content.columns) + len(bookkeeping):
            raise UserError(
                f"two columns or cameras of {self.content.chosen.path} would have the same key in a LeRobotDataset, "
                f"which has {', '.join(features)}: rename one"
            )
        return features

    def write(self, folder: Path, progress: ProgressBar) -> None:
        content, fps = self.content, self.content.fps
        assert fps is not None
        features = self._features()
        tasks = list(dict.fromkeys(content.tasks))
        parts = folder / _PARTS
        parts.mkdir()

        # A table for each episode, with the images that are not stored as video.
        images = self._stored_as("image")
        tables = [parts / f"{episode:06d}.parquet" for episode in range(len(content.lengths))]
        table_jobs = [
            (content, span, tables[span.episode], features, tasks.index(content.tasks[span.episode]), images)
            for span in self.whole_episodes()
        ]
        stats: list[dict[str, Stats]] = [{} for _ in table_jobs]
        self.run(_write_table, table_jobs, stats.__setitem__, progress=progress, images_per_step=len(images))

        # A video for each camera and part of an episode; for each camera and episode where videos are copied.
        videos, copied = self._stored_as("video"), self._copied()
        video_jobs = [
            (
                content,
                span,
                name,
                parts / f"{number}-{span.episode:06d}-{span.first:09d}.mp4",
                name in copied,
                self._codec,
            )
            for number, name in enumerate(videos)
            for span in (self.whole_episodes() if name in copied else self.spans())
        ]
        counts: dict[tuple[int, str], np.ndarray] = defaultdict(lambda: np.zeros((3, 256), np.int64))
        kinds: dict[tuple[str, int], str] = {}  # camera, episode → digest of shared properties
        encoded: set[tuple[int, str]] = set()  # episode, camera

        def add_counts(number: int, found: tuple[np.ndarray, str, bool]) -> None:
            _, span, name, *_ = video_jobs[number]
            counted, kinds[name, span.episode], is_copy = found
            counts[span.episode, name] += counted
            if not is_copy:
                encoded.add((span.episode, name))

        self.run(_write_video, video_jobs, add_counts, progress=progress)
        for (episode, name), counted in counts.items():
            sampled = len(lerobot_stats.sampled_steps(content.lengths[episode]))
            stats[episode][camera_key(name)] = lerobot_stats.image_stats(counted, sampled)

        progress.advance(0, "joining files")
        rows: list[dict[str, Any]] = [
            {"episode_index": number, "tasks": [content.tasks[number]], "length": length}
            for number, length in enumerate(content.lengths)
        ]
        for number, episodes in enumerate(_files([table.stat().st_size for table in tables], _DATA_MB)):
            path, place = _new_file(folder, V3.data, "data", number)
            lerobot_tables.join([tables[episode] for episode in episodes], path, lerobot_tables.schema_of(features))
            for episode in episodes:
                start = content.starts[episode]
                rows[episode] |= {**place, "dataset_from_index": start}
                rows[episode]["dataset_to_index"] = start + content.lengths[episode]
        for name in videos:
            key = camera_key(name)
            by_episode: dict[int, list[tuple[Path, int]]] = defaultdict(list)
            for _, span, camera, path, *_ in video_jobs:
                if camera == name:
                    by_episode[span.episode].append((path, len(span.steps)))
            sizes = [sum(path.stat().st_size for path, _ in by_episode[episode]) for episode in range(len(rows))]
            its_kinds = [kinds[name, episode] for episode in range(len(rows))]
            for number, episodes in enumerate(_files(sizes, _VIDEO_MB, its_kinds)):
                path, place = _new_file(folder, V3.video, f"videos/{key}", number, video_key=key)
                join_videos([part for episode in episodes for part in by_episode[episode]], path, fps)
                if number == 0:
                    features[key]["info"] = _video_info(path, fps)
                before = 0
                for episode in episodes:
                    after = before + content.lengths[episode]
                    rows[episode] |= {
                        **place,
                        f"videos/{key}/from_timestamp": before / fps,
                        f"videos/{key}/to_timestamp": after / fps,
                    }
                    before = after
        parts.rmdir()
        if copied:
            count = len(copied) * len(rows)
            again = [entry for entry in sorted(encoded) if entry[1] in copied]
            told = [f"{content.chosen.episodes[episode].name} ({name})" for episode, name in again[:_MOST_LISTED]]
            more = f" and {len(again) - _MOST_LISTED} more" if len(again) > _MOST_LISTED else ""
            why = f"; encoded again, since they begin between key frames: {', '.join(told)}{more}" if again else ""
            self.done.append(f"videos copied without encoding: {count - len(again)} of {count}{why}")

        # Statistics and metadata.
        ordered = [{key: found[key] for key in features} for found in stats]
        for row, of_episode in zip(rows, ordered):
            row |= {f"stats/{key}/{name}": value for key, part in of_episode.items() for name, value in part.items()}
        for number, first in enumerate(range(0, len(rows), _EPISODES_PER_TABLE)):
            path, place = _new_file(folder, V3.episodes, "meta/episodes", number)
            lerobot_tables.write_episodes(path, [row | place for row in rows[first : first + _EPISODES_PER_TABLE]])
        lerobot_tables.write_tasks(folder / V3.tasks, tasks)
        total = {key: lerobot_stats.combined([found[key] for found in ordered]) for key in features}
        plain = {key: {name: value.tolist() for name, value in of_key.items()} for key, of_key in total.items()}
        write_json(folder / V3.stats, plain)
        info = {
            "codebase_version": "v3.0",
            "robot_type": content.chosen.metadata.get("robot_type"),
            "total_episodes": len(content.lengths),
            "total_frames": content.num_steps,
            "total_tasks": len(tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": _DATA_MB,
            "video_files_size_in_mb": _VIDEO_MB,
            "fps": int(fps) if fps.is_integer() else fps,
            "splits": {"train": f"0:{len(content.lengths)}"},
            "data_path": V3.data,
            "video_path": V3.video if videos else None,
            "features": features,
        }
        write_json(folder / meta.INFO, info)


# Keys and paths ----------------------------------------------------------------------------------------


def column_key(key: str) -> str:
    """The key of a column; keys of a LeRobotDataset are kept."""
    if key == STATE:
        return meta.STATE
    plain = key.removeprefix("observations/").removeprefix("obs/").replace("/", ".")
    if plain == ACTION or plain.startswith(("observation.", "next.", "action.", "info.")) or "action" in plain:
        return plain
    return f"observation.{plain}"


def _new_file(folder: Path, template: str, kind: str, number: int, **fields: str) -> tuple[Path, dict[str, int]]:
    """The path of the n-th file of a kind, whose folder is created; and what the list of episodes says of it."""
    place = {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}
    path = folder / template.format(**place, **fields)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, {f"{kind}/{name}": value for name, value in place.items()}


def _files(sizes: Sequence[int], limit_mb: int, kinds: Sequence[str] | None = None) -> Iterator[list[int]]:
    """The episodes of each file: as many of one kind as fit the size limit, at least one."""
    episodes: list[int] = []
    total = 0
    for episode, size in enumerate(sizes):
        is_other = kinds is not None and episode > 0 and kinds[episode] != kinds[episode - 1]
        if episodes and (is_other or total + size >= limit_mb << 20):
            yield episodes
            episodes, total = [], 0
        episodes.append(episode)
        total += size
    yield episodes


def _video_info(path: Path, fps: float) -> dict[str, Any]:
    """The video information of a camera in a LeRobotDataset."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return {
            "video.height": stream.height,
            "video.width": stream.width,
            "video.codec": stream.codec_context.codec.canonical_name,
            "video.pix_fmt": stream.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": int(frame_rate(fps)),
            "video.channels": 3,
            "has_audio": False,
        }


# In child processes --------------------------------------------------------------------------------------


def _write_table(
    content: Content, span: EpisodeSpan, path: Path, features: Features, task: int, cameras: Sequence[str]
) -> dict[str, Stats]:
    """Write one episode's table; returns the statistics of its content."""
    length, start = len(span.steps), content.starts[span.episode]
    steps = np.arange(length)
    assert content.fps is not None
    bookkeeping = {
        meta.TIME: steps / content.fps,
        meta.FRAME: steps,
        meta.EPISODE: np.full(length, span.episode),
        meta.INDEX: steps + start,
        meta.TASK: np.full(length, task),
    }
    vectors = {column_key(key): values for key, values in content.vectors(span.episode).items()}
    for key, values in bookkeeping.items():
        vectors[key] = values.astype(BOOKKEEPING[key])[:, None]
    counts = {name: lerobot_stats.no_counts(is_depth=content.cameras[name].is_depth) for name in cameras}
    images = {camera_key(name): _counted(content, span, name, counts[name]) for name in cameras}
    lerobot_tables.write_rows(path, lerobot_tables.schema_of(features), vectors, images)
    sampled = len(lerobot_stats.sampled_steps(length))
    stats = {key: lerobot_stats.vector_stats(values) for key, values in vectors.items()}
    return stats | {camera_key(name): lerobot_stats.image_stats(counts[name], sampled) for name in cameras}


def _write_video(
    content: Content, span: EpisodeSpan, camera: str, path: Path, copies: bool, codec: str
) -> tuple[np.ndarray, str, bool]:
    """Write a camera's video of some steps.

    Args:
        copies: copy the source's packets if possible; otherwise encode with the source's codec.

    Returns:
        the counts (3, 256) of pixel values in its sampled images; a digest of the properties that joined videos must
        share; and whether it was copied.
    """
    counts = np.zeros((3, 256), np.int64)
    fps = content.fps
    assert fps is not None
    found = content.chosen.video_frames(span.episode, camera, span.steps) if copies else None
    if found is not None:
        kind = copy_frames(*found, path, fps)
        if kind is not None:
            # Statistics are computed from the copy: its first and last frames are among the samples.
            sampled = sorted(lerobot_stats.sampled_steps(len(span.steps)))
            times = [step / fps for step in sampled]
            for image in frames_at(path, times, fps=fps, describe=lambda number: f"step {sampled[number]}"):
                counts += lerobot_stats.pixel_counts(image)
            return counts, kind, True
        codec = next((name for name in _CODECS if name == codec_name(found[0])), codec)
        smallest = _CODECS[codec].smallest
        size = content.cameras[camera]
        codec = codec if min(size.height, size.width) >= smallest else "av1"
    _encode(_counted(content, span, camera, counts), path, fps, codec)
    return counts, codec, False


def _counted(content: Content, span: EpisodeSpan, camera: str, counts: np.ndarray) -> Iterator[np.ndarray]:
    """A camera's images; pixel values of those sampled by LeRobot are added to `counts` (3, 256)."""
    sampled = lerobot_stats.sampled_steps(content.lengths[span.episode])
    for step, image in zip(span.steps, content.frames(span.episode, camera, span.steps)):
        if step in sampled:
            counts += lerobot_stats.pixel_counts(image)
        yield image


def _encode(images: Iterable[np.ndarray], file: Path | io.BytesIO, fps: float, codec: str) -> None:
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints errors only
    chosen = _CODECS[codec]
    options = {**_QUALITY, **dict(chosen.options)}
    with VideoWriter(file, fps, chosen.encoder, options, is_streamable=False) as video:
        for image in images:
            video.add(image)


def _encoded_bytes(images: Sequence[np.ndarray], fps: float, codec: str) -> int:
    file = io.BytesIO()
    _encode(images, file, fps, codec)
    return len(file.getvalue())
