"""Going on with a run: its settings and its data have to be those that it was trained with, or it is said so."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bimact.config import Config, load_config, setting_names, setting_value
from bimact.data.episodes import Episodes
from bimact.errors import UserError
from bimact.files import expand_home
from bimact.train.checkpoint import FOLDER, RUN_CONFIG, last_checkpoint, load_pair
from bimact.train.tracking import METRICS

# What makes the network: the saved weights fit nothing else.
NETWORK = frozenset(
    [
        "cameras",
        "chunk_size",
        "temporal_context",
        "state_dim",
        "action_dim",
        "hidden_dim",
        "nheads",
        "num_encoder_layers",
        "num_decoder_layers",
        "dim_feedforward",
        "pre_norm",
        "use_vae",
        "latent_dim",
        "n_vae_encoder_layers",
        "encoder.name",
        "encoder.model_name",
        "encoder.fuse",
        "encoder.spatial",
        "encoder.channels",
    ]
)
# What changes neither the network nor what it learns.
FREE = frozenset(
    [
        "dataset_dir",
        "dataset_dir_relative",
        "output_dir",
        "num_workers",
        "cache_dir",
        "feature_cache",
        "device",
        "auto_batch_size",
        "checkpoint_frequency",
        "log_frequency",
        "tensorboard",
        "wandb_project",
        "wandb_name",
        "wandb_tags",
        "wandb_checkpoints",
        "execute_steps",
        "temporal_ensemble",
        "ensemble_window",
        "ensemble_coefficient",
        "encoder.pretrained",
        "encoder.weights_from_checkpoint",
    ]
)
_LENGTH = frozenset({"num_epochs", "num_steps"})  # training longer changes earlier steps under a cosine only


@dataclass(frozen=True)
class Checkpoint:
    """What a run is gone on from.

    Attributes:
        path: the weights file.
        run: the folder of the run that it belongs to.
        config: that run's settings; None for weights that lie alone.
        state: the trainer's state; None if it is lost.
    """

    path: Path
    run: Path
    config: Config | None
    weights: dict[str, Tensor]
    state: dict[str, Any] | None

    @property
    def epochs(self) -> int:
        """Epochs that the name of the file tells of, 0 if it tells none."""
        number = self.path.stem.rpartition("-")[2]
        return int(number) if number.isdigit() else 0


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint with what lies beside it.

    Args:
        path: a weights file, or a run's folder or the folder of its checkpoints, which stand for the last one.

    Raises:
        UserError: if it is missing or damaged.
    """
    path, run = Path(expand_home(path)), run_of(path)
    if path.is_dir():
        path = last_checkpoint(run)
    weights, state = load_pair(path)
    config = load_config(run / RUN_CONFIG) if (run / RUN_CONFIG).is_file() else None
    return Checkpoint(path, run, config, weights, state)


def run_of(path: str | Path) -> Path:
    """The folder of the run that a checkpoint, or a folder of checkpoints, belongs to; another folder is the run."""
    path = Path(expand_home(path))
    if path.is_dir():
        is_checkpoints = path.absolute().name == FOLDER and not (path / RUN_CONFIG).exists()
        if not is_checkpoints:
            return path
        return path.parent if path.name == FOLDER else path.absolute().parent
    return path.parent.parent if path.absolute().parent.name == FOLDER else path.parent


def dataset_of(config: Config, run: Path) -> tuple[str | None, str | None]:
    """Where the demonstrations of a run are: where they were, or else at the same place seen from the run's folder.

    Args:
        config: of the run.
        run: its folder, which may have been moved together with the demonstrations.

    Returns:
        the dataset, None if the config names none; and a line that says so if it is not where it was.
    """
    path, relative = config.dataset_dir, config.dataset_dir_relative
    if path is None or relative is None or os.path.lexists(path):
        return path, None
    moved = os.path.normpath(run.absolute() / relative)
    if not os.path.lexists(moved):
        return path, None
    return moved, f"There is no {path} any more: the dataset is taken from {moved}, which is the same seen from the run"


def keep_batch_size(config: Config, checkpoint: Checkpoint) -> Config:
    """What `auto_batch_size` has found for a run stays."""
    if not config.auto_batch_size or checkpoint.config is None:
        return config
    return dataclasses.replace(config, auto_batch_size=False, batch_size=checkpoint.config.batch_size)


def keep_feature_cache(config: Config, checkpoint: Checkpoint) -> Config:
    """A run that trained on cached tokens goes on so, and so does one that did not: their rounding differs.

    But for an encoder that learns from now on: its tokens change.
    """
    if config.feature_cache is not None or checkpoint.config is None:
        return config
    return dataclasses.replace(config, feature_cache=checkpoint.config.feature_cache and config.encoder.freeze)


def settle_changes(config: Config, checkpoint: Checkpoint, episodes: Episodes, override: bool) -> list[str]:
    """Compare the settings and the demonstrations of a resumed run with those that it had.

    Args:
        config: of this call, with the dataset's sizes filled in.
        checkpoint: of the run.
        episodes: the demonstrations.
        override: whether settings that change what is learned, and the demonstrations, may differ.

    Returns:
        a line for each thing that differs.

    Raises:
        UserError: if the network would be another, or `override` is needed and not given.
    """
    changes = [] if checkpoint.config is None else _settings_changes(config, checkpoint, checkpoint.config, override)
    return changes + _dataset_changes(checkpoint, episodes, override)


def _settings_changes(config: Config, checkpoint: Checkpoint, before: Config, override: bool) -> list[str]:
    changed = _differences(before, config)
    lines = [f"{name}: {_shown(old)} → {_shown(new)}" for name, (old, new) in changed.items()]
    impossible = sorted(changed.keys() & NETWORK)
    if impossible:
        raise UserError(
            f"{checkpoint.path} has another network than the settings ask for "
            f"({'; '.join(line for line in lines if line.partition(':')[0] in impossible)}): "
            "leave these settings as they were, or begin a new run"
        )
    free = FREE | (_LENGTH if config.lr_schedule == "constant" else set())
    weighty = [line for line in lines if line.partition(":")[0] not in free]
    if weighty and not override:
        raise UserError(
            f"the settings differ from those of {checkpoint.run} ({'; '.join(weighty)}): leave them as they were, "
            "or say --override_config to go on with the new ones"
        )
    return lines


def _differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    old, new = (dataclasses.replace(config, dataset_dir=_absolute(config.dataset_dir)) for config in (old, new))
    pairs = {name: (setting_value(old, name), setting_value(new, name)) for name in setting_names()}
    silent = {
        *("encoder.weights_from_checkpoint", "image_size", "output_dir", "auto_batch_size", "dataset_dir_relative"),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name not in silent}


def _absolute(dataset: str | None) -> str | None:
    """The absolute path of a dataset on this machine; names on the hub and URLs stay as they are."""
    return os.path.abspath(dataset) if dataset is not None and os.path.lexists(dataset) else dataset  # noqa: PTH100


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def fingerprint(episodes: Episodes) -> str:
    """Which demonstrations these are, by their lengths and the sizes of what they hold."""
    sizes = (episodes.state.shape, episodes.actions.shape, {name: rows.shape for name, rows in episodes.images.items()})
    return hashlib.sha256(repr((episodes.lengths.tolist(), sizes)).encode()).hexdigest()


def _dataset_changes(checkpoint: Checkpoint, episodes: Episodes, override: bool) -> list[str]:
    if checkpoint.state is None or checkpoint.state["dataset"] == fingerprint(episodes):
        return []
    if not override:
        raise UserError(
            f"{episodes.path} is not the dataset that {checkpoint.run} was trained with: other episodes would be held "
            "out for validation; give the same one, or say --override_config to go on with this one"
        )
    return ["the demonstrations: other episodes are held out for validation"]


def refuse_other_run(run: Path, checkpoint: Checkpoint | None) -> None:
    """A folder with a run in it may only be gone on with, never begun anew.

    Raises:
        UserError: naming the way to go on and a free name.
    """
    if not ((run / RUN_CONFIG).exists() or (run / FOLDER).exists()):
        return
    if checkpoint is not None and checkpoint.run.resolve() == run.resolve():
        return
    free = next(f"{run}-{number}" for number in range(2, 10**6) if not Path(f"{run}-{number}").exists())
    last = run / FOLDER / "act-train-last.pth"
    go_on = f"go on with it by --resume_from {last}, or " if last.exists() else ""
    raise UserError(f"{run.resolve()} holds a run already: {go_on}choose a free name such as --output_dir {free}")


def new_run_settings(config: Config) -> Config:
    """What `R/config.yaml` says: a policy that is rebuilt from it takes its weights from checkpoints."""
    encoder = dataclasses.replace(config.encoder, weights_from_checkpoint=True)
    return dataclasses.replace(config, encoder=encoder, auto_batch_size=False)


def run_record(config: Config, run: Path) -> Config:
    """What is written to `R/config.yaml`: also where the demonstrations are, as an absolute path and from the run."""
    dataset = _absolute(config.dataset_dir)
    is_here = dataset is not None and os.path.lexists(dataset)
    relative = os.path.relpath(dataset, run.absolute()) if dataset is not None and is_here else None
    return dataclasses.replace(new_run_settings(config), dataset_dir=dataset, dataset_dir_relative=relative)


def take_over_metrics(checkpoint: Checkpoint, run: Path, step: int) -> None:
    """A run that goes on elsewhere takes its past along; one that begins anew keeps it under another name."""
    source, target = checkpoint.run / METRICS, run / METRICS
    if source.exists() and not target.exists():
        shutil.copyfile(source, target)
    if step == 0 and target.exists():
        number = next(n for n in range(1, 10**6) if not target.with_suffix(f".before-{n}.jsonl").exists())
        target.rename(target.with_suffix(f".before-{number}.jsonl"))
