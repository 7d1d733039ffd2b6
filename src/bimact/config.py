"""Every setting of bimact: its type, default, allowed range and meaning, in one place.

Keys are flat, as in `configs/policy_act.yaml`, but for the encoder's, which are nested under `encoder`. Text stays
text: what a setting of type text (or list of text) is given as, `007` or `yes`, is its value, or is refused.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bimact.errors import UserError
from bimact.files import expand_home, write_text
from bimact.yaml_file import Written, parse_yaml, read_yaml


def key(
    default: Any,
    meaning: str,
    advice: str | None = None,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    is_path: bool = False,
) -> Any:
    """A setting: its meaning, when to touch it (`advice`), what it may be (`low ≤ x ≤ high`, `above < x < below`).

    In one with `is_path`, a `~` at the start stands for the user's home folder.
    """
    metadata = {
        "meaning": meaning,
        "advice": advice,
        "low": low,
        "above": above,
        "high": high,
        "below": below,
        "choices": choices,
        "is_path": is_path,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class EncoderConfig:
    """How camera images become tokens."""

    name: str = key(
        "clip_vit", "clip_vit, pri3d, timm, conv, or one of a plug-in", "pri3d, timm: see places; conv: no GPU needed"
    )
    model_name: str | None = key(
        None,
        "the network: ViT-B-32 (null) or another of open_clip, resnet18 (null), 34 or 50 for pri3d, any of timm",
        "a larger one where detail decides; RN50 or resnet18 for less memory",
    )
    pretrained: Any = key(
        True,
        "weights: a tag that the library knows, a file's path, true (the encoder's usual ones), null (random)",
        "a path where there is no internet; null to train from scratch, with freeze: false",
        is_path=True,
    )
    freeze: bool = key(
        True,
        "keep the encoder as it is: no gradients, statistics of evaluation mode, no optimizer state",
        "false for random weights, or to fine-tune where memory and demonstrations allow it",
    )
    train_last: int = key(
        0,
        "with freeze: blocks at the encoder's end that are trained nevertheless (clip_vit: of a ViT; pri3d: stages)",
        "1 or 2 where frozen features do not suffice; the rest is still computed once",
        low=0,
    )
    fuse: str = key(
        "mean",
        "how cameras are joined: their tokens averaged, mixed by an MLP, weighed by gates, or kept apart",
        "tokens, as in the paper, where it matters which camera saw a thing",
        choices=("mean", "concat_mlp", "gated", "tokens"),
    )
    spatial: bool | None = key(
        None, "a token a place (true), one an image (false); null: as the encoder does", "true: clip_vit sees places"
    )
    crop: list[float] | None = key(
        None,
        "the part of each image that is used: top, left, height, width as fractions of the image",
        "to the workspace, if the objects are small in the image",
    )
    image_size: list[int] | None = key(
        None,
        "height and width in pixels to resize to after the crop; null: as the encoder needs",
        "smaller for speed, larger for small objects",
    )
    image_mean: list[float] | None = key(
        None, "subtracted from red, green, blue in [0, 1]; null: as the weights need", "never: converted runs have it"
    )
    image_std: list[float] | None = key(
        None, "what red, green, blue are then divided by; null: as the weights need", "never: converted runs have it"
    )
    weights_from_checkpoint: bool = key(
        False, "load no pretrained weights, since the run's checkpoints hold them", "never: a run's own config has it"
    )
    channels: list[int] = key(
        [64, 128, 256], "conv: channels of its stages, each but the first at half the size", "smaller for speed"
    )


@dataclass
class Config:
    """One training run and the policy that comes out of it."""

    # data
    dataset_dir: str | None = key(None, "the demonstrations", "always", is_path=True)
    dataset_dir_relative: str | None = key(
        None,
        "where they are, seen from the run's folder: tried if dataset_dir is gone",
        "never: a run's own config has it",
    )
    output_dir: str | None = key(None, "where the run goes", "always: a new folder for each run", is_path=True)
    cameras: list[str] | None = key(
        None, "which cameras to use; null: all that the dataset has", "to see what a camera is worth, or for speed"
    )
    state_keys: list[str] | None = key(
        None,
        "which columns of the dataset make up the proprioceptive state; null: the format's own",
        "to add velocities or efforts: qpos,qvel",
    )
    action_keys: list[str] | None = key(
        None, "which columns of the dataset make up the action; null: the format's own", "if there are several"
    )
    state_dims: str | None = key(
        None, "dimensions of the state to use, as in 0:14 or 0:7,13:20; null: all", "to leave out legs, hands, a base"
    )
    action_dims: str | None = key(
        None, "dimensions of the action to use, as in 0:14; null: all", "with state_dims, usually the same"
    )
    episodes: list[str] | None = key(
        None, "episodes to use, by their numbers or names, as in 0:40,45; null: all", "to leave out what was tried out"
    )
    exclude_episodes: list[str] | None = key(
        None, "episodes to leave out, by their numbers or names, as in 3,17", "where some are damaged or went wrong"
    )
    max_episodes: int | None = key(
        None, "of these, the first N episodes; null: all", "for a quick try, or to see what more data is worth", low=1
    )
    skip_unreadable: bool = key(
        False,
        "train without the episodes that are damaged or hold NaN or Inf, and list them",
        "where few of many episodes are damaged and cannot be copied again",
    )
    filter_key: str | None = key(
        None, "use the episodes that the dataset lists under this name", "robomimic's train, valid, 20_percent …"
    )
    fps: float | None = key(
        None,
        "steps a second; another number than the dataset's resamples it; null: the dataset's",
        "lower (25, 15) if a chunk is to reach further, or the robot is slow",
        above=0,
    )
    color_order: str | None = key(
        None,
        "rgb or bgr, where a dataset's JPEG images leave it open; null: decided by looking at them",
        "if red things look blue in `bimact view`",
        choices=("rgb", "bgr"),
    )
    image_size: list[int] | None = key(
        None,
        "height and width of the cameras' images; filled in where all have the same",
        "never: see encoder.image_size",
    )
    val_split: float = key(
        0.1, "share of the episodes held out for validation", "0 for a last run on all of them", low=0, below=1
    )
    batch_size: int = key(8, "samples a process takes at once", "lower if memory runs out; higher for speed", low=1)
    auto_batch_size: bool = key(
        False, "take the largest power of two that fits into memory as batch_size", "to fill a GPU without trying sizes"
    )
    num_workers: int | None = key(
        None, "threads that load data; null: chosen by the machine", "higher if the GPU waits for data", low=0
    )
    cache_dir: str | None = key(
        None,
        "where converted datasets go; null: beside the dataset",
        "if the dataset's disk is full or read-only",
        is_path=True,
    )

    feature_cache: bool | None = key(
        None,
        "encode each image once and keep the tokens on disk, which a frozen encoder allows; null: if that is less work",
        "false if the tokens do not fit on the disk",
    )

    # policy
    chunk_size: int = key(
        50, "actions predicted at once (the horizon, in steps)", "one to two seconds; more for long tasks", low=1
    )
    temporal_context: int = key(
        3,
        "observations that the policy sees: the present one and past ones",
        "1 as in the paper; 5 where one image does not tell what goes on",
        low=1,
    )
    state_dim: int | None = key(None, "size of the proprioceptive state; null: the dataset's", "never", low=1)
    action_dim: int | None = key(None, "size of an action; null: the dataset's", "never", low=1)
    hidden_dim: int = key(512, "width of the transformer", "256 for speed and memory", low=4)
    nheads: int = key(8, "attention heads; they divide hidden_dim", "rarely: hidden_dim / 64 is usual", low=1)
    num_encoder_layers: int = key(4, "layers over the observation tokens", "2 for speed", low=1)
    num_decoder_layers: int = key(
        7, "layers that turn queries into the action chunk; all of them count", "4 for speed; 1 is often enough", low=1
    )
    dim_feedforward: int = key(
        3200, "width of each layer's feed-forward part", "with hidden_dim, 4 to 6 times it", low=1
    )
    dropout: float = key(
        0.1,
        "share of activations dropped in training",
        "0 for scripted demonstrations; more against overfitting",
        low=0,
        below=1,
    )
    pre_norm: bool = key(
        False, "normalise before attention and feed-forward instead of after", "true to bear a higher lr"
    )
    use_vae: bool = key(
        True, "the CVAE of the paper; false: the latent is always 0", "false if all demonstrations have one style"
    )
    latent_dim: int = key(32, "size of the CVAE's latent", "rarely", low=1)
    n_vae_encoder_layers: int = key(4, "layers of the CVAE's encoder", "rarely: they cost training time alone", low=1)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    # loss and optimizer
    action_loss: str = key(
        "l1", "loss between predicted and demonstrated actions", "l2 to punish large errors more", choices=("l1", "l2")
    )
    kl_weight: float = key(
        10.0, "weight of the CVAE's KL divergence", "lower (5, 1) if the KL loss is high or learning slow", low=0
    )
    lr: float = key(
        1.0e-5, "learning rate", "lower (5e-6, 1e-6) if the loss jumps; higher (5e-5) if it falls slowly", above=0
    )
    scale_lr: str = key(
        "none",
        "how the learning rates grow with processes x gradient_accumulation_steps",
        "linear or sqrt when several GPUs make the batch larger",
        choices=("none", "linear", "sqrt"),
    )
    lr_backbone: float | None = key(
        None, "learning rate of the image backbone; null: lr", "lower than lr to fine-tune gently", above=0
    )
    lr_schedule: str = key(
        "constant", "learning rate after the warm-up", "cosine for a high lr", choices=("constant", "cosine")
    )
    warmup_steps: int = key(0, "steps over which the learning rate rises from 0", "100 or more for a high lr", low=0)
    gradient_accumulation_steps: int = key(
        1, "batches whose gradients make one optimizer step", "for larger batches than memory holds", low=1
    )
    weight_decay: float = key(1.0e-4, "AdamW's weight decay", "rarely; higher against overfitting", low=0)
    grad_clip_norm: float | None = key(
        10.0, "largest norm of the gradient; null: no clipping", "lower (1) if the loss jumps", above=0
    )
    num_epochs: int = key(2000, "passes over the training samples", "until val_loss stops falling", low=1)
    num_steps: int | None = key(
        None, "end after this many optimizer steps; null: num_epochs counts", "to compare datasets at equal work", low=1
    )
    mixed_precision: str = key(
        "auto",
        "auto: bf16 where the device has it in hardware",
        "no to find the cause of a bad loss; fp16 on older GPUs",
        choices=("auto", "no", "bf16", "fp16"),
    )
    compile: bool = key(
        False,
        "torch.compile the policy for training, on a CUDA GPU with CUDA graphs",
        "true on a GPU that waits for small batches; CPUs are slower with it",
    )
    seed: int = key(
        0, "of initial weights, sample order, dropout and the latent", "several, to see what is chance", low=0
    )
    device: str = key("auto", "cuda, cuda:1, mps, cpu, or auto: the best that there is", "to choose a GPU")

    # what a run writes
    checkpoint_frequency: int = key(10, "save every so many epochs", "higher for short epochs or a small disk", low=1)
    log_frequency: int = key(100, "print a line every so many steps", "lower for short runs", low=1)
    tensorboard: bool = key(True, "write TensorBoard files beside metrics.jsonl", "false if nobody reads them")
    wandb_project: str | None = key(
        None, "log to this Weights & Biases project; null: do not", "to compare runs in a browser"
    )
    wandb_name: str | None = key(None, "name of the Weights & Biases run", "to find it again")
    wandb_tags: list[str] | None = key(None, "tags of the Weights & Biases run, as in a,b", "to group runs")
    wandb_checkpoints: str = key(
        "best",
        "which checkpoints go to Weights & Biases as artifacts",
        "none where the upload is slow; all fills the account soon",
        choices=("none", "best", "all"),
    )

    # acting
    execute_steps: int | None = key(
        None, "steps of a chunk to execute before the next; null: all", "fewer to react sooner: half, or 10", low=1
    )
    temporal_ensemble: bool = key(
        False, "predict at each step and average what chunks say of it", "true for smooth motion, if there is time"
    )
    ensemble_window: int | None = key(
        None, "how many of the newest chunks are averaged; null: all", "fewer to react sooner", low=1
    )
    ensemble_coefficient: float = key(
        0.01, "m of the weights exp(-m i), oldest chunk first (i = 0)", "below 0 to trust new chunks more"
    )


def to_config(config: Any) -> Config:
    """A mapping, an OmegaConf node or a `Config` → a validated `Config`.

    Text in a mapping or a `Config` is taken as it is; in a node, `${...}` is resolved.

    Raises:
        UserError: for a key that does not exist (naming its nearest neighbour), a wrong type or range; also for a
            number or truth value in the place of text, since `OmegaConf.load` makes the number 7 of a bare `007`.
    """
    if isinstance(config, DictConfig):
        content = cast(dict[str, Any], OmegaConf.to_container(config))
        return _validated(_resolved({name: _escaped(value, keep=True) for name, value in _flat(content)}, {}, {}), {})
    content = dataclasses.asdict(config) if isinstance(config, Config) else dict(config)
    for name, value in content.items():
        if isinstance(value, (DictConfig, ListConfig)):
            try:
                content[name] = OmegaConf.to_container(value, resolve=True)
            except OmegaConfBaseException as error:
                raise UserError(f"setting '{name}': {_first_line(error)}") from None
    return _validated(dict(_flat(content)), {})


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """A YAML file and `key=value` settings on top of it → a validated `Config`.

    In the file, text is what is written there, in quotes or not, with `${other_key}` and `${oc.env:NAME}` replaced as
    OmegaConf does it; a bare `null` is null. In `key=value` all text is taken as it is, but for `null`.

    Raises:
        UserError: as `to_config`, with the line of the file; or if the file cannot be read.
    """
    in_file: dict[str, Any] = {}
    lines: dict[str, int] = {}
    if path is not None:
        path = Path(expand_home(path))
        written = read_yaml(path, "config file")
        if written is not None and not isinstance(written.value, dict):
            raise UserError(f"config file {path} holds no `key: value` lines")
        for name, item in _flat({} if written is None else written.value):
            place = f"{path}, line {item.line}: "
            if name in lines:
                raise UserError(f"{place}'{name}' is given twice, before in line {lines[name]}: remove one")
            in_file[name], lines[name] = value_as_written(name, item, place), item.line
    given = {}
    for override in overrides:
        name, _, text = override.partition("=")
        given[name] = _from_line(name, text)
    # Where a setting has its value from, for messages.
    places = {name: f"{path}, line {line}: " for name, line in lines.items() if name not in given}
    return _validated({**_resolved(in_file, given, places), **given}, places)


def save_config(config: Config, path: str | Path) -> None:
    """Write every key of a config as YAML that `load_config` and `OmegaConf.load` read back."""
    content = _nested({name: _escaped(value) for name, value in _flat(dataclasses.asdict(config))})
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(content)))


def settings(schema: type = Config, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """All keys, nested ones with dots, and how the schema describes them."""
    found = {}
    for entry in dataclasses.fields(schema):
        if entry.name == "encoder":
            found.update(settings(EncoderConfig, "encoder."))
        else:
            found[prefix + entry.name] = entry
    return found


def setting_names() -> list[str]:
    """All keys, nested ones with dots."""
    return list(settings())


def setting_value(config: Config, name: str) -> Any:
    """The value of a setting, given by its name, such as `encoder.fuse`."""
    group, dot, key = name.partition(".")
    return getattr(getattr(config, group), key) if dot else getattr(config, name)


@cache
def _types() -> dict[str, tuple[Any, bool]]:
    """The type of each setting without null, and whether it may be null."""
    hints = typing.get_type_hints(Config)
    hints |= {f"encoder.{name}": hint for name, hint in typing.get_type_hints(EncoderConfig).items()}
    found = {}
    for name in setting_names():
        options = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        kind = next(option for option in options if option is not type(None))
        found[name] = (kind, type(None) in options or kind is Any)
    return found


def is_text(name: str) -> bool:
    """Whether a setting is text, a list of text, or text unless it is true, false or null."""
    return _types()[name][0] in (str, list[str], Any)


def may_be_true(name: str) -> bool:
    """Whether `true` is a value of a setting; also of one that does not exist, of which another sentence tells."""
    return name not in _types() or _types()[name][0] in (bool, Any)


def list_of_text(text: str) -> list[str]:
    """A list in one text: `a,b`, or `[a,b]`.

    Spaces around an item do not count. An item with a comma in it stands in double quotes: `"a,b",c`. Within brackets
    quoted items are read as JSON or Python writes them.

    Raises:
        UserError: for a bracket without its counterpart.
    """
    text = text.strip()
    in_brackets = text.startswith("[")
    if in_brackets:
        if not text.endswith("]") or len(text) == 1:
            raise UserError(f"cannot read the list {text}: it begins with [ and does not end with ]")
        text = text[1:-1]
    quoted = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'' if in_brackets else '"(?:[^"]|"")*"'
    items = []
    for match in re.finditer(rf"\s*(?:({quoted})\s*|([^,]*))(?:,|$)", text, re.DOTALL):
        whole, bare = match[1], (match[2] or "").strip()
        if whole is not None:
            items.append(_unquoted(whole) if in_brackets else whole[1:-1].replace('""', '"'))
        elif in_brackets and re.search(r"[\[\]]", bare):
            raise UserError(f"cannot read the list [{text}]: put an item that holds [ or ] in quotes")
        elif bare:
            items.append(bare)
    return items


def _unquoted(text: str) -> str:
    for read in (json.loads, ast.literal_eval):
        try:
            return str(read(text))
        except (ValueError, SyntaxError):
            continue
    return text[1:-1]


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names of settings, those of the encoder with a dot, and what they are given as."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        group = value.value if isinstance(value, Written) else value
        if name == "encoder" and (group is None or isinstance(group, Mapping)):
            yield from _flat(group or {}, "encoder.")
        else:
            yield name, value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The contrary of `_flat`."""
    result: dict[str, Any] = {}
    for name, value in flat.items():
        group, dot, key = name.partition(".")
        if dot:
            result.setdefault(group, {})[key] = value
        else:
            result[name] = value
    return result


def _type_of(name: str, place: str = "") -> tuple[Any, bool]:
    """As `_types` has it.

    Raises:
        UserError: if there is no such setting.
    """
    if name in _types():
        return _types()[name]
    if name == "encoder":
        raise UserError(f"{place}'encoder' is no setting of its own but a group: set encoder.name and its other keys")
    close = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UserError(f"{place}no setting named '{name}'{hint}")


def value_as_written(name: str, written: Written, place: str = "") -> Any:
    """A setting's value as a YAML file has it: text as it is written, with `${...}` still in it.

    Raises:
        UserError: if there is no such setting, or the value is a list or a group of keys where it cannot be; the
            sentence begins with `place`.
    """
    kind, _ = _type_of(name, place)
    value = written.value
    is_list = typing.get_origin(kind) is list
    is_replaced = isinstance(value, str) and "${" in value
    advice = ": put it in quotes" if kind in (str, Any) else ""
    if isinstance(value, dict) or (isinstance(value, list) and not is_list):
        raise UserError(f"{place}setting '{name}' is {written.kind}, it has to be {_named(name)}{advice}")
    if is_list and not is_text(name) and not isinstance(value, list) and value is not None and not is_replaced:
        raise UserError(f"{place}setting '{name}' is {written.text}, it has to be {_named(name)}")
    if isinstance(value, list):
        for item in value:
            if isinstance(item.value, (list, dict)):
                what = f"{item.kind}, which it cannot be" + (": put it in quotes" if is_text(name) else "")
                raise UserError(f"{place}an item of setting '{name}' is {what}")
            if item.value is None and not item.text:
                raise UserError(f"{place}an item of setting '{name}' is empty: remove it")
        return [item.text if kind == list[str] else item.value for item in value]
    if value is None or not is_text(name):
        return value
    if kind is Any and isinstance(value, bool) and written.text.lower() in ("true", "false"):
        return value
    return written.text


def _from_line(name: str, text: str) -> Any:
    """A setting's value as a command line has it: text as it is given."""
    kind, optional = _type_of(name)
    if text == "null" and optional:
        return None
    if kind is Any:
        return {"true": True, "false": False}.get(text.lower(), text)
    if is_text(name):
        return text
    is_list = typing.get_origin(kind) is list
    try:
        written = parse_yaml(f"[{text}]" if is_list and not text.lstrip().startswith("[") else text, "it")
    except UserError:
        written = None
    value = None if written is None else written.plain()
    if value is None or isinstance(value, (list, dict)) != is_list:
        raise UserError(f"setting '{name}' is '{text}', it has to be {_named(name)}")
    return value


def _resolved(in_file: Mapping[str, Any], given: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """What a file gives, with `${...}` replaced; what `given` has in its place is left out."""
    for name in in_file:
        _type_of(name)
    defaults = dict(_flat(dataclasses.asdict(Config())))
    literal = {name: _escaped(value) for name, value in {**defaults, **given}.items()}
    context = None
    result = {}
    name = ""
    try:
        for name, value in in_file.items():
            items = value if isinstance(value, list) else [value]
            if name in given:
                continue
            if not any("${" in item for item in items if isinstance(item, str)):
                result[name] = [_unescaped(item) for item in items] if isinstance(value, list) else _unescaped(value)
                continue
            if context is None:  # made only where it is needed
                context = OmegaConf.create(_nested({**literal, **in_file, **{key: literal[key] for key in given}}))
            group, dot, key = name.partition(".")
            found = context[group][key] if dot else context[name]
            if isinstance(found, ListConfig):
                found = cast(list[Any], OmegaConf.to_container(found, resolve=True))
                result[name] = [_number_as_text(item) for item in found] if is_text(name) else found
            else:
                result[name] = _number_as_text(found) if is_text(name) else found
    except (OmegaConfBaseException, RecursionError) as error:
        # A text that cannot be parsed is told of before its turn; an item of a list has a number behind the name.
        name = re.sub(r"\[\d+\]$", "", getattr(error, "full_key", None) or name)
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", _first_line(error)).strip('"')
        raise UserError(
            f"{places.get(name, '')}setting '{name}': ${{...}} cannot be replaced ({reason}); as text it is \\${{...}}"
        ) from None
    return result


def _number_as_text(value: Any) -> Any:
    """Of `${seed}` in the place of text."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _escaped(value: Any, *, keep: bool = False) -> Any:
    """Text as OmegaConf has to find it, to take it as it is: without interpolation, and not for a missing value.

    Args:
        value: of a setting; only text changes.
        keep: text with `${` in it, which is to be replaced or is escaped already.
    """
    if isinstance(value, (list, tuple)):
        return [_escaped(item, keep=keep) for item in value]
    if not isinstance(value, str) or (keep and "${" in value):
        return value
    if re.fullmatch(r"\\*\?\?\?", value):
        return "\\" + value
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)


def _unescaped(value: Any) -> Any:
    """The contrary of `_escaped`, for values without `${`."""
    is_escaped = isinstance(value, str) and re.fullmatch(r"\\+\?\?\?", value)
    return value[1:] if is_escaped else value


def _validated(given: Mapping[str, Any], places: Mapping[str, str]) -> Config:
    """The config that settings make, those that are not given by their defaults."""
    texts = {}
    others = {}
    for name, value in given.items():
        place = places.get(name, "")
        _, optional = _type_of(name, place)
        if value is None and not optional:
            raise UserError(f"{place}setting '{name}' is null, it has to be {_named(name)}")
        if is_text(name):
            texts[name] = _text(name, value, place)
        else:
            items = value if isinstance(value, (list, tuple)) else [value]
            if any("${" in item or "???" in item for item in items if isinstance(item, str)):  # of meaning to OmegaConf
                raise UserError(f"{place}setting '{name}' is {value!r}, it has to be {_named(name)}")
            others[name] = value
    try:
        config = cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), _nested(others))))
    except OmegaConfBaseException as error:
        name = error.full_key or ""
        name = re.sub(r"\[\d+\]$", "", name)
        raise UserError(f"{places.get(name, '')}setting '{name}': {_first_line(error)}") from None
    for name, value in texts.items():
        group, dot, key = name.partition(".")
        setattr(config.encoder if dot else config, key if dot else group, value)
    _check_ranges(config, places)
    _check_ranges(config.encoder, places, "encoder.")
    _check_together(config)
    return config


def _text(name: str, value: Any, place: str) -> Any:
    """The value of a setting that is text."""
    kind, _ = _type_of(name)
    if value is None or (kind is Any and isinstance(value, bool)):
        return value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    items = [value]
    if kind == list[str]:
        try:
            items = list_of_text(value) if isinstance(value, str) else value
        except UserError as error:
            raise UserError(f"{place}setting '{name}': {error}") from None
        if not isinstance(items, (list, tuple)):
            items = [items]
    for item in items:
        if isinstance(item, (bool, int, float)):
            read = f"the {'truth value' if isinstance(item, bool) else 'number'} {json.dumps(item)}"
            raise UserError(f"{place}setting '{name}' is read as {read}, it has to be {_named(name)}: put it in quotes")
        if not isinstance(item, str):
            raise UserError(f"{place}setting '{name}' is {item!r:.60}, it has to be {_named(name)}")
        if any("\ud800" <= letter <= "\udfff" for letter in item):
            raise UserError(f"{place}setting '{name}' is {item!a}, which is not UTF-8: take another name")
    if kind == list[str]:
        return list(items)
    if settings()[name].metadata["is_path"]:
        if "\0" in value or value == "":
            raise UserError(f"{place}setting '{name}' is {value!a}, it has to be a path or null")
        value = expand_home(value)
    return value


def _named(name: str) -> str:
    """What a setting may be, as a part of a sentence."""
    kind, optional = _types()[name]
    choices = settings()[name].metadata["choices"]
    if kind is Any:
        return "true, false, null or text"
    if typing.get_origin(kind) is list:
        words = {str: "a list of text", int: "a list of whole numbers", float: "a list of numbers"}
        what = words[typing.get_args(kind)[0]]
    else:
        what = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
    return (" or ".join(choices) if choices else what) + (" or null" if optional else "")


def _first_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error).splitlines()[0] if str(error) else type(error).__name__)


def _check_ranges(config: Any, places: Mapping[str, str], prefix: str = "") -> None:
    tests = {
        "low": ("at least", lambda value, bound: value >= bound),
        "above": ("more than", lambda value, bound: value > bound),
        "high": ("at most", lambda value, bound: value <= bound),
        "below": ("less than", lambda value, bound: value < bound),
    }
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if value is None:
            continue
        setting = f"{places.get(prefix + entry.name, '')}setting '{prefix}{entry.name}'"
        for name, (words, holds) in tests.items():
            bound = entry.metadata.get(name)
            if bound is not None and not holds(value, bound):
                raise UserError(f"{setting} is {value}, it has to be {words} {bound:g}")
        choices = entry.metadata.get("choices")
        if choices and value not in choices:
            raise UserError(f"{setting} is '{value}', it has to be {' or '.join(choices)}")


def _check_together(config: Config) -> None:
    """What only two keys together can get wrong."""
    if config.hidden_dim % config.nheads:
        raise UserError(f"hidden_dim ({config.hidden_dim}) has to be a multiple of nheads ({config.nheads})")
    if config.hidden_dim % 4:
        raise UserError(f"hidden_dim ({config.hidden_dim}) has to be a multiple of 4")
    if config.execute_steps is not None and config.execute_steps > config.chunk_size:
        raise UserError(f"execute_steps ({config.execute_steps}) cannot be more than chunk_size ({config.chunk_size})")
    if config.temporal_ensemble and config.execute_steps is not None:
        raise UserError(
            f"temporal_ensemble predicts at each step, so execute_steps ({config.execute_steps}) has no meaning: set "
            "one of them to false or null"
        )
    crop = config.encoder.crop
    if crop is not None:
        inside = len(crop) == 4 and min(crop) >= 0 and crop[0] + crop[2] <= 1 and crop[1] + crop[3] <= 1
        if not inside or crop[2] == 0 or crop[3] == 0:
            raise UserError(
                f"encoder.crop is {list(crop)}, it has to be [top, left, height, width] in fractions from 0 to 1"
            )
    for name, size in (("image_size", config.image_size), ("encoder.image_size", config.encoder.image_size)):
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise UserError(f"{name} is {list(size)}, it has to be [height, width] in pixels")
    for name in ("image_mean", "image_std"):
        colours = getattr(config.encoder, name)
        if colours is not None and (len(colours) != 3 or not all(map(isfinite, colours))):
            raise UserError(f"encoder.{name} is {list(colours)}, it has to be three numbers: of red, green and blue")
    if config.encoder.image_std is not None and min(config.encoder.image_std) <= 0:
        raise UserError(f"encoder.image_std is {list(config.encoder.image_std)}, it has to be more than 0")
