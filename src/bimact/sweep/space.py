"""The parameters of a sweep file, in W&B's syntax, as Optuna's distributions over bimact's settings."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from bimact.config import SettingError, is_text, load_config, setting_names, setting_value
from bimact.errors import UserError

_KEYS = ("distribution", "value", "values", "min", "max", "q", "mu", "sigma", "a", "b", "probabilities", "parameters")
_WIDE = 100  # max / min of a uniform range above which there is a hint


def flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of settings, nested ones with dots, and their entries."""
    for name, spec in parameters.items():
        if not isinstance(spec, Mapping):
            raise UserError(f"parameter '{prefix}{name}' is {spec!r}, it has to contain value, values, or min and max")
        if isinstance(spec.get("parameters"), Mapping):
            yield from flatten(spec["parameters"], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", dict(spec)


def check_name(name: str) -> None:
    """Check that a parameter is a setting of bimact that may differ between trials."""
    if name == "output_dir":
        raise UserError("parameter 'output_dir' cannot be swept: each trial has its own folder")
    names = setting_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        raise UserError(f"no setting is named '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""))


def distribution_of(name: str, spec: Mapping[str, Any]) -> BaseDistribution:
    """The distribution of a parameter; a constant is a categorical one with a single choice.

    Args:
        name: of the parameter, for messages.
        spec: in W&B's syntax: `value`, `values`, or `min` and `max` with or without `distribution`.

    Raises:
        UserError: for invalid syntax, or a distribution that Optuna does not have.
    """
    try:
        for key in spec:
            if key not in _KEYS:
                close = difflib.get_close_matches(str(key), _KEYS, n=1)
                raise ValueError(f"no key is named '{key}'" + (f"; did you mean '{close[0]}'?" if close else ""))
        kind = spec.get("distribution") or _implied_kind(spec)
        if kind in ("categorical", "constant"):
            return CategoricalDistribution(_choices(spec))
        if kind not in _RANGES:
            raise ValueError(
                f"distribution {kind} is not supported: {', '.join(('categorical', 'constant', *_RANGES))} are"
            )
        low, high = _number(spec, "min"), _number(spec, "max")
        if low >= high:
            raise ValueError(f"min ({low:g}) is not less than max ({high:g})")
        return _RANGES[kind](low, high, _number({"q": 1, **spec}, "q"))
    except OverflowError:
        raise UserError(f"parameter '{name}': min and max are exponents, and these are too large") from None
    except ValueError as error:
        raise UserError(f"parameter '{name}': {error}") from None


def check_values(name: str, distribution: BaseDistribution) -> None:
    """Check that the schema of the settings allows all values.

    Combinations of settings are checked by the trials.
    """
    if isinstance(distribution, CategoricalDistribution):
        values = list(distribution.choices)
    else:
        assert isinstance(distribution, (IntDistribution, FloatDistribution))
        values = [distribution.low, distribution.high]
    for value in values:
        try:
            given = setting_value(load_config(None, [f"{name}={as_text(value)}"]), name)
        except SettingError as error:
            if error.setting == name:
                raise UserError(f"parameter '{name}': {error}") from None
            continue
        except UserError:
            continue
        if isinstance(value, str) and (given is None or isinstance(given, bool)) and is_text(name):
            raise UserError(f"parameter '{name}': the text '{value}' would be read as {as_text(given)}: take another")


def hint_of(name: str, spec: Mapping[str, Any], distribution: BaseDistribution) -> str | None:
    """A hint for a wide uniform range of floats, which was probably meant to be logarithmic."""
    if "distribution" in spec or not isinstance(distribution, FloatDistribution):
        return None
    low, high = distribution.low, distribution.high
    if low <= 0 or high / low < _WIDE:
        return None
    return (
        f"{name} is drawn uniformly from {low:g} to {high:g}, as W&B does it: nine of ten draws are above "
        f"{high / 10:g}. With distribution: log_uniform_values each power of ten gets the same share."
    )


def grid_values(name: str, distribution: BaseDistribution) -> list[Any]:
    """All values that a parameter takes in a grid.

    Raises:
        UserError: for a range without steps.
    """
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is None:
        raise UserError(
            f"parameter '{name}' is a range without steps, whose grid is infinite: "
            "give values, or distribution: q_uniform with its step q"
        )
    steps = round((distribution.high - distribution.low) / distribution.step)
    values = (distribution.low + step * distribution.step for step in range(steps + 1))
    return [min(value, distribution.high) for value in values]  # rounding must not lead out of the range


def as_text(value: Any) -> str:
    """A value as on a command line or in a config."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _implied_kind(spec: Mapping[str, Any]) -> str:
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical"
    if "min" not in spec or "max" not in spec:
        raise ValueError("it needs value, values, or min and max")
    return "int_uniform" if _is_whole(spec["min"]) and _is_whole(spec["max"]) else "uniform"


def _choices(spec: Mapping[str, Any]) -> list[Any]:
    values = [spec["value"]] if "value" in spec else spec.get("values")
    if not isinstance(values, list) or not values:
        raise ValueError("values has to be a non-empty list")
    # Optuna stores single values only; a list becomes text as on the command line.
    choices = [as_text(value) if isinstance(value, (list, dict)) else value for value in values]
    if len(set(choices)) < len(choices):
        raise ValueError(f"values {choices} contains duplicates")
    return choices


def _number(spec: Mapping[str, Any], key: str) -> float:
    """A number, which may be written as text."""
    if key not in spec:
        raise ValueError(f"it needs {key}")
    value = spec[key]
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{key} is '{value}', it has to be a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key} is {value}, it has to be a number")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integers(low: float, high: float, _: float) -> BaseDistribution:
    if low != int(low) or high != int(high):
        raise ValueError(f"min ({low:g}) and max ({high:g}) have to be whole numbers")
    return IntDistribution(int(low), int(high))


def _multiples(low: float, high: float, q: float) -> BaseDistribution:
    """The multiples of q from low to high."""
    if q <= 0:
        raise ValueError(f"q is {q:g}, it has to be more than 0")
    first, last = math.ceil(round(low / q, 9)), math.floor(round(high / q, 9))
    if first > last:
        raise ValueError(f"there is no multiple of q ({q:g}) from {low:g} to {high:g}")
    if all(map(_is_whole, (low, high, q))):
        return IntDistribution(first * int(q), last * int(q), step=int(q))
    unit = Decimal(str(q))  # 3 * 0.1 is more than 0.3 otherwise
    return FloatDistribution(float(first * unit), float(last * unit), step=q)


def _logarithmic(low: float, high: float, _: float = 1) -> BaseDistribution:
    if low <= 0:
        raise ValueError(f"min is {low:g}, on a logarithmic scale it has to be more than 0")
    return FloatDistribution(low, high, log=True)


def _logarithmic_integers(low: float, high: float, q: float) -> BaseDistribution:
    if q != 1 or low < 1:
        raise ValueError("a logarithmic scale has steps only if q is 1 and the smallest value at least 1")
    return IntDistribution(math.ceil(low), math.floor(high), log=True)


# By their names in W&B; of min, max and q. An inverse logarithm of x, log(1 / x), is uniform where log(x) is.
_RANGES: dict[str, Callable[[float, float, float], BaseDistribution]] = {
    "uniform": lambda low, high, _: FloatDistribution(low, high),
    "int_uniform": _integers,
    "q_uniform": _multiples,
    "log_uniform_values": _logarithmic,
    "log_uniform": lambda low, high, _: _logarithmic(math.exp(low), math.exp(high)),
    "inv_log_uniform_values": _logarithmic,
    "inv_log_uniform": lambda low, high, _: _logarithmic(math.exp(-high), math.exp(-low)),
    "q_log_uniform_values": _logarithmic_integers,
    "q_log_uniform": lambda low, high, q: _logarithmic_integers(math.exp(low), math.exp(high), q),
}
