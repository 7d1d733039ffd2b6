"""Every setting of bimact: its type, default, allowed range and meaning, in one place.

Keys are flat, as in `configs/policy_act.yaml`, except for two groups, `encoder` and `augmentation`. Text remains text:
the value of a setting of type text (or list of text) is exactly what is written, `007` or `yes`, or is refused.
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

from bimact.errors import UserError, first_line
from bimact.files import expand_home, write_text
from bimact.yaml_file import Written, parse_yaml, read_yaml


class SettingError(UserError):
    """An invalid value of a setting.

    Attributes:
        setting: its name.
    """

    def __init__(self, setting: str, sentence: str) -> None:
        super().__init__(sentence)
        self.setting = setting


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
    changes: str = "learning",
    selects: bool = False,
    record: bool = False,
) -> Any:
    """A setting with its full description.

    Args:
        default: its value if none is given.
        meaning: its effect.
        advice: when to change it.
        low: the smallest value; `above`, `high` and `below` are its other bounds (`low ≤ x ≤ high`, `above < x <
            below`).
        above: exclusive lower bound.
        high: the largest value.
        below: exclusive upper bound.
        choices: the only values.
        is_path: a leading `~` is the user's home directory.
        changes: what the setting affects, which decides whether a resumed run may change it: "network" (never: the
            saved weights would not fit), "learning" (with --override_config), "length" (freely, except with a cosine
            schedule, which would have been different from the beginning), "nothing" (freely).
        selects: it selects a part of the dataset; other commands than `bimact train` have it, too.
        record: written by a run into its own config; cannot be set.
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
        "changes": changes,
        "selects": selects,
        "record": record,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class EncoderConfig:
    """The image encoder: camera images to tokens."""

    name: str = key(
        "clip_vit",
        "clip_vit, pri3d (or resnet, the same encoder), timm, conv, or the name of a plug-in",
        "pri3d or timm for one token per location; conv needs no GPU",
        changes="network",
    )
    model_name: str | None = key(
        None,
        "the network: ViT-B-32 (null) or another one of open_clip; resnet18 (null), 34 or 50 for pri3d; any of timm",
        "larger where fine detail matters; RN50 or resnet18 for less memory",
        changes="network",
    )
    pretrained: Any = key(
        True,
        "weights: a tag of the library, a file's path, true (the encoder's default), null (random)",
        "a path if there is no internet; null to train from scratch, with freeze: false",
        is_path=True,
        changes="nothing",
    )
    freeze: bool = key(
        True,
        "keep the encoder fixed: no gradients, batch statistics of evaluation mode, no optimizer state",
        "false for random weights, or to fine-tune where memory and demonstrations allow it",
    )
    train_last: int = key(
        0,
        "with freeze: number of last blocks that are trained nevertheless (clip_vit: ViT blocks; pri3d: ResNet stages)",
        "1 or 2 where frozen features are not enough; the frozen part is still computed once per frame",
        low=0,
    )
    fuse: str = key(
        "mean",
        "fusion of the cameras' tokens: averaged, mixed by an MLP, weighted by gates, or kept separate",
        "tokens, as in the paper, if it matters which camera shows an object",
        choices=("mean", "concat_mlp", "gated", "tokens"),
        changes="network",
    )
    spatial: bool | None = key(
        None,
        "one token per spatial location (true) or per image (false); null: the encoder's default",
        "true for clip_vit where positions in the image matter",
        changes="network",
    )
    crop: list[float] | None = key(
        None,
        "crop of each image: top, left, height, width as fractions of the image",
        "crop to the workspace if objects are small in the image",
    )
    image_size: list[int] | None = key(
        None,
        "height and width in pixels to resize to after the crop; null: the encoder's default",
        "smaller for speed, larger for small objects",
    )
    image_mean: list[float] | None = key(
        None,
        "subtracted from red, green, blue in [0, 1]; null: the weights' own",
        record=True,
    )
    image_std: list[float] | None = key(
        None,
        "then red, green, blue are divided by these; null: the weights' own",
        record=True,
    )
    depth_range: list[float] = key(
        [0.1, 2.0],
        "depth cameras: nearest and farthest distance in metres that the depth encoder tells apart; nearer and farther "
        "ones count as the ends",
        "to the distances between camera and objects",
    )
    weights_from_checkpoint: bool = key(
        False,
        "do not load pretrained weights: the run's checkpoints hold them",
        changes="nothing",
        record=True,
    )
    channels: list[int] = key(
        [64, 128, 256],
        "conv: channels of each stage; each stage except the first halves the resolution",
        "smaller for speed",
        changes="network",
    )
    keypoints: int = key(
        0,
        "conv: points per image whose positions are its only token (spatial softmax); 0: one token per location",
        "32 where few demonstrations have to cover many object positions",
        low=0,
        changes="network",
    )


@dataclass
class AugmentationConfig:
    """Random augmentation of the camera images of training samples: kinds and ranges, named as in LeRobot."""

    translate: float = key(
        0.05,
        "largest shift, as a fraction of the height and of the width; the border is repeated",
        "the most useful kind: 0.02 to 0.1",
        low=0,
        below=1,
    )
    degrees: float = key(0.0, "largest rotation about the image's centre", "5 for a hand-held camera", low=0, high=180)
    perspective: float = key(
        0.0, "largest perspective distortion (torchvision's distortion_scale)", "0.1 to 0.2", low=0, high=1
    )
    brightness: list[float] | None = key([0.8, 1.2], "range of the brightness factor; null: unchanged", "lighting")
    contrast: list[float] | None = key([0.8, 1.2], "range of the contrast factor; null: unchanged", "lighting")
    saturation: list[float] | None = key([0.5, 1.5], "range of the saturation factor; null: unchanged", "lighting")
    hue: list[float] | None = key(
        [-0.05, 0.05],
        "range of the rotation about the grey axis, in turns; null: unchanged",
        "null if colours distinguish objects",
    )
    sharpness: list[float] | None = key([0.5, 1.5], "range of the sharpness factor; null: unchanged", "focus")
    erasing: float = key(
        0.0, "probability that a random rectangle is grey (torchvision's RandomErasing)", "0.25 against occlusion",
        low=0, high=1,
    )  # fmt: skip
    max_num_transforms: int = key(
        3,
        "maximum number of kinds from brightness to sharpness applied to one image, chosen at random",
        "rarely",
        low=0,
    )
    same_cameras: bool = key(False, "the same change for all cameras of a sample", "cameras with one exposure control")
    same_history: bool = key(True, "the same change for all images of an observation history", "rarely false")


GROUPS: dict[str, type] = {"encoder": EncoderConfig, "augmentation": AugmentationConfig}


@dataclass
class Config:
    """One training run and its policy."""

    # data
    dataset_dir: str | None = key(None, "the demonstrations", "always", is_path=True, changes="nothing")
    datasets: list[dict[str, Any]] | None = key(
        None,
        "several datasets to train on, in place of dataset_dir: each with a path and its own settings, where they "
        "differ from the run's (docs/training.md)",
        "to train one policy on all of them; dataset_dir: a,b is the short form",
    )
    dataset_dir_relative: str | None = key(
        None,
        "dataset_dir relative to the run directory, for runs that were moved together with their dataset",
        changes="nothing",
        record=True,
    )
    output_dir: str | None = key(
        None, "the run directory", "always; a new one for each run", is_path=True, changes="nothing"
    )
    cameras: list[str] | None = key(
        None,
        "which cameras to use; null: all of the dataset",
        "to measure what a camera contributes, or for speed",
        changes="network",
        selects=True,
    )
    state_keys: list[str] | None = key(
        None,
        "dataset columns that make up the proprioceptive state; null: the format's default",
        "to add velocities or efforts: qpos,qvel",
        selects=True,
    )
    action_keys: list[str] | None = key(
        None,
        "dataset columns that make up the action; null: the format's default",
        "if the dataset has several",
        selects=True,
    )
    state_dims: str | None = key(
        None,
        "dimensions of the state to use, as in 0:14 or 0:7,13:20; null: all",
        "to leave out legs, hands, a base",
        selects=True,
    )
    action_dims: str | None = key(
        None,
        "dimensions of the action to use, as in 0:14; null: all",
        "with state_dims, usually the same",
        selects=True,
    )
    episodes: list[str] | None = key(
        None,
        "episodes to use, by number or name, as in 0:40,45; null: all",
        "to leave out test recordings",
        selects=True,
    )
    exclude_episodes: list[str] | None = key(
        None,
        "episodes to leave out, by number or name, as in 3,17",
        "where some are damaged or failed",
        selects=True,
    )
    max_episodes: int | None = key(
        None,
        "use the first N of these episodes; null: all",
        "for a quick trial, or to measure what more data contributes",
        low=1,
        selects=True,
    )
    skip_unreadable: bool = key(
        False,
        "leave out episodes that are damaged or hold NaN or Inf, and list them",
        "where few of many episodes are damaged and cannot be restored",
        selects=True,
    )
    filter_key: str | None = key(
        None,
        "use the episodes that the dataset itself lists under this name",
        "robomimic's train, valid, 20_percent …",
        selects=True,
    )
    fps: float | None = key(
        None,
        "control frequency in Hz; resamples the dataset if it differs; null: the dataset's",
        "lower (25, 15) for a longer horizon in seconds, or for a slow robot",
        above=0,
        selects=True,
    )
    color_order: str | None = key(
        None,
        "color order of JPEG images where the files do not say it; null: detected from the images",
        "if red objects look blue in `bimact view`",
        choices=("rgb", "bgr"),
        selects=True,
    )
    skip_failed: bool = key(
        False,
        "leave out episodes that the dataset marks as failed (attribute or episode list: success)",
        "where failures were recorded too",
        selects=True,
    )
    skip_idle: bool = key(
        False,
        "leave out idle steps at the beginning and end of episodes, except the last and the first one",
        "if the policy waits before it begins, or `bimact check` reports idle-head, idle-tail",
    )
    sample_weights: str | None = key(
        None,
        "relative sampling frequency of training samples: a column with a number per step; column@episode: its "
        "maximum in the episode; or a .csv or .json file with a number per episode; 0: left out; null: uniform",
        "for quality labels, advantages, rare phases",
        is_path=True,
    )
    image_size: list[int] | None = key(
        None,
        "height and width of the cameras' images in the dataset; null where they differ",
        changes="nothing",
        record=True,
    )
    val_split: float = key(
        0.1, "fraction of the episodes held out for validation", "0 for a final run on all of them", low=0, below=1
    )
    batch_size: int = key(8, "per-device batch size", "lower if out of memory; higher for speed", low=1)
    auto_batch_size: bool = key(
        False,
        "use the largest power of two that fits into memory as batch_size",
        "to fill a GPU without trial and error",
        changes="nothing",
    )
    num_workers: int | None = key(
        None,
        "number of data loading threads; null: from the number of CPU cores",
        "higher if the GPU waits for data",
        low=0,
        changes="nothing",
    )
    cache_dir: str | None = key(
        None,
        "directory of converted datasets; null: next to the dataset",
        "if the dataset's disk is full or read-only",
        is_path=True,
        changes="nothing",
    )

    feature_cache: bool | None = key(
        None,
        "encode each image once and keep the features on disk (frozen encoders only); null: if that saves time",
        "false if the features do not fit on the disk",
        changes="nothing",
    )
    feature_views: int = key(
        0,
        "with augment and a frozen encoder: encode this many augmented views of each image once, of which each sample "
        "takes one; 0: augment and encode at each step",
        "4 to 16 where encoding takes most of a step; the features need as many times the disk",
        low=0,
    )

    # policy
    chunk_size: int = key(
        50,
        "actions per prediction (the horizon, in steps)",
        "one to two seconds; more for long tasks",
        low=1,
        changes="network",
    )
    temporal_context: int = key(
        3,
        "length of the observation history, the current observation included",
        "1 as in the paper; 5 where one image is ambiguous",
        low=1,
        changes="network",
    )
    state_dim: int | None = key(
        None,
        "size of the proprioceptive state; null: the dataset's",
        "to verify the dataset's",
        low=1,
        changes="network",
    )
    action_dim: int | None = key(
        None, "size of an action; null: the dataset's", "to verify the dataset's", low=1, changes="network"
    )
    hidden_dim: int = key(512, "width of the transformer", "256 for speed and memory", low=4, changes="network")
    nheads: int = key(
        8, "attention heads; they divide hidden_dim", "rarely: hidden_dim / 64 is usual", low=1, changes="network"
    )
    num_encoder_layers: int = key(
        4, "transformer layers over the observation tokens", "2 for speed", low=1, changes="network"
    )
    num_decoder_layers: int = key(
        7,
        "transformer layers from the action queries to the chunk; all of them are used",
        "4 for speed; 1 is often enough",
        low=1,
        changes="network",
    )
    dim_feedforward: int = key(
        3200, "width of the feed-forward blocks", "4 to 6 times hidden_dim", low=1, changes="network"
    )
    dropout: float = key(
        0.1,
        "dropout probability in training",
        "0 for scripted demonstrations; higher against overfitting",
        low=0,
        below=1,
    )
    pre_norm: bool = key(
        False,
        "layer normalisation before attention and feed-forward instead of after",
        "true allows a higher learning rate",
        changes="network",
    )
    use_vae: bool = key(
        True,
        "train the CVAE of the paper; false: the latent is always 0",
        "false if all demonstrations are of one style",
        changes="network",
    )
    latent_dim: int = key(32, "dimension of the CVAE's latent", "rarely", low=1, changes="network")
    n_vae_encoder_layers: int = key(
        4, "layers of the CVAE's encoder", "rarely: they are used in training only", low=1, changes="network"
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    # several tasks
    task_conditioning: str = key(
        "none",
        "whether the policy is told the task of the demonstrations: not, by its number, or by an embedding of its text",
        "id or text where one policy learns several tasks and images do not tell them apart",
        choices=("none", "id", "text"),
        changes="network",
    )
    task_text_model: str = key(
        "ViT-B-32",
        "with task_conditioning text: the CLIP model of open_clip whose frozen text tower embeds the tasks, once",
        "rarely",
    )
    task_text_pretrained: Any = key(
        True,
        "its weights: a tag that open_clip knows, a file's path, true (the usual ones), null (random)",
        "a path where there is no internet",
        is_path=True,
        changes="nothing",
    )
    tasks: list[str] | None = key(
        None, "the tasks that the policy knows, in the order of their numbers", changes="network", record=True
    )
    task_text_dim: int | None = key(None, "size of the embeddings of the tasks' texts", changes="network", record=True)

    # representation of states and actions
    action_mode: str = key(
        "absolute",
        "what the network predicts: actions, or their difference to the state at the chunk's beginning",
        "relative if start positions vary beyond the demonstrations; actions remain absolute outside the network",
        choices=("absolute", "relative"),
        changes="network",
    )
    relative_dims: str | None = key(
        None,
        "with action_mode relative: relative dimensions of the action, as in 0:6,7:13; null: all except grippers",
        "to keep other dimensions absolute",
        changes="network",
    )
    depth_cameras: list[str] | None = key(
        None,
        "those of the cameras that measure distances, which have an encoder of their own",
        changes="network",
        record=True,
    )
    relative_to: list[int] | None = key(
        None,
        "the state's dimension that each dimension of the action is relative to; -1: absolute",
        changes="network",
        record=True,
    )
    state_normalization: str = key(
        "mean_std",
        "normalisation of the state: mean 0 and standard deviation 1, or its range or 1 to 99% "
        "quantiles scaled to [-1, 1], or unchanged",
        "quantile for states with outliers",
        choices=("mean_std", "min_max", "quantile", "identity"),
    )
    action_normalization: str = key(
        "mean_std",
        "normalisation of the action",
        "min_max as in diffusion policies",
        choices=("mean_std", "min_max", "quantile", "identity"),
    )
    max_delay: int = key(
        0,
        "train the policy to continue up to this many actions that are already being executed, to compensate a delay "
        "between observation and chunk; 0: without this input",
        "the latency of inference and network in steps, such as 8 for 160 ms at 50 Hz",
        low=0,
        changes="network",
    )

    # augmentation, only in training
    augment: bool = key(
        False,
        "random changes of the images in training",
        "true if lighting, camera or positions will differ from the demonstrations",
    )
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    state_noise: float = key(
        0.0,
        "standard deviation of Gaussian noise on the state in training, in standard deviations of the state",
        "0.01 to 0.1 if the policy copies the state, or drifts away from the demonstrations",
        low=0,
    )
    state_dropout: float = key(
        0.0,
        "probability that a training sample's state is replaced by the mean state",
        "0.1 to 0.5 if the policy ignores the images",
        low=0,
        below=1,
    )
    camera_dropout: float = key(
        0.0,
        "probability that a camera's images are black in a training sample; at least one camera is kept",
        "0.1 if a camera may fail on the robot",
        low=0,
        below=1,
    )

    recombine_arms: float = key(
        0.0,
        "probability that a training sample's left arm (its dimensions and its half of the images) is that of another "
        "demonstration at the same step",
        "0.5 if neither arm's motion depends on the other's object and all demonstrations have the same timing, as "
        "scripted ones have",
        low=0,
        high=1,
    )

    # loss and optimizer
    action_loss: str = key(
        "l1", "loss between predicted and demonstrated actions", "l2 to punish large errors more", choices=("l1", "l2")
    )
    kl_weight: float = key(
        10.0,
        "weight of the CVAE's KL divergence",
        "lower (5, 1) if the KL loss is high or the loss falls slowly",
        low=0,
    )
    lr: float = key(
        1.0e-5, "learning rate", "lower (5e-6, 1e-6) if the loss jumps; higher (5e-5) if it falls slowly", above=0
    )
    scale_lr: str = key(
        "none",
        "scaling of the learning rates with processes x gradient_accumulation_steps",
        "linear or sqrt when several GPUs increase the batch size",
        choices=("none", "linear", "sqrt"),
    )
    lr_backbone: float | None = key(
        None, "learning rate of the image backbone; null: lr", "lower than lr for fine-tuning", above=0
    )
    lr_schedule: str = key(
        "constant", "learning rate after the warm-up", "cosine for a high lr", choices=("constant", "cosine")
    )
    warmup_steps: int = key(0, "optimizer steps of linear learning rate warm-up", "100 or more for a high lr", low=0)
    gradient_accumulation_steps: int = key(
        1, "batches per optimizer step", "for a larger effective batch size than memory allows", low=1
    )
    weight_decay: float = key(1.0e-4, "AdamW's weight decay", "rarely; higher against overfitting", low=0)
    grad_clip_norm: float | None = key(
        10.0, "maximum gradient norm; null: no clipping", "lower (1) if the loss jumps", above=0
    )
    ema_decay: float | None = key(
        None,
        "decay of the exponential moving average of the weights, which validation, checkpoints and inference use; "
        "null: none",
        "0.999 to reduce differences between consecutive checkpoints",
        above=0,
        below=1,
    )
    num_epochs: int = key(2000, "training epochs", "until val_loss stops falling", low=1, changes="length")
    num_steps: int | None = key(
        None,
        "optimizer steps, instead of num_epochs; null: num_epochs",
        "to compare datasets at equal compute",
        low=1,
        changes="length",
    )
    patience: int | None = key(
        None,
        "end the training after this many epochs without a lower val_loss, or evaluations without a higher success "
        "rate (patience_metric); null: train to num_epochs",
        "50 to 200 if val_loss stops falling early",
        low=1,
        changes="length",
    )
    patience_metric: str = key(
        "val_loss",
        "the metric of patience; success needs eval_task",
        "success in the simulation",
        choices=("val_loss", "success"),
        changes="length",
    )
    mixed_precision: str = key(
        "auto",
        "precision of matrix products; auto: bf16 where the hardware has it",
        "no to debug a bad loss; fp16 on older GPUs",
        choices=("auto", "no", "bf16", "fp16"),
    )
    compile: bool = key(
        False,
        "torch.compile the policy for training, with CUDA graphs on a CUDA GPU",
        "true on a GPU with small batches; slower on CPUs",
    )
    seed: int = key(
        0,
        "random seed of initial weights, sample order, dropout and latents",
        "several, to measure the variance",
        low=0,
    )
    device: str = key(
        "auto", "cuda, cuda:1, mps, cpu, or auto: the fastest available", "to choose a GPU", changes="nothing"
    )

    # rollouts in training
    eval_task: str | None = key(
        None,
        "simulated task to roll the policy out in during training; null: none",
        "transfer_cube, insertion or another package's: the success rate chooses a checkpoint better than val_loss",
        changes="nothing",
    )
    eval_every: int = key(
        500, "optimizer steps between two evaluations of eval_task", "more if an evaluation takes longer than that",
        low=1, changes="nothing",
    )  # fmt: skip
    eval_rollouts: int = key(50, "rollouts per evaluation of eval_task", "more to distinguish checkpoints", low=1,
        changes="nothing")  # fmt: skip
    eval_seed: int = key(
        20000,
        "seed of the first rollout's scene; different from those of the final evaluation (1000 and up)",
        "rarely",
        low=0,
        changes="nothing",
    )

    # what a run writes
    checkpoint_frequency: int = key(
        10, "epochs between checkpoints", "higher for short epochs or a small disk", low=1, changes="nothing"
    )
    keep_checkpoints: list[str] | None = key(
        None,
        "numbered checkpoints to keep, besides best and last: `last N`, `every K` (epochs), `best` (none); null: all",
        "last 3,every 500 if the disk is small",
        changes="nothing",
    )
    keep_states: str = key(
        "all",
        "checkpoints that keep their training state (.state), which exact resuming requires",
        "last to halve the disk space of a run",
        choices=("all", "last"),
        changes="nothing",
    )
    max_run_size: float | None = key(
        None,
        "maximum total size of the checkpoints in GB: the oldest numbered ones are deleted; null: unlimited",
        "if several runs share a disk",
        above=0,
        changes="nothing",
    )
    log_frequency: int = key(100, "optimizer steps between log lines", "lower for short runs", low=1, changes="nothing")
    tensorboard: bool = key(
        True, "write TensorBoard files next to metrics.jsonl", "false if you do not use them", changes="nothing"
    )
    wandb_project: str | None = key(
        None, "Weights & Biases project to log to; null: none", "to compare runs in a browser", changes="nothing"
    )
    wandb_name: str | None = key(None, "name of the Weights & Biases run", "to find it again", changes="nothing")
    wandb_tags: list[str] | None = key(
        None, "tags of the Weights & Biases run, as in a,b", "to group runs", changes="nothing"
    )
    wandb_checkpoints: str = key(
        "best",
        "checkpoints uploaded to Weights & Biases as artifacts",
        "none if the upload is slow; all needs much storage",
        choices=("none", "best", "all"),
        changes="nothing",
    )

    # acting
    execute_steps: int | None = key(
        None,
        "steps of a chunk executed before the next prediction; null: all",
        "fewer to react sooner: half, or 10",
        low=1,
        changes="nothing",
    )
    temporal_ensemble: bool = key(
        False,
        "predict at each step and average the overlapping chunks",
        "true for smooth motion, if inference is fast enough",
        changes="nothing",
    )
    ensemble_window: int | None = key(
        None, "number of latest chunks to average; null: all", "fewer to react sooner", low=1, changes="nothing"
    )
    ensemble_coefficient: float = key(
        0.01,
        "m of the weights exp(-m i), oldest chunk first (i = 0)",
        "negative to weight new chunks more",
        changes="nothing",
    )


# Of an item of `datasets`: its own keys and their types, beside the settings that select a part.
_DATASET_KEYS = {"path": str, "name": str, "weight": float, "task": str, "ignore_names": bool}


def dataset_keys() -> list[str]:
    """What an item of `datasets` may have: keys of its own, and settings that the dataset has for itself."""
    selecting = [name for name in selecting_settings() if name != "fps"]
    return [*_DATASET_KEYS, *selecting, "skip_idle", "sample_weights"]


def to_config(config: Any) -> Config:
    """A mapping, an OmegaConf node or a `Config` → a validated `Config`.

    Text in a mapping or a `Config` is taken literally; in a node, `${...}` is resolved.

    Raises:
        UserError: for an unknown key (naming the nearest one), a wrong type or range; also for a number or boolean
            instead of text, since `OmegaConf.load` converts an unquoted `007` to the number 7.
    """
    from omegaconf import DictConfig, ListConfig, OmegaConf  # takes longer than `bimact --help` should
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(config, DictConfig):
        content = cast(dict[str, Any], OmegaConf.to_container(config))
        return _validated(_resolved({name: _escaped(value, keep=True) for name, value in _flat(content)}, {}, {}), {})
    content = dataclasses.asdict(config) if isinstance(config, Config) else dict(config)
    for name, value in content.items():
        if isinstance(value, (DictConfig, ListConfig)):
            try:
                content[name] = OmegaConf.to_container(value, resolve=True)
            except OmegaConfBaseException as error:
                raise SettingError(name, f"setting '{name}': {first_line(error)}") from None
    return _validated(dict(_flat(content)), {})


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """A YAML file, overridden by `key=value` settings → a validated `Config`.

    In the file, text is taken as written, quoted or not, with `${other_key}` and `${oc.env:NAME}` resolved by
    OmegaConf; an unquoted `null` is null. In `key=value` all text is taken literally, except `null`.

    Raises:
        UserError: as `to_config`, with the line of the file; or if the file cannot be read.
    """
    in_file: dict[str, Any] = {}
    lines: dict[str, int] = {}
    if path is not None:
        path = Path(expand_home(path))
        written = read_yaml(path, "config file")
        if written is not None and not isinstance(written.value, dict):
            raise UserError(f"config file {path} contains no `key: value` lines")
        for name, item in _flat({} if written is None else written.value):
            place = f"{path}, line {item.line}: "
            if name in lines:
                raise UserError(f"{place}'{name}' is given twice, first in line {lines[name]}: remove one")
            in_file[name], lines[name] = value_as_written(name, item, place), item.line
    given = {}
    for override in overrides:
        name, _, text = override.partition("=")
        given[name] = _from_line(name, text)
    # The origin of each setting's value, for messages.
    places = {name: f"{path}, line {line}: " for name, line in lines.items() if name not in given}
    return _validated({**_resolved(in_file, given, places), **given}, places)


def save_config(config: Config, path: str | Path) -> None:
    """Write all keys of a config as YAML that `load_config` and `OmegaConf.load` can read."""
    from omegaconf import OmegaConf

    content = _nested({name: _escaped(value) for name, value in _flat(dataclasses.asdict(config))})
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(content)))


def keep_rules(config: Config) -> tuple[int, int] | None:
    """Parse `keep_checkpoints`: the number of latest numbered checkpoints, and the interval in epochs (0: none).

    Returns:
        None if all are kept.

    Raises:
        SettingError: for an unknown rule.
    """
    if config.keep_checkpoints is None:
        return None
    last = every = 0
    for rule in config.keep_checkpoints:
        found = re.fullmatch(r"\s*(last|every)\s+([1-9]\d{0,8})\s*|\s*best\s*", rule)
        if found is None:
            raise SettingError(
                "keep_checkpoints",
                f"setting 'keep_checkpoints' has the rule '{rule}', it has to be `last N`, `every K` or `best`",
            )
        if found[1] == "last":
            last = int(found[2])
        elif found[1] == "every":
            every = int(found[2])
    return last, every


def keys() -> dict[str, dataclasses.Field[Any]]:
    """All keys, nested ones with dots, with their schema: settings, and values recorded by runs."""
    found = {}
    for entry in dataclasses.fields(Config):
        if entry.name in GROUPS:
            found.update({f"{entry.name}.{nested.name}": nested for nested in dataclasses.fields(GROUPS[entry.name])})
        else:
            found[entry.name] = entry
    return found


def settings() -> dict[str, dataclasses.Field[Any]]:
    """The keys that can be set."""
    return {name: entry for name, entry in keys().items() if not entry.metadata["record"]}


def selecting_settings() -> list[str]:
    """The settings that select a part of the dataset."""
    return [name for name, entry in settings().items() if entry.metadata["selects"]]


def setting_names() -> list[str]:
    """The keys that can be set, nested ones with dots."""
    return list(settings())


def setting_value(config: Config, name: str) -> Any:
    """The value of a setting, given by its name, such as `encoder.fuse`."""
    group, dot, key = name.partition(".")
    return getattr(getattr(config, group), key) if dot else getattr(config, name)


def type_hints() -> dict[str, Any]:
    """The annotated type of each key, nested ones with dots."""
    hints = typing.get_type_hints(Config)
    for group, kind in GROUPS.items():
        hints |= {f"{group}.{name}": hint for name, hint in typing.get_type_hints(kind).items()}
    return hints


@cache
def _types() -> dict[str, tuple[Any, bool]]:
    """The type of each setting without null, and whether it may be null."""
    hints = type_hints()
    found = {}
    for name in keys():
        options = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        kind = next(option for option in options if option is not type(None))
        found[name] = (kind, type(None) in options or kind is Any)
    return found


def is_text(name: str) -> bool:
    """Whether a setting is text, a list of text, or text unless it is true, false or null."""
    return _types()[name][0] in (str, list[str], Any)


def may_be_true(name: str) -> bool:
    """Whether `true` is a valid value of a setting; also for unknown settings, which are reported elsewhere."""
    return name not in _types() or _types()[name][0] in (bool, Any)


def list_of_text(text: str) -> list[str]:
    """A list written as text: `a,b`, or `[a,b]`.

    Spaces around items are ignored. An item that contains a comma is written in double quotes: `"a,b",c`. Within
    brackets, quoted items are parsed as in JSON or Python.

    Raises:
        UserError: for a bracket without its counterpart.
    """
    text = text.strip()
    in_brackets = text.startswith("[")
    if in_brackets:
        if not text.endswith("]") or len(text) == 1:
            raise UserError(f"cannot read the list {text}: it begins with [ but does not end with ]")
        text = text[1:-1]
    quoted = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'' if in_brackets else '"(?:[^"]|"")*"'
    items = []
    for match in re.finditer(rf"\s*(?:({quoted})\s*|([^,]*))(?:,|$)", text, re.DOTALL):
        whole, bare = match[1], (match[2] or "").strip()
        if whole is not None:
            items.append(_unquoted(whole) if in_brackets else whole[1:-1].replace('""', '"'))
        elif in_brackets and re.search(r"[\[\]]", bare):
            raise UserError(f"cannot read the list [{text}]: put an item that contains [ or ] in quotes")
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
    """Names of settings, those in groups with a dot, and their given values."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        group = value.value if isinstance(value, Written) else value
        if name in GROUPS and (group is None or isinstance(group, Mapping)):
            yield from _flat(group or {}, f"{name}.")
        else:
            yield name, value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    result: dict[str, Any] = {}
    for name, value in flat.items():
        group, dot, key = name.partition(".")
        if dot:
            result.setdefault(group, {})[key] = value
        else:
            result[name] = value
    return result


def _type_of(name: str, place: str = "") -> tuple[Any, bool]:
    """The entry in `_types`.

    Raises:
        UserError: if there is no such setting.
    """
    if name in _types():
        return _types()[name]
    if name in GROUPS:
        first = dataclasses.fields(GROUPS[name])[0].name
        raise UserError(f"{place}'{name}' is a group, not a setting: set {name}.{first} and its other keys")
    close = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UserError(f"{place}no setting named '{name}'{hint}")


def value_as_written(name: str, written: Written, place: str = "") -> Any:
    """A setting's value in a YAML file: text as written, with `${...}` unresolved.

    Raises:
        UserError: if there is no such setting, or the value is a list or a group of keys where that is not allowed; the
            sentence begins with `place`.
    """
    kind, _ = _type_of(name, place)
    value = written.value
    if name == "datasets":
        return _written_datasets(written, place)
    is_list = typing.get_origin(kind) is list
    is_replaced = isinstance(value, str) and "${" in value
    advice = ": put it in quotes" if kind in (str, Any) else ""
    if isinstance(value, dict) or (isinstance(value, list) and not is_list):
        raise SettingError(name, f"{place}setting '{name}' is {written.kind}, it has to be {_named(name)}{advice}")
    if is_list and not is_text(name) and not isinstance(value, list) and value is not None and not is_replaced:
        raise SettingError(name, f"{place}setting '{name}' is {written.text}, it has to be {_named(name)}")
    if isinstance(value, list):
        for item in value:
            if isinstance(item.value, (list, dict)):
                what = f"{item.kind}, which is not allowed" + (": put it in quotes" if is_text(name) else "")
                raise SettingError(name, f"{place}an item of setting '{name}' is {what}")
            if item.value is None and not item.text:
                raise SettingError(name, f"{place}an item of setting '{name}' is empty: remove it")
        return [item.text if kind == list[str] else item.value for item in value]
    if value is None or not is_text(name):
        return value
    if kind is Any and isinstance(value, bool) and written.text.lower() in ("true", "false"):
        return value
    return written.text


def _written_datasets(written: Written, place: str) -> Any:
    """The items of `datasets`, each with its settings as `value_as_written` has them."""
    items = []
    for item in written.value if isinstance(written.value, list) else []:
        if not isinstance(item.value, dict):
            items.append(item.text)
            continue
        content = {}
        for key, value in item.value.items():
            if key in _DATASET_KEYS or key not in dataset_keys():
                content[key] = value.text if _DATASET_KEYS.get(key) is str and value.text else value.plain()
            else:
                content[key] = value_as_written(key, value, place)
        items.append(content)
    return items if isinstance(written.value, list) else written.plain()


def _datasets(value: Any, place: str) -> list[dict[str, Any]]:
    """The setting `datasets`, checked: each item with a path, and with settings of the right types."""
    if not isinstance(value, (list, tuple)) or not value:
        raise SettingError("datasets", f"{place}setting 'datasets' is {value!r:.60}, it has to be {_named('datasets')}")
    found = []
    for number, item in enumerate(value):
        item = {"path": item} if isinstance(item, (str, os.PathLike)) else item
        where = f"{place}item {number + 1} of setting 'datasets'"
        if not isinstance(item, Mapping) or not item.get("path"):
            raise SettingError("datasets", f"{where} has no path: write it as {{path: /path/to/dataset, weight: 2}}")
        content = {key: setting for key, setting in item.items() if setting is not None}
        for key, setting in content.items():
            if key not in dataset_keys():
                close = difflib.get_close_matches(str(key), dataset_keys(), n=1, cutoff=0.5)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                may = f"it may have {', '.join(dataset_keys())}"
                raise SettingError("datasets", f"{where}: no key named '{key}'{hint}; {may}")
            kind = _DATASET_KEYS.get(key)
            if kind is None:
                try:
                    content[key] = setting_value(_validated({key: setting}, {}), key)
                except UserError as error:
                    raise SettingError("datasets", f"{where}: {error}") from None
            elif kind is str:
                if not isinstance(setting, (str, os.PathLike)):
                    raise SettingError(
                        "datasets", f"{where}: {key} is {setting!r}, it has to be text: put it in quotes"
                    )
                content[key] = expand_home(os.fspath(setting)) if key == "path" else setting
            elif kind is bool:
                if not isinstance(setting, bool):
                    raise SettingError("datasets", f"{where}: {key} is {setting!r}, it has to be true or false")
            elif isinstance(setting, bool) or not isinstance(setting, (int, float)) or not 0 < setting < float("inf"):
                raise SettingError("datasets", f"{where}: {key} is {setting!r}, it has to be a number above 0")
        found.append(content)
    return found


def _from_line(name: str, text: str) -> Any:
    """A setting's value on the command line: text as given."""
    kind, optional = _type_of(name)
    if keys()[name].metadata["record"]:
        raise UserError(f"'{name}' is not a setting: runs record it in their own config.yaml")
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
    if name == "datasets" and written is not None:
        return _written_datasets(written, "")
    if value is None or isinstance(value, (list, dict)) != is_list:
        raise SettingError(name, f"setting '{name}' is '{text}', it has to be {_named(name)}")
    return value


def _resolved(in_file: Mapping[str, Any], given: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """The values of a file, with `${...}` resolved, except those overridden by `given`."""
    from omegaconf import ListConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

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
            if context is None:  # only created if needed
                context = OmegaConf.create(_nested({**literal, **in_file, **{key: literal[key] for key in given}}))
            group, dot, key = name.partition(".")
            found = context[group][key] if dot else context[name]
            if isinstance(found, ListConfig):
                found = cast(list[Any], OmegaConf.to_container(found, resolve=True))
                result[name] = [_number_as_text(item) for item in found] if is_text(name) else found
            else:
                result[name] = _number_as_text(found) if is_text(name) else found
    except (OmegaConfBaseException, RecursionError) as error:
        # Text that cannot be parsed is reported first; an item of a list has an index after the name.
        name = re.sub(r"\[\d+\]$", "", getattr(error, "full_key", None) or name)
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", first_line(error)).strip('"')
        raise SettingError(
            name,
            f"{places.get(name, '')}setting '{name}': ${{...}} cannot be resolved ({reason}); to write it "
            "literally, use \\${...}",
        ) from None
    return result


def _number_as_text(value: Any) -> Any:
    """The text of a number that `${seed}` yields for a text setting."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _escaped(value: Any, *, keep: bool = False) -> Any:
    """Text escaped so that OmegaConf takes it literally: not as an interpolation or a missing value.

    Args:
        value: of a setting; only text changes.
        keep: leave text with `${` as it is: it is to be resolved, or already escaped.
    """
    if isinstance(value, (list, tuple)):
        return [_escaped(item, keep=keep) for item in value]
    if isinstance(value, dict):
        return {key: _escaped(item, keep=keep) for key, item in value.items()}
    if not isinstance(value, str) or (keep and "${" in value):
        return value
    if re.fullmatch(r"\\*\?\?\?", value):
        return "\\" + value
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)


def _unescaped(value: Any) -> Any:
    """The inverse of `_escaped`, for values without `${`."""
    if isinstance(value, dict):
        return {key: _unescaped(item) for key, item in value.items()}
    is_escaped = isinstance(value, str) and re.fullmatch(r"\\+\?\?\?", value)
    return value[1:] if is_escaped else value


@cache
def _schema() -> Any:
    """The settings with their types and defaults, as OmegaConf checks them; `OmegaConf.merge` copies it."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(Config)


def _validated(given: Mapping[str, Any], places: Mapping[str, str]) -> Config:
    """The config from given settings, with defaults for the others."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    texts = {}
    others = {}
    for name, value in given.items():
        place = places.get(name, "")
        _, optional = _type_of(name, place)
        if value is None and not optional:
            raise SettingError(name, f"{place}setting '{name}' is null, it has to be {_named(name)}")
        if is_text(name):
            texts[name] = _text(name, value, place)
        elif name == "datasets":
            texts[name] = None if value is None else _datasets(value, place)
        else:
            items = value if isinstance(value, (list, tuple)) else [value]
            if any("${" in item or "???" in item for item in items if isinstance(item, str)):  # OmegaConf's syntax
                raise SettingError(name, f"{place}setting '{name}' is {value!r}, it has to be {_named(name)}")
            others[name] = value
    try:
        config = cast(Config, OmegaConf.to_object(OmegaConf.merge(_schema(), _nested(others))))
    except OmegaConfBaseException as error:
        name = error.full_key or ""
        name = re.sub(r"\[\d+\]$", "", name)
        raise SettingError(name, f"{places.get(name, '')}setting '{name}': {first_line(error)}") from None
    for name, value in texts.items():
        group, dot, key = name.partition(".")
        setattr(getattr(config, group) if dot else config, key if dot else group, value)
    _check_ranges(config, places)
    for group in GROUPS:
        _check_ranges(getattr(config, group), places, f"{group}.")
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
            raise SettingError(name, f"{place}setting '{name}': {error}") from None
        if not isinstance(items, (list, tuple)):
            items = [items]
    for item in items:
        if isinstance(item, (bool, int, float)):
            read = f"the {'truth value' if isinstance(item, bool) else 'number'} {json.dumps(item)}"
            raise SettingError(
                name, f"{place}setting '{name}' is read as {read}, it has to be {_named(name)}: put it in quotes"
            )
        if not isinstance(item, str):
            raise SettingError(name, f"{place}setting '{name}' is {item!r:.60}, it has to be {_named(name)}")
        if any("\ud800" <= letter <= "\udfff" for letter in item):
            raise SettingError(name, f"{place}setting '{name}' is {item!a}, which is not UTF-8: choose another name")
    if kind == list[str]:
        return list(items)
    if keys()[name].metadata["is_path"]:
        if "\0" in value or value == "":
            raise SettingError(name, f"{place}setting '{name}' is {value!a}, it has to be a path or null")
        value = expand_home(value)
    return value


def _named(name: str) -> str:
    """The allowed values of a setting, as part of a sentence."""
    kind, optional = _types()[name]
    choices = keys()[name].metadata["choices"]
    if kind is Any:
        return "true, false, null or text"
    if name == "datasets":
        what = "a list of datasets, each with a path"
    elif typing.get_origin(kind) is list:
        words = {str: "a list of text", int: "a list of whole numbers", float: "a list of numbers"}
        what = words[typing.get_args(kind)[0]]
    else:
        what = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
    return (" or ".join(choices) if choices else what) + (" or null" if optional else "")


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
                raise SettingError(prefix + entry.name, f"{setting} is {value}, it has to be {words} {bound:g}")
        choices = entry.metadata.get("choices")
        if choices and value not in choices:
            raise SettingError(prefix + entry.name, f"{setting} is '{value}', it has to be {' or '.join(choices)}")


def _check_together(config: Config) -> None:
    """Check combinations of keys."""
    if config.hidden_dim % config.nheads:
        raise UserError(f"hidden_dim ({config.hidden_dim}) has to be a multiple of nheads ({config.nheads})")
    if config.hidden_dim % 4:
        raise UserError(f"hidden_dim ({config.hidden_dim}) has to be a multiple of 4")
    if config.execute_steps is not None and config.execute_steps > config.chunk_size:
        raise UserError(f"execute_steps ({config.execute_steps}) cannot be more than chunk_size ({config.chunk_size})")
    if config.max_delay >= config.chunk_size:
        raise SettingError(
            "max_delay", f"max_delay ({config.max_delay}) has to be less than chunk_size ({config.chunk_size})"
        )
    if config.relative_dims is not None and config.action_mode != "relative":
        raise SettingError("relative_dims", "relative_dims has no effect without action_mode: relative")
    if config.temporal_ensemble and config.execute_steps is not None:
        raise UserError(
            f"temporal_ensemble predicts at each step, so execute_steps ({config.execute_steps}) has no effect: set "
            "one of them to false or null"
        )
    if len(config.encoder.depth_range) != 2 or not 0 <= config.encoder.depth_range[0] < config.encoder.depth_range[1]:
        raise SettingError(
            "encoder.depth_range",
            f"encoder.depth_range is {list(config.encoder.depth_range)}, it has to be two distances in metres, the "
            "nearer one first",
        )
    for name in ("brightness", "contrast", "saturation", "hue", "sharpness"):
        span = getattr(config.augmentation, name)
        least = -0.5 if name == "hue" else 0
        if span is not None and (
            len(span) != 2 or not least <= span[0] <= span[1] or (name == "hue" and span[1] > 0.5)
        ):
            what = "from -0.5 to 0.5" if name == "hue" else "of at least 0"
            raise SettingError(
                f"augmentation.{name}", f"augmentation.{name} is {list(span)}, it has to be two numbers {what} in order"
            )
    if config.datasets is not None and config.dataset_dir is not None:
        raise SettingError("datasets", "both dataset_dir and datasets are set: remove one of them")
    keep_rules(config)
    if config.patience is not None and config.patience_metric == "val_loss" and config.val_split == 0:
        raise SettingError("patience", "patience needs held-out episodes: set val_split above 0, or patience to null")
    if config.patience is not None and config.patience_metric == "success" and config.eval_task is None:
        raise SettingError("patience_metric", "patience_metric success needs eval_task")
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
            raise UserError(f"encoder.{name} is {list(colours)}, it has to be three numbers, for red, green and blue")
    if config.encoder.image_std is not None and min(config.encoder.image_std) <= 0:
        raise UserError(f"encoder.image_std is {list(config.encoder.image_std)}, it has to be more than 0")
