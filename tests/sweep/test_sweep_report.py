"""The page on a sweep: what it says of a real study, that it needs no other file, and that browsers show it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from browser import CONTRAST, Browser
from optuna.trial import TrialState
from sweep_helpers import LR, make_sweep

from bimact.config import Config
from bimact.sweep.plan import SweepPlan
from bimact.sweep.report import at_the_edge, importances, write_report
from bimact.sweep.study import SweepStudy
from bimact.sweep.summary import best_trial, summary

optuna.logging.set_verbosity(optuna.logging.WARNING)
HOSTILE = "<script>alert('x')</script>&\"$"
MANY = {
    "lr": LR,
    "kl_weight": {"values": [1.0, 5.0, 10.0, 50.0]},
    "batch_size": {"values": [4, 8, 16]},
    "encoder": {"parameters": {"fuse": {"values": ["mean", "concat_mlp", "gated", "tokens"]}}},
    "encoder.image_size": {"values": [[128, 128], [224, 224]]},
    "gradient_accumulation_steps": {"distribution": "q_uniform", "min": 2, "max": 8, "q": 2},
    "lr_schedule": {"value": "cosine"},
}


def make_study(folder: Path, **changes: Any) -> tuple[SweepPlan, SweepStudy]:
    sweep = make_sweep(folder, method="bayes", **{"parameters": MANY, **changes})
    plan = SweepPlan(
        sweep=sweep,
        config=Path("configs/policy_act.yaml"),
        settings={"dataset_dir": "/data/cube", "num_epochs": "20"},
        base=Config(num_epochs=20),
        dataset="",
        program=Path("scripts/train_act.py"),
        folder=folder / "s",
        storage=None,
        total=20,
        jobs=1,
        timeout=None,
        pruning=True,
        command="bimact sweep configs/sweep.yaml --dataset_dir /data/cube --trials 20",
    )
    return plan, SweepStudy(sweep, plan.folder, "sqlite:///:memory:", {}, seed=0, warm_up=plan.warm_up)


def add_trials(study: SweepStudy, count: int, loss: Callable[[dict[str, Any]], float], error: str = "boom") -> None:
    """Trials whose loss falls over the epochs; the seventh fails, and bad ones are pruned."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        trial = study.next_trial(count)
        assert trial is not None
        trial.set_user_attr("folder", f"trial-{trial.number:04d}")
        if trial.number == 6:
            trial.set_user_attr("error", error)
            study.study.tell(trial, state=TrialState.FAIL)
            continue
        for epoch in range(1, 21):
            value = loss(trial.params) + 0.5 * math.exp(-epoch / 4) + draw.normal(0, 0.001)
            trial.report(value, epoch)
            if trial.should_prune():
                study.study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.study.tell(trial, value)


def by_lr(params: dict[str, Any]) -> float:
    return 0.05 + 0.1 * (math.log10(params["lr"]) + 5) ** 2


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepPlan, SweepStudy]:
    plan, study = make_study(tmp_path_factory.mktemp("full"))
    add_trials(study, 24, by_lr, error=HOSTILE)
    write_report(plan, study.trials())
    return plan, study


def text_of(plan: SweepPlan) -> str:
    page = (plan.folder / "report.html").read_text()
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_it_names_the_best_trial_and_how_to_train_with_it(full: tuple[SweepPlan, SweepStudy]) -> None:
    plan, study = full
    best, text = best_trial(plan.sweep, study.trials()), text_of(plan)
    assert best is not None and best.value == study.study.best_value
    assert f"{best.value:.4g} val_loss of trial {best.number}, the best of" in text
    command = "python scripts/train_act.py --config configs/policy_act.yaml --output_dir runs/s-best"
    assert f"{command} --dataset_dir=/data/cube --num_epochs=20 --" in text and f" --lr={best.params['lr']} " in text
    assert f"--encoder.image_size={best.params['encoder.image_size']}" in text and "--lr_schedule=cosine" in text
    assert command in summary(plan, study.trials())


def test_it_has_a_row_for_each_trial_the_best_first(full: tuple[SweepPlan, SweepStudy]) -> None:
    plan, study = full
    rows = re.findall(
        r'<tr class="(\w+)( first)?"><th scope="row" class="number">(\d+)</th>',
        (plan.folder / "report.html").read_text(),
    )
    trials = {trial.number: trial for trial in study.trials()}
    assert sorted(int(number) for _, _, number in rows) == sorted(trials)
    finished = [trials[int(number)].value or 0 for state, _, number in rows if state == "finished"]
    assert finished == sorted(finished) and rows[0][1] and sum(bool(first) for _, first, _ in rows) == 1
    assert [state for state, _, _ in rows].count("pruned") == len(study.study.get_trials(states=(TrialState.PRUNED,)))


def test_it_needs_no_other_file_and_no_name_breaks_it(full: tuple[SweepPlan, SweepStudy]) -> None:
    page = (full[0].folder / "report.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', ""))
    assert HOSTILE in text_of(full[0])
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 3 + 6  # history, curves, importance; a slice for each parameter that varies
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_what_matters_is_what_the_loss_depends_on(full: tuple[SweepPlan, SweepStudy]) -> None:
    plan, study = full
    shares = importances(plan.sweep, study.trials())
    assert max(shares, key=lambda name: shares[name]) == "lr" and sum(shares.values()) == pytest.approx(1)
    assert "lr_schedule" not in shares


def test_few_trials_say_so(tmp_path: Path) -> None:
    plan, study = make_study(tmp_path)
    add_trials(study, 5, by_lr)
    write_report(plan, study.trials())
    assert importances(plan.sweep, study.trials()) == {}
    assert "cannot be estimated from fewer than 12 trials that were finished or pruned; there are 5" in text_of(plan)
    assert "Trials 5 of 20 5 finished" in text_of(plan)


def test_equal_trials_rank_no_parameter(tmp_path: Path) -> None:
    plan, study = make_study(tmp_path)
    for _ in range(14):
        trial = study.next_trial(14)
        assert trial is not None
        trial.set_user_attr("folder", "x")
        study.study.tell(trial, 0.5)
    assert importances(plan.sweep, study.trials()) == {}
    write_report(plan, study.trials())
    best = best_trial(plan.sweep, study.trials())
    assert best is not None and best.number == 0


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_a_best_value_at_the_end_of_its_range_asks_for_more(tmp_path: Path, goal: str) -> None:
    parameters = {"lr": LR, "dropout": {"min": 0.0, "max": 0.5}}
    plan, study = make_study(tmp_path, parameters=parameters, metric={"name": "val_loss", "goal": goal})
    for lr, value in ((9.9e-5, 0.1), (1.01e-6, 0.9)):
        study.study.enqueue_trial({"lr": lr, "dropout": 0.2})
        trial = study.next_trial(2)
        assert trial is not None
        study.study.tell(trial, value)
    best = best_trial(plan.sweep, study.trials())
    assert best is not None
    end = {"minimize": "upper", "maximize": "lower"}[goal]
    assert at_the_edge(plan.sweep, best) == [
        f"lr is at the {end} end of its range: a wider range may contain a better value."
    ]


def test_values_that_are_no_numbers_do_not_break_it(tmp_path: Path) -> None:
    plan, study = make_study(tmp_path, parameters={"lr": LR})
    for values in ([math.nan], [math.inf, 0.3], [], [0.0, -1.0]):
        trial = study.next_trial(4)
        assert trial is not None
        trial.set_user_attr("folder", "x")
        for step, value in enumerate(values, 1):
            trial.report(value, step)
        if values and math.isfinite(values[-1]):
            study.study.tell(trial, values[-1])
        else:
            study.study.tell(trial, state=TrialState.FAIL)
    write_report(plan, study.trials())
    assert "Trials 4 of 20 2 finished, 2 failed" in text_of(plan)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_scrolling_sideways(
    browser: Browser,
    full: tuple[SweepPlan, SweepStudy],
    width: int,
    dark: bool,
) -> None:
    browser.open(full[0].folder / "report.html", width, dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(CONTRAST) >= 4.5, "WCAG 2, level AA"
    overflowing = (
        "[...document.querySelectorAll('.card *')].filter(e => e.getBoundingClientRect().right > innerWidth - 16)"
    )
    assert browser.evaluate(f"{overflowing}.length") == 0
