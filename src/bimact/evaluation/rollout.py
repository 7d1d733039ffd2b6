"""Closed-loop evaluation: the policy acts in the simulation, and successes are counted."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from bimact.config import Config
from bimact.data.fork_server import without_main_program
from bimact.device import choose_precision, precision_dtype
from bimact.errors import UserError, in_quotes
from bimact.evaluation.intervals import wilson_interval
from bimact.evaluation.results import add_results, read_results
from bimact.evaluation.robustness import NONE
from bimact.files import sha256_of
from bimact.machine import usable_cores
from bimact.policy.acting import ActingPolicy
from bimact.policy.inference import Policy
from bimact.policy.loading import LoadedPolicy
from bimact.policy.metadata import Execution
from bimact.progress import ProgressBar, progress_bar
from bimact.run_directory import BEST_SUCCESS
from bimact.sim.base import MAX_REWARD
from bimact.sim.perturbations import PERTURBATIONS, Magnitude, check_perturbations, in_text
from bimact.sim.tasks import Task, find_task

_MAX_PARALLEL = 8


@dataclass(frozen=True)
class RolloutSettings:
    """How a policy is evaluated in closed loop.

    Attributes:
        task: the simulated task.
        rollouts: how many, from seeds `seed`, `seed + 1`, …
        seed: of the first rollout's scene.
        execute_steps: steps of each chunk to execute before the next prediction; None: as the run's config says.
        temporal_ensemble: predict at each step and average, as in the paper; None: as the run's config says, unless
            `execute_steps` is given.
        videos: how many of the first rollouts are filmed.
        image_size: height and width of the camera images; None: as in the training data.
        parallel: number of environments that step together; None: from the number of CPU cores.
        perturb: name → magnitude of each perturbation of the simulation (`bimact.sim.perturbations`).
        prompt: the policy's name of the task, for a policy that is told its task; None: see `prompt_for`.
    """

    task: str
    rollouts: int = 50
    seed: int = 1000
    execute_steps: int | None = None
    temporal_ensemble: bool | None = None
    videos: int = 0
    image_size: tuple[int, int] | None = None
    parallel: int | None = None
    perturb: Mapping[str, Magnitude] = field(default_factory=dict)
    prompt: str | None = None


@dataclass
class Rollout:
    """One rollout: its seed, the highest reward, the reward at its end, and its video if it was filmed."""

    seed: int
    highest_reward: float = 0.0
    final_reward: float = 0.0
    video: str | None = None

    @property
    def success(self) -> bool:
        return self.highest_reward == MAX_REWARD


def evaluate_rollouts(loaded: LoadedPolicy, settings: RolloutSettings) -> dict[str, Any]:
    """Roll the policy out and count successes; the same settings give the same result on the same machine.

    Success is the paper's: the task's last stage was reached at some step of the episode.

    Returns:
        what goes into `evaluation.json`: success rate with Wilson's 95% interval, rewards, times, rollouts.

    Raises:
        UserError: if the policy is not for the simulated robot and its cameras, or a setting is wrong.
    """
    execution = Execution.of(loaded.config, settings.execute_steps, settings.temporal_ensemble)
    rollouts: list[Rollout] = []
    began = time.perf_counter()
    with closing(roll_out(loaded, settings)) as waves, _progress(settings) as progress:
        for wave in waves:
            rollouts += wave
            progress.advance(len(wave), f"{sum(r.success for r in rollouts)} of {len(rollouts)} succeeded")
    successes = sum(rollout.success for rollout in rollouts)
    reached = [sum(r.highest_reward >= reward for r in rollouts) for reward in range(1, MAX_REWARD + 1)]
    return {
        "checkpoint": loaded.checkpoint.name,
        "weights_sha256": sha256_of(loaded.checkpoint) if loaded.checkpoint.is_file() else None,
        "settings": {**asdict(settings), "temporal_ensemble": execution.temporal_ensemble},
        "execute_steps": execution.execute_steps,
        "rollouts": len(rollouts),
        "successes": successes,
        "success_rate": successes / len(rollouts),
        "interval_95": wilson_interval(successes, len(rollouts)),
        "successes_at_the_end": sum(rollout.final_reward == MAX_REWARD for rollout in rollouts),
        "reward_reached": {str(reward): count for reward, count in enumerate(reached, start=1)},
        "steps": find_task(settings.task).episode_steps,
        "seconds_a_rollout": (time.perf_counter() - began) / len(rollouts),
        "each": [asdict(rollout) for rollout in rollouts],
    }


def _progress(settings: RolloutSettings) -> AbstractContextManager[ProgressBar]:
    changed = f" under {in_text(settings.perturb)}" if settings.perturb else ""
    return progress_bar(f"rollouts of {settings.task}{changed}", settings.rollouts)


def roll_out(
    loaded: LoadedPolicy, settings: RolloutSettings, model: ActingPolicy | None = None
) -> Generator[list[Rollout], None, None]:
    """Rollouts in the order of their seeds, as many at a time as environments step together.

    Args:
        loaded: the policy.
        settings: of the rollouts.
        model: what acts in place of the policy's network: an exported model of it, executed as its run says.

    Raises:
        UserError: as `evaluate_rollouts`.
    """
    config = loaded.config
    check_robot(config, settings.task, settings.perturb)
    if settings.rollouts < 1:
        raise UserError(f"--rollouts is {settings.rollouts}, it has to be at least 1")
    selected = range(config.eval_seed, config.eval_seed + config.eval_rollouts)
    if (
        loaded.checkpoint.stem == f"act-train-{BEST_SUCCESS}"
        and settings.task == config.eval_task
        and settings.seed < selected.stop
        and selected.start < settings.seed + settings.rollouts
    ):
        raise UserError(
            f"seeds {selected.start} to {selected[-1]} have selected this checkpoint, so that successes there prove "
            "nothing: pass another --seed"
        )
    cameras = tuple(config.cameras or ())
    execution = Execution.of(config, settings.execute_steps, settings.temporal_ensemble)
    # Images of another size than in training would be new to the policy.
    size = settings.image_size or config.image_size
    if size is None:
        raise UserError(
            f"{loaded.run.path} does not hold the size of its training images: pass --image_size, such as 240x320"
        )
    dtype = precision_dtype(choose_precision(config.mixed_precision, loaded.device))
    policy = model or Policy(loaded.network, execution, loaded.interface, dtype=dtype)
    policy.set_task(prompt_for(config, settings.task, settings.prompt))
    parallel = min(settings.rollouts, settings.parallel or min(_MAX_PARALLEL, 2 * usable_cores()))
    environment = partial(
        _make_environment,
        execute_steps=execution.execute_steps,
        history=config.temporal_context,
        task=settings.task,
        cameras=cameras,
        image_size=(size[0], size[1]),
        **({"perturb": dict(settings.perturb)} if settings.perturb else {}),
    )
    with without_main_program():
        environments = AsyncVectorEnv(
            [environment] * parallel, context="spawn", copy=False, autoreset_mode=AutoresetMode.DISABLED
        )
    # Gymnasium warns with the traceback of a worker's error, which is then raised here as well.
    warnings.filterwarnings("ignore", category=UserWarning, module="gymnasium")
    try:
        for first in range(settings.seed, settings.seed + settings.rollouts, parallel):
            # One rollout per environment; those beyond the last one that is wanted only fill the batch up.
            wave = [Rollout(seed) for seed in range(first, first + parallel)]
            wanted = wave[: settings.seed + settings.rollouts - first]
            for rollout in wanted:
                if rollout.seed - settings.seed < settings.videos:
                    changed = f"-{in_text(settings.perturb).replace(',', '-')}" if settings.perturb else ""
                    rollout.video = f"videos/{settings.task}-seed-{rollout.seed}{changed}.mp4"
            videos = {r.seed: str(loaded.results / r.video) for r in wave if r.video}
            policy.reset()
            observation, _ = environments.reset(seed=[r.seed for r in wave], options={"videos": videos})
            finished = False
            while not finished:
                actions = policy.next_actions(observation)
                observation, rewards, _, truncated, info = environments.step(actions)
                for rollout, reward, final in zip(wave, rewards, info["final_reward"]):
                    rollout.highest_reward = max(rollout.highest_reward, float(reward))
                    rollout.final_reward = float(final)
                finished = bool(truncated.all())
            yield wanted
    finally:
        environments.close(terminate=True)


def evaluate_robustness(
    loaded: LoadedPolicy, settings: RolloutSettings, conditions: Sequence[Mapping[str, Magnitude]]
) -> dict[str, Any]:
    """Roll the policy out under each condition, from the same scenes; those with results in `evaluation.json` are kept.

    Args:
        loaded: the policy.
        settings: of the rollouts; `perturb` is that of the conditions.
        conditions: magnitudes by name; an empty one is the simulation as it is.

    Returns:
        the group of results in `evaluation.json`, of the same weights, scenes and execution: `conditions` maps each
        condition's text to its successes, interval and stages.

    Raises:
        UserError: as `evaluate_rollouts`, or for a perturbation that is not possible, before the first rollout.
    """
    for condition in conditions:
        check_robot(loaded.config, settings.task, condition)
    execution = Execution.of(loaded.config, settings.execute_steps, settings.temporal_ensemble)
    same = {
        "checkpoint": loaded.checkpoint.name,
        "weights_sha256": sha256_of(loaded.checkpoint),
        "rollouts": settings.rollouts,
        "seed": settings.seed,
        "execution": asdict(execution),
        "image_size": None if settings.image_size is None else list(settings.image_size),
    }
    everything: dict[str, Any] = read_results(loaded.results).get("robustness", {})
    groups: list[dict[str, Any]] = everything.setdefault(settings.task, [])
    group = next((group for group in groups if group.items() >= same.items()), None)
    if group is None:
        about = {name: {"meaning": of.meaning, "neutral": of.neutral} for name, of in PERTURBATIONS.items()}
        group = {**same, "perturbations": about, "conditions": {}}
    else:
        groups.remove(group)
    groups.append(group)  # the newest is the last
    missing = [condition for condition in conditions if (in_text(condition) or NONE) not in group["conditions"]]
    known = len(conditions) - len(missing)
    print(
        f"{len(conditions)} condition{'s' * (len(conditions) > 1)} of {settings.rollouts} rollouts each"
        + (f"; {known} have results already in {loaded.results}" if known else "")
    )
    began = time.perf_counter()
    for number, condition in enumerate(missing):
        result = evaluate_rollouts(loaded, replace(settings, perturb=condition))
        group["conditions"][in_text(condition) or NONE] = {
            "perturb": dict(condition),
            **{name: result[name] for name in ("rollouts", "successes", "success_rate", "interval_95")},
            "reward_reached": result["reward_reached"],
            "highest_rewards": [int(rollout["highest_reward"]) for rollout in result["each"]],
        }
        add_results(loaded.results, {"robustness": everything})
        left = (time.perf_counter() - began) / (number + 1) * (len(missing) - number - 1)
        low, high = result["interval_95"]
        print(
            f"{in_text(condition) or 'no perturbation'}: {result['successes']} of {result['rollouts']} succeeded "
            f"({low:.0%} to {high:.0%})" + (f"; about {left / 60:.0f} min left" if left else ""),
            flush=True,
        )
    return group


def prompt_for(config: Config, task: str, prompt: str | None = None) -> str | None:
    """What a policy is told in a simulated task: `prompt`, the task's own name, or the only task that it knows.

    Raises:
        UserError: if it knows several tasks and none of them has the name.
    """
    if prompt is not None or config.tasks is None:
        return prompt
    if task in config.tasks or len(config.tasks) == 1:
        return task if task in config.tasks else config.tasks[0]
    raise UserError(
        f"the policy is told its task, and knows none named '{task}': pass --prompt, one of {in_quotes(config.tasks)}"
    )


def check_robot(config: Config, task: str, perturb: Mapping[str, Magnitude] | None = None) -> None:
    """Whether a policy can be rolled out in a simulated task, under perturbations.

    Raises:
        UserError: if there is no such task or perturbation, or the policy is not for the simulated robot and its
            cameras.
    """
    found = find_task(task)
    if perturb and not isinstance(found, Task):
        raise UserError(f"the simulation of {task} is of another package: perturbations are of bimact's own tasks")
    check_perturbations(perturb or {}, config.cameras or ())
    for camera in config.cameras or ():
        if camera not in found.cameras:
            raise UserError(
                f"the policy was trained with camera '{camera}', which the simulation does not have "
                f"({', '.join(found.cameras)})"
            )
    for setting, dim, names in (
        ("state_dim", config.state_dim, found.state_names),
        ("action_dim", config.action_dim, found.action_names),
    ):
        if dim not in (None, len(names)):
            raise UserError(
                f"the policy has {setting} {dim}, the simulated robot {len(names)}: it is for another robot"
            )


def _make_environment(**settings: Any) -> Any:
    # In a worker process: it needs the simulation, but neither PyTorch nor the policy.
    from bimact.sim.chunked import ChunkedEnv

    return ChunkedEnv(**settings)
