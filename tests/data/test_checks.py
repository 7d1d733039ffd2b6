"""Finding what is wrong with a dataset: values that are no numbers, odd steps, odd values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import write_dataset

from bimact.config import Config, to_config
from bimact.data.checks import check_dataset, find_nonfinite, refuse_nonfinite
from bimact.data.episodes import Episodes, Format
from bimact.data.findings import Finding
from bimact.errors import UserError


def _episodes(*faults: tuple[str, int, int, float]) -> Episodes:
    """Two episodes of 4 and 3 steps with some values replaced: (state or actions, row, column, value)."""
    arrays = {"state": np.zeros((7, 3), np.float32), "actions": np.zeros((7, 14), np.float32)}
    for what, row, column, value in faults:
        arrays[what][row, column] = value
    return Episodes(Path("dataset"), np.array([4, 3]), {}, arrays["state"], arrays["actions"])


@pytest.mark.parametrize("block", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("faults", "found"),
    [
        ([], None),
        ([("state", 5, 2, np.nan)], (1, 1, "state")),
        ([("actions", 0, 0, np.inf)], (0, 0, "actions")),
        ([("actions", 6, 13, -np.inf)], (1, 2, "actions")),
        ([("state", 5, 0, np.nan), ("actions", 2, 1, np.nan), ("actions", 3, 1, np.inf)], (0, 2, "actions")),
    ],
)
def test_first_value_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    faults: list[tuple[str, int, int, float]],
    found: tuple[int, int, str] | None,
) -> None:
    monkeypatch.setattr("bimact.data.checks._BLOCK_ROWS", block)
    assert find_nonfinite(_episodes(*faults)) == found


def test_refusal_names_episode_and_step() -> None:
    refuse_nonfinite(_episodes())
    with pytest.raises(UserError, match="dataset: state of episode 1, step 1 holds NaN"):
        refuse_nonfinite(_episodes(("state", 5, 2, np.nan)))


# Looking through a whole dataset -------------------------------------------------------------------


@pytest.fixture
def long_episodes(tmp_path: Path) -> Path:
    """A dataset of which nothing is odd."""
    return write_dataset(tmp_path / "long", [50, 60, 55])


def change(path: Path, edit: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Save an array anew; `edit` changes it or gives another one."""
    array = np.load(path)
    edited = edit(array)
    np.save(path, array if edited is None else edited)


def assign(field: str, rows: Any, value: Any) -> Callable[[np.ndarray], None]:
    def edit(array: np.ndarray) -> None:
        (array[field] if field else array)[rows] = value

    return edit


def sentences(findings: Sequence[Finding]) -> list[str]:
    return [finding.sentence for finding in findings]


def only_warning(folder: Path, config: Config | None = None) -> Finding:
    report = check_dataset(folder, config)
    assert sentences(report.faults) == [] and report.episodes is not None
    assert len(report.warnings) == 1, report.warnings
    return report.warnings[0]


def test_nothing_to_tell(long_episodes: Path) -> None:
    report = check_dataset(long_episodes, to_config({"action_dim": 14, "state_dim": 14, "cameras": ["right"]}))
    assert report.findings == () and report.episodes is not None
    assert report.size == sum(path.stat().st_size for path in long_episodes.iterdir())
    assert report.episodes.fps == 50
    assert report.episodes.lengths.tolist() == [50, 60, 55]


def test_episodes_shorter_than_a_chunk(long_episodes: Path) -> None:
    finding = only_warning(long_episodes, to_config({"chunk_size": 60}))
    assert finding.sentence.startswith(
        "rollout_length.npy: 2 of 3 episodes are shorter than chunk_size (60), the shortest is episode 0 with 50 steps"
    )


def test_black_and_still_images(long_episodes: Path) -> None:
    change(long_episodes / "observations.npy", assign("image_left", slice(50, 110), 0))
    assert only_warning(long_episodes).episode == 1
    change(long_episodes / "observations.npy", assign("image_left", slice(50, 110), 9))
    assert only_warning(long_episodes).sentence == (
        "observations.npy, episode 1: camera 'left' shows the same image at all steps; see that it was running"
    )
    change(long_episodes / "observations.npy", assign("image_left", (80, 3, 4, 0), 8))  # one pixel of one step
    assert check_dataset(long_episodes).findings == ()
    change(long_episodes / "observations.npy", assign("image_left", slice(None), 0))
    assert only_warning(long_episodes).sentence == (
        "observations.npy, all 3 episodes: camera 'left' is black at all steps; see that it was switched on"
    )


def test_images_are_compared_over_many_blocks(long_episodes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bimact.data.value_warnings._BLOCK_BYTES", 7 * 16 * 24 * 3)
    change(long_episodes / "observations.npy", assign("image_right", slice(110, 165), 3))
    assert only_warning(long_episodes).episode == 2
    change(long_episodes / "observations.npy", assign("image_right", 163, 4))
    assert check_dataset(long_episodes).findings == ()


def test_duplicate_episodes(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", [50, 60, 50])
    change(folder / "actions.npy", assign("", slice(110, 160), np.load(folder / "actions.npy")[:50]))
    finding = only_warning(folder)
    assert finding.sentence.startswith("actions.npy, episode 2: its actions are those of episode 0, byte for byte")
    change(folder / "actions.npy", assign("", (130, 2), 0.5))
    assert check_dataset(folder).findings == ()


def test_values_that_never_change(long_episodes: Path) -> None:
    change(long_episodes / "observations.npy", assign("state", (slice(None), 3), 0.25))
    assert only_warning(long_episodes).sentence.startswith(
        "observations.npy: state[3] has the same value at every step"
    )
    change(long_episodes / "observations.npy", assign("state", (80, 3), 0.5))
    assert check_dataset(long_episodes).findings == ()
    joints = [f"joint_{number}" for number in range(14)]
    (long_episodes / "metadata.json").write_text(json.dumps({"joint_names": joints}))
    change(long_episodes / "actions.npy", assign("", (slice(None), [6, 13]), 1.0))
    assert "action[6] (joint_6), action[13] (joint_13) have the same" in only_warning(long_episodes).sentence
    change(long_episodes / "actions.npy", assign("", slice(None), 1.0))
    assert "action[7] (joint_7) and 6 more have the same" in check_dataset(long_episodes).warnings[0].sentence


@pytest.mark.parametrize(("rows", "episode", "step", "count"), [(slice(50, 110), 1, 0, 60), ([120, 121], 2, 10, 2)])
def test_values_in_a_wrong_unit(long_episodes: Path, rows: Any, episode: int, step: int, count: int) -> None:
    """A whole episode too, though its values make most of the standard deviation of all."""
    values = np.load(long_episodes / "observations.npy")["state"][rows, 5] * 1000 + 100
    change(long_episodes / "observations.npy", assign("state", (rows, 5), values))
    finding = only_warning(long_episodes)
    assert (finding.episode, finding.step) == (episode, step) and count / 2 < finding.count <= count
    assert re.match(
        rf"observations\.npy, episode {episode}, step {step} \(the first of \d+\) has {values[0]:.4g} as state\[5\], "
        "more than 20 standard deviations from the usual",
        finding.sentence,
    )


def test_arm_that_moves_in_one_episode_only_is_no_wrong_unit(long_episodes: Path) -> None:
    change(long_episodes / "actions.npy", assign("", (slice(0, 110), slice(7, 14)), 0.0))
    assert check_dataset(long_episodes).findings == ()


def test_episodes_in_different_places_are_no_wrong_unit(long_episodes: Path) -> None:
    """Little movement within each episode, but much between them."""
    places = np.repeat([0.0, 2.0, 4.0], [50, 60, 55]) + np.resize([0.02, -0.02], 165)
    change(long_episodes / "observations.npy", assign("state", (slice(None), 1), places))
    assert check_dataset(long_episodes).findings == ()


def test_types_that_will_be_converted(long_episodes: Path) -> None:
    change(long_episodes / "actions.npy", lambda actions: actions.astype(np.float64))
    assert only_warning(long_episodes).sentence.startswith(
        "actions.npy holds values of type float64: training converts"
    )
    change(long_episodes / "actions.npy", lambda actions: actions * 1e300)
    assert "has inf as action[0]" in check_dataset(long_episodes).faults[0].sentence


def test_width_of_actions(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", [50, 60], dim=7)
    assert "an action has 7 values, two arms usually have 14; if that is right" in only_warning(folder).sentence
    assert check_dataset(folder, to_config({"chunk_size": 5})).findings == ()  # any width will do
    faults = check_dataset(folder, to_config({"action_dim": 14, "state_dim": 8, "cameras": ["left", "top"]})).faults
    assert [(fault.file, fault.sentence.split("; ")[0]) for fault in faults] == [
        ("actions.npy", "actions.npy: action_dim is 14 in the config, but the dataset has 7"),
        ("observations.npy", "observations.npy: state_dim is 8 in the config, but the dataset has 7"),
        ("observations.npy", "observations.npy has no camera 'top', which the config wants"),
    ]


def test_every_episode_with_nan_is_named_once(long_episodes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bimact.data.checks._BLOCK_ROWS", 7)
    change(long_episodes / "actions.npy", assign("", ([3, 4, 40, 150], 2), np.nan))
    change(long_episodes / "observations.npy", assign("state", (50, 1), -np.inf))
    assert sentences(check_dataset(long_episodes).findings) == [
        "actions.npy, episode 0, step 3 (the first of 3) has nan as action[2], which training cannot take; "
        "mend or remove the episode",
        "observations.npy, episode 1, step 0 has -inf as state[1], which training cannot take; "
        "mend or remove the episode",
        "actions.npy, episode 2, step 40 has nan as action[2], which training cannot take; mend or remove the episode",
    ]


@pytest.mark.parametrize("lengths", [None, [10, 8]])
def test_steps_that_belong_to_no_episode(tmp_path: Path, lengths: list[int] | None) -> None:
    folder = write_dataset(tmp_path / "d", [10, 10])
    change(folder / "actions.npy", assign("", (19, 0), np.nan))
    (folder / "rollout_length.npy").unlink()
    if lengths is not None:
        np.save(folder / "rollout_length.npy", lengths)
    (finding,) = [fault for fault in check_dataset(folder).faults if "nan" in fault.sentence]
    assert (finding.episode, finding.step) == (None, 19)
    assert finding.sentence.startswith("actions.npy, step 19 of all has nan as action[0]")


def test_negative_length_counts_as_no_step(dataset: Path) -> None:
    np.save(dataset / "rollout_length.npy", [9, -12, 7, 10])
    change(dataset / "actions.npy", assign("", (12, 0), np.nan))
    (finding,) = [fault for fault in check_dataset(dataset).faults if "nan" in fault.sentence]
    assert (finding.episode, finding.step) == (2, 3)


def test_names_of_joints_are_compared_with_the_actions(dataset: Path) -> None:
    (dataset / "metadata.json").write_text('{"joint_names": ["waist"]}')
    assert sentences(check_dataset(dataset).faults) == [
        "metadata.json: joint_names has 1 names, an action has 14 values"
    ]


def test_unfinished_recording_needs_no_list_of_missing_files(tmp_path: Path) -> None:
    (tmp_path / "recording.json").write_text("{}")
    (fault,) = check_dataset(tmp_path).faults
    assert (
        fault.sentence
        == f"{tmp_path} holds an unfinished recording; run the same `bimact record` command again " + ("to finish it")
    )


def test_dataset_of_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    actions = draw.normal(size=(120, 14)).astype(np.float32)
    actions[70, 4] = np.nan
    images = {"top": draw.integers(0, 256, (120, 4, 4, 3), np.uint8)}
    episodes = Episodes(tmp_path, np.array([60, 60]), images, draw.normal(size=(120, 3)), actions)
    mine = Format("mine", recognizes=lambda path: True, open=lambda path, cache: episodes)
    monkeypatch.setattr("bimact.data.formats.entry_points", lambda group: [SimpleNamespace(load=lambda: mine)])
    (finding,) = check_dataset(tmp_path).findings
    assert finding.sentence.startswith(f"{tmp_path.name}, episode 1, step 10 has nan as action[4]")
    with pytest.raises(UserError, match="dataset not found"):
        check_dataset(tmp_path / "absent")
