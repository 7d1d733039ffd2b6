"""A sweep in Optuna's storage: its trials, the next one, and those whose process has ended."""

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

from bimact.errors import UserError, first_line
from bimact.files import lock_file
from bimact.sweep.sweep_file import Sweep

DATABASE = "study.db"
HEARTBEAT = 60.0  # seconds between heartbeats of a running trial
_LOST = 10 * HEARTBEAT  # without a heartbeat until a trial of another machine counts as lost; clocks differ by less

_UNPRUNED_TRIALS = 5  # a median of fewer is meaningless
_GRID_PLACE = ("grid_id", "search_space")  # Optuna's key of a trial's grid combination


class SweepStudy:
    """An Optuna study that several processes and machines may share.

    Two kinds of trials do not count: those that were interrupted and continue under another number, and those that
    another machine started at the same time in excess of the total.

    Args:
        sweep: what is searched.
        folder: of the sweep; its name is the study's.
        storage: URL of a database; None: a file in the folder.
        settings: everything else that results depend on, by name; only trials with the same are comparable.
        seed: of the sampler.
        warm_up: number of values of the metric before a trial may be pruned; None: no pruning.

    Raises:
        UserError: if the database cannot be opened, or contains another sweep of this name.
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
        pruner: BasePruner = NopPruner()
        if warm_up is not None and sweep.halving is not None:
            pruner = SuccessiveHalvingPruner(min_resource=sweep.halving.first, reduction_factor=sweep.halving.factor)
        elif warm_up is not None:
            pruner = MedianPruner(n_startup_trials=_UNPRUNED_TRIALS, n_warmup_steps=warm_up)
        with self._exclusive():
            self.study = optuna.create_study(
                study_name=folder.name,
                storage=_open_storage(storage or f"sqlite:///{folder.resolve() / DATABASE}"),
                direction=sweep.goal,
                sampler=self._sampler(0),
                pruner=pruner,
                load_if_exists=True,
            )
            self._refuse_other_sweep(settings)

    def trials(self) -> list[FrozenTrial]:
        """The trials of the sweep that count, by number, including those that wait to be continued."""
        return counted(self.study)

    def next_trial(self, total: int) -> optuna.Trial | None:
        """Start a trial, with all parameters sampled; None if there are `total` already, including running ones."""
        with self._exclusive():
            for lost in self.trials():
                if lost.state == TrialState.RUNNING and _is_lost(lost):
                    end_orphan(lost)
                    self.put_back(lost)
            if len(_begun(self.trials())) >= total:
                return None
            trial = self.study.ask()
            owner = {"host": socket.gethostname(), **process_mark(psutil.Process())}
            trial.set_user_attr("owner", owner)
        if sum(other.number < trial.number for other in _begun(self.trials())) >= total:
            trial.set_user_attr("surplus", True)  # a machine without the same folder was faster
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        self.study.sampler = self._sampler(trial.number)
        for name, distribution in self.sweep.space.items():
            _draw(trial, name, distribution)
        return trial

    def put_back(self, trial: FrozenTrial) -> None:
        """End a running trial and queue another one with its parameters and its folder."""
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

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """A critical section of all processes with this folder."""
        while (lock := lock_file(self.folder / "study.lock")) is None:
            time.sleep(0.02)
        with lock:
            yield

    def _sampler(self, number: int) -> BaseSampler:
        """A sampler whose result depends on a trial's number, not on the process."""
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
                raise UserError(f"{self.folder} contains trials of another study: {_free_name(self.folder)}")
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
    """The trials of a sweep that count, without those that continue under another number."""
    trials = study.get_trials(deepcopy=False)
    replaced = {trial.user_attrs.get("goes_on") for trial in trials}
    return [trial for trial in trials if trial.number not in replaced and "surplus" not in trial.user_attrs]


def process_mark(process: psutil.Process) -> dict[str, Any]:
    """Identifies a process, and distinguishes it from a later one with the same number."""
    return {"pid": process.pid, "created": process.create_time()}


def end_orphan(trial: FrozenTrial) -> None:
    """End the training of a trial whose sweep process has ended, if it still runs on this machine."""
    mark = trial.user_attrs.get("process")
    if mark is None or trial.user_attrs["owner"]["host"] != socket.gethostname():
        return
    process = _process(mark)
    if process is not None:
        process.terminate()  # it saves a checkpoint first
        _, alive = psutil.wait_procs([process], timeout=60)
        for each in alive:
            each.kill()


def _begun(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state != TrialState.WAITING]


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether the process that supervises a running trial has ended."""
    owner = trial.user_attrs.get("owner")
    if owner is not None and owner["host"] == socket.gethostname():
        return _process(owner) is None
    began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - float(trial.user_attrs.get("alive", began)) > _LOST


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


def _open_storage(url: str) -> optuna.storages.RDBStorage:
    """A database, which is created if it is new; with retries, since another process may be creating it."""
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for attempt in range(4):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except (ArgumentError, ImportError, RuntimeError) as error:
            raise UserError(f"cannot use the storage {shown_url(url)}: {first_line(error)}") from None
        except (DBAPIError, OptunaError) as error:
            if attempt == 3:
                raise UserError(f"cannot open the storage {shown_url(url)}: {first_line(error)}") from None
            time.sleep(random.uniform(0.2, 1.0))
    raise AssertionError


def shown_url(url: str) -> str:
    """A database's URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "that --storage names"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Differences of two sweeps; settings that only one version of bimact knows do not count."""
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
    return "not set" if value is None else str(value)


def _free_name(folder: Path) -> str:
    free = next(f"{folder}-{number}" for number in range(2, 10**6) if not Path(f"{folder}-{number}").exists())
    return f"choose a free name such as --output_dir {free}"
