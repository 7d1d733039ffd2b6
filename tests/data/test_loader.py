"""Loaders give each sample once, in their order, whoever loads it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from guide_files import write_dataset
from test_windows import episodes_of

from bimact.data.loader import Loader, create_temporal_dataloader
from bimact.data.opening import open_dataset
from bimact.data.training_order import TrainingOrder
from bimact.data.windows import WindowDataset, WindowIndex, in_batches
from bimact.errors import UserError


def dataset_of(lengths: list[int]) -> WindowDataset:
    episodes = episodes_of(lengths)
    return WindowDataset(episodes, WindowIndex.over(episodes, np.arange(len(lengths)), 1, 2))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_loader_sees_each_sample_once_and_can_begin_in_the_middle(workers: int) -> None:
    episodes = episodes_of([5, 8, 4])
    dataset = WindowDataset(episodes, WindowIndex.over(episodes, np.arange(3), 1, 2))
    order = TrainingOrder(dataset.index, 4, seed=3)
    loader = Loader(dataset, order, num_workers=workers)

    def seen() -> list[int]:
        return [int(row) for obs, _ in loader for row in obs["state"][:, 0, 0]]

    first = seen()
    assert sorted(first) == list(range(17)) and first != sorted(first)
    assert seen() == first
    order.done = 8
    assert seen() == first[8:]
    order.done, order.epoch = 0, 1
    assert sorted(seen()) == list(range(17)) and seen() != first


def test_guide_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bimact.data.loader.open_dataset", lambda path: episodes_of([3, 4]))
    loader = create_temporal_dataloader(
        dataset_path="somewhere", temporal_context=3, chunk_size=5, batch_size=2, shuffle=False
    )
    batches = list(loader)
    assert [len(actions) for _, actions in batches] == [2, 2, 2, 1]
    assert batches[0][0]["image_left"].shape == (2, 3, 3, 2, 4)
    assert torch.cat([actions[:, 0, 0] for _, actions in batches]).tolist() == list(range(7))
    shuffled = create_temporal_dataloader("somewhere", 1, 1, 7, shuffle=True)
    assert sorted(next(iter(shuffled))[1][:, 0, 0].tolist()) == list(range(7))


def test_batches_are_loaded_ahead_but_not_without_end() -> None:
    dataset, asked = dataset_of([60]), []
    load = dataset.__getitems__
    dataset.__getitems__ = lambda windows: asked.append(windows) or load(windows)  # type: ignore[method-assign]
    batches = iter(Loader(dataset, in_batches(range(60), 2), num_workers=1))
    next(batches)
    time.sleep(0.2)
    assert 2 <= len(asked) <= 6


def test_a_loader_that_is_left_ends_its_threads() -> None:
    batches = iter(Loader(dataset_of([60]), in_batches(range(60), 2), num_workers=2))
    next(batches)
    assert any(thread.name.startswith("loading") for thread in threading.enumerate())
    del batches
    assert not any(thread.name.startswith("loading") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_arrive_as_they_are(tmp_path: Path, workers: int) -> None:
    folder = write_dataset(tmp_path / "dataset", [9], size=(40, 40))
    episodes = open_dataset(folder)
    dataset = WindowDataset(episodes, WindowIndex.over(episodes, np.arange(1), 1, 2), ["left"])
    loader = Loader(dataset, in_batches(range(9), 3), num_workers=workers)
    assert len(loader) == len(list(loader)) == 3
    with (folder / "observations.npy").open("r+b") as file:
        file.truncate(9000)
    with pytest.raises(UserError, match=r"observations\.npy has become shorter since it was opened"):
        list(loader)
