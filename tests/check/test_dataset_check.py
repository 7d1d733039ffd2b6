"""A look through whole datasets on disk: the guide's files, other formats, faults that readers meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from demonstrations import ArraySource, clean, save_guide
from guide_files import write_dataset
from synthetic import synthetic_source

from bimact.check.dataset import check_dataset
from bimact.check.findings import DatasetReport
from bimact.check.kinds import ERROR, KINDS, READING, WARNING
from bimact.check.scan import NO_FILES, scan
from bimact.config import to_config
from bimact.data.selection import Selection
from bimact.data.source import Format, Source, Unusable
from bimact.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset in the guide's files, of which nothing is odd."""
    return save_guide(clean(), tmp_path / "cups")


def change(path: Path, edit: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Save an array anew; `edit` changes it or gives another one."""
    array = np.load(path)
    edited = edit(array)
    np.save(path, array if edited is None else edited)


def assign(field: str, rows: Any, value: Any) -> Callable[[np.ndarray], None]:
    def edit(array: np.ndarray) -> None:
        (array[field] if field else array)[rows] = value

    return edit


def told(report: DatasetReport) -> list[tuple[str, str]]:
    return [(finding.code, finding.sentence) for finding in report.findings]


# The guide's files ---------------------------------------------------------------------------------


def test_nothing_to_tell(folder: Path) -> None:
    report = check_dataset(folder, to_config({"action_dim": 14, "state_dim": 14, "cameras": ["wrist"]}))
    assert report.findings == () and report.exit_status() == 0
    assert report.size == sum(path.stat().st_size for path in folder.iterdir())
    assert report.summary is not None and report.summary.fps == 30
    assert report.summary.lengths.tolist() == [len(part) for part in clean().state]
    assert report.summary.cameras == {"wrist": (48, 64)}
    assert set(report.looked_for) == set(KINDS)


def test_findings_name_the_file(folder: Path) -> None:
    change(folder / "actions.npy", assign("", ([3, 4], 2), np.nan))
    change(folder / "observations.npy", assign("state", (0, 1), -np.inf))
    report = check_dataset(folder)
    assert told(report) == [
        ("nan", "observations.npy, episode 0, step 0 has -inf as state[1]"),
        ("nan", "actions.npy, episode 0, step 3 (the first of 2) has nan as action[2] (left_c)"),
    ]
    assert report.is_whole and report.exit_status() == report.exit_status(ERROR) == 1
    assert [(finding.episode, finding.step, finding.count) for finding in report.errors] == [(0, 0, 1), (0, 3, 2)]


def test_settings_that_the_dataset_does_not_fit(folder: Path) -> None:
    config = to_config({"action_dim": 7, "state_dim": 8, "cameras": ["front", "top"], "chunk_size": 110})
    assert [
        (finding.code, finding.severity, finding.sentence.split(";")[0])
        for finding in check_dataset(folder, config).errors
    ] == [
        ("config-mismatch", ERROR, f"{folder} has no camera 'top'"),
        ("config-mismatch", ERROR, "actions.npy: action_dim is 7 in the config, but the dataset has 14"),
        ("config-mismatch", ERROR, "observations.npy: state_dim is 8 in the config, but the dataset has 14"),
    ]
    (short,) = check_dataset(folder, config).infos
    assert short.sentence.startswith(
        "rollout_length.npy: 3 of 6 episodes are shorter than chunk_size (110), the shortest"
    )


def test_part_that_is_chosen(folder: Path) -> None:
    change(folder / "actions.npy", assign("", (slice(None), 13), np.nan))
    change(folder / "observations.npy", assign("image_front", slice(None), 0))
    selection = Selection(cameras=("wrist",), state_dims="0:7", action_dims="0:7", max_episodes=3)
    report = check_dataset(folder, selection=selection)
    assert [finding.code for finding in report.findings] == ["action-size"]
    assert report.summary is not None and len(report.summary.lengths) == 3
    with pytest.raises(UserError, match="has no camera 'top'"):
        check_dataset(folder, to_config({}), selection=Selection(cameras=("top",)))
    fits = to_config({"cameras": ["wrist"], "state_dims": "0:7", "action_dims": "0:7", "action_dim": 7})
    assert check_dataset(folder, fits).findings == ()


def test_images_are_left_out(folder: Path) -> None:
    change(folder / "observations.npy", assign("image_front", slice(None), 0))
    assert [finding.code for finding in check_dataset(folder).findings] == ["blank-image"]
    report = check_dataset(folder, images=False)
    assert report.findings == () and "blank-image" not in report.looked_for


@pytest.mark.parametrize("lengths", [None, [10, 8]])
def test_steps_that_belong_to_no_episode(tmp_path: Path, lengths: list[int] | None) -> None:
    folder = write_dataset(tmp_path / "d", [10, 10])
    change(folder / "actions.npy", assign("", (19, 0), np.nan))
    (folder / "rollout_length.npy").unlink()
    if lengths is not None:
        np.save(folder / "rollout_length.npy", lengths)
    report = check_dataset(folder)
    (finding,) = [error for error in report.errors if error.code == "nan"]
    assert (finding.episode, finding.step) == (None, 19)
    assert finding.sentence == "actions.npy, step 19 of all has nan as action[0]"
    assert not report.is_whole and report.exit_status(WARNING) == 2


def test_negative_length_counts_as_no_step(dataset: Path) -> None:
    np.save(dataset / "rollout_length.npy", [9, -12, 7, 10])
    change(dataset / "actions.npy", assign("", (12, 0), np.nan))
    (finding,) = [error for error in check_dataset(dataset).errors if error.code == "nan"]
    assert (finding.episode, finding.step) == (2, 3)


def test_nan_is_found_over_many_blocks(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bimact.check.dataset._BLOCK_ROWS", 7)
    (dataset / "metadata.json").write_text("{")
    change(dataset / "actions.npy", assign("", ([3, 8, 20, 37], 2), np.nan))
    places = [
        (error.episode, error.step, error.count) for error in check_dataset(dataset).errors if error.code == "nan"
    ]
    assert places == [(0, 3, 2), (1, 11, 1), (3, 9, 1)]


def test_types_that_will_be_converted(folder: Path) -> None:
    change(folder / "actions.npy", lambda actions: actions.astype(np.float64))
    (finding,) = check_dataset(folder).infos
    assert finding.code == "dtype" and finding.sentence.startswith("actions.npy holds values of type float64: training")
    change(folder / "actions.npy", lambda actions: actions * 1e300)
    assert "has inf as action[0]" in check_dataset(folder).errors[0].sentence


def test_names_of_joints_are_compared_with_the_actions(dataset: Path) -> None:
    (dataset / "metadata.json").write_text('{"joint_names": ["waist"]}')
    assert told(check_dataset(dataset)) == [
        ("unreadable", "metadata.json: joint_names has 1 names, an action has 14 values")
    ]


def test_unfinished_recording_needs_no_list_of_missing_files(tmp_path: Path) -> None:
    (tmp_path / "recording.json").write_text("{}")
    assert told(check_dataset(tmp_path)) == [
        (
            "unreadable",
            f"{tmp_path} holds an unfinished recording; run the same `bimact record` command again to finish it",
        )
    ]


# Other formats -------------------------------------------------------------------------------------


def add_format(monkeypatch: pytest.MonkeyPatch, opened: Callable[[Path], Source]) -> None:
    """A format of another package, which takes any folder."""
    mine = Format("mine", lambda path: True, lambda path, cache: opened(path), in_process=True)
    monkeypatch.setattr("bimact.data.opening.entry_points", lambda group: [SimpleNamespace(load=lambda: mine)])


def test_dataset_of_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demos = clean(3)
    demos.action[1][10, 4] = np.nan
    demos.unreadable = {(2, "wrist")}

    def opened(path: Path) -> ArraySource:
        return demos.source(path=path, unusable=(Unusable(7, "episode_7.bin", "it has no actions", is_missing=True),))

    add_format(monkeypatch, opened)
    report = check_dataset(tmp_path)
    assert told(report) == [
        ("missing-episode", "episode_7.bin: it has no actions"),
        ("nan", "episode_1.bin, step 10 has nan as action[4] (left_e)"),
        ("unreadable", "episode_2.bin is cut off: copy it again"),
    ]
    assert [finding.episode_name for finding in report.findings] == ["episode_7.bin", "episode_1.bin", "episode_2.bin"]
    assert report.exit_status() == 2 and report.summary is not None and report.summary.format == "arrays"
    with pytest.raises(UserError, match="dataset not found"):
        check_dataset(tmp_path / "absent")


def test_dataset_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Source:
        raise UserError(f"{path}/info.json is damaged: copy it again")

    add_format(monkeypatch, refuse)
    report = check_dataset(tmp_path)
    assert told(report) == [("unreadable", f"{tmp_path}/info.json is damaged: copy it again")]
    assert report.exit_status(ERROR) == 2 and report.summary is None and set(report.looked_for) == READING
    assert report.as_json()["summary"] is None


@pytest.mark.parametrize(("fault", "jobs"), [("error", 256), ("crash", 256), ("crash", 2)])
def test_damaged_episode_hides_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, jobs: int
) -> None:
    """Not even if the library that reads it crashes, and others are read by the same job."""
    monkeypatch.setattr("bimact.check.scan._MOST_JOBS", jobs)
    camera, other = synthetic_source(tmp_path / "d").cameras
    faults = {(1, camera): fault, (3, camera): "error"}
    source = synthetic_source(tmp_path / "d", (5, 8, 3, 6), faults=faults)
    facts, problems = scan(Selection().applied_to(source), images=True, apart=True, config=None, files=NO_FILES)
    assert sorted((problem.episode, problem.camera) for problem in problems) == [(1, camera), (3, camera)]
    assert (
        [len(frames or ()) for frames in facts.frames[other]]
        == [len(part) for part in facts.state.parts]
        == [5, 8, 3, 6]
    )
    assert [len(frames or ()) for frames in facts.frames[camera]] == [5, 7 if fault == "error" else 0, 3, 5]


# True recordings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "infos"),
    [
        pytest.param("lerobot_v30_aloha_sim", {"idle-tail", "several-tasks"}, marks=pytest.mark.slow),
        pytest.param("lerobot_v21_g1_bottle", {"action-size", "slow-camera"}, marks=pytest.mark.slow),
        ("aloha_hdf5/raw", {"short-episode", "no-task", "read-otherwise"}),
        ("aloha_hdf5/compressed", {"color-order", "no-task", "read-otherwise"}),
    ],
)
def test_sound_recordings_of_others_give_no_warning(name: str, infos: set[str]) -> None:
    if not SHARED.is_dir():
        pytest.skip("the samples are not there")
    report = check_dataset(SHARED / name)
    assert report.warnings == report.errors == ()
    assert {finding.code for finding in report.infos} == infos


@pytest.mark.slow
@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_recorded_demonstrations_give_no_warning(tmp_path: Path, task: str) -> None:
    from bimact.sim.recording import RecordingSettings, record

    cameras = ("top", "left_wrist", "right_wrist")
    record(RecordingSettings(task, 2, cameras, (48, 64)), tmp_path / task)
    report = check_dataset(tmp_path / task)
    assert report.warnings == report.errors == ()
    assert {finding.code for finding in report.infos} <= {"idle-tail"}


def test_report_in_json(folder: Path) -> None:
    change(folder / "observations.npy", assign("image_front", slice(0, 5), 0))
    content = json.loads(json.dumps(check_dataset(folder).as_json()))
    assert content["counts"] == {"error": 0, "warning": 1, "info": 0} and content["is_whole"]
    assert content["summary"]["cameras"]["front"] == {"height": 48, "width": 64}
    (finding,) = content["findings"]
    assert finding == {
        "code": "blank-image",
        "severity": "warning",
        "sentence": "episode 0, step 0 (the first of 5): camera 'front' is black",
        "effect": KINDS["blank-image"].effect,
        "advice": KINDS["blank-image"].advice,
        "episode": 0,
        "episode_name": "episode 0",
        "step": 0,
        "count": 5,
        "camera": "front",
        "file": None,
    }
