"""Runs inside an environment with openpi-client: `python openpi_robot.py PORT KEY`; prints JSON of what it saw."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from openpi_client import action_chunk_broker, image_tools, websocket_client_policy
from openpi_client.runtime import environment, runtime
from openpi_client.runtime.agents import policy_agent

STEPS = 12


def observation(step: int) -> dict[str, Any]:
    draw = np.random.default_rng(step)
    image = draw.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    return {
        "state": draw.normal(size=14),
        "images": {"left": image.transpose(2, 0, 1), "right": image},
        "prompt": "put the cup on the shelf",
    }


class Robot(environment.Environment):
    def __init__(self) -> None:
        self.actions: list[list[float]] = []

    def reset(self) -> None:  # also called after the last episode
        pass

    def is_episode_complete(self) -> bool:
        return len(self.actions) >= STEPS

    def get_observation(self) -> dict[str, Any]:
        return observation(len(self.actions))

    def apply_action(self, action: dict[str, Any]) -> None:
        self.actions.append(np.asarray(action["actions"]).tolist())


def main() -> None:
    port, key = int(sys.argv[1]), sys.argv[2]
    policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key=key)
    first = policy.infer(observation(0))
    assert first["actions"].dtype == np.float32 and first["actions"].flags.c_contiguous
    assert set(first) == {"actions", "server_timing", "policy_timing"}
    assert set(policy.infer(observation(0))["server_timing"]) == {"infer_ms", "prev_total_ms"}
    robot = Robot()
    broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=3)
    runtime.Runtime(robot, policy_agent.PolicyAgent(broker), [], max_hz=0, num_episodes=1, max_episode_steps=0).run()
    padded = image_tools.resize_with_pad(np.stack([observation(3)["images"]["right"]]), 20, 20)[0]
    refused = ""
    try:
        policy.infer({**observation(0), "images": {}})
    except RuntimeError as error:
        refused = str(error)
    print(
        json.dumps(
            {
                "metadata": policy.get_server_metadata(),
                "first": first["actions"].tolist(),
                "executed": robot.actions,
                "refused": refused,
                "padded": padded.tolist(),
            }
        )
    )


if __name__ == "__main__":
    main()
