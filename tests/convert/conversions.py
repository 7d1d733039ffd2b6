"""What the tests of conversions share: a dataset of smooth images that is computed, and its conversion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import SyntheticSource, synthetic_source

from bimact.convert.content import Content
from bimact.convert.dataset import prepare_conversion
from bimact.convert.writer import Options
from bimact.data.selection import Selection
from bimact.data.source import Camera, Column, Source

NAMES = ("left_waist", "left_gripper", "right_waist", "right_gripper")
COLUMNS = {
    "qpos": Column(4, NAMES),
    "qvel": Column(4),
    "tau": Column(2, dtype="float64"),
    "count": Column(1, dtype="int64"),
    "is_held": Column(1, dtype="bool"),
    "action": Column(4, NAMES),
}
CAMERAS = {"top": Camera(64, 96), "wrist": Camera(32, 48)}


@dataclass(frozen=True, kw_only=True)
class SmoothSource(SyntheticSource):
    """Images that a codec keeps well, and brighter by the step; columns with all that floats can be."""

    def read_columns(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {key: self._column(episode, key) for key in keys}

    def _column(self, episode: int, key: str) -> np.ndarray:
        column = self.columns[key]
        shape = (self.episodes[episode].length, column.size)
        draw = np.random.default_rng([episode, *key.encode()])
        if column.dtype == "bool":
            return draw.random(shape) < 0.5
        if column.dtype == "int64":
            return draw.integers(-(2**62), 2**62, shape)
        values = draw.normal(size=shape).astype(column.dtype)
        values[0, 0], values[-1, -1] = -0.0, np.finfo(column.dtype).smallest_subnormal
        return values

    def frame(self, episode: int, camera: str, step: int) -> np.ndarray:
        size = self.cameras[camera]
        down, right = np.mgrid[0 : size.height, 0 : size.width]
        red = 20 + 40 * (1 + np.sin(down / 9 + len(camera))) + 12 * step
        blue = 200 - 2 * episode - 60 * down / size.height
        return np.stack([red, 100 + 40 * np.cos(right / 11), blue], axis=-1).clip(0, 255).astype(np.uint8)


def smooth_source(path: Path, lengths: Sequence[int] = (5, 8, 3), **changes: Any) -> SmoothSource:
    base = synthetic_source(path, lengths)
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    return SmoothSource(**{**fields, "columns": COLUMNS, "cameras": CAMERAS, **changes})


def converted(source: Source, target: Path, to: str, *, task: str | None = None, **options: Any) -> Path:
    """The folder that a conversion has made."""
    selection = options.pop("selection", Selection())
    content = Content.of(selection.applied_to(source), task)
    prepare_conversion(content, target, to, Options(**{"workers": 2, **options})).run()
    return target


def notes_of(source: Source, target: Path, to: str, **options: Any) -> str:
    """What a conversion would say."""
    content = Content.of(options.pop("selection", Selection()).applied_to(source))
    writer = prepare_conversion(content, target, to, Options(**options)).writer
    return "\n".join([*(f"left out: {what}" for what in writer.left_out()), *writer.notes()])


def images_of(source: Source, camera: str, episode: int) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    return np.stack(list(source.read_frames(episode, camera, range(source.episodes[episode].length))))


def psnr(images: np.ndarray, others: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of images (T, H, W, 3) uint8; infinite if they are equal."""
    error = float(np.mean((images.astype(np.float64) - others.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def same_bits(values: np.ndarray, others: np.ndarray) -> bool:
    """Whether two arrays have the same type, shape and content, with the signs of zeros."""
    return values.dtype == others.dtype and values.shape == others.shape and values.tobytes() == others.tobytes()
