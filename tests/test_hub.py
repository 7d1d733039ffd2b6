"""Uploads to a hub on this machine, and what comes back: policies that act alike, cards, no path and no token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import tiny_config
from guide_files import write_dataset
from hub_server import TOKEN, HubServer, Repository
from huggingface_hub import constants
from safetensors import safe_open

import bimact
from bimact import hub
from bimact.cli import main
from bimact.errors import UserError
from bimact.evaluation.model_card import _paths_in, _public
from bimact.evaluation.results import add_results
from bimact.interop.lerobot_reader import read_lerobot
from bimact.video import VideoWriter

NAME = "someone/cups-act"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub, for this process; its owner is logged in, and works in a folder of her own."""
    server = HubServer({})
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield server
    server.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    dataset = write_dataset(folder / "dataset", [9, 12, 7, 10])
    lerobots = {"name": "pri3d", "model_name": "resnet18", "pretrained": None, "freeze": False, "fuse": "tokens"}
    config = tiny_config(
        dataset_dir=str(dataset),
        output_dir=str(folder / "run"),
        temporal_context=1,
        cameras=["left"],
        encoder=lerobots,
        num_epochs=1,
        cache_dir=str(folder / "cache"),
        wandb_name="secret-name",
    )
    run = bimact.train(config)
    bimact.evaluate(run)
    videos = run.path / "videos"
    videos.mkdir()
    with VideoWriter(videos / "transfer_cube-seed-1001.mp4", 25) as video:
        video.add(np.zeros((16, 16, 3), np.uint8))
    each = [
        {"seed": 1000 + number, "highest_reward": reward, "final_reward": reward, "video": None}
        for number, reward in enumerate((2, 4, 4, 4))
    ]
    each[1]["video"] = "videos/transfer_cube-seed-1001.mp4"
    rollouts = {
        "checkpoint": "act-train-best.pth",
        "settings": {"temporal_ensemble": False},
        "execute_steps": 5,
        "rollouts": 4,
        "successes": 3,
        "success_rate": 0.75,
        "interval_95": [0.301, 0.954],
        "reward_reached": {"1": 4, "2": 4, "3": 3, "4": 3},
        "each": each,
    }
    add_results(run.path, {"rollouts": {"transfer_cube": rollouts}})
    return run.path


def command(*arguments: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == status


def observation(policy: Any) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    images = {
        f"image_{camera}": draw.integers(0, 255, (16, 24, 3), np.uint8) for camera in policy.metadata.interface.cameras
    }
    return {**images, "state": draw.normal(size=policy.metadata.state_dim).astype(np.float32)}


def header_of(card: bytes) -> dict[str, Any]:
    return dict(yaml.safe_load(card.decode().split("---\n")[1]))


@pytest.mark.slow
def test_a_pushed_policy_acts_as_the_run_does(
    server: HubServer, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("push", str(trained), NAME, "--license", "apache-2.0")
    said = capsys.readouterr().out
    pushed = server.repositories["model", NAME]
    assert pushed.private and f"{NAME} is a new private policy" in said
    assert pushed.messages == ["Upload by bimact"]
    for name in pushed.files:
        assert f"  {name} (" in said.partition("is a new private")[0]  # before anything was sent
    assert f"Next: bimact serve --run {NAME}" in said

    text = b"\n".join(content for name, content in pushed.files.items() if not name.endswith((".mp4", ".png")))
    for secret in (str(trained), str(trained.parent), str(Path.home()) + "/", TOKEN, "secret-name", "bimact-tests"):
        assert secret.encode() not in text
    with safe_open(_written(tmp_path, pushed.files["checkpoint/act-train-best.safetensors"]), "pt") as weights:
        assert "action_normalizer.mean" in weights.keys()  # noqa: SIM118

    policy, ours = bimact.load_policy(NAME, device="cpu"), bimact.load_policy(trained, device="cpu")
    assert policy.metadata.name == NAME
    seen = observation(ours)
    np.testing.assert_array_equal(policy.predict_chunk(seen), ours.predict_chunk(seen))
    assert not any(request.endswith(".mp4") for request in server.requests)
    assert policy.metadata.interface == ours.metadata.interface

    for name in ("config.json", "model.safetensors"):  # as LeRobot's commands take it
        assert name in pushed.files
    (snapshot,) = (tmp_path / "hf").glob("models--*/snapshots/*")
    theirs = read_lerobot(snapshot).policy
    assert theirs.config.chunk_size == ours.config.chunk_size

    before = sorted(path.name for path in snapshot.iterdir())
    evaluation = bimact.evaluate(NAME, dataset_dir=trained.parent / "dataset", device="cpu")
    assert evaluation.path == Path("evaluations") / NAME / "evaluation.json"
    assert sorted(path.name for path in snapshot.iterdir()) == before  # the cache is as it was

    server.close()
    capsys.readouterr()
    assert bimact.load_policy(NAME, device="cpu").metadata.name == NAME
    assert "the copy of" in capsys.readouterr().out


def _written(folder: Path, content: bytes) -> str:
    path = folder / "written.safetensors"
    path.write_bytes(content)
    return str(path)


@pytest.mark.slow
def test_the_model_card(server: HubServer, trained: Path) -> None:
    command("push", str(trained), NAME, "--license", "apache-2.0", "--public")
    pushed = server.repositories["model", NAME]
    assert not pushed.private
    card, header = pushed.files["README.md"].decode(), header_of(pushed.files["README.md"])
    assert {"robotics", "act", "bimact", "lerobot"} <= set(header["tags"])
    assert (header["library_name"], header["license"]) == ("bimact", "apache-2.0")
    (result,) = header["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 75.0
    assert "**75.0%** (3 of 4) | 30.1% to 95.4%" in card and "held by left 3" in card
    assert f'src="{server.url}/{NAME}/resolve/main/videos/transfer_cube-seed-1001.mp4"' in card
    assert "videos/transfer_cube-seed-1001.mp4" in pushed.files
    assert pushed.files["training_curves.png"].startswith(b"\x89PNG")
    assert f'bimact.load_policy("{NAME}")' in card and f"--policy.path={NAME}" in card
    assert "| demonstrations | 4 episodes, 38 steps |" in card
    evaluation = json.loads(pushed.files["evaluation.json"])
    assert evaluation["offline"]["dataset"] == "dataset" and "trajectory" not in evaluation["offline"]


@pytest.mark.slow
def test_a_second_push_replaces_the_files_of_the_first(
    server: HubServer, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {"videos/old.mp4": b"", "config.json": b"{}", "notes.txt": b"mine"}
    server.repositories["model", NAME] = Repository(dict(old), private=True)
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("temporal_context: 1", "temporal_context: 2"))
    (run / "evaluation.json").unlink()
    with pytest.raises(UserError, match="does not fit"):  # a network with another history
        bimact.push(run, NAME)
    (run / "config.yaml").write_text(config.replace("  image_size: null", "  image_size: [8, 8]"))
    bimact.push(run, NAME, public=True)
    said = capsys.readouterr().out
    pushed = server.repositories["model", NAME]
    assert pushed.private and "exists and stays private" in said
    assert "videos/old.mp4 of an earlier upload is deleted" in said and "config.json of an earlier" in said
    assert "notes.txt" in pushed.files and "videos/old.mp4" not in pushed.files and "config.json" not in pushed.files
    assert (
        "LeRobot's files are left out: this policy cannot become one of LeRobot: encoder.image_size is [8, 8]" in said
    )
    assert "no evaluation is there" in said and "Not measured." in pushed.files["README.md"].decode()


def test_a_trial_sends_nothing(server: HubServer, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("push", str(trained), NAME, "--dry_run")
    said = capsys.readouterr().out
    assert "Would upload" in said and "## Success" in said
    assert not server.requests


@pytest.mark.slow
def test_training_begins_with_a_policy_of_the_hub(
    server: HubServer, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bimact.push(trained, NAME)
    run = bimact.train(resume_from=NAME, dataset_dir=str(trained.parent / "dataset"), output_dir="fine", num_workers=0)
    assert run.path == Path("fine") and run.checkpoint("last").exists()
    said = capsys.readouterr().out
    assert "has no training state next to it: only its weights are taken" in said
    assert (run.config.chunk_size, run.config.encoder.name) == (5, "pri3d")


def test_secrets_are_refused(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def upload(content: bytes, name: str = "a.json") -> None:
        hub.Upload(hub.POLICY, NAME, {name: content}, secrets=("/mnt/lab/runs/cups",)).send(message="m")

    for content in (b'"/mnt/lab/runs/cups"', b'"/mnt/lab/runs/cups/videos/x.mp4"', f"{Path.home()}/x".encode()):
        with pytest.raises(UserError, match=r"a\.json has a path of this machine, /"):
            upload(content)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    for secret in (TOKEN, "0123456789abcdef"):
        with pytest.raises(UserError, match=r"a\.safetensors has a token of yours in it"):
            upload(b"x" + secret.encode(), "a.safetensors")
    assert not server.requests
    upload(b'"/mnt/lab/runs/cups-2", "/home"')
    assert server.repositories["model", NAME].files


@pytest.mark.parametrize("name", ["cups", "a/b/c", "a/b@v1", "../cups", "a/"])
def test_names_that_the_hub_cannot_have(name: str) -> None:
    with pytest.raises(UserError, match="is no name on the Hugging Face hub: give USER/NAME"):
        hub.Upload(hub.POLICY, name, {})


def test_hubs_that_refuse(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = hub.Upload(hub.POLICY, "else/cups", {"a.txt": b"a"})
    with pytest.raises(UserError, match="refuses to write to else/cups .* log in by `hf auth login`"):
        upload.send(message="m")
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    with pytest.raises(UserError, match=r"refuses to write to someone/cups \(401\)"):
        hub.Upload(hub.POLICY, "someone/cups", {"a.txt": b"a"}).send(message="m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to upload"):
        upload.send(message="m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.close()
    with pytest.raises(UserError, match="cannot upload to else/cups .*: connect to the internet"):
        upload.send(message="m")


def test_policies_that_are_not_on_the_hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"neither a folder .*/nobody/nothing nor a policy nobody/nothing on the"):
        bimact.load_policy("nobody/nothing")
    with pytest.raises(UserError, match="names no policy on the Hugging Face hub"):
        bimact.load_policy("hf://nothing")
    Path("runs").mkdir()
    seen = len(server.requests)
    with pytest.raises(UserError, match=r"runs/cups does not exist"):  # a slip of the keyboard, and no name
        bimact.load_policy("runs/cups")
    assert len(server.requests) == seen
    assert hub.policy_name("hf://runs/cups@v2") == ("runs/cups", "v2")
    assert hub.policy_name("runs/cups.pth") is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no complete copy of someone/cups, which HF_HUB_OFFLINE forbids"):
        bimact.load_policy("someone/cups")


def test_a_dataset_and_its_card(server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_dataset(tmp_path / "demos", [9, 12])
    (dataset / ".bimact_cache").mkdir()
    (dataset / ".bimact_cache" / "x").write_text("x")
    (dataset / ".hidden").write_text("x")
    command("push-dataset", str(dataset), "someone/demos", "--license", "cc-by-4.0")
    said = capsys.readouterr().out
    pushed = server.repositories["dataset", "someone/demos"]
    assert pushed.private and "1 hidden file or folder left out" in said
    assert set(pushed.files) == {path.name for path in dataset.iterdir() if path.name[0] != "."} | {"README.md"}
    assert pushed.files["actions.npy"] == (dataset / "actions.npy").read_bytes()
    card, header = pushed.files["README.md"].decode(), header_of(pushed.files["README.md"])
    assert header["license"] == "cc-by-4.0" and {"robotics", "bimact"} <= set(header["tags"])
    assert "| episodes | 2 |" in card and "kinds of faults" in card and "**" in card
    episodes = bimact.open_dataset("someone/demos")
    assert episodes.lengths.tolist() == [9, 12]

    (dataset / "README.md").write_text("mine")
    bimact.push_dataset(dataset, "someone/demos")
    pushed = server.repositories["dataset", "someone/demos"]
    assert pushed.files["README.md"] == b"mine" and b"kinds of faults" in pushed.files["check.md"]


def test_datasets_that_are_not_pushed(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the folder or file of a dataset on this machine"):
        bimact.push_dataset(tmp_path / "nothing", "someone/demos")
    dataset = write_dataset(tmp_path / "demos", [9, 12])
    (dataset / "link").symlink_to(dataset / "actions.npy")
    with pytest.raises(UserError, match="has a link, link"):
        bimact.push_dataset(dataset, "someone/demos")
    (dataset / "link").unlink()
    (dataset / "metadata.json").write_text(json.dumps({"fps": 50, "from": str(dataset)}))
    with pytest.raises(UserError, match=r"metadata\.json has a path of this machine"):
        bimact.push_dataset(dataset, "someone/demos")
    (dataset / "actions.npy").write_bytes((dataset / "actions.npy").read_bytes()[:300])
    with pytest.raises(UserError, match="cannot be read as a whole"):
        bimact.push_dataset(dataset, "someone/demos")
    assert not server.requests


def test_paths_of_several_datasets_are_not_uploaded() -> None:
    config = tiny_config(datasets=[{"path": "/home/me/cube", "sample_weights": "/home/me/w.csv"}, {"path": "peg"}])
    assert _public(config).datasets is None
    assert {"/home/me/cube", "/home/me/w.csv"} <= set(_paths_in(config))
