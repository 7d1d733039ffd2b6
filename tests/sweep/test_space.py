"""Parameters in W&B's syntax: what is drawn lies where the file says, and what makes no sense is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from bimact.config import load_config
from bimact.errors import UserError
from bimact.sweep.space import as_text, check_name, check_values, distribution_of, flatten, grid_values, hint_of
from bimact.sweep.study import _draw

optuna.logging.set_verbosity(optuna.logging.WARNING)
SIZES = st.floats(1e-6, 1e6)


def draws(distribution: BaseDistribution, count: int = 20) -> list[Any]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(count)]
    for trial in trials:
        _draw(trial, "x", distribution)
    return [trial.params["x"] for trial in trials]


def ranges(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    return st.tuples(elements, elements).map(sorted).filter(lambda pair: pair[0] < pair[1]).map(tuple)


@settings(max_examples=25)
@given(ranges(SIZES))
def test_floats_lie_between_min_and_max(bounds: tuple[float, float]) -> None:
    low, high = bounds
    if optuna.__version__.startswith("4."):  # it rounds logarithms
        assume(high > low * (1 + 1e-12))
    for kind in (None, "uniform", "log_uniform_values", "inv_log_uniform_values"):
        spec = {"min": low, "max": high, **({"distribution": kind} if kind else {})}
        assert all(isinstance(value, float) and low <= value <= high for value in draws(distribution_of("x", spec), 5))


@settings(max_examples=25)
@given(ranges(st.integers(-50, 50)))
def test_whole_bounds_give_whole_numbers(bounds: tuple[int, int]) -> None:
    low, high = bounds
    distribution = distribution_of("x", {"min": low, "max": high})
    assert all(isinstance(value, int) and low <= value <= high for value in draws(distribution, 5))
    assert grid_values("x", distribution) == list(range(low, high + 1))


@settings(max_examples=25)
@given(ranges(st.floats(-5, 5)))
def test_log_uniform_takes_exponents(exponents: tuple[float, float]) -> None:
    low, high = exponents
    for kind, signs in (("log_uniform", (low, high)), ("inv_log_uniform", (-high, -low))):
        values = draws(distribution_of("x", {"distribution": kind, "min": signs[0], "max": signs[1]}), 5)
        assert all(math.exp(low) * (1 - 1e-9) <= value <= math.exp(high) * (1 + 1e-9) for value in values)


@settings(max_examples=40)
@given(ranges(st.integers(0, 60)), st.integers(1, 12), st.sampled_from([1, 0.5, 0.1]))
def test_q_uniform_takes_the_multiples_of_q_within_the_bounds(bounds: tuple[int, int], q: int, unit: float) -> None:
    low, high, step = (round(number * unit, 1) for number in (*bounds, q))  # as a file has them
    if unit == 1:
        low, high, step = int(low), int(high), int(step)
    wanted = [k * step for k in range(1000) if low - 1e-9 <= k * step <= high + 1e-9]
    spec = {"distribution": "q_uniform", "min": low, "max": high, "q": step}
    if not wanted:
        with pytest.raises(UserError, match="parameter 'x': there is no multiple of q"):
            distribution_of("x", spec)
        return
    distribution = distribution_of("x", spec)
    assert grid_values("x", distribution) == pytest.approx(wanted)
    for value in draws(distribution, 5):
        assert min(abs(value - each) for each in wanted) < 1e-9
        assert isinstance(value, int) == (unit == 1)


@settings(max_examples=25)
@given(st.lists(st.one_of(st.integers(), st.text(max_size=5), st.floats(allow_nan=False)), min_size=1, unique=True))
def test_values_are_drawn_from(values: list[Any]) -> None:
    distribution = distribution_of("x", {"values": values})
    assert all(value in values for value in draws(distribution, 5))
    assert grid_values("x", distribution) == values


def test_other_distributions() -> None:
    assert distribution_of("x", {"value": "l2"}) == CategoricalDistribution(["l2"])
    assert distribution_of("x", {"value": None, "distribution": "constant"}) == CategoricalDistribution([None])
    assert distribution_of("x", {"values": [1, 2], "distribution": "categorical"}) == CategoricalDistribution([1, 2])
    assert distribution_of("x", {"min": 0, "max": 1.5}) == FloatDistribution(0, 1.5)
    assert distribution_of("x", {"distribution": "int_uniform", "min": 1.0, "max": 3.0}) == IntDistribution(1, 3)
    spec = {"distribution": "q_log_uniform_values", "min": 1, "max": 64}
    assert distribution_of("x", spec) == IntDistribution(1, 64, log=True)
    spec = {"distribution": "q_log_uniform", "min": 0, "max": math.log(64.5), "q": 1}
    assert distribution_of("x", spec) == IntDistribution(1, 64, log=True)


@pytest.mark.parametrize("low, high", [("1e-6", "1e-4"), ("0.000001", 1e-4)])
def test_numbers_in_quotes_are_numbers(low: Any, high: Any) -> None:
    assert distribution_of("lr", {"min": low, "max": high}) == FloatDistribution(1e-6, 1e-4)


@pytest.mark.parametrize(
    "spec, complaint",
    [
        ({}, "it needs value, values, or min and max"),
        ({"min": 1}, "it needs value, values, or min and max"),
        ({"min": 2, "max": 1}, r"min \(2\) is not less than max \(1\)"),
        ({"min": "low", "max": 1}, "min is 'low', it has to be a number"),
        ({"min": True, "max": 2}, "min is True, it has to be a number"),
        ({"min": 0.0, "max": math.inf}, "max is inf, it has to be a number"),
        ({"min": 1, "max": 2, "log": True}, "no key is named 'log'"),
        ({"min": 1, "max": 2, "distributoin": "uniform"}, "did you mean 'distribution'?"),
        ({"values": []}, "values has to be a non-empty list"),
        ({"values": 3}, "values has to be a non-empty list"),
        ({"values": [4, 8, 4]}, "contains duplicates"),
        ({"distribution": "normal", "mu": 0, "sigma": 1}, "distribution normal is not supported: categorical,"),
        ({"values": [1], "distribution": "categorical_w_probabilities", "probabilities": [1]}, "is not supported"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min is 0, on a logarithmic scale"),
        ({"distribution": "log_uniform", "min": 1e-6, "max": 1e4}, "these are too large"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, "q is 0, it has to be more than 0"),
        ({"distribution": "q_log_uniform_values", "min": 2, "max": 64, "q": 2}, "steps only if q is 1"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 2}, "have to be whole numbers"),
    ],
)
def test_what_cannot_be_drawn_is_told(spec: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=f"parameter 'x': .*{complaint}"):
        distribution_of("x", spec)


def test_nested_and_dotted_names_are_settings() -> None:
    nested = {"encoder": {"parameters": {"freeze": {"value": True}}}, "encoder.fuse": {"value": "mean"}}
    assert dict(flatten(nested)) == {"encoder.freeze": {"value": True}, "encoder.fuse": {"value": "mean"}}
    with pytest.raises(UserError, match="parameter 'encoder.freeze' is True, it has to contain value"):
        dict(flatten({"encoder": {"parameters": {"freeze": True}}}))


def test_unknown_names_have_a_neighbour() -> None:
    with pytest.raises(UserError, match="no setting is named 'batchsize'; did you mean 'batch_size'"):
        check_name("batchsize")
    with pytest.raises(UserError, match="each trial has its own folder"):
        check_name("output_dir")
    check_name("encoder.freeze")


@pytest.mark.parametrize(
    "name, spec, complaint",
    [
        ("lr", {"min": 0.0, "max": 1.0}, "parameter 'lr': setting 'lr' is 0.0, it has to be more than 0"),
        ("dropout", {"min": 0.0, "max": 1.0}, "'dropout' is 1.0, it has to be less than 1"),
        ("batch_size", {"values": [4, 0]}, "'batch_size' is 0, it has to be at least 1"),
        ("batch_size", {"min": 4.0, "max": 16.5}, "setting 'batch_size': Value '4.0'"),
        ("action_loss", {"values": ["l1", "l3"]}, "'action_loss' is 'l3', it has to be l1 or l2"),
    ],
)
def test_the_schema_has_to_allow_all_values(name: str, spec: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_values(name, distribution_of(name, spec))


def test_values_that_fit_only_together_are_left_to_the_trials() -> None:
    check_values("nheads", distribution_of("nheads", {"values": [6, 12]}))  # of hidden_dim 768
    check_values("execute_steps", distribution_of("execute_steps", {"values": [None, 80]}))  # of chunk_size 100


@pytest.mark.parametrize("value", [[128, 96], None, True, 1e-06, "gated", ["top", "left"]])
def test_a_setting_is_what_the_file_says(value: Any, tmp_path: Path) -> None:
    fields = {list: "cameras", bool: "encoder.freeze", float: "lr", str: "encoder.fuse", type(None): "cameras"}
    name = "encoder.image_size" if value == [128, 96] else fields[type(value)]
    choice = distribution_of(name, {"values": [value]}).choices[0]  # type: ignore[attr-defined]
    config: Any = load_config(None, [f"{name}={as_text(choice)}"])
    for part in name.split("."):
        config = getattr(config, part)
    assert config == value


def test_a_wide_uniform_range_gets_a_hint() -> None:
    def hint(**spec: Any) -> str | None:
        return hint_of("lr", spec, distribution_of("lr", spec))

    assert "nine of ten draws are above 1e-05" in str(hint(min=1e-6, max=1e-4))
    assert "log_uniform_values" in str(hint(min=1e-6, max=1e-4))
    assert hint(min=1e-5, max=1e-4) is None
    assert hint(min=0.0, max=1e-4) is None
    assert hint(min=1, max=1000) is None
    assert hint(min=1e-6, max=1e-4, distribution="uniform") is None
