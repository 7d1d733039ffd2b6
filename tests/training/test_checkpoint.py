"""Checkpoints: whole or not at all, harmless, and easy to find."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from foreign_policies import beside_an_optimizer, lerobot_weights, original_weights, small_policy, write_pointer
from processes import in_child
from safetensors.torch import save_file

from bimact.config import Config, load_config
from bimact.errors import UserError
from bimact.run_directory import Run
from bimact.training.checkpoint import (
    copy_checkpoint,
    delete_checkpoints,
    finish_interrupted_saves,
    load_pair,
    load_weights,
    save_checkpoint,
)

WEIGHTS = {"queries.weight": torch.arange(3.0)}


def test_pair_of_files(tmp_path: Path) -> None:
    path = save_checkpoint(Run(tmp_path), 10, WEIGHTS, {"step": 7})
    assert path == tmp_path / "checkpoint" / "act-train-10.pth"
    assert torch.equal(
        torch.load(path)["queries.weight"], WEIGHTS["queries.weight"]
    )  # PyTorch's own default: weights only
    weights, state = load_pair(path)
    assert (
        torch.equal(weights["queries.weight"], WEIGHTS["queries.weight"]) and state is not None and state["step"] == 7
    )
    copy_checkpoint(path, "last")
    assert Run(tmp_path).checkpoint("last").read_bytes() == path.read_bytes()
    save_checkpoint(Run(tmp_path), "last", {"queries.weight": torch.zeros(3)}, {"step": 8})
    assert torch.equal(
        load_weights(path)["queries.weight"], WEIGHTS["queries.weight"]
    )  # the copy was not written through


def test_absent_checkpoint_lists_what_there_is(tmp_path: Path) -> None:
    for name in (10, 9, "best"):
        save_checkpoint(Run(tmp_path), name, WEIGHTS, {})
    with pytest.raises(UserError, match="has no checkpoint '11'; it has: best, 9, 10"):
        Run(tmp_path).checkpoint(11)


def test_full_disk_is_one_sentence_and_leaves_the_old_pair(tmp_path: Path) -> None:
    """The system refuses to write more than some bytes, in a process of its own."""
    path = save_checkpoint(Run(tmp_path), "last", WEIGHTS, {"step": 1})

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with pytest.raises(UserError, match=r"cannot write .*act-train-last.pth \(File too large\): .*--resume_from"):
            save_checkpoint(Run(tmp_path), "last", {"queries.weight": torch.zeros(10_000)}, {"step": 2})

    assert os.waitpid(in_child(work), 0)[1] == 0
    weights, state = load_pair(path)
    assert (
        torch.equal(weights["queries.weight"], WEIGHTS["queries.weight"]) and state is not None and state["step"] == 1
    )
    assert {entry.name for entry in path.parent.iterdir()} == {"act-train-last.pth", "act-train-last.state"}


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.target, "it ran")


def test_untrusted_files(tmp_path: Path) -> None:
    target = tmp_path / "written"
    torch.save({"a": _Hostile(target)}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match=r"hostile.pth holds more than weights .*must not run code"):
        load_weights(tmp_path / "hostile.pth")
    assert not target.exists()
    path = save_checkpoint(Run(tmp_path), 1, WEIGHTS, {})
    (tmp_path / "short.pth").write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"short.pth is not a file of weights that torch can read, or it is damaged"):
        load_weights(tmp_path / "short.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no policy of ACT: it holds no state dict but a list"):
        load_weights(tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    with pytest.raises(UserError, match="it has no tensors with names, only 'a'"):
        load_weights(tmp_path / "numbers.pth")
    with pytest.raises(UserError, match="checkpoint not found"):
        load_weights(tmp_path / "absent.pth")


POLICY = small_policy()


@pytest.mark.parametrize("key", [None, "model_state_dict", "state_dict", "model", "policy", "nets", "whatever"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "policy.module."])
def test_weights_that_a_user_has_saved(tmp_path: Path, key: str | None, prefix: str) -> None:
    """Beside an optimizer's state, whose entries have no names, and figures that are NumPy's."""
    weights = {prefix + name: value for name, value in POLICY.state_dict().items()}
    path = tmp_path / "mine.pth"
    torch.save(weights if key is None else beside_an_optimizer(key, weights), path)
    loaded = load_weights(path)
    assert loaded.keys() == POLICY.state_dict().keys()
    POLICY.load_state_dict(loaded)
    assert load_pair(path)[1] is None


def test_weights_as_safetensors(tmp_path: Path) -> None:
    save_file(POLICY.state_dict(), tmp_path / "mine.safetensors")
    assert load_weights(tmp_path / "mine.safetensors").keys() == POLICY.state_dict().keys()


def test_averaged_weights_are_taken_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged = {name: value + 1 for name, value in WEIGHTS.items()}
    torch.save({"model": {**WEIGHTS, "b": torch.ones(1)}, "ema": averaged}, tmp_path / "mine.pth")
    assert load_weights(tmp_path / "mine.pth")["queries.weight"].tolist() == [1, 2, 3]
    line = f"Note: {tmp_path / 'mine.pth'}: the averaged weights are taken ('ema'), not those beside them ('model')\n"
    assert capsys.readouterr().out == line
    monkeypatch.setenv("RANK", "1")
    load_weights(tmp_path / "mine.pth")
    assert capsys.readouterr().out == ""


def test_policies_of_other_software_are_named(tmp_path: Path) -> None:
    for name, weights, of in (
        ("policy_best.ckpt", original_weights(POLICY), "the original ACT"),
        ("model.pth", lerobot_weights(POLICY), "LeRobot's ACT"),
    ):
        torch.save(weights, tmp_path / name)
        sentence = (
            rf"{name} holds a policy of {of}, not of bimact: make a run of it by `bimact convert-checkpoint .*{name}"
        )
        with pytest.raises(UserError, match=sentence):
            load_weights(tmp_path / name)
    torch.save({"nets": {"policy.noise_pred_net.final.weight": torch.ones(1)}}, tmp_path / "policy.ckpt")
    with pytest.raises(
        UserError, match=r"named 'policy\.noise_pred_net\.final\.weight', as those of a diffusion policy"
    ):
        load_weights(tmp_path / "policy.ckpt")


def test_pointers_of_git_lfs(tmp_path: Path) -> None:
    path = save_checkpoint(Run(tmp_path), 1, WEIGHTS, {"step": 7})
    write_pointer(path.with_suffix(".state"))
    with pytest.raises(UserError, match=r"act-train-1\.state is a git-lfs pointer, .*run `git lfs pull`"):
        load_pair(path)
    write_pointer(path)
    with pytest.raises(UserError, match=r"act-train-1\.pth is a git-lfs pointer, .*run `git lfs pull`"):
        load_weights(path)


def test_state_that_is_damaged(tmp_path: Path) -> None:
    path = save_checkpoint(Run(tmp_path), 1, WEIGHTS, {"step": 7})
    torch.save([1], path.with_suffix(".state"))
    with pytest.raises(UserError, match=r"act-train-1\.state holds no training state but a list: without that file"):
        load_pair(path)
    path.with_suffix(".state").write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        UserError, match=r"act-train-1\.state cannot be read \(.+\): without that file training resumes"
    ):
        load_pair(path)


def test_state_of_other_weights_is_not_taken(tmp_path: Path) -> None:
    path = save_checkpoint(Run(tmp_path), 1, WEIGHTS, {"step": 7})
    torch.save({"queries.weight": torch.ones(3)}, path)  # somebody has put other weights there
    weights, state = load_pair(path)
    assert weights["queries.weight"].tolist() == [1, 1, 1] and state is None


def test_save_that_was_killed_between_state_and_weights_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state has its place, the weights lie complete beside theirs: they are found, and then put there."""
    path = save_checkpoint(Run(tmp_path), "last", WEIGHTS, {"step": 7})
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(Run(tmp_path), "last", {"queries.weight": torch.ones(3)}, {"step": 8})
    monkeypatch.setattr(Path, "replace", replace)
    weights, state = load_pair(path)
    assert weights["queries.weight"].tolist() == [1, 1, 1] and state is not None and state["step"] == 8
    (path.parent / ".act-train-9.pth.new").write_bytes(b"half")
    (path.parent / "..act-train-9.pth.new.x1.tmp").write_bytes(b"quarter")
    finish_interrupted_saves(Run(tmp_path))
    assert torch.equal(load_weights(path)["queries.weight"], torch.ones(3))
    assert {entry.name for entry in path.parent.iterdir()} == {"act-train-last.pth", "act-train-last.state"}


def test_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint 'last'; it has: none"):
        Run(tmp_path).last_checkpoint()
    for name in (9, 10, "best"):
        save_checkpoint(Run(tmp_path), name, WEIGHTS, {})
    assert Run(tmp_path).last_checkpoint().name == "act-train-10.pth"
    save_checkpoint(Run(tmp_path), "last", WEIGHTS, {})
    assert Run(tmp_path).last_checkpoint().name == "act-train-last.pth"


def numbered_run(folder: Path, config: Config, epochs: int = 10) -> Run:
    """Checkpoints as training saves them, each epoch one; epoch 4 is the best."""
    run = Run(folder)
    for epoch in range(1, epochs + 1):
        path = save_checkpoint(run, epoch, {"queries.weight": torch.full((300,), float(epoch))}, {"step": epoch})
        if epoch == 4:
            copy_checkpoint(path, "best")
        copy_checkpoint(path, "last")
        delete_checkpoints(run, config, path)
    return run


def names(run: Run, suffix: str = ".pth") -> list[str]:
    found = [path.stem.removeprefix("act-train-") for path in run.checkpoints.glob(f"act-train-*{suffix}")]
    return sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        (None, [*map(str, range(1, 11)), "best", "last"]),
        (["last 3"], ["8", "9", "10", "best", "last"]),
        (["every 4"], ["4", "8", "10", "best", "last"]),
        (["last 2", "every 5"], ["5", "9", "10", "best", "last"]),
        (["best"], ["10", "best", "last"]),
    ],
)
def test_checkpoints_that_are_kept(tmp_path: Path, rules: list[str] | None, kept: list[str]) -> None:
    run = numbered_run(tmp_path, Config(keep_checkpoints=rules))
    assert names(run) == kept
    assert names(run, ".state") == kept
    assert load_weights(run.checkpoint("best"))["queries.weight"][0] == 4
    assert load_weights(run.checkpoint("last"))["queries.weight"][0] == 10


def test_states_of_the_last_checkpoint_alone(tmp_path: Path) -> None:
    run = numbered_run(tmp_path, Config(keep_states="last"))
    assert names(run) == [*map(str, range(1, 11)), "best", "last"]
    assert names(run, ".state") == ["last"]
    weights, state = load_pair(run.last_checkpoint())
    assert weights["queries.weight"][0] == 10 and state is not None and state["step"] == 10


def test_a_limit_of_the_size(tmp_path: Path) -> None:
    whole = numbered_run(tmp_path / "whole", Config())
    pair = sum(whole.checkpoint(7).with_suffix(suffix).stat().st_size for suffix in (".pth", ".state"))
    run = numbered_run(tmp_path / "run", Config(max_run_size=5.5 * pair / 1e9))
    assert names(run) == ["7", "8", "9", "10", "best", "last"]  # best is a pair of its own by now
    nothing_else = numbered_run(tmp_path / "small", Config(max_run_size=1e-9))
    assert names(nothing_else) == ["10", "best", "last"]


@pytest.mark.parametrize("rule", ["last", "last 0", "every -1", "newest 3", ""])
def test_rules_that_do_not_exist(rule: str) -> None:
    with pytest.raises(UserError, match="has to be `last N`, `every K` or `best`"):
        load_config(None, [f'keep_checkpoints="{rule}",best'])
