"""The policy on a GPU of fake tensors, so that none is needed: it never touches the CPU or waits for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bimact.config import load_config
from bimact.policy.act import ActPolicy, act_losses

GUIDE = Path(__file__).parents[2] / "configs" / "policy_act.yaml"
PRI3D = ["encoder.name=pri3d", "encoder.model_name=resnet18"]
pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")


class Devices(TorchDispatchMode):
    """Counts operations, and lists those with a tensor that is not on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        tensors = [x for x in tree_leaves((args, kwargs or {}, result)) if isinstance(x, torch.Tensor)]
        if any(tensor.device.type != "cuda" for tensor in tensors):
            self.elsewhere.append(str(func))
        return result


def losses_on_gpu(overrides: list[str]) -> Callable[[], torch.Tensor]:
    """The loss of a batch of two on a fake GPU, where no operation gives a number to Python."""
    sizes = ["state_dim=14", "action_dim=14", "cameras=[top,left]", "encoder.pretrained=null", "device=cpu"]
    config = load_config(GUIDE, [*sizes, *overrides])
    with torch.device("cuda"):
        try:
            policy = ActPolicy(config).train()
        except torch.AcceleratorError:
            if not torch.__version__.startswith("2.8."):
                raise
            pytest.skip("PyTorch 2.8 asks for a GPU's driver")
        images = {
            f"image_{camera}": torch.zeros(2, config.temporal_context, 3, 96, 128, dtype=torch.uint8)
            for camera in ("top", "left")
        }
        is_pad = torch.zeros(2, config.chunk_size, dtype=torch.bool)
        obs = {**images, "state": torch.zeros(2, config.temporal_context, 14), "action_is_pad": is_pad}
        actions, noise = torch.zeros(2, config.chunk_size, 14), torch.zeros(2, config.latent_dim)

    def loss() -> torch.Tensor:
        _, output = policy(obs, actions, noise)
        return act_losses(output, policy.normalized(actions, obs), is_pad, config).total

    return loss


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [*PRI3D, "encoder.freeze=false", "encoder.fuse=tokens", "temporal_context=1"],
        [*PRI3D, "encoder.fuse=gated"],
        ["encoder.name=conv", "encoder.freeze=false", "encoder.fuse=mean", "use_vae=false"],
    ],
)
def test_all_is_on_the_gpu(overrides: list[str]) -> None:
    with FakeTensorMode():
        loss = losses_on_gpu(overrides)
        loss()  # makes the tables of positions
        with Devices() as devices:
            assert loss().device.type == "cuda"
    assert devices.count > 500
    assert not devices.elsewhere


def test_a_wait_would_be_seen() -> None:
    with FakeTensorMode():
        loss = losses_on_gpu(["encoder.name=conv", "encoder.freeze=false"])
        with Devices() as devices:
            loss()
        assert devices.elsewhere  # the tables are made on the CPU
        with pytest.raises(DataDependentOutputException):
            loss().item()
