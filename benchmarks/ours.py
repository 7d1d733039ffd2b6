"""bimact's side of a comparison: training steps, chunks or batches, as many as are asked for."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from answering import serve
from measuring import synchronize
from policies import GUIDE
from torch.utils.flop_counter import FlopCounterMode

from bimact.config import Config, load_config
from bimact.data.loader import Loader
from bimact.data.windows import Batch, WindowDataset, WindowIndex, split_episodes
from bimact.device import precision_dtype
from bimact.machine import keep_freed_memory
from bimact.policy.act import ActPolicy
from bimact.policy.inference import Policy
from bimact.policy.transformer import TransformerEncoder
from bimact.training.act_trainer import ActTrainer
from bimact.training.demonstrations import fill_from_dataset, open_demonstrations
from bimact.training.prepare import prepare_run

Work = Callable[..., dict[str, Any]]


def make(kind: str, overrides: list[str], **settings: Any) -> tuple[dict[str, Any], Work]:
    output = Path(tempfile.mkdtemp(prefix="bimact-benchmark-"))
    config = load_config(GUIDE, [*overrides, f"output_dir={output / 'run'}"])
    return {"train": _train, "act": _act, "load": _load}[kind](config, **settings)


def _train(config: Config, counts_flop: bool = True) -> tuple[dict[str, Any], Work]:
    """Whole training steps, with the wait for their data.

    Args:
        counts_flop: count the operations of the first two steps; not possible where they are compiled.
    """
    trainer = ActTrainer(prepare_run(config))
    trainer.policy.train()
    coming = _endless(trainer)

    def step() -> torch.Tensor:
        losses = trainer.train_step(*next(coming))
        trainer.step += 1
        return losses

    device = trainer.accelerator.device.type
    flop = {}
    if counts_flop:
        with FlopCounterMode(display=False) as done:
            first = step().tolist()
        with FlopCounterMode(display=False) as model, _all_tokens():
            step()
        flop = {"model_flop": model.get_total_flops(), "flop_done": done.get_total_flops()}
    else:
        first = step().tolist()

    def work(steps: int) -> dict[str, Any]:
        synchronize(device)
        began = time.perf_counter()
        losses = [step() for _ in range(steps)]
        synchronize(device)
        seconds = (time.perf_counter() - began) / steps
        memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        return {"seconds": seconds, "losses": torch.stack(losses)[:, 0].tolist(), "memory": memory}

    frozen = sum(p.numel() for p in trainer.unwrapped_policy.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in trainer.unwrapped_policy.parameters() if p.requires_grad)
    return {"first_loss": first[0], **flop, "trained": trained, "frozen": frozen}, work


def _all_tokens() -> AbstractContextManager[object]:
    """All layers compute all tokens, also those that nobody wants."""
    wanted_only = TransformerEncoder.forward

    def forward(self: TransformerEncoder, *args: Any, wanted: int | None = None) -> torch.Tensor:
        return wanted_only(self, *args)[:, :wanted]

    return patch.object(TransformerEncoder, "forward", forward)


def _endless(trainer: ActTrainer) -> Iterator[Any]:
    """Steps, epoch after epoch."""
    while True:
        yield from trainer._steps_left()
        trainer.order.epoch += 1


def _act(config: Config, precision: str) -> tuple[dict[str, Any], Work]:
    """Chunks for one robot that sees the demonstrations, one new frame per chunk."""
    keep_freed_memory()
    assert config.dataset_dir is not None
    episodes, _ = open_demonstrations(config, config.dataset_dir, lambda line: None)
    config = fill_from_dataset(config, episodes)
    torch.manual_seed(0)
    policy = Policy(ActPolicy(config).eval(), dtype=precision_dtype(precision))
    _, windows = _windows(config)
    frame = itertools.count()

    def work(chunks: int) -> dict[str, Any]:
        obs = [windows.__getitems__([next(frame) % len(windows)])[0] for _ in range(chunks)]
        histories = [
            {name: (x.permute(0, 1, 3, 4, 2) if name.startswith("image_") else x).numpy() for name, x in one.items()}
            for one in obs
        ]
        began = time.perf_counter()
        for history in histories:
            policy.chunks(history, new=1)
        return {"seconds": (time.perf_counter() - began) / chunks}

    work(5)
    return {}, work


def _windows(config: Config) -> tuple[Config, WindowDataset]:
    assert config.dataset_dir is not None
    episodes, _ = open_demonstrations(config, config.dataset_dir, lambda line: None)
    config = fill_from_dataset(config, episodes)
    train, _ = split_episodes(episodes.lengths, config.val_split, config.seed)
    index = WindowIndex.over(episodes, train, config.temporal_context, config.chunk_size)
    return config, WindowDataset(episodes, index, config.cameras)


def _load(config: Config, workers: int) -> tuple[dict[str, Any], Work]:
    """Batches in a random order."""
    keep_freed_memory()
    config, windows = _windows(config)
    shuffled = torch.utils.data.RandomSampler(windows, num_samples=10**9, replacement=True)
    order = torch.utils.data.BatchSampler(shuffled, config.batch_size, drop_last=True)
    batches: Iterator[Batch] = iter(Loader(windows, order, num_workers=workers))

    def work(batches_wanted: int) -> dict[str, Any]:
        for _ in range(8 * max(1, workers)):  # those that were loaded while nobody asked
            next(batches)
        began = time.perf_counter()
        shapes = [next(batches)[0]["image_top"].shape for _ in range(batches_wanted)]
        seconds = (time.perf_counter() - began) / sum(shape[0] for shape in shapes)
        time.sleep(2)  # what is loaded ahead now must not slow the other side
        return {"seconds": seconds, "image": list(shapes[0][1:])}

    return {}, work


if __name__ == "__main__":
    serve(make)
