"""A policy in this process acts in a control loop as it acts by itself."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from bimact_client import ControlLoop, PolicyClient, Safety
from serving import NAMES, running, small_policy

from bimact.deploy.in_process import InProcessClient
from bimact.policy.inference import Execution


class Robot:
    """Where it was sent is not where it is, so that chunks differ; the same each time."""

    def __init__(self) -> None:
        self.state_names = self.action_names = list(NAMES)
        self.sent: list[np.ndarray] = []

    def get_observation(self) -> dict[str, Any]:
        draw = np.random.default_rng(len(self.sent))
        left, right = draw.integers(0, 256, (2, 16, 24, 3), np.uint8)
        return {"state": draw.normal(size=14).astype(np.float32), "image_left": left, "image_right": right}

    def send_action(self, action: np.ndarray) -> None:
        self.sent.append(action)


@pytest.mark.parametrize("is_served", [False, True])
@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("execution", [Execution(2), Execution(1, temporal_ensemble=True)])
def test_the_loop_executes_as_the_policy_does(execution: Execution, context: int, is_served: bool) -> None:
    """Also a policy that looks at several observations, of which the robot sends some only when it asks."""
    policy = small_policy(execution, temporal_context=context)
    safety = Safety(low=-np.inf, high=np.inf, max_step=np.inf, ramp_step=np.inf)
    with ExitStack() as stack:
        client: Any = InProcessClient(policy)
        if is_served:
            client = stack.enter_context(PolicyClient(port=stack.enter_context(running(policy))))
        robot = Robot()
        loop = ControlLoop(robot, client, hz=5, safety=safety, say=lambda text: None)
        for _ in range(2):
            robot.sent.clear()
            assert loop.run(6).held_cycles == 0
            alone = Robot()
            policy.reset()
            for _ in range(6):
                alone.send_action(policy.act(alone.get_observation()))
            np.testing.assert_allclose(robot.sent, alone.sent, atol=1e-6)


def test_it_says_of_itself_what_a_server_says() -> None:
    policy = small_policy()
    with running(policy) as port, PolicyClient(port=port) as client:
        assert InProcessClient(policy).metadata == client.metadata
