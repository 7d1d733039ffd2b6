"""Runs inside an environment with LeRobot: reads a LeRobotDataset that bimact has written, and goes on with it.

`python lerobot_dataset.py FOLDER EXPECTED.npz`, where the archive holds what was written: `{episode}/{key}` (T, …) for
each feature, `{episode}/task`, and `fps`. Prints, as JSON, the lowest PSNR of each camera in dB (null: all images are
equal), and raises an error at the first other difference.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from lerobot.datasets.compute_stats import get_feature_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset

try:
    from lerobot.datasets.feature_utils import get_hf_features_from_features
    from lerobot.utils.constants import DEFAULT_FEATURES
except ImportError:  # LeRobot 0.4
    from lerobot.datasets.utils import DEFAULT_FEATURES, get_hf_features_from_features

Expected = dict[int, dict[str, np.ndarray]]


def opened(folder: Path, **settings: Any) -> LeRobotDataset:
    # torchcodec needs FFmpeg's libraries on the system, PyAV brings its own.
    return LeRobotDataset("local/written", root=folder, video_backend="pyav", **settings)


def check_steps(dataset: LeRobotDataset, expected: Expected, fps: float) -> dict[str, float | None]:
    """Compare all steps; gives the lowest PSNR of each camera."""
    assert dataset.fps == fps
    assert dataset.num_episodes == len(expected)
    noise: dict[str, list[float]] = {key: [] for key in dataset.meta.camera_keys}
    index = 0
    for episode, features in expected.items():
        for step in range(len(features["action"])):
            item = dataset[index]
            assert item["index"] == index
            assert (item["episode_index"], item["frame_index"]) == (episode, step)
            assert item["timestamp"] == torch.tensor(step / fps, dtype=torch.float32)
            assert item["task"] == str(features["task"])
            for key in set(features) - {"task"}:
                compare(key, item[key], features[key][step], noise)
            index += 1
    assert index == len(dataset)
    return {key: None if max(errors) == 0 else 10 * np.log10(1 / max(errors)) for key, errors in noise.items()}


def compare(key: str, found: torch.Tensor, expected: np.ndarray, noise: dict[str, list[float]]) -> None:
    if key in noise:
        image = torch.from_numpy(expected).permute(2, 0, 1).float() / 255
        assert found.shape == image.shape
        noise[key].append(float(((found - image) ** 2).mean()))
        return
    values = torch.tensor(expected.tolist())  # as LeRobot does with what it reads: double becomes float
    assert torch.equal(found.reshape(values.shape), values), f"{key}: {found}, expected {values}"


def check_table(dataset: LeRobotDataset, expected: Expected) -> None:
    """Compare what the datasets library reads, which keeps all types."""
    table = dataset.hf_dataset.with_format("arrow")[:]
    for key in dataset.features.keys() - DEFAULT_FEATURES.keys() - set(dataset.meta.camera_keys):
        written = np.concatenate([features[key] for features in expected.values()])
        column = table[key].combine_chunks()
        read = (column.flatten() if hasattr(column, "flatten") else column).to_numpy(zero_copy_only=False)
        assert read.dtype == written.dtype, f"{key}: {read.dtype}, expected {written.dtype}"
        assert read.tobytes() == written.tobytes(), key
    paths = sorted(str(path) for path in (dataset.root / "data").rglob("*.parquet"))
    assert datasets.Dataset.from_parquet(paths).features == get_hf_features_from_features(dataset.features)


def check_stats(dataset: LeRobotDataset, expected: Expected) -> None:
    """Compare the statistics of vectors with those that LeRobot computes; those of images have its shapes."""
    for key, stats in dataset.meta.stats.items():
        if key in dataset.meta.camera_keys:
            assert all(value.shape == ((1,) if name == "count" else (3, 1, 1)) for name, value in stats.items())
            continue
        if key in DEFAULT_FEATURES or dataset.features[key]["dtype"] != "float32":
            continue
        theirs = get_feature_stats(np.concatenate([features[key] for features in expected.values()]), 0, False)
        assert set(stats) == set(theirs)
        for name in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(stats[name], theirs[name], rtol=1e-4, atol=1e-6, err_msg=f"{key} {name}")


def check_chunks(folder: Path, expected: Expected, fps: float) -> None:
    """Ask for action chunks, as a policy's training does."""
    dataset = opened(folder, delta_timestamps={"action": [step / fps for step in range(3)]})
    actions = expected[0]["action"]
    last = dataset[len(actions) - 1]
    assert torch.equal(last["action"], torch.from_numpy(actions[[-1, -1, -1]]))
    assert last["action_is_pad"].tolist() == [False, True, True]


def check_going_on(folder: Path, expected: Expected) -> None:
    """Let LeRobot record one more episode into a copy."""
    copy = folder.with_name("continued")
    shutil.copytree(folder, copy)
    resume = getattr(LeRobotDataset, "resume", None)
    dataset = opened(copy) if resume is None else resume("local/written", root=copy)
    features = expected[0]
    for step in range(len(features["action"])):
        frame = {key: features[key][step] for key in dataset.features if key not in DEFAULT_FEATURES}
        dataset.add_frame({**frame, "task": "another task"})
    dataset.save_episode()
    dataset.finalize()
    again = opened(copy)
    assert again.num_episodes == len(expected) + 1
    assert again[len(again) - 1]["task"] == "another task"
    assert torch.equal(again[len(again) - 1]["action"], torch.from_numpy(features["action"][-1]))


def main(folder: Path, archive: Path) -> None:
    expected: Expected = {}
    with np.load(archive, allow_pickle=False) as content:
        for name in content.files:
            episode, slash, key = name.partition("/")
            if slash:
                expected.setdefault(int(episode), {})[key] = content[name]
        fps = float(content["fps"])
    dataset = opened(folder)
    noise = check_steps(dataset, expected, fps)
    check_table(dataset, expected)
    check_stats(dataset, expected)
    check_chunks(folder, expected, fps)
    if fps.is_integer() or not dataset.meta.video_keys:  # LeRobot encodes videos at whole rates only
        check_going_on(folder, expected)
    print(json.dumps(noise))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
