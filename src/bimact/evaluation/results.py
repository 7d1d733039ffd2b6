"""`R/evaluation.json`: the results of evaluations of a run's policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bimact.errors import UserError
from bimact.files import write_json

EVALUATION = "evaluation.json"
STAGES = {
    "transfer_cube": ("cube touched", "cube lifted", "handed over (touched by left)", "held by left"),
    "insertion": ("both touched", "both lifted", "peg meets socket", "inserted"),
}


def read_results(run: str | Path) -> dict[str, Any]:
    """The results so far; empty if there are none.

    Raises:
        UserError: if the file is no JSON.
    """
    path = Path(run) / EVALUATION
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no readable JSON: delete it and evaluate again") from error


def add_results(run: str | Path, results: dict[str, Any]) -> Path:
    """Put new results beside or in place of those of the same name."""
    path = Path(run) / EVALUATION
    kept = read_results(run)
    rollouts = {**kept.get("rollouts", {}), **results.get("rollouts", {})}
    write_json(path, {**kept, **results, **({"rollouts": rollouts} if rollouts else {})})
    return path


def stage_name(task: str, reward: float) -> str:
    """What a reward of a simulated task stands for."""
    names = ("none", *STAGES.get(task, ()))
    return names[int(reward)] if reward < len(names) else f"stage {reward:g}"
