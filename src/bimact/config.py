"""Every setting of bimact: its type, default, allowed range and meaning, in one place.

Keys are flat, as in `configs/policy_act.yaml`, but for the encoder's, which are nested under `encoder`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from bimact.errors import UserError, in_words

_DIMENSIONS = ("state_dims", "action_dims")  # ranges, such as 7:14


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
) -> Any:
    """A setting: its meaning, when to touch it (`advice`), what it may be (`low ≤ x ≤ high`, `above < x < below`)."""
    metadata = {
        "meaning": meaning,
        "advice": advice,
        "low": low,
        "above": above,
        "high": high,
        "below": below,
        "choices": choices,
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
    dataset_dir: str | None = key(None, "the demonstrations", "always")
    output_dir: str | None = key(None, "where the run goes", "always: a new folder for each run")
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
    max_episodes: int | None = key(
        None, "use the first so many episodes; null: all", "for a quick try, or to see what more data is worth", low=1
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
        None, "where converted datasets go; null: beside the dataset", "if the dataset's disk is full or read-only"
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

    Raises:
        UserError: for a key that does not exist (naming its nearest neighbour), a wrong type or range.
    """
    if isinstance(config, Config):
        merged = OmegaConf.structured(config)
    else:
        content = config if isinstance(config, (DictConfig, dict)) else dict(config)
        merged = _merge(OmegaConf.structured(Config), content)
    result = cast(Config, OmegaConf.to_object(merged))
    if result.mixed_precision == "False":  # YAML 1.1 takes a bare `no` for false
        result.mixed_precision = "no"
    _check_ranges(result)
    _check_ranges(result.encoder, "encoder.")
    _check_together(result)
    return result


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """A YAML file and `key=value` settings on top of it → a validated `Config`."""
    content: DictConfig | ListConfig = OmegaConf.create({})
    if path is not None:
        try:
            content = OmegaConf.load(path)
        except FileNotFoundError:
            raise UserError(f"config file not found: {Path(path).resolve()}") from None
        except (YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
            raise UserError(f"config file {path} is no readable YAML: {in_words(error)}") from None
        if not isinstance(content, DictConfig):
            raise UserError(f"config file {path} holds no `key: value` lines")
    items = [_as_dotlist_item(item) for item in overrides]
    try:
        changes = OmegaConf.from_dotlist(items)
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot read the settings {' '.join(items)}: {_first_line(error)}") from None
    return to_config(_merge(_merge(OmegaConf.structured(Config), content), changes))


def save_config(config: Config, path: str | Path) -> None:
    """Write every key of a config as YAML that `load_config` and `OmegaConf.load` read back."""
    from bimact.files import write_text

    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


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


def _as_dotlist_item(item: str) -> str:
    """`wandb_tags=a,b` → `wandb_tags=[a,b]` for keys that hold lists; others as they are."""
    name, _, value = item.partition("=")
    if name in _DIMENSIONS and value != "null":
        return f"{name}='{value}'"  # YAML 1.1 takes 7:14 for a number to the base 60
    is_list = name in settings() and str(settings()[name].type).startswith("list")
    if is_list and value not in ("null", "") and not value.startswith("["):
        return f"{name}=[{value}]"
    return item


def _merge(schema: DictConfig, content: Any) -> DictConfig:
    for name in _DIMENSIONS:
        if isinstance(content.get(name), int):
            raise UserError(f"setting '{name}' is read as the number {content[name]}: put it in quotes, as '7:14'")
    try:
        return cast(DictConfig, OmegaConf.merge(schema, content))
    except ConfigKeyError as error:
        name = error.full_key or str(error.key)
        close = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"no setting named '{name}'{hint}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"setting '{error.full_key}': {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error).splitlines()[0])


def _check_ranges(config: Any, prefix: str = "") -> None:
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
        for name, (words, holds) in tests.items():
            bound = entry.metadata.get(name)
            if bound is not None and not holds(value, bound):
                raise UserError(f"setting '{prefix}{entry.name}' is {value}, it has to be {words} {bound:g}")
        choices = entry.metadata.get("choices")
        if choices and value not in choices:
            raise UserError(f"setting '{prefix}{entry.name}' is '{value}', it has to be {' or '.join(choices)}")


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
