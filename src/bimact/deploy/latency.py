"""How long a policy takes for a chunk: by PyTorch and by exported models, and which control rates that allows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bimact.machine import peak_memory
from bimact.policy.acting import ActingPolicy
from bimact.policy.metadata import PolicyMetadata


@dataclass(frozen=True)
class Latency:
    """Of one chunk for one robot.

    Attributes:
        runtime: such as `torch` or `onnxruntime`.
        precision: of matrix products.
        milliseconds: of each prediction.
        memory: largest resident memory of the process so far, in MB.
    """

    runtime: str
    precision: str
    milliseconds: list[float]
    memory: float

    def median(self) -> float:
        return float(np.median(self.milliseconds))

    def p99(self) -> float:
        return float(np.percentile(self.milliseconds, 99))

    def rates(self, metadata: PolicyMetadata) -> dict[str, float]:
        """Control rates (Hz) that the 99th percentile allows.

        - `chunk`: the robot waits for each chunk, within one control step;
        - `async`: the next chunk is predicted while the present one runs;
        - `temporal_ensemble`: a chunk at each step.
        """
        seconds = self.p99() / 1000
        execution = metadata.execution
        steps = metadata.chunk_size if execution.temporal_ensemble else execution.execute_steps
        return {"chunk": 1 / seconds, "async": steps / seconds, "temporal_ensemble": 1 / seconds}

    def as_dict(self, metadata: PolicyMetadata) -> dict[str, Any]:
        """For JSON."""
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "median_ms": self.median(),
            "p99_ms": self.p99(),
            "memory_mb": self.memory,
            "predictions": len(self.milliseconds),
            "hz": self.rates(metadata),
        }


def measure(
    policy: ActingPolicy, runtime: str, precision: str, histories: Mapping[str, np.ndarray], predictions: int = 50
) -> Latency:
    """Time chunks for one robot that sees one new image per camera each time.

    Args:
        policy: what predicts.
        histories: `state` (N, T, S) and `image_<camera>` (N, T, H, W, 3): recorded observations, taken in turn.
        predictions: how many, after five that do not count.
    """
    policy.reset()
    count = len(histories["state"])
    times = []
    for number in range(predictions + 5):
        one = {name: np.ascontiguousarray(values[number % count][None]) for name, values in histories.items()}
        began = time.perf_counter()
        policy.chunks(one, 1)
        times.append(1000 * (time.perf_counter() - began))
    return Latency(runtime, precision, times[5:], peak_memory() / 1e6)
