"""The guide's dataset in its three forms: the same episodes out of each, and a sentence for each fault."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bimact.data import cache, cached_copy
from bimact.data.episodes import Episodes
from bimact.data.formats.guide_npy import observation_dtype
from bimact.data.npy_rows import NpyRows
from bimact.data.opening import open_dataset, open_source
from bimact.data.selection import Selection
from bimact.errors import UserError

# That pickled observations are read in child processes is tested in test_opening.py.
pytestmark = pytest.mark.usefixtures("in_this_process")

SIZES = {"left": (6, 8), "right": (5, 4)}
STATE_DIM, ACTION_DIM = 7, 14
FORMS = ["structured", "dictionaries", "columns"]


def make_observations(steps: int) -> np.ndarray:
    """A structured array with random content."""
    rng = np.random.default_rng(steps)
    result = np.zeros(steps, observation_dtype(SIZES, STATE_DIM))
    for camera, size in SIZES.items():
        result[f"image_{camera}"] = rng.integers(0, 256, (steps, *size, 3), dtype=np.uint8)
    result["state"] = rng.normal(size=(steps, STATE_DIM))
    return result


def as_dictionaries(structured: np.ndarray) -> np.ndarray:
    result = np.empty(len(structured), dtype=object)
    for step, row in enumerate(structured):
        result[step] = {name: np.array(row[name]) for name in structured.dtype.names or ()}
    return result


def as_columns(structured: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.array(structured[name]) for name in structured.dtype.names or ()}


AS_FORM: dict[str, Callable[[np.ndarray], Any]] = {
    "structured": lambda structured: structured,
    "dictionaries": as_dictionaries,
    "columns": as_columns,
}


def write(folder: Path, lengths: list[int], form: str = "structured") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    steps = sum(lengths)
    save_observations(folder, AS_FORM[form](make_observations(steps)))
    actions = np.random.default_rng(1).normal(size=(steps, ACTION_DIM)).astype(np.float32)
    np.save(folder / "actions.npy", actions)
    np.save(folder / "rollout_length.npy", np.array(lengths, dtype=np.int64))
    return folder


def save_observations(folder: Path, content: Any) -> None:
    np.save(folder / "observations.npy", content, allow_pickle=True)


def assert_same(one: Episodes, other: Episodes) -> None:
    np.testing.assert_array_equal(one.lengths, other.lengths)
    assert one.cameras == other.cameras
    for camera in one.cameras:
        assert one.images[camera].dtype == other.images[camera].dtype == np.uint8
        np.testing.assert_array_equal(one.images[camera][:], other.images[camera][:])
    for first, second in ((one.state, other.state), (one.actions, other.actions)):
        assert first.dtype == second.dtype == first[:].dtype == np.float32
        np.testing.assert_array_equal(first[:], second[:])


def refusal(folder: Path) -> str:
    """The one sentence that opening a dataset ends in."""
    with pytest.raises(UserError) as caught:
        open_dataset(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence and str(folder) in sentence
    return sentence


# The three forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_episodes(tmp_path: Path, form: str) -> None:
    structured = make_observations(9)
    episodes = open_dataset(write(tmp_path / "d", [4, 3, 2], form))
    assert episodes.path == tmp_path / "d"
    assert episodes.lengths.tolist() == [4, 3, 2] and episodes.lengths.dtype == np.int64
    assert episodes.cameras == ("left", "right")
    for camera in SIZES:
        assert episodes.images[camera].shape == (9, *SIZES[camera], 3)
        np.testing.assert_array_equal(episodes.images[camera][[3, 1, 1]], structured[f"image_{camera}"][[3, 1, 1]])
    np.testing.assert_array_equal(episodes.state[np.arange(9)], structured["state"])
    assert episodes.actions.shape == (9, ACTION_DIM) and len(episodes.actions) == 9
    assert (episodes.fps, episodes.joint_names, episodes.task, dict(episodes.metadata)) == (
        None,
        None,
        None,
        {},
    )


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_forms_give_the_same_episodes(tmp_path: Path, lengths: list[int]) -> None:
    shutil.rmtree(tmp_path)
    structured, *others = (open_dataset(write(tmp_path / form, lengths, form)) for form in FORMS)
    assert structured.num_steps == sum(lengths)
    for other in others:
        assert_same(structured, other)


@pytest.mark.parametrize("protocol", range(6))
def test_protocols_of_pickles(tmp_path: Path, protocol: int) -> None:
    structured = open_dataset(write(tmp_path / "structured", [3]))
    content = as_dictionaries(make_observations(3))
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (3,)})
    write(tmp_path / "pickled", [3])
    (tmp_path / "pickled/observations.npy").write_bytes(file.getvalue() + pickle.dumps(content, protocol=protocol))
    assert_same(structured, open_dataset(tmp_path / "pickled"))


def test_extra_keys_are_ignored(tmp_path: Path) -> None:
    plain = open_dataset(write(tmp_path / "plain", [4]))
    structured = make_observations(4)
    more = observation_dtype(SIZES, STATE_DIM).descr + [("reward", np.float64), ("note", "U3")]
    extended = np.zeros(4, np.dtype(more))
    for name in structured.dtype.names or ():
        extended[name] = structured[name]
    dictionaries = as_dictionaries(structured)
    for step in range(0, 4, 2):
        dictionaries[step].update(reward=1.0, info={"a": [1]}, image=np.zeros(3), ragged=[[1], [1, 2]])
    dictionaries[3]["image_third"] = np.zeros((2, 2, 3), np.uint8)
    columns: dict[Any, Any] = {
        **as_columns(structured),
        "reward": np.zeros(4),
        "names": ["a"],
        "t": np.array(1.0),
        5: None,
    }
    for number, content in enumerate((extended, dictionaries, columns)):
        save_observations(write(tmp_path / str(number), [4]), content)
        assert_same(plain, open_dataset(tmp_path / str(number)))


@pytest.mark.parametrize("dtype", [np.float64, ">f4", np.float16, np.int32, np.uint8])
@pytest.mark.parametrize("form", FORMS)
def test_other_types_of_numbers(tmp_path: Path, form: str, dtype: Any) -> None:
    folder = write(tmp_path / "d", [4, 2])
    structured = make_observations(6)
    state = (np.arange(6 * STATE_DIM).reshape(6, STATE_DIM) % 100).astype(dtype)
    images = observation_dtype(SIZES, STATE_DIM).descr[:-1]
    other = np.zeros(6, np.dtype([*images, ("state", dtype, (STATE_DIM,))]))
    for name in structured.dtype.names or ():
        other[name] = state if name == "state" else structured[name]
    save_observations(folder, AS_FORM[form](other))
    np.save(folder / "actions.npy", state)
    episodes = open_dataset(folder)
    for rows in (episodes.state, episodes.actions):
        assert rows.dtype == rows[[1, 2]].dtype == rows[:].dtype == np.float32
        np.testing.assert_array_equal(rows[:], state.astype(np.float32))


def test_state_as_a_list_of_numbers(tmp_path: Path) -> None:
    dictionaries = as_dictionaries(make_observations(3))
    for observation in dictionaries:
        observation["state"] = [float(value) for value in observation["state"]]
    save_observations(write(tmp_path / "d", [3]), dictionaries)
    assert_same(open_dataset(tmp_path / "d"), open_dataset(write(tmp_path / "plain", [3])))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, ">i4", np.uint32, np.uint64])
def test_lengths_of_any_width(tmp_path: Path, dtype: Any) -> None:
    np.save(write(tmp_path, [4, 3]) / "rollout_length.npy", np.array([4, 3], dtype=dtype))
    episodes = open_dataset(tmp_path)
    assert episodes.lengths.tolist() == [4, 3] and episodes.lengths.dtype == np.int64


def test_actions_in_fortran_order(tmp_path: Path) -> None:
    actions = np.load(write(tmp_path, [4]) / "actions.npy")
    np.save(tmp_path / "actions.npy", np.asfortranarray(actions))
    np.testing.assert_array_equal(open_dataset(tmp_path).actions[[2, 0]], actions[[2, 0]])


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_camera_with_a_name_that_is_not_ascii(tmp_path: Path) -> None:
    structured = np.zeros(3, observation_dtype({"левая": (4, 4)}, 2))
    for form in FORMS:
        save_observations(write(tmp_path / form, [3]), AS_FORM[form](structured))
        assert open_dataset(tmp_path / form).cameras == ("левая",)


@pytest.mark.parametrize("form", FORMS)
def test_access_of_the_guide(tmp_path: Path, form: str) -> None:
    """The guide's own lines, on each form."""
    lengths = [4, 3]
    folder = write(tmp_path / "d", lengths, form)
    open_dataset(folder)
    obs = np.load(folder / "observations.npy", allow_pickle=True)
    actions = np.load(folder / "actions.npy")
    rollout_lengths = np.load(folder / "rollout_length.npy")
    assert rollout_lengths.sum() == len(actions)
    if form == "columns":
        obs = obs.item()
    else:
        assert len(obs) == 7
        assert obs[3]["image_left"].shape == (6, 8, 3) and obs[3]["image_left"].dtype == np.uint8
        assert obs[3]["state"].shape == (STATE_DIM,) and obs[3]["state"].dtype == np.float32
    if form != "dictionaries":
        assert obs["image_left"].shape == (7, 6, 8, 3) and obs["state"].shape == (7, STATE_DIM)


def test_rows_are_pickled_as_their_path(tmp_path: Path) -> None:
    actions = np.zeros((1000, 14))
    np.save(tmp_path / "a.npy", actions)
    rows = NpyRows(tmp_path / "a.npy", dtype=np.float32)
    np.testing.assert_array_equal(rows[5:7], actions[5:7])
    pickled = pickle.dumps(rows)
    assert len(pickled) < 500
    again = pickle.loads(pickled)
    assert again[[1, 2]].dtype == np.float32 and again.shape == (1000, 14)


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d", [3])
    monkeypatch.chdir(tmp_path)
    episodes = open_dataset("d")
    monkeypatch.chdir("/")
    assert episodes.images["left"].shape == (3, 6, 8, 3)


# Metadata ------------------------------------------------------------------------------------------


def test_metadata(tmp_path: Path) -> None:
    joints = [f"joint_{number}" for number in range(ACTION_DIM)]
    content = {"fps": 50, "joint_names": joints, "task": "transfer_cube", "settings": {"seed": 1}}
    (write(tmp_path, [3]) / "metadata.json").write_text(json.dumps(content))
    episodes = open_dataset(tmp_path)
    assert episodes.fps == 50.0 and isinstance(episodes.fps, float)
    assert episodes.joint_names == tuple(joints)
    assert episodes.task == "transfer_cube" and episodes.metadata == {"settings": {"seed": 1}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "no readable JSON"),
        ("\xff", "no readable JSON"),
        ("[" * 100_000, "no readable JSON"),
        ("[]", "has to hold one JSON object"),
        ('{"fps": 0}', "fps is 0, it has to be a number above 0"),
        ('{"fps": "50"}', "fps is '50'"),
        ('{"fps": true}', "fps is True"),
        ('{"fps": NaN}', "fps is nan"),
        ('{"fps": 1e999}', "fps is inf"),
        ('{"joint_names": "waist"}', "joint_names has to be a list of names"),
        ('{"joint_names": [1]}', "joint_names has to be a list of names"),
        ('{"joint_names": ["waist"]}', "joint_names has 1 names, an action has 14 values"),
        ('{"task": 1}', "task is 1, it has to be text"),
    ],
)
def test_broken_metadata(tmp_path: Path, content: str, sentence: str) -> None:
    (write(tmp_path, [3]) / "metadata.json").write_bytes(content.encode("latin1"))
    assert sentence in refusal(tmp_path)


# Faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["observations.npy", "actions.npy", "rollout_length.npy"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    (write(tmp_path, [3]) / name).unlink()
    assert f"has no {name}: a dataset has observations.npy, actions.npy and" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["observations.npy", "actions.npy", "rollout_length.npy"])
@pytest.mark.parametrize("form", FORMS)
def test_file_that_is_cut_off_or_something_else(tmp_path: Path, name: str, form: str) -> None:
    path = write(tmp_path, [3, 20], form) / name
    whole = path.read_bytes()
    for size in (1, 7, 60, 130, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert re.search(r"damaged header|not a \.npy file|is cut off|damaged or cut off", refusal(tmp_path)), size
    path.write_bytes(b"PK\x03\x04")
    assert "is not a .npy file: write it with np.save" in refusal(tmp_path)
    path.write_bytes(b"")
    assert "is not a .npy file" in refusal(tmp_path)


def test_how_much_of_a_file_is_there(tmp_path: Path) -> None:
    path = write(tmp_path, [3]) / "actions.npy"
    path.write_bytes(path.read_bytes()[:200])
    assert f"is cut off: it has 200 of {128 + 3 * 14 * 4} bytes" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [
        (np.array([4.0, 3.0]), "holds float64: lengths have to be integers"),
        (np.array([True]), "holds bool: lengths have to be integers"),
        (np.array([[4, 3]]), r"has shape \(1, 2\): it has to be \(episodes,\)"),
        (np.array(7), r"has shape \(\): it has to be"),
        (np.array([], dtype=np.int64), "lists no episodes"),
        (np.array([0, 0]), "lists no episode with a step"),
        (np.array([4, 4, -1]), "episode 2 has -1 steps"),
        (np.array([2**63, 2**63], dtype=np.uint64), "holds lengths that no dataset has"),
        (np.array([4, None]), "holds Python objects instead of numbers"),
    ],
)
def test_faulty_lengths(tmp_path: Path, lengths: np.ndarray, sentence: str) -> None:
    np.save(write(tmp_path, [4, 3]) / "rollout_length.npy", lengths)
    assert re.search(rf"rollout_length\.npy:? {sentence}", refusal(tmp_path))


@pytest.mark.parametrize(
    ("actions", "sentence"),
    [
        (np.zeros(7), r"has shape \(7,\): it has to be \(steps, size of an action\)"),
        (np.zeros((7, 0)), r"has shape \(7, 0\)"),
        (np.zeros((7, 2, 2)), r"has shape \(7, 2, 2\)"),
        (np.zeros((7, 2), dtype=complex), "holds complex128: actions have to be numbers"),
        (np.zeros((7, 2), dtype=[("a", "f4")]), "holds .*: actions have to be numbers"),
        (np.array([[None]] * 7), "holds Python objects instead of numbers"),
    ],
)
def test_faulty_actions(tmp_path: Path, actions: np.ndarray, sentence: str) -> None:
    np.save(write(tmp_path, [4, 3]) / "actions.npy", actions)
    assert re.search(rf"actions\.npy {sentence}", refusal(tmp_path))


def test_actions_of_another_length(tmp_path: Path) -> None:
    np.save(write(tmp_path, [4, 3]) / "actions.npy", np.zeros((6, 14)))
    assert "Rollout length mismatch: rollout_length.npy adds up to 7 steps, actions.npy has 6" in refusal(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_observations_of_another_length(tmp_path: Path, form: str) -> None:
    folder = write(tmp_path, [4, 3], form)
    save_observations(folder, AS_FORM[form](make_observations(8)))
    sentence = "Rollout length mismatch: rollout_length.npy adds up to 7 steps, observations.npy has 8"
    assert sentence in refusal(folder)


def test_lengths_that_change_after_the_conversion(tmp_path: Path) -> None:
    open_dataset(write(tmp_path, [4, 3], "dictionaries"))
    np.save(tmp_path / "rollout_length.npy", [4, 2])
    np.save(tmp_path / "actions.npy", np.zeros((6, 14)))
    assert "adds up to 6 steps, observations.npy has 7" in refusal(tmp_path)


IMAGE = np.zeros((6, 8, 3), np.uint8)
STATE = np.zeros(STATE_DIM, np.float32)
OBSERVATIONS: list[tuple[dict[Any, Any], str]] = [
    ({"image_left": IMAGE}, r"no 'state', but 'image_left'"),
    ({"state": STATE, "rgb": IMAGE}, r"no image, but 'state', 'rgb'; call them 'image_<camera>'"),
    ({"image_": IMAGE, "state": STATE}, r"no image"),
    ({}, r"no 'state', but nothing"),
    ({"image_a": IMAGE, "state": STATE[:0]}, r"a 'state' of shape \(0,\)"),
    ({"image_a": IMAGE, "state": np.zeros((2, 3))}, r"a 'state' of shape \(2, 3\) and type float64"),
    ({"image_a": IMAGE, "state": np.array(["a"])}, r"a 'state' of shape \(1,\) and type <U1"),
]


@pytest.mark.parametrize(
    ("form", "observation", "sentence"),
    # A structured array has at least one field.
    [(form, *fault) for form in FORMS for fault in OBSERVATIONS if fault[0] or form != "structured"],
)
def test_faulty_layout(tmp_path: Path, form: str, observation: dict[Any, Any], sentence: str) -> None:
    if form == "structured":
        fields = [(name, value.dtype, value.shape) for name, value in observation.items()]
        content: Any = np.zeros(7, np.dtype(fields))
        where = r".*observations\.npy: each observation"
    elif form == "dictionaries":
        content = np.array([observation] * 7)
        where = r".*observations\.npy: each observation"
    else:
        content = {name: np.stack([value] * 7) for name, value in observation.items()}
        where = r"the dictionary in .*observations\.npy"
    save_observations(write(tmp_path, [4, 3]), content)
    assert re.match(rf"Invalid observation format: {where} has {sentence}", refusal(tmp_path))


def drop_image(dictionaries: np.ndarray) -> None:
    del dictionaries[5]["image_left"]


def drop_state(dictionaries: np.ndarray) -> None:
    del dictionaries[5]["state"]


def turn_image(dictionaries: np.ndarray) -> None:
    dictionaries[5]["image_left"] = dictionaries[5]["image_left"].transpose(1, 0, 2)


def lose_image(dictionaries: np.ndarray) -> None:
    dictionaries[5]["image_left"] = None


def scale_image(dictionaries: np.ndarray) -> None:
    dictionaries[5]["image_left"] = dictionaries[5]["image_left"] / 255


def shorten_state(dictionaries: np.ndarray) -> None:
    dictionaries[5]["state"] = dictionaries[5]["state"][:3]


def raggedize_state(dictionaries: np.ndarray) -> None:
    dictionaries[5]["state"] = [[1.0], [1.0, 2.0]]


def replace_by_list(dictionaries: np.ndarray) -> None:
    dictionaries[5] = [1, 2]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (drop_image, "has no 'image_left', which other steps have"),
        (drop_state, "has no 'state'"),
        (
            turn_image,
            "has 'image_left' of shape (8, 6, 3) and type uint8, other steps of shape (6, 8, 3)",
        ),
        (lose_image, "has 'image_left' of shape () and type object, other steps of"),
        (scale_image, "has 'image_left' of shape (6, 8, 3) and type float64, other steps of"),
        (shorten_state, "has 'state' of shape (3,) and type float32, other steps of shape (7,)"),
        (raggedize_state, "has 'state' of shape () and type object"),
        (replace_by_list, "is no dictionary but list; save a dictionary for each step"),
    ],
)
def test_faulty_step(tmp_path: Path, spoil: Callable[[np.ndarray], None], sentence: str) -> None:
    dictionaries = as_dictionaries(make_observations(7))
    spoil(dictionaries)
    save_observations(write(tmp_path, [4, 3]), dictionaries)
    found = refusal(tmp_path)
    assert "1 of 2 episodes cannot be used" in found and "--exclude_episodes 1," in found and sentence in found
    assert "episode 1: " in found and "Invalid observation format: step 1 " in found
    left = open_dataset(tmp_path, selection=Selection(skip_unreadable=True))
    assert left.lengths.tolist() == [4]
    np.testing.assert_array_equal(left.state[:], make_observations(7)["state"][:4])


@pytest.mark.parametrize(
    "values",
    [np.zeros((7, 0, 8, 3), np.uint8), np.zeros((7, 6, 8, 3), np.int64), np.zeros((7, 6, 8, 5), np.uint8)],
    ids=["no pixels", "int64", "five channels"],
)
def test_images_that_cannot_be_read_are_left_out(tmp_path: Path, values: np.ndarray) -> None:
    columns = {**as_columns(make_observations(7)), "image_odd": values}
    save_observations(write(tmp_path, [4, 3]), columns)
    source = Selection().applied_to(open_source(tmp_path))
    assert list(source.cameras) == list(SIZES) and [entry.name for entry in source.left_out] == ["odd"]
    for name in SIZES:
        del columns[f"image_{name}"]
    save_observations(tmp_path, columns)
    assert "has images, but none that can be used (odd has " in refusal(tmp_path)


def test_an_episode_without_steps_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(write(tmp_path, [4, 3]) / "rollout_length.npy", np.array([4, 0, 3]))
    episodes = open_dataset(tmp_path)
    assert episodes.lengths.tolist() == [4, 3] and "Skipped:  episode 1: it has no steps" in capsys.readouterr().out
    np.testing.assert_array_equal(episodes.state[episodes.rows_of(1)], make_observations(7)["state"][4:])


def test_first_observation_is_no_dictionary(tmp_path: Path) -> None:
    save_observations(write(tmp_path, [4, 3]), np.array([None] * 7))
    assert "observations.npy is no dictionary but NoneType" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (np.zeros((7, 3), np.float32), "has shape (7, 3); save a structured array"),
        (np.zeros(7), "holds float64 without names; save a structured array"),
        (np.array([[{}, {}]]), "holds an array of shape (1, 2); save an array of dictionaries"),
        (np.array({1, 2}), "holds set; save an array of dictionaries"),
    ],
)
def test_other_content(tmp_path: Path, content: Any, sentence: str) -> None:
    save_observations(write(tmp_path, [4, 3]), content)
    found = refusal(tmp_path)
    assert found.startswith("Invalid observation format: ") and sentence in found


def test_columns_of_different_lengths(tmp_path: Path) -> None:
    columns = as_columns(make_observations(7))
    columns["image_right"] = columns["image_right"][:6]
    save_observations(write(tmp_path, [4, 3]), columns)
    source = open_source(tmp_path)
    assert "right" not in source.cameras and source.cameras
    assert [(entry.kind, entry.name, entry.reason) for entry in source.left_out] == [
        ("image", "right", "has 6 steps, the state 7; save as many of both")
    ]
    with pytest.raises(UserError, match="camera 'right' cannot be used: it has 6 steps, the state 7"):
        open_dataset(tmp_path, selection=Selection(cameras=("right",)))


def test_lists_in_the_place_of_columns(tmp_path: Path) -> None:
    columns = as_columns(make_observations(7))
    save_observations(write(tmp_path / "arrays", [4, 3]), columns)
    lists = {name: list(column) for name, column in columns.items()}
    save_observations(write(tmp_path / "lists", [4, 3]), {**lists, "image_jpeg": [b"\xff\xd8\xff"] * 7, "note": "x"})
    assert_same(open_dataset(tmp_path / "lists"), open_dataset(tmp_path / "arrays"))
    left_out = {entry.name: entry.reason for entry in open_source(tmp_path / "lists").left_out}
    assert left_out["jpeg"].startswith("has shape () and type |S3; images have to be (height, width, 3) uint8 RGB")
    assert left_out["note"] == "is not an array with a row for each step"


def test_a_damaged_image_is_a_fault_of_its_camera_alone(tmp_path: Path) -> None:
    folder = write(tmp_path, [4, 3])
    steps = as_dictionaries(make_observations(7))
    del steps[5]["image_right"]
    save_observations(folder, steps)
    with pytest.raises(UserError, match=r"episode 1: camera right is damaged: .*step 1 has no 'image_right'"):
        open_dataset(folder)
    chosen = open_dataset(folder, selection=Selection(cameras=("left",)))
    assert chosen.lengths.tolist() == [4, 3] and list(chosen.images) == ["left"]


class RunsOnLoading:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", FORMS[1:])
def test_hostile_observations(tmp_path: Path, form: str) -> None:
    content = AS_FORM[form](make_observations(7))
    victim = tmp_path / "victim"
    (content[3] if form == "dictionaries" else content)["extra"] = RunsOnLoading(victim)
    save_observations(write(tmp_path / "d", [4, 3]), content)
    assert "system, which was refused and did not run" in refusal(tmp_path / "d")
    assert not victim.exists()
    assert_no_copy(tmp_path / "d")


@pytest.mark.parametrize("name", ["actions.npy", "rollout_length.npy"])
def test_hostile_numbers(tmp_path: Path, name: str) -> None:
    content = np.array([RunsOnLoading(tmp_path / "victim")], dtype=object)
    np.save(write(tmp_path / "d", [4, 3]) / name, content, allow_pickle=True)
    assert "holds Python objects instead of numbers" in refusal(tmp_path / "d")
    assert not (tmp_path / "victim").exists()


def test_unfinished_recording(tmp_path: Path) -> None:
    journal = {"settings": {"episodes": 50, "task": "t"}, "episodes": [{"number": 0}, {"number": 3}]}
    (tmp_path / "recording.json").write_text(json.dumps(journal))
    (tmp_path / "observations.npy.partial").write_bytes(b"")
    sentence = "unfinished recording: 2 of 50 episodes are done; run the same `bimact record` command again"
    assert sentence in refusal(tmp_path)
    write(tmp_path, [3])  # some arrays have got their names when it was interrupted
    assert sentence in refusal(tmp_path)
    for broken in ("{", "{}", '{"settings": {}, "episodes": 1}', "[]"):
        (tmp_path / "recording.json").write_text(broken)
        assert "unfinished recording; run the same" in refusal(tmp_path)


# The converted copy --------------------------------------------------------------------------------


def copies(folder: Path) -> list[Path]:
    """Whole copies that are in a cache folder."""
    return sorted(path.parent for path in folder.rglob("description.json") if ".unfinished" not in path.parent.name)


def assert_no_copy(dataset: Path) -> None:
    assert [path.name for path in dataset.glob(".bimact_cache/**/*")] in ([], ["lock"])


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that conversions have written to, in order."""
    written: list[Path] = []
    original = cached_copy._make

    def counted(plan: Any, folder: Any) -> None:
        written.append(folder.path)
        original(plan, folder)

    monkeypatch.setattr(cached_copy, "_make", counted)
    return written


@pytest.mark.parametrize("form", FORMS)
def test_conversion_happens_once(tmp_path: Path, form: str, conversions: list[Path]) -> None:
    folder = write(tmp_path, [4, 3], form)
    first, second = open_dataset(folder), open_dataset(folder)
    assert_same(first, second)
    assert len(conversions) == len(copies(folder)) == (form != "structured")
    if form == "structured":
        assert not (folder / ".bimact_cache").exists()
    else:
        (copy,) = copies(folder)
        assert sorted(path.name for path in copy.iterdir()) == [
            *("action.npy", "camera_0.npy", "camera_1.npy", "description.json", "found.json", "state.npy")
        ]
        assert oct(copy.stat().st_mode & 0o777) == oct(0o777 & ~current_umask())


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_copy_is_renewed_when_the_source_changes(tmp_path: Path, conversions: list[Path]) -> None:
    folder = write(tmp_path, [4, 3], "dictionaries")
    open_dataset(folder)
    changed = make_observations(7)
    changed["state"] += 1
    save_observations(folder, as_dictionaries(changed))  # the same size
    os.utime(folder / "observations.npy", ns=(1, 1))
    np.testing.assert_array_equal(open_dataset(folder).state[:], changed["state"])
    save_observations(folder, as_columns(changed))  # another size
    os.utime(folder / "observations.npy", ns=(1, 1))
    np.testing.assert_array_equal(open_dataset(folder).state[:], changed["state"])
    assert len(conversions) == 3 and len(copies(folder)) == 1


def test_cache_dir(tmp_path: Path, conversions: list[Path]) -> None:
    one, two = write(tmp_path / "one", [4], "columns"), write(tmp_path / "two", [5], "columns")
    for _ in range(2):
        open_dataset(one, cache_dir=tmp_path / "cache")
        open_dataset(two, cache_dir=tmp_path / "cache")
    assert len(conversions) == len(copies(tmp_path / "cache")) == 2
    assert not (one / ".bimact_cache").exists()


@pytest.fixture
def unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that cannot be written, even by root, who runs tests; and another cache folder for the user."""
    folders: list[Path] = []
    original = cache._is_writable
    monkeypatch.setattr(
        cache,
        "_is_writable",
        lambda folder: not any(folder.is_relative_to(other) for other in folders) and original(folder),
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return folders


def test_dataset_that_cannot_be_written(tmp_path: Path, unwritable: list[Path], conversions: list[Path]) -> None:
    folder = write(tmp_path / "d", [4, 3], "dictionaries")
    unwritable.append(folder)
    for _ in range(2):
        open_dataset(folder)
    assert len(conversions) == 1 and not (folder / ".bimact_cache").exists()
    (copy,) = copies(tmp_path / "home")
    assert copy.parent.parent == tmp_path / "home/bimact"


def test_copy_in_a_dataset_that_cannot_be_written_is_used(
    tmp_path: Path, unwritable: list[Path], conversions: list[Path]
) -> None:
    folder = write(tmp_path / "d", [4, 3], "dictionaries")
    open_dataset(folder)
    unwritable.append(folder)
    open_dataset(folder)
    assert len(conversions) == 1 and not list((tmp_path / "home").rglob("*.npy"))


def test_nothing_can_be_written(tmp_path: Path, unwritable: list[Path]) -> None:
    folder = write(tmp_path / "d", [4, 3], "dictionaries")
    unwritable.append(tmp_path)
    assert "cannot be written to" in refusal(folder) and "cache_dir=" in refusal(folder)


def test_folder_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not cache._is_writable(tmp_path / "file")
    assert not cache._is_writable(tmp_path / "file/below")
    assert cache._is_writable(tmp_path / "new/below")


def test_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, [4, 3], "dictionaries")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert re.search(r"needs .* GB and .*\.bimact_cache has 0\.000 GB free: free some space", refusal(folder))
    assert_no_copy(folder)


def test_disk_that_becomes_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, [4, 3], "dictionaries")

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", fail)
    assert "cannot write the converted copy" in refusal(folder) and "No space left" in refusal(folder)
    assert not copies(folder)


def test_source_that_changes_during_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, [4, 3], "dictionaries")
    original = cached_copy._make

    def change(plan: Any, place: Any) -> None:
        os.utime(folder / "observations.npy", ns=(1, 1))
        original(plan, place)

    monkeypatch.setattr(cached_copy, "_make", change)
    assert "was changed while it was read: try again" in refusal(folder)
    assert not copies(folder)


def die_in_conversion(folder: Path, stage: str) -> None:
    def die(*arguments: Any, **named: Any) -> None:
        os._exit(9)

    if stage == "source":
        cached_copy.write_json = die
    else:
        cache.ArrayFolder.finish = die  # type: ignore[method-assign]
    open_dataset(folder)


@pytest.mark.parametrize("stage", ["source", "name"])
def test_process_that_dies_in_mid_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, conversions: list[Path]
) -> None:
    folder = write(tmp_path, [4, 3], "dictionaries")
    process = multiprocessing.get_context("fork").Process(target=die_in_conversion, args=(folder, stage), daemon=True)
    with monkeypatch.context() as patch:
        patch.setitem(multiprocessing.current_process()._config, "daemon", False)  # type: ignore[attr-defined]
        process.start()
    process.join()
    assert process.exitcode == 9
    (left,) = folder.glob(".bimact_cache/*.unfinished")
    assert (left / "state.npy").exists()
    assert_same(open_dataset(folder), open_dataset(write(tmp_path / "plain", [4, 3])))
    assert len(conversions) == 1 and not left.exists() and len(copies(folder)) == 1


def test_copy_without_its_description_is_made_anew(tmp_path: Path, conversions: list[Path]) -> None:
    folder = write(tmp_path, [4, 3], "dictionaries")
    open_dataset(folder)
    (copy,) = copies(folder)
    for content in (None, "{", "{}"):
        (copy / "description.json").unlink()
        if content is not None:
            (copy / "description.json").write_text(content)
        assert open_dataset(folder).num_steps == 7
    assert len(conversions) == 4


def convert_in_process(folder: Path, begin: Any, results: Any) -> None:
    begin.wait()
    results.put(float(open_dataset(folder).state[:].sum()))


@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_convert_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    if not locks:  # as on file systems that have none
        monkeypatch.setattr(cache, "fcntl", None)
    folder = write(tmp_path, [40, 30], "dictionaries")
    context = multiprocessing.get_context("fork")
    begin, results = context.Event(), context.Queue()
    arguments = (folder, begin, results)
    processes = [context.Process(target=convert_in_process, args=arguments, daemon=True) for _ in range(4)]
    with monkeypatch.context() as patch:
        patch.setitem(multiprocessing.current_process()._config, "daemon", False)  # type: ignore[attr-defined]
        for process in processes:
            process.start()
    begin.set()
    sums = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sums == [float(make_observations(70)["state"].sum())] * 4
    assert len(copies(folder)) == 1
    assert not list(folder.glob(".bimact_cache/*.unfinished*"))


def test_second_process_waits_and_uses_the_copy(
    tmp_path: Path, conversions: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, [4, 3], "dictionaries")
    place = folder / ".bimact_cache"
    place.mkdir()
    opened: list[Episodes] = []
    with cache.one_at_a_time(folder / "observations.npy", place) as has_lock:
        assert has_lock
        thread = threading.Thread(target=lambda: opened.append(open_dataset(folder)))
        thread.start()
        time.sleep(0.2)
        assert not opened and not conversions
    thread.join()
    assert opened and len(conversions) == 1
    assert "another process is converting" in capsys.readouterr().out


def test_without_locks_the_work_of_others_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "fcntl", None)
    folder = write(tmp_path, [4, 3], "dictionaries")
    recent, old = (folder / f".bimact_cache/arrays-{name}.unfinished-{name}" for name in "12")
    for path in (recent, old):
        path.mkdir(parents=True)
    os.utime(old, (1, 1))
    open_dataset(folder)
    assert recent.exists() and not old.exists()
