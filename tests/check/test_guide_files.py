"""Faults in any form of the observations: each step that is not as it should be, and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guide_files import write_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bimact.check.dataset import check_dataset
from bimact.check.findings import Finding
from bimact.data.formats.guide_npy import read_guide_files
from bimact.data.opening import open_dataset
from bimact.errors import UserError

pytestmark = pytest.mark.usefixtures("in_this_process")


def sentences(findings: Sequence[Finding]) -> list[str]:
    return [finding.sentence for finding in findings]


# Observations as one dictionary --------------------------------------------------------------------


def save_columns(folder: Path, **changes: Any) -> None:
    """Observations as a dictionary of arrays with some replaced; None leaves one out."""
    structured = np.load(folder / "observations.npy", allow_pickle=True)
    columns = {**{name: structured[name] for name in structured.dtype.names}, **changes}
    kept = {name: column for name, column in columns.items() if column is not None}
    np.save(folder / "observations.npy", np.array(kept, dtype=object), allow_pickle=True)


def test_columns_of_different_lengths(dataset: Path) -> None:
    images = np.zeros((38, 4, 4, 3), np.uint8)
    save_columns(dataset, image_left=images[:30], image_right=images[:31])
    assert sentences(check_dataset(dataset).errors) == [
        f"image '{camera}': has {steps} steps, the state 38; save as many of both"
        for camera, steps in (("left", 30), ("right", 31))
    ]


def test_columns_without_state(dataset: Path) -> None:
    save_columns(dataset, state=None, image_left=np.zeros((37, 4, 4, 3), np.uint8))
    first, second = sentences(check_dataset(dataset).errors)
    assert first.startswith(
        "Invalid observation format: the dictionary in observations.npy has no 'state', but 'image_"
    )
    assert second.startswith("Rollout length mismatch: rollout_length.npy adds up to 38 steps, observations.npy has 37")


# Observations as dictionaries ----------------------------------------------------------------------


def as_dictionaries(folder: Path) -> list[Any]:
    structured = np.load(folder / "observations.npy", allow_pickle=False)
    return [{name: np.array(row[name]) for name in structured.dtype.names} for row in structured]


def save_dictionaries(folder: Path, steps: list[Any]) -> None:
    observations = np.empty(len(steps), dtype=object)
    observations[:] = steps
    np.save(folder / "observations.npy", observations, allow_pickle=True)


def test_converted_copies_do_not_count_as_size(dataset: Path) -> None:
    save_dictionaries(dataset, as_dictionaries(dataset))
    size = check_dataset(dataset).size
    open_dataset(dataset)
    assert list(dataset.glob(".bimact_cache/*/state.npy"))
    assert (
        check_dataset(dataset).size
        == size
        == sum(path.stat().st_size for path in dataset.glob("*.*") if path.is_file())
    )


def test_fault_of_all_steps_is_told_once(dataset: Path) -> None:
    steps = [{"image_left": step["image_left"] / 255, "pose": step["state"]} for step in as_dictionaries(dataset)]
    save_dictionaries(dataset, steps)
    assert sentences(check_dataset(dataset).errors) == [
        "Invalid observation format: observations.npy: each observation has no 'state', but 'image_left', 'pose'; "
        "save the robot's state so",
    ]


def test_images_that_no_one_reads_are_told(dataset: Path) -> None:
    steps = [{**step, "image_left": step["image_left"].astype(int)} for step in as_dictionaries(dataset)]
    save_dictionaries(dataset, steps)
    report = check_dataset(dataset)
    assert list(report.summary.cameras if report.summary else ()) == ["right"]
    (finding,) = [finding for finding in report.findings if finding.code == "unread-image"]
    assert finding.severity.value == "warning" and finding.sentence.startswith("image 'left': has (16, 24, 3) of int64")
    for step in steps:
        del step["image_right"]
    save_dictionaries(dataset, steps)
    (finding,) = [finding for finding in check_dataset(dataset).errors if finding.code == "unread-image"]
    with pytest.raises(UserError, match="has images, but none that can be used"):
        open_dataset(dataset)


def test_step_that_is_right_where_others_are_wrong_is_not_blamed(dataset: Path) -> None:
    steps = [{**step, "image_left": step["image_left"].astype(int), "state": None} for step in as_dictionaries(dataset)]
    steps[20] = as_dictionaries(dataset)[20]
    save_dictionaries(dataset, steps)
    assert [(fault.episode, fault.sentence.split(" of shape")[0]) for fault in check_dataset(dataset).errors] == [
        (None, "Invalid observation format: observations.npy: the usual observation has a 'state'"),
    ]


def test_camera_that_most_steps_lack(dataset: Path) -> None:
    steps = as_dictionaries(dataset)
    for row in (0, 10, 11, 30):
        steps[row]["image_top"] = steps[row]["image_left"]
    save_dictionaries(dataset, steps)
    report = check_dataset(dataset)
    assert report.summary is not None and tuple(report.summary.cameras) == open_dataset(dataset).cameras
    assert [text for text in sentences(report.warnings) if "image_top" in text] == [
        "observations.npy, episode 0, step 0 has 'image_top', which most steps lack: it will be ignored",
        "observations.npy, episode 1, step 1 (the first of 2) has 'image_top', which most steps lack: "
        "it will be ignored",
        "observations.npy, episode 3, step 2 has 'image_top', which most steps lack: it will be ignored",
    ]


def edit_state(edit: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda step: {**step, "state": edit(step["state"])}


# Harmless or not: that depends on what the other steps hold.
ODDITIES: list[Callable[[dict[str, Any]], Any]] = [
    edit_state(lambda state: state.astype(np.float64)),
    edit_state(lambda state: [int(value) for value in state]),
    edit_state(lambda state: state[:4]),
    edit_state(lambda state: state[:0]),
    edit_state(lambda state: state.astype(str)),
    edit_state(lambda state: state[None]),
    edit_state(lambda state: None),
    edit_state(lambda state: state * np.inf),
    lambda step: {**step, "image_top": step["image_left"]},
    lambda step: {**step, "image_left": step["image_left"][:4]},
    lambda step: {**step, "image_left": step["image_left"][:, :, 0]},
    lambda step: {**step, "image_left": step["image_left"].tolist()},
    lambda step: {**step, "image_": 1, 5: [[1], 2], "note": "x"},
    lambda step: dict(reversed(step.items())),
    lambda step: {name: value for name, value in step.items() if name != "image_right"},
    lambda step: {name: value for name, value in step.items() if name != "state"},
    lambda step: {},
    lambda step: None,
]


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.tuples(st.sampled_from(range(len(ODDITIES))), st.sets(st.integers(0, 11))), max_size=3),
)
def test_what_training_refuses_is_never_called_valid(lengths: list[int], changes: list[tuple[int, set[int]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_dataset(Path(name) / "d", lengths, size=(6, 5))
        sound = as_dictionaries(folder)
        steps = list(sound)
        for number, rows in changes:
            for row in rows & set(range(len(steps))):
                steps[row] = ODDITIES[number](sound[row])
        save_dictionaries(folder, steps)
        report = check_dataset(folder)
        try:
            opened = open_dataset(folder)
        except UserError:
            assert report.errors
            return
        if report.summary is None:  # training leaves out what is odd in the first step of most episodes
            assert report.errors
            return
        assert report.errors == () and tuple(report.summary.cameras) == opened.cameras
        inspected = read_guide_files(folder).as_source().opened
        np.testing.assert_array_equal(inspected.state[:], opened.state[:])
        for camera, images in opened.images.items():
            found = inspected.images[camera]
            assert (found.shape, found.dtype, len(found)) == (images.shape, images.dtype, len(images))
            rows_in_any_order = np.arange(len(images))[::-1]
            np.testing.assert_array_equal(found[rows_in_any_order], images[rows_in_any_order])
            np.testing.assert_array_equal(found[0], images[0])
