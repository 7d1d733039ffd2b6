"""What tests share: small datasets and small policies."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser, find_chromium

from bimact.config import Config, to_config
from bimact.data.formats.guide_npy import observation_dtype

# The compiler of PyTorch and the renderer of the simulation each bring an LLVM; the process survives this order alone.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401
torch.set_num_threads(1)  # small models: threads would only wait for each other
# Background jobs of a shell ignore Ctrl-C, those of nohup lost terminals: not so the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def write_dataset(
    folder: Path, lengths: list[int], *, size: tuple[int, int] = (16, 24), seed: int = 0, dim: int = 14
) -> Path:
    """A dataset in the guide's form whose actions can be learned from its states."""
    draw = np.random.default_rng(seed)
    total = sum(lengths)
    folder.mkdir(parents=True, exist_ok=True)
    observations = np.zeros(total, observation_dtype({"left": size, "right": size}, dim))
    phase = np.concatenate([np.linspace(0, 3, length) for length in lengths])[:, None]
    observations["state"] = np.sin(phase + np.arange(dim)) + 0.01 * draw.normal(size=(total, dim))
    for camera in ("image_left", "image_right"):
        observations[camera] = draw.integers(0, 256, (total, *size, 3))
    np.save(folder / "observations.npy", observations)
    np.save(folder / "actions.npy", np.cos(phase + np.arange(dim)).astype(np.float32))
    np.save(folder / "rollout_length.npy", np.array(lengths, dtype=np.int64))
    (folder / "metadata.json").write_text(json.dumps({"fps": 50}))
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset", [9, 12, 7, 10])


def tiny_config(**changes: Any) -> Config:
    """A policy that trains in a moment."""
    encoder = {"name": "conv", "pretrained": None, "freeze": False, "fuse": "tokens", "channels": [8, 8]}
    settings: dict[str, Any] = {
        "temporal_context": 2,
        "chunk_size": 5,
        "hidden_dim": 16,
        "nheads": 2,
        "dim_feedforward": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 4,
        "batch_size": 4,
        "val_split": 0.25,
        "lr": 1e-3,
        "num_epochs": 2,
        "checkpoint_frequency": 1,
        "log_frequency": 2,
        "num_workers": 0,
        "device": "cpu",
        "tensorboard": False,
        "encoder": {**encoder, **changes.pop("encoder", {})},
    }
    return to_config({**settings, **changes})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.close()
