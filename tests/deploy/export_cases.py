"""Exported models: the policy's chunks, its checks and its execution, without PyTorch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset
from serving import running, small_policy

import bimact
from bimact.data.samples import sample_histories
from bimact.deploy import export as exporting
from bimact.deploy.export import export, random_histories
from bimact.deploy.exported import ExportedPolicy
from bimact.deploy.latency import Latency, measure
from bimact.errors import UserError
from bimact.policy.inference import Policy
from bimact.policy.metadata import Execution
from bimact.training.act_trainer import train_run
from bimact.training.prepare import prepare_run

ENCODER = {"name": "conv", "pretrained": None, "freeze": False, "fuse": "tokens", "channels": [8, 8]}
EVERYTHING: dict[str, Any] = {
    "temporal_context": 3,
    "use_vae": True,
    "max_delay": 2,
    "task_conditioning": "id",
    "tasks": ["pour tea"],
    "action_mode": "relative",
    "relative_to": [*range(6), -1, *range(7, 13), -1],
    "encoder": {**ENCODER, "fuse": "gated", "crop": [0.1, 0.2, 0.8, 0.7], "image_size": [12, 12]},
}


def normalized(policy: Policy) -> Policy:
    """With statistics, as a trained one has them."""
    generator = torch.Generator().manual_seed(0)
    network = policy.network
    for normalizer in filter(None, (network.state_normalizer, network.action_normalizer, network.relative_normalizer)):
        normalizer.mean.copy_(torch.randn(normalizer.mean.shape, generator=generator))
        normalizer.std.copy_(torch.rand(normalizer.std.shape, generator=generator) + 0.5)
    return policy


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy with all that is in a graph, in each format."""
    folder = tmp_path_factory.mktemp("models")
    policy = normalized(small_policy(**EVERYTHING))
    return {kind: export(policy, kind, folder / kind) for kind in ("onnx", "openvino", "torch_export")}


def observation(seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    images = {f"image_{camera}": draw.integers(0, 256, (16, 24, 3), dtype=np.uint8) for camera in ("left", "right")}
    return {"state": draw.normal(size=14).astype(np.float32), **images}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "runtime"),
    [("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "openvino"), ("torch_export", "torch")],
)
def test_an_exported_model_acts_as_the_policy(models: dict[str, Path], kind: str, runtime: str) -> None:
    policy = normalized(small_policy(**EVERYTHING))
    exported = ExportedPolicy.load(models[kind], runtime)
    assert exported.metadata == policy.metadata and exported.weights_sha256 == policy.weights_sha256
    for seed in range(4):  # the history grows, and a second episode begins
        if seed == 3:
            policy.reset()
            exported.reset()
        seen = observation(seed)
        seen["given_actions"] = np.ones((seed % 3, 14), np.float32)
        np.testing.assert_allclose(exported.predict_chunk(seen), policy.predict_chunk(seen), atol=2e-5)
    many = {name: np.stack([value, value[::-1]]) for name, value in observation(9).items()}
    for one in (policy, exported):
        one.reset()
    np.testing.assert_allclose(exported.act(many), policy.act(many), atol=2e-5)


@pytest.mark.slow
def test_execution_and_checks_are_the_policys(models: dict[str, Path]) -> None:
    ensembling = ExportedPolicy.load(models["onnx"], temporal_ensemble=True)
    policy = normalized(small_policy(Execution(1, True), **EVERYTHING))
    for seed in range(3):
        np.testing.assert_allclose(ensembling.act(observation(seed)), policy.act(observation(seed)), atol=2e-5)
    one, two = ensembling.new_session(), ensembling.new_session()
    one.act(observation(0))
    assert len(one._history) == 3 and not two._history
    assert ExportedPolicy.load(models["onnx"], execute_steps=2).metadata.execution == Execution(2)
    with pytest.raises(UserError, match="execute_steps is 9, it has to be from 1 to the chunk size, 5"):
        ExportedPolicy.load(models["onnx"], execute_steps=9)
    with pytest.raises(UserError, match="the observation has no 'image_right'"):
        one.act({"state": np.zeros(14), "image_left": np.zeros((16, 24, 3), np.uint8)})
    with pytest.raises(UserError, match="holds NaN or Inf in dimension 0"):
        one.act({**observation(0), "state": np.full(14, np.nan)})


_WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "accelerate"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
from bimact.cli import main
main(["serve", "--model", sys.argv[1], "--port", "0", "--runtime", sys.argv[2]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_model_is_served_without_pytorch(models: dict[str, Path], kind: str) -> None:
    from bimact_client import PolicyClient

    runtime = {"onnx": "onnxruntime", "openvino": "openvino"}[kind]
    command = [sys.executable, "-c", _WITHOUT_TORCH, str(models[kind]), runtime]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().split(":")[-1].split()[0])
        policy = normalized(small_policy(**EVERYTHING))
        with (
            PolicyClient(port=port, timeout=20) as client,
            running(policy) as other,
            PolicyClient(port=other, timeout=20) as reference,
        ):
            assert client.metadata == reference.metadata
            for seed in range(3):
                found, expected = (one.infer(observation(seed))["actions"] for one in (client, reference))
                np.testing.assert_allclose(found, expected, atol=2e-5)
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()


@pytest.mark.slow
def test_a_model_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = ExportedPolicy.load

    def wrong(*arguments: Any, **named: Any) -> ExportedPolicy:
        loaded = load(*arguments, **named)
        run = loaded._run
        loaded._run = lambda histories: run(histories) + np.eye(5, 14)[2] * 1e-4
        return loaded

    monkeypatch.setattr(exporting.ExportedPolicy, "load", wrong)
    with pytest.raises(UserError, match=r"differs from the policy: largest difference 0.0001 .*joint_2"):
        export(small_policy(), "torch_export", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), [("onnx", "int8"), ("onnx", "float16"), ("openvino", "bfloat16")])
def test_lower_precision_says_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, precision: str
) -> None:
    export(small_policy(), kind, tmp_path / "model", precision=precision)
    content = json.loads((tmp_path / "model" / "policy.json").read_text())
    assert content["precision"] == precision and content["parity"]["largest"] < 0.2
    line = r"Compared on 32 random observations \(no dataset was found\): largest difference (\S+) in"
    said = re.match(line, capsys.readouterr().out)
    assert said and float(said[1]) == pytest.approx(content["parity"]["largest"], rel=0.06)


def test_what_cannot_be_exported_or_loaded(tmp_path: Path) -> None:
    policy = small_policy()
    with pytest.raises(UserError, match="--to is 'tflite'"):
        export(policy, "tflite", tmp_path / "model")
    with pytest.raises(UserError, match="--precision of openvino is 'int8', it has to be float32 or bfloat16"):
        export(policy, "openvino", tmp_path / "model", precision="int8")
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="exists: choose another --output"):
        export(policy, "onnx", tmp_path / "taken")
    with pytest.raises(UserError, match=r"is not an exported model: it has no policy\.json"):
        ExportedPolicy.load(tmp_path / "taken")
    (tmp_path / "taken" / "policy.json").write_text("{}")
    with pytest.raises(UserError, match=r"policy\.json is damaged"):
        ExportedPolicy.load(tmp_path / "taken")


@pytest.mark.slow
def test_a_model_that_was_changed_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    for file in models["onnx"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="is not the file that was exported"):
        ExportedPolicy.load(tmp_path)
    with pytest.raises(UserError, match="a model of format onnx runs by onnxruntime or openvino, not by torch"):
        ExportedPolicy.load(models["onnx"], "torch")


@pytest.mark.slow
def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real observations of the run's dataset, in the size in which they were recorded."""
    from bimact.cli import main

    dataset = write_dataset(tmp_path / "dataset", [9, 12, 7], size=(16, 24))
    config = tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), num_epochs=1)
    train_run(prepare_run(config))
    capsys.readouterr()
    arguments = ["--run", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main(["export", *arguments, "--to", "onnx", "--output", str(tmp_path / "model")])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Compared on 28 recorded observations: largest difference ")
    assert lines[-1] == f"Next: bimact serve --model {tmp_path / 'model'}"
    with pytest.raises(SystemExit) as ended:
        main(["latency", *arguments, "--runtimes", "torch", "--predictions", "3", "--json", str(tmp_path / "t.json")])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        main(["export", *arguments, "--to", "lerobot_plugin", "--output", str(tmp_path / "plugin")])
    assert ended.value.code == 0
    assert json.loads((tmp_path / "plugin" / "config.json").read_text())["type"] == "bimact"
    one, two = (bimact.load_policy(tmp_path / name, device="cpu") for name in ("run", "plugin/run"))
    assert one.metadata.interface == two.metadata.interface
    seen = {name: value[0, -1] for name, value in random_histories(one, 1).items()}
    np.testing.assert_array_equal(one.act(seen), two.act(seen))
    table = json.loads((tmp_path / "t.json").read_text())
    assert [row["precision"] for row in table["rows"]] == ["float32", "bfloat16"]
    assert table["observations"] == "recorded observations" and table["rows"][0]["predictions"] == 3


@pytest.mark.gl
@pytest.mark.slow
def test_a_model_of_less_precision_is_compared_in_rollouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bimact.cli import main

    dataset = write_dataset(tmp_path / "dataset", [9, 12], size=(24, 32), cameras=("top",))
    (dataset / "metadata.json").write_text(json.dumps({"fps": 50, "task": "transfer_cube"}))
    config = tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), num_epochs=1, chunk_size=100)
    train_run(prepare_run(config))
    for arguments, compared in (
        (["--to", "onnx"], False),
        (["--to", "onnx", "--precision", "int8", "--rollouts", "2"], True),
        (["--to", "onnx", "--precision", "int8", "--rollouts", "0"], False),
        (["--to", "openvino", "--task", "transfer_cube", "--rollouts", "1"], True),
    ):
        output = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["export", "--run", str(tmp_path / "run"), "--output", str(output), *arguments])
        assert ended.value.code == 0
        out, content = capsys.readouterr().out, json.loads((output / "policy.json").read_text())
        assert ("success" in content) == ("Success in transfer_cube, A: the policy, B: the exported" in out) == compared
        if compared:
            assert content["success"]["scenes"] == int(arguments[-1]) and content["success"]["settings"]["seed"] == 1000
            assert "Not decided after" in out
        ExportedPolicy.load(output)


def test_recorded_histories(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [4, 5], size=(16, 24))
    found = sample_histories(tiny_config(cameras=["left"], temporal_context=3), dataset, count=9)
    records = np.load(dataset / "observations.npy")
    rows = [
        [max(first, row - age) for age in (2, 1, 0)] for first, end in ((0, 4), (4, 9)) for row in range(first, end)
    ]
    np.testing.assert_array_equal(found["state"], records["state"][rows])
    np.testing.assert_array_equal(found["image_left"], records["image_left"][rows])


def test_latency_allows_rates() -> None:
    policy = small_policy()
    found = measure(policy, "torch", "float32", random_histories(policy, 4), predictions=4)
    assert len(found.milliseconds) == 4 and found.memory > 10
    row = Latency("torch", "float32", [10.0] * 99 + [20.0] * 99, 100.0)
    rates = row.rates(small_policy(Execution(3)).metadata)
    assert rates == pytest.approx({"chunk": 50.0, "async": 150.0, "temporal_ensemble": 50.0})
    assert row.median() == 15.0
