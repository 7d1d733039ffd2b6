"""Blind trials through the policy server: the right policy answers, its name does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bimact_client import PolicyClient, ServerError
from serving import small_policy

from bimact.deploy.blind_trials import serve_trials
from bimact.deploy.server import ServerSettings
from bimact.errors import UserError
from bimact.evaluation.trials import Protocol
from bimact.policy.metadata import Execution


def protocol_of(path: Path, pairs: int) -> Protocol:
    policies = {name: {"run": f"run-{name}", "checkpoint": "best", "weights_sha256": name} for name in "AB"}
    return Protocol.open(path / "trials.json", policies, pairs, ["success"], sequential=False)


def test_each_trial_is_answered_by_its_policy(tmp_path: Path) -> None:
    policies = {"A": small_policy(), "B": small_policy(Execution(3), hidden_dim=32)}
    protocol = protocol_of(tmp_path, pairs=3)
    images = {f"image_{name}": np.full((16, 24, 3), 100, np.uint8) for name in ("left", "right")}
    observation = {**images, "state": np.linspace(-1, 1, 14, dtype=np.float32)}
    expected = {name: policy.new_session().predict_chunk(observation) for name, policy in policies.items()}
    assert not np.allclose(expected["A"], expected["B"])
    said: list[str] = []
    earlier: list[PolicyClient] = []

    def ask(_: str) -> str:
        port = int(said[0].split(":")[-2].split()[0]) if said[0].startswith("Serving") else 0
        if earlier:
            with pytest.raises(ServerError, match="the trial of this connection is over"):
                earlier.pop().infer(observation)
        client = PolicyClient("127.0.0.1", port)
        assert "run-" not in str(client.metadata) and client.metadata["weights_sha256"] == "blind trial"
        name = protocol.policy_of(len(protocol.marks))
        np.testing.assert_allclose(client.infer(observation)["actions"], expected[name], atol=1e-5)
        earlier.append(client)
        return "s" if name == "A" else "f"

    serve_trials(protocol, policies, ServerSettings(port=0), ask, said.append)
    assert protocol.result()["stages"][0]["pairs"]["only_a"] == 3


def test_policies_of_two_robots_are_refused(tmp_path: Path) -> None:
    policies = {"A": small_policy(), "B": small_policy(cameras=["left"])}
    with pytest.raises(UserError, match="not for the same robot: cameras"):
        serve_trials(protocol_of(tmp_path, 1), policies, ServerSettings(port=0), lambda _: "q")
