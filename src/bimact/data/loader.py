"""Batches of windows, prefetched by threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import RandomSampler, Sampler

from bimact.data.opening import open_dataset
from bimact.data.windows import Batch, WindowDataset, WindowIndex, in_batches
from bimact.machine import usable_cores

_AHEAD = 4  # prefetched batches per thread


class Loader:
    """Iterates over whole batches of a dataset, in the order of a sampler.

    Reading images releases the GIL, so that threads load as fast as processes. They start immediately, pass batches
    without a copy, and need no shared memory, which is scarce in containers.

    Args:
        dataset: gives a batch for a list of windows.
        batches: the windows of each batch.
        num_workers: loading threads; 0: each batch is loaded on request; None: `default_workers()`.
        pin_memory: put batches into page-locked memory, for CUDA.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        batches: Sampler[list[int]],
        *,
        num_workers: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.num_workers = default_workers() if num_workers is None else num_workers
        self._batches = batches
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        """Batches per iteration, if the sampler has a length."""
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            yield from map(self._load, self._batches)
            return
        coming: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self.num_workers, "loading", _same_gpu() if self._pin_memory else None) as threads:
            try:
                for windows in self._batches:
                    coming.append(threads.submit(self._load, windows))
                    if len(coming) > _AHEAD * self.num_workers:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                for future in coming:
                    future.cancel()

    def _load(self, windows: list[int]) -> Batch:
        obs, actions = self.dataset.__getitems__(windows)
        if not self._pin_memory:
            return obs, actions
        return {name: value.pin_memory() for name, value in obs.items()}, actions.pin_memory()


def _same_gpu() -> Callable[[], None]:
    """Thread initializer that selects this thread's GPU; otherwise page-locked memory would belong to GPU 0."""
    gpu = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(gpu)


def default_workers() -> int:
    """One thread per two cores of this rank, at most four: gathering rows is cheap compared with a step."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(4, usable_cores() // (2 * ranks_here)))


def create_temporal_dataloader(
    dataset_path: str | Path,
    temporal_context: int,
    chunk_size: int,
    batch_size: int,
    shuffle: bool = True,
    *,
    cameras: Sequence[str] | None = None,
    num_workers: int = 0,
    seed: int = 0,
) -> Loader:
    """Batches `obs, actions` over all steps of a dataset, as `ActPolicy` takes them.

    Args:
        dataset_path: the demonstrations.
        temporal_context: T, observations in a sample.
        chunk_size: C, actions in a sample.
        batch_size: B; the last batch may be smaller.
        shuffle: a new order each epoch instead of the order in time.
        cameras: which cameras; None: all.
        num_workers: loading threads; 0: each batch is loaded on request.
        seed: of the order.
    """
    episodes = open_dataset(dataset_path)
    index = WindowIndex.over(episodes, np.arange(len(episodes.lengths)), temporal_context, chunk_size)
    dataset = WindowDataset(episodes, index, cameras)
    shuffled = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
    batches = in_batches(shuffled if shuffle else range(len(dataset)), batch_size)
    return Loader(dataset, batches, num_workers=num_workers)
