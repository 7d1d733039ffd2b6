"""`bimact record`: scripted demonstrations in the simulation."""

from __future__ import annotations

import argparse
import shlex

from bimact.cli.arguments import Commands, image_size
from bimact.files import expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "record",
        allow_abbrev=False,
        help="record scripted demonstrations in the simulation",
        description="Record successful scripted demonstrations. The same command resumes an interrupted recording.",
    )
    parser.add_argument("--task", required=True, help="transfer_cube, insertion, or a task of another package")
    parser.add_argument("--output_dir", required=True, type=expand_home, help="the dataset's folder")
    parser.add_argument("--episodes", type=int, default=50, help="demonstrations to record (default: 50)")
    parser.add_argument("--cameras", help="comma-separated (default: the task's first one: top)")
    parser.add_argument("--image_size", default="240x320", help="height x width (default: 240x320)")
    parser.add_argument("--noise", type=float, default=0.0, help="on waypoints, in metres (default: 0)")
    parser.add_argument(
        "--action_noise",
        type=float,
        default=0.0,
        help="standard deviation of smooth noise on the executed joint targets, in radians; the recorded actions stay "
        "those without noise, so that the demonstrations show how to come back (default: 0)",
    )
    parser.add_argument("--noisy_episodes", type=int, help="episodes with --action_noise (default: half of them)")
    parser.add_argument(
        "--randomize",
        metavar="NAME=MAGNITUDE,...",
        help="what looks different in each episode, up to these magnitudes, such as camera_shift=0.03,light=1.5,"
        "table_color=0.5; patterns, such as table_texture=0.5, have this contrast in half of the episodes (names: "
        "bimact evaluate --list_perturbations)",
    )
    parser.add_argument(
        "--randomize_steps",
        type=int,
        metavar="N",
        help="draw what looks different anew every N control steps (default: once per episode). A policy that sees one "
        "observation at a time learns from as many looks as there are draws",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first episode (default: 0)")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    parser.set_defaults(run=_record)
    return parser


def _record(options: argparse.Namespace) -> None:
    from bimact.sim.perturbations import parse_perturbations
    from bimact.sim.recording import RecordingSettings, record
    from bimact.sim.tasks import find_task

    cameras = find_task(options.task).cameras[0] if options.cameras is None else options.cameras
    settings = RecordingSettings(
        task=options.task,
        episodes=options.episodes,
        cameras=tuple(name.strip() for name in cameras.split(",") if name.strip()),
        image_size=image_size(options.image_size),
        noise=options.noise,
        seed=options.seed,
        action_noise=options.action_noise,
        noisy_episodes=options.noisy_episodes,
        randomize=parse_perturbations(options.randomize, "--randomize") if options.randomize else None,
        randomize_steps=options.randomize_steps,
    )
    episodes = record(settings, options.output_dir, options.workers)
    failed = sum(episode.failed for episode in episodes)
    noisy = sum(episode.noisy for episode in episodes)
    with_noise = f", {noisy} of them with noise on the executed actions" if noisy else ""
    print(f"{len(episodes)} demonstrations in {options.output_dir}{with_noise}; {failed} failed and were discarded")
    print(f"Next: bimact train --config demo --dataset_dir {shlex.quote(options.output_dir)}")
