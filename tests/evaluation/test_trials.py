"""Trials on a robot: the order is random, balanced and blind; marks survive; a pause resumes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bimact.errors import UserError
from bimact.evaluation.trials import Protocol, run_trials

POLICIES = {name: {"run": name, "checkpoint": "best", "weights_sha256": name * 64} for name in "AB"}


def begin(path: Path, pairs: int = 4, **changes: Any) -> Protocol:
    settings: dict[str, Any] = {"stages": ["success"], "sequential": False, **changes}
    return Protocol.open(path / "trials.json", POLICIES, pairs, settings["stages"], sequential=settings["sequential"])


def answers(lines: Iterable[str]) -> Any:
    left = iter(lines)

    def ask(_: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return ask


@pytest.mark.slow
def test_the_order_is_random_balanced_and_not_in_the_file(tmp_path: Path) -> None:
    protocol = begin(tmp_path, pairs=200)
    order = [protocol.policy_of(trial) for trial in range(400)]
    pairs = ["".join(order[2 * pair : 2 * pair + 2]) for pair in range(200)]
    assert set(pairs) == {"AB", "BA"} and 60 < pairs.count("AB") < 140
    protocol.mark(1)
    assert json.loads(protocol.path.read_text())["marks"][0].keys() == {"stage", "time"}
    assert [begin(tmp_path, pairs=200).policy_of(trial) for trial in range(400)] == order  # the same when resumed
    (tmp_path / "other").mkdir()
    assert [begin(tmp_path / "other", pairs=200).policy_of(trial) for trial in range(400)] != order


def test_marks_are_counted_for_the_policy_that_acted(tmp_path: Path) -> None:
    protocol = begin(tmp_path, pairs=30)
    acted: list[str] = []
    run_trials(
        protocol,
        lambda trial: acted.append(protocol.policy_of(trial)),
        lambda _: "s" if acted[-1] == "A" else "f",  # A always succeeds
        lambda _: None,
    )
    result = protocol.result()
    assert protocol.is_finished and len(acted) == 60
    assert result["stages"][0]["pairs"] == {"both": 0, "only_a": 30, "only_b": 0, "neither": 0}
    assert result["better"] == "A" and result["a"]["run"] == "A"


def test_pause_resume_repeat_and_take_back(tmp_path: Path) -> None:
    protocol, began, said = begin(tmp_path, stages=["grasped", "placed"]), [], []
    run_trials(protocol, began.append, answers(["2", "r", "x", "1", "u", "0", "q"]), said.append)
    assert [mark["stage"] for mark in protocol.marks] == [2, 0]
    assert began == [0, 1, 1, 2, 1, 2]
    assert any("'x' is none of 0, 1, 2, r, u, q" in line for line in said)
    assert not any("policy A" in line or "policy B" in line for line in said)
    resumed = begin(tmp_path, stages=["grasped", "placed"])
    assert resumed.marks == protocol.marks and not resumed.is_finished
    run_trials(resumed, began.append, answers(["1"] * 100), said.append)
    assert resumed.is_finished and len(resumed.marks) == 8
    assert resumed.result()["scenes"] == 4


def test_sequential_ends_at_a_complete_pair(tmp_path: Path) -> None:
    protocol = begin(tmp_path, pairs=50, sequential=True)
    run_trials(
        protocol,
        lambda _: None,
        lambda _: "s" if protocol.policy_of(len(protocol.marks)) == "B" else "f",
        lambda _: None,
    )
    assert protocol.result()["better"] == "B" and 10 < len(protocol.marks) < 30 and len(protocol.marks) % 2 == 0


def test_other_files_are_refused(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(UserError, match="was begun with pairs 4, not 5"):
        begin(tmp_path, pairs=5)
    with pytest.raises(UserError, match="other weights of policy B"):
        other = {**POLICIES, "B": {**POLICIES["B"], "weights_sha256": "c"}}
        Protocol.open(tmp_path / "trials.json", other, 4, ["success"], sequential=False)
    with pytest.raises(UserError, match="different names"):
        begin(tmp_path, stages=["a", "a"])
    (tmp_path / "trials.json").write_text('{"seed": 1}')
    with pytest.raises(UserError, match="is not a protocol of trials"):
        begin(tmp_path)
