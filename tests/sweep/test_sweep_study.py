"""The record of a sweep: numbers that never meet, places that are never taken twice, trials that are never lost."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState
from sweep_helpers import LR, make_sweep, trials_in

from bimact.errors import UserError
from bimact.sweep.study import SweepStudy, process_mark, shown_url

optuna.logging.set_verbosity(optuna.logging.WARNING)
GONE = {"host": socket.gethostname(), "pid": 2**22 + 1, "created": 0.0}


def open_study(folder: Path, storage: str | None = None, warm_up: int | None = None, **changes: Any) -> SweepStudy:
    """Named after its folder; `settings` may be among the changes."""
    settings = changes.pop("settings", {"num_epochs": 4})
    return SweepStudy(make_sweep(folder.parent, **changes), folder, storage, settings, seed=0, warm_up=warm_up)


def begin(study: SweepStudy, total: int = 99) -> optuna.Trial:
    trial = study.next_trial(total)
    assert trial is not None
    return trial


def test_there_are_as_many_places_as_trials(tmp_path: Path) -> None:
    study = open_study(tmp_path / "s")
    first, second = begin(study, 2), begin(study, 2)
    assert (first.number, second.number) == (0, 1)
    assert study.next_trial(2) is None, "running trials take a place"
    study.study.tell(first, 1.0)
    study.study.tell(second, state=TrialState.FAIL)
    assert study.next_trial(2) is None, "failed trials take a place"
    assert begin(study, 3).number == 2


def test_a_machine_that_was_slower_leaves_the_place(tmp_path: Path) -> None:
    """Without a folder in common nothing but the storage's numbers keeps two machines apart."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    here, there = open_study(tmp_path / "a" / "s", url), open_study(tmp_path / "b" / "s", url)
    begin(here, 2)
    ask = there.study.ask
    there.study.ask = lambda: (begin(here, 2), ask())[1]  # type: ignore[method-assign, misc]
    assert there.next_trial(2) is None
    assert [trial.number for trial in here.trials()] == [0, 1] == [trial.number for trial in there.trials()]
    assert begin(here, 3).number == 3


def test_draws_depend_on_the_number_alone(tmp_path: Path) -> None:
    """So two processes never try the same, and one that comes back does not repeat itself."""
    one, other = open_study(tmp_path / "a" / "s"), open_study(tmp_path / "b" / "s")
    params = [begin(one).params for _ in range(4)]
    begin(other)
    again = open_study(tmp_path / "b" / "s")
    assert [begin(study).params for study in (again, other, again)] == params[1:]
    assert len({trial["lr"] for trial in params}) == 4


# Trials whose process has gone -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_trial_of_a_killed_process_is_repeated(tmp_path: Path) -> None:
    open_study(tmp_path / "s")
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from test_sweep_study import begin, open_study\n"
        "trial = begin(open_study(Path(sys.argv[2]))); trial.set_user_attr('folder', 'trial-0000'); os._exit(9)"
    )
    arguments = [str(Path(__file__).parent), str(tmp_path / "s")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 9, result.stderr
    study = open_study(tmp_path / "s")
    lost = study.trials()[0]
    assert lost.state == TrialState.RUNNING
    trial = begin(study, 1)
    assert trial.number == 1 and trial.params == lost.params
    assert trial.user_attrs["folder"] == "trial-0000" and trial.user_attrs["goes_on"] == 0
    assert [each.number for each in study.trials()] == [1], "both count"
    assert study.study.trials[0].state == TrialState.FAIL
    assert study.next_trial(1) is None


def test_its_training_is_asked_to_end_first(tmp_path: Path) -> None:
    study = open_study(tmp_path / "s")
    trial = begin(study)
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit()))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    orphan = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert orphan.stdout is not None and orphan.stdout.readline() == "ready\n"
    trial.set_user_attr("process", process_mark(psutil.Process(orphan.pid)))
    trial.set_user_attr("owner", GONE)
    assert begin(study).params == trial.params
    assert orphan.stdout.read() == "saved\n"
    orphan.wait()


def test_another_process_with_the_same_number_is_left_alone(tmp_path: Path) -> None:
    study = open_study(tmp_path / "s")
    trial = begin(study)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    trial.set_user_attr("process", {"pid": other.pid, "created": 1.0})
    trial.set_user_attr("owner", {**GONE, "pid": other.pid})
    begin(study)
    assert study.study.trials[0].state == TrialState.FAIL and other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.parametrize("silent, is_lost", [(60, False), (3600, True)])
def test_trials_of_other_machines_are_lost_after_a_silence(tmp_path: Path, silent: float, is_lost: bool) -> None:
    study = open_study(tmp_path / "s")
    trial = begin(study)
    trial.set_user_attr("owner", {**GONE, "host": "elsewhere"})
    trial.set_user_attr("alive", time.time() - silent)
    assert (begin(study).params == trial.params) == is_lost
    assert (study.study.trials[0].state == TrialState.FAIL) == is_lost


def test_a_lost_combination_of_a_grid_is_repeated(tmp_path: Path) -> None:
    parameters = {"batch_size": {"values": [1, 2, 3, 4]}}
    study = open_study(tmp_path / "s", method="grid", parameters=parameters)
    for lost in (False, True, False, False, True, False):
        trial = begin(study, 4)
        if lost:
            trial.set_user_attr("owner", GONE)
        else:
            study.study.tell(trial, 1.0)
    assert study.next_trial(4) is None
    assert sorted(trial.params["batch_size"] for trial in study.trials()) == [1, 2, 3, 4]


def test_a_trial_that_ended_meanwhile_is_not_put_back(tmp_path: Path) -> None:
    study = open_study(tmp_path / "s")
    number = begin(study).number
    running = study.study.trials[number]
    study.study.tell(running.number, 0.5)
    study.put_back(running)
    assert [trial.state for trial in study.study.trials] == [TrialState.COMPLETE]


# The same sweep or another ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, difference",
    [
        ({"method": "bayes"}, "method was random and is bayes"),
        ({"metric": {"name": "total_loss"}}, "metric was minimize val_loss and is minimize total_loss"),
        ({"metric": {"name": "val_loss", "goal": "maximize"}}, "and is maximize val_loss"),
        ({"program": "other.py"}, "program was .* and is other.py"),
        (
            {"parameters": {"lr": {"min": 1e-5, "max": 1e-4}}},
            r"parameter lr was \{distribution: log_uniform_values, max: 0.0001, min: 1e-06\} and is \{max: ",
        ),
        ({"parameters": {"lr": LR, "dropout": {"value": 0}}}, r"parameter dropout was not set and is \{value: 0\}"),
        ({"settings": {"num_epochs": 8}}, "num_epochs was 4 and is 8"),
    ],
)
def test_another_sweep_needs_another_name(tmp_path: Path, changes: dict[str, Any], difference: str) -> None:
    begin(open_study(tmp_path / "s"))
    (tmp_path / "s-2").mkdir()
    with pytest.raises(UserError, match=f"{difference}.*a free name such as --output_dir {tmp_path}/s-3"):
        open_study(tmp_path / "s", **changes)
    assert len(open_study(tmp_path / "s").trials()) == 1


def test_what_does_not_change_a_sweep(tmp_path: Path) -> None:
    begin(open_study(tmp_path / "s"))
    changes = {"name": "x", "run_cap": 3, "settings": {"num_epochs": 4, "new_in_this_version": 1}}
    assert len(open_study(tmp_path / "s", **changes).trials()) == 1


def test_trials_without_their_study_are_not_mixed_with_others(tmp_path: Path) -> None:
    (tmp_path / "s" / "trial-0000").mkdir(parents=True)
    with pytest.raises(UserError, match=f"contains trials of another study: .* --output_dir {tmp_path}/s-2"):
        open_study(tmp_path / "s")


def test_several_sweeps_in_one_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    begin(open_study(tmp_path / "s", url))
    begin(open_study(tmp_path / "other", url, method="bayes"))
    assert len(trials_in(tmp_path / "s", url)) == len(trials_in(tmp_path / "other", url)) == 1
    assert not list(tmp_path.glob("*/study.db"))


@pytest.mark.parametrize(
    "url, complaint",
    [
        ("nonsense", "cannot use the storage that --storage names"),
        ("nosuchdb://user:secret@host/db", r"cannot use the storage nosuchdb://user:\*\*\*@host/db"),
        ("sqlite:////no/such/folder/x.db", "cannot open the storage sqlite:////no/such/folder/x.db"),
    ],
)
def test_databases_that_cannot_be_used(tmp_path: Path, url: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        open_study(tmp_path / "s", url)


def test_no_password_is_shown() -> None:
    assert shown_url("postgresql://me:secret@host/sweeps") == "postgresql://me:***@host/sweeps"


def test_a_name_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}/s: File exists"):
        open_study(tmp_path / "s")


# Samplers and pruners --------------------------------------------------------------------------------


def test_methods_are_optunas(tmp_path: Path) -> None:
    bayes = open_study(tmp_path / "a" / "s", method="bayes")
    assert isinstance(bayes.study.sampler, TPESampler) and isinstance(bayes.study.pruner, NopPruner)
    early = {"type": "hyperband", "min_iter": 2}
    random = open_study(tmp_path / "b" / "s", warm_up=5, early_terminate=early)
    assert isinstance(random.study.sampler, RandomSampler)
    assert isinstance(random.study.pruner, SuccessiveHalvingPruner)
    assert isinstance(open_study(tmp_path / "c" / "s", warm_up=5).study.pruner, MedianPruner)


def test_the_median_leaves_trials_their_warm_up(tmp_path: Path) -> None:
    study = open_study(tmp_path / "s", warm_up=3)
    for _ in range(5):
        trial = begin(study)
        for step in range(1, 6):
            trial.report(0.1, step)
        study.study.tell(trial, 0.1)
    trial = begin(study)
    pruned = []
    for step in range(1, 6):
        trial.report(9.0, step)
        pruned.append(trial.should_prune())
    assert pruned == [False, False, True, True, True]


@pytest.mark.slow
def test_bayes_learns(tmp_path: Path) -> None:
    """After its random start it draws near the best values: log10(lr) = -5.5 of a range from -6 to -4."""
    study = open_study(tmp_path / "s", method="bayes")
    draws = []
    for _ in range(40):
        trial = begin(study)
        draws.append(math.log10(trial.params["lr"]))
        study.study.tell(trial, abs(draws[-1] + 5.5))
    late = [abs(draw + 5.5) for draw in draws[-15:]]
    assert sorted(late)[7] < 0.25, "half of the late draws are no nearer than random ones"
