"""A policy of bimact behind LeRobot's interface: `bimact.load_policy`, with joints in the robot's order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import bimact
import numpy as np
import torch
from bimact.errors import UserError
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_bimact.configuration_bimact import NO_TRAINING, BimactConfig

IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"


class BimactPolicy(PreTrainedPolicy):
    """A policy of bimact that LeRobot runs.

    Args:
        config: of LeRobot.
        folder: what `bimact export --to lerobot_plugin` wrote.
        dataset_meta: of the dataset that LeRobot records: names of the robot's joints in its order; None: those of
            `config.robot_joints`.

    Raises:
        UserError: if the folder holds no policy, or the robot's joints are not the policy's, or are not known.
    """

    config_class = BimactConfig
    name = "bimact"

    def __init__(
        self, config: BimactConfig, folder: Path | None = None, dataset_meta: Any = None, **ignored: Any
    ) -> None:
        super().__init__(config)
        if folder is None:
            raise NotImplementedError(NO_TRAINING)
        self._folder = folder
        self.acting = bimact.load_policy(
            folder / "run",
            device=config.device or "auto",
            precision="no",
            execute_steps=config.n_action_steps,
            temporal_ensemble=config.temporal_ensemble,
        )
        self.network = self.acting.network  # LeRobot counts its parameters
        interface, metadata = self.acting.metadata.interface, self.acting.metadata
        rate, fps = interface.control_frequency, getattr(dataset_meta, "fps", None)
        if dataset_meta is not None:
            features = dataset_meta.features
        else:
            features = {name: {"names": config.robot_joints} for name in (STATE, ACTION)}
            if config.robot_joints is None and interface.action_names is not None:
                raise UserError(
                    "this command of LeRobot does not tell the policy in which order the robot has its joints: pass "
                    f"--policy.robot_joints='[…]' in the robot's order; the policy's order is "
                    f"{json.dumps(interface.action_names)}"
                )
            if rate is not None:
                print(f"Note: the policy was trained at {rate:g} Hz: run it at that rate (--fps={rate:g})")
        self._state_places = _places(interface.state_names, features.get(STATE), metadata.state_dim, "state")
        action_places = _places(interface.action_names, features.get(ACTION), metadata.action_dim, "action")
        if len(names := _names(features.get(ACTION)) or action_places) != len(action_places):
            raise UserError(
                f"the robot takes {len(names)} actions ({', '.join(map(str, names))}), the policy gives "
                f"{len(action_places)}: each of the robot's joints needs an action"
            )
        self._action_order = np.argsort(action_places)  # the robot's order, as places in the policy's
        if rate is not None and fps is not None and abs(rate - fps) > 0.01 * rate:
            print(f"Warning: the policy was trained at {rate:g} Hz, LeRobot runs it at {fps} Hz (--dataset.fps)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        dataset_meta: Any = None,
        revision: str | None = None,
        **ignored: Any,
    ) -> BimactPolicy:
        """Load an exported policy from a directory, or from a repository of the hub."""
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(str(pretrained_name_or_path), revision=revision))
        config = config or PreTrainedConfig.from_pretrained(folder)
        return cls(config, folder, dataset_meta).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        shutil.copytree(self._folder, save_directory, dirs_exist_ok=True)

    def reset(self) -> None:
        """Begin a new episode."""
        self.acting.reset()

    def select_action(self, batch: dict[str, Any], **ignored: Any) -> Tensor:
        """The action of this control step, (1, A), in the robot's units and order.

        Args:
            batch: `observation.state` (1, S) and `observation.images.<camera>` (1, 3, H, W), float from 0 to 1.

        Raises:
            UserError: if the observation is not what the policy was trained on.
        """
        return torch.from_numpy(self.acting.act(self._observation(batch))[..., self._action_order])

    def predict_action_chunk(self, batch: dict[str, Any], **ignored: Any) -> Tensor:
        """The actions from this control step on, (1, C, A); see `select_action`."""
        return torch.from_numpy(self.acting.predict_chunk(self._observation(batch))[..., self._action_order])

    def forward(self, batch: dict[str, Any]) -> NoReturn:
        raise NotImplementedError(NO_TRAINING)

    def get_optim_params(self) -> NoReturn:
        raise NotImplementedError(NO_TRAINING)

    def _observation(self, batch: dict[str, Any]) -> dict[str, Any]:
        if STATE not in batch:
            raise UserError(f"the observation has no '{STATE}'")
        observation: dict[str, Any] = {"state": batch[STATE].cpu().numpy()}
        task = batch.get("task")
        if any([task] if isinstance(task, str) else task or ()):
            observation["task"] = task
        size, joints = observation["state"].shape[-1], self.config.robot_joints
        if joints is not None and size != len(joints):
            raise UserError(f"the robot's state has {size} dimensions, --policy.robot_joints names {len(joints)}")
        if size > max(self._state_places):
            observation["state"] = observation["state"][..., self._state_places]
        for name, image in batch.items():
            if name.startswith(IMAGES):
                if image.is_floating_point():
                    if not (bool((image >= 0).all()) and bool((image <= 1).all())):
                        raise UserError(f"the observation's '{name}' is not from 0 to 1")
                    image = (image * 255).round().to(torch.uint8)  # LeRobot divided by 255
                observation[f"image_{name.removeprefix(IMAGES)}"] = image.cpu().numpy()
        return observation


def _names(feature: Any) -> list[str] | None:
    """Names of a feature's dimensions, which older datasets put below a key."""
    names = None if feature is None else feature.get("names")
    if isinstance(names, dict):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    return None if names is None else list(map(str, names))


def _places(wanted: Sequence[str] | None, feature: Any, size: int, what: str) -> list[int]:
    """Where the robot has each of the policy's dimensions.

    Raises:
        UserError: if it lacks one.
    """
    names = _names(feature)
    if wanted is None or names is None:
        who = "the policy" if wanted is None else "the robot"
        print(f"Note: {who} has no names of {what} dimensions: the robot's order is taken to be the policy's")
        return list(range(size))
    if missing := [name for name in wanted if name not in names]:
        raise UserError(f"the robot has no {what} {', '.join(missing)}: its {what}s are {', '.join(names)}")
    return [names.index(name) for name in wanted]
