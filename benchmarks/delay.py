"""Success over the delay between observation and chunk, for each way of execution, in simulation.

python benchmarks/delay.py --run runs/demo-transfer_cube --task transfer_cube

The same scenes in each cell, on a simulated clock: the result does not depend on the speed of the machine. Cells are
kept in a JSON file, so that the command resumes, and prints the table of docs/deployment.md. 1,000 rollouts take eight
minutes on two cores with AVX-512.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from bimact_client import Execution, Safety

import bimact
from bimact.deploy.in_process import InProcessClient
from bimact.deploy.sim_robot import drive
from bimact.evaluation.intervals import wilson_interval
from bimact.files import write_json
from bimact.machine import usable_cores
from bimact.progress import progress_bar
from bimact.sim.base import MAX_REWARD

DELAYS = (0, 40, 80, 160, 320)  # milliseconds


def executions(steps: int | None) -> dict[str, Execution]:
    """Ways of execution; `steps` is the run's execute_steps."""
    blends = {f"async, {blend}": Execution("async", 25, blend) for blend in ("latest", "linear", "ensemble")}
    return {"chunk": Execution("chunk", steps), **blends, "temporal_ensemble": Execution("temporal_ensemble")}


def measure(run: Path, task: str, name: str, delay: int, seeds: range) -> dict[str, Any]:
    """One cell of the table."""
    torch.set_num_threads(1)
    policy = bimact.load_policy(run, device="cpu", temporal_ensemble=False)
    execution = executions(policy.metadata.execution.execute_steps)[name]
    results = drive(
        InProcessClient(policy),
        task,
        execution=execution,
        safety=Safety(stop_after=5.0),
        rollouts=len(seeds),
        seed=seeds.start,
        delay=delay / 1000,
        real_time=False,
        say=lambda line: None,
    )
    return {
        "successes": [result.highest_reward == MAX_REWARD for result in results],
        "seam": statistics.median(result.report.seam for result in results),
        "step": statistics.median(result.report.step for result in results),
        "held": sum(result.report.held_cycles for result in results) / sum(result.report.cycles for result in results),
        "too_fast": sum(r.report.too_fast for r in results) / sum(r.report.cycles for r in results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--delays", default=",".join(map(str, DELAYS)), help="in milliseconds")
    parser.add_argument("--executions", default=";".join(executions(None)), help="separated by semicolons")
    parser.add_argument("--output", type=Path, help="JSON file (default: delay.json in the run directory)")
    options = parser.parse_args()
    output = options.output or options.run / "delay.json"
    cells: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    delays = [int(delay) for delay in options.delays.split(",")]
    names = options.executions.split(";")
    seeds = range(options.seed, options.seed + options.rollouts)
    identity = f"{options.task}, seeds {seeds.start} to {seeds[-1]}"
    wanted = {f"{identity}, {name}, {delay} ms": (name, delay) for name in names for delay in delays}
    missing = {key: cell for key, cell in wanted.items() if key not in cells}
    with (
        ProcessPoolExecutor(usable_cores(), multiprocessing.get_context("spawn")) as pool,
        progress_bar("cells of the table", len(wanted), len(wanted) - len(missing)) as progress,
    ):
        jobs = {
            pool.submit(measure, options.run, options.task, name, delay, seeds): key
            for key, (name, delay) in missing.items()
        }
        for job in as_completed(jobs):
            cells[jobs[job]] = job.result()
            write_json(output, cells)
            progress.advance()
    print(f"{identity}: successes of {len(seeds)} (95% interval), largest seam (rad, gripper openings), cycles held\n")
    print(f"| execution | {' | '.join(f'{delay} ms' for delay in delays)} |")
    print("|---|" + "---|" * len(delays))
    for name in names:
        texts = []
        for delay in delays:
            cell = cells[f"{identity}, {name}, {delay} ms"]
            count = sum(cell["successes"])
            low, high = wilson_interval(count, len(seeds))
            texts.append(f"{count} ({low:.0%}–{high:.0%}), {cell['seam']:.3f}, {cell['held']:.0%}")
        print(f"| {name} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
