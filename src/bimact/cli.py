"""The roof: `bimact train | record | evaluate | report`. It reads the command line and assembles the rest."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from bimact import __version__
from bimact.errors import UserError

# What a command needs is imported when it runs: `--help` answers at once, and recording needs no PyTorch.


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `bimact` command: runs what is asked for and exits (0 done, 2 wrong input, 130 interrupted)."""
    parser, commands = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser.parse_known_args(given)
    if rest and options.command != "train":
        commands[options.command].error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    sys.exit(_run_command(options.run, options))


def train_main() -> NoReturn:
    """The command line of `scripts/train_act.py`: the same as `bimact train`."""
    main(["train", *sys.argv[1:]])


def _run_command(command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends as Ctrl-C does
    try:
        command(options)
    except UserError as error:
        if options.debug:
            raise
        print(f"{options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="bimact",
        description="Train ACT on bimanual demonstrations, and prove the policy by its success rate.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bimact {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    makers = (_add_record, _add_train, _add_evaluate, _add_report)
    parsers = [make(commands) for make in makers]
    for entry in parsers:
        entry.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser, {entry.prog.split()[-1]: entry for entry in parsers}


def _add_record(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "record",
        allow_abbrev=False,
        help="record scripted demonstrations in the simulation",
        description="Record scripted demonstrations that succeed. The same command goes on with a recording "
        "that was interrupted.",
    )
    parser.add_argument("--task", required=True, help="transfer_cube or insertion")
    parser.add_argument("--output_dir", required=True, help="the dataset's folder")
    parser.add_argument("--episodes", type=int, default=50, help="demonstrations to record (default: 50)")
    parser.add_argument("--cameras", default="top", help="comma-separated (default: top)")
    parser.add_argument("--image_size", default="240x320", help="height x width (default: 240x320)")
    parser.add_argument("--noise", type=float, default=0.0, help="on waypoints, in metres (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode (default: 0)")
    parser.add_argument("--workers", type=int, help="processes (default: one for each core)")
    parser.set_defaults(run=_record)
    return parser


def _record(options: argparse.Namespace) -> None:
    from bimact.sim.recording import RecordingSettings, record

    settings = RecordingSettings(
        task=options.task,
        episodes=options.episodes,
        cameras=tuple(name.strip() for name in options.cameras.split(",") if name.strip()),
        image_size=_image_size(options.image_size),
        noise=options.noise,
        seed=options.seed,
    )
    episodes = record(settings, options.output_dir, options.workers)
    failed = sum(episode.failed for episode in episodes)
    print(f"{len(episodes)} demonstrations in {options.output_dir}; {failed} failed and were discarded")


def _image_size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise UserError(f"--image_size is '{text}', it has to be height x width such as 240x320")
    return int(height), int(width)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train a policy on demonstrations",
        description="Train a policy. Every setting of the config can be given as --key value.",
        epilog="settings: " + ", ".join(_setting_names()),
    )
    parser.add_argument("--config", default="configs/policy_act.yaml", help="YAML (default: %(default)s)")
    parser.add_argument("--resume_from", help="go on from this checkpoint (.pth)")
    parser.set_defaults(run=_train)
    return parser


def _setting_names() -> list[str]:
    from bimact.config import setting_names

    return setting_names()


def _train(options: argparse.Namespace) -> None:
    from bimact.config import load_config

    config = load_config(options.config, _settings(options.rest))
    print("=== ACT Training ===")
    print(f"Config: {options.config}")
    print(f"Dataset: {config.dataset_dir}")
    print(f"Output: {config.output_dir}\n", flush=True)
    from bimact.train.act_trainer import ActTrainer

    ActTrainer(config, options.resume_from).fit()


def _settings(arguments: Sequence[str]) -> list[str]:
    """`--key value`, `--key=value` and a bare `--flag` → `key=value`."""
    settings: list[str] = []
    waiting: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            if waiting is not None:
                settings.append(f"{waiting}=true")
            name, equals, value = argument[2:].partition("=")
            waiting = None if equals else name
            if equals:
                settings.append(f"{name}={value}")
        elif waiting is not None:
            settings.append(f"{waiting}={argument}")
            waiting = None
        else:
            raise UserError(f"'{argument}' belongs to no setting: settings are given as --key value")
    if waiting is not None:
        settings.append(f"{waiting}=true")
    return settings


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate",
        allow_abbrev=False,
        help="measure a policy: error on demonstrations, success rate in the simulation",
        description="With --task, roll the policy out in the simulation and count successes. Without, compare "
        "its actions with held-out demonstrations (or with those of --dataset_dir).",
    )
    parser.add_argument("--run", dest="run_dir", required=True, help="the training run's folder")
    parser.add_argument("--checkpoint", default="best", help="best, last or an epoch (default: best)")
    parser.add_argument("--dataset_dir", help="demonstrations (default: the held-out ones of the training)")
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
    from bimact.evaluate.results import add_results
    from bimact.evaluate.run import load_run

    run = load_run(options.run_dir, options.checkpoint, options.device)
    results: dict[str, object] = {}
    if options.task is None or options.dataset_dir is not None:
        from bimact.evaluate.offline import evaluate_offline

        results["offline"] = offline = evaluate_offline(run, options.dataset_dir)
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
            image_size=_image_size(options.image_size) if options.image_size else None,
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


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "report",
        allow_abbrev=False,
        help="one page on a run: settings, curves, errors, success rate, videos",
        description="Write R/report.html: one self-contained page on a run.",
    )
    parser.add_argument("--run", dest="run_dir", required=True, help="the training run's folder")
    parser.set_defaults(run=_report)
    return parser


def _report(options: argparse.Namespace) -> None:
    from rich.console import Console

    from bimact.evaluate.report import summary_table, write_report

    write_report(options.run_dir)
    # Piped output has no width of its own: paths should stay on one line there.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(summary_table(options.run_dir))
