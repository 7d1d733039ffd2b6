"""The record of a sweep in Optuna's storage: which trials there are, which one is next, whose process has gone."""

from __future__ import annotations

import random
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from bimact.errors import UserError
from bimact.files import lock_file
from bimact.sweep.sweep_file import Sweep

DATABASE = "study.db"
HEARTBEAT = 60.0  # seconds between signs of life of a running trial
_LOST = 10 * HEARTBEAT  # silent for so long, a trial of another machine has gone; clocks differ by less

_UNPRUNED_TRIALS = 5  # a median of fewer says little
_GRID_PLACE = ("grid_id", "search_space")  # where Optuna's grid notes which combination a trial has


class SweepStudy:
    """An Optuna study that several processes and machines may share.

    Trials count as far as they are the sweep's own: one that was interrupted and goes on under another number, and
    one for which another machine was quicker, do not.

    Args:
        sweep: what is searched.
        folder: of the sweep; its name is the study's.
        storage: URL of a database; None: a file in the folder.
        settings: whatever else decides what a trial reaches, by name; trials with others are not comparable.
        seed: of the draws.
        warm_up: values of the metric that a trial may report before the median can end it; None: nothing ends it.

    Raises:
        UserError: if the database cannot be opened, or the name stands for another sweep.
    """

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        storage: str | None,
        settings: Mapping[str, Any],
        seed: int,
        warm_up: int | None,
    ) -> None:
        self.sweep = sweep
        self.folder = folder
        self.seed = seed
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from None
        with self._alone():
            self.study = optuna.create_study(
                study_name=folder.name,
                storage=_open_storage(storage or f"sqlite:///{folder.resolve() / DATABASE}"),
                direction=sweep.goal,
                sampler=self._sampler(0),
                pruner=_pruner(sweep, warm_up),
                load_if_exists=True,
            )
            self._refuse_other_sweep(settings)

    def trials(self) -> list[FrozenTrial]:
        """The sweep's own trials by number, those that wait to go on included."""
        return counted(self.study)

    def next_trial(self, total: int) -> optuna.Trial | None:
        """Begin a trial, with all parameters drawn; None once there are `total`, running ones included."""
        with self._alone():
            self._replace_lost()
            if len(_begun(self.trials())) >= total:
                return None
            trial = self.study.ask()
            owner = {"host": socket.gethostname(), **process_mark(psutil.Process())}
            trial.set_user_attr("owner", owner)
        if sum(other.number < trial.number for other in _begun(self.trials())) >= total:
            trial.set_user_attr("surplus", True)  # a machine without the same folder was quicker
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        self.study.sampler = self._sampler(trial.number)
        for name, distribution in self.sweep.space.items():
            _draw(trial, name, distribution)
        return trial

    def put_back(self, trial: FrozenTrial) -> None:
        """End a running trial such that another one takes its place, with its parameters and its folder."""
        try:
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, RuntimeError):
            return  # another process has done it
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"goes_on": trial.number, "folder": trial.user_attrs.get("folder")},
                system_attrs={key: trial.system_attrs[key] for key in _GRID_PLACE if key in trial.system_attrs},
            )
        )

    def _replace_lost(self) -> None:
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and _is_lost(trial):
                end_orphan(trial)
                self.put_back(trial)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process with this folder is at the same place."""
        while (lock := lock_file(self.folder / "study.lock")) is None:
            time.sleep(0.02)
        with lock:
            yield

    def _sampler(self, number: int) -> BaseSampler:
        """The same draws for a trial's number, whichever process makes it."""
        if self.sweep.method == "grid":
            return _Grid(self.sweep.grid, seed=self.seed)
        if self.sweep.method == "random":
            return RandomSampler(seed=self.seed + number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of Optuna 4
            return TPESampler(seed=self.seed + number, multivariate=True, constant_liar=True)

    def _refuse_other_sweep(self, settings: Mapping[str, Any]) -> None:
        now = {
            "method": self.sweep.method,
            "metric": f"{self.sweep.goal} {self.sweep.metric}",
            "program": self.sweep.program,
            "parameters": self.sweep.parameters,
            "settings": dict(settings),
        }
        before = self.study.user_attrs.get("sweep")
        if before is None:
            if any(self.folder.glob("trial-*")):
                raise UserError(f"{self.folder} holds trials of another study: {_free_name(self.folder)}")
            self.study.set_user_attr("sweep", now)
            return
        changes = list(_changes(before, now))
        if changes:
            raise UserError(
                f"{self.folder} is another sweep ({'; '.join(changes)}), and trials of both cannot be compared: "
                f"{_free_name(self.folder)}"
            )


class _Grid(GridSampler):
    """Does not stop the study after its last combination: only `Study.optimize` can be stopped."""

    def after_trial(self, *_: Any) -> None:
        pass


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a sweep, without those that were interrupted and go on under another number."""
    trials = study.get_trials(deepcopy=False)
    replaced = {trial.user_attrs.get("goes_on") for trial in trials}
    return [trial for trial in trials if trial.number not in replaced and "surplus" not in trial.user_attrs]


def process_mark(process: psutil.Process) -> dict[str, Any]:
    """What tells a process from a later one with the same number."""
    return {"pid": process.pid, "created": process.create_time()}


def end_orphan(trial: FrozenTrial) -> None:
    """End the training of a trial whose sweep has gone, if it still runs here."""
    mark = trial.user_attrs.get("process")
    if mark is None or trial.user_attrs["owner"]["host"] != socket.gethostname():
        return
    process = _process(mark)
    if process is not None:
        process.terminate()  # it saves first
        _, alive = psutil.wait_procs([process], timeout=60)
        for each in alive:
            each.kill()


def _begun(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state != TrialState.WAITING]


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether nobody takes care of a running trial any more."""
    owner = trial.user_attrs.get("owner")
    if owner is not None and owner["host"] == socket.gethostname():
        return _process(owner) is None
    began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - trial.user_attrs.get("alive", began) > _LOST


def _process(mark: Mapping[str, Any]) -> psutil.Process | None:
    try:
        process = psutil.Process(mark["pid"])
        gone = process.create_time() != mark["created"] or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return None if gone else process


def _draw(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _pruner(sweep: Sweep, warm_up: int | None) -> BasePruner:
    if warm_up is None:
        return NopPruner()
    if sweep.halving is not None:
        return SuccessiveHalvingPruner(min_resource=sweep.halving.first, reduction_factor=sweep.halving.factor)
    return MedianPruner(n_startup_trials=_UNPRUNED_TRIALS, n_warmup_steps=warm_up)


def _open_storage(url: str) -> optuna.storages.RDBStorage:
    """A database, made if it is new; a moment later once more if another process is making it right now."""
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for attempt in range(4):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except (ArgumentError, ImportError, RuntimeError) as error:
            raise UserError(f"cannot use the storage {shown_url(url)}: {_first_line(error)}") from None
        except (DBAPIError, OptunaError) as error:
            if attempt == 3:
                raise UserError(f"cannot open the storage {shown_url(url)}: {_first_line(error)}") from None
            time.sleep(random.uniform(0.2, 1.0))
    raise AssertionError


def shown_url(url: str) -> str:
    """A database's URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "that --storage names"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What of a sweep differs; settings that only one version of bimact knows do not count."""
    for key in ("method", "metric", "program"):
        if before[key] != now[key]:
            yield f"{key} was {before[key]} and is {now[key]}"
    for name in sorted(before["parameters"].keys() | now["parameters"].keys()):
        old, new = before["parameters"].get(name), now["parameters"].get(name)
        if old != new:
            yield f"parameter {name} was {_shown(old)} and is {_shown(new)}"
    for name in sorted(before["settings"].keys() & now["settings"].keys()):
        old, new = before["settings"][name], now["settings"][name]
        if old != new:
            yield f"{name} was {_shown(old)} and is {_shown(new)}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {entry}" for key, entry in value.items()) + "}"
    return "not there" if value is None else str(value)


def _free_name(folder: Path) -> str:
    free = next(f"{folder}-{number}" for number in range(2, 10**6) if not Path(f"{folder}-{number}").exists())
    return f"choose a free name such as --output_dir {free}"
