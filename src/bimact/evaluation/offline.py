"""Open-loop evaluation on demonstrations: how far the predicted actions are from the demonstrated ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bimact.config import AugmentationConfig, Config
from bimact.data.episodes import Episodes
from bimact.data.loader import Loader
from bimact.data.windows import WindowDataset, WindowIndex, in_batches, split_each
from bimact.errors import UserError
from bimact.evaluation.predictors import ChunkMetrics
from bimact.evaluation.saliency import write_saliency
from bimact.policy.loading import LoadedPolicy
from bimact.policy.metadata import Execution
from bimact.progress import progress_bar
from bimact.training.augmentation import Augmentation
from bimact.training.demonstrations import open_demonstrations
from bimact.training.mixture import dataset_names, open_training_data

_PERTURBED_WINDOWS, _SHUFFLED_WINDOWS = 512, 128  # at most
BASELINES = ("hold the last position", "mean action")


class _ErrorSums:
    """Sums of absolute errors (C, A) over the real steps of windows, and how many they were."""

    def __init__(self, chunk_size: int, action_dim: int) -> None:
        self.sums = np.zeros((chunk_size, action_dim))
        self.counts = np.zeros(chunk_size)

    def add(self, predicted: Tensor, actions: Tensor, is_pad: Tensor) -> None:
        real = (~is_pad).unsqueeze(-1)
        self.sums += ((predicted - actions).abs() * real).sum(dim=0).double().cpu().numpy()
        self.counts += real[..., 0].sum(dim=0).cpu().numpy()

    def summary(self) -> dict[str, Any]:
        """Mean absolute error in all, by joint and by step of the horizon, in the robot's units."""
        seen = self.counts > 0
        return {
            "mae": float(self.sums.sum() / (self.counts.sum() * self.sums.shape[1])),
            "mae_by_joint": (self.sums.sum(axis=0) / self.counts.sum()).tolist(),
            "mae_by_horizon_step": (self.sums[seen].mean(axis=1) / self.counts[seen]).tolist(),
        }


def evaluate_offline(
    loaded: LoadedPolicy,
    dataset_dir: str | None = None,
    *,
    episodes: Sequence[str] | None = None,
    exclude_episodes: Sequence[str] | None = None,
    skip_unreadable: bool = False,
    saliency: int = 0,
) -> dict[str, Any]:
    """Compare predicted chunks with demonstrated ones, beside two baselines that look at no image.

    "Hold the last position" repeats the present state (or, where states and actions have different sizes,
    the previous action); "mean action" is the training mean.

    Args:
        loaded: the policy.
        dataset_dir: the demonstrations; None: those of the training, of which only held-out episodes are
            used (all, where none was held out, and the result says so).
        episodes: those to use, by numbers and names; None: all of `dataset_dir`, or those of the training.
        exclude_episodes: those to leave out.
        skip_unreadable: leave out the damaged ones, instead of stopping.
        saliency: moments of the first demonstration at which pictures are drawn of what the images contribute.

    Returns:
        what goes into `evaluation.json`.
    """
    config = loaded.config
    has_choice = episodes is not None or exclude_episodes is not None
    own_data = dataset_dir is None and not has_choice
    if not own_data:  # what the training chose was of its own demonstrations
        config = dataclasses.replace(
            config,
            episodes=None if episodes is None else list(episodes),
            exclude_episodes=None if exclude_episodes is None else list(exclude_episodes),
            max_episodes=None,
            filter_key=None,
            skip_failed=False,
            skip_idle=False,
            sample_weights=None,
        )
    config = dataclasses.replace(config, skip_unreadable=skip_unreadable or config.skip_unreadable)
    path: str | None = dataset_dir
    trained_on = [item["path"] for item in config.datasets or []]
    if config.datasets is not None and not own_data:
        config = _of_one_dataset(config, dataset_dir, has_choice)
    elif config.datasets is None:
        before, moved = loaded.run.dataset()
        trained_on = [before] if before is not None else []
        if path is None:
            path = before
            if moved is not None:
                print(moved)
        if path is None:
            raise UserError("offline evaluation needs --dataset_dir")
    if config.datasets is not None:
        demonstrations, sources = open_training_data(config, for_training=False)
    else:
        demonstrations, source = open_demonstrations(config, path or "", for_training=False)
        sources = (source,)
    if config.tasks is not None:
        demonstrations = demonstrations.with_task_numbers(config.tasks)
    chosen, which = _choose_episodes(loaded, demonstrations, own_data)
    which = "chosen" if has_choice else which
    if which in ("all", "chosen") and sources[0].path.resolve() in [Path(before).resolve() for before in trained_on]:
        print("Note: these are the demonstrations of the training: what it was trained on may be among them")

    index = WindowIndex.over(demonstrations, chosen, config.temporal_context, config.chunk_size).drawn(demonstrations)
    dataset = WindowDataset(demonstrations, index, config.cameras)
    pictures = {"saliency": write_saliency(loaded, dataset, saliency)} if saliency else {}
    loader = Loader(
        dataset,
        in_batches(range(len(index)), max(32, config.batch_size)),
        num_workers=config.num_workers,
    )
    action_dim = demonstrations.actions.shape[1]
    sums = {name: _ErrorSums(config.chunk_size, action_dim) for name in ("policy", *BASELINES)}
    # Of a mixture, the same for each dataset: (name, whether a window is its (W,), sums)
    each = [
        (
            part,
            np.isin(index.first, demonstrations.starts[numbers]),
            {name: _ErrorSums(config.chunk_size, action_dim) for name in sums},
        )
        for part, numbers in demonstrations.episodes_of_parts.items()
    ]

    def add(name: str, predicted: Tensor, actions: Tensor, is_pad: Tensor, row: int) -> None:
        sums[name].add(predicted, actions, is_pad)
        for _, is_own, of_part in each:
            own = torch.from_numpy(is_own[row : row + len(actions)]).to(actions.device)
            of_part[name].add(predicted.expand_as(actions)[own], actions[own], is_pad[own])

    mean_action = loaded.network.action_normalizer.mean
    names = list(demonstrations.joint_names or [f"joint {j}" for j in range(demonstrations.actions.shape[1])])
    grippers = [column for column, name in enumerate(names) if "gripper" in name.lower()]
    if not grippers:
        print("No action has 'gripper' in its name, so there is no error at gripper changes")
    std = loaded.network.action_normalizer.std.cpu().numpy()
    metrics = ChunkMetrics(
        Execution.of(loaded.config), std, grippers, index, demonstrations.actions, demonstrations.fps
    )
    row = 0
    with progress_bar("evaluating on demonstrations", len(index)) as progress, torch.inference_mode():
        for obs, actions in loader:
            obs = {name: value.to(loaded.device) for name, value in obs.items()}
            actions, is_pad = actions.to(loaded.device), obs["action_is_pad"]
            predicted = loaded.network(obs)[0]
            add("policy", predicted, actions, is_pad, row)
            metrics.add(predicted.float().cpu().numpy())
            held = _last_position(demonstrations, index, row, obs["state"][:, -1], actions)
            add(BASELINES[0], held[:, None], actions, is_pad, row)
            add(BASELINES[1], mean_action, actions, is_pad, row)
            row += len(actions)
            progress.advance(len(actions))
    parts = list(demonstrations.episodes_of_parts.values()) or [np.arange(len(demonstrations.lengths))]
    errors = [
        (
            part,
            {
                "windows": int(is_own.sum()),
                "mae": of["policy"].summary()["mae"],
                "baselines": {name: of[name].summary()["mae"] for name in BASELINES},
            },
        )
        for part, is_own, of in each
        if is_own.any()
    ]
    return {
        "checkpoint": loaded.checkpoint.name,
        "dataset": str(demonstrations.path.resolve()),
        "episodes": which,
        "episode_numbers": [
            source.number_of(int(place - numbers[0]))
            for numbers, source in zip(parts, sources)
            for place in np.intersect1d(numbers, chosen)
        ],
        "windows": len(index),
        "joint_names": names,
        "fps": demonstrations.fps,
        **sums["policy"].summary(),
        **metrics.summary(),
        **_perturbed(loaded, demonstrations, index),
        **_with_other_images(loaded, demonstrations, index),
        "baselines": {name: sums[name].summary() for name in BASELINES},
        **({"datasets": dict(errors)} if each else {}),
        **pictures,
        "trajectory": _trajectory(loaded, demonstrations, int(chosen[0])),
    }


def _of_one_dataset(config: Config, dataset_dir: str | None, has_choice: bool) -> Config:
    """For a policy of a mixture and other data than its held-out episodes: one of its datasets, or another one."""
    if dataset_dir is None:
        names = ", ".join(dataset_names(config))
        raise UserError(f"episodes are chosen of one dataset: give --dataset_dir as well, one of {names}, or a path")
    wanted = Path(dataset_dir).resolve()
    for name, item in zip(dataset_names(config), config.datasets or []):
        if dataset_dir == name or wanted == Path(item["path"]).resolve():
            kept = {key: value for key, value in item.items() if key not in ("episodes", "exclude_episodes")}
            return dataclasses.replace(config, datasets=[item if not has_choice else kept])
    return dataclasses.replace(config, datasets=[{"path": dataset_dir}])


def _choose_episodes(loaded: LoadedPolicy, episodes: Episodes, own_data: bool) -> tuple[np.ndarray, str]:
    everything = np.arange(len(episodes.lengths))
    if not own_data:
        return everything, "all"
    _, held_out = split_each(episodes, loaded.config.val_split, loaded.config.seed)
    return (held_out, "held out") if len(held_out) else (everything, "training (none was held out)")


def _last_position(episodes: Episodes, index: WindowIndex, row: int, state: Tensor, actions: Tensor) -> Tensor:
    """(B, A): where the robot is; the previous action stands for it where the state is something else."""
    if state.shape[-1] == actions.shape[-1]:
        return state
    windows = np.arange(row, row + len(actions))
    previous = np.maximum(index.rows[windows] - 1, index.first[windows])
    return torch.as_tensor(np.asarray(episodes.actions[previous], dtype=np.float32), device=actions.device)


@torch.inference_mode()
def _perturbed(loaded: LoadedPolicy, episodes: Episodes, index: WindowIndex) -> dict[str, Any]:
    """Error where observations are other than demonstrated and the demonstrated actions are still right.

    Images are shifted by up to 4%, their brightness and contrast changed by up to 20%, and the state has noise of 5% of
    its standard deviation, at windows that are evenly spaced; each is a function of the run's seed and the window.
    """
    config = dataclasses.replace(
        loaded.config,
        augment=True,
        augmentation=AugmentationConfig(translate=0.04, saturation=None, hue=None, sharpness=None),
        state_noise=0.05,
        state_dropout=0.0,
        camera_dropout=0.0,
    )
    change = Augmentation(config, loaded.network)
    chosen = np.linspace(0, len(index) - 1, min(len(index), _PERTURBED_WINDOWS)).round().astype(int).tolist()
    sums = [_ErrorSums(config.chunk_size, episodes.actions.shape[1]) for _ in range(2)]
    dataset = WindowDataset(episodes, index, config.cameras)
    for number, windows in enumerate(in_batches(chosen, 32)):
        obs, actions = dataset.__getitems__(windows)
        obs = {name: value.to(loaded.device) for name, value in obs.items()}
        actions = actions.to(loaded.device)
        sums[0].add(loaded.network(obs)[0], actions, obs["action_is_pad"])
        changed = change(obs, number, len(windows), slice(None))
        sums[1].add(loaded.network(changed)[0], actions, obs["action_is_pad"])
    plain, perturbed = (of.summary()["mae"] for of in sums)
    return {"mae_perturbed": perturbed, "mae_of_the_same_windows": plain, "perturbed_windows": len(chosen)}


@torch.inference_mode()
def _with_other_images(loaded: LoadedPolicy, episodes: Episodes, index: WindowIndex) -> dict[str, Any]:
    """Error where the images are those of other moments and the state is the right one, at evenly spaced windows.

    That the error stays means that the policy does not use its images (permutation importance: Fisher et al. 2019,
    arXiv:1801.01489). Nothing for a policy without images, and for fewer than two windows.
    """
    cameras = loaded.network.cameras
    count = min(len(index), _SHUFFLED_WINDOWS)
    if not cameras or count < 2:
        return {}
    chosen = np.linspace(0, len(index) - 1, count).round().astype(int)
    dataset = WindowDataset(episodes, index, loaded.config.cameras)
    changes = {"all": cameras, **({camera: (camera,) for camera in cameras} if len(cameras) > 1 else {})}
    names = ("unchanged", *changes)
    sums = {name: _ErrorSums(loaded.config.chunk_size, episodes.actions.shape[1]) for name in names}
    for own, other in zip(in_batches(chosen.tolist(), 32), in_batches(np.roll(chosen, count // 2).tolist(), 32)):
        (obs, actions), (shuffled, _) = dataset.__getitems__(own), dataset.__getitems__(other)
        obs = {name: value.to(loaded.device) for name, value in obs.items()}
        sums["unchanged"].add(loaded.network(obs)[0], actions.to(loaded.device), obs["action_is_pad"])
        for name, changed in changes.items():
            images = {f"image_{camera}": shuffled[f"image_{camera}"].to(loaded.device) for camera in changed}
            sums[name].add(loaded.network({**obs, **images})[0], actions.to(loaded.device), obs["action_is_pad"])
    return {"mae_with_other_images": {name: of.summary()["mae"] for name, of in sums.items()}}


@torch.inference_mode()
def _trajectory(loaded: LoadedPolicy, episodes: Episodes, episode: int) -> dict[str, Any]:
    """One episode, demonstrated and predicted: a chunk from each C-th observation, one after the other."""
    config = loaded.config
    index = WindowIndex.over(episodes, np.array([episode]), config.temporal_context, config.chunk_size)
    dataset = WindowDataset(episodes, index, config.cameras)
    obs, _ = dataset.__getitems__(list(range(0, len(index), config.chunk_size)))
    chunks, _ = loaded.network({name: value.to(loaded.device) for name, value in obs.items()})
    predicted = chunks.flatten(0, 1)[: len(index)].cpu().numpy()
    demonstrated = np.asarray(episodes.actions[episodes.rows_of(episode)], dtype=np.float32)
    return {
        "episode": episode,
        "chunk_size": config.chunk_size,
        "predicted": np.round(predicted, 5).tolist(),
        "demonstrated": np.round(demonstrated, 5).tolist(),
    }
