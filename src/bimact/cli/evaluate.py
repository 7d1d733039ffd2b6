"""`bimact evaluate`: error on demonstrations, success rate in the simulation."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from bimact.cli.arguments import Commands, add_episodes, image_size
from bimact.files import expand_home
from bimact.run_directory import Run


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate",
        allow_abbrev=False,
        help="measure a policy: error on demonstrations, success rate in the simulation",
        description="With --task, roll the policy out in the simulation and count successes. Without, compare "
        "its actions with held-out demonstrations (or with those of --dataset_dir).",
    )
    parser.add_argument(
        "--run",
        dest="run_dir",
        required=True,
        type=expand_home,
        help="the run directory, or a policy on the Hugging Face hub as USER/NAME",
    )
    parser.add_argument("--checkpoint", default="best", help="best, last or an epoch (default: best)")
    parser.add_argument(
        "--dataset_dir", type=expand_home, help="demonstrations (default: the held-out ones of the training)"
    )
    add_episodes(parser)
    parser.add_argument(
        "--saliency",
        type=int,
        default=0,
        metavar="N",
        help="draw which parts of the images the actions depend on, at N moments of a demonstration: into saliency/ "
        "beside the results; the report of a run shows them",
    )
    parser.add_argument("--task", help="roll out in a simulated task: transfer_cube, insertion, or another package's")
    parser.add_argument("--rollouts", type=int, default=50, help="(default: 50)")
    parser.add_argument("--seed", type=int, default=1000, help="of the first rollout's scene (default: 1000)")
    parser.add_argument("--video", type=int, default=0, metavar="N", help="film the first N rollouts")
    parser.add_argument(
        "--prompt", help="what a policy with task_conditioning is told (default: the task's name, or its only task)"
    )
    parser.add_argument("--image_size", help="of the cameras, height x width (default: as in the training)")
    parser.add_argument(
        "--parallel", type=int, help="number of environments that step together (default: by CPU cores)"
    )
    changes = parser.add_mutually_exclusive_group()
    changes.add_argument(
        "--perturb",
        metavar="NAME=MAGNITUDE,...",
        help="change the simulation, such as camera_shift=0.02,delay=2 (names: bimact evaluate --list_perturbations)",
    )
    changes.add_argument(
        "--suite",
        choices=("robustness",),
        help="robustness: roll out as it is, then under each perturbation at several magnitudes (resumable; hours)",
    )
    parser.add_argument(
        "--list_perturbations", action=_ListPerturbations, help="print all perturbations with their magnitudes"
    )
    parser.add_argument(
        "--output_dir",
        type=expand_home,
        help="where results and videos go (default: the run directory; for a policy on the hub: evaluations/USER/NAME)",
    )
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, cpu or auto")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, and progress on stderr")
    execution = parser.add_mutually_exclusive_group()
    execution.add_argument("--execute_steps", type=int, help="steps of each chunk to execute (default: all)")
    execution.add_argument("--temporal_ensemble", action="store_true", help="average chunks over time instead")
    parser.set_defaults(run=_evaluate)
    return parser


class _ListPerturbations(argparse.Action):
    """Prints and exits, as `--help` does."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from bimact.sim.perturbations import PERTURBATIONS

        for name, perturbation in PERTURBATIONS.items():
            suite = ", ".join(f"{value:g}" for value in perturbation.suite) or "each camera, all"
            limits = f"{perturbation.low:g} to {perturbation.high:g}" if perturbation.neutral is not None else "a name"
            print(f"{name:16} {perturbation.meaning} ({limits}; in the suite: {suite})")
        parser.exit()


def _evaluate(options: argparse.Namespace) -> None:
    import bimact
    from bimact.config import list_of_text
    from bimact.evaluation.predictors import predictors_line, unused_images

    perturb = None
    if options.perturb is not None:
        from bimact.sim.perturbations import parse_perturbations

        perturb = parse_perturbations(options.perturb)
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        result = bimact.evaluate(
            options.run_dir,
            task=options.task,
            prompt=options.prompt,
            rollouts=options.rollouts,
            seed=options.seed,
            execute_steps=options.execute_steps,
            temporal_ensemble=options.temporal_ensemble or None,
            videos=options.video,
            image_size=image_size(options.image_size) if options.image_size else None,
            parallel=options.parallel,
            perturb=perturb,
            suite=options.suite,
            dataset_dir=options.dataset_dir,
            episodes=None if options.episodes is None else list_of_text(options.episodes),
            exclude_episodes=None if options.exclude_episodes is None else list_of_text(options.exclude_episodes),
            skip_unreadable=options.skip_unreadable == "true",
            saliency=options.saliency,
            checkpoint=options.checkpoint,
            device=options.device,
            output_dir=options.output_dir,
        )
    if options.json:
        found = {"offline": result.offline, "rollouts": result.rollouts, "robustness": result.robustness}
        print(json.dumps(found, indent=2))
        return
    if result.offline is not None:
        baselines = ", ".join(f"{name} {of['mae']:.4f}" for name, of in result.offline["baselines"].items())
        print(f"Mean Absolute Error: {result.offline['mae']:.4f} ({baselines})")
        print(predictors_line(result.offline))
        unused = unused_images(result.offline)
        if unused is not None:
            print(f"Warning: {unused} (docs/when-it-fails.md)")
        if "saliency" in result.offline:
            largest = max(picture["largest"] for picture in result.offline["saliency"])
            pictures = result.path.parent / Path(result.offline["saliency"][0]["picture"]).parent
            print(
                f"Pictures of which parts of the images matter: {pictures}; covering a part changes the normalised "
                f"actions by at most {largest:.3f}"
            )
        for name, of in result.offline.get("datasets", {}).items():
            baselines = ", ".join(f"{kind} {mae:.4f}" for kind, mae in of["baselines"].items())
            print(f"  {name}: {of['mae']:.4f} ({baselines})")
    if result.rollouts is not None:
        low, high = result.rollouts["interval_95"]
        print(
            f"Success rate: {result.rollouts['successes']} of {result.rollouts['rollouts']} = "
            f"{result.success_rate:.1%} (95% interval {low:.1%} to {high:.1%}), "
            f"{result.rollouts['seconds_a_rollout']:.2f} s per rollout"
        )
    if result.robustness is not None:
        from rich.console import Console

        from bimact.evaluation.robustness import robustness_table

        Console(width=None if sys.stdout.isatty() else 120).print(robustness_table(result.robustness))
    print(f"Results: {result.path}")
    if Path(options.run_dir).exists() and result.path.parent.samefile(Run.of(options.run_dir).path):
        print(f"Next: bimact report --run {shlex.quote(options.run_dir)}")
