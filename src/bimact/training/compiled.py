"""`torch.compile` for training steps: one graph of the policy, which a GPU replays without waiting for the CPU."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from bimact.errors import UserError, in_words
from bimact.policy.act import ActOutput, Observation


def _names_a_problem(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("No CUDA runtime is found")


class CompiledPolicy:
    """Calls a policy in training, compiled for full batches only, whose shapes are constant.

    An epoch's last, smaller batch is computed by the uncompiled policy, to avoid a second compilation.

    Args:
        policy: in training mode.
        batch_size: of full batches.
        cuda_graphs: replay all kernels of a pass as one graph, which saves their launch times.
    """

    def __init__(self, policy: nn.Module, batch_size: int, *, cuda_graphs: bool) -> None:
        self._policy = policy
        self._batch_size = batch_size
        # Data-parallel training splits the graph, so that gradients are sent while others are computed.
        whole = not isinstance(policy, nn.parallel.DistributedDataParallel)
        mode = "reduce-overhead" if cuda_graphs else None
        # Warnings of the compiler that users cannot act on: CUDA's compiler on a machine without a GPU, and, in older
        # versions of PyTorch, float32 products outside of autocast.
        logging.getLogger("torch.utils.cpp_extension").addFilter(_names_a_problem)
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        self._compiled = torch.compile(policy, fullgraph=whole, dynamic=False, mode=mode)
        self._is_first = True

    def __call__(self, obs: Observation, actions: Tensor, noise: Tensor) -> tuple[Tensor, ActOutput]:
        """As `ActPolicy.forward`.

        Raises:
            UserError: if the policy cannot be compiled here.
        """
        output: tuple[Tensor, ActOutput]
        if len(actions) != self._batch_size:
            output = self._policy(obs, actions, noise)
            return output
        if not self._is_first:
            output = self._compiled(obs, actions, noise)
            return output
        self._is_first = False
        self._make_tables(obs)
        try:
            output = self._compiled(obs, actions, noise)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # as are all errors of the compiler
            cause = in_words(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]
            raise UserError(f"compile: true does not work here, set it to false: {cause}") from error
        return output

    @torch.no_grad()
    def _make_tables(self, obs: Observation) -> None:
        """Compute the policy's tables of positions before the graph is captured."""
        policy = getattr(self._policy, "module", self._policy)  # of data-parallel training
        policy.eval()  # statistics of batch norms stay as they are
        policy(obs)
        policy.train()
