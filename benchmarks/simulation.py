"""Control steps a second with one 224 × 224 camera: ours against the stock gym-aloha environment, in turn."""

from __future__ import annotations

import multiprocessing
import statistics
import time
import warnings

import gymnasium
import numpy as np

import bimact.sim
from bimact.sim.demonstrators import demonstrate
from bimact.sim.tasks import find_task

ROUNDS, SECONDS = 5, 6.0


def make_environment(which: str) -> gymnasium.Env:
    if which == "ours":
        return gymnasium.make(bimact.sim.GYM_IDS["transfer_cube"], image_size=(224, 224), disable_env_checker=True)
    import gym_aloha  # noqa: F401  # registers the stock environment

    return gymnasium.make(
        "gym_aloha/AlohaTransferCube-v0",
        obs_type="pixels_agent_pos",
        observation_height=224,
        observation_width=224,
        max_episode_steps=10_000,
        disable_env_checker=True,
    )


def steps_per_second(which: str) -> float:
    """Replay a demonstration for some seconds."""
    warnings.filterwarnings("ignore")
    actions = demonstrate(find_task("transfer_cube"), 0).astype(np.float32)
    env = make_environment(which)
    env.reset(seed=0)
    env.step(actions[0])  # makes the OpenGL context
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        if steps % len(actions) == 0:
            env.reset(seed=0)
        env.step(actions[steps % len(actions)])
        steps += 1
    return steps / (time.perf_counter() - began)


def main() -> None:
    # A process each: two renderers in one thread would draw into each other's OpenGL context.
    context = multiprocessing.get_context("spawn")
    ratios = []
    for number in range(ROUNDS):
        with context.Pool(1) as pool:
            mine = pool.apply(steps_per_second, ("ours",))
        with context.Pool(1) as pool:
            theirs = pool.apply(steps_per_second, ("stock",))
        ratios.append(mine / theirs)
        print(f"round {number + 1}: {mine:.1f} against {theirs:.2f} steps/s = {ratios[-1]:.1f} times", flush=True)
    print(f"median {statistics.median(ratios):.1f} times (from {min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
