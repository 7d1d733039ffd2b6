"""`import bimact` does what the command line does."""

from __future__ import annotations

import doctest
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from foreign_policies import (
    lerobot_config,
    lerobot_weights,
    original_statistics,
    original_weights,
    small_policy,
    statistics_of,
    write_lerobot_with_processors,
    write_original,
)
from foreign_policies import observation as foreign_observation
from guide_files import write_dataset

import bimact
from bimact.cli import main
from bimact.config import Config, load_config, save_config


def config_of(dataset: Path, run: Path, **changes: Any) -> Config:
    return tiny_config(dataset_dir=str(dataset), output_dir=str(run), mixed_precision="no", **changes)


def observation(config: Config) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    assert config.image_size is not None
    images = {
        f"image_{camera}": draw.integers(0, 256, (*config.image_size, 3), np.uint8) for camera in config.cameras or ()
    }
    return {**images, "state": draw.normal(size=config.state_dim or 0)}


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> bimact.Run:
    return bimact.train(config_of(dataset, tmp_path / "run"))


def test_a_training_acts(run: bimact.Run) -> None:
    policy = bimact.load_policy(run, device="cpu")
    policy.reset()
    obs = observation(run.config)
    action, chunk = policy.act(obs), policy.new_session().predict_chunk(obs)
    assert (action.shape, chunk.shape) == ((14,), (5, 14))
    np.testing.assert_array_equal(action, chunk[0])
    metadata = policy.metadata
    assert (metadata.name, metadata.checkpoint, metadata.chunk_size) == ("run", "act-train-best.pth", 5)
    assert metadata.interface.cameras == {"left": (16, 24), "right": (16, 24)}
    assert len(metadata.interface.action_range or ()) == 14
    low, high = np.array(metadata.interface.action_range).T
    assert (low < high).all()
    assert json.loads(json.dumps(metadata.as_dict()))["color_order"] == "rgb"


def test_a_checkpoint_file_or_the_directory_of_checkpoints_will_do(run: bimact.Run) -> None:
    obs = observation(run.config)
    of_run = bimact.load_policy(run.path, checkpoint="last").predict_chunk(obs)
    for path in (run.checkpoints / "act-train-last.pth", str(run.checkpoint("last"))):
        np.testing.assert_array_equal(bimact.load_policy(path).predict_chunk(obs), of_run)
    assert bimact.load_policy(run.checkpoints, checkpoint=1).metadata.checkpoint == "act-train-1.pth"
    with pytest.raises(bimact.UserError, match="is a checkpoint already"):
        bimact.load_policy(run.checkpoint("last"), checkpoint="best")
    with pytest.raises(bimact.UserError, match="has no checkpoint '7'; it has: best, last, 1, 2"):
        bimact.load_policy(run, checkpoint=7)
    with pytest.raises(bimact.UserError, match="precision is 'half'"):
        bimact.load_policy(run, precision="half")


@pytest.mark.slow
def test_policies_of_lerobot_and_of_the_original_act_act(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `convert-checkpoint` writes, without writing it."""
    network = small_policy(("top",), nheads=8)
    write_lerobot_with_processors(
        tmp_path / "lerobot", lerobot_weights(network), lerobot_config(network), statistics_of(network)
    )
    write_original(tmp_path / "original", original_weights(network), original_statistics())
    obs = {name: value[0, 0].numpy() for name, value in foreign_observation(network).items()}
    height, width = network.config.image_size or (0, 0)
    options = {"lerobot": [], "original": ["--cameras", "top", "--image_size", f"{height}x{width}"]}
    keywords: dict[str, Any] = {"lerobot": {}, "original": {"cameras": ["top"], "image_size": (height, width)}}
    for name in options:
        with pytest.raises(SystemExit) as end:
            main(["convert-checkpoint", str(tmp_path / name), str(tmp_path / f"{name}-run"), *options[name]])
        assert end.value.code == 0
        run = bimact.load_policy(tmp_path / f"{name}-run", precision="no")
        policy = bimact.load_policy(tmp_path / name, precision="no", **keywords[name])
        np.testing.assert_array_equal(policy.predict_chunk(obs), run.predict_chunk(obs))
        assert policy.metadata.name == name and policy.metadata.chunk_size == network.config.chunk_size
    with pytest.raises(bimact.UserError, match="do not name their cameras"):
        bimact.load_policy(tmp_path / "original")
    with pytest.raises(bimact.UserError, match="is a run, which knows its cameras"):
        bimact.load_policy(tmp_path / "lerobot-run", cameras=["top"])
    with pytest.raises(bimact.UserError, match="is not a run directory, so checkpoint 'best' does not apply"):
        bimact.load_policy(tmp_path / "lerobot", checkpoint="best")


@pytest.mark.slow
def test_training_in_python_is_that_of_the_command_line(dataset: Path, tmp_path: Path) -> None:
    save_config(tiny_config(dropout=0.2, mixed_precision="no"), tmp_path / "c.yaml")
    bimact.train(tmp_path / "c.yaml", dataset_dir=dataset, output_dir=tmp_path / "python", num_epochs=1)
    resumed = bimact.train(resume_from=tmp_path / "python", num_epochs=2)
    with pytest.raises(SystemExit) as end:
        options = ["--config", str(tmp_path / "c.yaml"), "--dataset_dir", str(dataset), "--output_dir"]
        main(["train", *options, str(tmp_path / "shell"), "--num_epochs", "2"])
    assert end.value.code == 0
    python, shell = (torch.load(tmp_path / name / "checkpoint" / "act-train-last.pth") for name in ("python", "shell"))
    assert all(torch.equal(python[name], shell[name]) for name in python)
    assert resumed.path == tmp_path / "python" and len(resumed.metrics()) > 4
    settings = [vars(load_config(tmp_path / name / "config.yaml")) for name in ("python", "shell")]
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} == {"output_dir"}


def test_settings_of_the_encoder_and_of_shipped_configs(dataset: Path, tmp_path: Path) -> None:
    from bimact.training.prepare import request

    config = request("demo", {"batch_size": 4, "encoder": {"channels": [8]}, "encoder.crop": None}).config
    assert (config.batch_size, config.encoder.channels, config.encoder.crop) == (4, [8], None)
    assert (config.encoder.name, config.chunk_size) == ("conv", 100)
    for name in ("policy_act", "configs/policy_act.yaml", "policy_act.yaml", None):
        assert request(name).config == load_config(Path(bimact.__file__).parent / "configs" / "policy_act.yaml")
    with pytest.raises(bimact.UserError, match=r"config file not found: .*/other \(bimact comes with demo, policy_act"):
        bimact.train("other")
    with pytest.raises(bimact.UserError, match="no setting named 'batchsize'; did you mean 'batch_size'"):
        bimact.train("demo", batchsize=3)


def test_a_training_that_lacks_its_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACT_DATASET_DIR", raising=False)
    with pytest.raises(bimact.UserError, match="needs --dataset_dir"):
        bimact.train("demo")


def test_datasets_open_as_arrays(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = bimact.open_dataset(dataset, cameras=["left"], max_episodes=2)
    assert (list(episodes.images), episodes.lengths.tolist()) == (["left"], [9, 12])
    assert episodes.actions[episodes.rows_of(1)].shape == (12, 14)
    assert "Cameras:  left 16x24" in capsys.readouterr().out
    with pytest.raises(TypeError, match="no argument 'batch_size'"):
        bimact.open_dataset(dataset, batch_size=3)


def test_evaluation_on_demonstrations(run: bimact.Run) -> None:
    result = bimact.evaluate(run)
    assert result.offline is not None and result.rollouts is None
    assert json.loads(result.path.read_text())["offline"]["mae"] == result.offline["mae"]
    with pytest.raises(ValueError, match="pass task="):
        _ = result.success_rate
    with pytest.raises(
        bimact.UserError, match=r"^execute_steps, video: of rollouts in the simulation, give a task too$"
    ):
        bimact.evaluate(run, execute_steps=5, videos=1)


@pytest.mark.slow
@pytest.mark.gl
def test_rollouts_in_python_take_the_runs_temporal_ensembling(tmp_path: Path) -> None:
    """A caller that says nothing of it must not lose it."""
    dataset = write_dataset(tmp_path / "data", [9, 12], cameras=("top",))
    run = bimact.train(
        config_of(dataset, tmp_path / "run", cameras=["top"], num_steps=1, chunk_size=100, temporal_ensemble=True)
    )
    result = bimact.evaluate(run, task="transfer_cube", rollouts=1)
    assert result.rollouts is not None and result.success_rate == 0
    assert (result.rollouts["settings"]["temporal_ensemble"], result.rollouts["execute_steps"]) == (True, 1)


def test_comparison(run: bimact.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from bimact.evaluation import compare

    asked: list[Any] = []

    def stand_in(a: Any, b: Any, settings: Any, *, sequential: bool) -> dict[str, Any]:
        asked.append((a.checkpoint.name, b.checkpoint.name, settings.task, settings.perturb, sequential))
        return compare.comparison([4, 4, 0], [4, 2, 0], ["a", "b", "c", "d"], sequential=sequential)

    monkeypatch.setattr(compare, "compare_rollouts", stand_in)
    found = bimact.compare(run, run.path, task="insertion", checkpoint=("best", "last"), perturb={"light": 0.5})
    assert asked == [("act-train-best.pth", "act-train-last.pth", "insertion", {"light": 0.5}, False)]
    assert found.path == run.path / "comparisons" / f"{run.path.name}-insertion.json"
    assert found.better is None and found.difference == pytest.approx(1 / 3)
    assert json.loads(found.path.read_text())["p_value"] == 1
    with pytest.raises(bimact.UserError, match="does not say of which task it is"):
        bimact.compare(run, run)


def test_the_import_is_lazy() -> None:
    code = "import sys, bimact; print([name for name in ('torch', 'numpy', 'omegaconf') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
    assert set(bimact.__all__) <= set(dir(bimact))
    with pytest.raises(AttributeError, match="no attribute 'trainn'"):
        _ = bimact.trainn  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["load_policy", "open_dataset", "train", "evaluate", "compare", "push", "push_dataset"]
)
def test_docstrings_name_every_argument_and_have_an_example(name: str) -> None:
    function = getattr(bimact, name)
    text = inspect.getdoc(function) or ""
    for argument, parameter in inspect.signature(function).parameters.items():
        assert f"    {argument}: " in text, argument
        assert parameter.annotation is not inspect.Parameter.empty
    assert doctest.DocTestParser().get_examples(text)


@pytest.mark.slow
@pytest.mark.gl
def test_examples_of_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small policy, small data and few rollouts under the names that they use."""
    from bimact import api

    monkeypatch.chdir(tmp_path)
    write_dataset(Path("data/cube"), [9, 12], cameras=("top",))
    save_config(tiny_config(cameras=["top"], num_steps=2), "demo.yaml")
    smaller = {'"demo"': '"demo.yaml"', "rollouts=100": "rollouts=1"}
    lines = ["import bimact, numpy as np", "image, state = np.zeros((16, 24, 3), np.uint8), np.zeros(14)"]
    for function in (api.train, api.load_policy, api.open_dataset, api.evaluate):
        for example in doctest.DocTestParser().get_examples(function.__doc__ or ""):
            source = example.source
            for given, here in smaller.items():
                source = source.replace(given, here)
            lines.append(source)
    # A program needs no `if __name__ == "__main__"`, though rollouts start processes.
    Path("program.py").write_text("\n".join([*lines, 'print("shape", action.shape)']))
    done = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True)
    assert done.returncode == 0 and "shape (14,)" in done.stdout, done.stderr
    assert bimact.Run(Path("runs/cube")).metrics()[-1]["step"] == 2
    assert json.loads(Path("runs/cube/evaluation.json").read_text())["rollouts"]["transfer_cube"]["rollouts"] == 1
