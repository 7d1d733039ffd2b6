"""A policy in this process acts in a control loop as it acts by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bimact_client import ControlLoop, Safety
from bimact_client.wire import pack, unpack
from conftest import tiny_config

from bimact.deploy.in_process import InProcessClient
from bimact.policy.act import ActPolicy
from bimact.policy.inference import Execution, Interface, Policy

NAMES = tuple(f"joint {number}" for number in range(6))


def make_policy(**execution: Any) -> Policy:
    torch.manual_seed(0)
    network = ActPolicy(tiny_config(cameras=["top"], state_dim=6, action_dim=6)).eval()
    interface = Interface({"top": (40, 56)}, NAMES, NAMES, 100.0, ((-1, 1),) * 6, ((-2, 2),) * 6, "task")
    return Policy(network, Execution(**execution), interface, name="run")


class Robot:
    """Where it was sent is not where it is, so that chunks differ; the same each time."""

    def __init__(self) -> None:
        self.state_names = self.action_names = list(NAMES)
        self.sent: list[np.ndarray] = []

    def get_observation(self) -> dict[str, Any]:
        draw = np.random.default_rng(len(self.sent))
        image = draw.integers(0, 256, (40, 56, 3), np.uint8)
        return {"state": draw.normal(size=6).astype(np.float32), "image_top": image}

    def send_action(self, action: np.ndarray) -> None:
        self.sent.append(action)


@pytest.mark.parametrize("execution", [{"execute_steps": 2}, {"execute_steps": 1, "temporal_ensemble": True}])
def test_the_loop_executes_as_the_policy_does(execution: dict[str, Any]) -> None:
    policy, robot = make_policy(**execution), Robot()
    safety = Safety(low=-np.inf, high=np.inf, max_step=np.inf, ramp_step=np.inf)
    loop = ControlLoop(robot, InProcessClient(policy), hz=5, safety=safety, say=lambda text: None)
    assert loop.run(7).held_cycles == 0
    other = Robot()
    for _ in range(7):
        other.send_action(policy.act(other.get_observation()))
    np.testing.assert_allclose(robot.sent, other.sent, atol=1e-6)


def test_what_it_says_of_itself_fits_on_the_wire() -> None:
    client = InProcessClient(make_policy(execute_steps=2))
    assert unpack(pack(client.metadata)) == client.metadata
    assert client.metadata["cameras"] == {"top": {"height": 40, "width": 56, "color_order": "rgb"}}
    assert client.metadata["action_ranges"] == {"low": [-2] * 6, "high": [2] * 6}
    assert client.metadata["execution"]["execute_steps"] == 2
