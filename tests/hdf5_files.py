"""Small HDF5 demonstrations of every kind: ALOHA's files of episodes and robomimic's files of demonstrations."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

WARM, COLD, GREY = (200, 90, 20), (20, 90, 200), (90, 90, 90)


def scene(size: tuple[int, int], step: int, color: tuple[int, int, int] = WARM) -> np.ndarray:
    """(H, W, 3) uint8: a coloured rectangle on grey, which JPEG keeps; it tells the step by its brightness."""
    image = np.full((*size, 3), 60 + step % 100, np.uint8)
    image[size[0] // 4 : 3 * size[0] // 4, size[1] // 4 : 3 * size[1] // 4] = color
    return image


def noise(length: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (length, *size, 3), dtype=np.uint8)


def vectors(length: int, size: int, seed: int) -> np.ndarray:
    """(T, size) float32."""
    return np.random.default_rng(seed).normal(size=(length, size)).astype(np.float32)


def jpeg(image: np.ndarray, *, swapped: bool = False) -> bytes:
    """A JPEG file; `swapped`: as cv2.imencode makes it of an RGB array, which it takes for BGR."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., ::-1]) if swapped else image).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_jpegs(group: h5py.Group, name: str, files: Sequence[bytes], kind: str = "rows") -> None:
    """Write JPEG files as ACT++ does, as "rows" padded with zeros, or as byte "strings"."""
    longest = max(len(file) for file in files)
    if kind == "strings":
        group.create_dataset(name, data=np.array(files, f"S{longest}"))
        return
    rows = np.zeros((len(files), longest), np.uint8)
    for row, file in zip(rows, files, strict=True):
        row[: len(file)] = np.frombuffer(file, np.uint8)
    group.create_dataset(name, data=rows, chunks=(1, longest))


def aloha_columns(length: int, *, size: int = 14, seed: int = 0, base: bool = False) -> dict[str, np.ndarray]:
    """What the arms and, with `base`, the wheels record: path in the file → (T, D)."""
    columns = {
        "action": vectors(length, size, seed),
        "observations/qpos": vectors(length, size, seed + 1),
        "observations/qvel": vectors(length, size, seed + 2),
        "observations/effort": vectors(length, size, seed + 3),
    }
    return columns | ({"base_action": vectors(length, 2, seed + 4)} if base else {})


def write_aloha_episode(
    path: Path,
    length: int = 6,
    *,
    columns: Mapping[str, Any] | None = None,
    images: Mapping[str, Any] | None = None,
    jpegs: str | None = None,
    swapped: bool = False,
    attributes: Mapping[str, Any] | None = None,
    seed: int = 0,
    **storage: Any,
) -> Path:
    """Write one episode.

    Args:
        columns: path in the file → (T, D); None: those of `aloha_columns`.
        images: camera → (T, H, W, 3); None: two cameras, of noise or, for JPEG files, of coloured rectangles.
        jpegs: "rows" or "strings": how JPEG files are stored; None: images as they are.
        swapped: JPEG files have red and blue swapped.
        attributes: of the file, besides `sim` and `compress`.
        storage: more arguments for h5py's `create_dataset` of images that are stored as they are.
    """
    columns = aloha_columns(length, seed=seed) if columns is None else columns
    if images is None and jpegs is None:
        images = {name: noise(length, (16, 24), seed + number) for number, name in enumerate(("left_wrist", "top"))}
    elif images is None:
        images = {name: [scene((32, 48), step) for step in range(length)] for name in ("left_wrist", "top")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        file.attrs.update(attributes or {})
        for name, values in columns.items():
            file[name] = values
        group = file.require_group("observations/images")
        for camera, frames in images.items():
            if jpegs is None:
                frames = np.asarray(frames)
                chunks = (1, *frames.shape[1:]) if len(frames) else None
                group.create_dataset(camera, data=frames, **{"chunks": chunks, **storage})
            else:
                write_jpegs(group, camera, [jpeg(image, swapped=swapped) for image in frames], jpegs)
        if jpegs is not None:
            file.attrs["compress"] = True
            lengths = [[len(jpeg(image, swapped=swapped)) for image in frames] for frames in images.values()]
            file["compress_len"] = np.array(lengths, np.float32)
    return path


def write_aloha(folder: Path, lengths: Sequence[int] = (6, 4), **episode: Any) -> Path:
    """A folder of episodes; `episode` are arguments of `write_aloha_episode`."""
    for number, length in enumerate(lengths):
        write_aloha_episode(folder / f"episode_{number}.hdf5", length, **{"seed": 10 * number, **episode})
    return folder


def robomimic_demo(
    length: int, *, arms: Sequence[str] = ("robot0_", "robot1_"), seed: int = 0
) -> dict[str, np.ndarray]:
    """What one demonstration holds: path in its group → (T, ...)."""
    observations = {}
    for number, arm in enumerate(arms):
        for part, size in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2), ("joint_vel", 7)):
            observations[f"obs/{arm}{part}"] = vectors(length, size, seed + 10 * number + size)
    return {
        "actions": vectors(length, 7 * len(arms), seed),
        "states": vectors(length, 30, seed + 1).astype(np.float64),
        "rewards": np.zeros(length),
        "dones": np.zeros(length, np.int64),
        **observations,
        "obs/object": vectors(length, 10, seed + 2),
        "obs/agentview_image": noise(length, (16, 24), seed),
        "obs/robot0_eye_in_hand_image": noise(length, (12, 12), seed + 1),
        "next_obs/object": vectors(length, 10, seed + 3),
    }


def write_robomimic(
    path: Path,
    lengths: Sequence[int] = (5, 7, 3),
    demos: Sequence[Mapping[str, np.ndarray]] | None = None,
    *,
    env_args: Any = None,
    masks: Mapping[str, Sequence[str]] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Write demonstrations.

    Args:
        demos: path in each one's group → (T, ...); None: those of `robomimic_demo`.
        env_args: text of the attribute, or what its JSON holds; None: a two-armed task at 20 steps a second.
        masks: filter key → demonstrations.
        attributes: of each demonstration.
    """
    default = {
        "env_name": "TwoArmTransport",
        "type": 1,
        "env_kwargs": {"control_freq": 20, "robots": ["Panda", "Panda"]},
    }
    env_args = default if env_args is None else env_args
    demos = (
        [robomimic_demo(length, seed=100 * number) for number, length in enumerate(lengths)] if demos is None else demos
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(len(demo["actions"]) for demo in demos)
        data.attrs["env_args"] = env_args if isinstance(env_args, str) else json.dumps(env_args)
        for number, demo in enumerate(demos):
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = len(demo["actions"])
            group.attrs["model_file"] = "<mujoco/>"
            group.attrs.update(attributes or {})
            for name, values in demo.items():
                group[name] = values
        for name, members in (masks or {}).items():
            file[f"mask/{name}"] = np.array(members, "S")
    return path


def mutated(content: bytes, seed: int) -> bytes:
    """A file with some bytes changed, most of them where HDF5 keeps its tables, or cut off."""
    draw = random.Random(seed)
    if seed % 8 == 0:
        return content[: draw.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(draw.choice([1, 2, 8])):
        at = draw.randrange(len(changed) if draw.random() < 0.3 else 6000)
        changed[at] = draw.choice([0, 255, changed[at] ^ (1 << draw.randrange(8)), draw.randrange(256)])
    return bytes(changed)
