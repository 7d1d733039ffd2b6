"""Preparing a run: its settings, its demonstrations, its policy. Decoding and encoding may take hours here."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from bimact.config import GROUPS, Config, load_config, to_config
from bimact.configs import DEFAULT, find_config
from bimact.data.summary import dataset_lines, dataset_record
from bimact.data.training_order import TrainingOrder
from bimact.errors import UserError, in_quotes, in_words
from bimact.files import check_writable, expand_home
from bimact.hub import policy_folder
from bimact.policy.act import ActPolicy
from bimact.policy.metadata import Interface
from bimact.run_directory import Run, recorded
from bimact.training import resume
from bimact.training.demonstrations import (
    Demonstrations,
    fill_from_dataset,
    read_demonstrations,
    select_demonstrations,
)
from bimact.training.device import make_accelerator
from bimact.training.feature_cache import line_on_views, uses_features, with_features
from bimact.training.memory import with_largest_batch
from bimact.training.mixture import (
    dataset_names,
    mixture_lines,
    mixture_record,
    open_training_data,
    training_weights,
    with_datasets,
)
from bimact.training.ranks import Ranks


@dataclass
class PreparedRun:
    """The input of `train_run`.

    Attributes:
        config: complete.
        run: the run directory; nothing is written there yet.
        checkpoint: that the run resumes from; None for a new run.
        accelerator: device, precision and processes.
        ranks: the same processes.
        policy: with initial weights, or those of the checkpoint, and statistics.
        data: the demonstrations, split into training and validation.
        order: of the training windows, at the first step of this call.
        step: optimizer steps already done.
        total_steps: optimizer steps at the end.
        total_epochs: epochs at the end.
        interface: for `interface.json`.
        dataset_record: for `metrics.jsonl`.
        late_lines: on the dataset, to be printed after the first logged line, as the training guide's output has none.
    """

    config: Config
    run: Run
    checkpoint: resume.Checkpoint | None
    accelerator: Accelerator
    ranks: Ranks
    policy: ActPolicy
    data: Demonstrations
    order: TrainingOrder
    step: int
    total_steps: int
    total_epochs: int
    interface: Interface
    dataset_record: dict[str, Any]
    late_lines: list[str]


AUTO = "auto"  # of `resume_from`


def downloaded(resume_from: str | Path | None) -> tuple[str | Path | None, bool]:
    """What a training resumes from, as a path of this machine, and whether it comes from the Hugging Face hub."""
    copy = None if resume_from in (None, AUTO) else policy_folder(resume_from)
    return (resume_from, False) if copy is None else (Run.existing(copy).checkpoint(), True)


@dataclass(frozen=True)
class Request:
    """The settings of a training, and their source.

    Attributes:
        config: as given; `prepare_run` fills in what is null.
        source: of the config, for the output.
        notes: lines to print.
    """

    config: Config
    source: str
    notes: tuple[str, ...] = ()


def request(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    settings: Sequence[str] | Mapping[str, Any] = (),
    resume_from: str | Path | None = None,
) -> Request:
    """Read the settings of a training.

    Args:
        config: YAML file, name of a config that bimact comes with, mapping or `Config`; None: that of the run to
            resume, or else the training guide's policy.
        settings: on top of it: `key=value`, as on the command line, or a mapping from names to values.
        resume_from: a checkpoint file, a run directory or a policy's name on the Hugging Face hub; "auto" takes no
            settings from a run.

    Raises:
        UserError: for a faulty setting, or a file that cannot be read.
    """
    lines = [] if isinstance(settings, Mapping) else list(settings)
    changes = settings if isinstance(settings, Mapping) else {}
    resume_from, is_from_hub = downloaded(resume_from)
    run = None if resume_from in (None, AUTO) else Run.of(resume_from)
    notes: tuple[str, ...] = ()
    if config is not None and not isinstance(config, (str, Path)):
        source, found = "given in Python", to_config(config)
    elif config is None and run is not None and run.config_path.is_file():
        # The present path; the config has the one at the start. A copy from the hub is not written to.
        lines = lines if is_from_hub else [f"output_dir={run.path}", *lines]
        source, found = str(run.config_path), load_config(run.config_path, lines)
        if "dataset_dir" not in changes and not any(line.startswith("dataset_dir=") for line in lines):
            dataset, moved = run.dataset()
            found = dataclasses.replace(found, dataset_dir=dataset)
            notes = () if moved is None else (moved,)
    else:
        path = find_config(config or DEFAULT)
        if run is not None and config is None:
            lines = [f"output_dir={run.path}", *lines]
        source, found = str(path), load_config(path, lines)
    if changes:
        merged = dataclasses.asdict(found)
        for name, value in changes.items():
            group, dot, key = name.partition(".")
            if name in GROUPS and isinstance(value, Mapping):
                merged[name].update(value)
            elif dot and group in GROUPS:
                merged[group][key] = value
            else:
                merged[name] = value
        found = to_config(merged)
    return Request(found, source, notes)


def prepare_run(
    config: Config | Request,
    resume_from: str | Path | None = None,
    *,
    override_config: bool = False,
    accelerator: Accelerator | None = None,
) -> PreparedRun:
    """Open and convert the demonstrations, build the policy, encode features, and restore the position in the data.

    With several processes all have to call it.

    Args:
        config: of the run. `dataset_dir` defaults to the environment variable ACT_DATASET_DIR, `output_dir` to a new
            directory in `runs`.
        resume_from: a checkpoint's weights file or a run directory; "auto": the config's output directory if it has a
            checkpoint, or else begin there.
        override_config: whether a resumed run may have other settings than before.
        accelerator: of `make_accelerator(config)`; None: made here.

    Raises:
        UserError: for faulty input, or an output directory that holds another run.
    """
    given = config if isinstance(config, Request) else Request(config, "given in Python")
    config = given.config
    accelerator = accelerator or make_accelerator(config)
    ranks = Ranks(accelerator)

    def log(line: str) -> None:
        if ranks.is_main:
            print(line, flush=True)

    starts_anew = False
    resume_from, is_from_hub = downloaded(resume_from)
    if resume_from == AUTO:
        if config.output_dir is None:
            raise UserError("--resume_from auto needs --output_dir: the directory to begin in, or to resume")
        resume_from = Run(Path(config.output_dir)).path if Run(Path(config.output_dir)).has_checkpoint else None
        starts_anew = resume_from is None
    if config.datasets is None and config.dataset_dir is None:
        dataset = expand_home(os.environ.get("ACT_DATASET_DIR", "")) or None
        config = dataclasses.replace(config, dataset_dir=dataset)
    config = with_datasets(config)
    dataset = config.dataset_dir if config.datasets is None else ", ".join(item["path"] for item in config.datasets)
    output = config.output_dir
    if output is None:
        output = str(
            Run.of(resume_from).path
            if resume_from is not None and not is_from_hub
            else ranks.broadcast_from_main(_new_run("+".join(dataset_names(config)) or config.dataset_dir))
        )
    config = dataclasses.replace(config, output_dir=output)
    log(f"=== ACT Training ===\nConfig: {given.source}\nDataset: {dataset}\nOutput: {output}\n")
    for note in given.notes:
        log(note)
    if dataset is None:
        raise UserError("training needs --dataset_dir (or ACT_DATASET_DIR)")

    run = Run(Path(output))
    with ranks.explain_lost_processes(run):
        return _prepared(config, run, resume_from, override_config, starts_anew, accelerator, ranks, log)


def _prepared(
    config: Config,
    run: Run,
    resume_from: str | Path | None,
    override_config: bool,
    starts_anew: bool,
    accelerator: Accelerator,
    ranks: Ranks,
    log: Callable[[str], None],
) -> PreparedRun:
    """`prepare_run` with the run directory known."""
    ranks.check_in_main(lambda: check_writable(run.path))
    checkpoint = None if resume_from is None else resume.open_checkpoint(resume_from)
    if starts_anew and run.config_path.exists():
        log(f"{run.path} has no checkpoint to resume from: the training starts anew there")
    elif not starts_anew:
        resume.refuse_other_run(run, checkpoint)

    with accelerator.main_process_first(), accelerator.local_main_process_first():
        if config.datasets is not None:
            episodes, sources = open_training_data(config, log, for_training=checkpoint is None)
            lines, is_plain = [], False
            log("")
        else:
            source = select_demonstrations(config, config.dataset_dir or "")
            lines = dataset_lines(source)
            # The training guide's output has no such lines here: if nothing is left out, they follow the first logged
            # line.
            is_plain = source.mapped() is not None and not (source.left_out or source.unusable or source.notes)
            for line in () if is_plain else (*lines, ""):
                log(line)
            episodes, source = read_demonstrations(config, source, log, for_training=checkpoint is None)
            sources = (source,)
    config = fill_from_dataset(config, episodes)
    if checkpoint is not None:
        config = resume.keep_resolved_settings(config, checkpoint)
        for change in resume.check_config_changes(config, checkpoint, episodes, override_config):
            log(f"Changed since: {change}")
    config = dataclasses.replace(config, feature_cache=uses_features(config, episodes, ranks.count))

    if config.relative_to is not None:
        names = episodes.joint_names
        kept = [str(place) if names is None else names[place] for place, to in enumerate(config.relative_to) if to < 0]
        log(f"Actions are relative to the state at the chunk's beginning, but for: {', '.join(kept) or 'none'}")
    texts = None
    if config.tasks is not None:
        log(f"Tasks: the policy is told which of {len(config.tasks)} it is: {in_quotes(config.tasks)}")
    if config.tasks is not None and config.task_conditioning == "text":
        if checkpoint is not None and checkpoint.config is not None:
            config = dataclasses.replace(config, task_text_dim=checkpoint.config.task_text_dim)  # it has the embeddings
        else:
            from bimact.encoder.clip_text import embed_texts  # takes seconds to import

            with accelerator.main_process_first(), accelerator.local_main_process_first():
                texts = embed_texts(config.task_text_model, config.task_text_pretrained, config.tasks or ())
            config = dataclasses.replace(config, task_text_dim=texts.shape[1])
    on_views = line_on_views(config)
    if on_views is not None:
        log(on_views)
    if config.camera_dropout and len(config.cameras or ()) < 2:
        raise UserError(f"camera_dropout ({config.camera_dropout:g}) needs at least two cameras: set it to 0")

    set_seed(config.seed)
    log("Building ACT policy...")
    policy = ActPolicy(config if checkpoint is None else recorded(config))
    if checkpoint is not None:
        try:
            policy.load_state_dict(checkpoint.weights)
        except RuntimeError as error:
            raise UserError(f"{checkpoint.path} does not fit the settings: {in_words(error)}") from error
    elif texts is not None:
        policy.task_texts.copy_(texts)
    log(f"Total parameters: {sum(p.numel() for p in policy.parameters()):,}")
    log(f"Trainable parameters: {sum(p.numel() for p in policy.parameters() if p.requires_grad):,}\n")

    if config.feature_cache:
        episodes = with_features(config, policy, episodes, accelerator)
    if config.tasks is not None:
        episodes = episodes.with_task_numbers(config.tasks)
    data = Demonstrations.split(episodes, config)
    if config.auto_batch_size:
        config = with_largest_batch(config, data.training, accelerator, ranks)
    state_statistics, action_statistics = data.statistics(config)
    if checkpoint is None:
        data.fit(policy, config, state_statistics, action_statistics)

    log("Creating data loaders...")
    log(f"Training samples: {len(data.training)}")
    if data.validation is not None:
        log(f"Validation samples: {len(data.validation)}")
    if data.training.recombination is not None:
        encoded = "; images are encoded at each step instead of once" if config.encoder.freeze else ""
        log(data.training.recombination.line() + encoded)
    weights = training_weights(data, config)
    mixed = mixture_lines(data, weights)
    for line in mixed:
        log(f"Mixture: {line}")
    order = TrainingOrder(
        data.training.index,
        config.batch_size,
        config.seed,
        accumulate=config.gradient_accumulation_steps,
        rank=ranks.rank,
        ranks=ranks.count,
        weights=weights,
        views=len(episodes.views),
        recombination=data.training.recombination,
    )
    step = 0
    if checkpoint is not None and checkpoint.state is not None:
        step = checkpoint.state["step"]
        division = order.load_state_dict(checkpoint.state["order"])
        log(f"Resuming from {checkpoint.path}: step {step}, epoch {order.epoch + 1}")
        if division is not None:
            log(division)
    elif checkpoint is not None:
        order.epoch = checkpoint.epochs
        step = checkpoint.epochs * order.steps_per_epoch
        then = f"training resumes after epoch {checkpoint.epochs}" if checkpoint.epochs else "training starts anew"
        log(
            f"{checkpoint.path} has no training state next to it: only its weights are taken, and {then} with a new "
            "optimizer"
        )
    total_steps, total_epochs = order.length_of_run(step, config.num_epochs, config.num_steps)
    return PreparedRun(
        config=config,
        run=run,
        checkpoint=checkpoint,
        accelerator=accelerator,
        ranks=ranks,
        policy=policy,
        data=data,
        order=order,
        step=step,
        total_steps=total_steps,
        total_epochs=total_epochs,
        interface=data.interface(config, state_statistics, action_statistics),
        dataset_record=mixture_record(data, sources, mixed) if episodes.parts else dataset_record(sources[0]),
        late_lines=lines if is_plain else [],
    )


def _new_run(dataset: str | None) -> str:
    """The directory of a run without `output_dir`."""
    sweep, trial = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if sweep and trial:  # started by `wandb agent`
        return f"runs/sweep-{sweep}/{trial}"
    name = Path(dataset).resolve().name if dataset else "act"
    return f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
