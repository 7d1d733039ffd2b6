"""`R/report.html`: one self-contained page on how well a run does, how it was made, and how to repeat it."""

from __future__ import annotations

import dataclasses
import platform
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from bimact.config import Config, EncoderConfig
from bimact.data.episodes import Episodes
from bimact.data.windows import split_each
from bimact.errors import UserError
from bimact.evaluation import plots
from bimact.evaluation.page import page_environment
from bimact.evaluation.predictors import predictors_line, unused_images
from bimact.evaluation.results import read_results, stage_name
from bimact.evaluation.robustness import curves, differences
from bimact.evaluation.saliency import SCALE
from bimact.files import check_writable, write_text
from bimact.policy.loading import load_weights
from bimact.run_directory import CHECKPOINTS, Run, read_dataset_record
from bimact.training.demonstrations import open_demonstrations
from bimact.training.mixture import open_training_data

REPORT, VIDEOS, TEMPLATE = "report.html", "videos", "report_template.html"

# ACT (Zhao et al. 2023, arXiv:2304.13705), Table I, scripted demonstrations: 3 training seeds × 50 rollouts.
PAPER_RATES = {"transfer_cube": 0.86, "insertion": 0.32}

_FEW_ROLLOUTS, _FEW_STEPS = 20, 500
_MAX_VIDEO_BYTES = 24 << 20  # of all on the page, since a browser holds the whole page in memory
_MOST_PICTURES = 24  # of saliency
_FRAMES = 6


@dataclass(frozen=True)
class _Run:
    """What a run's folder holds, as far as it is there, and the dataset that it was trained on."""

    path: Path
    config: Config
    records: list[dict[str, Any]]
    results: dict[str, Any]
    episodes: Episodes | None
    data_problem: str  # why there are no episodes
    used: dict[str, Any] | None  # of the dataset, and what was left out, as the training has told

    @property
    def name(self) -> str:
        return self.config.wandb_name or self.path.resolve().name

    @property
    def task(self) -> str | None:
        """Of the data; where it has no name, of the first rollouts."""
        return (self.episodes and self.episodes.task) or next(iter(self.results.get("rollouts", {})), None)

    @property
    def rollouts(self) -> dict[str, dict[str, Any]]:
        """Results by task, the run's own first."""
        return dict(sorted(self.results.get("rollouts", {}).items(), key=lambda entry: entry[0] != self.task))

    @property
    def steps(self) -> int | None:
        return max((record["step"] for record in self.records), default=None)

    @property
    def epochs(self) -> int | None:
        return max((record["epoch"] for record in self.records if "time_per_epoch" in record), default=None)

    @property
    def seconds(self) -> float | None:
        """Of training; None before the first epoch has ended."""
        return sum(record.get("time_per_epoch", 0.0) for record in self.records) or None

    @property
    def evaluated_checkpoints(self) -> list[str]:
        """File names of the checkpoints that the results are of, that of the rollouts first."""
        results = [*self.rollouts.values(), self.results.get("offline", {})]
        return list(dict.fromkeys(result["checkpoint"] for result in results if "checkpoint" in result))

    @property
    def checkpoint(self) -> Path | None:
        """The one that was evaluated, or else the one that would be."""
        names = (*self.evaluated_checkpoints, "act-train-best.pth", "act-train-last.pth")
        paths = (self.path / CHECKPOINTS / Path(name).name for name in names if name)
        return next((path for path in paths if path.is_file()), None)

    @cached_property
    def parameters(self) -> int | None:
        """As many as the checkpoint has; running statistics of batch norm and normalisers are none."""
        try:
            weights = load_weights(self.checkpoint) if self.checkpoint else {}
        except UserError:
            return None
        statistics = re.compile(r"(running_mean|running_var|num_batches_tracked)$|^(state|action)_normalizer\.")
        return sum(tensor.numel() for name, tensor in weights.items() if not statistics.search(name)) or None

    @property
    def held_out(self) -> int | None:
        """Demonstrations that training has not seen."""
        if self.episodes is None:
            return None
        return len(split_each(self.episodes, self.config.val_split, self.config.seed)[1])


def write_report(run_dir: str | Path) -> Path:
    """Write `R/report.html`: one page that needs no other file and no network.

    A section whose data is missing says which command makes it.

    Args:
        run_dir: as `Run.existing` takes it.

    Returns:
        the page's path.

    Raises:
        UserError: if the directory is not a run or cannot be written, or one of its files cannot be read.
    """
    check_writable(Run.existing(run_dir).path)
    run = _open_run(run_dir)
    environment = page_environment(
        Path(__file__).parent, percent=_percent, duration=_duration, words=_words, quote=_quote
    )
    path = run.path / REPORT
    write_text(path, environment.get_template(TEMPLATE).render(_content(run)))
    return path


def summary_table(run_dir: str | Path) -> Table:
    """What a run has reached, and where its files are, for the terminal.

    Raises:
        UserError: as `write_report`.
    """
    run = _open_run(run_dir)
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def add(name: str, value: str) -> None:
        table.add_row(Text(name), Text(value))  # not plain `str`, in which [ ] would be rich's markup

    for task, result in run.rollouts.items():
        low, high = result["interval_95"]
        counts = f"{result['successes']} of {result['rollouts']} = {result['success_rate']:.1%}"
        add(f"success rate, {_words(task).lower()}", f"{counts} (95% interval {low:.1%} to {high:.1%})")
    if "offline" in run.results:
        offline = run.results["offline"]
        baselines = ", ".join(f"{name} {of['mae']:.4f}" for name, of in offline["baselines"].items())
        add("mean absolute error", f"{offline['mae']:.4f} ({baselines})")
    if run.steps is not None:
        minutes = f"{run.seconds / 60:.1f} minutes, " if run.seconds else ""
        add("training", f"{minutes}{run.steps:,} steps")
    videos = len(list((run.path / VIDEOS).glob("*.mp4")))
    add("report", str(run.path / REPORT))
    add("videos", f"{run.path / VIDEOS} ({videos})" if videos else "none")
    add("checkpoint", str(run.checkpoint or "none"))
    return table


def _open_run(run_dir: str | Path) -> _Run:
    directory = Run.existing(run_dir)
    path, config, records = directory.path, directory.config, directory.metrics()
    used = read_dataset_record(directory.metrics_path) if directory.metrics_path.is_file() else None
    episodes, problem = None, "the run's config names no dataset"
    dataset, _ = directory.dataset()
    if dataset is not None or config.datasets is not None:
        try:
            if config.datasets is not None:
                episodes, _ = open_training_data(config, lambda line: None, for_training=False)
            else:
                episodes, _ = open_demonstrations(config, dataset or "", lambda line: None, for_training=False)
        except UserError as error:  # the page stands without the data
            problem = str(error)
    return _Run(path, config, records, read_results(path), episodes, problem, used)


def _content(run: _Run) -> dict[str, Any]:
    """What the template shows."""
    videos, videos_left_out = _videos(run)
    offline = run.results.get("offline")
    saliency = _saliency(run, offline or {})
    return {
        "run": run,
        "written": f"{datetime.now():%d %B %Y, %H:%M}",
        "too_few": _too_few(run),
        "rollouts": [_rollouts(run, task, result) for task, result in run.rollouts.items()],
        "robustness": [_robustness(task, groups[-1]) for task, groups in run.results.get("robustness", {}).items()],
        "paper_rate": PAPER_RATES.get(run.task or ""),
        "planned_execution": describe_execution(run.config),
        "encoder": describe_encoder(run.config.encoder),
        "image_size": _image_size(run),
        "videos": videos,
        "videos_left_out": videos_left_out,
        "demonstration": _demonstration(run),
        "curves": plots.learning_curves(run.records) if run.records else {},
        "offline": {**offline, **plots.error_plots(offline)} if offline else None,
        "predictors": predictors_line(offline) if offline and "mae_perturbed" in offline else None,
        "unused_images": unused_images(offline or {}),
        "saliency": saliency[:_MOST_PICTURES],
        "saliency_left_out": len(saliency[_MOST_PICTURES:]),
        "scale": SCALE,
        "settings": list(_settings(run.config)),
        "recording": _recording(run.episodes),
        "versions": _versions(),
    }


def _too_few(run: _Run) -> str | None:
    """What of a run is too little for its figures to mean anything."""
    rollouts = max((result["rollouts"] for result in run.rollouts.values()), default=_FEW_ROLLOUTS)
    few = [f"{rollouts} rollout{'s' * (rollouts != 1)}"] if rollouts < _FEW_ROLLOUTS else []
    if run.steps is not None and run.steps < _FEW_STEPS:
        few.append(f"{run.steps} optimizer steps")
    return " and ".join(few) or None


# Rollouts --------------------------------------------------------------------------------------------


def _rollouts(run: _Run, task: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A task's results with what a reader wants to know besides."""
    seeds = [rollout["seed"] for rollout in result["each"]]
    reached = sorted((int(reward), count) for reward, count in result["reward_reached"].items())
    failures = [rollout for rollout in result["each"] if rollout["highest_reward"] < len(reached)]
    demonstrated = _demonstrated_seeds(run.episodes)
    return {
        **result,
        "task": task,
        "paper": PAPER_RATES.get(task) if task == run.task else None,
        "execution": describe_execution(run.config, result),
        "first_seed": min(seeds),
        "last_seed": max(seeds),
        "demonstrated": None if demonstrated is None else len(demonstrated.intersection(seeds)),
        "stages": [(reward, stage_name(task, reward), count) for reward, count in reached],
        "failures": [{**failure, "stage": stage_name(task, failure["highest_reward"])} for failure in failures],
    }


def _robustness(task: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """Success under perturbations: the newest results of a task."""
    return {
        **group,
        "task": task,
        "rows": differences(group),
        "panels": plots.robustness_plots(curves(group)),
        "meanings": {name: group["perturbations"][name]["meaning"] for name in curves(group)},
    }


def describe_execution(config: Config, result: Mapping[str, Any] | None = None) -> str:
    """How chunks were executed in rollouts, or would be."""
    if result["settings"]["temporal_ensemble"] if result else config.temporal_ensemble:
        window = f"the newest {config.ensemble_window}" if config.ensemble_window else "all"
        return f"temporal ensemble of {window} chunks, m = {config.ensemble_coefficient:g}"
    steps = (result["execute_steps"] if result else config.execute_steps) or config.chunk_size
    return f"open loop, {steps} of {config.chunk_size} steps of each chunk"


def _demonstrated_seeds(episodes: Episodes | None) -> set[int] | None:
    """Seeds of the scenes that bimact recorded demonstrations in; None for other data."""
    recorded = episodes.metadata.get("episodes") if episodes else None
    if not isinstance(recorded, list) or not all(isinstance(episode, dict) for episode in recorded):
        return None
    return {episode["seed"] for episode in recorded if "seed" in episode}


def _videos(run: _Run) -> tuple[list[dict[str, Any]], int]:
    """The filmed rollouts as far as there is room for them, and how many are left out."""
    filmed = {
        Path(rollout["video"]).name: {
            **rollout,
            "task": task,
            "stage": stage_name(task, rollout["highest_reward"]),
            "highest_stage": len(result["reward_reached"]),
        }
        for task, result in run.rollouts.items()
        for rollout in result["each"]
        if rollout.get("video")
    }
    paths = sorted((run.path / VIDEOS).glob("*.mp4"))
    if any(path.name in filmed for path in paths):  # the others' results have been replaced by newer ones
        paths = [path for path in paths if path.name in filmed]
    sizes = np.cumsum([path.stat().st_size for path in paths])
    shown = paths[: int((sizes <= _MAX_VIDEO_BYTES).sum())]
    videos = [{**plots.embedded_video(path, _FRAMES), "rollout": filmed.get(path.name)} for path in shown]
    return videos, len(paths) - len(shown)


def _demonstration(run: _Run) -> dict[str, Any] | None:
    """Frames of the first demonstration from a camera that the policy uses."""
    if run.episodes is None or not run.episodes.cameras:
        return None
    camera = next(iter(run.config.cameras or run.episodes.cameras))
    if camera not in run.episodes.cameras:  # the folder holds other data by now
        return None
    return {"camera": camera, "frames": plots.demonstration_frames(run.episodes, camera, _FRAMES)}


def _saliency(run: _Run, offline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pictures of what the images contribute, as far as their files are there."""
    fps = offline.get("fps")
    return [
        {
            **picture,
            "at": f"{picture['step'] / fps:.1f} s" if fps else f"step {picture['step']}",
            "source": plots.embedded_png(path),
        }
        for picture in offline.get("saliency", [])
        if (path := run.path / "saliency" / Path(picture["picture"]).name).is_file()
    ]


# The policy ------------------------------------------------------------------------------------------


def describe_encoder(encoder: EncoderConfig) -> str:
    """Backbone, initial weights, and whether they were trained."""
    name = " ".join(filter(None, (encoder.name, encoder.model_name)))
    usual = {
        "timm": "ImageNet weights",
        "pri3d": "ImageNet weights",
        "resnet": "ImageNet weights",
        "clip_vit": "CLIP weights",
    }
    weights = "random initial weights"
    if encoder.name == "conv":
        name = f"conv ({', '.join(map(str, encoder.channels))} channels)"
    elif encoder.pretrained not in (None, False):
        weights = usual.get(encoder.name, "pretrained") if encoder.pretrained is True else str(encoder.pretrained)
    if encoder.model_name in ("resnet18", "resnet18.tv_in1k"):
        name = "ResNet-18"
    return f"{name}, {weights}, {'frozen' if encoder.freeze else 'trained'}"


def _image_size(run: _Run) -> str:
    """Of the dataset's images, and what becomes of them."""
    encoder, images = run.config.encoder, run.episodes.images if run.episodes else {}
    shapes = sorted({images[name].shape[1:3] for name in run.config.cameras or () if name in images})
    text = " and ".join(f"{height} × {width}" for height, width in shapes) or "unknown without the data"
    if encoder.crop:
        parts = [f"{round(encoder.crop[2] * height)} × {round(encoder.crop[3] * width)}" for height, width in shapes]
        text += f", cropped to {' and '.join(parts) or 'a part'}"
    if encoder.image_size:
        text += f", resized to {encoder.image_size[0]} × {encoder.image_size[1]}"
    return text


# Settings --------------------------------------------------------------------------------------------


def _settings(config: Any, prefix: str = "") -> Iterator[dict[str, Any]]:
    """Every key of the config with its value, its meaning, and whether it is the default."""
    for entry, default in zip(dataclasses.fields(config), dataclasses.astuple(type(config)())):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{entry.name}.")
        else:
            meaning = entry.metadata.get("meaning", "")
            yield {
                "name": prefix + entry.name,
                "value": _yaml(value),
                "meaning": meaning,
                "is_default": value == default,
            }


def _yaml(value: Any) -> str:
    """A setting's value as a config file has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _recording(episodes: Episodes | None) -> dict[str, Any] | None:
    """The settings of `bimact record` that made the data; None for other data."""
    settings = episodes.metadata.get("settings") if episodes else None
    needed = {"task", "episodes", "cameras", "image_size", "noise", "seed"}
    if not isinstance(settings, dict) or not needed <= settings.keys():
        return None
    looks = settings.get("randomize")
    options = {name: settings.get(name) for name in ("action_noise", "noisy_episodes", "randomize_steps")}
    if isinstance(looks, dict):
        options["randomize"] = ",".join(f"{name}={value}" for name, value in looks.items())
    return {**settings, "options": [(name, value) for name, value in options.items() if value]}


def _versions() -> list[tuple[str, str]]:
    versions = [("Python", platform.python_version())]
    for name in ("bimact", "torch", "numpy", "mujoco", "gym-aloha"):
        try:
            versions.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return versions


def _words(name: str) -> str:
    """`transfer_cube` → Transfer cube."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _percent(share: float, digits: int = 0) -> str:
    return f"{share:.{digits}%}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{minutes:.1f} min" if minutes < 120 else f"{hours:.1f} h"


def _quote(text: object) -> str:
    """For a shell."""
    return shlex.quote(str(text))
