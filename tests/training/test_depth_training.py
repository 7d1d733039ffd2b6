"""A policy with a depth camera: the network's input, training, cached features of the colour camera, acting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import tiny_config
from hdf5_files import noise, write_aloha_episode

from bimact.api import load_policy
from bimact.config import EncoderConfig, load_config
from bimact.data.depth import pack_depth
from bimact.encoder.depth import DepthEncoder
from bimact.errors import UserError
from bimact.run_directory import read_metrics
from bimact.training.act_trainer import train_run
from bimact.training.prepare import prepare_run

CONV = {"name": "conv", "pretrained": None, "channels": [8, 8], "image_size": [16, 24]}


def test_the_network_sees_the_scaled_distance_and_where_there_is_one() -> None:
    encoder = DepthEncoder(EncoderConfig(**CONV, depth_range=[0.5, 1.5]), None)
    depth = np.array([[0, 500, 1000, 1500, 3000, 100]], np.uint16)
    images = torch.from_numpy(pack_depth(depth)).permute(2, 0, 1)[None]
    distance, is_known = encoder.preprocess(images)[0]
    torch.testing.assert_close(distance[0], torch.tensor([0.0, -1, 0, 1, 1, -1]))
    assert is_known[0].tolist() == [0, 1, 1, 1, 1, 1]


def test_images_are_resized_by_the_nearest_pixel() -> None:
    encoder = DepthEncoder(EncoderConfig(**CONV, crop=[0.0, 0.0, 0.5, 1.0]), (2, 3))
    depth = np.random.default_rng(0).integers(200, 1900, (8, 6)).astype(np.uint16)
    images = torch.from_numpy(pack_depth(depth)).permute(2, 0, 1)[None]
    seen = encoder.preprocess(images)[0, 0]
    metres = (seen + 1) / 2 * (encoder.far - encoder.near) + encoder.near
    assert set((1000 * metres).round().int().flatten().tolist()) <= set(depth[:4].flatten().tolist())


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The action is the distance of a plate that only the depth camera sees."""
    folder = tmp_path_factory.mktemp("depth") / "plates"
    draw = np.random.default_rng(0)
    for episode in range(4):
        distances = draw.uniform(0.3, 1.8, 12)
        columns = {
            "action": np.repeat(distances[:, None], 14, 1).astype(np.float32),
            "observations/qpos": draw.normal(size=(12, 14)).astype(np.float32),
        }
        path = folder / f"episode_{episode}.hdf5"
        write_aloha_episode(path, 12, columns=columns, images={"top": noise(12, (16, 24), episode)})
        with h5py.File(path, "a") as file:
            depth = np.repeat(distances, 16 * 24).reshape(12, 16, 24)
            file["observations/images/top_depth"] = np.rint(1000 * depth).astype(np.uint16)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("fuse", "freeze"), [("tokens", True), ("mean", False)])
def test_a_policy_learns_from_depth_and_acts_on_it(
    fuse: str, freeze: bool, demonstrations: Path, tmp_path: Path
) -> None:
    """Frozen: the colour camera's features are cached beside the depth images. The state and colours are noise."""
    encoder: dict[str, Any] = {**CONV, "fuse": fuse, "freeze": freeze}
    config = tiny_config(
        dataset_dir=str(demonstrations),
        output_dir=str(tmp_path / "run"),
        cameras=["top", "top_depth"],
        encoder=encoder,
        chunk_size=1,
        temporal_context=1,
        num_epochs=30,
        checkpoint_frequency=30,
        lr=2e-3,
        val_split=0.0,
        augment=not freeze,
        mixed_precision="no",
    )
    prepared = prepare_run(config)
    assert prepared.config.depth_cameras == ["top_depth"]
    assert set(prepared.data.episodes.features) == ({"top"} if freeze else set())
    train_run(prepared)
    losses = [
        record["action_loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "action_loss" in record
    ]
    assert losses[-1] < 0.5 * losses[0]
    saved = load_config(tmp_path / "run" / "config.yaml")
    assert saved.depth_cameras == ["top_depth"]

    policy = load_policy(tmp_path / "run", device="cpu")
    assert policy.metadata.interface.depth_cameras == ("top_depth",)
    state, top = np.zeros(14, np.float32), noise(1, (16, 24), 9)[0]
    depth = np.full((16, 24), 700, np.uint16)
    ways = [depth, depth[..., None], depth.astype(np.float32) / 1000, pack_depth(depth)]
    actions = []
    for image in ways:
        policy.reset()
        actions.append(policy.act({"state": state, "image_top": top, "image_top_depth": image}))
    assert all(np.array_equal(action, actions[0]) for action in actions)
    policy.reset()
    far = policy.act({"state": state, "image_top": top, "image_top_depth": np.full((16, 24), 1700, np.uint16)})
    assert (far > actions[0] + 0.2).all()
    with pytest.raises(UserError, match="depth has to be"):
        policy.act({"state": state, "image_top": top, "image_top_depth": depth.astype(np.int64)})


def test_depth_alone_and_a_range_without_a_width_are_refused(demonstrations: Path, tmp_path: Path) -> None:
    config = tiny_config(dataset_dir=str(demonstrations), output_dir=str(tmp_path), cameras=["top_depth"], encoder=CONV)
    with pytest.raises(UserError, match="depth cameras need a colour camera"):
        prepare_run(config)
    with pytest.raises(UserError, match=r"encoder.depth_range is \[2.0, 1.0\]"):
        load_config(None, ["encoder.depth_range=2.0,1.0"])
