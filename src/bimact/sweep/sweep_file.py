"""Reads a sweep file, which is W&B's YAML, and checks it before anything runs."""

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

# Keys of W&B that do not affect the search, and those that are read here.
_IGNORED = ("apiVersion", "kind", "controller", "description", "entity", "project", "settings")
_READ = ("program", "command", "method", "metric", "parameters", "early_terminate", "name", "run_cap")


@dataclass(frozen=True)
class Halving:
    """After `first` values of the metric, then `factor` times as many and so on, the best 1 / `factor` continue."""

    first: int
    factor: int


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file.

    Attributes:
        path: of the file.
        name: from the file, or its file name.
        program: the training script; None: `bimact train`.
        arguments: of each run besides the parameters, from the file's `command`.
        method: bayes, random or grid.
        metric: its name in `metrics.jsonl`.
        goal: minimize or maximize.
        parameters: setting → its entry in the file.
        space: setting → its distribution.
        halving: when to prune trials, if the file has it.
        run_cap: maximum number of trials, if the file has it.
        hints: sentences for the author of the file.
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
        """Number of possible trials; None: unlimited."""
        return math.prod(map(len, self.grid.values())) if self.method == "grid" else None

    def better(self, value: float, other: float) -> bool:
        return value < other if self.goal == "minimize" else value > other

    def best(self, values: Sequence[float]) -> float:
        return min(values) if self.goal == "minimize" else max(values)


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file and check all of it.

    Raises:
        UserError: if it is missing, is not a sweep, or asks for something unknown, not allowed or not supported here.
    """
    path = Path(expand_home(path))
    written = read_yaml(path, "sweep file")
    if written is None or not isinstance(written.value, dict):
        raise UserError(f"sweep file {path} contains no `key: value` lines")
    # Numbers are as in YAML (1e-6 is one), text as it is written.
    content: dict[str, Any] = written.plain()
    for key in ("name", "program"):
        if content.get(key) is not None:
            content[key] = written.value[key].text
    if isinstance(content.get("command"), list):
        content["command"] = [item.text for item in written.value["command"].value]
    if isinstance(content.get("parameters"), dict):
        content["parameters"] = _specs(written.value["parameters"], path)
    try:
        return _sweep(path, content)
    except UserError as error:
        raise UserError(f"sweep file {path}: {error}") from None


def _specs(parameters: Written, path: Path, prefix: str = "") -> dict[str, Any]:
    """The entry of each parameter; the values of a setting that is text are text, such as 007."""
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
        if key not in (*_READ, *_IGNORED):
            close = difflib.get_close_matches(key, _READ, n=1)
            raise UserError(f"the key '{key}' is not supported" + (f"; did you mean '{close[0]}'?" if close else ""))
    method = content.get("method")
    if method not in METHODS:
        raise UserError(f"method is {method}, it has to be {', '.join(METHODS[:-1])} or {METHODS[-1]}")
    hints: list[str] = []

    metric = content.get("metric", {})
    if not isinstance(metric, Mapping):
        raise UserError(f"metric is {metric}, it has to contain name and goal")
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise UserError(f"the goal of the metric is {goal}, it has to be minimize or maximize")
    hints += [f"metric.{key} has no effect here." for key in metric.keys() - {"name", "goal"}]

    specs = content.get("parameters")
    if not isinstance(specs, Mapping) or not specs:
        raise UserError("it has no parameters")
    parameters: dict[str, dict[str, Any]] = {}
    space: dict[str, BaseDistribution] = {}
    for name, spec in flatten(specs):
        check_name(name)
        if name in parameters:
            raise UserError(f"parameter '{name}' is given twice")
        parameters[name], space[name] = spec, distribution_of(name, spec)
        check_values(name, space[name])
        hint = hint_of(name, spec, space[name])
        if hint is not None:
            hints.append(hint)

    title = str(content.get("name") or path.stem)
    folder = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in title).strip(".")
    sweep = Sweep(
        path=path,
        name=folder or "sweep",
        program=content.get("program"),
        arguments=_arguments(content.get("command")),
        method=method,
        metric=str(metric.get("name", "val_loss")),
        goal=goal,
        parameters=parameters,
        space=space,
        halving=_halving(content.get("early_terminate")),
        run_cap=_whole(content, "run_cap", least=1) if "run_cap" in content else None,
        hints=hints,
    )
    if method == "grid":
        _ = sweep.grid  # raises for a range without steps
    return sweep


def _arguments(command: Any) -> list[str]:
    """The arguments in W&B's `command` besides `${args}`."""
    if command is None:
        return []
    items = [str(item) for item in command] if isinstance(command, list) else []
    if "${program}" not in items:
        raise UserError("command has to be a list that contains ${program}")
    place = items.index("${program}")
    before, after = items[:place], [item for item in items[place + 1 :] if item != "${args}"]
    strange = [item for item in before if item not in ("${env}", "${interpreter}", "python", "python3")]
    strange += [item for item in after if item.startswith("${")]
    if strange:
        raise UserError(f"command has {strange[0]}, but trials run as python ${{program}} ${{args}}")
    return after


def _halving(content: Any) -> Halving | None:
    """W&B's hyperband, whose single bracket is successive halving."""
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
    for _ in range(_whole(content, "s", least=1)):  # backwards from max_iter, as long as there is a whole iteration
        if first >= eta:
            first /= eta
    return Halving(int(first), eta)


def _whole(content: Mapping[str, Any], key: str, least: int) -> int:
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1 or value < least:
        raise UserError(f"{key} is {value}, it has to be a whole number from {least} on")
    return int(value)
