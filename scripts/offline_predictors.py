"""How well the offline metrics of `bimact evaluate` predict success: their rank correlation over many runs.

    python scripts/offline_predictors.py runs/ablation-*

Each run needs `bimact evaluate --run R` and `bimact evaluate --run R --task T`, of the same checkpoint. For each task
and metric: Spearman's rank correlation with the success rate, with a bootstrap interval over runs. Small values of all
metrics are good, so -1 is a perfect predictor.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata, spearmanr

from bimact.errors import UserError, printable
from bimact.evaluation.results import read_results
from bimact.run_directory import Run

METRICS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "val_loss": lambda offline: offline["val_loss"],
    "mean absolute error": lambda offline: offline["mae"],
    "error at gripper changes": lambda offline: offline.get("mae_at_gripper_changes"),
    "error with changed images and states": lambda offline: offline.get("mae_perturbed"),
    "error / that with images of other moments": lambda offline: (
        (errors := offline.get("mae_with_other_images")) and errors["unchanged"] / errors["all"]
    ),
    "direction reversals": lambda offline: offline.get("direction_reversals"),
    "spread of overlapping chunks": lambda offline: offline.get("chunk_spread"),
}
FEWEST = 5


def measured(path: Path) -> tuple[dict[str, float], dict[str, float | None]]:
    """Success rate by task, and the offline metrics, of a run.

    Raises:
        UserError: if it lacks one of them, or they are of two checkpoints.
    """
    run = Run.existing(path)
    results = read_results(run.path)
    if "offline" not in results or not results.get("rollouts"):
        raise UserError(f"{run.path} lacks an evaluation: run bimact evaluate on it without and with --task")
    offline = dict(results["offline"])
    for task, result in results["rollouts"].items():
        if result["checkpoint"] != offline["checkpoint"]:
            raise UserError(
                f"{run.path} has the error of {offline['checkpoint']} and the success of {result['checkpoint']} in "
                f"{task}: evaluate one checkpoint"
            )
    losses = [record["val_loss"] for record in run.metrics() if record.get("val_loss") is not None]
    offline["val_loss"] = losses[-1] if losses else None
    rates = {task: float(result["success_rate"]) for task, result in results["rollouts"].items()}
    return rates, {name: metric(offline) for name, metric in METRICS.items()}


def correlation(values: Sequence[float], rates: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rho and its 95% interval, by resampling runs 2,000 times."""
    pairs = np.array([values, rates])
    chosen = np.random.default_rng(seed).integers(0, pairs.shape[1], (2000, pairs.shape[1]))
    ranks = rankdata(pairs[:, chosen], axis=2)  # ties share their mean rank
    ranks -= ranks.mean(axis=2, keepdims=True)
    squares = (ranks**2).sum(axis=2).prod(axis=0)
    differ = squares > 0  # a resample of runs that are all equal has no correlation
    resampled = (ranks[0] * ranks[1]).sum(axis=1)[differ] / np.sqrt(squares[differ])
    low, high = np.percentile(resampled, [2.5, 97.5]) if len(resampled) else (np.nan, np.nan)
    return float(spearmanr(*pairs).statistic), float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    found = [measured(path) for path in parser.parse_args(arguments).runs]
    table = Table("task", "metric", "runs", "Spearman's rho with success", "95% interval")
    for task in sorted({task for rates, _ in found for task in rates}):
        of_task = [(rates[task], metrics) for rates, metrics in found if task in rates]
        if len(of_task) < FEWEST or len({rate for rate, _ in of_task}) < 2:
            raise UserError(f"{len(of_task)} runs of {task}: it takes {FEWEST} of different success rates")
        rows = []
        for name in METRICS:
            known = [(metrics[name], rate) for rate, metrics in of_task if metrics[name] is not None]
            values = [float(value) for value, _ in known if value is not None]
            if len(known) >= FEWEST and len(set(values)) > 1:
                rows.append((correlation(values, [rate for _, rate in known]), name, len(known)))
        for (rho, low, high), name, number in sorted(rows):
            table.add_row(task, name, str(number), f"{rho:+.2f}", f"{low:+.2f} to {high:+.2f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"offline_predictors: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
