"""The proof of the shipped recipes: several training seeds, many rollouts, and a page that states how.

Each step is an ordinary command in a process of its own, and resumes: what is done is not done again.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from bimact.errors import UserError
from bimact.evaluation.intervals import wilson_interval
from bimact.evaluation.results import STAGES, read_results, stage_name
from bimact.files import check_writable, sha256_of, write_json, write_text
from bimact.machine import cpu_name, usable_cores
from bimact.recipes import QUICK, RECIPES, Recipe
from bimact.run_directory import Run

COST = "cost.json"
CHECKPOINT = "last"  # fixed before the runs: nothing is selected
TUNING_SEEDS = 10_000  # scenes from here on are for tuning; `bimact demo` and the documentation use 1000 to 1099

# Success in %, scripted demonstrations: source → task → figure.
PUBLISHED = {
    "ACT paper (arXiv:2304.13705), 3 training seeds x 50 rollouts": {"transfer_cube": "86", "insertion": "32"},
    "LeRobot's ACT, 100,000 steps on an RTX 5090": {"transfer_cube": "93.0 (186/200)", "insertion": "64.0 (128/200)"},
    "AWE (arXiv:2307.14326)": {"transfer_cube": "99", "insertion": "57"},
    "CCoL (arXiv:2511.14396), 5.3 h on an RTX 4090": {"transfer_cube": "99", "insertion": "87"},
    "MTIL (arXiv:2505.12410), 100 demonstrations": {"transfer_cube": "100 (150/150)", "insertion": "84"},
}


@dataclass(frozen=True)
class ProofSettings:
    """What is proved, and how.

    Attributes:
        tasks: of the recipes.
        seeds: of the trainings.
        rollouts: of each training's policy.
        first_scene: seed of the first rollout's scene; the next ones follow.
        folder: of datasets and runs.
        page: Markdown that is written; its figures lie beside it, in a JSON file of the same name.
        quick: two demonstrations, 20 steps and two rollouts: to test the pipeline.
    """

    tasks: tuple[str, ...] = tuple(RECIPES)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    rollouts: int = 500
    first_scene: int = 2000
    folder: Path = Path("runs/proof")
    page: Path = Path("runs/proof/results.md")
    quick: bool = False

    def check(self) -> None:
        """Whether this can be proved.

        Raises:
            UserError: if a recipe does not exist, or a number is not possible.
        """
        for task in self.tasks:
            if task not in RECIPES:
                raise UserError(f"no recipe for '{task}'; there are {', '.join(RECIPES)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"--seeds is {','.join(map(str, self.seeds))}, it has to be different numbers from 0")
        if self.rollouts < 1:
            raise UserError(f"--rollouts is {self.rollouts}, it has to be at least 1")
        if self.first_scene + self.rollouts > TUNING_SEEDS:
            raise UserError(
                f"scenes {self.first_scene} to {self.first_scene + self.rollouts - 1} reach those from {TUNING_SEEDS} "
                "on, which are for tuning: pass another --first_scene"
            )

    def recipe(self, task: str) -> Recipe:
        recipe = RECIPES[task]
        return replace(recipe, episodes=2, train=(*recipe.train, *QUICK)) if self.quick else recipe

    def dataset(self, task: str) -> Path:
        return self.folder / "data" / task

    def run(self, task: str, seed: int) -> Path:
        return self.folder / f"{task}-seed-{seed}"


def prove(settings: ProofSettings, say: Callable[[str], None] = print) -> Path:
    """Record, train and roll out all that is missing in `settings.folder`; the page is written after each policy.

    Raises:
        UserError: for faulty settings, or if a step fails.
    """
    settings.check()
    check_writable(settings.folder)
    check_writable(settings.page.parent)
    for task in settings.tasks:
        recipe, dataset = settings.recipe(task), settings.dataset(task)
        _step(recipe.record_command(str(dataset)), say)
        scenes = range(settings.first_scene, settings.first_scene + settings.rollouts)
        seen = sorted({int(episode["seed"]) for episode in _demonstrations(dataset)}.intersection(scenes))
        if seen:
            raise UserError(f"{dataset} has demonstrations of the proof's scene {seen[0]}: pass another --first_scene")
        for seed in settings.seeds:
            run = settings.run(task, seed)
            if rollouts_of(settings, task, seed) is None:
                made = ("--dataset_dir", str(dataset), "--output_dir", str(run), "--seed", str(seed))
                _step(("train", *recipe.train, *made, "--resume_from", "auto"), say)
                scene = ("--rollouts", str(settings.rollouts), "--seed", str(settings.first_scene))
                _step(("evaluate", "--run", str(run), "--checkpoint", CHECKPOINT, "--task", task, *scene), say)
            write_page(settings, say)
    return settings.page


def _step(words: Sequence[str], say: Callable[[str], None]) -> None:
    say(f"\n$ {shlex.join(['bimact', *words])}")
    status = subprocess.run([sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-m", "bimact", *words])
    if status.returncode == 130 or status.returncode < 0:
        raise KeyboardInterrupt
    if status.returncode:
        raise UserError(f"the step failed: {shlex.join(['bimact', *words])} (the same command resumes the proof)")


def rollouts_of(settings: ProofSettings, task: str, seed: int) -> dict[str, Any] | None:
    """The result of a policy's rollouts; None if there is none of these scenes and of its last checkpoint."""
    run = Run(settings.run(task, seed))
    result: dict[str, Any] | None = read_results(run.path).get("rollouts", {}).get(task)
    if result is None or (result["rollouts"], result["settings"]["seed"]) != (settings.rollouts, settings.first_scene):
        return None
    return result if result.get("weights_sha256") == sha256_of(run.checkpoint(CHECKPOINT)) else None


def _demonstrations(dataset: Path) -> list[dict[str, Any]]:
    """What the recording says of its episodes; empty before it is whole."""
    path = dataset / "metadata.json"
    return list(json.loads(path.read_text())["episodes"]) if path.is_file() else []


def training_minutes(run: Run) -> float:
    """Of wall time, without validation and saving."""
    return sum(float(record.get("time_per_epoch", 0.0)) for record in run.metrics()) / 60


# The cost --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeCost:
    """What a recipe costs on this machine, predicted from a few measured steps of each part.

    The start of processes and the policy's predictions in rollouts are not counted.

    Attributes:
        recording: minutes, of all demonstrations.
        training: minutes, of one training.
        rollout: minutes, of one rollout.
        video: minutes, of filming one rollout.
        tflop: of matrix products, of one training.
    """

    recording: float
    training: float
    rollout: float
    video: float
    tflop: float


def recipe_cost(recipe: Recipe) -> RecipeCost:
    """Measure some training steps on random batches, and some steps of the simulation.

    Raises:
        UserError: if the simulation is not installed or the recipe's config is faulty.
    """
    from bimact.policy.metadata import Execution
    from bimact.sim.chunked import VIDEO_FPS
    from bimact.sim.tasks import find_task
    from bimact.training.estimate import estimate
    from bimact.training.prepare import request

    simulated = find_task(recipe.task)
    camera, size, length = simulated.cameras[0], (240, 320), simulated.episode_steps
    options = [f"{name.removeprefix('--')}={value}" for name, value in zip(*[iter(recipe.train)] * 2)]
    config_name = next(option.partition("=")[2] for option in options if option.startswith("config="))
    config = request(config_name, [option for option in options if not option.startswith("config=")]).config
    shaped = replace(
        config,
        dataset_dir=None,
        cameras=[camera],
        image_size=list(size),
        state_dim=len(simulated.state_names),
        action_dim=len(simulated.action_names),
    )
    found = estimate(shaped, [config.batch_size])
    per_step = next(batch.seconds for batch in found.batches if batch.batch_size == config.batch_size) or 0.0
    steps = config.num_steps or config.num_epochs * -(-recipe.episodes * length // config.batch_size)
    environment = simulated.environment(cameras=(camera,), image_size=size, render_mode="rgb_array")
    environment.reset(seed=TUNING_SEEDS)
    still = environment.hold()
    advance, observe = _seconds(partial(environment.advance, still), 40), _seconds(environment.observe, 5)
    film = _seconds(environment.render, 2)
    environment.close()
    return RecipeCost(
        recording=recipe.episodes * length * (2 * advance + observe) / usable_cores() / 60,
        training=steps * per_step / 60,
        rollout=length * (advance + observe / Execution.of(config).execute_steps) / usable_cores() / 60,
        video=film * length / max(1, simulated.fps // VIDEO_FPS) / usable_cores() / 60,
        tflop=found.step_flop * steps / 1e12,
    )


def cost(settings: ProofSettings, say: Callable[[str], None] = print) -> Table:
    """What is missing and how long it will take on this machine, from a few measured steps of each recipe.

    Raises:
        UserError: as `prove`.
    """
    settings.check()
    table = Table("task", "training seeds left", "recording", "training", "rollouts", "TFLOP of each training")
    known, total = _read_cost(settings), 0.0
    for task in settings.tasks:
        say(f"measuring a few steps of {task}")
        each = recipe_cost(settings.recipe(task))
        left = [seed for seed in settings.seeds if rollouts_of(settings, task, seed) is None]
        recording = 0.0 if (settings.dataset(task) / "metadata.json").is_file() else each.recording
        minutes = [recording, len(left) * each.training, len(left) * settings.rollouts * each.rollout]
        total += sum(minutes)
        cells = [f"{value:,.0f} min" if value >= 1 else f"{60 * value:.0f} s" for value in minutes]
        seeds = ",".join(map(str, left)) or "none"
        table.add_row(task, seeds, *cells, f"{each.tflop:,.0f}")
        known[task] = each.tflop
    known["machine"] = f"{cpu_name()}, {usable_cores()} core{'s' if usable_cores() > 1 else ''}"
    table.caption = f"In all about {total / 60:.1f} hours on {known['machine']}"
    write_json(settings.folder / COST, known)
    return table


def _read_cost(settings: ProofSettings) -> dict[str, Any]:
    """Machine, and TFLOP of a training by task, as `cost` measured them; empty before."""
    path = settings.folder / COST
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _seconds(function: Callable[[], object], times: int) -> float:
    function()
    began = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - began) / times


# The page --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProvenPolicy:
    """A row of the page: a training of a recipe, and its policy's rollouts.

    Attributes:
        seed: of the training.
        record: the command that recorded the demonstrations.
        train: options of `bimact train`.
        first_scene: seed of the first rollout's scene; the next ones follow.
        rollouts: number of them.
        successes: number of them.
        failed_scenes: their seeds.
        reward_reached: highest reward → rollouts that reached it.
        facts: of data and execution, as the page states them.
        minutes: of the training, without validation and saving.
        tflop: of the training's matrix products; None if the cost was not measured.
        machine: that trained.
        weights_sha256: of the checkpoint.
    """

    seed: int
    record: str
    train: str
    first_scene: int
    rollouts: int
    successes: int
    failed_scenes: Sequence[int]
    reward_reached: Mapping[str, int]
    facts: Mapping[str, str]
    minutes: float
    tflop: float | None
    machine: str
    weights_sha256: str

    @property
    def rate(self) -> float:
        return self.successes / self.rollouts


def write_page(settings: ProofSettings, say: Callable[[str], None] = print) -> None:
    """Write protocol and results as Markdown, and the figures as JSON beside it.

    Policies that were measured elsewhere, by the same recipe in the same scenes, stay on the page: several machines can
    share a proof. Others are removed, which is said.
    """
    before = _read_figures(settings)
    rows = {task: _proven(settings, task) for task in settings.tasks}
    kept = {task: found for task, found in before.items() if task not in rows}
    for task, found in rows.items():
        gone = sorted({row.seed for row in before.get(task, [])} - {row.seed for row in found})
        if gone:
            say(
                f"{settings.page}: the rows of {task} with training seeds {', '.join(map(str, gone))} are of another "
                "recipe or of other scenes, and are removed"
            )
    figures = {task: [asdict(row) for row in found] for task, found in {**kept, **rows}.items()}
    write_json(settings.page.with_suffix(".json"), figures)
    write_text(settings.page, page(settings))


def _read_figures(settings: ProofSettings) -> dict[str, list[ProvenPolicy]]:
    path = settings.page.with_suffix(".json")
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
        return {task: [ProvenPolicy(**row) for row in rows] for task, rows in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a file of `bimact proof` ({error}): remove it") from error


def _proven(settings: ProofSettings, task: str) -> list[ProvenPolicy]:
    """The policies of the recipe as it is now, by training seed: of the page, and those measured here."""
    recipe = settings.recipe(task)
    record, train = shlex.join(["bimact", *recipe.record_command(f"data/{task}")]), shlex.join(recipe.train)
    now = (record, train, settings.first_scene, settings.rollouts)
    rows = {
        row.seed: row
        for row in _read_figures(settings).get(task, [])
        if (row.record, row.train, row.first_scene, row.rollouts) == now
    }
    known = _read_cost(settings)
    for seed in settings.seeds:
        result = rollouts_of(settings, task, seed)
        if result is None or (seed in rows and rows[seed].weights_sha256 == result["weights_sha256"]):
            continue
        run = Run(settings.run(task, seed))
        config = run.config
        noisy = sum(bool(episode.get("noisy")) for episode in _demonstrations(settings.dataset(task)))
        noise = f", {noisy} of them with noise on the executed actions" if noisy else ""
        size = "" if config.image_size is None else f", {config.image_size[0]} x {config.image_size[1]}"
        whole = result["execute_steps"] == config.chunk_size
        executed = (
            f"all {config.chunk_size}" if whole else f"the first {result['execute_steps']} of {config.chunk_size}"
        )
        rows[seed] = ProvenPolicy(
            seed=seed,
            record=record,
            train=train,
            first_scene=settings.first_scene,
            rollouts=settings.rollouts,
            successes=result["successes"],
            failed_scenes=[each["seed"] for each in result["each"] if each["highest_reward"] < len(STAGES[task])],
            reward_reached=result["reward_reached"],
            facts={
                "demonstrations": f"{recipe.episodes}, scripted{noise}",
                "cameras": ", ".join(config.cameras or ["none"]) + size,
                "execution": "temporal ensembling"
                if result["settings"]["temporal_ensemble"]
                else f"{executed} steps of each chunk",
                "episode": f"{result['steps']} control steps",
            },
            minutes=training_minutes(run),
            tflop=known.get(task),
            machine=known.get("machine", ""),
            weights_sha256=result["weights_sha256"],
        )
    return [rows[seed] for seed in sorted(rows)]


def page(settings: ProofSettings) -> str:
    """Protocol and results in Markdown; what is not measured yet is told."""
    last = settings.first_scene + settings.rollouts - 1
    lines = [
        "# Results",
        "",
        "Written by `bimact proof` (`make proof`), which records, trains and rolls out all of it again.",
        "",
        *(["**Made with `--quick`: a test of the pipeline, not of the policy.**", ""] if settings.quick else []),
        "- **Training seeds**: a row is one training, with Wilson's 95% interval over its rollouts; below stands the "
        "spread over training seeds. Rows are never pooled: the rollouts of a row share one policy.",
        f"- **Scenes**: each policy acts in the same {settings.rollouts}, seeds {settings.first_scene} to {last}. No "
        f"demonstration is of one of them, and nothing was tuned on them: tuning uses seeds from {TUNING_SEEDS} on; "
        "before that rule, settings of config `demo` were chosen on scenes 1000 to 1099.",
        f"- **Checkpoint**: `{CHECKPOINT}`, fixed before the runs; nothing is selected by success.",
        "- **Success**: the task's last stage is reached at some step of the episode, as in the ACT paper.",
        "- **Comparisons**: rows are not tested against each other; `bimact compare` does so for two policies, and "
        "`bimact evaluate --suite robustness` corrects for the number of its conditions.",
    ]
    for task in settings.tasks:
        lines += ["", f"## {task.replace('_', ' ').capitalize()}", "", *_task_lines(settings, task)]
    return "\n".join(lines) + "\n"


def _task_lines(settings: ProofSettings, task: str) -> list[str]:
    recipe = settings.recipe(task)
    proven = {row.seed: row for row in _proven(settings, task)}
    first = next(iter(proven.values()), None)
    facts = {
        "demonstrations": f"{recipe.episodes}, scripted",
        **(first.facts if first else {}),
        "recording": f"`{shlex.join(['bimact', *recipe.record_command(f'data/{task}')])}`",
        "training": f"`bimact train {shlex.join(recipe.train)}`",
        "success": STAGES[task][-1],
    }
    cost = next((row.tflop for row in proven.values() if row.tflop is not None), None)
    if cost is not None:
        facts["cost of a training"] = f"{cost:,.0f} TFLOP of matrix products"
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), ""]
    lines += ["| training seed | succeeded | rate | 95% interval | training | machine |", "|---|---|---|---|---|---|"]
    for seed in sorted({*settings.seeds, *proven}):
        row = proven.get(seed)
        if row is None:
            lines.append(f"| {seed} | not measured yet | | | | |")
            continue
        low, high = wilson_interval(row.successes, row.rollouts)
        counts = f"{row.successes} of {row.rollouts} | {row.rate:.1%}"
        lines.append(f"| {seed} | {counts} | {low:.1%} to {high:.1%} | {row.minutes:.1f} min | {row.machine} |")
    rates = [row.rate for row in proven.values()]
    if len(rates) > 1:
        spread = f"standard deviation {100 * statistics.stdev(rates):.1f} points, {min(rates):.1%} to {max(rates):.1%}"
        lines += ["", f"Mean over {len(rates)} training seeds: **{statistics.mean(rates):.1%}**, {spread}."]
    if proven:
        lines += ["", "| stage reached | " + " | ".join(f"seed {seed}" for seed in proven) + " |"]
        lines.append("|---|" + "---|" * len(proven))
        for reward in sorted({int(level) for row in proven.values() for level in row.reward_reached}):
            reached = [str(row.reward_reached[str(reward)]) for row in proven.values()]
            lines.append(f"| {stage_name(task, reward)} | {' | '.join(reached)} |")
    published = [(source, figures[task]) for source, figures in PUBLISHED.items() if task in figures]
    if published:
        lines += ["", "| published elsewhere | success in % |", "|---|---|"]
        lines += [f"| {source} | {figure} |" for source, figure in published]
    return lines
