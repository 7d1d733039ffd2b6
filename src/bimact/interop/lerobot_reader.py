"""A LeRobot ACT policy's folder → a policy of bimact, in the layouts of 2024 to 2026.

Such a folder holds `config.json`, `model.safetensors` and, since September 2025, the processors' files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimact.encoder.base import IMAGENET_MEAN, IMAGENET_STD
from bimact.errors import UserError
from bimact.interop.assembly import (
    Affine,
    Converted,
    assemble,
    checked_cameras,
    network_settings,
    read_policy,
)
from bimact.interop.json_file import JsonObject
from bimact.interop.lerobot_features import (
    ACTION,
    STATE,
    PolicyFeature,
    camera_name,
    common_size,
    is_of_2024,
    read_features,
)
from bimact.interop.lerobot_statistics import (
    NORMALIZER,
    POSTPROCESSOR,
    PREPROCESSOR,
    UNNORMALIZER,
    Normalization,
    foreign_steps,
    from_buffers,
    from_steps,
    names_of_robot,
    without_buffers,
)
from bimact.policy.lerobot_weights import from_lerobot
from bimact.policy.weights import LEROBOT

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_WEIGHTS = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_POLICY = "pretrained_model"
_PLACES = ("", _POLICY, f"checkpoints/last/{_POLICY}")  # in a training's folder
_SAME = {  # LeRobot's settings that the weights tell too, by their name there and here
    "chunk_size": "chunk_size",
    "dim_model": "hidden_dim",
    "dim_feedforward": "dim_feedforward",
    "n_encoder_layers": "num_encoder_layers",
    "n_decoder_layers": "num_decoder_layers",
    "use_vae": "use_vae",
}
_TAKEN_OVER = {  # LeRobot's settings that no weights tell
    "n_heads": ("nheads", int),
    "dropout": ("dropout", float),
    "kl_weight": ("kl_weight", float),
    "optimizer_lr": ("lr", float),
    "optimizer_lr_backbone": ("lr_backbone", float),
    "optimizer_weight_decay": ("weight_decay", float),
}
_LEAST_STD = 1e-4  # of images in [0, 1]: one that varies less has shown nothing
_LEAST_ACTION_STD = 1e-6  # rounding errors of an action that never changes


def lerobot_folder(path: Path) -> tuple[Path, list[str]] | None:
    """Where in a folder the policy lies.

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
    """The file of weights, or the index of several, of a policy's folder; where it has none, what it should have."""
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), folder / WEIGHTS)


def read_lerobot(folder: Path, cameras: Sequence[str] | None = None, weights_file: Path | None = None) -> Converted:
    """Read a LeRobot policy.

    Args:
        folder: which holds `config.json`.
        cameras: other names for the cameras, in the policy's order.
        weights_file: other weights for the folder's settings than `model.safetensors`.

    Raises:
        UserError: if files are missing or damaged, or the policy has what bimact's has not; the sentence lists it.
    """
    config = JsonObject.read(folder / CONFIG)
    features = read_features(config)
    steps = _Steps.read(folder)
    obstacles = [*_obstacles(config, features), *steps.obstacles()]
    if obstacles:
        raise UserError(f"{folder} cannot become a policy of bimact: {'; '.join(obstacles)}")
    path = weights_file or weights_of(folder)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    found = read_policy(path, LEROBOT)
    ours = _our_weights(found.tensors, path)
    settings = network_settings(ours, path)
    _check_same(config, settings, path)
    inputs, outputs = steps.normalizations(folder) or from_buffers(found.tensors, features, path)
    images = [name for name, feature in features.items() if feature.kind == "VISUAL"]
    settings["cameras"] = _camera_names(images, cameras, steps.names_of_robot())
    settings["image_size"] = common_size([features[name] for name in images])
    settings["encoder"] |= _image_statistics([inputs.affine(name, 3) for name in images], folder)
    notes = [*found.notes, *_take_over(config, settings)]
    notes += [*inputs.notes([*images, STATE]), *outputs.notes([ACTION])]
    state = inputs.affine(STATE, settings["state_dim"])
    action = outputs.affine(ACTION, settings["action_dim"], inverse=True)
    notes += _constant_actions(action)
    policy = assemble(settings, ours, state, action, path)
    layout = "2024" if is_of_2024(config) else "early 2025" if steps.before is None else "late 2025"
    return Converted(policy, f"LeRobot policy in the layout of {layout}", tuple(notes))


@dataclass(frozen=True)
class _Steps:
    """Of the two processors; None where there are none."""

    before: list[JsonObject] | None
    after: list[JsonObject] | None

    @classmethod
    def read(cls, folder: Path) -> _Steps:
        if not (folder / PREPROCESSOR).exists():
            return cls(None, None)
        before, after = (JsonObject.read(folder / name).objects("steps") for name in (PREPROCESSOR, POSTPROCESSOR))
        return cls(before, after)

    def obstacles(self) -> list[str]:
        foreign = foreign_steps(self.before or [], NORMALIZER) + foreign_steps(self.after or [], UNNORMALIZER)
        return [f"its processors have the step '{name}'" for name in foreign]

    def normalizations(self, folder: Path) -> tuple[Normalization, Normalization] | None:
        if self.before is None or self.after is None:
            return None
        return from_steps(self.before, NORMALIZER, folder), from_steps(self.after, UNNORMALIZER, folder)

    def names_of_robot(self) -> dict[str, str]:
        return names_of_robot(self.before or [])


def _obstacles(config: JsonObject, features: Mapping[str, PolicyFeature]) -> list[str]:
    """What the policy has that bimact's has not."""
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


def _our_weights(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    try:
        return from_lerobot(without_buffers(weights))
    except KeyError as error:
        raise UserError(f"{path} is not of LeRobot's ACT: {ascii(error.args[0])[1:-1][:200]}") from None


def _check_same(config: JsonObject, settings: Mapping[str, Any], path: Path) -> None:
    """Weights and settings of a folder have to belong together.

    Raises:
        UserError: naming the first that does not fit.
    """
    pairs = {theirs: settings[ours] for theirs, ours in _SAME.items()}
    pairs |= {"vision_backbone": settings["encoder"]["model_name"]}
    for name, value in pairs.items():
        said = config.get(name, type(value), value)
        if said != value:
            raise UserError(f"{path} has another network than {config.path} says: {name} is {value}, not {said}")


def _camera_names(images: Sequence[str], cameras: Sequence[str] | None, names_of_robot: Mapping[str, str]) -> list[str]:
    if cameras is not None and len(cameras) != len(images):
        seen = ", ".join(ascii(name)[1:-1] for name in images)
        raise UserError(f"the policy sees {len(images)} cameras ({seen}), and --cameras names {len(cameras)}")
    return checked_cameras(cameras or [camera_name(names_of_robot.get(name, name)) for name in images])


def _image_statistics(images: Sequence[Affine], folder: Path) -> dict[str, list[float] | None]:
    """The encoder's `image_mean` and `image_std`; null where they are ImageNet's, which it has by itself."""
    first = images[0]
    if not all(_close(image.center, first.center) and _close(image.std, first.std) for image in images):
        raise UserError(
            f"{folder} normalises each camera by other numbers, and bimact all cameras by the same: train it with "
            "LeRobot's use_imagenet_stats, or with one camera"
        )
    if float(first.std.min()) < _LEAST_STD:
        raise UserError(f"{folder} was trained with images that never change: their deviation is {first.std.tolist()}")
    if _close(first.center, torch.tensor(IMAGENET_MEAN)) and _close(first.std, torch.tensor(IMAGENET_STD)):
        return {"image_mean": None, "image_std": None}
    return {"image_mean": _short(first.center), "image_std": _short(first.std)}


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-6, atol=1e-7)


def _short(values: Tensor) -> list[float]:
    """As decimals that are no longer than they have to be to give the same float32 again."""
    return [float(str(value)) for value in values.numpy()]


def _take_over(config: JsonObject, settings: dict[str, Any]) -> list[str]:
    """Fill in what LeRobot's settings say of acting and training; gives what could not be."""
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


def _constant_actions(action: Affine) -> list[str]:
    constant = (action.std < _LEAST_ACTION_STD).nonzero().flatten().tolist()
    if not constant:
        return []
    numbers = ", ".join(map(str, constant))
    return [f"action {numbers} never changed in its training: to train it on with data where it does needs new weights"]
