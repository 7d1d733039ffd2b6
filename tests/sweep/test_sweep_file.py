"""Reading sweep files: W&B's syntax as it is, one sentence for each fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from sweep_helpers import make_sweep, write_sweep

from bimact.config import load_config
from bimact.errors import UserError
from bimact.sweep.sweep_file import Halving, read_sweep

GUIDE = """
program: scripts/train_act.py
method: bayes
metric: {name: val_loss, goal: minimize}
parameters:
  lr: {min: 1e-6, max: 1e-4}
  kl_weight: {values: [1.0, 5.0, 10.0, 50.0]}
  batch_size: {values: [4, 8, 16]}
"""


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-6 for text; the file means a number."""
    path = tmp_path / "guide.yaml"
    path.write_text(GUIDE)
    sweep = read_sweep(path)
    assert sweep.space == {
        "lr": FloatDistribution(1e-6, 1e-4),
        "kl_weight": CategoricalDistribution([1.0, 5.0, 10.0, 50.0]),
        "batch_size": CategoricalDistribution([4, 8, 16]),
    }
    assert (sweep.program, sweep.method, sweep.metric, sweep.goal) == (
        "scripts/train_act.py",
        "bayes",
        "val_loss",
        "minimize",
    )
    assert sweep.name == "guide" and sweep.combinations is None
    assert len(sweep.hints) == 1 and sweep.hints[0].startswith("lr is drawn uniformly")


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"method": None}, "method is None, it has to be bayes, random or grid"),
        ({"method": "custom"}, "method is custom"),
        ({"parameters": None}, "it has no parameters"),
        ({"parameters": {}}, "it has no parameters"),
        ({"paramters": {}}, "the key 'paramters' is not supported; did you mean 'parameters'?"),
        ({"job": "x"}, "the key 'job' is not supported"),
        ({"metric": "val_loss"}, "metric is val_loss, it has to contain name and goal"),
        ({"metric": {"name": "val_loss", "goal": "max"}}, "the goal of the metric is max"),
        ({"run_cap": 0}, "run_cap is 0, it has to be a whole number from 1 on"),
        ({"early_terminate": {"type": "envelope"}}, "of type: hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "needs min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 1.5}}, "eta is 1.5"),
        ({"command": ["${env}", "accelerate", "${program}", "${args}"]}, "command has accelerate, but trials run"),
        ({"command": ["python", "${program}", "${args_json}"]}, r"command has \$\{args_json\}"),
        ({"command": "python"}, r"a list that contains \$\{program\}"),
        ({"parameters": {"lr": {"value": 1}, "learning_rate": {"value": 1}}}, "no setting is named 'learning_rate'"),
        ({"parameters": {"encoder.fuse": {"value": "mean"}, "encoder": {"parameters": {"fuse": {"value": "gated"}}}}},
         "'encoder.fuse' is given twice"),
        ({"method": "grid"}, "parameter 'lr' is a range without steps"),
    ],
)  # fmt: skip
def test_faults_are_one_sentence(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=f"sweep file .*sweep.yaml: .*{complaint}"):
        make_sweep(tmp_path, **changes)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"sweep file not found: {tmp_path}/none.yaml"):
        read_sweep(tmp_path / "none.yaml")
    for content in ("a: [", "- 1", "a: 1\na: 2", ""):
        (tmp_path / "s.yaml").write_text(content)
        with pytest.raises(UserError, match=r"s\.yaml"):
            read_sweep(tmp_path / "s.yaml")


def test_what_else_a_file_may_say(tmp_path: Path) -> None:
    sweep = make_sweep(
        tmp_path,
        name="my sweep/1",
        project="p",
        entity="e",
        run_cap=7,
        metric={"name": "action_loss", "goal": "maximize", "target": 3},
        command=["${env}", "${interpreter}", "${program}", "--dataset_dir", "D", "${args}"],
        early_terminate={"type": "hyperband", "min_iter": 4},
    )
    assert (sweep.name, sweep.run_cap, sweep.metric, sweep.goal) == ("my-sweep-1", 7, "action_loss", "maximize")
    assert sweep.arguments == ["--dataset_dir", "D"]
    assert sweep.halving == Halving(4, 3)
    assert sweep.hints == ["metric.target has no effect here."]
    assert sweep.best([1, 3, 2]) == 3 and sweep.better(2, 1)


@pytest.mark.parametrize(
    "max_iter, s, eta, first", [(27, 2, 3, 3), (27, 3, 3, 1), (20, 9, 3, 2), (100, 1, 2, 50), (1, 2, 3, 1)]
)
def test_hyperband_backwards_from_its_last_iteration(
    tmp_path: Path, max_iter: int, s: int, eta: int, first: int
) -> None:
    early = {"type": "hyperband", "max_iter": max_iter, "s": s, "eta": eta}
    assert make_sweep(tmp_path, early_terminate=early).halving == Halving(first, eta)


def test_a_grid_has_an_end(tmp_path: Path) -> None:
    parameters = {"batch_size": {"values": [4, 8]}, "nheads": {"min": 1, "max": 3}, "lr": {"value": 1e-5}}
    sweep = make_sweep(tmp_path, method="grid", parameters=parameters)
    assert sweep.combinations == 6


def test_text_is_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        """
name: 2024_10_05
method: random
program: 007
command:
- ${env}
- python
- ${program}
- --wandb_project
- 1.10
- ${args}
parameters:
  wandb_name: {values: [007, yes, 1.10, null]}
  mixed_precision: {values: [no, bf16]}
  cameras: {values: [[left, 012345670123], 'a,b', [é]]}
  encoder:
    parameters:
      pretrained: {values: [true, null, 2b, 007]}
      model_name: {value: 50}
  seed: {values: [007, 0x10]}
"""
    )
    sweep = read_sweep(tmp_path / "s.yaml")
    assert (sweep.name, sweep.program, sweep.arguments) == ("2024_10_05", "007", ["--wandb_project", "1.10"])
    assert {name: list(distribution.choices) for name, distribution in sweep.space.items()} == {  # type: ignore[attr-defined]
        "wandb_name": ["007", "yes", "1.10", None],
        "mixed_precision": ["no", "bf16"],
        "cameras": ['["left","012345670123"]', "a,b", '["é"]'],
        "encoder.pretrained": [True, None, "2b", "007"],
        "encoder.model_name": ["50"],
        "seed": [7, 16],
    }
    configs = [load_config(None, [f"cameras={choice}"]) for choice in sweep.grid["cameras"]]
    assert [config.cameras for config in configs] == [["left", "012345670123"], ["a", "b"], ["é"]]


def test_text_that_a_command_line_cannot_give_is_told(tmp_path: Path) -> None:
    for name, text in (("wandb_name", "null"), ("encoder.pretrained", "true")):
        with pytest.raises(UserError, match=f"parameter '{name}': the text '{text}' would be read as {text}"):
            make_sweep(tmp_path, parameters={name: {"values": [text, "a"]}})
    with pytest.raises(UserError, match=r"s\.yaml, line 4: setting 'wandb_name' is a list"):
        (tmp_path / "s.yaml").write_text("method: random\n\nparameters:\n  wandb_name: {value: [a]}\n")
        read_sweep(tmp_path / "s.yaml")


def test_the_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """Nothing in it is resolved or run."""
    path = write_sweep(tmp_path / "s.yaml", command=["${env}", "${envvar:HOME}", "${program}", "${args}"])
    with pytest.raises(UserError, match=r"\$\{envvar:HOME\}"):
        read_sweep(path)
