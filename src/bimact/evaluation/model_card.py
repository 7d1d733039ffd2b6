"""A run as a policy on the Hugging Face hub: its files without paths of the machine, and a model card made of them."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from safetensors.torch import save

import bimact
from bimact.config import Config
from bimact.errors import UserError
from bimact.evaluation.report import VIDEOS, describe_encoder, describe_execution
from bimact.evaluation.results import EVALUATION, read_results, stage_name
from bimact.hub import HUB_NAME, POLICY, Upload, as_json, page_of, without_paths
from bimact.interop.assembly import Converted
from bimact.interop.lerobot_writer import refuse_inexpressible, write_lerobot
from bimact.policy.loading import LoadedPolicy, load_run
from bimact.run_directory import CHECKPOINTS, INTERFACE, RUN_CONFIG, Run, read_dataset_record, recorded

CURVES, CARD = "training_curves.png", "README.md"
_OWN = ("checkpoint/*.safetensors", "videos/*.mp4", CURVES, EVALUATION, "config.json", "model.safetensors", "policy_*")
_OF_THE_MACHINE = ("dataset_dir_relative", "device", "num_workers", "wandb_project", "wandb_name", "wandb_tags")
_MAX_VIDEO_BYTES = 20 << 20  # of one
# Settings that a reader compares; the complete ones are in config.yaml.
_SETTINGS = (
    *("chunk_size", "temporal_context", "hidden_dim", "num_encoder_layers", "num_decoder_layers", "use_vae"),
    *("kl_weight", "action_mode", "augment", "ema_decay", "batch_size", "lr", "lr_schedule", "seed"),
)


def policy_upload(
    run_dir: str | Path, name: str, *, checkpoint: str | int = "best", license: str | None = None
) -> tuple[Upload, list[str]]:
    """The files of a run for the hub.

    Args:
        run_dir: the run directory.
        name: of the repository, as "user/name".
        checkpoint: `best`, `last` or an epoch; it becomes the `best` one there.
        license: the hub's name of a licence, such as apache-2.0; None: the card says that none is given.

    Returns:
        the upload, and lines on what is left out.

    Raises:
        UserError: if there is no such run or checkpoint.
    """
    loaded = load_run(run_dir, checkpoint, "cpu")
    run, config = loaded.run, _public(loaded.config)
    notes = []
    tensors = {key: value.detach().clone().contiguous() for key, value in loaded.network.state_dict().items()}
    weights = f"{CHECKPOINTS}/act-train-best.safetensors"
    files: dict[str, Path | bytes] = {
        weights: save(tensors, {"format": "pt"}),
        RUN_CONFIG: OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))).encode(),
        INTERFACE: as_json(dataclasses.asdict(loaded.interface)),
    }
    try:
        refuse_inexpressible(loaded.network)
        is_lerobot = True
    except UserError as error:
        is_lerobot = False
        notes.append(f"LeRobot's files are left out: {error}")
    if is_lerobot:
        with tempfile.TemporaryDirectory() as folder:
            write_lerobot(Converted(loaded.network, "", ()), Path(folder))
            files |= {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    results = read_results(run.path)
    if results:
        offline = {key: value for key, value in results.get("offline", {}).items() if key != "trajectory"}
        results = without_paths({**results, **({"offline": offline} if offline else {})})
        files[EVALUATION] = as_json(results)
    else:
        notes.append("no evaluation is there: `bimact evaluate` measures the success rate that the card then has")
    video = _video(run, results)
    if video is not None:
        files[f"{VIDEOS}/{video.name}"] = video
    elif results.get("rollouts"):
        notes.append("no video of a rollout is there: `bimact evaluate --video 1` makes one")
    records = run.metrics()
    curves = _curves(records)
    if curves is not None:
        files[CURVES] = curves
    used = read_dataset_record(run.metrics_path) if run.metrics_path.is_file() else None
    dataset = _on_hub(loaded.config.dataset_dir)
    card = _Card(name, loaded, config, results, records, used, dataset, license, is_lerobot, video, curves is not None)
    files[CARD] = card.text().encode()
    paths = (str(run.path.absolute()), str(run.path.resolve()), str(Path.cwd()), *_paths_in(loaded.config))
    return Upload(POLICY, name, files, own=_OWN, secrets=paths), notes


def _public(config: Config) -> Config:
    """A run's config without what is of the machine: paths, its accounts, its number of cores."""
    defaults = Config()
    paths = [entry.name for entry in dataclasses.fields(Config) if entry.metadata.get("is_path")]
    changes: dict[str, Any] = {key: getattr(defaults, key) for key in (*paths, *_OF_THE_MACHINE)}
    changes["datasets"] = None
    changes["dataset_dir"] = _on_hub(config.dataset_dir)
    config = dataclasses.replace(recorded(config), **changes)
    encoder = dataclasses.replace(config.encoder, pretrained=without_paths(config.encoder.pretrained))
    others = {
        entry.name: without_paths(value)
        for entry in dataclasses.fields(Config)
        if isinstance(value := getattr(config, entry.name), (str, list, dict))
    }
    return dataclasses.replace(config, **others, encoder=encoder)


def _on_hub(dataset: str | None) -> str | None:
    """A dataset's name if it is one on the hub; None for paths and URLs."""
    is_name = dataset is not None and HUB_NAME.fullmatch(dataset) is not None and not Path(dataset).exists()
    return dataset if is_name else None


def _paths_in(config: Config) -> Iterator[str]:
    datasets = [item[key] for item in config.datasets or [] for key in ("path", "sample_weights") if key in item]
    others = (config.output_dir, config.cache_dir, config.sample_weights, config.task_text_pretrained)
    for value in (config.dataset_dir, *datasets, *others, config.encoder.pretrained):
        if isinstance(value, str) and Path(value).is_absolute():
            yield value


def _video(run: Run, results: dict[str, Any]) -> Path | None:
    """The first filmed rollout that succeeded; or else the first one."""
    filmed = [
        (rollout["highest_reward"] < len(result["reward_reached"]), run.path / rollout["video"])
        for result in results.get("rollouts", {}).values()
        for rollout in result["each"]
        if rollout.get("video")
    ]
    there = [entry for entry in filmed if entry[1].is_file() and entry[1].stat().st_size <= _MAX_VIDEO_BYTES]
    return min(there, key=lambda entry: entry[0])[1] if there else None


def _curves(records: Sequence[dict[str, Any]]) -> bytes | None:
    """Losses and success in training over the optimizer steps, as PNG; None without records."""
    from matplotlib.figure import Figure

    training = [(record["step"], record["action_loss"]) for record in records if "action_loss" in record]
    if len(training) < 2:
        return None
    validation = [(record["step"], record["val_loss"]) for record in records if record.get("val_loss") is not None]
    success = [record for record in records if "success_rate" in record]
    figure = Figure((8, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2 if success else 1, squeeze=False)[0]
    axes[0].plot(*zip(*training), lw=1, label="training")
    if validation:
        axes[0].plot(*zip(*validation), "o-", ms=3, lw=1, label="validation")
    axes[0].set(yscale="log", xlabel="optimizer step", title="action loss (normalised)")
    axes[0].legend()
    if success:
        steps = [record["eval_step"] for record in success]
        low, high = ([100 * record[key] for record in success] for key in ("success_low", "success_high"))
        axes[1].fill_between(steps, low, high, alpha=0.2, lw=0)
        axes[1].plot(steps, [100 * record["success_rate"] for record in success], "o-", ms=3)
        axes[1].set(ylim=(0, 100), xlabel="optimizer step", title="success in training, 95% interval, %")
    for one in axes:
        one.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


@dataclasses.dataclass(frozen=True)
class _Card:
    """What a model card is made of."""

    name: str
    loaded: LoadedPolicy
    config: Config
    results: dict[str, Any]
    records: Sequence[dict[str, Any]]
    used: dict[str, Any] | None  # of the dataset
    dataset: str | None  # its name on the hub
    license: str | None
    is_lerobot: bool
    video: Path | None
    has_curves: bool

    def text(self) -> str:
        sections = (
            self._about(),
            self._success(),
            self._error(),
            self._interface(),
            self._use(),
            self._training(),
            self._license(),
        )
        header = yaml.safe_dump(self._header(), sort_keys=False, allow_unicode=True)
        return f"---\n{header}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"

    def _header(self) -> dict[str, Any]:
        header: dict[str, Any] = {
            "library_name": "bimact",
            "pipeline_tag": "robotics",
            "tags": ["robotics", "act", "bimact", "imitation-learning", *(["lerobot"] if self.is_lerobot else [])],
        }
        if self.license is not None:
            header["license"] = self.license
        if self.dataset is not None:
            header["datasets"] = [self.dataset.partition("@")[0]]
        rates = [
            {
                "task": {"type": "robotics", "name": task},
                "dataset": {"name": f"{task} (bimact's simulation)", "type": task},
                "metrics": [
                    {
                        "type": "success_rate",
                        "value": round(100 * result["success_rate"], 1),
                        "name": f"success rate, % of {result['rollouts']} rollouts",
                    }
                ],
            }
            for task, result in self.results.get("rollouts", {}).items()
        ]
        if rates:
            header["model-index"] = [{"name": self.name.partition("/")[2], "results": rates}]
        return header

    def _about(self) -> str:
        facts = self.used or {}
        task = self.loaded.interface.task
        lines = [f"# {self.name.partition('/')[2]}", ""]
        if self.video is not None:
            address = f"{page_of(POLICY, self.name)}/resolve/main/{VIDEOS}/{self.video.name}"
            lines += [f'<video controls muted loop width="480" src="{address}"></video>', ""]
        demonstrations = f"{facts['episodes']} demonstrations" if "episodes" in facts else "demonstrations"
        if self.dataset is not None:
            demonstrations += f" ([{self.dataset}]({page_of('dataset', self.dataset.partition('@')[0])}))"
        sentence = "An [ACT](https://arxiv.org/abs/2304.13705) (Action Chunking with Transformers) policy"
        lines.append(f"{sentence}{f' for the task *{task}*' if task else ''}, trained by bimact on {demonstrations}.")
        return "\n".join(lines)

    def _success(self) -> str:
        rollouts = self.results.get("rollouts", {})
        if not rollouts:
            return "## Success\n\nNot measured."
        lines = [
            "## Success",
            "",
            "| task | success | 95% interval (Wilson) | rollouts | scenes | chunks |",
            "|" + "---|" * 6,
        ]
        for task, result in rollouts.items():
            low, high = result["interval_95"]
            seeds = [rollout["seed"] for rollout in result["each"]]
            lines.append(
                f"| {task} | **{result['success_rate']:.1%}** ({result['successes']} of {result['rollouts']}) | "
                f"{low:.1%} to {high:.1%} | {result['rollouts']} | seeds {min(seeds)} to {max(seeds)} | "
                f"{describe_execution(self.config, result)} |"
            )
        for task, result in rollouts.items():
            stages = [
                f"{stage_name(task, int(reward))} {count}" for reward, count in sorted(result["reward_reached"].items())
            ]
            lines += ["", f"Stages of {task} reached, of {result['rollouts']}: {', '.join(stages)}."]
        lines += ["", "In simulation, on scenes that the demonstrations do not have unless their seeds overlap."]
        return "\n".join(lines)

    def _error(self) -> str:
        offline = self.results.get("offline")
        if not offline:
            return ""
        baselines = ", ".join(f"{name} {result['mae']:.4g}" for name, result in offline["baselines"].items())
        return (
            "## Error on demonstrations\n\n"
            f"Mean absolute error of predicted chunks on {len(offline['episode_numbers'])} {offline['episodes']} "
            f"episodes: {offline['mae']:.4g} in the robot's units (baselines: {baselines})."
        )

    def _interface(self) -> str:
        interface, config = self.loaded.interface, self.config
        rows = [
            f"| `image_{camera}` | {'any size' if size is None else f'{size[0]} × {size[1]}'}, uint8 RGB |"
            for camera, size in interface.cameras.items()
        ]
        for what, dim, names in (
            ("`state`", config.state_dim, interface.state_names),
            ("action", config.action_dim, interface.action_names),
        ):
            listed = f": {', '.join(names)}" if names else ""
            rows.append(f"| {what} | {dim} numbers{listed} |")
        hz = interface.control_frequency
        rows.append(f"| control frequency | {f'{hz:g} Hz' if hz else 'not known'} |")
        rows.append(f"| chunk | {config.chunk_size} steps; {describe_execution(config)} |")
        return "\n".join(["## Inputs and outputs", "", "| | |", "|---|---|", *rows])

    def _use(self) -> str:
        images = ", ".join(f'"image_{camera}": {camera}_image' for camera in self.loaded.interface.cameras)
        lines = [
            "## Use",
            "",
            "```python",
            "import bimact",
            "",
            f'policy = bimact.load_policy("{self.name}")',
            "policy.reset()",
            f'action = policy.act({{{images}{", " if images else ""}"state": state}})  # in the robot\'s units',
            "```",
            "",
            "```bash",
            f"bimact serve --run {self.name}      # for robots; bimact-client connects",
        ]
        lines += [f"bimact evaluate --run {self.name} --task {task}" for task in self.results.get("rollouts", {})]
        lines += ["```"]
        if self.is_lerobot:
            lines += ["", f"LeRobot's commands take it as `--policy.path={self.name}`."]
        return "\n".join(lines)

    def _training(self) -> str:
        config, facts = self.config, self.used or {}
        steps = max((record["step"] for record in self.records if "step" in record), default=None)
        seconds = sum(record.get("time_per_epoch", 0.0) for record in self.records)
        parameters = sum(parameter.numel() for parameter in self.loaded.network.parameters())
        rows = [
            ("parameters", f"{parameters:,}"),
            ("encoder", describe_encoder(config.encoder)),
            ("checkpoint", self.loaded.checkpoint.name),
            ("optimizer steps", "not known" if steps is None else f"{steps:,}"),
            ("training time", f"{seconds / 60:.0f} min" if seconds else "not known"),
            *((key, str(getattr(config, key))) for key in _SETTINGS),
            ("bimact", bimact.__version__),
        ]
        if facts:
            rows.insert(0, ("demonstrations", f"{facts['episodes']} episodes, {facts['steps']:,} steps"))
        lines = ["## Training", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
        lines.append(f"All settings: [{RUN_CONFIG}]({RUN_CONFIG}).")
        if self.has_curves:
            lines += ["", f"![losses over optimizer steps]({CURVES})"]
        return "\n".join(lines)

    def _license(self) -> str:
        return f"## Licence\n\n{self.license or 'None is given: ask the author before you use the weights.'}"
