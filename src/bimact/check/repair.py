"""The `bimact edit` command that repairs findings by removing episodes, cameras and steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bimact.check.findings import Finding
from bimact.check.kinds import ERROR, INFO
from bimact.convert.dataset import format_of
from bimact.data.selection import SelectedSource

# Faults to repair by removing the episode; the others need inspection, another recording, or a change of values.
_OF_EPISODE = (
    *("unreadable", "nan", "far-value", "jump", "still-gripper", "odd-lag", "frozen-state", "still-episode"),
    *("unordered-timestamps", "dropped-steps", "duplicate-episode", "odd-length", "dominant-episode"),
)
_OF_CAMERA = ("blank-image", "frozen-camera", "changed-image")  # if they occur in most episodes, the camera is removed
_IDLE = ("idle-head", "idle-tail")
_MOST = 0.5  # fraction of episodes; a fault in more of them is one of the recorder
_MOST_LISTED = 10


@dataclass(frozen=True)
class Repair:
    """What `bimact edit` can repair.

    Attributes:
        episodes: code → numbers of the episodes that are removed for it.
        cameras: those that are removed.
        trims_idle: steps without motion are removed.
        task: the description for episodes without one; None: there is none.
        to: the format to write if it differs from the dataset's.
        left: codes of the remaining errors and warnings.
        total: episodes of the dataset.
    """

    episodes: Mapping[str, tuple[int, ...]]
    cameras: tuple[str, ...]
    trims_idle: bool
    task: str | None
    to: str | None
    left: tuple[str, ...]
    total: int

    @property
    def numbers(self) -> list[int]:
        return sorted({number for numbers in self.episodes.values() for number in numbers})

    def command(self, source: str) -> list[str]:
        """The arguments of the shell command.

        Args:
            source: the dataset as given by the user.
        """
        target = source.rstrip("/") if "://" not in source else source.rstrip("/").rpartition("/")[2]
        arguments = ["bimact", "edit", source, f"{target}_repaired"]
        if self.episodes:
            arguments += ["--drop_episodes", ",".join(map(str, self.numbers))]
        if self.cameras:
            arguments += ["--drop_features", ",".join(self.cameras)]
        if self.trims_idle:
            arguments.append("--trim_idle")
        if self.task is not None:
            arguments += ["--task", self.task]
        return arguments + (["--to", self.to] if self.to else [])

    @property
    def sentence(self) -> str:
        """What the command repairs, and what remains."""
        parts = []
        if self.episodes:
            why = "; ".join(
                f"{code}: {', '.join(map(str, numbers[:_MOST_LISTED]))}"
                + (", …" if len(numbers) > _MOST_LISTED else "")
                for code, numbers in self.episodes.items()
            )
            parts.append(f"removes {len(self.numbers)} of {self.total} episodes ({why})")
        parts += [f"removes {', '.join(self.cameras)}"] if self.cameras else []
        parts += ["removes idle steps"] if self.trims_idle else []
        parts += ["gives all episodes a task description"] if self.task is not None else []
        left = f"; not repaired: {', '.join(self.left)}" if self.left else ""
        return f"It {', '.join(parts)}{left}. Look at these episodes first with `bimact view`."

    def as_json(self, source: str) -> dict[str, Any]:
        return {"command": self.command(source), "drop_episodes": self.numbers, "not_repaired": list(self.left)}


def repair_of(findings: Sequence[Finding], source: SelectedSource) -> Repair | None:
    """How to repair a dataset; None: none of the findings can be repaired in this way."""
    total = len(source.episodes) + sum(not episode.is_missing for episode in source.unusable)
    by_code: dict[str, set[int]] = defaultdict(set)
    by_camera: dict[tuple[str, str], set[int]] = defaultdict(set)
    whole = set()  # codes of findings on the whole dataset
    for finding in findings:
        if finding.severity is INFO or finding.episode is None:
            whole |= {finding.code} if finding.severity is not INFO else set()
            continue
        number = source.number_of(finding.episode)
        if finding.code in _OF_EPISODE:
            by_code[finding.code].add(number)
        elif finding.code in _OF_CAMERA and finding.camera is not None:
            by_camera[finding.code, finding.camera].add(number)
    damaged = {episode.number for episode in source.unusable if not episode.is_missing}
    if damaged:
        by_code["unreadable"] |= damaged
        whole.discard("unreadable")
    cameras: list[str] = []
    for (code, camera), numbers in by_camera.items():
        if len(numbers) <= _MOST * total:
            by_code[code] |= numbers
        elif len(source.cameras) > len({*cameras, camera}):
            cameras.append(camera)
    must = {finding.code for finding in findings if finding.severity is ERROR}
    by_code = {code: numbers for code, numbers in by_code.items() if code in must or len(numbers) <= _MOST * total}
    if len(set().union(*by_code.values())) > _MOST * total:
        by_code = {code: numbers for code, numbers in by_code.items() if code in must}
    if len(set().union(*by_code.values())) >= total:
        by_code = {}
    found = {finding.code for finding in findings if finding.severity is not INFO} | whole
    tasks = {episode.task for episode in source.episodes if episode.task}
    task = next(iter(tasks)) if "missing-task" in found and len(tasks) == 1 else None
    trims = any(finding.code in _IDLE for finding in findings)
    if not (by_code or cameras or trims or task):
        return None
    done = {*by_code, *(code for code, camera in by_camera if camera in cameras), *(_IDLE if trims else ())}
    done |= {"missing-task"} if task is not None else set()
    to = None if format_of(source) else "zarr" if source.fps is None else "lerobot"
    return Repair(
        episodes={code: tuple(sorted(numbers)) for code, numbers in by_code.items()},
        cameras=tuple(dict.fromkeys(cameras)),
        trims_idle=trims,
        task=task,
        to=to,
        left=tuple(sorted((found | whole) - done)),
        total=total,
    )
