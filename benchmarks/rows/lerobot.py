"""LeRobot's default ACT beside the same network here: training steps, chunks, and batches from its own dataset."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from measuring import BUILD, ROOT, Figure, Row, Side, in_turn, ratios, short
from policies import OF_LEROBOT, overrides
from recordings import lerobot

OURS, THEIRS = ROOT / "benchmarks" / "ours.py", ROOT / "benchmarks" / "peers" / "lerobot_act.py"


def _python() -> str:
    """The interpreter that has LeRobot; its environment is made if there is none."""
    given = os.environ.get("BIMACT_LEROBOT_PYTHON")
    if given:
        return given
    subprocess.run([str(THEIRS.with_name("lerobot.sh"))], check=True)
    return str(BUILD / "lerobot" / "bin" / "python")


def _sides(kind: str, ours: dict[str, object], theirs: dict[str, object]) -> tuple[Side, Side]:
    dataset = lerobot()
    return (
        Side(OURS, {"kind": kind, "overrides": overrides(OF_LEROBOT, dataset), **ours}),
        Side(THEIRS, {"kind": kind, "dataset": str(dataset), **theirs}, _python()),
    )


def step() -> Row:
    us, them = _sides("train", {}, {})
    with us, them:
        us.do(steps=2)
        mine, amp, plain = in_turn(
            5,
            lambda: us.do(steps=3)["seconds"],
            lambda: them.do(steps=1, amp=True)["seconds"],
            lambda: them.do(steps=1, amp=False)["seconds"],
        )
    best = min(amp, plain, key=lambda seconds: Figure.of(seconds).median)
    return Row(
        "step of LeRobot's default ACT (480×640, chunk 100, batch 8): LeRobot's time at its best setting / ours",
        ratios(best, mine),
        "≥ 3",
        [
            f"ours: {_seconds(mine)} with the wait for its data",
            f"LeRobot: {_seconds(amp)} with `policy.use_amp` (bf16), {_seconds(plain)} by default (float32), both "
            f"without the wait for data: {ratios(plain, mine)} times ours by default",
            them.setup_answer["versions"],
        ],
    )


def chunk() -> Row:
    us, them = _sides("act", {"precision": "bf16"}, {})
    with us, them:
        mine, amp, plain = in_turn(
            9,
            lambda: us.do(chunks=10)["seconds"],
            lambda: them.do(chunks=10, amp=True)["seconds"],
            lambda: them.do(chunks=10, amp=False)["seconds"],
        )
    return Row(
        "a chunk of that network for one robot: ours / LeRobot's `predict_action_chunk`",
        ratios(mine, plain),
        "≤ 0.333",
        [
            f"ours (bf16, as it was trained): {_seconds(mine)}",
            f"LeRobot: {_seconds(plain)} by default (float32); {_seconds(amp)} with autocast to bf16, of which ours "
            f"is {ratios(mine, amp)}",
        ],
    )


def batches() -> Row:
    us, them = _sides("load", {"workers": 2}, {"workers": 2})
    with us, them:
        mine, theirs = in_turn(
            5,
            lambda: us.do(batches_wanted=500)["seconds"],
            lambda: them.do(batches_wanted=8)["seconds"],
        )
        images = us.do(batches_wanted=1)["image"], them.do(batches_wanted=1)["image"]
    return Row(
        "samples per second in random order from a LeRobotDataset of 480×640 AV1, two workers: ours / LeRobot's",
        ratios(theirs, mine),
        "≥ 20",
        [
            f"ours: {short(1 / Figure.of(mine).median)} samples/s, images {images[0]} uint8 from the copy that was "
            "decoded once",
            f"LeRobot: {short(1 / Figure.of(theirs).median)} samples/s, images {images[1]} float32",
            them.setup_answer["versions"],
        ],
    )


def _seconds(values: Sequence[float]) -> str:
    figure = Figure.of(values)
    return f"{short(1000 * figure.median)} ms ({short(1000 * figure.low)} to {short(1000 * figure.high)})"
