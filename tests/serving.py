"""A small policy, and a server of it in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from conftest import tiny_config

from bimact.deploy.server import PolicyServer, Served, ServerSettings, served_metadata
from bimact.policy.act import ActPolicy
from bimact.policy.inference import Policy
from bimact.policy.metadata import Execution, Interface

NAMES = tuple(f"joint_{number}" for number in range(14))


def small_policy(execution: Execution | None = None, **changes: Any) -> Policy:
    settings = {"cameras": ["left", "right"], "state_dim": 14, "action_dim": 14, "temporal_context": 1}
    torch.manual_seed(0)
    network = ActPolicy(tiny_config(**{**settings, **changes})).eval()
    interface = Interface(
        dict.fromkeys(network.cameras, (16, 24)),
        NAMES,
        NAMES,
        control_frequency=50.0,
        state_range=((-1.0, 1.0),) * 14,
        action_range=((-2.0, 2.0),) * 14,
        task="cups",
    )
    return Policy(network, execution, interface, name="small", checkpoint="act-train-best.pth")


@contextmanager
def running(policy: Policy, settings: ServerSettings | None = None) -> Iterator[int]:
    """Yields the server's port; the server stops as it does after SIGTERM."""
    with running_server(policy, settings) as server:
        yield server.port


@contextmanager
def running_server(policy: Policy, settings: ServerSettings | None = None) -> Iterator[PolicyServer]:
    served = Served(policy.new_session, served_metadata(policy.metadata.as_dict(), policy.weights_sha256))
    ready: list[tuple[PolicyServer, asyncio.AbstractEventLoop]] = []
    listening, failures = threading.Event(), []

    async def serve() -> None:
        server = PolicyServer(served, settings or ServerSettings(port=0))

        def started(server: PolicyServer) -> None:
            ready.append((server, asyncio.get_running_loop()))
            listening.set()

        await server.run(started, handles_signals=False)

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failures.append(error)
            listening.set()

    thread = threading.Thread(target=work)
    thread.start()
    listening.wait(30)
    if failures:
        raise failures[0]
    server, loop = ready[0]
    try:
        yield server
    finally:
        with suppress(RuntimeError):  # it has stopped already
            loop.call_soon_threadsafe(server.stop)
        thread.join(30)
        assert not thread.is_alive() and not failures
