"""robomimic's HDF5 files: all demonstrations are read, and each fault is told in a sentence."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_files import mutated, noise, robomimic_demo, vectors, write_aloha_episode, write_robomimic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import read_as_training_does, skipped

from bimact.data.formats.aloha_hdf5 import is_aloha_hdf5
from bimact.data.formats.robomimic_hdf5 import RobomimicHdf5, is_robomimic_hdf5, open_robomimic_hdf5
from bimact.data.opening import open_source
from bimact.data.selection import Selection
from bimact.data.source import Camera
from bimact.data.workers import run_apart
from bimact.errors import UserError

STATE = tuple(f"robot{arm}_{part}" for arm in (0, 1) for part in ("eef_pos", "eef_quat", "gripper_qpos"))


def opened(path: Path) -> RobomimicHdf5:
    """A source as a child process gets it."""
    source = pickle.loads(pickle.dumps(open_robomimic_hdf5(path, None)))
    assert isinstance(source, RobomimicHdf5)
    return source


def frames(source: RobomimicHdf5, camera: str, episode: int) -> np.ndarray:
    """(T, H, W, 3): all images of a camera in a demonstration."""
    return np.stack(list(source.read_frames(episode, camera, range(source.episodes[episode].length))))


def read_all(source: RobomimicHdf5) -> None:
    for number in range(len(source.episodes)):
        source.read_columns(number, [key for key in source.columns if number not in source.column_forms.get(key, {})])
        for camera in source.cameras:
            if number not in source.camera_forms.get(camera, {}):
                frames(source, camera, number)


def refusal(path: Path) -> str:
    """The sentence about a dataset that has to be recognised and cannot be read."""
    assert is_robomimic_hdf5(path) and not is_aloha_hdf5(path)
    with pytest.raises(UserError) as caught:
        read_as_training_does(opened(path))
    sentence = str(caught.value)
    assert "\n" not in sentence and str(path) in sentence
    return sentence


def test_demonstrations_read_back_as_they_were_written(tmp_path: Path) -> None:
    demos = [robomimic_demo(length, seed=length) for length in (5, 7)]
    source = opened(write_robomimic(tmp_path / "image.hdf5", demos=demos))
    assert source.cameras == {"agentview_image": Camera(16, 24), "robot0_eye_in_hand_image": Camera(12, 12)}
    for number, demo in enumerate(demos):
        read = source.read_columns(number, tuple(source.columns))
        images = {f"obs/{camera}": frames(source, camera, number) for camera in source.cameras}
        for name, values in demo.items():
            if name.startswith("next_obs/"):
                continue
            found = images[name] if name in images else read[name.removeprefix("obs/")]
            np.testing.assert_array_equal(found, values.reshape(found.shape))
            assert found.dtype == values.dtype
        steps = [0, 2, 2, 4]
        some = list(source.read_frames(number, "agentview_image", steps))
        np.testing.assert_array_equal(some, demo["obs/agentview_image"][steps])


def test_what_the_file_says_of_itself_is_kept(tmp_path: Path) -> None:
    source = opened(write_robomimic(tmp_path / "image.hdf5"))
    assert (source.fps, source.color_order, source.files) == (20.0, None, (".",))
    assert (source.state_keys, source.action_keys) == (STATE, ("actions",))
    assert {episode.task for episode in source.episodes} == {"TwoArmTransport"}
    assert source.metadata["env_name"] == "TwoArmTransport"
    assert source.lengths.tolist() == [5, 7, 3]


def test_demonstrations_stand_in_natural_order(tmp_path: Path) -> None:
    source = opened(write_robomimic(tmp_path / "image.hdf5", [2] * 12))
    assert [episode.name for episode in source.episodes] == [f"demo_{number}" for number in range(12)]


def test_images_with_channels_first_are_turned(tmp_path: Path) -> None:
    images = noise(4, (16, 24), 0)
    demo = {"actions": vectors(4, 7, 0), "obs/front": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
    source = opened(write_robomimic(tmp_path / "image.hdf5", demos=[demo]))
    assert source.cameras == {"front": Camera(16, 24)}
    np.testing.assert_array_equal(frames(source, "front", 0), images)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 9), st.integers(4, 30), st.integers(4, 30))
def test_any_sizes_read_back(tmp_path: Path, lengths: list[int], size: int, height: int, width: int) -> None:
    demos = [
        {"actions": vectors(length, size, length), "obs/cam": noise(length, (height, width), length)}
        for length in lengths
    ]
    source = opened(write_robomimic(tmp_path / "image.hdf5", demos=demos))
    assert source.lengths.tolist() == lengths
    for number, demo in enumerate(demos):
        np.testing.assert_array_equal(source.read_columns(number, ["actions"])["actions"], demo["actions"])
        np.testing.assert_array_equal(frames(source, "cam", number), demo["obs/cam"])


# State, task, rate ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observations", "state"),
    [
        (["robot0_eef_pos", "robot0_joint_vel", "object"], ["robot0_eef_pos"]),
        (["robot10_eef_pos", "robot2_gripper_qpos"], ["robot2_gripper_qpos", "robot10_eef_pos"]),
        (["robot0_gripper_qpos", "robot0_eef_quat"], ["robot0_eef_quat", "robot0_gripper_qpos"]),
        (["robot0_right_eef_pos", "robot0_left_eef_pos"], ["robot0_left_eef_pos", "robot0_right_eef_pos"]),
        (["joints", "grippers", "object", "object-state"], ["grippers", "joints"]),
        ([], []),
    ],
)
def test_the_state_is_what_the_robot_feels(tmp_path: Path, observations: list[str], state: list[str]) -> None:
    demo = {"actions": vectors(3, 7, 0), **{f"obs/{name}": vectors(3, 3, 1) for name in observations}}
    assert list(opened(write_robomimic(tmp_path / "low_dim.hdf5", demos=[demo])).state_keys) == state


@pytest.mark.parametrize(
    ("attributes", "task"),
    [
        ({"language_instruction": "hand it over"}, "hand it over"),
        ({"ep_meta": json.dumps({"lang": "open\nthe door"})}, "open the door"),
        ({"ep_meta": "[" * 100_000}, "TwoArmTransport"),
    ],
)
def test_the_task_is_told_by_the_demonstration_or_the_environment(tmp_path: Path, attributes: Any, task: str) -> None:
    assert opened(write_robomimic(tmp_path / "a.hdf5", attributes=attributes)).episodes[1].task == task


@pytest.mark.parametrize(
    "env_args",
    [
        "",
        "no JSON",
        "[" * 50_000,
        "[1, 2]",
        "9" * 10_000,
        {"env_name": 3, "env_kwargs": {"control_freq": "20"}},
        {"env_kwargs": {"control_freq": -1}},
        {"env_kwargs": {"control_freq": True}},
        {"env_kwargs": [20]},
        '{"env_kwargs": {"control_freq": NaN}}',
        '{"env_kwargs": {"control_freq": 1' + "0" * 400 + "}}",
    ],
)
def test_what_cannot_be_in_env_args_does_not_matter(tmp_path: Path, env_args: Any) -> None:
    source = opened(write_robomimic(tmp_path / "a.hdf5", env_args=env_args))
    assert source.fps is None and source.episodes[0].task is None and source.metadata == {}
    read_all(source)


# Filter keys ----------------------------------------------------------------------------------------


def test_a_filter_key_chooses_demonstrations(tmp_path: Path) -> None:
    masks = {"train": ["demo_2", "demo_0"], "valid": ["demo_1"]}
    file = write_robomimic(tmp_path / "image.hdf5", masks=masks)
    source = opened(file)
    assert source.metadata["filter_keys"] == {"train": ["demo_0", "demo_2"], "valid": ["demo_1"]}
    train = source.filtered("train")
    assert [episode.name for episode in train.episodes] == ["demo_0", "demo_2"] and len(source.episodes) == 3
    np.testing.assert_array_equal(
        train.read_columns(1, ["actions"])["actions"], source.read_columns(2, ["actions"])["actions"]
    )
    selected = open_source(file, selection=Selection(filter_key="valid"))
    assert selected.lengths.tolist() == [7]


def test_filter_keys_may_be_texts_of_any_length(tmp_path: Path) -> None:
    file = write_robomimic(tmp_path / "image.hdf5")
    with h5py.File(file, "a") as handle:
        handle.create_dataset("mask/half", data=["demo_1"], dtype=h5py.string_dtype())
        handle["mask/numbers"] = np.arange(3)
    assert opened(file).filter_keys == {"half": ("demo_1",), "numbers": ()}


@pytest.mark.parametrize(
    ("name", "said"), [("test", "it has none, train, wrong"), ("wrong", "demo_9"), ("none", "no demonst")]
)
def test_a_filter_key_that_chooses_nothing_is_refused(tmp_path: Path, name: str, said: str) -> None:
    masks: dict[str, list[str]] = {"train": ["demo_0"], "wrong": ["demo_0", "demo_9"], "none": []}
    source = opened(write_robomimic(tmp_path / "image.hdf5", masks=masks))
    with pytest.raises(UserError, match=f"'{name}'.*{said}"):
        source.filtered(name)


# Folders --------------------------------------------------------------------------------------------


def test_a_folder_with_one_such_file_is_a_dataset(tmp_path: Path) -> None:
    write_robomimic(tmp_path / "image.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["numbers"] = np.zeros(3)
    assert is_robomimic_hdf5(tmp_path) and not is_aloha_hdf5(tmp_path)
    source = open_source(tmp_path)
    assert source.files == ("image.hdf5",) and source.num_steps == 15
    read_all(opened(tmp_path))


def test_a_folder_with_two_such_files_does_not_tell_which(tmp_path: Path) -> None:
    write_robomimic(tmp_path / "a.hdf5")
    write_robomimic(tmp_path / "b.hdf5")
    assert "choose one of them" in refusal(tmp_path)


def test_aloha_episodes_and_other_files_are_not_recognised(tmp_path: Path) -> None:
    write_aloha_episode(tmp_path / "aloha" / "episode_0.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data/numbers"] = np.zeros(3)
    (tmp_path / "text.hdf5").write_text("no HDF5")
    (tmp_path / "dataset.npy").write_bytes(b"\x89HDF\r\n\x1a\n damaged")
    for name in ("aloha", "aloha/episode_0.hdf5", "other.hdf5", "text.hdf5", "dataset.npy"):
        assert not is_robomimic_hdf5(tmp_path / name)


# What differs, is missing or damaged ----------------------------------------------------------------


def _change(name: str, values: Any = None) -> Callable[[h5py.Group], None]:
    def change(demo: h5py.Group) -> None:
        if name in demo:
            del demo[name]
        if values is not None:
            demo[name] = values

    return change


def _samples(demo: h5py.Group) -> None:
    demo.attrs["num_samples"] = 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_change("actions"), ["it has no actions"]),
        (_change("actions", vectors(7, 6, 0)), ["actions is of size 6", "of size 14"]),
        (_change("obs/agentview_image"), ["agentview_image is not there"]),
        (_change("obs/agentview_image", noise(7, (8, 8), 0)), ["8×8", "16×24"]),
        (_change("obs/robot1_eef_pos"), ["robot1_eef_pos is not there"]),
        (_change("obs/robot0_eef_quat", vectors(8, 4, 0)), ["robot0_eef_quat", "has 8 rows", "action 7"]),
        (_change("obs/robot0_eef_pos", np.zeros((7, 3), "S2")), ["instead of numbers"]),
        (_change("obs/robot0_eef_pos", h5py.SoftLink("/nowhere")), ["is a link"]),
        (_change("obs/agentview_image", h5py.ExternalLink("/etc/passwd", "/x")), ["is a link"]),
        (_samples, ["7 rows", "num_samples says 8"]),
    ],
)
def test_a_demonstration_that_differs_is_named_with_what_differs(tmp_path: Path, change: Any, said: list[str]) -> None:
    path = write_robomimic(tmp_path / "image.hdf5")
    with h5py.File(path, "a") as file:
        change(file["data/demo_1"])
    sentence = refusal(path)
    assert "demo_1" in sentence and all(part in sentence for part in said)


def test_a_demonstration_that_is_a_link_is_refused(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "image.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_3"] = h5py.ExternalLink("other.hdf5", "/data/demo_0")
    assert "demo_3" in refusal(path) and "is a link" in refusal(path)


def test_depth_and_what_differs_in_form_are_left_out_with_a_reason(tmp_path: Path) -> None:
    demos = [robomimic_demo(3), robomimic_demo(4)]
    for demo in demos:
        length = len(demo["actions"])
        demo["obs/agentview_depth"] = np.zeros((length, 16, 24, 1), np.float32)
        demo["obs/segmentation"] = np.zeros((length, 16, 24), np.uint8)
    demos[0]["obs/extra"] = vectors(3, 2, 0)
    source = opened(write_robomimic(tmp_path / "image.hdf5", demos=demos))
    assert [(entry.name, entry.kind) for entry in source.left_out] == [
        ("agentview_depth", "depth"),
        ("segmentation", "column"),
    ]
    assert not {"agentview_depth", "segmentation"} & {*source.cameras, *source.columns}
    assert "extra" in source.columns and set(source.column_forms["extra"]) == {1}


def test_a_demonstration_without_steps_is_skipped_and_told(tmp_path: Path) -> None:
    source = opened(write_robomimic(tmp_path / "image.hdf5", [3, 0, 2]))
    assert [episode.name for episode in source.episodes] == ["demo_0", "demo_2"] and skipped(source) == (
        "demo_1: it has no steps",
    )
    assert "no demonstrations with steps" in refusal(write_robomimic(tmp_path / "none.hdf5", [0]))


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "image.hdf5")
    path.write_bytes(path.read_bytes()[:-3000])
    assert "damaged or cut off" in refusal(path)
    assert "damaged or cut off" in refusal(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 2**64 - 16, 2**64 - 1, 10**6])
@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_heap_of_texts_ends_in_a_sentence(tmp_path: Path, size: int, number: int) -> None:
    path = write_robomimic(tmp_path / "image.hdf5", [2])
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL") + 16  # its first object: number, uses, nothing, size
    assert content[at : at + 2] == b"\1\0"
    content[at : at + 2] = number.to_bytes(2, "little")
    content[at + 8 : at + 16] = size.to_bytes(8, "little")
    path.write_bytes(content)
    if (size, number) in ((0, 0), (2**64 - 16, 1)):  # an endless loop in HDF5 2.0 and before
        with pytest.raises(UserError, match="the file: reading takes more than 5 s; the file is damaged"):
            run_apart(refusal, path, what="the file", timeout=5)
    else:
        assert "damaged or cut off" in run_apart(refusal, path, what="the file", timeout=60)


def test_many_long_texts_are_read(tmp_path: Path) -> None:
    texts = [f"{number} " * (50 * number) for number in range(60)]
    path = write_robomimic(tmp_path / "image.hdf5", [2] * 60)
    with h5py.File(path, "a") as file:
        for number, text in enumerate(texts):
            file[f"data/demo_{number}"].attrs["task"] = text
        file.create_dataset("mask/all", data=[f"demo_{number}" for number in range(60)], dtype=h5py.string_dtype())
    source = opened(path)
    found = [episode.task for episode in source.episodes]
    assert found[1:] == [text.strip()[:1000] for text in texts[1:]] and len(source.filtered("all").episodes) == 60


def outcomes(path: Path, seeds: range) -> tuple[int, int]:
    """In a child: how many changed files are read and how many refused."""
    content = path.read_bytes()
    read = 0
    for seed in seeds:
        path.write_bytes(mutated(content, seed))
        try:
            is_robomimic_hdf5(path)
            source = open_robomimic_hdf5(path, None)
            read_all(source)
            if "train" in source.filter_keys:
                source.filtered("train")
            read += 1
        except UserError as error:
            assert "\n" not in str(error)
    return read, len(seeds) - read


@pytest.mark.slow
def test_a_changed_file_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "image.hdf5", [2, 2], masks={"train": ["demo_0"]})
    read, refused = run_apart(outcomes, path, range(120), what="the changed files", timeout=120)
    assert read > 20 and refused > 20
