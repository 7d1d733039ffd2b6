"""Checkpoints: whole or not at all, harmless, and easy to find."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from processes import in_child

from bimact.errors import UserError
from bimact.train.checkpoint import (
    checkpoint_path,
    copy_checkpoint,
    finish_interrupted_saves,
    last_checkpoint,
    load_pair,
    load_weights,
    save_checkpoint,
)

WEIGHTS = {"a.weight": torch.arange(3.0)}


def test_pair_of_files(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 10, WEIGHTS, {"step": 7})
    assert path == tmp_path / "checkpoint" / "act-train-10.pth"
    assert torch.equal(torch.load(path)["a.weight"], WEIGHTS["a.weight"])  # PyTorch's own default: weights only
    weights, state = load_pair(path)
    assert torch.equal(weights["a.weight"], WEIGHTS["a.weight"]) and state is not None and state["step"] == 7
    copy_checkpoint(path, "last")
    assert checkpoint_path(tmp_path, "last").read_bytes() == path.read_bytes()
    save_checkpoint(tmp_path, "last", {"a.weight": torch.zeros(3)}, {"step": 8})
    assert torch.equal(load_weights(path)["a.weight"], WEIGHTS["a.weight"])  # the copy was not written through


def test_absent_checkpoint_lists_what_there_is(tmp_path: Path) -> None:
    for name in (10, 9, "best"):
        save_checkpoint(tmp_path, name, WEIGHTS, {})
    with pytest.raises(UserError, match="has no checkpoint '11'; it has: best, 9, 10"):
        checkpoint_path(tmp_path, 11)


def test_full_disk_is_one_sentence_and_leaves_the_old_pair(tmp_path: Path) -> None:
    """The system refuses to write more than some bytes, in a process of its own."""
    path = save_checkpoint(tmp_path, "last", WEIGHTS, {"step": 1})

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with pytest.raises(UserError, match=r"cannot write .*act-train-last.pth \(File too large\): .*--resume_from"):
            save_checkpoint(tmp_path, "last", {"a.weight": torch.zeros(10_000)}, {"step": 2})

    assert os.waitpid(in_child(work), 0)[1] == 0
    weights, state = load_pair(path)
    assert torch.equal(weights["a.weight"], WEIGHTS["a.weight"]) and state is not None and state["step"] == 1
    assert {entry.name for entry in path.parent.iterdir()} == {"act-train-last.pth", "act-train-last.state"}


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.target, "it ran")


def test_strangers_files(tmp_path: Path) -> None:
    target = tmp_path / "written"
    torch.save({"a": _Hostile(target)}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match=r"hostile.pth cannot be read"):
        load_weights(tmp_path / "hostile.pth")
    assert not target.exists()
    path = save_checkpoint(tmp_path, 1, WEIGHTS, {})
    (tmp_path / "short.pth").write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"short.pth cannot be read"):
        load_weights(tmp_path / "short.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict but a list"):
        load_weights(tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    with pytest.raises(UserError, match="not the state dict"):
        load_weights(tmp_path / "numbers.pth")
    with pytest.raises(UserError, match="checkpoint not found"):
        load_weights(tmp_path / "absent.pth")


def test_state_of_other_weights_is_not_taken(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, WEIGHTS, {"step": 7})
    torch.save({"a.weight": torch.ones(3)}, path)  # somebody has put other weights there
    weights, state = load_pair(path)
    assert weights["a.weight"].tolist() == [1, 1, 1] and state is None


def test_save_that_was_killed_between_state_and_weights_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state has its place, the weights lie complete beside theirs: they are found, and then put there."""
    path = save_checkpoint(tmp_path, "last", WEIGHTS, {"step": 7})
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, "last", {"a.weight": torch.ones(3)}, {"step": 8})
    monkeypatch.setattr(Path, "replace", replace)
    weights, state = load_pair(path)
    assert weights["a.weight"].tolist() == [1, 1, 1] and state is not None and state["step"] == 8
    (path.parent / ".act-train-9.pth.new").write_bytes(b"half")
    (path.parent / "..act-train-9.pth.new.x1.tmp").write_bytes(b"quarter")
    finish_interrupted_saves(tmp_path)
    assert torch.equal(load_weights(path)["a.weight"], torch.ones(3))
    assert {entry.name for entry in path.parent.iterdir()} == {"act-train-last.pth", "act-train-last.state"}


def test_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint 'last'; it has: none"):
        last_checkpoint(tmp_path)
    for name in (9, 10, "best"):
        save_checkpoint(tmp_path, name, WEIGHTS, {})
    assert last_checkpoint(tmp_path).name == "act-train-10.pth"
    save_checkpoint(tmp_path, "last", WEIGHTS, {})
    assert last_checkpoint(tmp_path).name == "act-train-last.pth"
