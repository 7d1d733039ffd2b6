"""Trials of two policies on a robot: a protocol file with a blind random order, and marks from the keyboard.

Trials come in pairs from the same start of the scene. Which policy is first in a pair is drawn from the protocol's
seed; the file has no names beside its marks, so that neither who marks nor who opens the file sees which policy acted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from bimact.errors import UserError
from bimact.evaluation.compare import ENOUGH, comparison
from bimact.evaluation.paired import Pairs, evidence_against
from bimact.files import check_writable, write_json

HELP = "r: repeat this trial, u: take the last mark back, q: pause (the same command resumes)"


@dataclass
class Protocol:
    """Trials of policies A and B, saved after each mark.

    Attributes:
        path: of the file.
        policies: run, checkpoint and SHA-256 of the weights of `A` and `B`.
        pairs: of trials, at most.
        stages: names of what is marked, in the order in which a trial reaches them; the last one is success.
        sequential: whether the trials stop as soon as one policy is better.
        seed: of the order.
        marks: one for each trial that is done: `stage`, the highest one reached (0: none), and `time`.
    """

    path: Path
    policies: dict[str, dict[str, str]]
    pairs: int
    stages: list[str]
    sequential: bool
    seed: int = 0
    marks: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        path: Path,
        policies: Mapping[str, Mapping[str, str]],
        pairs: int,
        stages: Sequence[str],
        *,
        sequential: bool,
    ) -> Protocol:
        """Begin a protocol, or resume the one in an existing file.

        Raises:
            UserError: if the file is of other policies or settings, or cannot be read or written.
        """
        if pairs < 1:
            raise UserError(f"--trials is {pairs}, it has to be at least 1")
        if not all(stages) or len(set(stages)) < len(stages):
            raise UserError(
                f"--stages is '{','.join(stages)}', it has to be different names such as grasped,lifted,placed"
            )
        check_writable(path.parent)
        asked: dict[str, Any] = {
            "policies": {name: dict(policy) for name, policy in policies.items()},
            "pairs": pairs,
            "stages": list(stages),
            "sequential": sequential,
        }
        if not path.exists():
            protocol = cls(path, seed=secrets.randbits(32), **asked)
            protocol._save()
            return protocol
        try:
            content = json.loads(path.read_text())
            found = {name: content[name] for name in asked}
            seed, marks = int(content["seed"]), [dict(mark, stage=int(mark["stage"])) for mark in content["marks"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a protocol of trials ({error}): choose another --protocol") from error
        for name, policy in asked["policies"].items():
            if found["policies"].get(name, {}).get("weights_sha256") != policy["weights_sha256"]:
                raise UserError(f"{path} is a protocol of other weights of policy {name}: choose another --protocol")
        for name in ("pairs", "stages", "sequential"):
            if found[name] != asked[name]:
                raise UserError(
                    f"{path} was begun with {name} {found[name]}, not {asked[name]}: use the same options, or choose "
                    "another --protocol"
                )
        return cls(path, seed=seed, marks=marks, **asked)

    def _save(self) -> None:
        content = {
            "seed": self.seed,
            "policies": self.policies,
            "pairs": self.pairs,
            "stages": self.stages,
            "sequential": self.sequential,
            "marks": self.marks,
        }
        write_json(self.path, content)

    def policy_of(self, trial: int) -> str:
        """A or B, for a trial counted from 0; a fair coin for each pair says which of them is first."""
        first = int(np.random.default_rng((self.seed, trial // 2)).integers(2))
        return "AB"[(first + trial) % 2]

    def mark(self, stage: int) -> None:
        """Save the highest stage that the present trial has reached."""
        self.marks.append({"stage": stage, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")})
        self._save()

    def take_back(self) -> bool:
        """Remove the last mark; False if there is none."""
        if not self.marks:
            return False
        self.marks.pop()
        self._save()
        return True

    def _reached(self) -> tuple[list[int], list[int]]:
        """Stages of A and of B in each pair that is complete."""
        reached: dict[str, list[int]] = {"A": [], "B": []}
        for trial, mark in enumerate(self.marks[: len(self.marks) // 2 * 2]):
            reached[self.policy_of(trial)].append(mark["stage"])
        return reached["A"], reached["B"]

    @property
    def is_finished(self) -> bool:
        """Whether all pairs are marked, or a sequential comparison is decided at a pair's end."""
        if len(self.marks) >= 2 * self.pairs:
            return True
        if not self.sequential or len(self.marks) % 2 or not self.marks:
            return False
        success = Pairs.of(*([stage == len(self.stages) for stage in stages] for stages in self._reached()))
        return evidence_against(success) >= ENOUGH

    def result(self) -> dict[str, Any]:
        """The comparison, which names the policies: only for the end.

        Raises:
            ValueError: if no pair is complete.
        """
        compared = comparison(*self._reached(), self.stages, sequential=self.sequential)
        return {"a": self.policies["A"], "b": self.policies["B"], **compared}


def run_trials(
    protocol: Protocol,
    begin: Callable[[int], None],
    ask: Callable[[str], str] = input,
    say: Callable[[str], None] = print,
) -> None:
    """Go through the trials that are left, and take a mark for each.

    Args:
        protocol: it is saved after each mark.
        begin: called with a trial's number, from 0, before it begins: makes its policy the one that acts.
        ask: shows a text and returns a line; EOFError pauses.
        say: shows a line.
    """
    success = len(protocol.stages)
    if success == 1:
        keys = {"s": 1, "f": 0}
        question = "s: success, f: failure"
    else:
        keys = {str(number): number for number in range(success + 1)}
        names = ", ".join(f"{number}: {name}" for number, name in enumerate(["none", *protocol.stages]))
        question = f"highest stage reached ({names})"
    say(f"{len(protocol.marks)} of {2 * protocol.pairs} trials are marked in {protocol.path}. {HELP}")
    while not protocol.is_finished:
        trial = len(protocol.marks)
        begin(trial)
        which = "first" if trial % 2 == 0 else "second: the same start as the trial before"
        say(
            f"Trial {trial + 1} of {2 * protocol.pairs} (start {trial // 2 + 1}, {which}). Run the robot, then mark it."
        )
        while True:
            try:
                answer = ask(f"{question}> ").strip().lower()
            except EOFError:
                answer = "q"
            if answer == "q":
                say(f"{len(protocol.marks)} of {2 * protocol.pairs} trials are marked; the same command resumes.")
                return
            if answer == "u":
                say("The last mark is taken back." if protocol.take_back() else "There is no mark to take back.")
                break
            if answer == "r":
                break
            if answer in keys:
                protocol.mark(keys[answer])
                break
            say(f"'{answer}' is none of {', '.join(keys)}, r, u, q.")
