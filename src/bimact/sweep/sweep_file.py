"""Reading a sweep file: W&B's YAML, checked before anything runs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from optuna.distributions import BaseDistribution

from bimact.config import is_text, setting_names, value_as_written
from bimact.errors import UserError
from bimact.files import expand_home
from bimact.sweep.space import check_name, check_values, distribution_of, flatten, grid_values, hint_of
from bimact.yaml_file import Written, read_yaml

Goal: TypeAlias = Literal["minimize", "maximize"]
METHODS = ("bayes", "random", "grid")

# Keys of W&B's that say nothing of what is searched, and those that are read here.
_SILENT = ("apiVersion", "kind", "controller", "description", "entity", "project", "settings")
_READ = ("program", "command", "method", "metric", "parameters", "early_terminate", "name", "run_cap")


@dataclass(frozen=True)
class Halving:
    """After `first` values of the metric, then `factor` times as many and so on, the best 1 / `factor` go on."""

    first: int
    factor: int


@dataclass(frozen=True)
class Sweep:
    """What a sweep file asks for.

    Attributes:
        path: of the file.
        name: the file's own, or what the file is called.
        program: the training script; None: `bimact train`.
        arguments: what the file's `command` gives to each run besides the parameters.
        method: bayes, random or grid.
        metric: its name in `metrics.jsonl`.
        goal: minimize or maximize.
        parameters: of each setting, what the file says.
        space: of each setting, what it is drawn from.
        halving: when bad trials are ended, if the file says so.
        run_cap: how many trials at most, if the file says so.
        hints: sentences for whoever wrote the file.
    """

    path: Path
    name: str
    program: str | None
    arguments: list[str]
    method: str
    metric: str
    goal: Goal
    parameters: dict[str, dict[str, Any]]
    space: dict[str, BaseDistribution]
    halving: Halving | None
    run_cap: int | None
    hints: list[str] = field(default_factory=list)

    @property
    def grid(self) -> dict[str, list[Any]]:
        """All values of each parameter."""
        return {name: grid_values(name, distribution) for name, distribution in self.space.items()}

    @property
    def combinations(self) -> int | None:
        """How many trials there can be; None without an end."""
        return math.prod(map(len, self.grid.values())) if self.method == "grid" else None

    def better(self, value: float, other: float) -> bool:
        return value < other if self.goal == "minimize" else value > other

    def best(self, values: Sequence[float]) -> float:
        return min(values) if self.goal == "minimize" else max(values)


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file and check all of it.

    Raises:
        UserError: if it is missing, is no sweep, or asks for what is unknown, not allowed or not supported here.
    """
    path = Path(expand_home(path))
    content = _load(path)
    try:
        return _sweep(path, content)
    except UserError as error:
        raise UserError(f"sweep file {path}: {error}") from None


def _load(path: Path) -> dict[str, Any]:
    """What the file says: numbers as YAML has them (1e-6 is one), text as it is written."""
    written = read_yaml(path, "sweep file")
    if written is None or not isinstance(written.value, dict):
        raise UserError(f"sweep file {path} holds no `key: value` lines")
    content: dict[str, Any] = written.plain()
    for key in ("name", "program"):
        if content.get(key) is not None:
            content[key] = written.value[key].text
    if isinstance(content.get("command"), list):
        content["command"] = [item.text for item in written.value["command"].value]
    if isinstance(content.get("parameters"), dict):
        content["parameters"] = _specs(written.value["parameters"], path)
    return content


def _specs(parameters: Written, path: Path, prefix: str = "") -> dict[str, Any]:
    """What the file says of each parameter; the values of a setting that is text are text, such as 007."""
    specs: dict[str, Any] = {}
    for key, spec in parameters.value.items():
        specs[key] = spec.plain()
        if not isinstance(spec.value, dict):
            continue
        name, inner = f"{prefix}{key}", spec.value.get("parameters")
        if inner is not None and isinstance(inner.value, dict):
            specs[key]["parameters"] = _specs(inner, path, f"{name}.")
        elif name in setting_names() and is_text(name):
            place = f"{path}, line {spec.line}: "
            if "value" in spec.value:
                specs[key]["value"] = value_as_written(name, spec.value["value"], place)
            if "values" in spec.value and isinstance(spec.value["values"].value, list):
                values = spec.value["values"].value
                specs[key]["values"] = [value_as_written(name, value, place) for value in values]
    return specs


def _sweep(path: Path, content: Mapping[str, Any]) -> Sweep:
    for key in content:
        if key not in (*_READ, *_SILENT):
            close = difflib.get_close_matches(key, _READ, n=1)
            raise UserError(f"the key '{key}' is not supported" + (f"; did you mean '{close[0]}'?" if close else ""))
    method = content.get("method")
    if method not in METHODS:
        raise UserError(f"method is {method}, it has to be {', '.join(METHODS[:-1])} or {METHODS[-1]}")
    hints: list[str] = []
    metric, goal = _metric(content.get("metric", {}), hints)
    parameters, space = _parameters(content.get("parameters"), hints)
    sweep = Sweep(
        path=path,
        name=_folder_name(str(content.get("name") or path.stem)),
        program=content.get("program"),
        arguments=_arguments(content.get("command")),
        method=method,
        metric=metric,
        goal=goal,
        parameters=parameters,
        space=space,
        halving=_halving(content.get("early_terminate")),
        run_cap=_whole(content, "run_cap", least=1) if "run_cap" in content else None,
        hints=hints,
    )
    if method == "grid":
        _ = sweep.grid  # a range without steps is told at once
    return sweep


def _metric(content: Any, hints: list[str]) -> tuple[str, Goal]:
    if not isinstance(content, Mapping):
        raise UserError(f"metric is {content}, it has to hold name and goal")
    goal = content.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise UserError(f"the goal of the metric is {goal}, it has to be minimize or maximize")
    for key in content.keys() - {"name", "goal"}:
        hints.append(f"metric.{key} has no effect here.")
    return str(content.get("name", "val_loss")), goal


def _parameters(content: Any, hints: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, BaseDistribution]]:
    if not isinstance(content, Mapping) or not content:
        raise UserError("it has no parameters")
    specs: dict[str, dict[str, Any]] = {}
    space: dict[str, BaseDistribution] = {}
    for name, spec in flatten(content):
        check_name(name)
        if name in specs:
            raise UserError(f"parameter '{name}' is there twice")
        specs[name], space[name] = spec, distribution_of(name, spec)
        check_values(name, space[name])
        hint = hint_of(name, spec, space[name])
        if hint is not None:
            hints.append(hint)
    return specs, space


def _arguments(command: Any) -> list[str]:
    """What W&B's `command` gives to the program besides `${args}`."""
    if command is None:
        return []
    items = [str(item) for item in command] if isinstance(command, list) else []
    if "${program}" not in items:
        raise UserError("command has to be a list with ${program} in it")
    place = items.index("${program}")
    before, after = items[:place], [item for item in items[place + 1 :] if item != "${args}"]
    strange = [item for item in before if item not in ("${env}", "${interpreter}", "python", "python3")]
    strange += [item for item in after if item.startswith("${")]
    if strange:
        raise UserError(f"command has {strange[0]}, but trials run as python ${{program}} ${{args}}")
    return after


def _halving(content: Any) -> Halving | None:
    """W&B's hyperband, whose one bracket is successive halving."""
    if content is None:
        return None
    if not isinstance(content, Mapping) or content.get("type") != "hyperband":
        raise UserError("early_terminate has to be of type: hyperband")
    eta = _whole({"eta": 3, **content}, "eta", least=2)
    if "min_iter" in content:
        return Halving(_whole(content, "min_iter", least=1), eta)
    if "max_iter" not in content or "s" not in content:
        raise UserError("early_terminate needs min_iter, or max_iter and s")
    first = float(_whole(content, "max_iter", least=1))
    for _ in range(_whole(content, "s", least=1)):  # backwards from max_iter, as far as there is a whole iteration
        if first >= eta:
            first /= eta
    return Halving(int(first), eta)


def _whole(content: Mapping[str, Any], key: str, least: int) -> int:
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1 or value < least:
        raise UserError(f"{key} is {value}, it has to be a whole number from {least} on")
    return int(value)


def _folder_name(name: str) -> str:
    """Fit for a folder."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip(".") or "sweep"
