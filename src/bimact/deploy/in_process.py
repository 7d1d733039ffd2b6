"""A policy in this process with the methods of a policy on a server: `bimact_client.ControlLoop` takes either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bimact.policy.inference import Policy, PolicyMetadata

PROTOCOL_VERSION = 1


def wire_metadata(metadata: PolicyMetadata) -> dict[str, Any]:
    """What a policy server says of its policy, in msgpack's types (docs/deployment.md lists it)."""
    interface, execution = metadata.interface, metadata.execution

    def ranges(of: tuple[tuple[float, float], ...] | None) -> dict[str, list[float]] | None:
        return None if of is None else {"low": [low for low, _ in of], "high": [high for _, high in of]}

    def names(of: tuple[str, ...] | None) -> list[str] | None:
        return None if of is None else list(of)

    return {
        "protocol_version": PROTOCOL_VERSION,
        "run": metadata.name,
        "checkpoint": metadata.checkpoint,
        "action_names": names(interface.action_names),
        "state_names": names(interface.state_names),
        "control_hz": interface.control_frequency,
        "cameras": {
            camera: {
                "height": None if size is None else size[0],
                "width": None if size is None else size[1],
                "color_order": metadata.color_order,
            }
            for camera, size in interface.cameras.items()
        },
        "chunk_size": metadata.chunk_size,
        "temporal_context": metadata.temporal_context,
        "history": True,
        "execution": {
            "mode": "temporal_ensemble" if execution.temporal_ensemble else "chunk",
            "execute_steps": execution.execute_steps,
            "ensemble_coefficient": execution.ensemble_coefficient,
            "ensemble_window": execution.ensemble_window,
        },
        "action_ranges": ranges(interface.action_range),
        "state_ranges": ranges(interface.state_range),
        "task": interface.task,
    }


class InProcessClient:
    """A loaded policy as the client of a control loop.

    Args:
        policy: what `bimact.load_policy` returned; its observation history is a new one.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy.new_session()
        self.metadata = wire_metadata(policy.metadata)

    def reset(self) -> None:
        """Begin a new episode."""
        self._policy.reset()

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """`actions` (C, A) from an observation on: `Policy.predict_chunk`.

        Args:
            obs: as the policy's; `history` may list those of the steps since the last call, oldest first.

        Raises:
            UserError: if the observation is not what the policy was trained on.
        """
        for earlier in obs.get("history", ()):
            self._policy.observe(earlier)
        return {"actions": self._policy.predict_chunk(obs)}
