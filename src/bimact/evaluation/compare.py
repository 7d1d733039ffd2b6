"""Two policies on the same scenes: success rates, their difference with an interval, a test, and stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bimact.evaluation.intervals import wilson_interval
from bimact.evaluation.paired import Pairs, anytime_interval, evidence_against, mcnemar_exact, newcombe_interval

if TYPE_CHECKING:  # trials on a robot need neither the simulation nor its policies
    pass

ALPHA = 0.05
ENOUGH = 1 / ALPHA  # evidence at which a sequential comparison stops


def comparison(
    stages_a: Sequence[int], stages_b: Sequence[int], names: Sequence[str], *, sequential: bool
) -> dict[str, Any]:
    """Compare the stages that two policies reached in the same scenes.

    Args:
        stages_a: highest stage of A in each scene, 0: none.
        stages_b: of B.
        names: of the stages; the last one is success.
        sequential: whether the results were looked at while they came in. The interval then holds whenever the
            comparison stopped, and `evidence` takes the place of `p_value`.

    Returns:
        `stages`: for each, the last one first: `stage`, `pairs` (both, only_a, only_b, neither), for `a` and `b`
        `successes`, `rate` and Wilson's `interval_95`, then `difference` (A - B) and its `interval_95`; `p_value` of
        McNemar's exact test or `evidence` against equal success rates; `better`: A, B, or null if it is not decided.

    Raises:
        ValueError: without a scene, or if the numbers of scenes differ.
    """
    rows, counted = [], []
    for reward in range(len(names), 0, -1):
        reached = [[stage >= reward for stage in stages] for stages in (stages_a, stages_b)]
        pairs = Pairs.of(*reached)
        counted.append(pairs)
        interval = anytime_interval(pairs) if sequential else newcombe_interval(pairs)
        sides = {
            side: {
                "successes": sum(successes),
                "rate": sum(successes) / pairs.scenes,
                "interval_95": wilson_interval(sum(successes), pairs.scenes),
            }
            for side, successes in zip(("a", "b"), reached)
        }
        row = {"stage": names[reward - 1], "pairs": asdict(pairs), **sides, "difference": pairs.difference}
        rows.append({**row, "interval_95": interval})
    success = counted[0]
    tested = {"evidence": evidence_against(success)} if sequential else {"p_value": mcnemar_exact(success)}
    decided = tested["evidence"] >= ENOUGH if sequential else tested["p_value"] <= ALPHA
    better = ("A" if success.difference > 0 else "B") if decided else None
    return {"scenes": success.scenes, "stages": rows, **tested, "better": better}


def compare_rollouts(a: Any, b: Any, settings: Any, *, sequential: bool = False, model_b: Any = None) -> dict[str, Any]:
    """Roll two policies out from the same scenes and compare them.

    Args:
        a: the first policy.
        b: the second one.
        settings: of both; None in its execution: as each run's config says.
        sequential: stop as soon as one of them is better; `settings.rollouts` is the largest number of scenes then.
        model_b: what acts in place of B's network: an exported model of it, a `bimact.policy.acting.ActingPolicy`.

    Returns:
        `comparison` of them, with `a` and `b` (run, checkpoint, weights), `settings` and the stages of `each` scene.

    Raises:
        UserError: if a policy is not for the simulated robot, or a setting is wrong.
    """
    from bimact.evaluation.results import stage_name
    from bimact.evaluation.rollout import roll_out
    from bimact.files import sha256_of
    from bimact.progress import progress_bar
    from bimact.sim.base import MAX_REWARD

    seeds: list[int] = []
    stages: tuple[list[int], list[int]] = ([], [])
    with (
        closing(roll_out(a, settings)) as of_a,
        closing(roll_out(b, settings, model_b)) as of_b,
        progress_bar(f"scenes of {settings.task}", settings.rollouts) as progress,
    ):
        for waves in zip(of_a, of_b):
            seeds += [rollout.seed for rollout in waves[0]]
            for reached, wave in zip(stages, waves):
                reached += [int(rollout.highest_reward) for rollout in wave]
            success = Pairs.of(*([stage == MAX_REWARD for stage in reached] for reached in stages))
            counts = f"A alone {success.only_a}, B alone {success.only_b}, both {success.both}"
            progress.advance(len(waves[0]), counts)
            if sequential and evidence_against(success) >= ENOUGH:
                break
    names = [stage_name(settings.task, reward) for reward in range(1, MAX_REWARD + 1)]
    policies = {
        side: {
            "run": str(loaded.run.path.resolve()),
            "checkpoint": loaded.checkpoint.name,
            "weights_sha256": sha256_of(loaded.checkpoint),
        }
        for side, loaded in (("a", a), ("b", b))
    }
    return {
        **policies,
        "settings": {**asdict(settings), "perturb": dict(settings.perturb)},
        **comparison(*stages, names, sequential=sequential),
        "each": [{"seed": seed, "a": one, "b": other} for seed, one, other in zip(seeds, *stages)],
    }


def comparison_table(result: Mapping[str, Any]) -> Table:
    """For the terminal: how many scenes each policy brought to each stage."""
    table = Table("stage", "A", "B", "A alone", "B alone", "A - B, points", "95% interval")
    for row in result["stages"]:
        counts = [f"{row[side]['successes']} of {result['scenes']} = {row[side]['rate']:.1%}" for side in ("a", "b")]
        low, high = row["interval_95"]
        alone = [str(row["pairs"][name]) for name in ("only_a", "only_b")]
        interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
        table.add_row(row["stage"], *counts, *alone, f"{100 * row['difference']:+.1f}", interval)
    return table


def verdict(result: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    success = result["stages"][0]
    low, high = success["interval_95"]
    difference = (
        f"A - B = {100 * success['difference']:+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f}"
    )
    if "evidence" in result:
        tested = f"{difference}, valid at any stop); evidence {result['evidence']:.3g}, decisive from {ENOUGH:g}"
    else:
        tested = f"{difference}, Newcombe); McNemar's exact test p = {result['p_value']:.3g}"
    if result["better"] is None:
        return f"Not decided after {result['scenes']} scenes: {tested}"
    return f"{result['better']} is better, after {result['scenes']} scenes: {tested}"
