"""The random numbers of training: those of a step depend on the seed, the step and the rank alone.

They do not depend on earlier draws, so a resumed run needs no generator state.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from bimact.config import Config


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the random numbers of a step (dropout)."""
    torch.manual_seed(_mixed(seed, step, rank))


def latent_noise(config: Config, step: int, num_windows: int) -> Tensor:
    """(num_windows, Z) standard normal numbers for the latents of a step, the same in all processes."""
    generator = torch.Generator().manual_seed(_mixed(config.seed, step))
    return torch.randn(num_windows, config.latent_dim, generator=generator)


def given_steps(config: Config, step: int, num_windows: int) -> Tensor:
    """(num_windows,) numbers of given actions from 0 to max_delay, equally often, the same in all processes."""
    generator = generator_of(config.seed, step, "given actions")
    return torch.randint(config.max_delay + 1, (num_windows,), generator=generator)


def generator_of(seed: int, step: int, purpose: str) -> torch.Generator:
    """A generator on the CPU for one purpose in a step, the same in all processes."""
    return torch.Generator().manual_seed(_mixed(seed, step, zlib.crc32(purpose.encode())))


def _mixed(*numbers: int) -> int:
    """A 63-bit seed from several small numbers, without patterns between neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
