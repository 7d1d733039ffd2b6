"""What the loop records is a dataset of bimact, whatever happens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import NAMES, FakePolicy, loop_of

from bimact_client import Execution, Stopped
from bimact_client.recording import Recording, _Rows

bimact = pytest.importorskip("bimact")


def numbered(number: int, obs: Any) -> np.ndarray:
    return 0.01 * (number + np.arange(10)[:, None] / 100) + np.zeros((1, 3))


def test_a_recording_holds_what_happened(tmp_path: Path) -> None:
    folder = tmp_path / "record"
    policy = FakePolicy(numbered, delay=0.05, execution={"execute_steps": 4}, task="Pick")
    for _ in range(2):
        loop, robot, _ = loop_of(policy, record=folder)
        report = loop.run(12)
    dataset = bimact.open_dataset(folder)
    assert dataset.lengths.tolist() == [len(robot.sent)] * 2 and len(robot.sent) == 12 + report.held_cycles
    np.testing.assert_allclose(dataset.actions[dataset.rows_of(1)], robot.sent, atol=1e-6)
    np.testing.assert_allclose(dataset.state[dataset.rows_of(1)][1:], robot.sent[:-1], atol=1e-6)
    image = np.asarray(dataset.images["top"][1])
    assert image.shape == (4, 6, 3) and image[0, 0, 0] != image[0, 0, 2] == 7
    assert (dataset.fps, dataset.joint_names, dataset.task) == (50, tuple(NAMES), "Pick")
    with np.load(folder / "chunks" / "episode_1.npz") as chunks:
        np.testing.assert_array_equal(
            chunks["chunks"], [numbered(number, None).astype(np.float32) for number in (3, 4, 5)]
        )
        assert chunks["steps"].tolist() == [0, 4, 10]
        np.testing.assert_allclose(chunks["latency_ms"], 50)
        assert chunks["fresh"].sum() == 12 and not chunks["fresh"][[4, 5, 10, 11]].any()
        for start, chunk in zip(chunks["steps"], chunks["chunks"]):
            fresh = np.flatnonzero(chunks["fresh"][start:])[:4] + start
            np.testing.assert_allclose(np.array(robot.sent)[fresh], chunk[:4], atol=1e-6)


def test_view_and_check_open_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bimact.cli import main

    draw = np.random.default_rng(0)
    for _ in range(3):
        policy = FakePolicy(lambda number, obs: 0.1 * draw.normal(size=(10, 3)))
        loop_of(policy, record=tmp_path / "record", execution=Execution(execute_steps=5))[0].run(40)
    for command, statuses in ((["check"], (0, 1)), (["view", "--export", str(tmp_path / "page.html")], (0,))):
        with pytest.raises(SystemExit) as ended:
            main([*command[:1], str(tmp_path / "record"), *command[1:]])
        out = capsys.readouterr()
        assert ended.value.code in statuses, out.out + out.err
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_what_was_recorded_until_an_error_is_there(tmp_path: Path) -> None:
    policy = FakePolicy(lambda number, obs: np.zeros((10, 3)) if number < 3 else np.full((10, 3), np.nan))
    loop, robot, _ = loop_of(policy, record=tmp_path / "record")
    with pytest.raises(Stopped):
        loop.run(100)
    assert bimact.open_dataset(tmp_path / "record").lengths.tolist() == [len(robot.sent)] == [30]


def test_a_recording_is_a_dataset_at_any_time(tmp_path: Path) -> None:
    """A power cut loses at most the last second."""
    recording = Recording(tmp_path / "record", 50, NAMES)
    obs = {"state": np.zeros(3, np.float32), "image_top": np.zeros((4, 6, 3), np.uint8)}
    for _ in range(120):
        recording.step(obs, np.zeros(3), fresh=True)
        while not recording._waiting.empty():
            time.sleep(0.001)
    time.sleep(0.1)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (tmp_path / "record").glob("*.npy"):
        (copy / path.name).write_bytes(path.read_bytes())
    recording.close()
    assert bimact.open_dataset(copy).lengths.tolist() == [100]
    assert bimact.open_dataset(tmp_path / "record").lengths.tolist() == [120]


def test_a_disk_that_is_too_slow_ends_the_recording_and_not_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bimact_client.recording._WAITING_STEPS", 3)
    append = _Rows.append

    def slow(rows: _Rows, row: np.ndarray) -> None:
        time.sleep(0.01)
        append(rows, row)

    monkeypatch.setattr(_Rows, "append", slow)
    loop, robot, _ = loop_of(FakePolicy(), record=tmp_path)
    report = loop.run(100)
    assert len(robot.sent) == 100
    [note] = [note for note in report.notes if "the disk is too slow" in note]
    (length,) = bimact.open_dataset(tmp_path).lengths.tolist()
    assert 3 <= length < 100 and note.endswith(f"ends at step {length}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"fps": 25}, "another robot, rate or task"), ({"action_names": NAMES[::-1]}, "another robot, rate or task")],
)
def test_another_robot_is_not_added(tmp_path: Path, changes: Any, message: str) -> None:
    settings: Any = {"fps": 50, "action_names": NAMES}
    first = Recording(tmp_path, **settings)
    first.step({"state": np.zeros(3, np.float32)}, np.zeros(3), fresh=True)
    first.close()
    with pytest.raises(ValueError, match=message):
        Recording(tmp_path, **{**settings, **changes})


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    loop, robot, _ = loop_of(FakePolicy(), record=tmp_path)
    with pytest.raises(Stopped, match="is not empty: record into a new directory"):
        loop.run(1)
    assert not robot.sent


def test_cameras_of_another_size_end_the_recording_and_not_the_loop(tmp_path: Path) -> None:
    loop_of(FakePolicy(), record=tmp_path / "record")[0].run(10)
    loop, robot, _ = loop_of(FakePolicy(), record=tmp_path / "record")
    usual = robot.get_observation
    robot.get_observation = lambda: {**usual(), "image_top": np.zeros((8, 6, 3), np.uint8)}  # type: ignore[method-assign]
    report = loop.run(10)
    assert len(robot.sent) == 10
    assert any("the recording ends at step 0 (observations.npy has other" in note for note in report.notes)
    assert bimact.open_dataset(tmp_path / "record").lengths.tolist() == [10]
