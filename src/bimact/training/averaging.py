"""The exponential moving average (EMA) of a policy's weights: they are validated, saved, and used in inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bimact.policy.act import ActPolicy


class AveragedWeights:
    """Averages of the trained parameters and of the floating-point buffers (batch statistics).

    Args:
        policy: its present values are the initial averages.
        decay: of the average in the long run; at step n it is at most (1 + n) / (10 + n), so that the first, untrained
            weights have little weight (as in diffusers and TensorFlow).
    """

    def __init__(self, policy: ActPolicy, decay: float) -> None:
        saved = policy.state_dict()
        learned = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        buffers = {name for name, buffer in policy.named_buffers() if name in saved and buffer.is_floating_point()}
        self._current = {name: saved[name] for name in saved if name in learned | buffers}  # share their memory
        self._average = {name: value.clone() for name, value in self._current.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages after an optimizer step, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self._average.values()), list(self._current.values()), 0)

    def current(self) -> dict[str, Tensor]:
        """The weights that are trained: to resume from."""
        return dict(self._current)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """A context in which the policy has the averaged weights."""
        held = {name: value.clone() for name, value in self._current.items()}
        try:
            for name, value in self._current.items():
                value.copy_(self._average[name])
            yield
        finally:
            for name, value in self._current.items():
                value.copy_(held[name])
