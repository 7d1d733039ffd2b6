"""Features of a frozen encoder for every frame of a dataset, computed once instead of once per epoch.

Of an encoder whose last blocks are trained (`encoder.train_last`), they are the output of its frozen trunk.

With `feature_views` there are also those of augmented images. View v of a frame does not depend on the run's seed, so
that runs share it; which view a sample has does (`TrainingOrder`).

They lie in memory-mapped files, a folder for each camera and view, named by all that decides over them: the encoder's
weights and settings, the precision, and the images. What was computed before an interruption counts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from bimact.config import AugmentationConfig, Config
from bimact.data.cache import (
    ArrayFolder,
    Arrays,
    RowWriter,
    check_space,
    first_writable,
    one_at_a_time,
    places,
    read_description,
    size_of,
)
from bimact.data.episodes import Episodes, Rows, identity_of
from bimact.data.npy_rows import NpyRows
from bimact.device import precision_dtype
from bimact.encoder.base import ImageEncoder
from bimact.errors import UserError
from bimact.policy.act import ActPolicy
from bimact.progress import progress_bar
from bimact.training.augmentation import NUMBERS, augment_images

_Key = tuple[str, int]  # camera, view
Autocast = Callable[[], AbstractContextManager[Any]]

PREFIX = "features-"
_VERSION = 1  # of what is computed: another number makes all of it anew
_TOKENS = "tokens.npy"
_PIECE = 1024  # frames that are noted as done at once
_AT_ONCE = {"cpu": 64}  # frames that the encoder sees at once
_AT_ONCE_ANYWHERE = 256
# numpy has no bfloat16: its bits are stored.
_STORED: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(np.uint16),
}


@dataclass(frozen=True)
class _Piece:
    """Frames of a camera that are noted as done at once."""

    folder: ArrayFolder
    first: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.first

    @property
    def is_done(self) -> bool:
        return str(self.first) in (self.folder.done() or set())

    def note(self) -> None:
        self.folder.note(str(self.first))


@dataclass(frozen=True)
class Workers:
    """The processes on this machine that encode together.

    Attributes:
        number: of this process, from 0.
        count: how many there are.
        barrier: returns when all processes have called it.
        prints: whether this one prints.
    """

    number: int = 0
    count: int = 1
    barrier: Callable[[], None] = lambda: None
    prints: bool = True


class FeatureCache:
    """The tokens of some cameras of a dataset.

    Args:
        encoder: frozen, on the device that it computes on.
        episodes: the dataset.
        cameras: of it.
        dtype: of the tokens: what the encoder computes in.
        cache_dir: as in `open_dataset`.
        views: how many augmented views there are of each frame, besides the frame itself.
        augmentation: their kinds and ranges.
        by_episode: all frames of an episode have the same change in a view; otherwise each has its own.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        episodes: Episodes,
        cameras: Sequence[str],
        dtype: torch.dtype = torch.float32,
        cache_dir: str | Path | None = None,
        *,
        views: int = 0,
        augmentation: AugmentationConfig | None = None,
        by_episode: bool = False,
    ) -> None:
        self.encoder = encoder
        self.episodes = episodes
        self.dtype = dtype
        self._views = views
        self._augmentation = augmentation or AugmentationConfig()
        self._by_episode = by_episode
        self._places = places(episodes.path, None if cache_dir is None else Path(cache_dir))
        weights = _digest_of_weights(encoder)
        self._described = {
            (camera, view): self._describe(camera, view, weights) for view in range(views + 1) for camera in cameras
        }

    def _describe(self, camera: str, view: int, weights: str) -> dict[str, Any]:
        rows = self.episodes.images[camera]
        described: dict[str, Any] = {}
        if view:
            lengths = hashlib.sha256(self.episodes.lengths.tobytes()).hexdigest() if self._by_episode else None
            described = {"view": view, "augmentation": asdict(self._augmentation), "lengths": lengths}
        return described | {
            "version": _VERSION,
            "dataset": str(self.episodes.path.resolve()),
            "camera": camera,
            "images": identity_of(rows),
            "encoder": self.encoder.description,
            "weights": weights,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": [len(rows), *self.encoder.trunk_shape(rows.shape[1], rows.shape[2])],
        }

    def _folder(self, key: _Key, place: Path) -> ArrayFolder:
        return ArrayFolder(place, PREFIX, self._described[key])

    def _arrays(self, key: _Key) -> Arrays:
        return {_TOKENS: (_STORED[self.dtype], tuple(self._described[key]["shape"]))}

    def _whole(self, key: _Key) -> ArrayFolder | None:
        folders = (self._folder(key, place) for place in self._places)
        return next((folder for folder in folders if folder.is_whole), None)

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing left to compute."""
        return all(self._whole(key) is not None for key in self._described)

    def opened(self) -> Episodes:
        """The dataset with the tokens; all of them have to be there."""
        features: list[dict[str, Rows]] = [{} for _ in range(self._views + 1)]
        for camera, view in self._described:
            folder = self._whole((camera, view))
            assert folder is not None
            features[view][camera] = NpyRows(folder.path / _TOKENS)
        return self.episodes.with_features(features[0], features[1:])

    def fill(self, autocast: Autocast, workers: Workers | None = None) -> None:
        """Compute what is missing; with several processes all have to call it.

        Args:
            autocast: makes the context that the encoder computes in.
            workers: who shares the work.

        Raises:
            UserError: if it does not fit on the disk, or cannot be written.
        """
        workers = workers or Workers()
        place = first_writable(self.episodes.path, self._places)
        with ExitStack() as stack:
            if workers.number == 0:
                stack.enter_context(one_at_a_time(self.episodes.path, place))
                self._begin(place, workers.prints)
            workers.barrier()
            missing = [self._folder(key, place) for key in self._described if self._whole(key) is None]
            try:
                self._compute(missing, autocast, workers)
                workers.barrier()
                if workers.number == 0:
                    for folder in missing:
                        folder.finish()
            except OSError as error:
                raise UserError(f"cannot write the encoded images to {place}: {error.strerror or error}") from None
        workers.barrier()

    def _begin(self, place: Path, prints: bool) -> None:
        """Make the files of what is missing."""
        self._remove_outdated(place)
        missing = {key: self._folder(key, place) for key in self._described if self._whole(key) is None}
        new = {key: folder for key, folder in missing.items() if folder.done() is None}
        size = sum(size_of(self._arrays(key)) for key in new)
        if new:
            check_space(self.episodes.path, place, size)
        if new and prints:
            cameras = ", ".join(dict.fromkeys(camera for camera, _ in missing))
            views = len({view for _, view in missing if view})
            frames = f"{self.episodes.num_steps} frames of {cameras}"
            frames += f", {views} augmented view{'s' if views > 1 else ''} of each" if views else ""
            where = f"{size / 1e9:.2f} GB in {place}"
            print(f"Encoding images once, since the encoder is frozen:\n  {frames}: {where}", flush=True)
        for key, folder in new.items():
            folder.reserve(self._arrays(key))

    def _remove_outdated(self, place: Path) -> None:
        """Remove tokens of images that have changed since."""
        for folder in place.glob(f"{PREFIX}*"):
            description = read_description(folder) or {}
            now = self._described.get((description.get("camera", ""), 0))
            if not description or (now is not None and _has_changed(description["images"], now["images"])):
                shutil.rmtree(folder, ignore_errors=True)

    def _compute(self, folders: Sequence[ArrayFolder], autocast: Autocast, workers: Workers) -> None:
        """Do this process's share of the pieces that are missing."""
        pieces = [piece for folder in folders for piece in _pieces(folder)][workers.number :: workers.count]
        left = [piece for piece in pieces if not piece.is_done]
        total, to_do = (sum(piece.length for piece in some) for some in (pieces, left))
        with progress_bar("encoding images", total, total - to_do) if workers.prints else nullcontext() as progress:
            for piece in left:
                rows = self.episodes.images[piece.folder.description["camera"]]
                with RowWriter(piece.folder.unfinished / _TOKENS) as writer:
                    for first, tokens in self._encode(rows, piece, autocast):
                        writer.write(first, tokens)
                        if progress is not None:
                            progress.advance(len(tokens))
                piece.note()

    @torch.no_grad()
    def _encode(self, rows: Rows, piece: _Piece, autocast: Autocast) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first frame, tokens as they are stored) of as many frames as the encoder sees at once."""
        device = next(self.encoder.parameters()).device
        at_once = _AT_ONCE.get(device.type, _AT_ONCE_ANYWHERE)
        parts = [(first, min(first + at_once, piece.end)) for first in range(piece.first, piece.end, at_once)]
        drawn = self._drawn(piece) if "view" in piece.folder.description else None
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(_read, rows, *parts[0])
            for number, (first, last) in enumerate(parts):
                images = coming.result()
                if number + 1 < len(parts):
                    coming = reader.submit(_read, rows, *parts[number + 1])
                pixels = images.to(device).permute(0, 3, 1, 2)
                if drawn is not None:
                    numbers = torch.from_numpy(drawn[first - piece.first : last - piece.first]).to(device)
                    augment_images(pixels, numbers, self._augmentation, self.encoder.crop_box(*pixels.shape[-2:]))
                with autocast():
                    tokens = self.encoder.trunk(pixels)
                yield first, self._stored(tokens)

    def _drawn(self, piece: _Piece) -> np.ndarray:
        """(frames, P) float32: the random numbers of each frame's change in a view."""
        described = piece.folder.description
        camera = "" if self._augmentation.same_cameras else described["camera"]
        seed = [described["view"], zlib.crc32(camera.encode())]
        if not self._by_episode:
            return np.random.default_rng([*seed, piece.first]).random((piece.length, NUMBERS), np.float32)
        of_episodes = np.random.default_rng(seed).random((len(self.episodes.lengths), NUMBERS), np.float32)
        ends = np.cumsum(self.episodes.lengths)
        return of_episodes[np.searchsorted(ends, np.arange(piece.first, piece.end), side="right")]

    def _stored(self, tokens: Tensor) -> np.ndarray:
        placed = tokens.to(self.dtype).cpu()
        return (placed.view(torch.uint16) if self.dtype == torch.bfloat16 else placed).numpy()


def _pieces(folder: ArrayFolder) -> Iterator[_Piece]:
    frames = folder.description["shape"][0]
    for first in range(0, frames, _PIECE):
        yield _Piece(folder, first, min(first + _PIECE, frames))


def _read(rows: Rows, first: int, end: int) -> Tensor:
    return torch.from_numpy(np.array(rows[np.arange(first, end)]))


def _has_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two sets of images come from one file in two states."""
    return before.get("file") == now.get("file") and before.get("state") != now.get("state")


def _digest_of_weights(encoder: ImageEncoder) -> str:
    """Of all numbers that an encoder computes with and does not learn."""
    digest = hashlib.sha256()
    fixed = [(name, value) for name, value in encoder.named_parameters() if not value.requires_grad]
    for name, tensor in sorted([*fixed, *encoder.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    elif config.augment and not config.feature_views:
        problem = "augment: false or feature_views: 4, since augmented images differ at each step"
    elif config.recombine_arms:
        problem = "recombine_arms: 0, since images are put together anew at each step"
    elif any(identity_of(episodes.images[camera]) is None for camera in config.cameras):
        problem = "a dataset of files"
    if problem is not None:
        if config.feature_cache:
            raise UserError(f"feature_cache: true needs {problem}")
        return False
    frames = episodes.num_steps * (1 + (config.feature_views if config.augment else 0))
    return bool(config.feature_cache) or frames_seen(config, episodes.num_steps, processes) >= frames


def line_on_views(config: Config) -> str | None:
    """What a run with augmentation or `feature_views` encodes, in one line; None: there is nothing to say.

    Args:
        config: complete: `feature_cache` is true or false.
    """
    views = config.feature_views
    if not config.cameras or not (views or (config.augment and config.encoder.freeze)):
        return None
    if not config.augment:
        return f"feature_views: {views} does nothing without augment: true"
    if config.feature_cache:
        return f"augment: true: {views} augmented views of each image are encoded once, of which each sample takes one"
    if not config.encoder.freeze:
        reason = "the encoder is trained (encoder.freeze: false)"
    elif not views:
        reason = "augmented images differ each time; --feature_views 4 encodes four views of each image once"
    else:
        reason = f"fewer images than {views} views of each have to be encoded, or feature_cache is false"
    return f"augment: true, so images are encoded at each step instead of once: {reason}"


def frames_seen(config: Config, num_steps: int, processes: int) -> int:
    """Frames of a camera that the encoder would have to look at in training on a dataset of `num_steps` steps."""
    if config.num_steps is None:
        windows = config.num_epochs * round((1 - config.val_split) * num_steps)
    else:
        windows = config.num_steps * config.batch_size * config.gradient_accumulation_steps * processes
    return windows * config.temporal_context


def with_features(config: Config, policy: ActPolicy, episodes: Episodes, accelerator: Accelerator) -> Episodes:
    """The demonstrations with the tokens of the policy's encoder; all processes of the training have to call it.

    Raises:
        UserError: if the tokens do not fit on the disk.
    """
    if episodes.parts:
        made = {name: with_features(config, policy, part, accelerator) for name, part in episodes.parts.items()}
        return Episodes.joined(made)
    dtype = precision_dtype(accelerator.mixed_precision)
    encoder = policy.image_encoder.to(accelerator.device)
    cache = FeatureCache(
        encoder,
        episodes,
        [camera for camera in policy.cameras if camera not in policy.depth_cameras],
        dtype,
        config.cache_dir,
        views=config.feature_views if config.augment else 0,
        augmentation=config.augmentation,
        by_episode=config.augmentation.same_history and config.temporal_context > 1,
    )
    workers = Workers(
        number=accelerator.local_process_index,
        count=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        barrier=accelerator.wait_for_everyone,
        prints=accelerator.is_local_main_process,
    )
    cache.fill(accelerator.autocast, workers)
    return cache.opened()
