"""`bimact serve`: a policy for robots, over the network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bimact.cli.arguments import Commands
from bimact.errors import UserError
from bimact.files import expand_home

if TYPE_CHECKING:
    from bimact.policy.acting import ActingPolicy


def add(commands: Commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "serve",
        allow_abbrev=False,
        help="serve a policy to robots: bimact-client and openpi-client connect",
        description="Serve a policy by openpi's WebSocket protocol. Without a key only this machine can connect.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", dest="run_dir", type=expand_home, help="the run directory, or a policy")
    source.add_argument("--model", type=expand_home, help="an exported model: PyTorch is not needed")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), help="of --model (default: installed)")
    parser.add_argument("--checkpoint", help="best, last or an epoch (default: best)")
    parser.add_argument("--task", help="of observations without a task or prompt, for a policy with task_conditioning")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    parser.add_argument("--api_key", help="clients have to send it (default: the variable BIMACT_API_KEY)")
    parser.add_argument(
        "--resize",
        choices=("stretch", "pad"),
        help="resize images of another size than in training (default: they are refused)",
    )
    parser.add_argument("--certfile", type=Path, help="certificate for TLS (wss://)")
    parser.add_argument("--keyfile", type=Path, help="its key, if it is not in --certfile")
    parser.add_argument("--max_connections", type=int, default=64, help="maximum number of clients (default: 64)")
    parser.add_argument(
        "--idle_timeout", type=float, default=600.0, help="seconds without an observation (default: 600)"
    )
    parser.add_argument("--metrics", action="store_true", help="print a line of latencies each minute")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, cpu or auto")
    parser.add_argument("--precision", choices=("auto", "no", "bf16", "fp16"), help="(default: the run's)")
    execution = parser.add_mutually_exclusive_group()
    execution.add_argument("--execute_steps", type=int, help="steps of each chunk to execute (default: the run's)")
    execution.add_argument("--temporal_ensemble", action="store_true", help="average chunks over time instead")
    parser.set_defaults(run=_serve)
    return parser


def _serve(options: argparse.Namespace) -> None:
    import asyncio

    from bimact.deploy.server import PolicyServer, Served, ServerSettings, api_key, served_metadata

    key = api_key(options.api_key)
    settings = ServerSettings(
        host=options.host,
        port=options.port,
        api_key=key,
        resize=options.resize,
        certfile=options.certfile,
        keyfile=options.keyfile,
        max_connections=options.max_connections,
        idle_timeout=options.idle_timeout,
        prints_metrics=options.metrics,
        debug=options.debug,
    )
    policy = _policy(options)
    policy.set_task(options.task)
    served = Served(policy.new_session, served_metadata(policy.metadata.as_dict(), policy.weights_sha256))

    def started(server: PolicyServer) -> None:
        metadata, scheme = served.metadata, "ws" if settings.certfile is None else "wss"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        cameras = ", ".join(metadata["cameras"]) or "no camera"
        reach = "with an API key" if key else "without an API key, so from this machine only"
        print(f"Serving {metadata['run']} ({metadata['checkpoint']}) at {scheme}://{host}:{server.port} {reach}")
        print(f"It takes: state ({metadata['state_dim']}), {cameras}. Needs: {metadata['needs']}", flush=True)

    asyncio.run(PolicyServer(served, settings).run(started))
    print("Stopped: all requests were answered")


def _policy(options: argparse.Namespace) -> ActingPolicy:
    executed = {
        "execute_steps": options.execute_steps,
        "temporal_ensemble": options.temporal_ensemble or None,
    }
    if options.model is not None:
        from bimact.deploy.exported import ExportedPolicy

        for name in ("checkpoint", "precision"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} has no effect for --model, which was exported with one")
        return ExportedPolicy.load(Path(options.model), options.runtime, **executed)
    if options.runtime is not None:
        raise UserError("--runtime is for --model: --run is computed by PyTorch")
    import bimact

    return bimact.load_policy(
        options.run_dir,
        checkpoint=options.checkpoint,
        device=options.device,
        precision=options.precision,
        **executed,
    )
