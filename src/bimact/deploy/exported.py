"""Exported models that act: onnxruntime or OpenVINO, without PyTorch.

A directory holds the model and `policy.json`, which says what the policy takes and returns. Letters: N environments, T
observations, C chunk_size, A action_dim.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bimact.errors import UserError, in_words
from bimact.files import sha256_of
from bimact.machine import usable_cores
from bimact.policy.acting import TASK, ActingPolicy
from bimact.policy.metadata import Execution, Interface, PolicyMetadata

METADATA = "policy.json"
FORMATS = ("onnx", "openvino", "torch_export")
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torch_export": "model.pt2"}
PRECISIONS = {
    "onnx": ("float32", "float16", "int8"),
    "openvino": ("float32", "bfloat16", "float16"),
    "torch_export": ("float32",),
}
RUNTIMES = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",), "torch_export": ("torch",)}

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]


class ExportedPolicy(ActingPolicy):
    """An exported model that acts (see `ActingPolicy`).

    Args:
        metadata: what the policy takes and returns.
        run: from whole histories, `state` (N, T, S) and `image_<camera>` (N, T, H, W, 3), to chunks (N, C, A).
        weights_sha256: of the weights that were exported.
        runtime: by which package.
    """

    def __init__(self, metadata: PolicyMetadata, run: Run, weights_sha256: str, runtime: str) -> None:
        super().__init__(metadata)
        self._run, self._weights_sha256, self.runtime = run, weights_sha256, runtime

    @classmethod
    def load(
        cls,
        folder: Path,
        runtime: str | None = None,
        *,
        execute_steps: int | None = None,
        temporal_ensemble: bool | None = None,
        threads: int | None = None,
    ) -> ExportedPolicy:
        """Load what `bimact export` wrote.

        Args:
            folder: with `policy.json`.
            runtime: `onnxruntime` or `openvino`; None: the first that the format knows and that is installed.
            execute_steps: actions of each chunk to execute; None: as exported.
            temporal_ensemble: predict at each step and average; None: as exported.
            threads: of the runtime; None: the cores that this process may use.

        Raises:
            UserError: if there is no exported model, it was changed, or no runtime for it is installed.
        """
        path = folder / METADATA
        try:
            content = json.loads(path.read_text())
            kind, precision, digest = content["format"], content["precision"], content["file_sha256"]
            metadata = _metadata(content["policy"], execute_steps, temporal_ensemble)
            weights = str(content["weights_sha256"])
            file = folder / FILES[kind]
        except OSError:
            raise UserError(f"{folder.resolve()} is not an exported model: it has no {METADATA}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): export the policy again") from error
        if not file.is_file() or sha256_of(file) != digest:
            raise UserError(f"{file} is missing or is not the file that was exported: export the policy again")
        if runtime is None:
            runtime = next((name for name in RUNTIMES[kind] if find_spec(name) is not None), RUNTIMES[kind][0])
        if runtime not in RUNTIMES[kind]:
            raise UserError(f"a model of format {kind} runs by {' or '.join(RUNTIMES[kind])}, not by {runtime}")
        runtime_missing(runtime)
        names = inputs_of(metadata)
        try:
            run = _RUNNERS[runtime](file, names, precision, threads or usable_cores())
        except Exception as error:  # each runtime has its own
            raise UserError(f"{file} cannot be loaded by {runtime}: {in_words(error)}") from error
        return cls(metadata, run, weights, runtime)

    @property
    def weights_sha256(self) -> str:
        return self._weights_sha256

    def chunks(self, histories: Mapping[str, np.ndarray], new: int) -> np.ndarray:
        """As `ActingPolicy.chunks`; all images of a history go through the model each time."""
        metadata = self.metadata
        if metadata.max_delay and "given_steps" not in histories:
            count = len(histories["state"])
            none = np.zeros((count, metadata.max_delay, metadata.action_dim), np.float32)
            histories = {**histories, "given_actions": none, "given_steps": np.zeros(count, np.int64)}
        return np.asarray(self._run(self._told(histories)), dtype=np.float32)


def inputs_of(metadata: PolicyMetadata) -> list[str]:
    """Names of a model's inputs, in their order."""
    given = ["given_actions", "given_steps"] if metadata.max_delay else []
    task = [] if metadata.interface.tasks is None else [TASK]
    return ["state", *given, *(f"image_{camera}" for camera in metadata.interface.cameras), *task]


def runtime_missing(package: str) -> None:
    """See that a package is installed.

    Raises:
        UserError: saying how to install it.
    """
    if find_spec(package) is None:
        raise UserError(f"{package} is not installed: pip install {package} (or bimact's extra `export`)")


def _metadata(content: Any, execute_steps: int | None, temporal_ensemble: bool | None) -> PolicyMetadata:
    interface = content.pop("interface")
    execution = Execution(**content.pop("execution"))
    chunk_size = int(content["chunk_size"])
    if execute_steps is not None:
        if not 1 <= execute_steps <= chunk_size:
            raise UserError(f"execute_steps is {execute_steps}, it has to be from 1 to the chunk size, {chunk_size}")
        execution = Execution(execute_steps)
    elif temporal_ensemble:
        execution = Execution(1, True, execution.ensemble_window, execution.ensemble_coefficient)
    return PolicyMetadata(**content, interface=Interface.of_dict(interface), execution=execution)


def _onnxruntime(file: Path, names: list[str], precision: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    available = onnxruntime.get_available_providers()
    wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    session = onnxruntime.InferenceSession(str(file), options, providers=wanted)
    return lambda histories: session.run(None, {name: np.ascontiguousarray(histories[name]) for name in names})[0]


def _openvino(file: Path, names: list[str], precision: str, threads: int) -> Run:
    import openvino

    hint = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[precision]
    model = openvino.Core().compile_model(
        str(file), "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    )
    return lambda histories: model({name: np.ascontiguousarray(histories[name]) for name in names})[0]


def _torch(file: Path, names: list[str], precision: str, threads: int) -> Run:
    import torch

    module: Any = torch.export.load(file).module()

    def run(histories: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            chunk: np.ndarray = module(*(torch.from_numpy(np.array(histories[name])) for name in names)).numpy()
        return chunk

    return run


_RUNNERS: dict[str, Callable[[Path, list[str], str, int], Run]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torch": _torch,
}
