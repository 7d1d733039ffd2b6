"""The guide's section on datasets: its layouts pass its own check, train, and each fault is named where it is."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bimact.check.dataset import check_dataset
from bimact.check.findings import Finding
from bimact.cli import main
from bimact.config import load_config
from bimact.data.formats.guide_npy import observation_dtype
from bimact.data.opening import open_dataset
from bimact.errors import UserError
from bimact.training.act_trainer import train_run
from bimact.training.prepare import prepare_run

ROOT = Path(__file__).parents[2]
LENGTHS = [9, 12, 7, 10]
SIZES = {"left": (16, 24), "right": (12, 20)}  # two cameras that differ
STATE_DIM = 9
FORMS = ["structured", "dictionaries", "columns"]


@dataclass
class Content:
    """The guide's three arrays before they are saved; observations as one dictionary a step."""

    observations: list[Any]
    actions: np.ndarray
    lengths: np.ndarray

    def save(self, folder: Path, form: str = "dictionaries") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        observations: Any = np.empty(len(self.observations), dtype=object)
        if form == "structured":
            observations = np.zeros(len(self.observations), observation_dtype(SIZES, STATE_DIM))
            for row, observation in enumerate(self.observations):
                observations[row] = tuple(observation[name] for name in observations.dtype.names)
        elif form == "columns":
            names = self.observations[0]
            observations = {name: np.stack([step[name] for step in self.observations]) for name in names}
        else:
            observations[:] = self.observations
        np.save(folder / "observations.npy", observations, allow_pickle=True)
        np.save(folder / "actions.npy", self.actions)
        np.save(folder / "rollout_length.npy", self.lengths)
        return folder


def make_content(lengths: list[int], seed: int = 0) -> Content:
    draw = np.random.default_rng(seed)
    observations = []
    for _ in range(sum(lengths)):
        images = {f"image_{camera}": draw.integers(0, 256, (*size, 3), np.uint8) for camera, size in SIZES.items()}
        observations.append({**images, "state": draw.normal(size=STATE_DIM).astype(np.float32)})
    actions = draw.normal(size=(sum(lengths), 14)).astype(np.float32)
    return Content(observations, actions, np.array(lengths, dtype=np.int64))


# The guide's own check -----------------------------------------------------------------------------

COUNTS = """Total timesteps: 38
Number of episodes: 4
Action shape: (38, 14)
Sum of rollout lengths: 38
✅ Dataset valid!
"""


def verify_as_the_guide_does(folder: Path) -> None:
    obs = np.load(f"{folder}/observations.npy", allow_pickle=True)
    actions = np.load(f"{folder}/actions.npy")
    rollout_lengths = np.load(f"{folder}/rollout_length.npy")
    assert obs is not None

    print(f"Total timesteps: {len(actions)}")
    print(f"Number of episodes: {len(rollout_lengths)}")
    print(f"Action shape: {actions.shape}")
    print(f"Sum of rollout lengths: {rollout_lengths.sum()}")
    assert rollout_lengths.sum() == len(actions), "Mismatch!"
    print("✅ Dataset valid!")


@pytest.mark.parametrize("form", FORMS)
def test_each_layout_passes_the_check_of_the_guide(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verify_as_the_guide_does(make_content(LENGTHS).save(tmp_path, form))
    assert capsys.readouterr().out == COUNTS


def test_recorded_types_are_those_of_the_guide(dataset: Path) -> None:
    """The types in which the tests, and `bimact record`, write the guide's arrays."""
    verify_as_the_guide_does(dataset)
    obs = np.load(dataset / "observations.npy", allow_pickle=True)
    assert obs[0]["image_left"].dtype == obs[0]["image_right"].dtype == np.uint8
    assert obs[0]["image_left"].shape[2] == 3 and obs[0]["state"].ndim == 1
    assert obs[0]["state"].dtype == np.load(dataset / "actions.npy").dtype == np.float32
    assert np.load(dataset / "rollout_length.npy").dtype == np.int64


# Training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [{"fuse": "tokens"}, {"fuse": "mean", "image_size": [16, 16]}])
@pytest.mark.parametrize("form", ["dictionaries", "columns"])
def test_pickled_layouts_train(tmp_path: Path, form: str, encoder: dict[str, Any]) -> None:
    folder = make_content(LENGTHS).save(tmp_path / "data", form)
    config = tiny_config(dataset_dir=str(folder), output_dir=str(tmp_path / "run"), num_steps=2, encoder=encoder)
    run = train_run(prepare_run(config)).run.path
    trained = load_config(run / "config.yaml")
    assert (trained.cameras, trained.state_dim, trained.action_dim) == (["left", "right"], STATE_DIM, 14)
    weights = torch.load(run / "checkpoint" / "act-train-last.pth", weights_only=True)
    assert weights["state_normalizer.mean"].shape == (STATE_DIM,)
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


# bimact check --------------------------------------------------------------------------------------


def check(*arguments: str | Path) -> tuple[int, str, str]:
    """`bimact check` in this process: exit status, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main(["check", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code, out.getvalue(), err.getvalue()


def test_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    folder = make_content(LENGTHS).save(tmp_path / "data")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    for path in (folder, tmp_path / "absent"):
        command = [sys.executable, "-m", "bimact", "check", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env=environment)
        assert (result.returncode, result.stdout, result.stderr) == check(path)


@pytest.mark.parametrize("form", FORMS)
def test_check_says_valid_with_the_counts_of_the_guide(tmp_path: Path, form: str) -> None:
    folder = make_content(LENGTHS).save(tmp_path / "data", form)
    (folder / "metadata.json").write_text(json.dumps({"fps": 25}))
    before = sorted(folder.rglob("*"))
    status, out, err = check(folder)
    assert (status, err) == (0, "")
    assert COUNTS in out
    for fact in (
        "Cameras (height x width): left 16x24, right 12x20\n",
        f"State size: {STATE_DIM}\n",
        "Episode length: 7 to 12 steps, median 9.5\n",
        "Steps a second: 25\n",
        f"Size on disk: {sum(path.stat().st_size for path in before) / 1e3:.1f} kB\n",
    ):
        assert fact in out
    assert sorted(folder.rglob("*")) == before  # it writes nothing


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-10])


def save(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, change(np.load(folder / name, allow_pickle=True)))


FILE_FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (
        save("rollout_length.npy", lambda of: of + 1),
        r"Rollout length mismatch: .* adds up to 42 steps, actions.npy has 38",
    ),
    (save("actions.npy", lambda of: of[:-2]), r"Rollout length mismatch: .* adds up to 38 steps, actions.npy has 36"),
    (save("observations.npy", lambda of: of[:-2]), r"Rollout length mismatch: .* 38 steps, observations.npy has 36"),
    (lambda folder: (folder / "observations.npy").unlink(), r"has no observations.npy: a dataset has"),
    (lambda folder: (folder / "actions.npy").unlink(), r"has no actions.npy: a dataset has"),
    (lambda folder: (folder / "rollout_length.npy").unlink(), r"has no rollout_length.npy: a dataset has"),
    (cut("actions.npy"), r"actions.npy is cut off: it has 2246 of 2256 bytes; copy or record it again"),
    (cut("observations.npy"), r"observations.npy is damaged or cut off in its pickled content: copy it again"),
    (cut("rollout_length.npy"), r"rollout_length.npy is cut off"),
    (save("actions.npy", lambda of: of.astype(complex)), r"actions.npy holds complex128: actions have to be numbers"),
    (save("actions.npy", lambda of: of[:, 0]), r"actions.npy has shape \(38,\): it has to be \(steps, size of an"),
    (save("rollout_length.npy", lambda of: of / 1), r"rollout_length.npy holds float64: lengths have to be integers"),
    (save("rollout_length.npy", lambda of: of * [1, 1, 0, 1]), r"rollout_length.npy: episode 2 has 0 steps; leave"),
    (save("rollout_length.npy", lambda of: of * [1, -1, 1, 1]), r"rollout_length.npy: episode 1 has -12 steps; leave"),
    (lambda folder: (folder / "recording.json").write_text("{}"), r"holds an unfinished recording; run the same"),
    (lambda folder: (folder / "metadata.json").write_text("{"), r"metadata.json is no readable JSON"),
]


@pytest.mark.parametrize(("spoil", "sentence"), FILE_FAULTS)
def test_fault_of_a_file(tmp_path: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    spoil(make_content(LENGTHS).save(tmp_path / "data"))
    with pytest.raises(UserError):  # training refuses it too
        open_dataset(tmp_path / "data")
    status, out, err = check(tmp_path / "data")
    assert status == 2 and "valid" not in out
    assert re.search(rf"^  .*{sentence}", out, re.MULTILINE)
    assert re.fullmatch(r"check: .*/data has \d errors?: mend what is listed, check again\n", err)


def test_faults_of_one_file_hide_none_of_others(tmp_path: Path) -> None:
    content = make_content(LENGTHS)
    content.observations[22]["state"] = content.observations[22]["state"][:4]
    content.observations[23]["state"][2] = np.nan
    content.actions[5, 3] = np.inf
    folder = content.save(tmp_path / "data")
    np.save(folder / "rollout_length.npy", [9, 12, 7, 0])
    (folder / "metadata.json").write_text('{"fps": -1}')
    status, out, err = check(folder)
    assert (status, err) == (2, f"check: {folder} has 7 errors: mend what is listed, check again\n")
    beginnings = {
        "unreadable": ["metadata.json: fps is -1", "rollout_length.npy: episode 3 has 0 steps"],
        "length-mismatch": [
            "Rollout length mismatch: rollout_length.npy adds up to 28 steps, actions.npy has 38",
            "Rollout length mismatch: rollout_length.npy adds up to 28 steps, observations.npy has 38",
        ],
        "wrong-format": [
            "Invalid observation format: observations.npy, episode 2, step 1 has 'state' of shape (4,)",
        ],
        "nan": [
            "actions.npy, episode 0, step 5 has inf as action[3]",
            "observations.npy, episode 2, step 2 has nan as state[2]",
        ],
    }
    for code, sentences in beginnings.items():
        lines = "".join(rf"  {re.escape(start)}.*\n" for start in sentences)
        assert re.search(rf"^● error {code}  in .*\n{lines}  [A-Z]", out, re.MULTILINE)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    content = make_content([3] * 30)
    content.actions[::3] = np.nan
    status, out, _ = check(content.save(tmp_path))
    assert status == 1 and "● error nan  in 30 episodes, first: episode 0, step 0\n" in out
    assert len(re.findall(r"^  actions\.npy, episode \d+, step 0 has nan", out, re.MULTILINE)) == 5
    assert "\n  … and 25 more: episodes 5–29\n" in out


def test_names_in_a_file_do_not_steer_the_terminal(tmp_path: Path) -> None:
    content = make_content(LENGTHS)
    for observation in content.observations:
        observation["image_\x1b[31m"] = observation["image_left"][::-1]
    status, out, _ = check(content.save(tmp_path))
    assert status == 0 and "\\x1b[31m 16x24" in out and "\x1b" not in out


def test_settings_that_the_dataset_has_to_fit(tmp_path: Path) -> None:
    folder = make_content(LENGTHS).save(tmp_path / "data")
    config = tmp_path / "config.yaml"
    config.write_text("action_dim: 12\nchunk_size: 8\n")
    status, out, _ = check(folder, "--config", config)
    assert (
        status == 1
        and "actions.npy: action_dim is 12 in the config, but the dataset has 14; set action_dim to 14" in out
    )
    assert "● info short-episode  in the whole dataset\n  rollout_length.npy: 1 of 4 episodes are shorter" in out
    assert check(folder, "--config", tmp_path / "absent.yaml")[2].startswith("check: config file not found: ")
    assert check(tmp_path / "absent")[::2] == (2, f"check: dataset not found: {tmp_path / 'absent'}\n")


# Any fault at any step -----------------------------------------------------------------------------


def drop(name: str) -> Callable[[Content, int], None]:
    return lambda content, row: content.observations[row].pop(name)


def put(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Content, int], None]:
    def spoil(content: Content, row: int) -> None:
        content.observations[row][name] = change(content.observations[row][name])

    return spoil


def no_dictionary(content: Content, row: int) -> None:
    content.observations[row] = [1, 2]


def nan_in_action(content: Content, row: int) -> None:
    content.actions[row, row % 14] = np.nan


OBSERVATIONS, ACTIONS = "observations.npy", "actions.npy"
INVALID = "Invalid observation format: "
# What is spoilt, how, where it is told, and in which words.
STEP_FAULTS: dict[str, tuple[Callable[[Content, int], None], str, str]] = {
    "no left image": (drop("image_left"), OBSERVATIONS, "has no 'image_left'"),
    "no state": (drop("state"), OBSERVATIONS, "has no 'state'"),
    "turned image": (
        put("image_left", lambda of: of.transpose(1, 0, 2)),
        OBSERVATIONS,
        "'image_left' of shape (24, 16, 3)",
    ),
    "image of floats": (
        put("image_right", lambda of: of / 255),
        OBSERVATIONS,
        "'image_right' of shape (12, 20, 3) and type float64",
    ),
    "longer state": (put("state", lambda of: np.append(of, of)), OBSERVATIONS, "'state' of shape (18,)"),
    "no dictionary": (no_dictionary, OBSERVATIONS, "is no dictionary but list"),
    "NaN in state": (put("state", lambda of: of * np.nan), OBSERVATIONS, "has nan as state[0]"),
    "infinity in state": (put("state", lambda of: of.astype(np.float64) * 1e300), OBSERVATIONS, "inf as state[0]"),
    "NaN in action": (nan_in_action, ACTIONS, "has nan as action["),
}
SAME_KIND = {"infinity in state": "NaN in state"}  # told together in one episode


def place(row: int, lengths: list[int]) -> tuple[int, int]:
    """Episode and step of a row, counted out."""
    for episode, length in enumerate(lengths):
        if row < length:
            return episode, row
        row -= length
    raise AssertionError("no such row")


@st.composite
def faulty_datasets(draw: st.DrawFn) -> tuple[list[int], dict[int, str]]:
    """Lengths of episodes, and rows with the kind of fault that is there; most rows have none."""
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5).filter(lambda lengths: sum(lengths) >= 3))
    most = (sum(lengths) - 1) // 2
    rows = draw(st.lists(st.integers(0, sum(lengths) - 1), min_size=1, max_size=min(4, most), unique=True))
    return lengths, {row: draw(st.sampled_from(sorted(STEP_FAULTS))) for row in rows}


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faulty_datasets())
def test_faults_are_named_with_their_episode_and_step(case: tuple[list[int], dict[int, str]]) -> None:
    lengths, faults = case
    content = make_content(lengths)
    with tempfile.TemporaryDirectory() as name:
        folder = content.save(Path(name))
        assert not check_dataset(folder).errors
        for row, kind in faults.items():
            STEP_FAULTS[kind][0](content, row)
        content.save(folder)
        report = check_dataset(folder)
        status, out, _ = check(folder)

    steps: dict[tuple[str, int], list[int]] = {}
    for row, kind in faults.items():
        episode, step = place(row, lengths)
        steps.setdefault((SAME_KIND.get(kind, kind), episode), []).append(step)
    expected = [(STEP_FAULTS[kind][1], episode, min(its), len(its)) for (kind, episode), its in steps.items()]
    assert Counter(map(as_place, report.errors)) == Counter(expected)
    is_whole = all(kind.startswith(("NaN", "infinity")) for kind in faults.values())
    assert status == (1 if is_whole else 2) and f"\n{len(expected)} error" in out
    for (kind, episode), its in steps.items():
        found = [fault.sentence for fault in report.errors if as_place(fault)[1:3] == (episode, min(its))]
        words = [STEP_FAULTS[other][2] for other in faults.values() if SAME_KIND.get(other, other) == kind]
        assert any(f", episode {episode}, step {min(its)}" in text and any(w in text for w in words) for text in found)
        assert all(f"  {text}\n" in out for text in found)


def as_place(fault: Finding) -> tuple[str, int | None, int | None, int]:
    return fault.file, fault.episode, fault.step, fault.count
