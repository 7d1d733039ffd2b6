"""`bimact demo`: record, train, evaluate and report in the simulation, by the ordinary commands."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import time

from bimact.cli.arguments import Commands
from bimact.files import expand_home
from bimact.recipes import QUICK, RECIPES, Recipe


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "demo",
        allow_abbrev=False,
        help="record demonstrations in the simulation, train on them, evaluate and report",
        description="Record 50 demonstrations in the simulation, train a policy on them, roll it out 100 times and "
        "write a report. Each step is an ordinary command, which is printed. The same command resumes an interrupted "
        "demo. Settings: config `demo` (docs/recipes.md).",
    )
    parser.add_argument("--task", default="transfer_cube", help="transfer_cube or insertion (default: transfer_cube)")
    parser.add_argument("--quick", action="store_true", help="under two minutes: test the pipeline, not the policy")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    parser.add_argument(
        "--output_dir", type=expand_home, help="the run directory (default: runs/demo-TASK, with -quick and -seed-N)"
    )
    parser.add_argument("--dataset_dir", type=expand_home, help="the demonstrations (default: data/TASK-50)")
    parser.set_defaults(run=_demo)
    return parser


def _demo(options: argparse.Namespace) -> None:
    from bimact.cli import parse

    began = time.monotonic()
    recipe, rollouts, videos = RECIPES.get(options.task, Recipe(options.task)), 100, 5
    if options.quick:
        recipe, rollouts, videos = dataclasses.replace(recipe, episodes=2, train=(*recipe.train, *QUICK)), 2, 1
        print("--quick: the same steps with little data and training. It tests the pipeline, not the policy.")
    task, episodes = recipe.task, recipe.episodes
    name = f"demo-{task}" + "-quick" * options.quick + (f"-seed-{options.seed}" if options.seed else "")
    run = options.output_dir or f"runs/{name}"
    dataset = options.dataset_dir or f"data/{task}-{episodes}"
    if not options.quick:
        from bimact.evaluation.proof import recipe_cost
        from bimact.machine import cpu_name, usable_cores

        each = recipe_cost(recipe)
        parts = {
            "recording": each.recording,
            "training": each.training,
            f"{rollouts} rollouts": rollouts * each.rollout,
            f"{videos} videos": videos * each.video,
        }
        print(
            f"At least {sum(parts.values()):.0f} min from beginning to end on this machine ({cpu_name()}, "
            f"{usable_cores()} cores), by a few measured steps: "
            + ", ".join(f"{name} {minutes:.1f} min" for name, minutes in parts.items())
            + "; without the start of processes",
            flush=True,
        )

    def step(title: str, *words: str) -> None:
        print(f"\n── {title}\n$ {shlex.join(['bimact', *words])}", flush=True)
        parsed = parse(words)
        parsed.run(parsed)

    step(f"1 of 4: record {episodes} demonstrations of {task}", *recipe.record_command(str(dataset)))
    step(
        "2 of 4: train",
        *("train", "--dataset_dir", dataset, "--output_dir", run, "--seed", str(options.seed)),
        *("--resume_from", "auto", *recipe.train),
    )
    evaluation = ("evaluate", "--run", run, "--checkpoint", "last")
    step("3 of 4: evaluate: the error on held-out demonstrations", *evaluation, "--saliency", "6")
    step(
        f"3 of 4: evaluate: {rollouts} rollouts from scenes that are in no demonstration",
        *(*evaluation, "--task", task, "--rollouts", str(rollouts), "--seed", "1000", "--video", str(videos)),
    )
    step("4 of 4: report", "report", "--run", run)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"In all: {minutes} min {seconds:02d} s.")
