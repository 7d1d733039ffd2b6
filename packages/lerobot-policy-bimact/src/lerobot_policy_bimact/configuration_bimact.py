"""`config.json` of an exported policy, and the options `--policy.…` of LeRobot's commands."""

from dataclasses import dataclass
from typing import NoReturn

from lerobot.configs.policies import PreTrainedConfig

NO_TRAINING = "a policy of bimact acts in LeRobot, it does not train there: train it with `bimact train`"


@PreTrainedConfig.register_subclass("bimact")
@dataclass
class BimactConfig(PreTrainedConfig):
    """Settings of a policy of bimact in LeRobot.

    Attributes:
        chunk_size: actions per chunk, C.
        n_action_steps: actions of each chunk to execute before the next prediction; None: as in the run.
        temporal_ensemble: predict at each step and average the overlapping chunks; None: as in the run.
        robot_joints: names of the robot's joints in its order, for commands that do not tell them to the policy, as
            `lerobot-rollout` does not.
    """

    chunk_size: int = 100
    n_action_steps: int | None = None
    temporal_ensemble: bool | None = None
    robot_joints: list[str] | None = None

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> NoReturn:
        raise NotImplementedError(NO_TRAINING)

    def get_scheduler_preset(self) -> NoReturn:
        raise NotImplementedError(NO_TRAINING)

    def validate_features(self) -> None:
        """Observations are checked by the policy, at each step."""
