"""Exported models: a policy as one graph for onnxruntime, OpenVINO or `torch.export`, checked when it is written.

In go uint8 images and states in the robot's units, out come actions in the robot's units: crop, resize, normalisation
and its inverse are in the graph. Letters: N environments, T observations, C chunk_size, A action_dim, S state_dim.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bimact.deploy.exported import (
    FILES,
    FORMATS,
    METADATA,
    PRECISIONS,
    RUNTIMES,
    ExportedPolicy,
    inputs_of,
    runtime_missing,
)
from bimact.errors import UserError, in_words
from bimact.files import atomic_folder, sha256_of, write_json
from bimact.policy.act import ActPolicy
from bimact.policy.acting import TASK
from bimact.policy.inference import Policy
from bimact.policy.metadata import PolicyMetadata

TOLERANCE = 1e-5  # of float32, in units of the action's range where that is more than 1
_SAMPLES = 32

Histories = Mapping[str, np.ndarray]  # `state` (N, T, S) and `image_<camera>` (N, T, H, W, 3)


class Graph(nn.Module):
    """What is exported: state (N, T, S) float32 and an image (N, T, H, W, 3) uint8 per camera → (N, C, A) float32.

    With `max_delay` the given actions (N, P, A) float32 and their number (N,) int64 stand after the state; with
    `task_conditioning` the task's number (N,) int64 is the last one.
    """

    def __init__(self, network: ActPolicy, sizes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).float().eval().requires_grad_(False)
        if network.cameras:
            # Runtimes disagree about antialiased resizing; as products of matrices it is the same in all.
            self.network.image_encoder.resizers = {
                size: _resizer(*self.network.image_encoder.crop_box(*size)[2:], self.network.image_encoder.image_size)
                for size in set(sizes.values())
            }

    def forward(self, state: Tensor, *others: Tensor) -> Tensor:
        obs = {"state": state}
        if self.network.config.max_delay:
            obs["given_actions"], obs["given_steps"], *others = others  # type: ignore[assignment]
        if self.network.config.tasks is not None:
            *others, obs[TASK] = others  # type: ignore[assignment]
        obs |= {f"image_{name}": image.permute(0, 1, 4, 2, 3) for name, image in zip(self.network.cameras, others)}
        chunk: Tensor = self.network(obs)[0]
        return chunk


def _resizer(height: int, width: int, size: tuple[int, int] | None) -> tuple[Tensor, Tensor] | None:
    """Matrices (h, H) and (w, W) that resize rows and columns as antialiased bilinear interpolation does."""
    if size is None or size == (height, width):
        return None

    def matrix(length: int, wanted: int) -> Tensor:
        eye = torch.eye(length)[None, None]
        return F.interpolate(eye, (wanted, length), mode="bilinear", antialias=True)[0, 0]

    return matrix(height, size[0]), matrix(width, size[1])


def export(
    policy: Policy,
    to: str,
    output: Path,
    histories: Histories | None = None,
    *,
    precision: str = "float32",
    say: Callable[[str], None] = print,
) -> Path:
    """Write an exported model, and compare it with the policy.

    Args:
        policy: computing in float32.
        to: `onnx`, `openvino` or `torch_export`.
        output: the directory to write, which must not exist.
        histories: recorded observations to compare with; None: random ones.
        precision: `float32`; of onnx `float16` or `int8` (weights); of openvino `bfloat16` (on CPUs) or `float16`.
        say: takes lines on what was found.

    Returns:
        the directory.

    Raises:
        UserError: if a package is missing, or the model cannot be exported or is not as exact as it has to be.
    """
    if to not in FORMATS:
        raise UserError(f"--to is '{to}', it has to be {', '.join(FORMATS)}, lerobot or lerobot_plugin")
    if precision not in PRECISIONS[to]:
        raise UserError(f"--precision of {to} is '{precision}', it has to be {' or '.join(PRECISIONS[to])}")
    for package in {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}.get(
        to, ()
    ):
        runtime_missing(package)
    if output.exists():
        raise UserError(f"{output} exists: choose another --output")
    metadata = policy.metadata
    sizes: dict[str, tuple[int, int]] = {}
    for camera, size in metadata.interface.cameras.items():
        if size is None:
            raise UserError(
                f"the size of camera '{camera}' is not known: a run says it in interface.json; for a policy of other "
                "software give --image_size, as 480x640"
            )
        sizes[camera] = size
    source = "recorded observations" if histories is not None else "random observations (no dataset was found)"
    histories = histories if histories is not None else random_histories(policy)
    if metadata.max_delay:
        histories = {**histories, **_random_given(metadata, len(histories["state"]))}
    if metadata.interface.tasks is not None:
        numbers = np.arange(len(histories["state"]), dtype=np.int64) % len(metadata.interface.tasks)
        histories = {**histories, TASK: numbers}
    expected = _in_pieces(lambda part: _fresh(policy).chunks(part, metadata.temporal_context), histories)
    graph = Graph(policy.network, sizes)
    names = inputs_of(metadata)
    example = tuple(torch.from_numpy(np.ascontiguousarray(histories[name][:2])) for name in names)
    with atomic_folder(output) as folder:
        file = folder / FILES[to]
        with _quiet(), torch.no_grad():
            try:
                batch = torch.export.Dim("N", min=1, max=1024)
                shapes = ({0: batch}, tuple({0: batch} for _ in example[1:]))
                program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
                if to == "torch_export":
                    torch.export.save(program, file)
                else:
                    onnx_file = folder / FILES["onnx"]
                    _write_onnx(program, names, onnx_file)
                    if to == "openvino":
                        _write_openvino(onnx_file, file, compressed=precision == "float16")
                    elif precision != "float32":
                        _compress_onnx(onnx_file, precision)
            except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
                raise UserError(f"the policy cannot be exported to {to}: {in_words(error)}") from error
        content: dict[str, Any] = {
            "format": to,
            "precision": precision,
            "weights_sha256": policy.weights_sha256,
            "file_sha256": sha256_of(file),
            "policy": asdict(metadata),
        }
        write_json(folder / METADATA, content)
        exported = ExportedPolicy.load(folder)
        with _quiet():
            found = _in_pieces(lambda part: _fresh(exported).chunks(part, metadata.temporal_context), histories)
        parity = content["parity"] = _compared(policy, expected, found, source)
        write_json(folder / METADATA, content)
        difference = (
            f"largest difference {parity['largest']:.2g} in the robot's units (dimension {parity['dimension']}, step "
            f"{parity['step']} of the chunk), mean {parity['mean']:.2g}"
        )
        say(f"Compared on {len(expected)} {source}: {difference}")
        if precision == "float32" and not parity["relative"] <= TOLERANCE:
            raise UserError(
                f"the exported model differs from the policy: {difference}; {TOLERANCE:g} of the action's range is "
                "allowed. Nothing was written"
            )
    return output


def random_histories(policy: Policy, count: int = _SAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise images, and states from the range of the training data."""
    draw, metadata = np.random.default_rng(seed), policy.metadata
    context = metadata.temporal_context
    ranges = metadata.interface.state_range or ((-1.0, 1.0),) * metadata.state_dim
    low, high = np.array(ranges).T
    states = draw.uniform(low, high, (count, context, metadata.state_dim))
    found: dict[str, np.ndarray] = {"state": states.astype(np.float32)}
    for camera, size in metadata.interface.cameras.items():
        assert size is not None
        found[f"image_{camera}"] = draw.integers(0, 256, (count, context, *size, 3), dtype=np.uint8)
    return found


def _random_given(metadata: PolicyMetadata, count: int) -> dict[str, np.ndarray]:
    """From no given action to `max_delay` of them, from the range of the training data."""
    draw = np.random.default_rng(0)
    low, high = np.array(metadata.interface.action_range or ((-1.0, 1.0),) * metadata.action_dim).T
    given = draw.uniform(low, high, (count, metadata.max_delay, metadata.action_dim)).astype(np.float32)
    return {"given_actions": given, "given_steps": np.arange(count, dtype=np.int64) % (metadata.max_delay + 1)}


def _fresh(policy: Any) -> Any:
    policy.reset()
    return policy


def _in_pieces(predict: Callable[[Histories], np.ndarray], histories: Histories) -> np.ndarray:
    """Chunks of a few histories at a time, the last of them alone: batches of two sizes."""
    count = len(histories["state"])
    cuts = [*range(0, count - 1, 4), count - 1, count]
    parts = [{name: values[a:b] for name, values in histories.items()} for a, b in pairwise(cuts) if b > a]
    return np.concatenate([predict(part) for part in parts])


def _compared(policy: Policy, expected: np.ndarray, found: np.ndarray, source: str) -> dict[str, Any]:
    """The largest difference, where it is, and that in units of the action's range."""
    error = np.abs(found - expected)
    _, step, place = np.unravel_index(error.argmax(), error.shape)
    ranges = policy.metadata.interface.action_range
    scale = np.ones(error.shape[-1])
    if ranges is not None:
        scale = np.maximum(1.0, [high - low for low, high in ranges])
    names = policy.metadata.interface.action_names
    return {
        "observations": source,
        "count": len(expected),
        "largest": float(error.max()),
        "mean": float(error.mean()),
        "relative": float((error / scale).max()),
        "dimension": str(place) if names is None else names[place],
        "step": int(step) + 1,
    }


def _write_onnx(program: Any, names: list[str], file: Path) -> None:
    model = torch.onnx.export(
        program, input_names=names, output_names=["actions"], dynamo=True, optimize=True, verbose=False
    )
    assert model is not None
    model.save(file)


def _write_openvino(onnx_file: Path, file: Path, *, compressed: bool) -> None:
    import openvino

    model = openvino.convert_model(onnx_file)
    openvino.save_model(model, file, compress_to_fp16=compressed)
    for left in onnx_file.parent.glob(f"{onnx_file.name}*"):
        left.unlink()


def _compress_onnx(file: Path, precision: str) -> None:
    import onnx

    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantized = file.with_suffix(".int8.onnx")
        # Of matrix products; convolutions with int8 weights have no kernel in onnxruntime's CPU build. Weights have 7
        # bits: on a CPU without VNNI (AVX2) two products of 8 bits overflow the 16 bits in which they are added.
        quantize_dynamic(
            file,
            quantized,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            reduce_range=True,
        )
        quantized.replace(file)
        return
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(file), keep_io_types=True), file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say to their own developers."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


assert set(RUNTIMES) == set(FORMATS)
