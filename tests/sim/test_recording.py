"""Recording: the guide's dataset, the same bytes for a seed, interruptions that cost little."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from bimact.data.opening import open_dataset
from bimact.errors import UserError
from bimact.sim import recording
from bimact.sim.environment import AlohaEnv
from bimact.sim.recording import JOURNAL, RecordingSettings, action_noise, record

pytestmark = pytest.mark.slow

SETTINGS = RecordingSettings("transfer_cube", episodes=2, cameras=("top", "left_wrist"), image_size=(24, 32))
COMMAND = [
    *(sys.executable, "-m", "bimact", "record", "--task", "transfer_cube", "--episodes", "2"),
    *("--cameras", "top,left_wrist", "--image_size", "24x32", "--output_dir"),
]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "dataset"
    record(SETTINGS, folder, workers=2)
    return folder


def test_the_guides_dataset(recorded: Path) -> None:
    for allow_pickle in (True, False):
        observations = np.load(recorded / "observations.npy", allow_pickle=allow_pickle)
        assert observations[7]["image_top"].shape == (24, 32, 3)
        assert observations["image_left_wrist"].shape == (800, 24, 32, 3)
    actions, lengths = np.load(recorded / "actions.npy"), np.load(recorded / "rollout_length.npy")
    assert (actions.shape, actions.dtype) == ((800, 14), np.float32)
    assert (lengths.tolist(), lengths.dtype) == ([400] * 2, np.int64)
    episodes = open_dataset(recorded)
    assert episodes.cameras == ("top", "left_wrist")
    assert (episodes.fps, episodes.task, len(episodes.joint_names or ())) == (50, "transfer_cube", 14)


def test_observations_are_what_the_environment_shows(recorded: Path) -> None:
    episodes = open_dataset(recorded)
    env = AlohaEnv("transfer_cube", ("top",), (24, 32))
    observation, _ = env.reset(seed=1)
    rows = episodes.rows_of(1)
    for row in range(rows.start, rows.start + 100):
        np.testing.assert_array_equal(episodes.state[row], observation["state"])
        if row % 20 == 0:
            np.testing.assert_array_equal(episodes.images["top"][row], env.observe()["image_top"])
        env.advance(episodes.actions[row])
        observation = {"state": env.observe()["state"]}
    env.close()


def test_one_worker_killed_while_files_get_their_names_writes_the_same_bytes_and_a_further_call_nothing(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dataset"
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name == "actions.npy":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        record(SETTINGS, folder, workers=1)
    monkeypatch.setattr(Path, "replace", replace)
    record(SETTINGS, folder)
    assert digests(folder) == digests(recorded)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert [episode.seed for episode in record(SETTINGS, folder)] == [0, 1]
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_recording_goes_on(recorded: Path, tmp_path: Path, sent: signal.Signals) -> None:
    folder = tmp_path / "dataset"
    process = subprocess.Popen([*COMMAND, str(folder), "--workers", "1"], start_new_session=True)
    deadline = time.monotonic() + 60
    while _episodes_done(folder) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    if sent == signal.SIGKILL:
        process.kill()  # the main process alone, as the system does it for lack of memory
    else:
        os.killpg(process.pid, sent)
    code = process.wait(timeout=30)
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert code == (-signal.SIGKILL if sent == signal.SIGKILL else 130)
    done = _episodes_done(folder)
    assert done == 1
    with pytest.raises(UserError, match=rf"{done} of 2"):
        open_dataset(folder)
    result = subprocess.run([*COMMAND, str(folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert digests(folder) == digests(recorded)


def _episodes_done(folder: Path) -> int:
    journal = folder / JOURNAL
    return len(json.loads(journal.read_text())["episodes"]) if journal.exists() else 0


def test_other_settings_and_other_files_are_refused(recorded: Path, tmp_path: Path) -> None:
    other = RecordingSettings("insertion", 2, SETTINGS.cameras, SETTINGS.image_size)
    with pytest.raises(UserError, match="other settings \\(task is transfer_cube, not insertion\\)"):
        record(other, recorded)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and contains no recording"):
        record(SETTINGS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_failed_demonstrations_are_discarded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RecordingSettings("transfer_cube", episodes=1, image_size=(8, 8))
    recording._allocate(tmp_path / "d", settings)
    worker = recording._Worker(settings, tmp_path / "d")
    outcomes = iter([False, False, True])
    monkeypatch.setattr(AlohaEnv, "is_success", property(lambda self: next(outcomes)))
    episode = worker.record_episode(0)
    assert (episode.failed, episode.seed) == (2, 20_000_000)


def test_noise_is_executed_and_not_recorded(recorded: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, action_noise=0.02, noisy_episodes=1)
    episodes = record(settings, tmp_path / "noisy", workers=1)
    assert [episode.noisy for episode in episodes] == [False, True]
    clean, noisy = open_dataset(recorded), open_dataset(tmp_path / "noisy")
    first, second = clean.rows_of(0), clean.rows_of(1)
    np.testing.assert_array_equal(noisy.state[first], clean.state[first])
    assert episodes[1].seed == 1, "ten draws of the noise in one scene"
    np.testing.assert_array_equal(noisy.actions[second], clean.actions[second])
    away = noisy.state[second] - clean.state[second]
    assert 0.005 < away[50:, :6].std() < 0.04
    record(settings, tmp_path / "again", workers=2)
    assert digests(tmp_path / "again") == digests(tmp_path / "noisy")
    metadata = json.loads((tmp_path / "noisy" / "metadata.json").read_text())
    assert metadata["settings"]["action_noise"] == 0.02 and metadata["episodes"][1]["noisy"]


def test_noise_on_actions_is_smooth_spares_grippers_and_begins_at_0() -> None:
    noise = action_noise(["left_waist", "left_gripper"], 50_000, 50, np.random.default_rng(0))
    assert not noise[:, 1].any() and not noise[0].any()
    values = noise[100:, 0]
    assert values.std() == pytest.approx(1, abs=0.05) and abs(values.mean()) < 0.1
    lag = round(0.25 * 50)
    correlation = np.corrcoef(values[:-lag], values[lag:])[0, 1]
    assert correlation == pytest.approx(np.exp(-lag / 12.5), abs=0.05)


def test_noisy_episodes_are_spread_and_older_recordings_are_resumed(recorded: Path, tmp_path: Path) -> None:
    noisy = RecordingSettings("transfer_cube", episodes=50, action_noise=0.01)
    assert [noisy.is_noisy(number) for number in range(4)] == [False, True, False, True]
    few = replace(noisy, noisy_episodes=5)
    assert [number for number in range(50) if few.is_noisy(number)] == [9, 19, 29, 39, 49]
    assert not any(replace(noisy, action_noise=0.0).is_noisy(number) for number in range(50))
    older = tmp_path / "older"
    shutil.copytree(recorded, older)
    metadata = json.loads((older / "metadata.json").read_text())
    for name in ("action_noise", "noisy_episodes"):
        del metadata["settings"][name]
    for episode in metadata["episodes"]:
        del episode["noisy"]
    (older / "metadata.json").write_text(json.dumps(metadata))
    assert len(record(SETTINGS, older)) == 2
    with pytest.raises(UserError, match=r"other settings \(action_noise is 0.0, not 0.1\)"):
        record(replace(SETTINGS, action_noise=0.1), older)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (RecordingSettings("transfer_cube", episodes=0), "--episodes is 0"),
        (RecordingSettings("transfer_cube", cameras=("front",)), "no camera 'front'"),
        (RecordingSettings("transfer_cube", image_size=(0, 10)), "--image_size is 0x10"),
        (RecordingSettings("transfer_cube", noise=1.0), "--noise is 1.0"),
        (RecordingSettings("transfer_cube", randomize={"light": 0.0}), "--randomize light is 0, it has to be a factor"),
        (
            RecordingSettings("transfer_cube", randomize_steps=1),
            "--randomize_steps is 1: with --randomize it may be 1 or more",
        ),
        (RecordingSettings("transfer_cube", seed=-1), "--seed is -1"),
        (RecordingSettings("transfer_cube", episodes=10**9), "GB free"),
        (
            RecordingSettings("transfer_cube", randomize={"outside": 0.02}),
            "--randomize has 'outside', which is not one of",
        ),
        (
            RecordingSettings("transfer_cube", randomize={"light": 9.0}),
            "perturbation light is 9.0, it has to be from 0",
        ),
    ],
)
def test_faulty_settings(settings: RecordingSettings, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        record(settings, tmp_path / "d")
    assert not (tmp_path / "d").exists()
