"""`bimact sweep` as processes: killed, interrupted, two at once. What they leave is one whole sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from guide_files import write_dataset
from optuna.trial import TrialState
from sweep_helpers import trials_in, write_sweep

from bimact.cli import main
from bimact.run_directory import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", [9, 12, 7, 10])


def start(folder: Path, dataset: Path, *arguments: str, epoch: float = 0.01) -> subprocess.Popen[str]:
    if not (folder / "sweep.yaml").exists():
        write_sweep(folder / "sweep.yaml")
    (folder / "config.yaml").write_text("val_split: 0.25\nnum_epochs: 5\n")
    command = ["sweep", "sweep.yaml", "--dataset_dir", str(dataset), "--config", "config.yaml", *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "bimact", *command],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "QUICK_EPOCH": str(epoch)},
    )


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
    return found


def running_values(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(read_metrics(path)) if path.exists() else 0


def test_a_killed_sweep_goes_on(tmp_path: Path, dataset: Path) -> None:
    sweep = start(tmp_path, dataset, "--trials", "2", "--num_epochs", "400", epoch=0.05)
    run = tmp_path / "sweeps" / "sweep" / "trial-0000"
    wait_for(lambda: running_values(run) > 2)
    sweep.kill()
    sweep.communicate()
    (lost,) = trials_in(run.parent)
    training = psutil.Process(lost.user_attrs["process"]["pid"])
    assert lost.state == TrialState.RUNNING and training.is_running()
    # The rest in quick time. What it was started with is what it is compared by, so num_epochs stays.
    output, _ = start(tmp_path, dataset, "--trials", "2", "--num_epochs", "400", epoch=0).communicate(timeout=60)
    assert not training.is_running(), "the training of the killed sweep runs on"
    trials = trials_in(run.parent)
    assert [(trial.number, trial.state) for trial in trials] == [(1, TrialState.COMPLETE), (2, TrialState.COMPLETE)]
    assert trials[0].params == lost.params and trials[0].user_attrs["folder"] == "trial-0000"
    assert all(len(trial.intermediate_values) == 400 for trial in trials), "it was not gone on with"
    assert "2 trials: 2 finished" in output, output


def test_ctrl_c_saves_the_running_trials(tmp_path: Path, dataset: Path) -> None:
    sweep = start(tmp_path, dataset, "--trials", "5", "--jobs", "2", "--num_epochs", "100", epoch=0.05)
    runs = [tmp_path / "sweeps" / "sweep" / f"trial-000{number}" for number in (0, 1)]
    wait_for(lambda: all(map(running_values, runs)))
    sweep.send_signal(signal.SIGINT)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, output
    assert "interrupted: 2 running trials will be saved" in output
    assert (
        f"To continue: bimact sweep sweep.yaml --dataset_dir {dataset} --config config.yaml --trials 5 --jobs 2"
        in output
    )
    assert all((run / "checkpoint" / "act-train-last.pth").exists() for run in runs)
    assert [trial.state for trial in trials_in(runs[0].parent)] == [TrialState.WAITING] * 2


def test_two_processes_share_a_sweep(tmp_path: Path, dataset: Path) -> None:
    both = [start(tmp_path, dataset, "--trials", "9", "--jobs", "2", epoch=0.02) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    trials = trials_in(tmp_path / "sweeps" / "sweep")
    assert [(trial.number, trial.state) for trial in trials] == [(n, TrialState.COMPLETE) for n in range(9)]
    assert len({trial.params["lr"] for trial in trials}) == 9
    folders = sorted(path.name for path in (tmp_path / "sweeps" / "sweep").glob("trial-*"))
    assert folders == [f"trial-000{number}" for number in range(9)]
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("trial ")]
    assert len(lines) == 9, "a trial was run by both, or by none"


def test_faults_end_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["sweep", *arguments])
        assert stop.value.code == 2
        return capsys.readouterr().err

    path = str(write_sweep(tmp_path / "s.yaml"))
    assert fails("none.yaml").startswith("sweep: sweep file not found: ")
    assert "no setting named 'num_epoch'" in fails(path, "--num_epoch", "3", "--trials", "1")
    assert "'3' belongs to no setting" in fails(path, "3")


def test_help_is_quick() -> None:
    code = "import sys; from bimact.cli import main\ntry: main(['sweep', '--help'])\n"
    code += "except SystemExit: assert not {'torch', 'optuna'} & sys.modules.keys()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: bimact sweep" in result.stdout
