"""`bimact evaluate`: error on demonstrations, success rate in the simulation."""

from __future__ import annotations

import argparse

from bimact.cli.arguments import Commands, add_episodes, image_size
from bimact.files import expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate",
        allow_abbrev=False,
        help="measure a policy: error on demonstrations, success rate in the simulation",
        description="With --task, roll the policy out in the simulation and count successes. Without, compare "
        "its actions with held-out demonstrations (or with those of --dataset_dir).",
    )
    parser.add_argument("--run", dest="run_dir", required=True, type=expand_home, help="the training run's folder")
    parser.add_argument("--checkpoint", default="best", help="best, last or an epoch (default: best)")
    parser.add_argument(
        "--dataset_dir", type=expand_home, help="demonstrations (default: the held-out ones of the training)"
    )
    add_episodes(parser)
    parser.add_argument("--task", help="roll out in this simulated task: transfer_cube or insertion")
    parser.add_argument("--rollouts", type=int, default=50, help="(default: 50)")
    parser.add_argument("--seed", type=int, default=1000, help="of the first rollout's scene (default: 1000)")
    parser.add_argument("--video", type=int, default=0, metavar="N", help="film the first N rollouts")
    parser.add_argument("--image_size", help="of the cameras, height x width (default: as in the training)")
    parser.add_argument("--parallel", type=int, help="environments that step at once")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, cpu or auto")
    execution = parser.add_mutually_exclusive_group()
    execution.add_argument("--execute_steps", type=int, help="steps of each chunk to execute (default: all)")
    execution.add_argument("--temporal_ensemble", action="store_true", help="average chunks over time instead")
    parser.set_defaults(run=_evaluate)
    return parser


def _evaluate(options: argparse.Namespace) -> None:
    from bimact.config import list_of_text
    from bimact.evaluate.results import add_results
    from bimact.evaluate.run import load_run, run_folder
    from bimact.files import check_writable

    check_writable(run_folder(options.run_dir))
    run = load_run(options.run_dir, options.checkpoint, options.device)
    results: dict[str, object] = {}
    if options.task is None or options.dataset_dir is not None:
        from bimact.evaluate.offline import evaluate_offline

        results["offline"] = offline = evaluate_offline(
            run,
            options.dataset_dir,
            episodes=None if options.episodes is None else list_of_text(options.episodes),
            exclude_episodes=None if options.exclude_episodes is None else list_of_text(options.exclude_episodes),
            skip_unreadable=options.skip_unreadable == "true",
        )
        baselines = ", ".join(f"{name} {of['mae']:.4f}" for name, of in offline["baselines"].items())
        print(f"Mean Absolute Error: {offline['mae']:.4f} ({baselines})")
    if options.task is not None:
        from bimact.evaluate.rollout import RolloutSettings, evaluate_rollouts

        settings = RolloutSettings(
            task=options.task,
            rollouts=options.rollouts,
            seed=options.seed,
            execute_steps=options.execute_steps,
            temporal_ensemble=options.temporal_ensemble or (run.config.temporal_ensemble and not options.execute_steps),
            videos=options.video,
            image_size=image_size(options.image_size) if options.image_size else None,
            parallel=options.parallel,
        )
        result = evaluate_rollouts(run, settings)
        results["rollouts"] = {options.task: result}
        low, high = result["interval_95"]
        print(
            f"Success rate: {result['successes']} of {result['rollouts']} = {result['success_rate']:.1%} "
            f"(95% interval {low:.1%} to {high:.1%}), {result['seconds_a_rollout']:.2f} s a rollout"
        )
    print(f"Results: {add_results(run.path, results)}")
