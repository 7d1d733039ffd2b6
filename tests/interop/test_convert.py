"""`bimact convert-checkpoint`: runs that evaluate and train on, whole folders or none, sentences for faults."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_policies import (
    SIZE,
    beside_an_optimizer,
    chunk_of,
    lerobot_config,
    lerobot_weights,
    observation,
    original_statistics,
    original_weights,
    small_policy,
    statistics_of,
    write_lerobot_with_processors,
    write_original,
    write_pointer,
    write_shards,
)
from guide_files import write_dataset
from safetensors.torch import load_file, save_file

from bimact.cli import main
from bimact.config import load_config, save_config
from bimact.interop.lerobot_reader import read_lerobot
from bimact.policy.loading import load_run
from bimact.run_directory import recorded


def bimact(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert bimact("convert-checkpoint", *arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("convert-checkpoint: ") and message.count("\n") == 1
    return message


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = small_policy(("left", "right"))
    config = lerobot_config(policy, n_action_steps=3)
    folder = tmp_path_factory.mktemp("lerobot")
    return write_lerobot_with_processors(folder, lerobot_weights(policy), config, statistics_of(policy))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = original_weights(small_policy(("top",)))
    return write_original(tmp_path_factory.mktemp("original") / "act", weights, original_statistics())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, lerobot: Path) -> Path:
    target = tmp_path_factory.mktemp("converted") / "run"
    assert bimact("convert-checkpoint", lerobot, target) == 0
    return target


def test_a_run_of_a_lerobot_policy(
    tmp_path: Path, lerobot: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bimact("convert-checkpoint", lerobot, "runs/new") == 0
    assert capsys.readouterr().out == (
        f"From: {lerobot} (LeRobot policy in the layout of late 2025)\n"
        "To: runs/new\n"
        "Cameras: left, right, 40x64\n"
        "State and action: 6 and 4 numbers\n"
        "Chunk: 7 steps, of which 3 are executed\n"
        "Network: resnet18, width 32, 2 encoder and 1 decoder layers\n"
        "Parameters: 11,226,878\n"
        "\n"
        "Next: bimact evaluate --run runs/new --dataset_dir /path/to/your/dataset\n"
    )
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    weights = [f"runs/new/checkpoint/act-train-{name}.pth" for name in ("best", "last")]
    assert files == [*weights, "runs/new/config.yaml"]
    loaded = load_run("runs/new", device="cpu")
    assert loaded.config.output_dir == "runs/new"
    obs = observation(loaded.network)
    torch.testing.assert_close(chunk_of(loaded.network, obs), chunk_of(read_lerobot(lerobot).policy, obs))
    assert (tmp_path / "runs" / "new").stat().st_mode & 0o777 == (tmp_path / "runs").stat().st_mode & 0o777


def write_fitting_dataset(folder: Path) -> Path:
    write_dataset(folder, [9, 12, 7, 10], size=SIZE, dim=6)
    np.save(folder / "actions.npy", np.load(folder / "actions.npy")[:, :4])
    return folder


@pytest.mark.slow
def test_a_converted_run_is_evaluated_and_trained_on(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_fitting_dataset(tmp_path / "dataset")
    evaluated = tmp_path / "evaluated"
    evaluated.symlink_to(run)
    assert bimact("evaluate", "--run", evaluated, "--dataset_dir", dataset, "--device", "cpu") == 0
    assert "Mean Absolute Error" in capsys.readouterr().out
    settings = ("--dataset_dir", dataset, "--output_dir", tmp_path / "trained", "--num_epochs=1", "--device=cpu")
    before = load_run(run, device="cpu").network.state_dict()
    assert bimact("train", "--resume_from", run, *settings, "--num_workers=0", "--override_config") == 0
    assert "only its weights are taken" in capsys.readouterr().out
    after = load_run(tmp_path / "trained", device="cpu").network.state_dict()
    change = (after["action_head.weight"] - before["action_head.weight"]).abs().max()
    assert 0 < change < 0.01
    assert torch.equal(after["action_normalizer.mean"], before["action_normalizer.mean"])


def test_there_and_back(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bimact("convert-checkpoint", run, tmp_path / "back") == 0
    assert f"as --policy.path={tmp_path / 'back'}" in capsys.readouterr().out
    policy = load_run(run, device="cpu").network
    obs = observation(policy)
    torch.testing.assert_close(chunk_of(read_lerobot(tmp_path / "back").policy, obs), chunk_of(policy, obs))


@pytest.mark.slow
def test_the_original_act_becomes_either(tmp_path: Path, original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--cameras", "top", "--nheads", "4", "--image_size", "40x64")
    assert bimact("convert-checkpoint", original, tmp_path / "run", *options) == 0
    assert "Note: 6 of 7 decoder layers are left out" in capsys.readouterr().out
    assert bimact("convert-checkpoint", original / "policy_best.ckpt", tmp_path / "l", *options, "--to=lerobot") == 0
    policy = load_run(tmp_path / "run", device="cpu").network
    obs = observation(policy)
    torch.testing.assert_close(chunk_of(read_lerobot(tmp_path / "l").policy, obs), chunk_of(policy, obs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("policy_best.ckpt", "nets"),
        ("policy_step_10.ckpt", "module"),
        ("policy_last.ckpt", "model_state_dict"),
        ("policy.safetensors", "module"),
    ],
)
def test_checkpoints_of_forks(
    tmp_path: Path, original: Path, capsys: pytest.CaptureFixture[str], name: str, form: str
) -> None:
    """The weights lie deeper and have longer names; of a folder one is chosen, and a file is taken as it is."""
    weights = torch.load(original / "policy_best.ckpt")
    content = {f"module.{key}": value for key, value in weights.items()}
    fork = tmp_path / "fork"
    shutil.copytree(original, fork)
    (fork / "policy_best.ckpt").unlink()
    (fork / "policy_step_9.ckpt").write_bytes(b"older")
    (fork / "config.json").write_text('{"lr": 1e-5}')  # a fork's own settings
    if name.endswith(".safetensors"):
        save_file(content if form == "module" else weights, fork / name)
    else:
        torch.save(content if form == "module" else beside_an_optimizer(form, content), fork / name)
    source = fork if name.endswith(".ckpt") else fork / name
    options = ("--cameras", "top", "--nheads", "4", "--image_size", "40x64")
    assert bimact("convert-checkpoint", source, tmp_path / "run", *options) == 0
    note = f"Note: {name} is taken of 2 checkpoints: it "
    assert (note in capsys.readouterr().out) == (source == fork)
    assert bimact("convert-checkpoint", original, tmp_path / "plain", *options) == 0
    found, expected = (load_run(tmp_path / run, device="cpu").network.state_dict() for run in ("run", "plain"))
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.slow
def test_files_of_a_lerobot_policy(tmp_path: Path, lerobot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights are taken as they are named, with the settings beside them."""
    policy = Path(shutil.copytree(lerobot, tmp_path / "policy"))
    weights = load_file(policy / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, policy / "model-ema.safetensors")
    write_shards(policy, weights)
    names = ("model.safetensors", "model-ema.safetensors", "model.safetensors.index.json", "config.json")
    for number, name in enumerate(names):
        assert bimact("convert-checkpoint", policy / name, tmp_path / f"run-{number}") == 0
    assert "Note" not in capsys.readouterr().out
    heads = [load_run(tmp_path / f"run-{n}", device="cpu").network.state_dict()["action_head.bias"] for n in range(4)]
    assert torch.equal(heads[0], heads[2]) and torch.equal(heads[0], heads[3])
    torch.testing.assert_close(heads[1], heads[0] + 1)

    (policy / "model.safetensors").rename(tmp_path / "alone.safetensors")
    assert "its settings are missing: put its config.json next to it" in fails(
        capsys, tmp_path / "alone.safetensors", tmp_path / "new"
    )
    assert "model-00001-of-00002.safetensors is one of 2 files that belong together: give their index" in fails(
        capsys, policy / "model-00001-of-00002.safetensors", tmp_path / "new"
    )


def test_a_training_of_lerobot_without_its_last_link(
    tmp_path: Path, lerobot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in ("000100", "000200"):
        shutil.copytree(lerobot, tmp_path / "training" / "checkpoints" / step / "pretrained_model")
    assert bimact("convert-checkpoint", tmp_path / "training", tmp_path / "run") == 0
    assert "Note: the checkpoint 000200 is taken, the highest of 2; give" in capsys.readouterr().out


@pytest.mark.slow
def test_a_runs_own_weights_may_be_saved_in_other_ways(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copytree(run, tmp_path / "run"))
    best = mine / "checkpoint" / "act-train-best.pth"
    weights = {f"module.{name}": value for name, value in torch.load(best).items()}
    best.unlink()
    torch.save(beside_an_optimizer("model_state_dict", weights), best)
    dataset = write_fitting_dataset(tmp_path / "dataset")
    assert bimact("evaluate", "--run", mine, "--dataset_dir", dataset, "--device", "cpu") == 0
    last = mine / "checkpoint" / "act-train-last.pth"
    torch.save(original_weights(small_policy(("top",))), last.with_name("act-train-3.pth"))
    capsys.readouterr()
    assert bimact("evaluate", "--run", mine, "--checkpoint=3", "--dataset_dir", dataset, "--device", "cpu") == 2
    assert "act-train-3.pth holds a policy of the original ACT, not of bimact: make a run of it by `bimact" in (
        capsys.readouterr().err
    )


# What cannot be ------------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path: Path, lerobot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "nowhere").symlink_to("gone")
    for name in ("empty", "nowhere"):
        assert "exists already: choose a free name" in fails(capsys, lerobot, tmp_path / name)
    assert not list((tmp_path / "empty").iterdir()) and (tmp_path / "nowhere").is_symlink()


def test_a_folder_appears_whole_or_not_at_all(
    tmp_path: Path, run: Path, lerobot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in fails(capsys, lerobot, tmp_path / "file" / "run")

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, limit[1]))  # a disk that is full after 10 MB
    try:
        for source in (lerobot, run):
            message = fails(capsys, source, tmp_path / "new")
            assert f"cannot write {tmp_path / 'new'}: File too large" in message
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_options_without_a_meaning_are_refused(
    tmp_path: Path, run: Path, lerobot: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new"
    assert "is a run of bimact already" in fails(capsys, run, target, "--to", "bimact")
    assert "is a run of bimact, to which --cameras does not apply: leave it out" in fails(
        capsys, run, target, "--cameras", "a,b"
    )
    assert "to which --stats and --nheads do not apply: leave them out" in fails(
        capsys, lerobot, target, "--stats=a", "--nheads=4"
    )
    assert "is the original ACT, to which --checkpoint does not apply" in fails(
        capsys, original, target, "--checkpoint=3"
    )
    assert "has no checkpoint '3'; it has: best, last" in fails(capsys, run, target, "--checkpoint", "3")
    assert "height x width" in fails(capsys, original, target, "--image_size", "40")
    assert not target.exists()


def test_a_run_that_lerobot_has_no_place_for(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wider = small_policy(("left",), temporal_context=2)
    save_config(recorded(wider.config), tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "checkpoint").mkdir()
    torch.save(wider.state_dict(), tmp_path / "run" / "checkpoint" / "act-train-best.pth")
    assert "temporal_context is 2, not 1" in fails(capsys, tmp_path / "run", tmp_path / "new")
    assert load_config(run / "config.yaml").temporal_context == 1


def test_what_is_no_policy(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path / 'none'} does not exist" in fails(capsys, tmp_path / "none", tmp_path / "new")
    assert "has no policy that bimact knows" in fails(capsys, tmp_path, tmp_path / "new")
    (tmp_path / "text").write_text("text")
    assert "not a file of weights" in fails(capsys, tmp_path / "text", tmp_path / "new")
    weights = run / "checkpoint" / "act-train-best.pth"
    assert "is a checkpoint of bimact: give the folder of its run" in fails(capsys, weights, tmp_path / "new")
    of_run = fails(capsys, weights.parent, tmp_path / "new", "--to", "bimact")
    assert f"{weights.parent} is a run of bimact already" in of_run
    torch.save({"nets": {"policy.noise_pred_net.x": torch.ones(1)}}, tmp_path / "policy_best.ckpt")
    for source in (tmp_path, tmp_path / "policy_best.ckpt"):
        assert "as those of a diffusion policy" in fails(capsys, source, tmp_path / "new")
    write_pointer(tmp_path / "policy_best.ckpt")
    for source in (tmp_path, tmp_path / "policy_best.ckpt"):
        message = fails(capsys, source, tmp_path / "new", "--cameras", "top")
        assert "policy_best.ckpt is a git-lfs pointer" in message and "git lfs pull" in message


def test_help_is_quick() -> None:
    code = "import sys; sys.argv = ['bimact', 'convert-checkpoint', '--help']; from bimact.cli import main\n"
    code += "try: main()\nexcept SystemExit: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and "usage: bimact convert-checkpoint" in result.stdout, result.stderr
