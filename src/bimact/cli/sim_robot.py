"""`bimact sim-robot`: a simulated robot in real time, driven by a policy server."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from bimact.cli.arguments import Commands
from bimact.errors import UserError
from bimact.files import expand_home


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "sim-robot",
        allow_abbrev=False,
        help="drive a simulated robot in real time by a policy server",
        description="Simulate a robot in real time, in a process of its own, and drive it through bimact-client, "
        "as a real robot is driven: by a policy server, or by a run's policy in this process.",
    )
    parser.add_argument("--task", required=True, help="transfer_cube, insertion, or a task of another package")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--server", default="127.0.0.1:8000", metavar="HOST:PORT", help="(default: 127.0.0.1:8000)")
    source.add_argument(
        "--run", dest="run_dir", type=expand_home, help="a run's policy in this process, without a server"
    )
    parser.add_argument("--device", default="auto", help="of --run: cuda, cuda:1, mps, cpu or auto")
    parser.add_argument("--api_key", help="of the server (default: the variable BIMACT_API_KEY)")
    parser.add_argument("--timeout", type=float, default=5.0, help="of an answer, in seconds (default: 5)")
    parser.add_argument("--hz", type=float, help="actions per second (default: as in training)")
    parser.add_argument(
        "--execution", choices=("chunk", "async", "temporal_ensemble"), help="(default: as the run's config says)"
    )
    parser.add_argument("--execute_steps", type=int, help="actions of a chunk until the next one is requested")
    parser.add_argument("--blend", choices=("latest", "linear", "ensemble"), help="of async (default: linear)")
    parser.add_argument("--delay_ms", type=float, default=0.0, help="added to each answer (default: 0)")
    parser.add_argument(
        "--simulated_clock",
        action="store_true",
        help="do not wait for the wall clock: step as fast as the machine can, with answers that come after exactly "
        "--delay_ms",
    )
    parser.add_argument(
        "--prompt", help="what a policy with task_conditioning is told (default: the task's name, or its only task)"
    )
    parser.add_argument("--rollouts", type=int, default=1, help="(default: 1)")
    parser.add_argument("--seed", type=int, default=1000, help="of the first rollout's scene (default: 1000)")
    parser.add_argument("--stop_after", type=float, default=2.0, help="seconds without a fresh action (default: 2)")
    parser.add_argument("--record", type=expand_home, help="directory for a dataset of what happened")
    parser.set_defaults(run=_sim_robot)
    return parser


def _sim_robot(options: argparse.Namespace) -> None:
    try:
        from bimact_client import Execution, Safety
    except ImportError as error:
        raise UserError(
            "bimact-client is not installed: pip install ./packages/bimact-client in the project's root"
        ) from error
    from bimact.deploy.sim_robot import drive

    host, colon, port = options.server.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise UserError(f"--server is '{options.server}', it has to be HOST:PORT such as 192.168.0.2:8000")
    if options.rollouts < 1:
        raise UserError(f"--rollouts is {options.rollouts}, it has to be at least 1")
    if options.hz is not None and not options.hz > 0:
        raise UserError(f"--hz is {options.hz:g}, it has to be above 0")
    given = {name: getattr(options, name) for name in ("execute_steps", "blend") if getattr(options, name) is not None}
    with _client(options, host.strip("[]"), int(port)) as client:
        try:
            execution = replace(Execution.of(options.execution, client.metadata), **given)
        except ValueError as error:
            raise UserError(str(error)) from error
        if options.blend and execution.mode != "async":
            raise UserError(f"--blend is of --execution async, not of {execution.mode}")
        drive(
            client,
            options.task,
            hz=options.hz,
            execution=execution,
            safety=Safety(stop_after=options.stop_after),
            rollouts=options.rollouts,
            seed=options.seed,
            delay=options.delay_ms / 1000,
            record=options.record,
            prompt=options.prompt,
            real_time=not options.simulated_clock,
        )


def _client(options: argparse.Namespace, host: str, port: int) -> AbstractContextManager[Any]:
    if options.run_dir is None:
        from bimact_client import PolicyClient, ServerError

        try:
            return PolicyClient(host, port, options.api_key, options.timeout)
        except ServerError as error:
            raise UserError(str(error)) from error
    import torch

    import bimact
    from bimact.deploy.in_process import InProcessClient
    from bimact.machine import usable_cores

    torch.set_num_threads(max(usable_cores() - 1, 1))  # leaves a core for the loop and the simulation
    return nullcontext(InProcessClient(bimact.load_policy(options.run_dir, device=options.device)))
