"""Writes a LeRobotDataset v3.0: tables of steps, episodes and tasks, and each camera's videos.

Every episode is written by itself first, by several processes; then files are joined up to LeRobot's limits of size.

Source: lerobot_dataset.py and utils.py of LeRobot 0.4.4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bimact.convert import lerobot_stats, lerobot_tables, lerobot_video
from bimact.convert.content import Content
from bimact.convert.lerobot_stats import Stats
from bimact.convert.lerobot_tables import BOOKKEEPING, Features
from bimact.convert.writer import EpisodeSpan, Writer
from bimact.data.selection import ACTION, STATE
from bimact.errors import UserError
from bimact.files import write_json
from bimact.progress import ProgressBar

CHUNK = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA_MB, _VIDEO_MB = 100, 200  # LeRobot's limits of a file's size
_FILES_OF_A_CHUNK = 1000
_EPISODES_OF_A_TABLE = 1000
_PARTS = "parts"


class LeRobotWriter(Writer):
    format = "LeRobotDataset v3.0"

    def check(self) -> None:
        if self.content.fps is None:
            raise UserError(
                f"{self.content.chosen.path} does not tell how many steps a second it has, which a LeRobotDataset "
                "needs: say so by --fps N"
            )
        self._features()

    # What it looks like ------------------------------------------------------------------------------

    def notes(self) -> list[str]:
        notes = []
        odd = self._stored_as("image")
        if odd and not self.options.lossless:
            smallest = lerobot_video.CODECS[self._codec].smallest
            notes.append(
                f"PNG images instead of video, which needs an even height and width of at least {smallest} pixels: "
                f"{', '.join(odd)}"
            )
        if "" in self.content.tasks:
            count = self.content.tasks.count("")
            notes.append(f"{count} episode{'s have' if count > 1 else ' has'} no task in words: name it by --task")
        return notes

    def bytes_needed(self) -> int:
        rows = self.content.column_bytes + 36 * self.content.num_steps
        meta = 80_000 + 5_000 * len(self.content.lengths)
        images = self.image_bytes(self._stored_as("image"), lerobot_tables.png_bytes)
        videos = self.image_bytes(self._stored_as("video"), lerobot_video.encoded_bytes, self.content.fps, self._codec)
        return rows + meta + images + videos

    @property
    def _codec(self) -> str:
        return self.options.codec or "av1"

    def _kinds(self) -> dict[str, str]:
        """Camera → "video" or "image"."""
        return {
            name: "video" if lerobot_video.fits_video(camera, self._codec) and not self.options.lossless else "image"
            for name, camera in self.content.cameras.items()
        }

    def _stored_as(self, kind: str) -> list[str]:
        return [name for name, its_kind in self._kinds().items() if its_kind == kind]

    def _features(self) -> dict[str, dict[str, Any]]:
        """Of meta/info.json, without what is known of videos only when they are there."""
        kinds = self._kinds()
        cameras: dict[str, dict[str, Any]] = {
            camera_key(name): {
                "dtype": kinds[name],
                "shape": [camera.height, camera.width, 3],
                "names": ["height", "width", "channels"],
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
        expected = len(cameras) + len(self.content.columns) + len(bookkeeping)
        features = {**cameras, **columns, **bookkeeping}
        if len(features) < expected:
            raise UserError(
                f"two columns or cameras of {self.content.chosen.path} would have the same key in a LeRobotDataset, "
                f"which has {', '.join(features)}: rename one"
            )
        return features

    # Writing -----------------------------------------------------------------------------------------

    def write(self, folder: Path, progress: ProgressBar) -> None:
        features = self._features()
        tasks = list(dict.fromkeys(self.content.tasks))
        (folder / _PARTS).mkdir()
        stats = self._write_steps(folder, features, tasks, progress)
        videos = self._write_videos(folder, stats, progress)
        rows: list[dict[str, Any]] = [
            {"episode_index": number, "tasks": [self.content.tasks[number]], "length": length}
            for number, length in enumerate(self.content.lengths)
        ]
        progress.advance(0, "joining files")
        self._join_tables(folder, features, rows)
        self._join_videos(folder, features, rows, videos)
        (folder / _PARTS).rmdir()
        self._write_meta(folder, features, tasks, rows, stats)

    def _write_steps(
        self, folder: Path, features: Features, tasks: Sequence[str], progress: ProgressBar
    ) -> list[dict[str, Stats]]:
        """A table for each episode; gives the statistics of each."""
        images = self._stored_as("image")
        numbers = [tasks.index(task) for task in self.content.tasks]
        jobs = [
            (self.content, part, folder / _PARTS, features, numbers[part.episode], images)
            for part in self.whole_episodes()
        ]
        stats: list[dict[str, Stats]] = [{} for _ in jobs]
        self.run(_write_episode, jobs, stats.__setitem__, progress=progress, images_a_step=len(images))
        return stats

    def _write_videos(
        self, folder: Path, stats: list[dict[str, Stats]], progress: ProgressBar
    ) -> dict[str, list[tuple[EpisodeSpan, Path]]]:
        """A video for each part of an episode; adds to the statistics; gives the files of each camera."""
        cameras = self._stored_as("video")
        jobs = [
            (
                self.content,
                part,
                name,
                folder / _PARTS / f"{number}-{part.episode:06d}-{part.first:09d}.mp4",
                self._codec,
            )
            for number, name in enumerate(cameras)
            for part in self.parts()
        ]
        counts: dict[tuple[int, str], np.ndarray] = defaultdict(lambda: np.zeros((3, 256), np.int64))

        def count(number: int, found: np.ndarray) -> None:
            counts[jobs[number][1].episode, jobs[number][2]] += found

        self.run(_write_video, jobs, count, progress=progress)
        for (episode, name), found in counts.items():
            images = len(lerobot_stats.sampled_steps(self.content.lengths[episode]))
            stats[episode][camera_key(name)] = lerobot_stats.image_stats(found, images)
        return {name: [(job[1], job[3]) for job in jobs if job[2] == name] for name in cameras}

    # Joining -----------------------------------------------------------------------------------------

    def _join_tables(self, folder: Path, features: Features, rows: list[dict[str, Any]]) -> None:
        parts = [_table_part(folder / _PARTS, row["episode_index"]) for row in rows]
        files = _filled([part.stat().st_size for part in parts], _DATA_MB)
        for number, episodes in enumerate(files):
            path = _made(folder / "data", number, ".parquet")
            lerobot_tables.join([parts[episode] for episode in episodes], path, lerobot_tables.schema_of(features))
            for episode in episodes:
                start = self.content.starts[episode]
                rows[episode] |= {**_place("data", number), "dataset_from_index": start}
                rows[episode]["dataset_to_index"] = start + rows[episode]["length"]

    def _join_videos(
        self,
        folder: Path,
        features: dict[str, dict[str, Any]],
        rows: list[dict[str, Any]],
        videos: Mapping[str, list[tuple[EpisodeSpan, Path]]],
    ) -> None:
        assert self.content.fps is not None
        for name, parts in videos.items():
            key = camera_key(name)
            of_episode: dict[int, list[tuple[Path, int]]] = defaultdict(list)
            for part, path in parts:
                of_episode[part.episode].append((path, len(part.steps)))
            sizes = [sum(path.stat().st_size for path, _ in of_episode[row["episode_index"]]) for row in rows]
            for number, episodes in enumerate(_filled(sizes, _VIDEO_MB)):
                path = _made(folder / "videos" / key, number, ".mp4")
                joined = [part for episode in episodes for part in of_episode[episode]]
                lerobot_video.join(joined, path, self.content.fps)
                before = 0
                for episode in episodes:
                    after = before + rows[episode]["length"]
                    rows[episode] |= {
                        **_place(f"videos/{key}", number),
                        f"videos/{key}/from_timestamp": before / self.content.fps,
                        f"videos/{key}/to_timestamp": after / self.content.fps,
                    }
                    before = after
        for name in videos:
            key = camera_key(name)
            first = folder / "videos" / key / f"{CHUNK.format(chunk_index=0, file_index=0)}.mp4"
            features[key]["info"] = lerobot_video.video_info(first, self.content.fps)

    # Metadata ----------------------------------------------------------------------------------------

    def _write_meta(
        self,
        folder: Path,
        features: Features,
        tasks: Sequence[str],
        rows: list[dict[str, Any]],
        stats: list[dict[str, Stats]],
    ) -> None:
        ordered = [{key: found[key] for key in features} for found in stats]
        for row, found in zip(rows, ordered):
            row |= {f"stats/{key}/{name}": value for key, part in found.items() for name, value in part.items()}
        for number, first in enumerate(range(0, len(rows), _EPISODES_OF_A_TABLE)):
            some = [row | _place("meta/episodes", number) for row in rows[first : first + _EPISODES_OF_A_TABLE]]
            lerobot_tables.write_episodes(_made(folder / "meta" / "episodes", number, ".parquet"), some)
        lerobot_tables.write_tasks(folder / "meta" / "tasks.parquet", tasks)
        total = {key: lerobot_stats.combined([found[key] for found in ordered]) for key in features}
        plain = {key: {name: value.tolist() for name, value in found.items()} for key, found in total.items()}
        write_json(folder / "meta" / "stats.json", plain)
        write_json(folder / "meta" / "info.json", self._info(features, len(tasks)))

    def _info(self, features: Features, tasks: int) -> dict[str, Any]:
        content = self.content
        assert content.fps is not None
        has_video = any(feature["dtype"] == "video" for feature in features.values())
        return {
            "codebase_version": "v3.0",
            "robot_type": content.chosen.metadata.get("robot_type"),
            "total_episodes": len(content.lengths),
            "total_frames": content.num_steps,
            "total_tasks": tasks,
            "chunks_size": _FILES_OF_A_CHUNK,
            "data_files_size_in_mb": _DATA_MB,
            "video_files_size_in_mb": _VIDEO_MB,
            "fps": int(content.fps) if content.fps.is_integer() else content.fps,
            "splits": {"train": f"0:{len(content.lengths)}"},
            "data_path": f"data/{CHUNK}.parquet",
            "video_path": f"videos/{{video_key}}/{CHUNK}.mp4" if has_video else None,
            "features": features,
        }


# Names -------------------------------------------------------------------------------------------------


def camera_key(name: str) -> str:
    return name if name.startswith("observation.") else f"observation.images.{name}"


def column_key(key: str) -> str:
    """The key of a column; those that a LeRobotDataset had already stay."""
    if key == STATE:
        return "observation.state"
    plain = key.removeprefix("observations/").removeprefix("obs/").replace("/", ".")
    if plain == ACTION or plain.startswith(("observation.", "next.", "action.", "info.")) or "action" in plain:
        return plain
    return f"observation.{plain}"


def _place(of: str, number: int) -> dict[str, int]:
    """Where the file of some number lies: two columns of the table of episodes."""
    return {f"{of}/chunk_index": number // _FILES_OF_A_CHUNK, f"{of}/file_index": number % _FILES_OF_A_CHUNK}


def _made(folder: Path, number: int, suffix: str) -> Path:
    """The path of the file of some number, whose folder is made."""
    chunk, file = divmod(number, _FILES_OF_A_CHUNK)
    path = folder / (CHUNK.format(chunk_index=chunk, file_index=file) + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _table_part(folder: Path, episode: int) -> Path:
    return folder / f"{episode:06d}.parquet"


def _filled(sizes: Sequence[int], limit_mb: int) -> Iterator[list[int]]:
    """Which episodes go into each file: as many as stay below a limit of size, at least one."""
    file: list[int] = []
    size = 0
    for number, part in enumerate(sizes):
        if file and size + part >= limit_mb << 20:
            yield file
            file, size = [], 0
        file.append(number)
        size += part
    yield file


# In child processes --------------------------------------------------------------------------------------


def _write_episode(
    content: Content, part: EpisodeSpan, folder: Path, features: Features, task: int, images: Sequence[str]
) -> dict[str, Stats]:
    """Write one episode's table; gives the statistics of what is in it."""
    length, start = len(part.steps), content.starts[part.episode]
    steps = np.arange(length)
    assert content.fps is not None
    bookkeeping = {
        "timestamp": steps / content.fps,
        "frame_index": steps,
        "episode_index": np.full(length, part.episode),
        "index": steps + start,
        "task_index": np.full(length, task),
    }
    vectors = {column_key(key): values for key, values in content.vectors(part.episode).items()}
    for key, values in bookkeeping.items():
        vectors[key] = values.astype(BOOKKEEPING[key])[:, None]
    sampled, counts = lerobot_stats.sampled_steps(length), {name: np.zeros((3, 256), np.int64) for name in images}

    def counted(name: str) -> Iterator[np.ndarray]:
        for step, image in zip(part.steps, content.frames(part.episode, name, part.steps)):
            if step in sampled:
                counts[name] += lerobot_stats.pixel_counts(image)
            yield image

    schema: pa.Schema = lerobot_tables.schema_of(features)
    frames = {camera_key(name): counted(name) for name in images}
    lerobot_tables.write_rows(_table_part(folder, part.episode), schema, vectors, frames)
    stats = {key: lerobot_stats.vector_stats(values) for key, values in vectors.items()}
    return stats | {camera_key(name): lerobot_stats.image_stats(counts[name], len(sampled)) for name in images}


def _write_video(content: Content, part: EpisodeSpan, camera: str, path: Path, codec: str) -> np.ndarray:
    """Write one camera's video of some steps; gives the counts (3, 256) of pixel values in its sampled images."""
    sampled = lerobot_stats.sampled_steps(content.lengths[part.episode])
    counts = np.zeros((3, 256), np.int64)

    def counted() -> Iterator[np.ndarray]:
        for step, image in zip(part.steps, content.frames(part.episode, camera, part.steps)):
            if step in sampled:
                counts[:] += lerobot_stats.pixel_counts(image)
            yield image

    assert content.fps is not None
    lerobot_video.encode(counted(), path, content.cameras[camera], content.fps, codec)
    return counts
