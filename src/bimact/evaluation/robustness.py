"""Success rates under perturbations of the simulation, beside those without, on the same scenes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from bimact.evaluation.paired import Pairs, holm, mcnemar_exact, newcombe_interval

NONE = "none"  # the condition without a perturbation


def differences(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each condition beside the simulation as it is, on the same scenes.

    Args:
        group: of `evaluation.json`, as `bimact.evaluation.rollout.evaluate_robustness` returns it.

    Returns:
        for each condition: `condition`, `successes`, `rollouts`, `success_rate`, `interval_95`; and where there are
        results without a perturbation: `difference` of the success rates with `difference_interval_95` (Newcombe's, for
        this condition alone) and `p_value` (McNemar's exact test, Holm's correction over all conditions).
    """
    conditions = group["conditions"]
    rows = [
        {
            "condition": name,
            "perturb": result["perturb"],
            **{key: result[key] for key in ("successes", "rollouts", "success_rate", "interval_95")},
        }
        for name, result in conditions.items()
    ]
    if NONE not in conditions:
        return rows
    highest = len(conditions[NONE]["reward_reached"])
    usual = [reward == highest for reward in conditions[NONE]["highest_rewards"]]
    changed = [row for row in rows if row["condition"] != NONE]
    tests = []
    for row in changed:
        rewards = conditions[row["condition"]]["highest_rewards"]
        pairs = Pairs.of([reward == highest for reward in rewards], usual)
        row["difference"], row["difference_interval_95"] = pairs.difference, newcombe_interval(pairs)
        tests.append(mcnemar_exact(pairs))
    for row, p_value in zip(changed, holm(tests)):
        row["p_value"] = p_value
    return rows


def curves(group: Mapping[str, Any]) -> dict[str, list[tuple[float | str, float, float, float]]]:
    """Success over magnitude: perturbation → (magnitude, success rate, ends of its interval), smallest first.

    A perturbation has its neutral magnitude too, where there are results without a perturbation.
    """
    found: dict[str, list[tuple[float | str, float, float, float]]] = {}
    usual = group["conditions"].get(NONE)
    for name, perturbation in group["perturbations"].items():
        points = [
            (result["perturb"][name], result["success_rate"], *result["interval_95"])
            for result in group["conditions"].values()
            if list(result["perturb"]) == [name]
        ]
        neutral = perturbation["neutral"]
        if points and usual is not None:
            points.insert(0, ("none" if neutral is None else neutral, usual["success_rate"], *usual["interval_95"]))
        if points:
            found[name] = points if neutral is None else sorted(points)
    return found


def robustness_table(group: Mapping[str, Any]) -> Table:
    """For the terminal: conditions, success rates, and how they differ from the simulation as it is."""
    table = Table("condition", "succeeded", "95% interval", "difference", "95% interval", "p (Holm)")
    for row in differences(group):
        low, high = row["interval_95"]
        cells = [row["condition"], f"{row['successes']} of {row['rollouts']}", f"{low:.0%} to {high:.0%}"]
        if "difference" in row:
            low, high = row["difference_interval_95"]
            cells += [f"{100 * row['difference']:+.0f}", f"{100 * low:+.0f} to {100 * high:+.0f}"]
            cells.append(f"{row['p_value']:.2g}")
        table.add_row(*cells)
    return table
