"""What a training will cost on this device: parameters, memory, disk space and time, from measured steps.

Nothing is decoded, downloaded or written. Steps are measured on random batches of the shapes that the dataset gives;
the encoder has random weights, which cost the same computation.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bimact.config import Config, keep_rules
from bimact.data.cache import size_of
from bimact.data.cached_copy import copy_arrays
from bimact.data.selection import ACTION, STATE
from bimact.data.windows import Batch, split_episodes
from bimact.device import precision_dtype
from bimact.encoder.base import input_size
from bimact.errors import UserError
from bimact.machine import peak_memory
from bimact.policy.act import ActPolicy, act_losses
from bimact.run_directory import recorded
from bimact.training.averaging import AveragedWeights
from bimact.training.demonstrations import select_demonstrations
from bimact.training.device import make_accelerator
from bimact.training.feature_cache import frames_seen
from bimact.training.memory import is_out_of_memory
from bimact.training.mixture import with_datasets
from bimact.training.optimizer import make_optimizer

# Assumed without a dataset where the config has none: the training guide's robot.
_CAMERAS, _IMAGE_SIZE, _DIMENSIONS = ("left", "right"), (480, 640), 14
_TEXT_SIZE = 512  # of CLIP's embeddings of a task's text
_SECONDS = 2.0  # of measured steps for each batch size
_PATIENCE = 30.0  # seconds that one step may take; larger batches are not measured then
_FRAMES = 32  # that the encoder is timed with


@dataclass(frozen=True)
class BatchCost:
    """A training step of one batch size.

    Attributes:
        memory: of a GPU, the most that PyTorch has reserved; of a CPU, the largest resident memory of the process so
            far; in bytes. None: it does not fit.
        seconds: median of an optimizer step, without loading the batch; None: it does not fit.
    """

    batch_size: int
    memory: int | None
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """The cost of a training. Sizes are in bytes, times in seconds; None where there is no dataset.

    Attributes:
        device: of the measurements, with the precision of matrix products.
        parameters: all of the policy's.
        trainable: those that are trained.
        batches: measured, ascending.
        step_flop: floating-point operations of matrix products in an optimizer step of the config's batch size.
        weights_file: a checkpoint's weights.
        state_file: what exact resuming needs besides.
        checkpoints: all that the run keeps.
        checkpoints_kept: how many pairs of files these are.
        episodes: training and validation episodes.
        steps: of the dataset that are the current step of a training window.
        optimizer_steps: of the whole training.
        epochs: of the whole training.
        decoded_copy: arrays that the images are decoded into once; 0 where the dataset's own files are mapped.
        feature_cache: features of a frozen encoder; 0 without that cache.
        encoding_seconds: to compute them.
        training_seconds: optimizer steps and validation, at the config's batch size.
        notes: what was assumed or left out.
    """

    device: str
    parameters: int
    trainable: int
    batches: tuple[BatchCost, ...]
    step_flop: int
    weights_file: int
    state_file: int
    checkpoints: int | None
    checkpoints_kept: int | None
    episodes: tuple[int, int] | None
    steps: int | None
    optimizer_steps: int | None
    epochs: int | None
    decoded_copy: int | None
    feature_cache: int | None
    encoding_seconds: float | None
    training_seconds: float | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def estimate(
    config: Config, batch_sizes: Sequence[int] | None = None, say: Callable[[str], None] = lambda line: None
) -> Estimate:
    """Measure training steps on the config's device, and compute sizes and times of the whole training.

    Args:
        config: of the training. Without `dataset_dir` the sizes of images, state and action are the config's, or those
            of the training guide's robot, and what depends on the number of demonstrations is None.
        batch_sizes: to measure; the config's is added. None: half and double the config's.
        say: prints a line of progress.

    Raises:
        UserError: for a dataset that cannot be opened or does not fit the config, or if a batch of 1 does not fit into
            memory.
    """
    if with_datasets(config).datasets is not None:
        raise UserError("estimate takes one dataset, and the config has several: give one of them as --dataset_dir")
    accelerator = make_accelerator(config)
    device, dtype = accelerator.device, precision_dtype(accelerator.mixed_precision)
    notes = ["steps are measured without torch.compile"] if config.compile else []
    if config.sample_weights is not None or config.skip_idle:
        notes.append("samples that sample_weights and skip_idle leave out are counted: images are not looked at")

    # The shapes of the data
    source = None if config.dataset_dir is None else select_demonstrations(config, config.dataset_dir)
    if source is not None:
        cameras = {name: (camera.height, camera.width) for name, camera in source.cameras.items()}
        state_dim, action_dim = source.columns[STATE].size, source.columns[ACTION].size
    else:
        height, width = config.image_size or _IMAGE_SIZE
        cameras = dict.fromkeys(_CAMERAS if config.cameras is None else config.cameras, (height, width))
        state_dim, action_dim = config.state_dim or _DIMENSIONS, config.action_dim or _DIMENSIONS
        seen = ", ".join(f"{name} {height}x{width}" for name in cameras) or "no camera"
        notes.append(f"no --dataset_dir: {seen}, state {state_dim} and action {action_dim} are assumed")
    decoded = None
    if source is not None:
        arrays = copy_arrays(source, input_size(config.encoder)) if source.mapped() is None else {}
        decoded = size_of(arrays)
        stored = [shape[1:3] for _, shape in arrays.values() if len(shape) == 4]
        cameras.update({name: (height, width) for name, (height, width) in zip(cameras, stored)})
    relative = [min(place, state_dim - 1) for place in range(action_dim)] if config.action_mode == "relative" else None
    measures = () if source is None else [name for name, camera in source.cameras.items() if camera.is_depth]
    config = replace(config, depth_cameras=list(measures) or None)
    tasks = sorted({episode.task or "" for episode in source.episodes}) if source is not None else [""]
    config = replace(config, cameras=list(cameras), state_dim=state_dim, action_dim=action_dim, relative_to=relative)
    if config.task_conditioning != "none":
        config = replace(config, tasks=tasks, task_text_dim=config.task_text_dim or _TEXT_SIZE)
    if config.camera_dropout and len(cameras) < 2:
        raise UserError(f"camera_dropout ({config.camera_dropout:g}) needs at least two cameras: set it to 0")

    # The length of the training
    lengths = np.zeros(0, np.int64) if source is None else source.lengths
    training, held_out = split_episodes(lengths, config.val_split, config.seed) if len(lengths) else (lengths, lengths)
    steps, held_out_steps = int(lengths[training].sum()), int(lengths[held_out].sum())
    per_epoch = -(-steps // (config.batch_size * config.gradient_accumulation_steps))
    optimizer_steps = config.num_steps or config.num_epochs * per_epoch
    epochs = -(-optimizer_steps // per_epoch) if per_epoch else 0
    num_steps = int(lengths.sum())
    encoded = num_steps * (1 + (config.feature_views if config.augment else 0))  # frames, augmented views included
    can_encode_once = (
        bool(cameras) and config.encoder.freeze and config.feature_cache is not False and not config.recombine_arms
    )
    encodes_once = (can_encode_once and not (config.augment and not config.feature_views)) and (
        source is None or bool(config.feature_cache) or frames_seen(config, num_steps, 1) >= encoded
    )

    # The policy, and its steps
    policy = ActPolicy(recorded(config)).to(device).train()
    optimizer = make_optimizer(policy, config)
    average = None if config.ema_decay is None else AveragedWeights(policy, config.ema_decay)

    def train_step(batch: Batch) -> None:
        obs, actions = batch
        with accelerator.autocast():
            _, output = policy(obs, actions)
        act_losses(output, policy.normalized(actions, obs), obs["action_is_pad"], config).total.backward()
        if config.grad_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update(0)

    sizes = batch_sizes or (max(1, config.batch_size // 2), 2 * config.batch_size)
    measured: list[BatchCost] = []
    for size in sorted({*sizes, config.batch_size}):
        last = measured[-1] if measured else None
        slow = last is not None and (last.seconds or 0) * size / last.batch_size > _PATIENCE
        if slow and size != config.batch_size:
            notes.append(f"batch size {size} is not measured: a step would take more than {_PATIENCE:g} s")
            continue
        say(f"measuring steps of batch size {size}")
        found = _measured(size, policy, cameras, encodes_once, dtype, device, train_step)
        measured.append(found)
        if found.seconds is None:
            break  # larger ones do not fit either
    fitting = [cost for cost in measured if cost.seconds is not None]
    if not fitting:
        raise UserError(f"{device} out of memory with batch_size {measured[0].batch_size}: give smaller --batch_sizes")
    nearest = min(fitting, key=lambda cost: abs(cost.batch_size - config.batch_size))
    if nearest.batch_size != config.batch_size:
        notes.append(f"batch size {config.batch_size} does not fit: times are by batch size {nearest.batch_size}")

    with FlopCounterMode(display=False) as counter:
        train_step(_random_batch(nearest.batch_size, policy, cameras, encodes_once, dtype))
    samples = config.batch_size * config.gradient_accumulation_steps
    step_flop = counter.get_total_flops() * samples // nearest.batch_size

    # Disk
    weights_file = sum(value.nbytes for value in policy.state_dict().values())
    moments = [value for of in optimizer.state.values() for value in of.values() if isinstance(value, Tensor)]
    trained = {} if average is None else average.current()
    state_file = sum(value.nbytes for value in (*moments, *trained.values()))
    kept = sum(_kept_epochs(config, epochs)) if source is not None else None
    checkpoints = None
    if kept is not None:
        states = 1 if config.keep_states == "last" else kept
        checkpoints = kept * weights_file + states * state_file
        if config.max_run_size is not None:
            checkpoints = min(checkpoints, int(config.max_run_size * 1e9))
    feature_cache = encoding = training_seconds = None
    if source is not None:
        feature_cache, encoding = 0, 0.0
        if encodes_once:
            colour = {name: size for name, size in cameras.items() if name not in policy.depth_cameras}
            shapes = [policy.image_encoder.trunk_shape(*camera) for camera in colour.values()]
            feature_cache = sum(encoded * int(np.prod(shape)) for shape in shapes) * dtype.itemsize
            with accelerator.autocast():
                encoding = sum(encoded * _encoding_seconds(policy, camera) for camera in colour.values())
        assert nearest.seconds is not None
        per_batch = nearest.seconds * config.batch_size / nearest.batch_size
        forward = _forward_seconds(policy, nearest.batch_size, cameras, encodes_once, dtype, accelerator.autocast)
        validation = held_out_steps * forward / nearest.batch_size * epochs
        training_seconds = optimizer_steps * config.gradient_accumulation_steps * per_batch + validation
        notes.append("times leave out decoding, loading and saving; demonstrations from a slow disk take longer")
    return Estimate(
        device=f"{_name_of(device)}, {str(dtype).removeprefix('torch.')}",
        parameters=sum(value.numel() for value in policy.parameters()),
        trainable=sum(value.numel() for value in policy.parameters() if value.requires_grad),
        batches=tuple(measured),
        step_flop=step_flop,
        weights_file=weights_file,
        state_file=state_file,
        checkpoints=checkpoints,
        checkpoints_kept=kept,
        episodes=None if source is None else (len(training), len(held_out)),
        steps=None if source is None else steps,
        optimizer_steps=None if source is None else optimizer_steps,
        epochs=None if source is None else epochs,
        decoded_copy=decoded,
        feature_cache=feature_cache,
        encoding_seconds=encoding,
        training_seconds=training_seconds,
        notes=tuple(notes),
    )


def _measured(
    size: int,
    policy: ActPolicy,
    cameras: dict[str, tuple[int, int]],
    encodes_once: bool,
    dtype: torch.dtype,
    device: torch.device,
    train_step: Callable[[Batch], None],
) -> BatchCost:
    """Memory and time of steps of one batch size."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        batch = _random_batch(size, policy, cameras, encodes_once, dtype)
        seconds = _median_seconds(lambda: train_step(batch), device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return BatchCost(size, None, None)
    return BatchCost(size, torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory(), seconds)


def _random_batch(
    size: int, policy: ActPolicy, cameras: dict[str, tuple[int, int]], encodes_once: bool, dtype: torch.dtype
) -> Batch:
    """A batch as the loader gives it: with images, or with the cached features of a frozen encoder."""
    config, device = policy.config, policy.queries.weight.device
    context = config.temporal_context
    obs: dict[str, Tensor] = {
        "state": torch.randn(size, context, config.state_dim or 0, device=device),
        "action_is_pad": torch.zeros(size, config.chunk_size, dtype=torch.bool, device=device),
    }
    if config.task_conditioning != "none":
        obs["task"] = torch.zeros(size, dtype=torch.int64, device=device)
    for name, (height, width) in cameras.items():
        if encodes_once and name not in policy.depth_cameras:
            shape = (size, context, *policy.image_encoder.trunk_shape(height, width))
            obs[f"features_{name}"] = torch.randn(shape, device=device).to(dtype)
        else:
            images = torch.randint(0, 256, (size, context, height, width, 3), dtype=torch.uint8, device=device)
            obs[f"image_{name}"] = images.permute(0, 1, 4, 2, 3)
    return obs, torch.randn(size, config.chunk_size, config.action_dim or 0, device=device)


def _median_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of some calls that together take about two seconds, after one that does not count."""

    def timed() -> float:
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    first = timed()
    count = max(1, min(20, int(_SECONDS / first)))
    return float(np.median([timed() for _ in range(count)]))


@torch.no_grad()
def _encoding_seconds(policy: ActPolicy, size: tuple[int, int]) -> float:
    """Of one frame in the encoder, of a batch of them."""
    device = policy.queries.weight.device
    images = torch.randint(0, 256, (_FRAMES, *size, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    return _median_seconds(lambda: policy.image_encoder.trunk(images), device) / _FRAMES


@torch.no_grad()
def _forward_seconds(
    policy: ActPolicy,
    size: int,
    cameras: dict[str, tuple[int, int]],
    encodes_once: bool,
    dtype: torch.dtype,
    autocast: Callable[[], Any],
) -> float:
    """Of a batch of the validation."""
    batch = _random_batch(size, policy, cameras, encodes_once, dtype)
    with autocast():
        return _median_seconds(lambda: policy(*batch), policy.queries.weight.device)


def _kept_epochs(config: Config, epochs: int) -> Iterator[bool]:
    """For each epoch whether its checkpoint is kept; `best` may be one more, of an epoch that is not."""
    rules = keep_rules(config)
    numbered = [epoch for epoch in range(1, epochs + 1) if epoch % config.checkpoint_frequency == 0 or epoch == epochs]
    last, every = rules if rules is not None else (len(numbered), 0)
    for position, epoch in enumerate(numbered):
        yield position >= len(numbered) - max(1, last) or bool(every and epoch % every == 0)
    yield config.val_split > 0 and epochs > 1


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} with {torch.get_num_threads()} threads"
