"""Runs a policy on ALOHA's two follower arms: `python run_policy.py --ros 1|2 --server HOST:PORT`.

It uses ALOHA's own environment (`make_real_env` of tonyzhaozh/aloha on ROS 1, of Interbotix/aloha on ROS 2) for joints,
grippers and cameras, and bimact-client for everything else. README.md says what differs between the two.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

import numpy as np
from bimact_client import ControlLoop, Execution, PolicyClient, ServerError, Stopped

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")


class AlohaRobot:
    """ALOHA's environment as the robot of `ControlLoop`.

    State and action have 14 dimensions: for the left, then the right arm six joint angles in radians and the gripper, 0
    (closed) to 1 (open). The state's gripper is normalised from the position of a finger in metres, the action's
    becomes a joint angle of the gripper's motor: both are done by ALOHA's environment, with its own constants.

    Args:
        env: what `make_real_env` returned.
        color_order: of the camera frames, compared with those of the training (see README.md).
    """

    def __init__(self, env: Any, color_order: str = "rgb") -> None:
        self.env, self.color_order = env, color_order
        self.state_names = self.action_names = [f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS]
        kind = "follower_bot" if hasattr(env, "follower_bot_left") else "puppet_bot"  # ROS 2, ROS 1
        self.arms = {side: getattr(env, f"{kind}_{side}").arm for side in ("left", "right")}
        self.clipped = 0  # actions beyond the driver's limits

    def get_observation(self) -> dict[str, Any]:
        """State (14,), and image_<camera> (480, 640, 3) uint8 with the time of its message."""
        observation: dict[str, Any] = {"state": np.asarray(self.env.get_qpos())}
        recorder = self.env.image_recorder
        for camera, image in self.env.get_images().items():
            if image is None:
                raise RuntimeError(f"camera {camera} has sent no image yet: look at its ROS topic")
            observation[f"image_{camera}"] = image
            stamp = getattr(recorder, f"{camera}_secs", None), getattr(recorder, f"{camera}_nsecs", None)
            if stamp != (None, None):
                observation[f"time_{camera}"] = stamp
        return observation

    def send_action(self, action: np.ndarray) -> None:
        """Command both arms and grippers; an arm that the driver does not move is an error."""
        for side, joints in zip(("left", "right"), (action[:6], action[7:13])):
            arm = self.arms[side]
            low, high = (np.asarray(getattr(arm.group_info, f"joint_{end}_limits")) for end in ("lower", "upper"))
            # The driver rounds to 0.001 rad, and drops the command of all six joints if one is beyond its limit.
            within = np.clip(joints, low + 0.001, high - 0.001)
            self.clipped += not np.array_equal(within, joints)
            if arm.set_joint_positions(within, blocking=False) is False:
                raise RuntimeError(
                    f"the driver has dropped a command of the {side} arm: {np.round(joints, 3).tolist()}"
                )
        self.env.set_gripper_pose(action[6], action[13])

    def stop(self) -> None:
        """Hold the present pose. The torque stays on: without it the arms fall."""
        pose = np.asarray(self.env.get_qpos())
        for side, joints in zip(("left", "right"), (pose[:6], pose[7:13])):
            self.arms[side].set_joint_positions(joints, blocking=False)


def make_env(ros: int) -> Any:
    """ALOHA's environment; both arms and all cameras have to be running (roslaunch, ros2 launch)."""
    if ros == 1:
        from aloha_scripts.real_env import make_real_env  # tonyzhaozh/aloha

        return make_real_env(init_node=True)
    from aloha.real_env import make_real_env as make_real_env_2  # Interbotix/aloha
    from interbotix_common_modules.common_robot.robot import create_interbotix_global_node, robot_startup

    node = create_interbotix_global_node("aloha")
    env = make_real_env_2(node=node)
    robot_startup(node)
    return env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ros", type=int, choices=(1, 2), required=True)
    parser.add_argument("--server", default="127.0.0.1:8000", metavar="HOST:PORT")
    parser.add_argument("--api_key", help="(default: the variable BIMACT_API_KEY)")
    parser.add_argument("--execution", default="chunk", help="chunk, async or temporal_ensemble")
    parser.add_argument("--execute_steps", type=int, help="actions of a chunk until the next one is requested")
    parser.add_argument("--seconds", type=float, default=20.0, help="of an episode (default: 20)")
    parser.add_argument("--color_order", choices=("rgb", "bgr"), default="rgb", help="see README.md")
    parser.add_argument("--record", help="directory for a dataset of what happened")
    options = parser.parse_args()
    host, _, port = options.server.rpartition(":")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: the arms hold
    try:
        client = PolicyClient(host, int(port), options.api_key)
        robot = AlohaRobot(make_env(options.ros), options.color_order)
        execution = Execution(options.execution, options.execute_steps)
        loop = ControlLoop(robot, client, execution=execution, record=options.record)
        try:
            print(loop.run(round(options.seconds * loop.hz)))
        finally:
            if robot.clipped:
                print(f"{robot.clipped} commands of an arm were clipped to the driver's limits")
    except (Stopped, ServerError, ValueError) as error:
        sys.exit(f"stopped: {error}")


if __name__ == "__main__":
    main()
