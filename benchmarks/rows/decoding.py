"""Decoding a dataset into the copy that training reads: two cores against one, and the memory that it takes."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
from measuring import Figure, Row, ratios
from recordings import lerobot

ROUNDS, IMAGE_SIZE = 3, (224, 224)


def convert(dataset: str, cores: int) -> tuple[float, float]:
    """In a process of its own: (images per second, GB that it and its children have at most)."""
    os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:cores]))
    from bimact.data.cached_copy import cached_copy
    from bimact.data.opening import open_source
    from bimact.data.selection import Selection

    source = Selection().applied_to(open_source(dataset))
    memory = [0.0]
    threading.Thread(target=_watch_memory, args=(memory,), daemon=True).start()
    with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        cached_copy(source, Path(cache), IMAGE_SIZE)
        return source.num_steps * len(source.cameras) / (time.perf_counter() - began), memory[0]


def _watch_memory(highest: list[float]) -> None:
    """Pages of files that are mapped or being written are not counted: the system takes them back as it likes."""
    while True:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        total = 0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().uss
        highest[0] = max(highest[0], total / 1e9)
        time.sleep(0.05)


def decoding() -> Row:
    dataset = str(lerobot())
    context = multiprocessing.get_context("spawn")
    results: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for cores in results:
            with ProcessPoolExecutor(1, context) as pool:
                results[cores].append(pool.submit(convert, dataset, cores).result())
    one, two = ([rate for rate, _ in results[cores]] for cores in results)
    memory = max(memory for _, memory in results[2])
    return Row(
        "decoding a LeRobotDataset once for training (480×640 AV1 to 224×224): images per second, two cores / one",
        ratios(two, one),
        "≥ 1.6",
        [f"{Figure.of(one)} and {Figure.of(two)} images/s; at most {memory:.2f} GB of memory"],
    )
