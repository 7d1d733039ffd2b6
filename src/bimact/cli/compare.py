"""`bimact compare`: which of two policies is better, in the same scenes or on a robot."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from bimact.cli.arguments import Commands, image_size
from bimact.errors import UserError
from bimact.files import expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "compare",
        allow_abbrev=False,
        help="which of two policies is better: paired rollouts in simulation, or blind trials on a robot",
        description="Roll two policies out from the same scenes and compare their success rates: exact McNemar test, "
        "Newcombe's interval of the paired difference, and how many reached each stage. With --protocol, serve them to "
        "a robot in a random order that the operator does not see, and take the marks from the keyboard.",
    )
    parser.add_argument("run_a", type=expand_home, metavar="RUN_A", help="a run directory, or a policy on the hub")
    parser.add_argument("run_b", type=expand_home, metavar="RUN_B", help="another one, or the same one")
    parser.add_argument(
        "--checkpoint", default="best", help="best, last or an epoch; A,B: one for each (default: best)"
    )
    parser.add_argument(
        "--sequential", action="store_true", help="stop as soon as one is better, by a test that is valid at any time"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON, and progress on stderr")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, cpu or auto")
    execution = parser.add_mutually_exclusive_group()
    execution.add_argument("--execute_steps", type=int, help="steps of each chunk to execute (default: each run's)")
    execution.add_argument("--temporal_ensemble", action="store_true", help="average chunks over time instead")
    simulation = parser.add_argument_group("in the simulation")
    simulation.add_argument("--task", help="transfer_cube or insertion (default: that of RUN_A's demonstrations)")
    simulation.add_argument("--rollouts", type=int, default=200, help="scenes, at most (default: 200)")
    simulation.add_argument("--seed", type=int, default=1000, help="of the first scene (default: 1000)")
    simulation.add_argument("--perturb", metavar="NAME=MAGNITUDE,...", help="as in bimact evaluate")
    simulation.add_argument("--image_size", help="of the cameras, height x width (default: as in each training)")
    simulation.add_argument("--parallel", type=int, help="number of environments that step together")
    simulation.add_argument(
        "--output", type=expand_home, metavar="FILE", help="(default: RUN_A/comparisons/RUN_B-TASK.json)"
    )
    robot = parser.add_argument_group("on a robot")
    robot.add_argument(
        "--protocol", type=expand_home, metavar="FILE", help="file of the trials; an existing one is resumed"
    )
    robot.add_argument("--trials", type=int, default=20, help="of each policy, in pairs (default: 20)")
    robot.add_argument(
        "--stages", metavar="A,B,...", help="names of the stages to mark, the last one is success (default: success)"
    )
    robot.add_argument("--host", default="127.0.0.1", help="address to serve at (default: 127.0.0.1)")
    robot.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    robot.add_argument("--api_key", help="clients have to send it (default: the variable BIMACT_API_KEY)")
    parser.set_defaults(run=_compare)
    return parser


def _compare(options: argparse.Namespace) -> None:
    from bimact.evaluation.compare import comparison_table, verdict

    given = options.checkpoint.split(",")
    if len(given) > 2:
        raise UserError(f"--checkpoint is '{options.checkpoint}', it has to be one, or one for each such as best,last")
    if options.json and options.protocol is not None:
        raise UserError("--protocol asks for marks on the terminal, so --json does not apply: read the protocol file")
    compare = _in_simulation if options.protocol is None else _on_a_robot
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        result, path = compare(options, (given[0], given[-1]))
    if options.json:
        print(json.dumps(result, indent=2))
        return
    if result is not None:
        for name, side in (("A", "a"), ("B", "b")):
            print(f"{name}: {result[side]['run']} ({result[side]['checkpoint']})")
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 120).print(comparison_table(result))
        print(verdict(result))
    print(f"Results: {path}")


def _in_simulation(options: argparse.Namespace, checkpoints: tuple[str, str]) -> tuple[dict[str, Any] | None, Path]:
    import bimact
    from bimact.sim.perturbations import parse_perturbations

    found = bimact.compare(
        options.run_a,
        options.run_b,
        task=options.task,
        rollouts=options.rollouts,
        seed=options.seed,
        sequential=options.sequential,
        execute_steps=options.execute_steps,
        temporal_ensemble=options.temporal_ensemble or None,
        perturb=parse_perturbations(options.perturb) if options.perturb else None,
        image_size=image_size(options.image_size) if options.image_size else None,
        parallel=options.parallel,
        checkpoint=checkpoints,
        device=options.device,
        output=options.output,
    )
    return found.result, found.path


def _on_a_robot(options: argparse.Namespace, checkpoints: tuple[str, str]) -> tuple[dict[str, Any] | None, Path]:
    import bimact
    from bimact.deploy.blind_trials import serve_trials
    from bimact.deploy.server import ServerSettings, api_key
    from bimact.evaluation.trials import Protocol

    policies = {
        name: bimact.load_policy(
            run,
            checkpoint=checkpoint,
            device=options.device,
            execute_steps=options.execute_steps,
            temporal_ensemble=options.temporal_ensemble or None,
        )
        for name, run, checkpoint in zip("AB", (options.run_a, options.run_b), checkpoints)
    }
    path = Path(options.protocol)
    identities = {
        name: {
            "run": str(Path(run).resolve()),
            "checkpoint": policies[name].metadata.checkpoint,
            "weights_sha256": policies[name].weights_sha256,
        }
        for name, run in zip("AB", (options.run_a, options.run_b))
    }
    stages = ["success"] if options.stages is None else [part.strip() for part in options.stages.split(",")]
    protocol = Protocol.open(path, identities, options.trials, stages, sequential=options.sequential)
    settings = ServerSettings(host=options.host, port=options.port, api_key=api_key(options.api_key))
    serve_trials(protocol, policies, settings)
    return protocol.result() if protocol.is_finished else None, path
