"""Writes ALOHA's `episode_{i}.hdf5`, as ACT reads them; with `compress`, as ACT++ reads them.

Source: record_sim_episodes.py and utils.py of ACT; compress_data.py and utils.py of ACT++.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from bimact.convert.content import Content, short_names
from bimact.convert.writer import EpisodeSpan, Writer
from bimact.data.selection import ACTION, STATE
from bimact.data.source import Camera
from bimact.progress import ProgressBar

_QUALITY = 95  # of JPEG images, from 0 to 100
_QVEL = "qvel"  # ACT's own loader needs it
_BASE = "base_action"  # of Mobile ALOHA's wheels: ACT++ joins it to the action when it loads a file
_BASE_NAMES = ("base_linear_velocity", "base_angular_velocity")
_TAKEN = ("qpos", "images", ACTION)


class AlohaWriter(Writer):
    """Each process writes a whole episode, which is a file."""

    format = "ALOHA's episode_{i}.hdf5"

    def check(self) -> None:
        self._extras()
        short_names(self.content.cameras)

    def notes(self) -> list[str]:
        content = self.content
        notes = self.names_left_out()
        if _QVEL not in self._extras().values():
            notes.append("the dataset has no joint velocities: /observations/qvel is zero, for ACT's own loader")
        if "sim" not in content.chosen.metadata:
            notes.append(
                "attribute sim is true, simulated or not: with it, ACT's own loader pairs each step's action with that "
                "step's observation"
            )
        if len({(camera.height, camera.width) for camera in content.cameras.values()}) > 1:
            notes.append("the cameras differ in size, which ACT's own loader cannot take: choose some by --cameras")
        if len(set(content.lengths)) > 1:
            notes.append("the episodes differ in length, which ACT's own loader cannot batch; that of ACT++ can")
        if self.options.compress:
            notes.append(f"images are JPEG of quality {_QUALITY}, red and blue swapped as ACT++ stores and reads them")
        return notes

    def bytes_needed(self) -> int:
        columns = self.content.column_bytes + 4 * self.content.num_steps * self.content.columns[STATE].size
        files = 10_000 * len(self.content.lengths)
        if self.options.compress:
            return columns + files + self.image_bytes(self.content.cameras, _jpeg_bytes)
        pixels = sum(camera.height * camera.width for camera in self.content.cameras.values())
        return columns + files + self.content.num_steps * pixels * 3

    def write(self, folder: Path, progress: ProgressBar) -> None:
        jobs = [(self.content, part, self._extras(), self.options.compress, folder) for part in self.whole_episodes()]
        self.run(_write_episode, jobs, progress=progress, images_a_step=len(self.content.cameras))

    def _extras(self) -> dict[str, str]:
        return short_names(self.content.extras, _TAKEN)


def _write_episode(
    content: Content, part: EpisodeSpan, extras: Mapping[str, str], compress: bool, folder: Path
) -> None:
    """Write one episode's file.

    Args:
        extras: key → name of the columns besides state and action.
    """
    vectors = content.vectors(part.episode)
    cameras = dict(sorted(short_names(content.cameras).items(), key=lambda item: item[1]))
    with h5py.File(folder / f"episode_{part.episode}.hdf5", "w", rdcc_nbytes=1 << 20) as file:
        _write_attributes(file, content, part.episode, compress)
        observations = file.create_group("observations")
        observations["qpos"] = _as_float(vectors[STATE])
        _write_action(file, content, _as_float(vectors[ACTION]))
        for key, name in extras.items():
            (file if name == _BASE else observations)[name] = vectors[key]
        if _QVEL not in extras.values():
            observations[_QVEL] = np.zeros(vectors[STATE].shape, np.float32)
            observations[_QVEL].attrs["is_placeholder"] = True
        images = observations.create_group("images")
        if compress:
            lengths = [_write_jpegs(images, name, content, part, key) for key, name in cameras.items()]
            # ACT++ makes it with HDF5's own type; a row for each camera in the order of their names.
            file["compress_len"] = np.array(lengths, np.float32).reshape(len(cameras), len(part.steps))
        else:
            for key, name in cameras.items():
                _write_images(images, name, content, part, key)


def _write_action(file: h5py.File, content: Content, action: np.ndarray) -> None:
    """Write the action; the velocities of Mobile ALOHA's wheels in it go where they came from."""
    names = content.columns[ACTION].names or ()
    size = action.shape[1] - (len(_BASE_NAMES) if names[-2:] == _BASE_NAMES else 0)
    file["action"] = action[:, :size]
    if size < action.shape[1]:
        file[_BASE] = action[:, size:]


def _write_attributes(file: h5py.File, content: Content, episode: int, compress: bool) -> None:
    file.attrs["sim"] = bool(content.chosen.metadata.get("sim", True))
    if compress:
        file.attrs["compress"] = True
        file.attrs["color_order"] = "bgr"  # for bimact's own reader; ACT++ knows no other
    if content.fps is not None:
        file.attrs["fps"] = content.fps
    if content.tasks[episode]:
        file.attrs["task"] = content.tasks[episode]


def _as_float(values: np.ndarray) -> np.ndarray:
    """float32, or float64 where that alone holds all values."""
    return values.astype(np.result_type(values.dtype, np.float32), copy=False)


def _shape(camera: Camera) -> tuple[int, int, int]:
    return camera.height, camera.width, 3


def _write_images(images: h5py.Group, name: str, content: Content, part: EpisodeSpan, key: str) -> None:
    shape = _shape(content.cameras[key])
    dataset = images.create_dataset(name, (len(part.steps), *shape), np.uint8, chunks=(1, *shape))
    for step, image in zip(part.steps, content.frames(part.episode, key, part.steps)):
        dataset[step] = image


def _write_jpegs(images: h5py.Group, name: str, content: Content, part: EpisodeSpan, key: str) -> list[int]:
    """Write one camera's JPEG files as rows (T, bytes of the longest), padded with zeros; gives their lengths."""
    lengths: list[int] = []
    dataset: h5py.Dataset | None = None
    for step, image in zip(part.steps, content.frames(part.episode, key, part.steps)):
        encoded = np.frombuffer(_jpeg(image), np.uint8)
        if dataset is None:
            room = len(encoded) * 5 // 4
            dataset = images.create_dataset(
                name, (len(part.steps), room), np.uint8, chunks=(1, room), maxshape=(len(part.steps), None)
            )
        if len(encoded) > dataset.shape[1]:
            dataset.resize(len(encoded), axis=1)
        dataset[step, : len(encoded)] = encoded
        lengths.append(len(encoded))
    assert dataset is not None
    dataset.resize(max(lengths), axis=1)
    return lengths


def _jpeg(image: np.ndarray) -> bytes:
    """A JPEG file of an image (H, W, 3) RGB as ACT++ makes it: cv2.imencode takes the first channel for blue."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _jpeg_bytes(frames: Sequence[np.ndarray]) -> int:
    longest = max(len(_jpeg(frame)) for frame in frames)
    return longest * 5 // 4 * len(frames)
