"""Runs inside an environment with LeRobot and lerobot_policy_bimact: a command of LeRobot on a mock robot.

`python lerobot_plugin.py record|rollout LOG.npz NAMES --policy.path=… …`, where NAMES is JSON: the robot's joints in
its order. The log has the actions that it was sent, in its order, and what it saw before each (`state`,
`image_<camera>`).
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lerobot.robots import Robot, RobotConfig, utils

COMMAND, LOG, NAMES = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
CAMERAS, SIZE = ("right", "left"), (16, 24)


@RobotConfig.register_subclass("mock_bimanual")
@dataclass
class MockBimanualConfig(RobotConfig):
    pass


class MockBimanual(Robot):
    config_class, name = MockBimanualConfig, "mock_bimanual"
    is_connected, is_calibrated, cameras, action_features, observation_features = False, True, None, None, None

    def __init__(self, config: MockBimanualConfig) -> None:
        super().__init__(config)
        self.cameras, self.action_features = dict.fromkeys(CAMERAS), dict.fromkeys(NAMES, float)
        self.observation_features = {**self.action_features, **dict.fromkeys(CAMERAS, (*SIZE, 3))}
        self.draw, self.now, self.seen, self.sent = np.random.default_rng(0), None, [], []

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict:
        state = self.draw.normal(size=len(NAMES)).astype(np.float32)
        images = {camera: self.draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for camera in CAMERAS}
        self.now = {"state": state, **{f"image_{camera}": image for camera, image in images.items()}}
        return {**{name: float(value) for name, value in zip(NAMES, state)}, **images}

    def send_action(self, action: dict) -> dict:
        self.seen.append(self.now)
        self.sent.append([action[name] for name in NAMES])
        return action

    def disconnect(self) -> None:
        self.is_connected = False
        log = {name: np.stack([seen[name] for seen in self.seen]) for name in self.seen[0]} if self.seen else {}
        np.savez(LOG, actions=np.array(self.sent), **log)


if __name__ == "__main__":
    if COMMAND == "record":
        from lerobot.scripts import lerobot_record as script

        script.make_robot_from_config = utils.make_robot_from_config = MockBimanual
    else:
        from lerobot.rollout import context
        from lerobot.scripts import lerobot_rollout as script

        context.make_robot_from_config = MockBimanual
    sys.argv = [f"lerobot-{COMMAND}", "--robot.type=mock_bimanual", *sys.argv[4:]]
    script.main()
