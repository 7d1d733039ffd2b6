"""Closed-loop evaluation: the policy acts in the simulation, and successes are counted."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from bimact.config import Config
from bimact.errors import UserError
from bimact.evaluate.intervals import wilson_interval
from bimact.evaluate.run import LoadedRun
from bimact.machine import usable_cores
from bimact.policy.acting import Actor
from bimact.policy.ensembling import TemporalEnsemble
from bimact.progress import progress_bar
from bimact.sim.tasks import CAMERAS, EPISODE_STEPS, JOINTS, MAX_REWARD, find_task
from bimact.train.device import choose_precision, precision_dtype

_MAX_PARALLEL = 8


@dataclass(frozen=True)
class RolloutSettings:
    """How a policy is evaluated in closed loop.

    Attributes:
        task: the simulated task.
        rollouts: how many, from seeds `seed`, `seed + 1`, …
        seed: of the first rollout's scene.
        execute_steps: steps of each chunk to execute before the next is predicted; None: the whole chunk.
        temporal_ensemble: predict at each step and average, as in the paper, instead.
        videos: how many of the first rollouts are filmed.
        image_size: height and width of the camera images; None: as in the training data.
        parallel: environments that step at once; None: chosen by the machine.
    """

    task: str
    rollouts: int = 50
    seed: int = 1000
    execute_steps: int | None = None
    temporal_ensemble: bool = False
    videos: int = 0
    image_size: tuple[int, int] | None = None
    parallel: int | None = None


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


def evaluate_rollouts(run: LoadedRun, settings: RolloutSettings) -> dict[str, Any]:
    """Roll the policy out and count successes; the same settings give the same result on the same machine.

    Success is the paper's: the task's last stage was reached at some step of the 400.

    Returns:
        what goes into `evaluation.json`: success rate with Wilson's 95% interval, rewards, times, rollouts.
    """
    config, steps = run.config, _steps_a_call(run, settings)
    cameras = tuple(config.cameras or ())
    _check(settings, cameras)
    _refuse_other_robot(config)
    parallel = min(settings.rollouts, settings.parallel or min(_MAX_PARALLEL, 2 * usable_cores()))
    environment = partial(
        _make_environment,
        execute_steps=steps,
        history=config.temporal_context,
        task=settings.task,
        cameras=cameras,
        image_size=_image_size(run, settings),
    )
    actor = Actor(run.policy, precision_dtype(choose_precision(config.mixed_precision, run.device)))
    environments = AsyncVectorEnv(
        [environment] * parallel, context="spawn", copy=False, autoreset_mode=AutoresetMode.DISABLED
    )
    # Gymnasium warns with the traceback of a worker's error, which is then raised here as well.
    warnings.filterwarnings("ignore", category=UserWarning, module="gymnasium")
    rollouts: list[Rollout] = []
    began = time.perf_counter()
    try:
        with progress_bar(f"rollouts of {settings.task}", settings.rollouts) as progress:
            while len(rollouts) < settings.rollouts:
                count = min(parallel, settings.rollouts - len(rollouts))
                seeds = range(settings.seed + len(rollouts), settings.seed + len(rollouts) + parallel)
                wave = _roll_out(run, actor, settings, environments, list(seeds), count)
                rollouts += wave
                progress.advance(count, f"{sum(r.success for r in rollouts)} of {len(rollouts)} succeeded")
    finally:
        environments.close(terminate=True)
    summary = _summary(settings, steps, rollouts, time.perf_counter() - began)
    return {"checkpoint": run.checkpoint.name, **summary}


def _make_environment(**settings: Any) -> Any:
    # In a worker process: it needs the simulation, but neither PyTorch nor the policy.
    from bimact.sim.chunked import ChunkedAloha

    return ChunkedAloha(**settings)


def _steps_a_call(run: LoadedRun, settings: RolloutSettings) -> int:
    if settings.temporal_ensemble:
        return 1
    steps = settings.execute_steps or run.config.execute_steps or run.config.chunk_size
    if not 1 <= steps <= run.config.chunk_size:
        raise UserError(f"--execute_steps is {steps}, it has to be from 1 to the chunk size, {run.config.chunk_size}")
    return steps


def _image_size(run: LoadedRun, settings: RolloutSettings) -> tuple[int, int]:
    """Height and width in which the policy saw its training images; other ones would be new to it."""
    size = settings.image_size or run.config.image_size
    if size is None:
        raise UserError(f"{run.path} does not say which size its training images had: give --image_size, as 240x320")
    return size[0], size[1]


def _refuse_other_robot(config: Config) -> None:
    """See that a policy takes and gives what the simulated robot has."""
    for setting, size in (("state_dim", config.state_dim), ("action_dim", config.action_dim)):
        if size not in (None, len(JOINTS)):
            raise UserError(f"the policy has {setting} {size}, the simulated robot {len(JOINTS)}: it is not for it")


def _check(settings: RolloutSettings, cameras: tuple[str, ...]) -> None:
    find_task(settings.task)
    if settings.rollouts < 1:
        raise UserError(f"--rollouts is {settings.rollouts}, it has to be at least 1")
    for camera in cameras:
        if camera not in CAMERAS:
            raise UserError(
                f"the policy was trained with camera '{camera}', which the simulation does not have "
                f"({', '.join(CAMERAS)})"
            )


def _roll_out(
    run: LoadedRun,
    actor: Actor,
    settings: RolloutSettings,
    environments: AsyncVectorEnv,
    seeds: list[int],
    count: int,
) -> list[Rollout]:
    """One rollout in each environment; only the first `count` are wanted, the rest fill the batch up."""
    rollouts = [Rollout(seed) for seed in seeds]
    for rollout in rollouts[:count]:
        if rollout.seed - settings.seed < settings.videos:
            rollout.video = f"videos/{settings.task}-seed-{rollout.seed}.mp4"
    videos = {rollout.seed: str(run.path / rollout.video) for rollout in rollouts if rollout.video}
    act = _acting(run, actor, settings)
    observation, _ = environments.reset(seed=[*seeds], options={"videos": videos})
    finished = False
    while not finished:
        observation, rewards, _, truncated, info = environments.step(act(observation))
        for rollout, reward, final in zip(rollouts, rewards, info["final_reward"]):
            rollout.highest_reward = max(rollout.highest_reward, float(reward))
            rollout.final_reward = float(final)
        finished = bool(truncated.all())
    return rollouts[:count]


def _acting(run: LoadedRun, actor: Actor, settings: RolloutSettings) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """A rollout's function from observations (N, T, …) of N environments to the actions (N, k, A) to execute."""
    config = run.config
    ensemble = TemporalEnsemble(config.chunk_size, config.ensemble_coefficient, config.ensemble_window)
    steps = _steps_a_call(run, settings)
    actor.reset()

    def act(observation: dict[str, np.ndarray]) -> np.ndarray:
        obs = {name: torch.from_numpy(value).to(run.device) for name, value in observation.items()}
        obs = {name: x.permute(0, 1, 4, 2, 3) if name.startswith("image_") else x for name, x in obs.items()}
        chunk = actor.chunk(obs, new=steps)
        actions = ensemble.update(chunk)[:, None] if settings.temporal_ensemble else chunk[:, :steps]
        return actions.cpu().numpy()

    return act


def _summary(settings: RolloutSettings, steps: int, rollouts: list[Rollout], seconds: float) -> dict[str, Any]:
    successes = sum(rollout.success for rollout in rollouts)
    reached = [sum(r.highest_reward >= reward for r in rollouts) for reward in range(1, MAX_REWARD + 1)]
    return {
        "settings": asdict(settings),
        "execute_steps": steps,
        "rollouts": len(rollouts),
        "successes": successes,
        "success_rate": successes / len(rollouts),
        "interval_95": wilson_interval(successes, len(rollouts)),
        "successes_at_the_end": sum(rollout.final_reward == MAX_REWARD for rollout in rollouts),
        "reward_reached": {str(reward): count for reward, count in enumerate(reached, start=1)},
        "steps": EPISODE_STEPS,
        "seconds_a_rollout": seconds / len(rollouts),
        "each": [asdict(rollout) for rollout in rollouts],
    }
