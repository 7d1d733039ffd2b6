"""Writes ALOHA's `episode_{i}.hdf5`, as ACT reads them; with `compress`, as ACT++ reads them.

Source: record_sim_episodes.py and utils.py of ACT; compress_data.py and utils.py of ACT++.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from bimact.convert.content import Content, short_names
from bimact.convert.writer import EpisodeSpan, Writer
from bimact.data.selection import ACTION, STATE
from bimact.progress import ProgressBar

_QUALITY = 95  # of JPEG images, from 0 to 100
_QVEL = "qvel"  # ACT's own loader needs it
_BASE = "base_action"  # of Mobile ALOHA's wheels: ACT++ appends it to the action when it loads a file
_BASE_NAMES = ("base_linear_velocity", "base_angular_velocity")
_TAKEN = ("qpos", "images", ACTION)


class AlohaWriter(Writer):
    """Each process writes complete episodes, a file each."""

    format = "ALOHA's episode_{i}.hdf5"

    def check(self) -> None:
        self._extras()
        short_names(self.content.cameras)

    def left_out(self) -> list[str]:
        return [*self.names_left_out(), *super().left_out()]

    def notes(self) -> list[str]:
        content = self.content
        notes = []
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
        if content.depth_cameras:
            depth = ", ".join(content.depth_cameras)
            notes.append(f"depth ({depth}) is beside the images: name only the others to ACT's own loader")
        return notes

    def bytes_needed(self) -> int:
        columns = self.content.column_bytes + 4 * self.content.num_steps * self.content.columns[STATE].size
        files = 10_000 * len(self.content.lengths)
        images = 0
        for name, camera in self.content.cameras.items():
            if self.options.compress and not camera.is_depth:
                images += self.image_bytes([name], _jpeg_bytes)
            else:
                images += self.content.num_steps * camera.height * camera.width * (2 if camera.is_depth else 3)
        return columns + files + images

    def write(self, folder: Path, progress: ProgressBar) -> None:
        jobs = [(self.content, span, self._extras(), self.options.compress, folder) for span in self.whole_episodes()]
        self.run(_write_episode, jobs, progress=progress, images_per_step=len(self.content.cameras))

    def _extras(self) -> dict[str, str]:
        return short_names(self.content.extras, _TAKEN)


def _write_episode(
    content: Content, span: EpisodeSpan, extras: Mapping[str, str], compress: bool, folder: Path
) -> None:
    """Write one episode's file.

    Args:
        extras: key → name of the columns besides state and action.
    """
    vectors = content.vectors(span.episode)
    # float32, or float64 where only that holds all values
    state, action = (
        v.astype(np.result_type(v.dtype, np.float32), copy=False) for v in (vectors[STATE], vectors[ACTION])
    )
    cameras = dict(sorted(short_names(content.cameras).items(), key=lambda item: item[1]))
    with h5py.File(folder / f"episode_{span.episode}.hdf5", "w", rdcc_nbytes=1 << 20) as file:
        file.attrs["sim"] = bool(content.chosen.metadata.get("sim", True))
        if compress:
            file.attrs["compress"] = True
            file.attrs["color_order"] = "bgr"  # for bimact's own reader; ACT++ has no other
        if content.fps is not None:
            file.attrs["fps"] = content.fps
        if content.tasks[span.episode]:
            file.attrs["task"] = content.tasks[span.episode]

        # The velocities of Mobile ALOHA's wheels go back from the action to their own dataset.
        names = content.columns[ACTION].names or ()
        size = action.shape[1] - (len(_BASE_NAMES) if names[-2:] == _BASE_NAMES else 0)
        file["action"] = action[:, :size]
        if size < action.shape[1]:
            file[_BASE] = action[:, size:]

        observations = file.create_group("observations")
        observations["qpos"] = state
        for key, name in extras.items():
            (file if name == _BASE else observations)[name] = vectors[key]
        if _QVEL not in extras.values():
            observations[_QVEL] = np.zeros(state.shape, np.float32)
            observations[_QVEL].attrs["is_placeholder"] = True

        images = observations.create_group("images")
        lengths = []
        for key, name in cameras.items():
            frames, camera = content.frames(span.episode, key, span.steps), content.cameras[key]
            if compress and not camera.is_depth:
                lengths.append(_write_jpegs(images, name, frames, len(span.steps)))
            else:
                shape = (camera.height, camera.width) if camera.is_depth else (camera.height, camera.width, 3)
                dtype = np.uint16 if camera.is_depth else np.uint8
                dataset = images.create_dataset(name, (len(span.steps), *shape), dtype, chunks=(1, *shape))
                for step, image in zip(span.steps, frames):
                    dataset[step] = image
        if compress:
            # ACT++ writes it in HDF5's default type, with a row per colour camera in the order of their names.
            file["compress_len"] = np.array(lengths, np.float32).reshape(len(lengths), len(span.steps))


def _write_jpegs(images: h5py.Group, name: str, frames: Iterator[np.ndarray], steps: int) -> list[int]:
    """Write a camera's JPEG files as rows (T, bytes of the longest), padded with zeros; returns their lengths."""
    lengths: list[int] = []
    dataset: h5py.Dataset | None = None
    for step, image in zip(range(steps), frames):
        encoded = np.frombuffer(_jpeg(image), np.uint8)
        if dataset is None:
            size = len(encoded) * 5 // 4
            dataset = images.create_dataset(name, (steps, size), np.uint8, chunks=(1, size), maxshape=(steps, None))
        if len(encoded) > dataset.shape[1]:
            dataset.resize(len(encoded), axis=1)
        dataset[step, : len(encoded)] = encoded
        lengths.append(len(encoded))
    assert dataset is not None
    dataset.resize(max(lengths), axis=1)
    return lengths


def _jpeg(image: np.ndarray) -> bytes:
    """An image (H, W, 3) RGB as ACT++ encodes it: cv2.imencode takes the first channel for blue."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _jpeg_bytes(frames: Sequence[np.ndarray]) -> int:
    longest = max(len(_jpeg(frame)) for frame in frames)
    return longest * 5 // 4 * len(frames)
