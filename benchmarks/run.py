"""Run the rows that are named, or all, and write what came of them to benchmarks/results/<machine>.md.

python benchmarks/run.py [ROW ...]
python benchmarks/run.py --gpu
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from measuring import BUILD, ROOT, Figure, Row
from rich.console import Console

from bimact.device import cpu_has_bf16

# name → module:function; in the order of the table
ROWS = {
    "feature_cache": "rows.guide:feature_cache",
    "lerobot_step": "rows.lerobot:step",
    "peak_64": "rows.guide:share_of_peak_64",
    "peak_8": "rows.guide:share_of_peak_8",
    "loader": "rows.lerobot:batches",
    "waiting": "rows.runs:waiting",
    "lerobot_chunk": "rows.lerobot:chunk",
    "context": "rows.guide:context",
    "memory": "rows.runs:memory",
    "first_step": "rows.runs:first_step",
    "dropout": "rows.own_kernels:dropout",
    "attention": "rows.own_kernels:attention",
    "decoding": "rows.decoding:decoding",
    "simulation": "rows.simulation:simulation",
    "serving": "rows.serving:overhead",
    "exported": "rows.serving:exported",
}
GPU_ROWS = {  # of `--gpu`
    "gpu_guide_8": "rows.gpu:guide_8",
    "gpu_guide_64": "rows.gpu:guide_64",
    "gpu_guide_in_loop_64": "rows.gpu:guide_in_loop_64",
    "gpu_lerobot_8": "rows.gpu:lerobot_8",
    "gpu_lerobot_64": "rows.gpu:lerobot_64",
}
# Where bf16 is emulated, these take hours and measure the emulation.
IN_BF16 = ("feature_cache", "peak_64", "peak_8", "lerobot_chunk", "context")


def measure(name: str) -> Row:
    """One row, in a process of its own."""
    command = [sys.executable, __file__, "--alone", name]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    values = json.loads(output.strip().splitlines()[-1])
    return Row(**{**values, "figure": Figure(**values["figure"])})


def alone(name: str) -> None:
    module, _, function = {**ROWS, **GPU_ROWS}[name].partition(":")
    row: Row = getattr(importlib.import_module(module), function)()
    print(json.dumps(dataclasses.asdict(row)))


def machine() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    packages = ("torch", "torchvision", "accelerate", "numpy", "open-clip-torch", "av", "mujoco")
    return {
        "CPU": f"{cpu}, {cores} cores, {torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "GPU": ", ".join(gpus) or "none",
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "bimact": f"commit {commit.strip()}",
    }


def page(rows: dict[str, Row], about: dict[str, str], minutes: float, skipped: str, title: str) -> str:
    lines = [f"# Benchmarks: {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in about.items()]
    lines += ["", f"{date.today()}, {minutes:.0f} minutes. What each row is: [README](../README.md).", ""]
    lines += [skipped, ""] if skipped else []
    lines += ["| row | what | goal | median (lowest to highest) | |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        verdict = {True: "✓", False: "✗", None: ""}[row.holds]
        lines.append(f"| {name} | {row.what} | {row.goal or ''} | {row.figure} | {verdict} |")
    for name, row in rows.items():
        lines += ["", f"**{name}** (`python benchmarks/run.py {name}`)", ""]
        lines += [f"- {detail}" for detail in row.details] or [f"- {row.figure}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--gpu", action="store_true", help=f"the rows of a GPU: {', '.join(GPU_ROWS)}")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(options.alone)
        return
    known = {**ROWS, **GPU_ROWS}
    unknown = [name for name in options.rows if name not in known]
    if unknown:
        parser.error(f"there is no row {unknown[0]}; there is {', '.join(known)}")
    if options.gpu and options.rows:
        parser.error("--gpu measures all its rows: leave the names out")
    if options.gpu and not torch.cuda.is_available() and os.environ.get("BIMACT_BENCHMARK_DEVICE") != "cpu":
        parser.error("--gpu needs a CUDA GPU, and PyTorch finds none here: see bimact doctor")
    BUILD.mkdir(parents=True, exist_ok=True)
    console = Console()
    began, rows = time.perf_counter(), {}
    chosen, skipped = options.rows or list(GPU_ROWS if options.gpu else ROWS), ""
    if not options.rows and not options.gpu and not cpu_has_bf16():
        chosen = [name for name in ROWS if name not in IN_BF16]
        skipped = f"Skipped, as this CPU has no bf16 in hardware: {', '.join(IN_BF16)} (measured if named)"
        console.print(skipped, highlight=False)
    for number, name in enumerate(chosen, start=1):
        with console.status(f"{name} ({number} of {len(chosen)})"):
            rows[name] = measure(name)
        console.print(f"{name}: {rows[name].figure}  goal {rows[name].goal or 'none'}", highlight=False)
    minutes = (time.perf_counter() - began) / 60
    about = machine()
    of_gpu = options.gpu and about["GPU"] != "none"
    text = page(rows, about, minutes, skipped, about["GPU"] if of_gpu else about["CPU"])
    if options.rows:
        print(text)
        return
    name = re.sub(r"[^a-z0-9]+", "-", about["GPU" if of_gpu else "CPU"].lower()).strip("-")
    path = (BUILD if options.gpu and not of_gpu else ROOT / "benchmarks" / "results") / f"{name}.md"
    path.write_text(text)
    print(f"Results: {path}")


if __name__ == "__main__":
    main()
