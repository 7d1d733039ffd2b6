"""Where figures go: the metrics file, TensorBoard, and Weights & Biases offline, online, and when it fails."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import wandb
from conftest import tiny_config
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_files import WandbFile, read_wandb_files
from wandb_server import WandbServer

from bimact.errors import UserError
from bimact.run_directory import METRICS, read_metrics
from bimact.training import wandb_run
from bimact.training.prediction_plot import prediction_figure
from bimact.training.tracking import MetricsLog, wants_wandb

KEY = "0123456789" * 4


@pytest.fixture
def wandb_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine on which nobody has used W&B; gives the folder of a run."""
    for name in os.environ:
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    run = tmp_path / "run"
    (run / "checkpoint").mkdir(parents=True)
    (run / "config.yaml").write_text("chunk_size: 5\n")
    wandb.teardown()
    yield run
    wandb.teardown()


@pytest.fixture
def server(wandb_alone: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server with which somebody is logged in; nobody waits long for it."""
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    for name in ("INIT_SECONDS", "FINISH_SECONDS", "FINISH_SECONDS_WITH_CHECKPOINTS", "HANDOVER_SECONDS"):
        monkeypatch.setattr(wandb_run, name, 1.0)
    yield server
    server.go_away()


def open_log(run: Path, *, step: int = 0, wandb_id: str | None = None, **settings: Any) -> MetricsLog:
    config = tiny_config(output_dir=str(run), wandb_project="act-training", **settings)
    return MetricsLog(config, run, step=step, wandb_id=wandb_id)


def files_of(run: Path) -> list[WandbFile]:
    wandb.teardown()  # as the end of a process does: W&B closes its files after a run has ended
    return read_wandb_files(run)


def only_file(run: Path) -> WandbFile:
    (content,) = files_of(run)
    return content


def image_of(color: int) -> Any:
    return prediction_figure(np.full((5, 2), color), np.zeros((5, 2)), np.zeros(5, bool), None, "a chunk")


# The metrics file and TensorBoard ------------------------------------------------------------------


def test_metrics_file_survives_a_line_that_was_cut_short(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(tmp_path / METRICS) == [{"step": 1}, {"step": 2}]


def test_resuming_drops_the_records_that_come_again(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 2, "lr": 0.1}\n{"step": 4, "lr": 0.1}\n{"step": 6, "lr": 0.1}\n{"ste')
    log = MetricsLog(tiny_config(), tmp_path, step=4)
    log.log({"lr": 0.2}, 6)
    log.close()
    assert read_metrics(tmp_path / METRICS) == [
        {"step": 2, "lr": 0.1},
        {"step": 4, "lr": 0.1},
        {"step": 6, "lr": 0.2},
    ]


def test_tensorboard_has_every_figure_and_hides_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    config = tiny_config(tensorboard=True)
    for start, value in ((0, 1.0), (4, 2.0)):
        log = MetricsLog(config, tmp_path, step=start)
        for step in range(start + 2, start + 7, 2):
            log.log({"total_loss": value, "epoch": 1}, step)
        log.log_figure("predictions", image_of(1), start + 6)
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("total_loss")]
    assert losses == [(2, 1.0), (4, 1.0), (6, 2.0), (8, 2.0), (10, 2.0)]
    assert {"total_loss", "epoch"} <= set(events.Tags()["scalars"])
    assert events.Images("predictions")[-1].width == 900


def test_without_a_project_wandb_is_not_even_imported(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from bimact.config import to_config\n"
    code += "from bimact.training.tracking import MetricsLog\n"
    code += "log = MetricsLog(to_config({'tensorboard': False}), Path(sys.argv[1]))\n"
    code += "log.log({'lr': 1.0}, 1); log.close(); assert 'wandb' not in sys.modules"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    assert read_metrics(tmp_path / METRICS) == [{"step": 1, "lr": 1.0}]


# W&B offline ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_login_the_run_is_kept_offline_with_all_that_it_logs(
    wandb_alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB__STATS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setenv("WANDB__TRANSACTION_LOG_FLUSH_INTERVAL", "0.1")
    log = open_log(wandb_alone, wandb_name="my-experiment", wandb_tags=["clip", "baseline"], lr=2e-4)
    for step in (10, 20, 30):
        log.log({"total_loss": step / 7, "lr": 1e-4, "epoch": 1}, step)
    log.log({"epoch": 1, "time_per_epoch": 2.5, "val_loss": 0.5}, 30)
    log.log_figure("predictions", image_of(1), 30)
    content = wait_for(lambda: read_wandb_files(wandb_alone)[0], lambda content: len(content.system_metrics) > 3)
    log.close()

    folder = content.folder
    assert folder.parent == wandb_alone / "wandb" and folder.name.startswith("offline-run-")
    assert f"W&B: not logged in (`wandb login`), so the run is kept offline; `wandb sync {folder}`" in (
        capsys.readouterr().out
    )
    assert server.requests == []
    server.go_away()
    content = only_file(wandb_alone)
    assert (content.project, content.name, content.tags) == ("act-training", "my-experiment", ["clip", "baseline"])
    assert (content.id, content.exit_code) == (log_id(folder), 0)
    assert content.config["lr"] == 2e-4 and content.config["encoder"]["name"] == "conv"
    assert content.values("total_loss") == {step: step / 7 for step in (10, 20, 30)}
    assert content.values("step") == {step: step for step in (10, 20, 30)}
    assert content.values("val_loss") == {30: 0.5} and content.values("time_per_epoch") == {30: 2.5}
    assert content.axes["*"] == "step"
    assert any("cpu" in name for name in content.system_metrics)
    path = folder / "files" / content.values("predictions.path")[30]
    assert Image.open(path).width == 900


def log_id(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def wait_for(read: Callable[[], WandbFile], enough: Callable[[WandbFile], bool]) -> WandbFile:
    for _ in range(100):
        content = read()
        if enough(content):
            return content
        time.sleep(0.1)
    raise AssertionError(f"this is all: {content}")


def test_sweeps_compare_the_lowest_validation_loss_as_a_plain_number(wandb_alone: Path) -> None:
    log = open_log(wandb_alone)
    for step, loss in ((10, 0.8), (20, 0.3), (30, float("nan")), (40, 0.6)):
        log.log({"val_loss": loss}, step)
    log.close()
    assert only_file(wandb_alone).summary["val_loss"] == 0.3


def test_resuming_goes_on_with_the_same_run_and_its_steps(wandb_alone: Path) -> None:
    first = open_log(wandb_alone)
    for step in (10, 20, 30):
        first.log({"total_loss": float(step), "val_loss": step / 100}, step)
    run_id = first.wandb_id
    first.close(exit_code=1)
    second = open_log(wandb_alone, step=20, wandb_id=run_id)
    second.log({"total_loss": 30.0, "val_loss": 0.3}, 30)
    second.log({"total_loss": 40.0, "val_loss": 0.4}, 40)
    assert second.wandb_id == run_id
    second.close()

    before, after = files_of(wandb_alone)
    assert before.id == after.id == run_id
    assert (before.resumed, after.resumed) == (False, True)  # `wandb sync` asks the server for a resumed run
    assert (before.exit_code, after.exit_code) == (1, 0)
    assert after.values("total_loss") == {30: 30.0, 40: 40.0}
    assert after.summary["val_loss"] == 0.1


def test_environment_variables_of_wandb_hold_where_the_config_is_silent(
    wandb_alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, value in (("MODE", "offline"), ("NAME", "from-env"), ("TAGS", "a,b"), ("DIR", str(elsewhere))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_PROJECT", "other")
    open_log(wandb_alone).close()
    content = only_file(elsewhere)
    assert (content.project, content.name, content.tags) == ("act-training", "from-env", ["a", "b"])
    assert "W&B:" not in capsys.readouterr().out


def test_disabled_wandb_keeps_nothing(wandb_alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (wandb_alone / "checkpoint" / "act-train-1.pth").write_bytes(b"weights")
    log = open_log(wandb_alone, wandb_checkpoints="all")
    log.log({"val_loss": 1.0}, 10)
    log.log_checkpoint(wandb_alone / "checkpoint" / "act-train-1.pth", is_best=True)
    assert log.wandb_id is None
    log.close()
    assert not (wandb_alone / "wandb").exists()


def test_in_a_sweep_the_agents_project_and_run_are_taken(wandb_alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wants_wandb(tiny_config())
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_RUN_ID", "run7")
    monkeypatch.setenv("WANDB_PROJECT", "swept")
    assert wants_wandb(tiny_config())
    log = MetricsLog(tiny_config(wandb_project="act-training"), wandb_alone, wandb_id="another")
    assert log.wandb_id == "run7"
    log.close()
    content = only_file(wandb_alone)
    assert (content.id, content.project, content.sweep) == ("run7", "swept", "sweep7")


@pytest.mark.parametrize("settings", [{"wandb_project": "a/b"}, {"wandb_tags": ["x" * 65]}])
def test_a_name_that_wandb_does_not_take_is_the_users_fault(wandb_alone: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="W&B does not accept this .*(a/b|65 characters)"):
        MetricsLog(tiny_config(**{"wandb_project": "p", **settings}), wandb_alone)


# Checkpoints as artifacts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "uploaded"),
    [("none", []), ("best", [{"latest", "epoch-2", "best"}, {"latest", "best"}]), ("all", None)],
)
def test_checkpoints_are_artifacts(wandb_alone: Path, which: str, uploaded: list[set[str]] | None) -> None:
    log = open_log(wandb_alone, wandb_checkpoints=which)
    for name, is_best in (("1", False), ("2", True), ("best", True)):
        path = wandb_alone / "checkpoint" / f"act-train-{name}.pth"
        path.write_bytes(f"weights {name}".encode())
        log.log({"epoch": 2, "val_loss": 0.5}, 20)
        log.log_checkpoint(path, is_best=is_best)
        if name == "best":
            path.write_bytes(b"better weights")  # as the next best epoch does
    run_id = log.wandb_id
    log.close()

    artifacts = only_file(wandb_alone).artifacts
    every = [{"latest", "epoch-1"}, {"latest", "epoch-2", "best"}, {"latest", "best"}]
    assert [set(artifact.aliases) for artifact in artifacts] == (every if uploaded is None else uploaded)
    for artifact in artifacts:
        assert (artifact.type, artifact.name) == ("model", f"act-{run_id}")
        assert '"epoch":2' in artifact.metadata and '"step":20' in artifact.metadata
        files = {entry.path: Path(entry.local_path).read_bytes() for entry in artifact.manifest.contents}
        assert files.pop("config.yaml") == b"chunk_size: 5\n"
        ((name, content),) = files.items()
        assert content == b"weights " + name.removeprefix("checkpoint/act-train-").removesuffix(".pth").encode()


def test_a_best_checkpoint_waits_for_the_next_numbered_one(wandb_alone: Path) -> None:
    log = open_log(wandb_alone, wandb_checkpoints="best")
    best, numbered = (wandb_alone / "checkpoint" / f"act-train-{name}.pth" for name in ("best", "10"))
    numbered.write_bytes(b"weights of epoch 10")
    for epoch in (1, 2, 3):
        best.write_bytes(f"weights of epoch {epoch}".encode())
        log.log({"epoch": epoch, "val_loss": 1 / epoch}, 10 * epoch)
        log.log_checkpoint(best, is_best=True, numbered=False)
    log.log({"epoch": 10, "val_loss": 0.9}, 100)
    log.log_checkpoint(numbered, is_best=False)
    log.log_checkpoint(numbered, is_best=False)  # nothing new
    log.close()
    (artifact,) = only_file(wandb_alone).artifacts
    assert set(artifact.aliases) == {"latest", "best"} and '"epoch":3' in artifact.metadata
    files = {entry.path: Path(entry.local_path).read_bytes() for entry in artifact.manifest.contents}
    assert files["checkpoint/act-train-best.pth"] == b"weights of epoch 3"


def test_a_checkpoint_that_cannot_be_read_is_told_and_the_run_goes_on(
    wandb_alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = open_log(wandb_alone, wandb_checkpoints="all")
    log.log_checkpoint(wandb_alone / "checkpoint" / "act-train-1.pth", is_best=True)
    log.log({"total_loss": 1.0}, 10)
    log.close()
    assert "act-train-1.pth is not uploaded (Path is not a file" in capsys.readouterr().out
    assert only_file(wandb_alone).values("total_loss") == {10: 1.0}


def test_online_checkpoints_are_uploaded(wandb_alone: Path, server: WandbServer) -> None:
    log = open_log(wandb_alone, wandb_checkpoints="best")
    weights = wandb_alone / "checkpoint" / "act-train-4.pth"
    weights.write_bytes(b"weights")
    log.log({"epoch": 4, "val_loss": 0.5}, 40)
    log.log_checkpoint(weights, is_best=True)
    log.close()
    assert server.aliases == [{"latest", "epoch-4", "best"}]
    assert server.files["artifact/checkpoint/act-train-4.pth"] == b"weights"
    assert server.files["artifact/config.yaml"] == b"chunk_size: 5\n"


# W&B online, and when it fails ---------------------------------------------------------------------


def test_a_resumed_run_online_leaves_out_what_the_server_has(
    wandb_alone: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_SILENT")
    first = open_log(wandb_alone)
    for step in (10, 20, 30):
        first.log({"total_loss": float(step)}, step)
    run_id = first.wandb_id
    assert run_id is not None
    first.close()
    second = open_log(wandb_alone, step=20, wandb_id=run_id)
    for step in (30, 40):
        second.log({"total_loss": float(step)}, step)
    second.close()
    assert [(row["_step"], row["step"], row["total_loss"]) for row in server.rows[run_id]] == [
        (step, step, float(step)) for step in (10, 20, 30, 40)
    ]
    printed = capfd.readouterr().err
    assert "Synced" in printed and "Tried to log to step" not in printed


@pytest.mark.parametrize("fails", ["refuses", "breaks", "hangs"])
def test_a_server_that_fails_at_the_start_leaves_the_run_offline(
    wandb_alone: Path, server: WandbServer, capsys: pytest.CaptureFixture[str], fails: str
) -> None:
    server.fails = fails
    log = open_log(wandb_alone)
    log.log({"total_loss": 1.0}, 10)
    log.close()
    content = only_file(wandb_alone)
    assert content.values("total_loss") == {10: 1.0}
    out = capsys.readouterr().out
    assert out.count("W&B:") == 1
    assert f"so the run is kept offline; `wandb sync {content.folder}` uploads it later" in out


def test_a_server_that_fails_after_the_login_leaves_a_resumed_run_offline(
    wandb_alone: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    login = wandb.login

    def login_and_break(**options: Any) -> bool:
        answer = login(**options)
        server.fails = "breaks"
        return answer

    monkeypatch.setattr(wandb, "login", login_and_break)
    log = open_log(wandb_alone, step=20, wandb_id="abc")
    assert log.wandb_id == "abc"
    log.log({"total_loss": 1.0}, 30)
    log.close()
    online, offline = files_of(wandb_alone)
    assert (online.rows, offline.values("total_loss")) == ([], {30: 1.0})
    assert "W&B: the server does not accept the run" in capsys.readouterr().out


@pytest.mark.parametrize("fails", ["goes away", "breaks", "hangs"])
def test_a_server_that_fails_in_mid_run_loses_nothing_and_is_not_waited_for(
    wandb_alone: Path, server: WandbServer, capsys: pytest.CaptureFixture[str], fails: str
) -> None:
    weights = wandb_alone / "checkpoint" / "act-train-1.pth"
    weights.write_bytes(b"weights")
    log = open_log(wandb_alone, wandb_checkpoints="all")
    log.log({"total_loss": 10.0}, 10)
    if fails == "goes away":
        server.go_away()
    server.fails = fails
    for step in range(20, 1000, 10):
        log.log({"total_loss": float(step)}, step)
    log.log_checkpoint(weights, is_best=True)
    log.close()  # returns, or the test does not end

    content = only_file(wandb_alone)
    assert content.values("total_loss") == {step: float(step) for step in range(10, 1000, 10)}
    out = capsys.readouterr().out
    assert f"W&B: not all is uploaded; `wandb sync --include-online {content.folder}` uploads the rest" in out
    assert [record["step"] for record in read_metrics(wandb_alone / METRICS)] == [*range(10, 1000, 10)]


def test_the_death_of_wandbs_own_process_does_not_stop_a_training(
    wandb_alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = open_log(wandb_alone)
    log.log({"total_loss": 1.0}, 10)
    (service,) = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
    service.kill()
    service.wait()
    for step in (20, 30):
        log.log({"total_loss": 1.0}, step)
    log.close()
    assert capsys.readouterr().out.count("W&B: stopped (") == 1
    assert [record["step"] for record in read_metrics(wandb_alone / METRICS)] == [10, 20, 30]


@pytest.mark.slow
def test_on_a_terminal_nothing_is_asked_and_nothing_is_copied(wandb_alone: Path) -> None:
    code = """
import os, sys, wandb
from pathlib import Path
from bimact.config import to_config
from bimact.training.tracking import MetricsLog
config = to_config({"wandb_project": "p", "tensorboard": False})
log = MetricsLog(config, Path(sys.argv[1]))
print("a progress bar")
log.close()
wandb.teardown()
os.environ["WANDB_API_KEY"] = "too-short"
MetricsLog(config, Path(sys.argv[1])).close()
"""
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(wandb_alone)],
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    screen = b""
    while chunk := read_terminal(terminal):
        screen += chunk
    os.close(terminal)
    assert process.wait() == 0, screen.decode()
    assert b"W&B: not logged in" in screen and b"W&B: WANDB_API_KEY invalid" in screen
    assert screen.count(b"so the run is kept offline") == 2
    assert b"Enter your choice" not in screen
    assert [content.printed for content in files_of(wandb_alone)] == ["", ""]  # W&B keeps no progress bars


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


# The figure of a prediction ------------------------------------------------------------------------


def test_prediction_figure_has_a_panel_for_each_joint_and_leaves_padding_out() -> None:
    predicted, demonstrated = np.arange(20.0).reshape(10, 2), np.zeros((10, 2))
    figure = prediction_figure(predicted, demonstrated, np.arange(10) >= 6, ["left_waist", "left_gripper"], "a chunk")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["left waist, rad", "left gripper, opening"]
    line = next(line for line in figure.axes[1].lines if line.get_label() == "predicted")
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 11))
    np.testing.assert_array_equal(line.get_ydata(), [1, 3, 5, 7, 9, 11, *[np.nan] * 4])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["demonstrated", "predicted", "after the episode's end"]


def test_two_arms_are_two_rows_of_seven() -> None:
    actions = np.zeros((5, 14))
    figure = prediction_figure(actions, actions, np.zeros(5, bool), None, "a chunk")
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 7)
    assert len(figure.axes) == 14 and figure.axes[13].get_title(loc="left") == "joint 13"
