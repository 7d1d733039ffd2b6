"""A LeRobot ACT policy's folder → a policy of bimact, in the layouts of 2024 to 2026.

Such a folder holds `config.json`, `model.safetensors` and, since September 2025, the files of two processors.

Formats, of https://github.com/huggingface/lerobot:

- settings: `lerobot/common/policies/act/configuration_act.py` before 3c0a209f9 (January 2025), then
  `lerobot/configs/policies.py`, up to v0.6.0;
- statistics: until September 2025 as buffers among the weights (`lerobot/policies/normalize.py` of v0.3.3); since then
  as a step of `policy_preprocessor.json` and of `policy_postprocessor.json`, each with its own file
  (`lerobot/processor/normalize_processor.py` and `pipeline.py` of v0.4.4; unchanged in v0.6.0).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimact.encoder.base import IMAGENET_MEAN, IMAGENET_STD
from bimact.errors import UserError
from bimact.interop.assembly import Affine, Converted, assemble, checked_cameras, network_settings, read_policy
from bimact.interop.json_file import JsonObject
from bimact.interop.lerobot_weights import from_lerobot
from bimact.policy.weights import LEROBOT
from bimact.weights_file import read_content, state_dicts

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
RENAMER = "rename_observations_processor"
STATE, ACTION, IDENTITY = "observation.state", "action", "IDENTITY"
_WEIGHTS = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_POLICY = "pretrained_model"
_PLACES = ("", _POLICY, f"checkpoints/last/{_POLICY}")  # in a training's folder
_BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_MODES = ("MEAN_STD", *_BOUNDS, IDENTITY)
_HIGHEST_IMAGE = 10_000  # pixels
_EPSILON = 1e-8  # LeRobot's default
_NEUTRAL_STEPS = {RENAMER, "to_batch_processor", "device_processor"}  # which change no prediction
_SAME = {  # LeRobot's settings that the weights determine, by their name there and here
    "chunk_size": "chunk_size",
    "dim_model": "hidden_dim",
    "dim_feedforward": "dim_feedforward",
    "n_encoder_layers": "num_encoder_layers",
    "n_decoder_layers": "num_decoder_layers",
    "use_vae": "use_vae",
}
_TAKEN_OVER = {  # LeRobot's settings that no weights determine
    "n_heads": ("nheads", int),
    "dropout": ("dropout", float),
    "kl_weight": ("kl_weight", float),
    "optimizer_lr": ("lr", float),
    "optimizer_lr_backbone": ("lr_backbone", float),
    "optimizer_weight_decay": ("weight_decay", float),
}
_LEAST_STD = 1e-4  # of images in [0, 1]: a smaller one means constant images
_LEAST_ACTION_STD = 1e-6  # rounding errors of a constant action


def lerobot_folder(path: Path) -> tuple[Path, list[str]] | None:
    """Find the policy in a folder.

    Returns:
        its folder, with a note if it is one of several; None if there is none.
    """
    for place in _PLACES:
        if (path / place / CONFIG).is_file():
            return path / place, []
    # A copy of a training may lack the link `last`, and the folder of its checkpoints may be given itself.
    complete = [
        config.parent
        for below in ("checkpoints", "")
        for config in (path / below).glob(f"*/{_POLICY}/{CONFIG}")
        if config.parent.parent.name.isdecimal() and weights_of(config.parent).is_file()
    ]
    if not complete:
        return None
    policy = max(complete, key=lambda folder: int(folder.parent.name))
    others = "" if len(complete) == 1 else f", the highest of {len(complete)}; give another by its folder"
    return policy, [f"the checkpoint {policy.parent.name} is taken{others}"]


def weights_of(folder: Path) -> Path:
    """The file of weights, or the index of a sharded one, of a policy's folder; the expected name if there is none."""
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), folder / WEIGHTS)


def read_lerobot(folder: Path, cameras: Sequence[str] | None = None, weights_file: Path | None = None) -> Converted:
    """Read a LeRobot policy.

    Args:
        folder: with `config.json`.
        cameras: other names for the cameras, in the policy's order.
        weights_file: other weights for the folder's settings than `model.safetensors`.

    Raises:
        UserError: if files are missing or damaged, or the policy has features that bimact's lacks, all of which the
            sentence lists.
    """
    config = JsonObject.read(folder / CONFIG)
    is_of_2024 = "input_shapes" in config.content
    features = _read_features(config, is_of_2024)
    before: list[JsonObject] | None = None  # steps of the two processors; None: there are no processors
    after: list[JsonObject] | None = None
    if (folder / PREPROCESSOR).exists():
        before, after = (JsonObject.read(folder / name).objects("steps") for name in (PREPROCESSOR, POSTPROCESSOR))
    obstacles = _obstacles(config, features)
    for steps, own in ((before or [], NORMALIZER), (after or [], UNNORMALIZER)):
        names = [step.get("registry_name", str, None) or step.get("class", str, "?") for step in steps]
        foreign = [ascii(name)[1:-1][:80] for name in names if name not in _NEUTRAL_STEPS | {own}]
        obstacles += [f"its processors have the step '{name}'" for name in foreign]
    if obstacles:
        raise UserError(f"{folder} cannot become a policy of bimact: {'; '.join(obstacles)}")

    path = weights_file or weights_of(folder)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    found = read_policy(path, LEROBOT)
    owners = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")  # of buffers with statistics
    try:
        ours = from_lerobot({name: value for name, value in found.tensors.items() if not name.startswith(owners)})
    except KeyError as error:
        raise UserError(f"{path} is not of LeRobot's ACT: {ascii(error.args[0])[1:-1][:200]}") from None

    settings = network_settings(ours, path)
    same = {theirs: settings[name] for theirs, name in _SAME.items()}
    for name, value in {**same, "vision_backbone": settings["encoder"]["model_name"]}.items():
        said = config.get(name, type(value), value)
        if said != value:
            raise UserError(f"{path} has another network than {config.path} says: {name} is {value}, not {said}")
    notes = [*found.notes, *_take_over(config, settings)]

    if before is None or after is None:
        inputs, outputs = _from_buffers(found.tensors, features, path)
    else:
        inputs, outputs = _from_steps(before, NORMALIZER, folder), _from_steps(after, UNNORMALIZER, folder)
    images = [name for name, feature in features.items() if feature.kind == "VISUAL"]
    settings["cameras"] = _camera_names(images, cameras, before or [])
    shapes = [features[name].shape for name in images]
    sizes = {shape[1:] for shape in shapes if len(shape) == 3 and max(shape) <= _HIGHEST_IMAGE}
    is_common = len(sizes) == 1 and all(len(shape) == 3 for shape in shapes)
    settings["image_size"] = list(sizes.pop()) if is_common else None
    settings["encoder"] |= _image_statistics([inputs.affine(name, 3) for name in images], folder)

    notes += [*inputs.notes([*images, STATE]), *outputs.notes([ACTION])]
    state = inputs.affine(STATE, settings["state_dim"])
    action = outputs.affine(ACTION, settings["action_dim"], inverse=True)
    constant = ", ".join(map(str, (action.std < _LEAST_ACTION_STD).nonzero().flatten().tolist()))
    if constant:
        notes.append(
            f"action {constant} never changed in its training: further training on data where it does needs new weights"
        )
    policy = assemble(settings, ours, state, action, path)
    layout = "2024" if is_of_2024 else "early 2025" if before is None else "late 2025"
    return Converted(policy, f"LeRobot policy in the layout of {layout}", tuple(notes))


# Settings ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyFeature:
    """An input or an output.

    Attributes:
        kind: VISUAL, STATE, ENV, ACTION or another.
        shape: of a step; images are (3, H, W).
        mode: of its normalisation, such as MEAN_STD.
    """

    kind: str
    shape: tuple[int, ...]
    mode: str


def _read_features(config: JsonObject, is_of_2024: bool) -> dict[str, PolicyFeature]:
    """All inputs and outputs by name, cameras in the policy's order.

    Raises:
        UserError: for a file of another layout, or a normalisation that LeRobot does not have.
    """
    features = {}
    for side in ("input", "output"):
        if is_of_2024:
            shapes, modes = config.object(f"{side}_shapes"), config.object(f"{side}_normalization_modes")
            kinds = {STATE: "STATE", "observation.environment_state": "ENV", ACTION: "ACTION"}
            for name in shapes.content:
                kind = "VISUAL" if name.startswith("observation.image") else kinds.get(name, "")
                mode = _checked_mode(modes.get(name, str, IDENTITY).upper(), config)
                features[name] = PolicyFeature(kind, _shape(shapes, name), mode)
        else:
            described, modes = config.object(f"{side}_features"), config.object("normalization_mapping")
            for name in described.content:
                kind = described.object(name).get("type", str, "")
                mode = _checked_mode(modes.get(kind, str, IDENTITY), config)
                features[name] = PolicyFeature(kind, _shape(described.object(name), "shape"), mode)
    return features


def _checked_mode(mode: str, config: JsonObject) -> str:
    if mode not in _MODES:
        raise UserError(f"{config.path} normalises by {ascii(mode)[:40]}; known are {', '.join(_MODES)}")
    return mode


def _shape(content: JsonObject, name: str) -> tuple[int, ...]:
    shape = content.get(name, list, [])
    if not all(type(size) is int and size > 0 for size in shape):
        raise UserError(f"{content.path}: '{ascii(name)[1:-1]}' has the shape {ascii(shape)[:80]}")
    return tuple(shape)


def _obstacles(config: JsonObject, features: Mapping[str, PolicyFeature]) -> list[str]:
    """Features of the policy that bimact's lacks."""
    kinds = [feature.kind for feature in features.values()]
    backbone, activation = (
        config.get("vision_backbone", str, "resnet18"),
        config.get("feedforward_activation", str, "relu"),
    )
    found = {
        f"it is a policy of the type {ascii(config.content.get('type'))[:40]}": config.get("type", str, "act") != "act",
        "it sees several past observations (n_obs_steps)": config.get("n_obs_steps", int, 1) != 1,
        "its backbone has a dilation (replace_final_stride_with_dilation)": bool(
            config.content.get("replace_final_stride_with_dilation")
        ),
        f"its backbone is {ascii(backbone)[:40]}": backbone not in ("resnet18", "resnet34", "resnet50"),
        f"its activation is {ascii(activation)[:40]}": activation != "relu",
        "it sees the environment's state": "ENV" in kinds,
        "it sees no proprioceptive state": STATE not in features,
        "it sees no camera": "VISUAL" not in kinds,
    }
    return [sentence for sentence, holds in found.items() if holds]


def _take_over(config: JsonObject, settings: dict[str, Any]) -> list[str]:
    """Fill in LeRobot's settings of acting and training; returns notes on what cannot be expressed."""
    for theirs, (ours, kind) in _TAKEN_OVER.items():
        value = config.get(theirs, kind, None)
        if value is not None:
            settings[ours] = value
    settings.setdefault("nheads", 8)
    coefficient = config.get("temporal_ensemble_coeff", float, None)
    steps = config.get("n_action_steps", int, settings["chunk_size"])
    if coefficient is not None:
        settings |= {"temporal_ensemble": True, "ensemble_coefficient": coefficient}
    elif steps != settings["chunk_size"]:
        settings["execute_steps"] = steps
    if config.content.get("temporal_ensemble_momentum") is not None:
        return [
            "LeRobot's moving average over chunks (temporal_ensemble_momentum) is left out: bimact weighs chunks as "
            "the paper does, if temporal_ensemble is set"
        ]
    return []


def _camera_names(images: Sequence[str], cameras: Sequence[str] | None, steps: Sequence[JsonObject]) -> list[str]:
    """Names of the cameras: as given, or as the robot calls them before the processor renames them."""
    if cameras is not None:
        if len(cameras) != len(images):
            seen = ", ".join(ascii(name)[1:-1] for name in images)
            raise UserError(f"the policy sees {len(images)} cameras ({seen}), and --cameras names {len(cameras)}")
        return checked_cameras(cameras)
    of_robot: dict[str, str] = {}
    for step in steps:
        mapping = step.object("config").object("rename_map")
        of_robot |= {mapping.get(robot, str, ""): robot for robot in mapping.content}
    # `observation.images.top` → `top`, `observation.image` → `image`
    prefixes = ("observation.", "images.", "image.")
    names = []
    for image in images:
        name = of_robot.get(image, image)
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        names.append(name)
    return checked_cameras(names)


# Statistics --------------------------------------------------------------------------------------------


def _image_statistics(images: Sequence[Affine], folder: Path) -> dict[str, list[float] | None]:
    """The encoder's `image_mean` and `image_std`; null for those of ImageNet, its default."""
    first = images[0]
    if not all(_close(image.center, first.center) and _close(image.std, first.std) for image in images):
        raise UserError(
            f"{folder} normalises each camera differently, and bimact all cameras alike: train it with "
            "LeRobot's use_imagenet_stats, or with one camera"
        )
    if float(first.std.min()) < _LEAST_STD:
        raise UserError(f"{folder} was trained with constant images: their standard deviation is {first.std.tolist()}")
    if _close(first.center, torch.tensor(IMAGENET_MEAN)) and _close(first.std, torch.tensor(IMAGENET_STD)):
        return {"image_mean": None, "image_std": None}
    return {"image_mean": _short(first.center), "image_std": _short(first.std)}


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-6, atol=1e-7)


def _short(values: Tensor) -> list[float]:
    """The shortest decimals that give the same float32."""
    return [float(str(value)) for value in values.numpy()]


@dataclass(frozen=True)
class _Normalization:
    """The normalisation of observations, or the inverse one of actions.

    Attributes:
        path: of its file, for messages.
        modes: by feature.
        statistics: by feature, then by name, such as "mean".
        epsilon: what LeRobot adds so as not to divide by 0.
        widens: whether epsilon is added to every range, or only replaces an empty one.
        required: whether missing statistics are an error; otherwise the feature is not normalised.
    """

    path: Path
    modes: Mapping[str, str]
    statistics: Mapping[str, Mapping[str, Tensor]]
    epsilon: float = _EPSILON
    widens: bool = False
    required: bool = False

    def affine(self, name: str, size: int, *, inverse: bool = False) -> Affine:
        """The transform of a feature of a size, or its inverse.

        Raises:
            UserError: if the statistics are missing or invalid.
        """
        mode = self.modes.get(name, IDENTITY)
        if mode == IDENTITY or (name not in self.statistics and not self.required):
            return Affine(torch.zeros(size), torch.ones(size))
        if mode == "MEAN_STD":
            mean, std = (self._numbers(name, kind, size) for kind in ("mean", "std"))
            # The inverse has no epsilon, but a std of 0 would not allow training.
            return Affine(mean, std.clamp(min=self.epsilon) if inverse else std + self.epsilon)
        low, high = (self._numbers(name, kind, size) for kind in _BOUNDS[mode])
        width = high - low
        width = width + self.epsilon if self.widens else torch.where(width == 0, self.epsilon, width)
        return Affine(low, width / 2, shift=-1.0)

    def notes(self, names: Iterable[str]) -> list[str]:
        """Features that should be normalised, but are not by LeRobot, for want of statistics."""
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


def _from_buffers(
    weights: Mapping[str, Tensor], features: Mapping[str, PolicyFeature], path: Path
) -> list[_Normalization]:
    """Of observations and of actions, from buffers such as `normalize_inputs.buffer_observation_state.mean`."""
    modes = {name: feature.mode for name, feature in features.items()}
    found = []
    for side in ("normalize_inputs", "unnormalize_outputs"):
        statistics = {name: _below(weights, f"{side}.buffer_{name.replace('.', '_')}.") for name in features}
        found.append(_Normalization(path, modes, statistics, widens=True, required=True))
    return found


def _below(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _from_steps(steps: list[JsonObject], kind: str, folder: Path) -> _Normalization:
    """From the step of a kind among those of a processor.

    Raises:
        UserError: if there are several, or its file is missing or cannot be read.
    """
    mine = [step for step in steps if step.get("registry_name", str, "") == kind]
    if len(mine) > 1:
        raise UserError(f"{mine[0].path} normalises {len(mine)} times, which bimact cannot represent")
    if not mine:
        return _Normalization(folder, {}, {})
    step, config = mine[0], mine[0].object("config")
    features, norm_map = config.object("features"), config.object("norm_map")
    chosen = config.get("normalize_observation_keys", list, list(features.content))
    kinds = {name: features.object(name).get("type", str, "") for name in features.content if name in chosen}
    kinds[ACTION] = "ACTION"  # which the step always normalises
    modes = {name: _checked_mode(norm_map.get(type_, str, IDENTITY), step) for name, type_ in kinds.items()}
    epsilon = config.get("eps", float, _EPSILON)
    state_file = step.get("state_file", str, None)
    if state_file is None:
        return _Normalization(step.path, modes, {}, epsilon)
    if Path(state_file).name != state_file or not state_file.endswith(".safetensors"):
        raise UserError(
            f"{step.path} names {ascii(state_file)[:80]}, which is not a file of its folder: do not trust it"
        )
    file = folder / state_file
    if not file.is_file():
        raise UserError(f"{file} is missing")
    values = state_dicts(read_content(file)).get((), {})
    statistics = {name: below for name in modes if (below := _below(values, f"{name}."))}
    return _Normalization(file, modes, statistics, epsilon)
