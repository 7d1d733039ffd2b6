"""Policies that are told their task, by its number or by CLIP's embedding of its text: in training and in acting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset
from serving import small_policy

import bimact
from bimact.deploy.in_process import InProcessClient
from bimact.deploy.server import Served, _Episode, served_metadata
from bimact.encoder.clip_text import embed_texts
from bimact.errors import UserError
from bimact.evaluation.offline import evaluate_offline
from bimact.evaluation.rollout import prompt_for
from bimact.policy.act import ActPolicy, Observation
from bimact.policy.loading import load_run
from bimact.training.act_trainer import train_run
from bimact.training.prepare import prepare_run

TASKS = ["pour tea", "stir"]
BLIND: dict[str, Any] = {"cameras": [], "state_dim": 3, "action_dim": 2, "tasks": TASKS}


def observations(tasks: list[int]) -> Observation:
    draw = torch.Generator().manual_seed(0)
    return {"state": torch.randn(1, 2, 3, generator=draw).expand(len(tasks), -1, -1), "task": torch.tensor(tasks)}


@pytest.mark.parametrize("conditioning", ["id", "text"])
def test_the_network_depends_on_the_tasks_own_row(conditioning: str) -> None:
    torch.manual_seed(0)
    policy = ActPolicy(tiny_config(**BLIND, task_conditioning=conditioning, task_text_dim=6)).eval()
    if conditioning == "text":
        policy.task_texts.copy_(torch.randn(2, 6))
    rows = policy.task_embedding.weight.data if conditioning == "id" else policy.task_texts
    one, other, again = policy(observations([0, 1, 0]))[0]
    assert torch.equal(one, again) and not torch.allclose(one, other)
    assert torch.allclose(one, policy(observations([0]))[0][0], atol=1e-6)
    rows.copy_(rows.flip(0).clone())
    swapped, _ = policy(observations([1, 0]))
    assert torch.allclose(swapped, torch.stack([one, other]), atol=1e-6)
    saved = policy.state_dict()
    assert ("task_texts" in saved) == (conditioning == "text")  # a checkpoint has the embeddings
    with pytest.raises(UserError, match="the observation has no 'task'"):
        policy({"state": torch.zeros(1, 2, 3)})


def test_without_tasks_the_network_is_as_it_was() -> None:
    names = {name for name, _ in ActPolicy(tiny_config(**{**BLIND, "tasks": None})).named_parameters()}
    assert not any("task" in name for name in names)
    with pytest.raises(UserError, match="task_conditioning needs the tasks in the config"):
        ActPolicy(tiny_config(**{**BLIND, "tasks": None}, task_conditioning="id"))


def test_embeddings_are_open_clips(tmp_path: Path) -> None:
    """Of a file of a whole model, as open_clip itself computes them."""
    torch.manual_seed(1)
    model = open_clip.create_model("ViT-S-32-alt", pretrained=None).eval()
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    found = embed_texts("ViT-S-32-alt", str(tmp_path / "clip.pt"), TASKS)
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(TASKS), normalize=True)
    assert torch.allclose(found, expected * expected.shape[1] ** 0.5, atol=1e-5)
    weights = f"weights file not found: {tmp_path / 'no.pt'} \\(task_text_pretrained\\), or task_conditioning: id"
    with pytest.raises(UserError, match=weights):
        embed_texts("ViT-S-32-alt", str(tmp_path / "no.pt"), TASKS)
    with pytest.raises(UserError, match="open_clip has no model 'ViT-S-32-al'; did you mean"):
        embed_texts("ViT-S-32-al", None, TASKS)


def opposite(tmp_path: Path) -> list[dict[str, Any]]:
    """Two datasets of the same observations, whose actions are each other's negative."""
    first = write_dataset(tmp_path / "cube", [12, 12, 12, 12])
    second = write_dataset(tmp_path / "peg", [12, 12, 12, 12])
    np.save(second / "actions.npy", -np.load(second / "actions.npy"))
    (second / "metadata.json").write_text(json.dumps({"fps": 50, "task": "insertion"}))
    return [{"path": str(first), "task": "transfer_cube"}, {"path": str(second)}]


@pytest.mark.slow
def test_a_policy_learns_tasks_that_nothing_else_tells_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "cameras": [],
        "num_steps": 150,
        "lr": 5e-3,
        "use_vae": False,
        "dropout": 0.0,
        "checkpoint_frequency": 99,
    }
    errors = {}
    for conditioning in ("none", "id"):
        run = tmp_path / conditioning
        config = tiny_config(
            datasets=opposite(tmp_path), output_dir=str(run), task_conditioning=conditioning, **changes
        )
        train_run(prepare_run(config))
        errors[conditioning] = evaluate_offline(load_run(run, "last"))["mae"]
    assert errors["id"] < 0.6 * errors["none"]
    printed = capsys.readouterr().out
    assert "Tasks: the policy is told which of 2 it is: 'insertion', 'transfer_cube'" in printed

    policy = bimact.load_policy(tmp_path / "id", checkpoint="last", device="cpu")
    state = np.load(tmp_path / "cube" / "observations.npy")["state"][0]
    chunks = {}
    for task in ("insertion", "transfer_cube"):
        policy.reset()
        chunks[task] = policy.predict_chunk({"state": state, "task": task})
        told = bimact.load_policy(tmp_path / "id", checkpoint="last", device="cpu", task=task)
        assert np.array_equal(told.predict_chunk({"state": state}), chunks[task])
    assert np.corrcoef(chunks["insertion"].ravel(), chunks["transfer_cube"].ravel())[0, 1] < 0
    policy.reset()
    known = "the policy knows 'insertion', 'transfer_cube'"
    with pytest.raises(UserError, match=f"the task is 'fold': {known}"):
        policy.act({"state": state, "task": "fold"})
    with pytest.raises(UserError, match=f"the observation has no 'task' or 'prompt': {known}"):
        policy.act({"state": state})
    with pytest.raises(UserError, match=f"the task is 'fold': {known}"):
        bimact.load_policy(tmp_path / "id", checkpoint="last", task="fold")
    both = {"state": np.stack([state, state]), "task": ["insertion", "transfer_cube"]}
    policy.reset()
    assert policy.predict_chunk(both) == pytest.approx(np.stack(list(chunks.values())), abs=1e-5)

    # A server's prompt, and a client in this process
    metadata = served_metadata(policy.metadata.as_dict(), policy.weights_sha256)
    assert metadata["tasks"] == ["insertion", "transfer_cube"]
    episode = _Episode(Served(policy.new_session, metadata), None)
    actions, _ = episode.infer({"state": state, "prompt": "insertion", "reset": True})
    assert actions == pytest.approx(chunks["insertion"], abs=1e-6)
    client = InProcessClient(policy)
    assert client.infer({"state": state, "prompt": "insertion"})["actions"] == pytest.approx(
        chunks["insertion"], abs=1e-6
    )

    # Rollouts
    config = load_run(tmp_path / "id", "last").config
    assert config.tasks == ["insertion", "transfer_cube"]
    assert prompt_for(config, "insertion") == "insertion" and prompt_for(config, "x", "insertion") == "insertion"
    with pytest.raises(UserError, match="knows none named 'fold': pass --prompt, one of 'insertion', 'transfer_cube'"):
        prompt_for(config, "fold")
    assert prompt_for(tiny_config(task_conditioning="id", tasks=["pour"]), "insertion") == "pour"

    # Other tasks than those of the run are another network
    write_dataset(tmp_path / "peg", [12, 12, 12, 12])
    with pytest.raises(UserError, match="'peg/episode 0' has no task|peg: episode 0 has no task|episode 0 has no task"):
        prepare_run(config, tmp_path / "id")
    (tmp_path / "peg" / "metadata.json").write_text(json.dumps({"fps": 50, "task": "fold"}))
    with pytest.raises(UserError, match="has another network .*tasks"):
        prepare_run(config, tmp_path / "id")


def test_rollouts_are_told_one_task() -> None:
    """`next_actions` takes histories as environments give them: without a task."""
    policy = small_policy(cameras=[], task_conditioning="id", tasks=TASKS)
    histories = {"state": np.zeros((2, 1, 14), np.float32)}
    found = []
    for task in TASKS:
        policy.set_task(task)
        found.append(policy.next_actions(histories))
    assert not np.allclose(*found)
    with pytest.raises(UserError, match="the task is 'x', but the policy is not told its task"):
        small_policy(cameras=[]).set_task("x")
