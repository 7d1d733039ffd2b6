"""Serves two policies to a robot in the order of a protocol of trials, without telling which one acts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bimact.deploy.server import PolicyServer, Served, ServerSettings, served_metadata
from bimact.errors import UserError
from bimact.evaluation.trials import Protocol, run_trials
from bimact.policy.acting import ActingPolicy

_SAME = ("state_dim", "action_dim", "cameras", "control_hz", "state_names", "action_names")


class _TrialSession:
    """A policy's session that ends with its trial: a connection of an earlier trial cannot act on."""

    def __init__(self, policy: ActingPolicy, is_over: Callable[[], bool]) -> None:
        self._policy, self._is_over = policy.new_session(), is_over

    def _acting(self) -> ActingPolicy:
        if self._is_over():
            raise UserError("the trial of this connection is over: connect again for the next one")
        return self._policy

    def reset(self) -> None:
        self._acting().reset()

    def observe(self, observation: Mapping[str, Any]) -> None:
        self._acting().observe(observation)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        return self._acting().act(observation)

    def predict_chunk(self, observation: Mapping[str, Any]) -> np.ndarray:
        return self._acting().predict_chunk(observation)


def serve_trials(
    protocol: Protocol,
    policies: Mapping[str, ActingPolicy],
    settings: ServerSettings,
    ask: Callable[[str], str] = input,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the policy of each trial while it runs, and take the marks.

    Args:
        protocol: of the trials.
        policies: `A` and `B`.
        settings: of the server.
        ask: as `run_trials` takes it.
        say: likewise.

    Raises:
        UserError: if the policies are not for the same robot, or the address cannot be listened at.
    """
    blind = {}
    for name, policy in policies.items():
        metadata = served_metadata(policy.metadata.as_dict(), policy.weights_sha256)
        hidden = {"run": "blind trial", "checkpoint": "blind trial", "weights_sha256": "blind trial"}
        blind[name] = {**metadata, **hidden}
    for key in _SAME:
        if blind["A"][key] != blind["B"][key]:
            raise UserError(
                f"the policies are not for the same robot: {key} is {blind['A'][key]} of A and {blind['B'][key]} of B"
            )
    attempt = 0  # a trial may be repeated

    def served(trial: int) -> Served:
        name, own = protocol.policy_of(trial), attempt
        return Served(lambda: _TrialSession(policies[name], lambda: attempt != own), blind[name])

    server = PolicyServer(served(0), settings)
    listening = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    failures: list[Exception] = []

    def started(_: PolicyServer) -> None:
        loops.append(asyncio.get_running_loop())
        listening.set()

    def run() -> None:
        try:
            asyncio.run(server.run(started, handles_signals=False))
        except Exception as error:
            failures.append(error)
            listening.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    listening.wait()
    if failures:
        raise failures[0]
    say(f"Serving at ws://{settings.host}:{server.port}: start the robot's program anew for each trial.")

    def begin(trial: int) -> None:
        nonlocal attempt
        attempt += 1
        server.policy = served(trial)

    try:
        run_trials(protocol, begin, ask, say)
    finally:
        loops[0].call_soon_threadsafe(server.stop)
        thread.join()
