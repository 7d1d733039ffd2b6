"""What serving costs: a served chunk against one in this process; exported models against PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import Figure, Row, ratios

from bimact.config import Config, load_config, save_config, to_config
from bimact.configs import find_config
from bimact.policy.act import ActPolicy
from bimact.policy.inference import Policy
from bimact.policy.metadata import Interface
from bimact.run_directory import Run, recorded
from bimact.training.checkpoint import save_checkpoint

ROUNDS, SIZE, CAMERAS = 60, (480, 640), ("top", "left_wrist")


def _config(name: str, **changes: object) -> Config:
    settings = dataclasses.asdict(load_config(find_config(name)))
    settings |= {"state_dim": 14, "action_dim": 14, "cameras": list(CAMERAS), "image_size": list(SIZE), **changes}
    settings["encoder"]["pretrained"] = None
    return to_config(settings)


def _observation(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    images = {f"image_{camera}": draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for camera in CAMERAS}
    return {"state": draw.normal(size=14).astype(np.float32), **images}


def overhead() -> Row:
    """The time of a request beyond that of its inference, over the loopback interface."""
    from bimact_client import PolicyClient

    config = _config("demo")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        network = ActPolicy(config)
        save_config(recorded(config), run.config_path)
        Interface.of_config(config).write(run.interface_path)
        save_checkpoint(run, "best", network.state_dict(), {})
        command = [sys.executable, "-m", "bimact", "serve", "--run", folder, "--port", "0", "--device", "cpu"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline().split(":")[-1].split()[0])
            beyond, whole = [], []
            with PolicyClient(port=port, timeout=60) as client:
                for number in range(ROUNDS + 5):
                    observation = _observation(number % 8)
                    began = time.perf_counter()
                    reply = client.infer(observation)
                    milliseconds = 1000 * (time.perf_counter() - began)
                    whole.append(milliseconds)
                    beyond.append(milliseconds - reply["server_timing"]["infer_ms"])
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()
    return Row(
        "a served chunk beyond its inference, in ms: two 480×640 cameras, over the loopback interface",
        Figure.of(beyond[5:]),
        "≤ 3",
        [f"the whole request: {Figure.of(whole[5:])} ms"],
    )


def exported() -> Row:
    """A chunk of the guide's policy for one robot: onnxruntime and OpenVINO against PyTorch, all in float32."""
    from bimact.deploy.export import export
    from bimact.deploy.exported import ExportedPolicy

    torch.manual_seed(0)
    policy = Policy(ActPolicy(_config("policy_act")).eval())
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        # Two observations to compare with: 32 of them would take minutes.
        histories = {name: np.stack([np.stack([value] * 3)] * 2) for name, value in _observation(0).items()}
        place = export(policy, "onnx", Path(folder) / "model", histories)
        sides = {
            "torch": policy,
            "onnxruntime": ExportedPolicy.load(place, "onnxruntime"),
            "openvino": ExportedPolicy.load(place, "openvino"),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(8):
            for name, side in sides.items():
                side.reset()  # so that PyTorch encodes the whole history, too
                observation = _observation(number)
                began = time.perf_counter()
                side.predict_chunk(observation)
                if number:
                    times[name].append(1000 * (time.perf_counter() - began))
    best = min(("onnxruntime", "openvino"), key=lambda name: np.median(times[name]))
    return Row(
        "a chunk of the guide's policy from three observations, float32: the better exported model / PyTorch",
        ratios(times[best], times["torch"]),
        "≤ 0.7",
        [f"{name}: {Figure.of(values)} ms" for name, values in times.items()],
    )
