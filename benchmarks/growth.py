"""How the cost of a training step grows, where its time goes, and the machine's roofline.

python benchmarks/growth.py

Writes docs/performance/growth.svg and roofline.svg, and prints the table of that page. It takes some ten minutes.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import FuncFormatter, NullLocator
from measuring import BUILD, ROOT, Side, matrix_peak
from policies import GUIDE, OF_GUIDE, overrides
from recordings import two_cameras
from rows.runs import _of_size
from torch.nn import functional as F

from bimact.config import load_config
from bimact.machine import keep_freed_memory
from bimact.policy.dropout import dropout
from bimact.training.act_trainer import ActTrainer
from bimact.training.prepare import prepare_run

OURS = ROOT / "benchmarks" / "ours.py"
PICTURES = ROOT / "docs" / "performance"
BLUE, GREY = "#2a6fb0", "#8a8a8a"
CAMERAS = ("top", "angle", "left_wrist", "right_wrist")


def many_cameras() -> Path:
    path = BUILD / "four-cameras"
    if not (path / "rollout_length.npy").exists():
        program = str(Path(sys.executable).with_name("bimact"))
        scene = ("--task", "transfer_cube", "--episodes", "2", "--cameras", ",".join(CAMERAS))
        subprocess.run([program, "record", *scene, "--output_dir", str(path)], check=True)
    return path


def step_seconds(dataset: Path, *network: str, **settings: object) -> float:
    """Of a training step of the guide's policy with the feature cache, the middle of five."""
    chosen = overrides((*OF_GUIDE, *network), dataset, feature_cache="true", **settings)
    with Side(OURS, {"kind": "train", "overrides": chosen}) as side:
        side.do(steps=2)
        return statistics.median(side.do(steps=2)["seconds"] for _ in range(5))


def batch_seconds(dataset: Path, episodes: int) -> float:
    """Of loading a batch of eight 480×640 images in random order."""
    image = ("encoder.name=conv", "encoder.model_name=null", "encoder.freeze=false", "cameras=[top]")
    chosen = overrides((*image, "encoder.pretrained=null"), dataset, temporal_context=1, max_episodes=episodes)
    with Side(OURS, {"kind": "load", "overrides": chosen, "workers": 1}) as side:
        for _ in range(3):  # from the disk into the system's cache
            side.do(batches_wanted=200)
        return 8 * statistics.median(side.do(batches_wanted=200)["seconds"] for _ in range(5))


def growth() -> dict[str, dict[float, float]]:
    """What is varied → its value → milliseconds."""
    two, four = two_cameras(), many_cameras()
    tokens = ("encoder.fuse=tokens",)
    sweeps: dict[str, dict[float, float]] = {
        "batch size": {n: step_seconds(two, batch_size=n) for n in (1, 2, 4, 8, 16, 32, 64)},
        "chunk length, steps": {n: step_seconds(two, chunk_size=n) for n in (10, 25, 50, 100, 200)},
        "cameras (fuse: tokens)": {
            n: step_seconds(four, *tokens, f"cameras=[{','.join(CAMERAS[:n])}]", "image_size=null")
            for n in (1, 2, 3, 4)
        },
        "observations": {n: step_seconds(two, temporal_context=n) for n in (1, 2, 4, 8, 16)},
    }
    large = _of_size(8 * 10**9)
    try:
        one = 400 * 480 * 640 * 3 / 1e9
        sweeps["dataset, GB: loading a batch"] = {one * n: batch_seconds(large, n) for n in (1, 2, 5, 10, 20)}
    finally:
        shutil.rmtree(large)
    return {name: {n: 1000 * seconds for n, seconds in points.items()} for name, points in sweeps.items()}


def draw_growth(sweeps: Mapping[str, Mapping[float, float]]) -> None:
    figure, axes = plt.subplots(1, len(sweeps), figsize=(3.1 * len(sweeps), 2.9), layout="constrained")
    for axis, (name, points) in zip(axes, sweeps.items()):
        x, y = list(points), list(points.values())
        axis.plot(x, y, "o-", color=BLUE, ms=4, lw=1.4)
        axis.set(xlabel=name, ylim=(0, 1.15 * max(y)), xlim=(0, None))
        axis.set_title("ms per batch" if "loading" in name else "ms per step", fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, "growth")


def roofline() -> None:
    """What parts of a step reach, beside what the machine can do at their arithmetic intensity."""
    peak, bandwidth = matrix_peak() / 1e9, _copy_bandwidth() / 1e9
    figure, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    intensities = [0.05, peak / bandwidth, 3000]
    axis.plot(intensities, [min(peak, bandwidth * i) for i in intensities], color=GREY, lw=1.6)
    axis.text(60, peak * 1.25, f"bf16 matrix products: {peak:,.0f} GFLOP/s", ha="right", fontsize=8, color=GREY)
    axis.text(0.06, bandwidth * 0.055 * 2.6, f"memory: {bandwidth:.0f} GB/s", fontsize=8, color=GREY, rotation=34)
    for name, intensity, rate in _operations():
        axis.plot(intensity, rate, "o", color=BLUE, ms=5)
        away = {"feed-forward, batch 8": (-8, -16), "feed-forward, batch 64": (4, 9)}.get(name, (7, -4))
        axis.annotate(name, (intensity, rate), away, textcoords="offset points", fontsize=8)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte of memory",
        ylabel="GFLOP/s",
        xlim=(0.05, 6000),
        ylim=(1, 3000),
    )
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_locator(NullLocator())
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, "roofline")


def _operations() -> Iterator[tuple[str, float, float]]:
    """(name, FLOP per byte, GFLOP/s) of what a step of batch 8 and 64 does; bytes are inputs and outputs, once each."""
    weights = torch.randn(3200, 512).bfloat16()
    for batch in (8, 64):
        x = torch.randn(50 * batch, 512).bfloat16()
        flop, size = 2 * x.numel() * 3200, 2 * (x.numel() + weights.numel() + 3200 * len(x))
        yield f"feed-forward, batch {batch}", flop / size, flop / _seconds(lambda x=x: F.linear(x, weights)) / 1e9
    q = torch.randn(8 * 8, 50, 64).bfloat16()
    flop, size = 2 * q.numel() * 50, 2 * (2 * q.numel() + 64 * 50 * 50)
    yield "attention scores, batch 8", flop / size, flop / _seconds(lambda: q @ q.transpose(1, 2)) / 1e9
    parameter = torch.nn.Parameter(torch.randn(30_000_000))
    parameter.grad = torch.randn(30_000_000)
    adamw = torch.optim.AdamW([parameter], fused=True)
    yield "AdamW", 12 / 28, 12 * parameter.numel() / _seconds(adamw.step) / 1e9
    wide = torch.randn(50 * 64, 512)
    norm = torch.nn.LayerNorm(512)
    with torch.no_grad():
        yield "layer norm, batch 64", 8 / 8, 8 * wide.numel() / _seconds(lambda: norm(wide)) / 1e9
        hidden = torch.randn(50 * 64, 3200).bfloat16()
        yield "dropout, batch 64", 2 / 4, 2 * hidden.numel() / _seconds(lambda: dropout(hidden, 0.1)) / 1e9
        master = torch.randn(30_000_000)
        yield "weights to bf16", 1 / 6, master.numel() / _seconds(master.bfloat16) / 1e9


def _copy_bandwidth() -> float:
    source = torch.randn(50_000_000)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _seconds(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(25):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


# Parts of a step, by the names of PyTorch's operations.
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "matrix products of attention": ("aten::bmm", "aten::baddbmm"),
    "AdamW": ("aten::_fused_adamw_",),
    "gradient norm and clipping": ("aten::linalg_vector_norm", "aten::_foreach_norm", "aten::_foreach_mul_"),
    "casts and copies": ("aten::copy_", "aten::cat", "aten::fill_"),
    "dropout": ("aten::random_", "aten::bitwise_and", "aten::bitwise_right_shift_", "aten::neg_", "_DropByBytes"),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data"),
    "layer norm": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "ReLU": ("aten::clamp_min", "aten::threshold_backward"),
}


def profile_steps() -> str:
    """A table of shares of a step's time, batch 8 and 64."""
    shares = {batch: _profile(batch) for batch in (8, 64)}
    lines = ["| part of a step | batch 8 | batch 64 |", "|---|---|---|"]
    for part in [*PARTS, "all else"]:
        lines.append(f"| {part} | {shares[8][part]:.0%} | {shares[64][part]:.0%} |")
    return "\n".join(lines) + "\n"


def _profile(batch: int) -> dict[str, float]:
    step = _make_step(batch)
    for _ in range(4):
        step()
    times: dict[str, float] = defaultdict(float)
    for _ in range(6):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
        for event in profile.key_averages():
            part = next((part for part, names in PARTS.items() if event.key in names), "all else")
            times[part] += event.self_cpu_time_total
    total = sum(times.values())
    return {part: times[part] / total for part in [*PARTS, "all else"]}


def _make_step(batch: int) -> Callable[[], object]:
    folder = BUILD / "profiled"
    shutil.rmtree(folder, ignore_errors=True)
    chosen = overrides(OF_GUIDE, two_cameras(), feature_cache="true", batch_size=batch, output_dir=folder)
    trainer = ActTrainer(prepare_run(load_config(GUIDE, chosen)))
    trainer.policy.train()
    first = next(trainer._steps_left())
    return lambda: trainer.train_step(*first)


def _save(figure: Any, name: str) -> None:
    plt.rcParams["svg.hashsalt"] = name  # the same picture has the same file
    figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(BUILD / f"{name}.png", dpi=110)


def main() -> None:
    plt.rcParams["svg.fonttype"] = "none"
    keep_freed_memory()
    PICTURES.mkdir(exist_ok=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    roofline()
    print(profile_steps())
    found = growth()
    (BUILD / "growth.json").write_text(json.dumps(found, indent=1))
    draw_growth(found)


if __name__ == "__main__":
    main()
