"""A policy in this process with the methods of a policy on a server: `bimact_client.ControlLoop` takes either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bimact.deploy.server import served_metadata
from bimact.policy.inference import Policy


class InProcessClient:
    """A loaded policy as the client of a control loop; it answers what a server of it would.

    Args:
        policy: what `bimact.load_policy` returned; the client has an observation history of its own.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy.new_session()
        self.metadata = served_metadata(policy.metadata.as_dict(), policy.weights_sha256)

    def reset(self) -> None:
        """Begin a new episode."""
        self._policy.reset()

    def infer(self, obs: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """The actions from an observation on: `actions` (C, A), or (1, A) if the policy averages chunks itself.

        Args:
            obs: as `Policy.predict_chunk`'s.
            earlier: those of the steps since the last call, oldest first.

        Raises:
            UserError: if the observation is not what the policy was trained on.
        """
        for observation in earlier:
            self._policy.observe(observation)
        if self._policy.metadata.execution.temporal_ensemble:
            return {"actions": self._policy.act(obs)[None]}
        return {"actions": self._policy.predict_chunk(obs)}
