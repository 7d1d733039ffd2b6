"""The training guide's policy: with and without the feature cache, against the machine's peak, with more context."""

from __future__ import annotations

from measuring import ROOT, Figure, Row, Side, in_turn, matrix_peak, ratios, short
from policies import OF_GUIDE, overrides
from recordings import two_cameras

OURS = ROOT / "benchmarks" / "ours.py"


def _trainer(**settings: object) -> Side:
    return Side(OURS, {"kind": "train", "overrides": overrides(OF_GUIDE, two_cameras(), **settings)})


def feature_cache() -> Row:
    with (
        _trainer(feature_cache="false", mixed_precision='"no"') as in_loop,
        _trainer(feature_cache="false", mixed_precision="bf16") as in_loop_bf16,
        _trainer(feature_cache="true") as cached,
    ):
        losses = [side.do(steps=3)["losses"] for side in (in_loop, in_loop_bf16, cached)]
        slow, middle, quick = in_turn(
            5,
            lambda: in_loop.do(steps=1)["seconds"],
            lambda: in_loop_bf16.do(steps=1)["seconds"],
            lambda: cached.do(steps=10)["seconds"],
        )
    away = [max(abs(a - b) / b for a, b in zip(of, losses[0])) for of in losses[1:]]
    times = [short(1000 * Figure.of(values).median) for values in (slow, middle, quick)]
    return Row(
        "training steps per second of the guide's policy, batch 8: feature cache / CLIP in the loop in float32",
        ratios(slow, quick),
        "≥ 15",
        [
            f"in the loop {times[0]} ms in float32, {times[1]} ms in bf16; with the cache {times[2]} ms in bf16",
            f"cache against in the loop, both in bf16: {ratios(middle, quick)}",
            f"the first three losses differ from float32's by at most {away[0]:.2%} in the loop in bf16, by "
            f"{away[1]:.2%} with the cache",
        ],
    )


def share_of_peak(batch: int, goal: str) -> Row:
    with _trainer(feature_cache="true", batch_size=batch) as side:
        model, done = side.setup_answer["model_flop"], side.setup_answer["flop_done"]
        steps = max(1, 80 // batch)
        side.do(steps=3)
        seconds, peak = in_turn(7, lambda: side.do(steps=steps)["seconds"], matrix_peak)
    shares = [model / time / best for time, best in zip(seconds, peak)]
    shares_done = [share * done / model for share in shares]
    return Row(
        f"model FLOP per second of the guide's transformer in training, batch {batch} / of large bf16 matrix products",
        Figure.of(shares),
        goal,
        [
            f"{model / 1e9:,.0f} GFLOP of matrix products in {short(1000 * Figure.of(seconds).median)} ms; peak "
            f"{short(Figure.of(peak).median / 1e9)} GFLOP/s, measured in turn",
            f"{done / 1e9:,.0f} GFLOP without the tokens that are left out, since nothing depends on them: "
            f"{Figure.of(shares_done)}",
            f"{side.setup_answer['trained'] / 1e6:.1f} million trained parameters",
        ],
    )


def share_of_peak_8() -> Row:
    return share_of_peak(8, "≥ 0.45")


def share_of_peak_64() -> Row:
    return share_of_peak(64, "≥ 0.6")


def context() -> Row:
    def acting(steps: int) -> Side:
        chosen = overrides(OF_GUIDE, two_cameras(), temporal_context=steps)
        return Side(OURS, {"kind": "act", "overrides": chosen, "precision": "bf16"})

    with acting(1) as short_one, acting(10) as long_one:
        one, ten = in_turn(9, lambda: short_one.do(chunks=10)["seconds"], lambda: long_one.do(chunks=10)["seconds"])
    return Row(
        "a chunk of the guide's policy for one robot: temporal_context 10 / temporal_context 1",
        ratios(ten, one),
        "≤ 1.1",
        [f"{short(1000 * Figure.of(ten).median)} ms against {short(1000 * Figure.of(one).median)} ms"],
    )
