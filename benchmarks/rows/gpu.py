"""Training steps on a GPU: the guide's policy and LeRobot's default ACT, eager and compiled, batch 8 and 64.

`BIMACT_BENCHMARK_DEVICE=cpu` computes the same rows on the CPU, to see that they work; the figures mean nothing then.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from measuring import ROOT, Figure, Row, Side, in_turn, matrix_peak, ratios, short
from policies import OF_GUIDE, OF_LEROBOT, overrides
from recordings import lerobot, two_cameras
from rows.lerobot import THEIRS

OURS = ROOT / "benchmarks" / "ours.py"
DEVICE = os.environ.get("BIMACT_BENCHMARK_DEVICE", "cuda")
ROUNDS, STEPS = (5, 20) if DEVICE == "cuda" else (2, 1)


def _row(name: str, network: tuple[str, ...], batch: int, goal: str | None, **settings: object) -> Row:
    """Steps of one network, eager and compiled in turn, beside the GPU's peak; and LeRobot's where it is installed."""
    is_lerobots = network is OF_LEROBOT
    dataset = lerobot() if is_lerobots else two_cameras()
    chosen = {"device": DEVICE, "batch_size": batch, "mixed_precision": "bf16", **settings}
    their_python = os.environ.get("BIMACT_LEROBOT_PYTHON") if is_lerobots else None
    with ExitStack() as stack:

        def side(**more: object) -> Side:
            given = {"kind": "train", "overrides": overrides(network, dataset, **chosen, **more)}
            return stack.enter_context(Side(OURS, {**given, "counts_flop": not more}))

        eager, compiled = side(), side(compile="true")
        sides = [eager, compiled]
        work = [lambda one=one: one.do(steps=STEPS)["seconds"] for one in sides]
        for one in sides:
            one.do(steps=3)  # compilation, and the first graph
        if their_python:
            them = stack.enter_context(
                Side(THEIRS, {"kind": "train", "dataset": str(dataset), "batch": batch, "device": DEVICE}, their_python)
            )
            work += [
                lambda: them.do(steps=STEPS, amp=True)["seconds"],
                lambda: them.do(steps=STEPS, amp=False)["seconds"],
            ]
        *times, peak = in_turn(ROUNDS, *work, lambda: matrix_peak(device=DEVICE))
        flop, memory = eager.setup_answer["model_flop"], [one.do(steps=1)["memory"] for one in sides]
    details = [
        f"{what}: {short(1000 * Figure.of(seconds).median)} ms a step, {short(batch / Figure.of(seconds).median)} "
        f"samples per second, {short(use / 2**30)} GiB"
        for what, seconds, use in zip(("eager", "--compile"), times, memory)
    ]
    details += [
        f"{flop / 1e9:,.0f} GFLOP of matrix products a step; peak {short(Figure.of(peak).median / 1e12)} TFLOP/s in "
        "bf16, measured in turn",
        f"share of that peak: eager {Figure.of([flop / time / best for time, best in zip(times[0], peak)])}",
        f"eager / --compile: {ratios(times[0], times[1])}",
    ]
    if their_python:
        details += [
            f"LeRobot {what}: {short(1000 * Figure.of(seconds).median)} ms a step without loading and normalising, "
            f"{ratios(seconds, times[1])} times ours with --compile"
            for what, seconds in zip(("with use_amp", "in float32"), times[2:])
        ]
    elif is_lerobots:
        details.append("LeRobot's own step: set BIMACT_LEROBOT_PYTHON to an interpreter that has it")
    return Row(
        f"training step of {name} on the GPU with --compile, batch {batch}: share of the peak of bf16 products",
        Figure.of([flop / time / best for time, best in zip(times[1], peak)]),
        goal,
        details,
    )


def guide_8() -> Row:
    return _row("the guide's policy (features cached)", OF_GUIDE, 8, None, feature_cache="true")


def guide_64() -> Row:
    return _row("the guide's policy (features cached)", OF_GUIDE, 64, None, feature_cache="true")


def guide_in_loop_64() -> Row:
    return _row("the guide's policy (CLIP in the loop)", OF_GUIDE, 64, None, feature_cache="false")


def lerobot_8() -> Row:
    return _row("LeRobot's default ACT (480×640)", OF_LEROBOT, 8, None)


def lerobot_64() -> Row:
    return _row("LeRobot's default ACT (480×640)", OF_LEROBOT, 64, None)
