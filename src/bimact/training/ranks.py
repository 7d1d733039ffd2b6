"""Collective operations of data-parallel training. With a single process each is the identity."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from bimact.errors import UserError
from bimact.run_directory import Run

Module = TypeVar("Module", bound=nn.Module)


class Ranks:
    """This process (rank) of the training.

    Args:
        accelerator: knows the processes; `torchrun` or `accelerate launch` has started them.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.count = accelerator.num_processes
        self.rank = accelerator.process_index
        # Stop requests are all-reduced on the CPU, concurrently with the gradients.
        self._group: Any = dist.new_group(backend="gloo") if self.count > 1 else None
        # About a tensor's memory layout after the first backward pass: users cannot change it.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        self._pending_request: tuple[Tensor, Any] | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints, logs and saves."""
        return self.rank == 0

    def convert_sync_batchnorm(self, module: Module) -> Module:
        """Replace batch norms by ones with statistics over the batches of all GPUs; on CPUs PyTorch has none."""
        if self.count > 1 and self._accelerator.device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return module

    def share(self, count: int) -> range:
        """This rank's part of `count` items."""
        return range(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes; all have to call it."""
        return self._accelerator.reduce(values, "mean") if self.count > 1 else values

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes; all have to call it."""
        if self.count == 1:
            return values
        return self._accelerator.reduce(values.to(self._accelerator.device), "sum")

    def all_reduce_min(self, value: int) -> int:
        """The smallest value of all processes; all have to call it."""
        if self.count == 1:
            return value
        return int(self._accelerator.gather(torch.tensor([value], device=self._accelerator.device)).min())

    @contextmanager
    def explain_lost_processes(self, run: Run) -> Iterator[None]:
        """Replace PyTorch's errors for the end of another process by one sentence.

        Raises:
            UserError: instead of those errors.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
                resume = f", and resume by --resume_from {run.path}" if run.checkpoints.is_dir() else ""
                raise UserError(f"another process of this training has ended: see its message{resume}") from error
            raise

    def broadcast_from_main(self, value: object) -> object:
        """The main process's value, in all processes; all have to call it."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    def check_in_main(self, check: Callable[[], None]) -> None:
        """Run a check in the main process alone; all have to call it.

        Raises:
            UserError: in all processes, if the check raises one.
        """
        fault = None
        if self.is_main:
            try:
                check()
            except UserError as error:
                fault = str(error)
        sentence = self.broadcast_from_main(fault)
        if sentence is not None:
            raise UserError(str(sentence))

    def agree_to_stop(self, requested: bool) -> bool:
        """Whether all stop now, because one of them was requested to.

        With several processes the all-reduce of a step is read at the next step: it blocks no step.
        """
        if self._group is None:
            return requested
        before = self._pending_request
        request = torch.tensor(int(requested))
        work = dist.all_reduce(request, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending_request = (request, work)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0].item())
