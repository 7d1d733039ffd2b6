"""Control steps per second with one 224 × 224 camera: ours against the stock gym-aloha environment, in turn."""

from __future__ import annotations

import multiprocessing
import time
import warnings

import gymnasium
import numpy as np
from measuring import Figure, Row, in_turn, ratios

import bimact.sim
from bimact.sim.demonstrators import demonstrate
from bimact.sim.tasks import find_task

ROUNDS, SECONDS = 3, 4.0


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


def simulation() -> Row:
    # A process each: two renderers in one thread would draw into each other's OpenGL context.
    context = multiprocessing.get_context("spawn")

    def rate(which: str) -> float:
        with context.Pool(1) as pool:
            return pool.apply(steps_per_second, (which,))

    ours, stock = in_turn(ROUNDS, lambda: rate("ours"), lambda: rate("stock"))
    return Row(
        "control steps per second with one 224×224 camera: ours / the stock gym-aloha environment",
        ratios(ours, stock),
        details=[f"{Figure.of(ours)} against {Figure.of(stock)} steps/s"],
    )
