"""Whether a run trains on the tokens that a frozen encoder has made of all images before, and getting them."""

from __future__ import annotations

import os

from accelerate import Accelerator

from bimact.config import Config
from bimact.data.episodes import Episodes, identity_of
from bimact.encoder.feature_cache import FeatureCache, Workers
from bimact.errors import UserError
from bimact.policy.act import ActPolicy
from bimact.train.device import precision_dtype


def uses_features(config: Config, episodes: Episodes, processes: int) -> bool:
    """Whether images are encoded before the training.

    Unless the config says it, they are if that is no more work: if the training looks at more frames than there are.

    Raises:
        UserError: if the config asks for what the encoder or the dataset does not allow.
    """
    if config.feature_cache is False or not config.cameras:
        return False
    problem = None
    if not config.encoder.freeze:
        problem = "encoder.freeze: true, since an encoder that learns gives other tokens at each step"
    elif any(identity_of(episodes.images[camera]) is None for camera in config.cameras):
        problem = "a dataset of files"
    if problem is not None:
        if config.feature_cache:
            raise UserError(f"feature_cache: true needs {problem}")
        return False
    return bool(config.feature_cache) or _frames_seen(config, episodes, processes) >= episodes.num_steps


def _frames_seen(config: Config, episodes: Episodes, processes: int) -> int:
    """Frames of a camera that the encoder would have to look at in training."""
    if config.num_steps is None:
        windows = config.num_epochs * round((1 - config.val_split) * episodes.num_steps)
    else:
        windows = config.num_steps * config.batch_size * config.gradient_accumulation_steps * processes
    return windows * config.temporal_context


def with_features(config: Config, policy: ActPolicy, episodes: Episodes, accelerator: Accelerator) -> Episodes:
    """The demonstrations with the tokens of the policy's encoder; all processes of the training have to call it.

    Raises:
        UserError: if the tokens do not fit on the disk.
    """
    dtype = precision_dtype(accelerator.mixed_precision)
    encoder = policy.image_encoder.to(accelerator.device)
    cache = FeatureCache(encoder, episodes, policy.cameras, dtype, config.cache_dir)
    workers = Workers(
        number=accelerator.local_process_index,
        count=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        meet=accelerator.wait_for_everyone,
        speaks=accelerator.is_local_main_process,
    )
    cache.fill(accelerator.autocast, workers)
    return cache.opened()
