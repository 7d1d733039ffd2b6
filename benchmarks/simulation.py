"""Control steps a second with one 224 × 224 camera: ours against the stock gym-aloha environment, in turn."""

from __future__ import annotations

import statistics
import time
import warnings

import gymnasium
import numpy as np

import bimact.sim
from bimact.sim.demonstrators import demonstrate
from bimact.sim.tasks import find_task

ROUNDS, SECONDS = 5, 4.0


def steps_per_second(env: gymnasium.Env, actions: np.ndarray) -> float:
    """Replay a demonstration for some seconds."""
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
    warnings.filterwarnings("ignore")
    import gym_aloha  # noqa: F401  # registers the stock environment

    actions = demonstrate(find_task("transfer_cube"), 0).astype(np.float32)
    ours = gymnasium.make(bimact.sim.GYM_IDS["transfer_cube"], image_size=(224, 224), disable_env_checker=True)
    stock = gymnasium.make(
        "gym_aloha/AlohaTransferCube-v0",
        obs_type="pixels_agent_pos",
        observation_height=224,
        observation_width=224,
        max_episode_steps=10_000,
        disable_env_checker=True,
    )
    ratios = []
    for number in range(ROUNDS):
        mine, theirs = steps_per_second(ours, actions), steps_per_second(stock, actions)
        ratios.append(mine / theirs)
        print(f"round {number + 1}: {mine:.1f} against {theirs:.2f} steps/s = {ratios[-1]:.1f} times", flush=True)
    print(f"median {statistics.median(ratios):.1f} times (from {min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
