"""What a LeRobot policy sees and gives, as its `config.json` says in the layouts of 2024 and of 2025 on.

Formats: `lerobot/common/policies/act/configuration_act.py` before 3c0a209f9 (January 2025), then
`lerobot/configs/policies.py`, read up to v0.6.0 of https://github.com/huggingface/lerobot.
"""

from __future__ import annotations

from dataclasses import dataclass

from bimact.errors import UserError
from bimact.interop.json_file import JsonObject

STATE, ACTION, IDENTITY = "observation.state", "action", "IDENTITY"
_MODES = ("MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10", IDENTITY)
_HIGHEST_IMAGE = 10_000  # pixels


@dataclass(frozen=True)
class PolicyFeature:
    """An input or an output.

    Attributes:
        kind: VISUAL, STATE, ENV, ACTION or another.
        shape: of a step; images are (3, H, W).
        mode: how it is normalised, such as MEAN_STD.
    """

    kind: str
    shape: tuple[int, ...]
    mode: str


def is_of_2024(config: JsonObject) -> bool:
    return "input_shapes" in config.content


def read_features(config: JsonObject) -> dict[str, PolicyFeature]:
    """All inputs and outputs by name, cameras in the policy's order.

    Raises:
        UserError: for a file that is not of these layouts, or a way of normalising that LeRobot does not have.
    """
    features = {}
    for side in ("input", "output"):
        if is_of_2024(config):
            shapes, modes = config.object(f"{side}_shapes"), config.object(f"{side}_normalization_modes")
            for name in shapes.content:
                mode = modes.get(name, str, IDENTITY).upper()
                features[name] = PolicyFeature(_kind_of_2024(name), _shape(shapes, name), checked_mode(mode, config))
        else:
            described, modes = config.object(f"{side}_features"), config.object("normalization_mapping")
            for name in described.content:
                kind = described.object(name).get("type", str, "")
                mode = checked_mode(modes.get(kind, str, IDENTITY), config)
                features[name] = PolicyFeature(kind, _shape(described.object(name), "shape"), mode)
    return features


def checked_mode(mode: str, config: JsonObject) -> str:
    if mode not in _MODES:
        raise UserError(f"{config.path} normalises by {ascii(mode)[:40]}; known are {', '.join(_MODES)}")
    return mode


def _kind_of_2024(name: str) -> str:
    if name.startswith("observation.image"):
        return "VISUAL"
    return {STATE: "STATE", "observation.environment_state": "ENV", ACTION: "ACTION"}.get(name, "")


def _shape(content: JsonObject, name: str) -> tuple[int, ...]:
    shape = content.get(name, list, [])
    if not all(type(size) is int and size > 0 for size in shape):
        raise UserError(f"{content.path}: '{ascii(name)[1:-1]}' has the shape {ascii(shape)[:80]}")
    return tuple(shape)


def camera_name(feature: str) -> str:
    """`observation.images.top` → `top`, `observation.image` → `image`."""
    return feature.removeprefix("observation.").removeprefix("images.").removeprefix("image.")


def common_size(images: list[PolicyFeature]) -> list[int] | None:
    """Height and width of all cameras' images; None where they differ."""
    sizes = {image.shape[1:] for image in images if len(image.shape) == 3 and max(image.shape) <= _HIGHEST_IMAGE}
    return list(sizes.pop()) if len(sizes) == 1 and all(len(image.shape) == 3 for image in images) else None
