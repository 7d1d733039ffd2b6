"""How a LeRobot policy normalises: its statistics in the three layouts that there have been.

- until September 2025 as buffers among the weights (`lerobot/policies/normalize.py` of v0.3.3);
- since then as a step of `policy_preprocessor.json` and of `policy_postprocessor.json`, each with a file of its own
  (`lerobot/processor/normalize_processor.py` and `pipeline.py` of v0.4.4; unchanged in v0.6.0).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bimact.errors import UserError
from bimact.interop.assembly import Affine
from bimact.interop.json_file import JsonObject
from bimact.interop.lerobot_features import ACTION, IDENTITY, PolicyFeature, checked_mode
from bimact.weights_file import read_content, state_dicts

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
RENAMER = "rename_observations_processor"
# The steps that change nothing that a policy predicts.
_SILENT = {RENAMER, "to_batch_processor", "device_processor"}
_BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_EPSILON = 1e-8  # LeRobot's, where nothing else is said


@dataclass(frozen=True)
class Normalization:
    """One direction: of observations, or of actions back.

    Attributes:
        path: where it comes from, for messages.
        modes: by feature.
        statistics: by feature, then by name, such as "mean".
        epsilon: what keeps LeRobot from dividing by 0.
        widens: whether epsilon is added to every range, or only put in the place of an empty one.
        required: whether a feature without statistics is a fault; else it is not normalised.
    """

    path: Path
    modes: Mapping[str, str]
    statistics: Mapping[str, Mapping[str, Tensor]]
    epsilon: float = _EPSILON
    widens: bool = False
    required: bool = False

    def affine(self, name: str, size: int, *, inverse: bool = False) -> Affine:
        """What it does to a feature of so many numbers; `inverse`: what it takes back.

        Raises:
            UserError: if the statistics are missing or cannot be those.
        """
        mode = self.modes.get(name, IDENTITY)
        if mode == IDENTITY or (name not in self.statistics and not self.required):
            return Affine(torch.zeros(size), torch.ones(size))
        if mode == "MEAN_STD":
            mean, std = (self._numbers(name, kind, size) for kind in ("mean", "std"))
            # Taken back without epsilon, but a std of 0 could not be trained on with.
            return Affine(mean, std.clamp(min=self.epsilon) if inverse else std + self.epsilon)
        low, high = (self._numbers(name, kind, size) for kind in _BOUNDS[mode])
        width = high - low
        width = width + self.epsilon if self.widens else torch.where(width == 0, self.epsilon, width)
        return Affine(low, width / 2, shift=-1.0)

    def notes(self, names: Iterable[str]) -> list[str]:
        """Which of these features should be normalised, but LeRobot, without statistics, takes them as they are."""
        bare = [name for name in names if self.modes.get(name, IDENTITY) != IDENTITY and name not in self.statistics]
        return [f"{self.path.name} has no statistics of {ascii(name)[1:-1]}, which is not normalised" for name in bare]

    def _numbers(self, name: str, kind: str, size: int) -> Tensor:
        value = self.statistics.get(name, {}).get(kind)
        what = f"{self.path} has no '{kind}' of {ascii(name)[1:-1]}"
        if value is None:
            raise UserError(f"{what}, by which the policy normalises")
        if value.numel() != size or not bool(value.isfinite().all()):
            raise UserError(f"{what} in {size} finite numbers: save the policy again with its dataset's statistics")
        return value.flatten().float()


def from_buffers(
    weights: Mapping[str, Tensor], features: Mapping[str, PolicyFeature], path: Path
) -> list[Normalization]:
    """Of observations and of actions, from buffers such as `normalize_inputs.buffer_observation_state.mean`."""
    modes = {name: feature.mode for name, feature in features.items()}
    found = []
    for side in ("normalize_inputs", "unnormalize_outputs"):
        statistics = {name: _below(weights, f"{side}.buffer_{name.replace('.', '_')}.") for name in features}
        found.append(Normalization(path, modes, statistics, widens=True, required=True))
    return found


def without_buffers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own weights."""
    owners = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
    return {name: value for name, value in weights.items() if not name.startswith(owners)}


def _below(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def from_steps(steps: list[JsonObject], kind: str, folder: Path) -> Normalization:
    """Of the step of a kind among those of a processor.

    Raises:
        UserError: if there are several, or its file is missing or cannot be read.
    """
    mine = [step for step in steps if step.get("registry_name", str, "") == kind]
    if len(mine) > 1:
        raise UserError(f"{mine[0].path} normalises {len(mine)} times, of which bimact makes no sense")
    if not mine:
        return Normalization(folder, {}, {})
    step, config = mine[0], mine[0].object("config")
    features, norm_map = config.object("features"), config.object("norm_map")
    chosen = config.get("normalize_observation_keys", list, list(features.content))
    kinds = {name: features.object(name).get("type", str, "") for name in features.content if name in chosen}
    kinds[ACTION] = "ACTION"  # which the step always looks at
    modes = {name: checked_mode(norm_map.get(type_, str, IDENTITY), step) for name, type_ in kinds.items()}
    file = _state_file(step, folder)
    if file is not None and not file.is_file():
        raise UserError(f"{file} is missing")
    values = {} if file is None else state_dicts(read_content(file)).get((), {})
    statistics = {name: below for name in modes if (below := _below(values, f"{name}."))}
    return Normalization(file or step.path, modes, statistics, config.get("eps", float, _EPSILON))


def _state_file(step: JsonObject, folder: Path) -> Path | None:
    name = step.get("state_file", str, None)
    if name is None:
        return None
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise UserError(f"{step.path} names {ascii(name)[:80]}, which is no file of its folder: do not trust it")
    return folder / name


def foreign_steps(steps: list[JsonObject], own: str) -> list[str]:
    """Steps that bimact does not have and that may change what a policy predicts."""
    names = [step.get("registry_name", str, None) or step.get("class", str, "?") for step in steps]
    return [ascii(name)[1:-1][:80] for name in names if name not in _SILENT | {own}]


def names_of_robot(steps: list[JsonObject]) -> dict[str, str]:
    """What a processor calls an observation → what the robot calls it."""
    found: dict[str, str] = {}
    for step in steps:
        mapping = step.object("config").object("rename_map")
        found |= {mapping.get(robot, str, ""): robot for robot in mapping.content}
    return found
