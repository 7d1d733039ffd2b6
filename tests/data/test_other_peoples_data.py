"""Data as other people have it: nothing of it is dropped, guessed or read otherwise than it says without a word.

Each test is of a kind of fault: in several formats, the right part is read, or one sentence tells what is in the way.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_config
from guide_files import write_dataset
from hdf5_files import jpeg, write_aloha, write_aloha_episode, write_robomimic
from lerobot_files import (
    ACTION,
    STATE,
    TOP,
    V2,
    V2_IMAGES,
    V3,
    V3_IMAGES,
    Variant,
    change_feature,
    change_info,
    change_table,
    write_lerobot,
    write_video,
)
from PIL import Image
from raw_files import write_raw
from zarr_files import replay_arrays, write_replay

from bimact.check.dataset import check_dataset
from bimact.data.depth import unpack_depth
from bimact.data.opening import open_dataset, open_source
from bimact.data.selection import SelectedSource, Selection
from bimact.data.source import Camera, LeftOut
from bimact.data.summary import dataset_lines
from bimact.errors import UserError
from bimact.training.demonstrations import open_demonstrations

LEFT = "observation.images.left_wrist"


def selected(path: Path, **choices: Any) -> SelectedSource:
    return Selection(**choices).applied_to(open_source(path))


def images(source: SelectedSource, camera: str, episode: int = 0) -> np.ndarray:
    return np.stack(list(source.read_frames(episode, camera, range(source.episodes[episode].length))))


def left_out(source: SelectedSource) -> dict[str, LeftOut]:
    return {entry.name: entry for entry in source.left_out}


def moving(steps: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, size)).astype(np.float32).cumsum(axis=0)


def ramp(steps: int, height: int = 32, width: int = 40) -> np.ndarray:
    """(T, H, W, 3) uint8: no two images and no two channels are the same."""
    base = np.arange(height * width * 3).reshape(height, width, 3) % 200
    return np.stack([(base + 5 * step) % 256 for step in range(steps)]).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


# A. Images in all the ways that people store them --------------------------------------------------------------

RGB = ramp(6)
GRAY = np.repeat(RGB[..., :1], 3, axis=3)
FORMS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "channels first": (RGB.transpose(0, 3, 1, 2), RGB),
    "grey with an axis": (RGB[..., :1], GRAY),
    "grey without": (RGB[..., 0], GRAY),
    "transparency": (np.concatenate([RGB, RGB[..., :1]], axis=3), RGB),
    "floats to 1": (RGB.astype(np.float32) / 255, RGB),
    "floats to 255": (RGB.astype(np.float16), RGB),
}


CONVERTED = {
    "grey with an axis": "are grey, so that red, green and blue are the same",
    "grey without": "are grey, so that red, green and blue are the same",
    "transparency": "have a fourth channel, which is dropped",
    "floats to 1": "are floats, taken to be from 0 to 1",
    "floats to 255": "are floats, taken to be from 0 to 255",
}


def with_aloha_camera(folder: Path, values: np.ndarray) -> Path:
    for number in range(2):
        file = write_aloha_episode(folder / f"episode_{number}.hdf5", 6)
        with h5py.File(file, "a") as handle:
            handle["observations/images/odd"] = values
    return folder


def with_robomimic_camera(folder: Path, values: np.ndarray) -> Path:
    file = write_robomimic(folder / "demo.hdf5", (6, 6))
    with h5py.File(file, "a") as handle:
        for number in range(2):
            handle[f"data/demo_{number}/obs/odd"] = values
    return file


def with_zarr_camera(folder: Path, values: np.ndarray) -> Path:
    arrays = {**replay_arrays([6]), "odd": values}
    return write_replay(folder / "x.zarr", [6], arrays)


def with_guide_camera(folder: Path, values: np.ndarray) -> Path:
    write_dataset(folder, [6])
    records = np.load(folder / "observations.npy")
    described = [*records.dtype.descr, ("image_odd", values.dtype, values.shape[1:])]
    more = np.zeros(6, described)
    for name in records.dtype.names:
        more[name] = records[name]
    more["image_odd"] = values
    np.save(folder / "observations.npy", more)
    return folder


def with_pickled_camera(folder: Path, values: np.ndarray) -> Path:
    write_dataset(folder, [6])
    records = np.load(folder / "observations.npy")
    steps = [
        {**{name: record[name] for name in records.dtype.names}, "image_odd": value}
        for record, value in zip(records, values)
    ]
    np.save(folder / "observations.npy", np.array(steps, dtype=object), allow_pickle=True)
    return folder


def with_lerobot_camera(folder: Path, values: np.ndarray) -> Path:
    write_lerobot(folder, (6,), V2)
    kinds = {np.dtype(np.uint8): pa.uint8(), np.dtype(np.float32): pa.float32(), np.dtype(np.float16): pa.float16()}
    kind = kinds[values.dtype]
    for _ in values.shape[1:]:
        kind = pa.list_(kind)
    column = pa.array([value.tolist() for value in values.astype(float if values.dtype.kind == "f" else int)], kind)
    change_table(
        folder / "data/chunk-000/episode_000000.parquet",
        lambda table: table.append_column("observation.images.odd", column),
    )
    shape = list(values.shape[1:])
    change_feature(folder, "observation.images.odd", dtype=str(values.dtype), shape=shape, names=None)
    return folder


WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "aloha": with_aloha_camera,
    "robomimic": with_robomimic_camera,
    "zarr": with_zarr_camera,
    "guide": with_guide_camera,
    "guide pickled": with_pickled_camera,
    "lerobot": with_lerobot_camera,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("writer", WRITERS)
def test_images_are_read_in_each_form_and_format(tmp_path: Path, writer: str, form: str) -> None:
    values, expected = FORMS[form]
    if writer == "lerobot" and values.dtype == np.float16:
        values = values.astype(np.float32)
    source = selected(WRITERS[writer](tmp_path, values))
    assert "odd" in source.cameras
    np.testing.assert_array_equal(images(source, "odd"), expected)
    said = [note.removeprefix("camera odd: its images ") for note in source.notes if "camera odd: " in note]
    assert said == ([CONVERTED[form]] if form in CONVERTED else [])


@pytest.mark.parametrize(("mode", "form"), [("RGBA", "transparency"), ("L", "grey without")])
def test_how_encoded_files_are_converted_is_said(tmp_path: Path, mode: str, form: str) -> None:
    for number in range(2):
        file = write_aloha_episode(tmp_path / f"episode_{number}.hdf5", 6, images={})
        with h5py.File(file, "a") as handle:
            rows = handle.create_dataset("observations/images/top", (6,), h5py.vlen_dtype(np.uint8))
            for step, image in enumerate(RGB):
                stream = io.BytesIO()
                Image.fromarray(image).convert("RGB" if number else mode).save(stream, "PNG")
                rows[step] = np.frombuffer(stream.getvalue(), np.uint8)
    notes = selected(tmp_path, color_order="rgb").notes
    assert f"camera top: its images {CONVERTED[form]} (in 1 of 2 episodes)" in notes


@pytest.mark.parametrize("writer", WRITERS)
def test_depth_is_left_out_unless_it_is_asked_for(tmp_path: Path, writer: str) -> None:
    depth = np.random.default_rng(0).random((6, 32, 40, 1), np.float32)
    source = selected(WRITERS[writer](tmp_path, depth))
    assert "odd" not in source.cameras and source.cameras
    assert left_out(source)["odd"].kind == "depth"
    assert any("odd" in line and "depth" in line for line in dataset_lines(source))
    if writer.startswith("guide"):  # whose depth is not read
        with pytest.raises(UserError, match="'odd' cannot be used: it is depth"):
            selected(source.path, cameras=("odd",))
        return
    asked = selected(source.path, cameras=("odd",))
    assert asked.cameras == {"odd": Camera(32, 40, is_depth=True)} and "odd" not in left_out(asked)
    packed = np.stack(list(asked.read_frames(0, "odd", range(6))))
    assert np.array_equal(unpack_depth(packed), np.rint(1000 * depth[..., 0].astype(float)))


@pytest.mark.parametrize("kind", ["rows of any length", "opaque rows"])
@pytest.mark.parametrize("encode", [jpeg, png])
def test_encoded_files_in_other_ways_of_storing_them(tmp_path: Path, kind: str, encode: Any) -> None:
    files = [encode(image) for image in RGB]
    for number in range(2):
        file = write_aloha_episode(tmp_path / f"episode_{number}.hdf5", 6, images={})
        with h5py.File(file, "a") as handle:
            group = handle.require_group("observations/images")
            if kind == "opaque rows":
                longest = max(map(len, files))
                group["top"] = np.array([file.ljust(longest, b"\0") for file in files], f"V{longest}")
            else:
                rows = group.create_dataset("top", (6,), h5py.vlen_dtype(np.uint8))
                for step, content in enumerate(files):
                    rows[step] = np.frombuffer(content, np.uint8)
    source = selected(tmp_path, color_order="rgb")
    wanted = np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in files])
    np.testing.assert_array_equal(images(source, "top"), wanted)
    np.testing.assert_array_equal(
        open_dataset(tmp_path, selection=Selection(color_order="rgb")).images["top"][:6], wanted
    )


def without_readable_images(folder: Path) -> Path:
    """Its only images are in a form that nothing reads."""
    for number in range(2):
        file = write_aloha_episode(folder / f"episode_{number}.hdf5", 6, images={})
        with h5py.File(file, "a") as handle:
            handle["observations/images/top"] = np.zeros((6, 32, 40, 2), np.int32)
    return folder


def test_training_without_a_camera_has_to_be_asked_for(tmp_path: Path) -> None:
    without_readable_images(tmp_path)
    config = tiny_config(dataset_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"has images, but none that can be used.*top has shape.*--cameras \"\""):
        open_demonstrations(config, tmp_path)
    lines: list[str] = []
    episodes, _ = open_demonstrations(tiny_config(cameras=[]), tmp_path, lines.append)
    assert episodes.cameras == () and any(line.startswith("Left out: image top") for line in lines)


def test_a_block_of_lines_tells_all_that_is_used_and_left_out(tmp_path: Path) -> None:
    write_aloha(tmp_path, (6, 0, 6, 6))
    with h5py.File(tmp_path / "episode_2.hdf5", "a") as file:
        del file["observations/images/left_wrist"]
        file["target_qpos"] = np.zeros((6, 14))
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file["target_qpos"] = np.zeros((6, 14))
    lines = dataset_lines(selected(tmp_path))
    text = "\n".join(lines)
    assert "Episodes: 3 of 4, 18 steps" in text and "Cameras:  top 16x24" in text
    assert "State:    qpos 14" in text and "Action:   action 14" in text and "qvel 14, effort 14" in text
    assert "Left out: image left_wrist: is not there (episode_2.hdf5)" in text
    assert "Skipped:  episode_1.hdf5: it has no steps" in text


# B. The state never contains the answer -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("target", "target_qpos", "joint_targets", "command", "cmd_joint", "commanded_pose", "goal_joint_pos"),
        *("next_qpos", "last_action", "arm_action", "leftActions", "desired_joint", "leader_joints"),
        *("joint_pos_des", "master_eef", "joints_t_plus_1"),
    ],
)
def test_names_of_answers_are_kept_out_of_the_state(tmp_path: Path, name: str) -> None:
    arrays = replay_arrays([6, 6])
    arrays["robot_joints"], arrays[name] = arrays.pop("state"), moving(12, 14)
    source = selected(write_replay(tmp_path / "x.zarr", [6, 6], arrays))
    assert source.state.keys == ("robot_joints",) and name in left_out(source)
    assert selected(source.path, state_keys=(name,)).state.keys == (name,)


@pytest.mark.parametrize("name", ["interaction_force", "traction_joint", "arm_reaction_torque"])
def test_other_words_are_no_answers(tmp_path: Path, name: str) -> None:
    arrays = replay_arrays([6, 6])
    arrays["robot_joints"], arrays[name] = arrays.pop("state"), moving(12, 14)
    assert name in selected(write_replay(tmp_path / "x.zarr", [6, 6], arrays)).state.keys


def test_object_poses_and_the_action_before_are_kept_out_of_robomimics_state(tmp_path: Path) -> None:
    columns = {"joint_pos": 7, "joint_vel": 7, "eef_pos": 3, "object": 10, "cube_positions": 3, "actions": 7}
    demo = {"actions": moving(30, 7, 1), **{f"obs/{key}": moving(30, size, 2) for key, size in columns.items()}}
    source = selected(write_robomimic(tmp_path / "x.hdf5", demos=[demo, demo]))
    assert source.state.keys == ("eef_pos", "joint_pos", "joint_vel")
    assert {"object", "cube_positions", "obs/actions"} <= set(left_out(source))


def test_a_chosen_action_is_not_in_the_state(tmp_path: Path) -> None:
    arrays = replay_arrays([6, 6])
    arrays["robot_joints"], arrays["arm_pos"] = arrays.pop("state"), moving(12, 6)
    path = write_replay(tmp_path / "x.zarr", [6, 6], arrays)
    assert selected(path).state.keys == ("arm_pos", "robot_joints")
    assert selected(path, action_keys=("arm_pos",)).state.keys == ("robot_joints",)


def copied(folder: Path, copy: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A buffer whose state has the joints, and a column that is made of the action."""
    lengths, action = [40, 40], moving(80, 14, 1)
    arrays = {
        "camera_0": np.ones((80, 32, 40, 3), np.uint8),
        "robot_joints": moving(80, 14, 2),
        "arm_ctrl": np.concatenate([copy(action[:40]), copy(action[40:])]),
        "action": action,
    }
    return write_replay(folder / "x.zarr", lengths, arrays)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same step": lambda action: action,
    "a part of it": lambda action: action[:, 3:9],
    "one before": lambda action: np.concatenate([0 * action[:1], action[:-1]]),
    "two later": lambda action: np.concatenate([action[2:], action[-2:]]),
    "beside others": lambda action: np.concatenate([action, moving(40, 3, 5)], axis=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", COPIES)
def test_a_column_that_is_the_action_is_found_by_looking(tmp_path: Path, kind: str) -> None:
    path = copied(tmp_path, COPIES[kind])
    with pytest.raises(UserError, match="column 'arm_ctrl' is the action \\('action'\\)"):
        open_demonstrations(tiny_config(), path)
    lines: list[str] = []
    open_demonstrations(tiny_config(state_keys=["robot_joints", "arm_ctrl"]), path, lines.append)
    assert any("'arm_ctrl' is the action" in line for line in lines)
    open_demonstrations(tiny_config(state_keys=["robot_joints"]), path)


def test_actions_that_are_later_states_are_no_copies(tmp_path: Path) -> None:
    whole = moving(84, 14)
    columns = {"joint_pos": whole[:40], "joint_vel": np.gradient(whole[:40], axis=0)}
    demos = [{"actions": whole[2:42], **{f"obs/{key}": values for key, values in columns.items()}}] * 2
    images = {"obs/cam": np.ones((40, 32, 40, 3), np.uint8)}
    path = write_robomimic(tmp_path / "x.hdf5", demos=[{**demo, **images} for demo in demos])
    _, source = open_demonstrations(tiny_config(), path)
    assert source.state.keys == ("joint_pos", "joint_vel")


def test_the_state_of_a_later_step_can_be_asked_for_as_the_action(tmp_path: Path) -> None:
    for number in range(2):
        file = write_aloha_episode(tmp_path / f"episode_{number}.hdf5", 9)
        with h5py.File(file, "a") as handle:
            del handle["action"]
            qpos = handle["observations/qpos"][()]
    with pytest.raises(UserError, match=r"does not define which.*the action.*--action_keys qpos@\+1"):
        selected(tmp_path)
    source = selected(tmp_path, action_keys=("observations/qpos@+2",))
    read = source.read_columns(1, ["state", "action"])
    np.testing.assert_array_equal(read["state"], qpos)
    np.testing.assert_array_equal(read["action"], qpos[[2, 3, 4, 5, 6, 7, 8, 8, 8]])
    open_demonstrations(tiny_config(action_keys=["qpos@+1"]), tmp_path)
    half = selected(tmp_path, action_keys=("qpos@+1",), fps=25)  # the next step is the next one that is used
    np.testing.assert_array_equal(half.read_columns(1, ["action"])["action"], qpos[[2, 4, 6, 8, 8]])


# C. What is not used cannot stop a training ---------------------------------------------------------------------


def test_a_camera_that_some_episodes_lack(tmp_path: Path) -> None:
    write_aloha(tmp_path, (6, 6, 6))
    with h5py.File(tmp_path / "episode_1.hdf5", "a") as file:
        del file["observations/images/top"]
    assert list(selected(tmp_path).cameras) == ["left_wrist"]
    assert len(selected(tmp_path, cameras=("left_wrist",)).episodes) == 3
    assert list(selected(tmp_path, exclude_episodes=("1",)).cameras) == ["left_wrist", "top"]
    chosen = selected(tmp_path, cameras=("top",))
    with pytest.raises(
        UserError, match=r"1 of 3 episodes.*episode_1.hdf5: camera top is not there.*--exclude_episodes 1"
    ):
        chosen.refuse_damaged()
    assert len(selected(tmp_path, cameras=("top",), skip_unreadable=True).episodes) == 2


def test_what_is_usual_is_usual_among_the_chosen_episodes(tmp_path: Path) -> None:
    for number in range(5):
        size = (32, 48) if number < 2 else (16, 24)
        write_aloha_episode(tmp_path / f"episode_{number}.hdf5", 4, images={"top": ramp(4, *size)})
    assert selected(tmp_path).cameras["top"].height == 16
    source = selected(tmp_path, episodes=("0:2",))
    assert source.cameras["top"].height == 32 and not source.unusable
    assert open_dataset(tmp_path, selection=Selection(episodes=("0:2",))).images["top"].shape == (8, 32, 48, 3)


def test_the_state_of_another_size_in_one_episode(tmp_path: Path) -> None:
    write_aloha(tmp_path, (6, 6, 6))
    with h5py.File(tmp_path / "episode_2.hdf5", "a") as file:
        del file["observations/qvel"], file["observations/qpos"]
        file["observations/qpos"] = np.zeros((6, 7))
    with pytest.raises(UserError, match="episode_2.hdf5: qpos is of size 7, in most episodes of size 14"):
        selected(tmp_path).refuse_damaged()
    selected(tmp_path, exclude_episodes=("2",)).refuse_damaged()


@pytest.mark.parametrize("variant", [V2, V3], ids=["v2", "v3"])
def test_a_lerobot_camera_that_is_not_used_may_be_missing_or_damaged(tmp_path: Path, variant: Variant) -> None:
    write_lerobot(tmp_path, (6, 6, 6), variant)
    for video in tmp_path.rglob(f"*{LEFT}*/**/*.mp4"):
        video.write_bytes(b"nonsense")
    assert len(open_dataset(tmp_path, selection=Selection(cameras=("top",))).lengths) == 3
    assert list(selected(tmp_path).cameras) == ["top"] and left_out(selected(tmp_path))["left_wrist"].kind == "image"
    for video in tmp_path.rglob(f"*{LEFT}*/**/*.mp4"):
        video.unlink()
    assert list(selected(tmp_path).cameras) == ["top"]
    assert len(selected(tmp_path, cameras=("top",)).episodes) == 3


def test_an_array_of_a_buffer_that_is_not_used_may_be_damaged(tmp_path: Path) -> None:
    path = write_replay(tmp_path / "x.zarr", [6, 6])
    (path / "data/camera_1/.zarray").write_text("{")
    source = selected(path)
    assert list(source.cameras) == ["camera_0"] and "no readable JSON" in left_out(source)["camera_1"].reason
    with pytest.raises(UserError, match="'camera_1' cannot be used"):
        selected(path, cameras=("camera_1",))


# D. Depth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [True, 1, 1.0, "true", "True", "yes"])
@pytest.mark.parametrize("place", ["info", "video_info", None])
def test_a_flag_of_depth_counts_however_it_is_written(tmp_path: Path, flag: Any, place: str | None) -> None:
    write_lerobot(tmp_path, (6,), V2)
    key = "video.is_depth_map" if place == "video_info" else "is_depth_map"
    change_feature(tmp_path, LEFT, **{"info": None, **({place: {key: flag}} if place else {key: flag})})
    source = selected(tmp_path)
    assert list(source.cameras) == ["top"] and left_out(source)["left_wrist"].kind == "depth"


@pytest.mark.parametrize("flag", [False, 0, "false", "", None])
def test_a_flag_that_is_not_set_is_none(tmp_path: Path, flag: Any) -> None:
    write_lerobot(tmp_path, (6,), V2)
    change_feature(tmp_path, LEFT, info={"video.is_depth_map": flag})
    assert list(selected(tmp_path).cameras) == ["top", "left_wrist"]


@pytest.mark.parametrize("pixels", ["gray10le", "gray12le", "gray16le", "gray16be"])
def test_a_format_of_pixels_tells_depth(tmp_path: Path, pixels: str) -> None:
    write_lerobot(tmp_path, (6,), V2)
    change_feature(tmp_path, LEFT, info={"video.pix_fmt": pixels})
    assert left_out(selected(tmp_path))["left_wrist"].kind == "depth"


def test_the_video_itself_tells_depth(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (6,), V2)
    (video,) = tmp_path.rglob(f"{LEFT}/*.mp4")
    write_video(video, ramp(6, 48, 64), codec="libx265", pixel_format="gray12le", options={"crf": "0"})
    assert left_out(selected(tmp_path))["left_wrist"].kind == "depth"


# E, F. One bad episode hides no other ----------------------------------------------------------------------------


def damage_aloha(folder: Path) -> Path:
    write_aloha(folder, (6,) * 5)
    for number in (1, 3):
        file = folder / f"episode_{number}.hdf5"
        file.write_bytes(file.read_bytes()[:2000])
    return folder


def damage_aloha_images(folder: Path) -> Path:
    write_aloha(folder, (6,) * 5, jpegs="rows")
    for number in (1, 3):
        with h5py.File(folder / f"episode_{number}.hdf5", "a") as file:
            rows = file["observations/images/top"][()]
            rows[2:, 200:400] = 0
            file["observations/images/top"][...] = rows
            rows = file["observations/images/top"]
            rows[4] = 0
    return folder


def damage_robomimic(folder: Path) -> Path:
    path = write_robomimic(folder / "x.hdf5", (6,) * 5)
    with h5py.File(path, "a") as file:
        del file["data/demo_1/actions"]
        file["data/demo_3"].attrs["num_samples"] = 99
    return path


def damage_zarr(folder: Path) -> Path:
    path = write_replay(folder / "x.zarr", [8] * 5, chunk=8)
    for number in (1, 3):
        (path / f"data/camera_0/{number}.0.0.0").write_bytes(b"nonsense")
    return path


def damage_lerobot(folder: Path) -> Path:
    write_lerobot(folder, (6,) * 5, V2)
    tables, videos = sorted(folder.rglob("*.parquet")), sorted(folder.rglob(f"{TOP}/*.mp4"))
    tables[1].write_bytes(tables[1].read_bytes()[:300])
    content = bytearray(videos[3].read_bytes())
    begin = content.index(b"mdat") + 800  # behind what the encoder says of itself
    content[begin : begin + 400] = bytes(400)
    videos[3].write_bytes(content)
    return folder


def damage_pickled(folder: Path) -> Path:
    write_dataset(folder, [6] * 5)
    records = np.load(folder / "observations.npy")
    steps = [{name: record[name] for name in records.dtype.names} for record in records]
    steps[8]["state"] = np.zeros(3)
    del steps[20]["image_left"]
    np.save(folder / "observations.npy", np.array(steps, dtype=object), allow_pickle=True)
    return folder


def damage_numbers(folder: Path) -> Path:
    write_dataset(folder, [6] * 5)
    actions = np.load(folder / "actions.npy")
    actions[8, 3], actions[20, 0] = np.nan, np.inf
    np.save(folder / "actions.npy", actions)
    return folder


DAMAGES: dict[str, Callable[[Path], Path]] = {
    "aloha": damage_aloha,
    "aloha images": damage_aloha_images,
    "robomimic": damage_robomimic,
    "zarr": damage_zarr,
    "lerobot": damage_lerobot,
    "guide pickled": damage_pickled,
    "NaN": damage_numbers,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGES)
def test_all_damaged_episodes_are_named_and_can_be_left_out(tmp_path: Path, kind: str) -> None:
    path = DAMAGES[kind](tmp_path)
    with pytest.raises(UserError) as caught:
        open_demonstrations(tiny_config(), path)
    sentence = str(caught.value)
    assert "2 of 5 episodes cannot be used" in sentence
    assert "--exclude_episodes 1,3," in sentence and "--skip_unreadable" in sentence
    lines: list[str] = []
    episodes, _ = open_demonstrations(tiny_config(skip_unreadable=True), path, lines.append)
    assert len(episodes.lengths) == 3 and len(episodes.actions) == episodes.num_steps == int(episodes.lengths.sum())
    assert sum(line.startswith("Skipped:") for line in lines) == 2
    left, _ = open_demonstrations(tiny_config(exclude_episodes=["1", "3"]), path, lines.append)
    assert left.lengths.tolist() == episodes.lengths.tolist()
    for name in left.images:
        np.testing.assert_array_equal(left.images[name][np.arange(9)], episodes.images[name][np.arange(9)])
    again, _ = open_demonstrations(tiny_config(skip_unreadable=True), path, lines.append)  # what was made before
    assert sum(line.startswith("Skipped:") for line in lines) == 4 and again.num_steps == episodes.num_steps
    with pytest.raises(UserError, match="2 of 5 episodes"):
        open_demonstrations(tiny_config(), path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "guide pickled"])
def test_what_is_skipped_is_no_error_of_the_check(tmp_path: Path, kind: str) -> None:
    path = DAMAGES[kind](tmp_path)
    assert check_dataset(path).errors
    report = check_dataset(path, selection=Selection(skip_unreadable=True))
    assert report.errors == () and report.exit_status() == 1
    assert len({finding.episode_name for finding in report.warnings if finding.code in ("unreadable", "nan")}) == 2
    config = tiny_config(skip_unreadable=True)
    assert check_dataset(path, config, selection=Selection()).errors == ()


def test_metadata_that_do_not_tell_enough_make_that_episode_missing(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (6,) * 5, V3)

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0]["length"], rows[1]["data/file_index"] = float("nan"), None
        rows[2][f"videos/{TOP}/from_timestamp"], rows[3]["episode_index"] = float("nan"), float("nan")
        for row in rows:
            row["episode_index"] = float(row["episode_index"])
            row["length"] = float(row["length"])
        return pa.Table.from_pylist(rows)

    change_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet", change)
    source = selected(tmp_path)
    assert [episode.name for episode in source.episodes] == ["episode 4"]
    assert [episode.is_missing for episode in source.unusable] == [True] * 4
    assert {episode.name for episode in source.unusable} >= {"episode 0", "episode 1", "episode 2"}
    source.refuse_damaged()


def test_a_line_of_the_list_that_cannot_be_read_is_an_episode_that_is_missing(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (6,) * 3, V2)
    file = tmp_path / "meta/episodes.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:15], lines[2]]))
    source = selected(tmp_path)
    assert [episode.name for episode in source.episodes] == ["episode 0", "episode 2"]
    (missing,) = source.unusable
    assert missing.is_missing and "line 2" in missing.reason


def test_rows_are_found_by_their_episode_where_the_metadata_name_another_file(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (6, 4, 5, 7), V3)
    right = {n: selected(tmp_path).read_columns(n, ["state"])["state"] for n in range(4)}

    def change(table: pa.Table) -> pa.Table:
        files = pa.array(
            [0 if number == 2 else file for number, file in enumerate(table["data/file_index"].to_pylist())]
        )
        return table.set_column(table.schema.get_field_index("data/file_index"), "data/file_index", files)

    change_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet", change)
    source = selected(tmp_path)
    assert len(source.episodes) == 4 and any("episodes 2 are in other files" in note for note in source.notes)
    for number, values in right.items():
        np.testing.assert_array_equal(source.read_columns(number, ["state"])["state"], values)


# G. Numbers of episodes, frames and rows ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choices", "numbers"),
    [
        ({"episodes": ("0:2", "4")}, [0, 1, 4]),
        ({"episodes": ("3:",)}, [3, 4]),
        ({"episodes": (":2",)}, [0, 1]),
        ({"exclude_episodes": ("0", "3:5")}, [1, 2]),
        ({"episodes": ("0:4",), "exclude_episodes": ("1",), "max_episodes": 2}, [0, 2]),
    ],
)
@pytest.mark.parametrize("kind", ["aloha", "guide", "lerobot", "robomimic", "zarr"])
def test_episodes_are_chosen_by_their_numbers(tmp_path: Path, kind: str, choices: Any, numbers: list[int]) -> None:
    lengths = [3, 4, 5, 6, 7]
    write: dict[str, Callable[[], Path]] = {
        "aloha": lambda: write_aloha(tmp_path, lengths),
        "guide": lambda: write_dataset(tmp_path, lengths),
        "lerobot": lambda: write_lerobot(tmp_path, lengths, V3),
        "robomimic": lambda: write_robomimic(tmp_path / "x.hdf5", lengths),
        "zarr": lambda: write_replay(tmp_path / "x.zarr", lengths),
    }
    source = selected(write[kind](), **choices)
    assert source.lengths.tolist() == [lengths[number] for number in numbers]
    whole = open_source(source.path)
    for position, number in enumerate(numbers):
        mine = source.read_columns(position, ["action"])["action"]
        np.testing.assert_array_equal(mine, Selection().applied_to(whole).read_columns(number, ["action"])["action"])
        camera = next(iter(source.cameras))
        theirs = np.stack(list(whole.read_frames(number, camera, range(lengths[number]))))
        np.testing.assert_array_equal(images(source, camera, position), theirs)
    arrays = open_dataset(source.path, selection=Selection(**choices))
    assert arrays.lengths.tolist() == source.lengths.tolist()


def test_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    for number in (3, 7, 12):
        write_aloha_episode(tmp_path / f"episode_{number}.hdf5", number)
    assert selected(tmp_path, episodes=("7",)).lengths.tolist() == [7]
    assert selected(tmp_path, exclude_episodes=("episode_7.hdf5",)).lengths.tolist() == [3, 12]
    with pytest.raises(UserError, match=r"no episode '8'; it has episodes 3, 7, 12"):
        selected(tmp_path, episodes=("8",))
    with pytest.raises(UserError, match="leave no episode: choose others"):
        selected(tmp_path, exclude_episodes=("0:20",))


def numbered(folder: Path, rows: int, frames: int, times: np.ndarray, variant: Variant = V2) -> SelectedSource:
    """An episode whose table has a given number of rows and times, and whose video has a given number of frames."""
    write_lerobot(folder, (rows,), variant, cameras=(TOP,))
    table = next(path for path in folder.rglob("*.parquet") if "data" in path.parts)
    column = pa.array(times.astype(np.float64))
    change_table(table, lambda old: old.set_column(old.schema.get_field_index("timestamp"), "timestamp", column))
    (video,) = folder.rglob("*.mp4")
    write_video(video, (np.full((48, 64, 3), 4 * frame, np.uint8) for frame in range(frames)), options={"crf": "0"})
    return selected(folder)


def shown(source: SelectedSource) -> list[int]:
    return [round(float(image.mean()) / 4) for image in images(source, "top")]


@pytest.mark.parametrize("variant", [V2, V3], ids=["v2", "v3"])
@pytest.mark.parametrize("kind", ["exact", "faster robot", "dropped ticks", "wall clock", "last step late"])
def test_as_many_frames_as_rows_belong_together_in_their_order(tmp_path: Path, kind: str, variant: Variant) -> None:
    steps = np.arange(30)
    times = {
        "exact": steps / 10,
        "faster robot": steps / 14,
        "dropped ticks": (steps + steps // 7) / 10,
        "wall clock": 1.7e9 + steps / 10,
        "last step late": steps / 10 + 0.06 * (steps == 29),
    }[kind]
    source = numbered(tmp_path, 30, 30, times, variant)
    note = source.frames_note(0, "top")
    assert shown(source) == steps.tolist()
    assert (note is not None) == (kind in ("faster robot", "dropped ticks"))
    if note is not None:
        assert note.seconds == pytest.approx(np.abs(times - steps / 10).max(), abs=1e-3)
        assert open_dataset(tmp_path).num_steps == 30


@pytest.mark.parametrize(
    ("rows", "frames", "times", "expected"),
    [
        (20, 40, np.arange(20) / 5, np.arange(0, 40, 2)),
        (20, 25, 0.3 + np.arange(20) / 10, np.arange(3, 23)),
        (20, 25, 1000.3 + np.arange(20) / 10, np.arange(20)),
        (20, 19, np.arange(20) / 10, [*range(19), 18]),
    ],
    ids=["camera faster", "begins later", "wall clock", "one frame short"],
)
def test_else_the_times_tell(tmp_path: Path, rows: int, frames: int, times: np.ndarray, expected: Any) -> None:
    source = numbered(tmp_path, rows, frames, times)
    assert shown(source) == list(expected)
    assert source.frames_note(0, "top") is not None


@pytest.mark.parametrize(
    ("frames", "times", "said"),
    [
        (15, np.arange(20) / 10, r"no frame at 1.50 s \(episode 0, step 15\); it has 15 frames for 20 steps"),
        (25, np.r_[np.arange(10), np.arange(10)] / 10, "go back"),
        (25, np.r_[np.arange(19), np.nan] / 10, "has no time"),
    ],
)
def test_what_belongs_nowhere_is_named(tmp_path: Path, frames: int, times: np.ndarray, said: str) -> None:
    source = numbered(tmp_path, 20, frames, times)
    with pytest.raises(UserError, match=said):
        images(source, "top")
    with pytest.raises(UserError, match="--exclude_episodes 0"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("variant", [V2, V3], ids=["v2", "v3"])
@pytest.mark.parametrize("folders", [("videos", "video"), ("data", "tables"), ("videos", "films/all")])
def test_files_in_other_folders_are_found_and_told(tmp_path: Path, folders: tuple[str, str], variant: Variant) -> None:
    write_lerobot(tmp_path, (6, 5, 4), variant)
    right = images(selected(tmp_path), "top", 2)
    (tmp_path / folders[1]).parent.mkdir(exist_ok=True)
    (tmp_path / folders[0]).rename(tmp_path / folders[1])
    source = selected(tmp_path)
    assert source.lengths.tolist() == [6, 5, 4] and any(folders[1] in note for note in source.notes)
    np.testing.assert_array_equal(images(source, "top", 2), right)


@pytest.mark.parametrize(("ours", "theirs"), [("episode_chunk", "chunk_index"), ("episode_index", "episode")])
def test_templates_with_other_names_for_their_fields(tmp_path: Path, ours: str, theirs: str) -> None:
    write_lerobot(tmp_path, (6, 5, 4), V2)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    paths = {key: info[key].replace("{" + ours, "{" + theirs) for key in ("data_path", "video_path")}
    change_info(tmp_path, **paths)
    source = selected(tmp_path)
    assert source.lengths.tolist() == [6, 5, 4] and any(theirs in note for note in source.notes)


def test_a_file_of_another_chunk_is_not_taken(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (6, 5, 4, 3), V3)
    (file,) = tmp_path.rglob(f"{TOP}/chunk-000/file-001.mp4")
    other = file.parent.parent / "chunk-001" / file.name
    other.parent.mkdir()
    file.rename(other)
    assert [episode.number for episode in selected(tmp_path).unusable] == [2, 3]


def test_check_tells_what_is_left_out_and_read_otherwise(tmp_path: Path) -> None:
    numbered(tmp_path, 30, 30, np.arange(30) / 14)
    write_aloha(tmp_path / "aloha", (6, 0, 6))
    with h5py.File(tmp_path / "aloha/episode_2.hdf5", "a") as file:
        del file["observations/images/top"]
        file["observations/images/far_depth"] = np.zeros((6, 16, 24), np.uint16)
    found = {finding.code: finding.sentence for finding in check_dataset(tmp_path).findings}
    assert "disagree" in found["matched-frames"] and "(up to" in found["matched-frames"]
    found = {finding.code: finding for finding in check_dataset(tmp_path / "aloha").findings}
    assert found["left-out"].sentence == (
        "image 'far_depth': is depth, in millimetres: name it in --cameras, beside the others, to train with it"
    )
    assert found["missing-episode"].sentence == "episode_1.hdf5: it has no steps"
    assert found["unread-image"].sentence == "image 'top': is not there (episode_2.hdf5)"
    assert "50 Hz" in found["read-otherwise"].sentence


# Small ones ----------------------------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"


@pytest.mark.parametrize("kind", ["aloha", "robomimic", "lerobot", "zarr", "guide", "raw"])
def test_pointers_of_git_lfs_are_recognised(tmp_path: Path, kind: str) -> None:
    from raw_files import write_raw

    write: dict[str, Callable[[], object]] = {
        "aloha": lambda: write_aloha(tmp_path, (3, 3)),
        "robomimic": lambda: write_robomimic(tmp_path / "x.hdf5", (3, 3)),
        "lerobot": lambda: write_lerobot(tmp_path, (3, 3), V2),
        "zarr": lambda: write_replay(tmp_path / "x.zarr", [3, 3]),
        "guide": lambda: write_dataset(tmp_path, [3, 3]),
        "raw": lambda: write_raw(tmp_path, [3, 3]),
    }
    write[kind]()
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.suffix not in (".json", ".jsonl", ".txt") and not file.name.startswith(".z"):
            file.write_bytes(POINTER)
    with pytest.raises(UserError, match="git lfs pull"):
        open_dataset(tmp_path)


def test_a_single_pointer_is_one_damaged_episode(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (3, 4, 5), V2)
    next(iter(sorted(tmp_path.rglob(f"{TOP}/*.mp4")))).write_bytes(POINTER)
    with pytest.raises(UserError, match=r"1 of 3 episodes.*episode 0: camera top.*git lfs pull.*--exclude_episodes 0"):
        selected(tmp_path).refuse_damaged()
    assert selected(tmp_path, cameras=("left_wrist",)).lengths.tolist() == [3, 4, 5]


def unknown_hdf5(folder: Path) -> Path:
    for number in range(3):
        with h5py.File(folder / f"run{number}.hdf5", "w") as file:
            for side in ("left", "right"):
                file[f"joint_action/{side}_arm"] = moving(8, 6, number)
                file[f"measured/{side}_arm"] = moving(8, 6, 10 + number)
            file["observation/head/rgb"] = np.array([jpeg(image) for image in ramp(8)], "S4000")
            file["matrices"] = np.zeros((8, 3, 3))
    return folder


def test_unknown_hdf5_files_are_listed_with_what_can_be_chosen(tmp_path: Path) -> None:
    unknown_hdf5(tmp_path)
    with pytest.raises(UserError) as caught:
        selected(tmp_path)
    sentence = str(caught.value)
    for part in ("joint_action/left_arm (6)", "measured/right_arm (6)", "observation.head.rgb (32×40)", "matrices"):
        assert part in sentence
    assert "--state_keys" in sentence and "--action_keys" in sentence
    source = selected(
        tmp_path, state_keys=("measured",), action_keys=("joint_action/left_arm", "joint_action/right_arm")
    )
    assert source.state.keys == ("measured/left_arm", "measured/right_arm")
    read = source.read_columns(1, ["state", "action"])
    np.testing.assert_array_equal(read["state"], np.tile(moving(8, 6, 11), 2))
    np.testing.assert_array_equal(read["action"], np.tile(moving(8, 6, 1), 2))
    assert images(source, "observation.head.rgb").shape == (8, 32, 40, 3)


def test_groups_of_vectors_in_alohas_files(tmp_path: Path) -> None:
    for number in range(2):
        with h5py.File(tmp_path / f"episode_{number}.hdf5", "w") as file:
            for side in ("left_arm", "right_arm"):
                file[f"action/{side}"], file[f"observations/qpos/{side}"] = moving(8, 7, 1), moving(8, 7, 2)
            file["observations/images/top"] = ramp(8)
    with pytest.raises(UserError, match=r"action/left_arm \(7\), action/right_arm \(7\), qpos/left_arm"):
        selected(tmp_path)
    source = selected(tmp_path, action_keys=("action",), state_keys=("observations/qpos",))
    assert (source.columns["state"].size, source.columns["action"].size) == (14, 14)


def test_openpis_columns_are_taken_where_they_are_the_only_choice(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (6, 5), V2)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    info["features"] = {{STATE: "state", ACTION: "actions"}.get(key, key): v for key, v in info["features"].items()}
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    for file in tmp_path.rglob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(
            table.rename_columns([{STATE: "state", ACTION: "actions"}.get(n, n) for n in table.column_names]), file
        )
    source = selected(tmp_path)
    assert source.state.keys == ("state",) and source.action.keys == ("actions",)


# Found by trying further inputs ------------------------------------------------------------------------------------


def test_a_damaged_image_of_a_camera_that_is_not_used_stops_nothing(tmp_path: Path) -> None:
    write_aloha(tmp_path, (6,) * 3, jpegs="rows")
    for number in (1, 2):
        with h5py.File(tmp_path / f"episode_{number}.hdf5", "a") as file:
            rows = file["observations/images/top"]
            rows[5 if number == 1 else 0] = 0
    assert len(open_dataset(tmp_path, selection=Selection(cameras=("left_wrist",))).lengths) == 3
    assert open_dataset(tmp_path, selection=Selection(exclude_episodes=("1", "2"))).lengths.tolist() == [6]
    with pytest.raises(UserError, match=r"2 of 3 episodes.*episode_1.*episode_2.*--exclude_episodes 1,2,"):
        open_dataset(tmp_path)


def test_a_file_of_another_rate_is_one_episode_that_cannot_be_used(tmp_path: Path) -> None:
    write_aloha(tmp_path, (6,) * 3, attributes={"fps": 30})
    with h5py.File(tmp_path / "episode_1.hdf5", "a") as file:
        file.attrs["fps"] = 25
    with h5py.File(tmp_path / "episode_2.hdf5", "a") as file:
        file.attrs["fps"] = "30 Hz"
    (tmp_path / "episode_2.hdf5").rename(tmp_path / "second")
    with pytest.raises(UserError, match="episode_1.hdf5: was recorded at 25.0 Hz, most episodes at 30.0"):
        open_dataset(tmp_path)
    assert selected(tmp_path, exclude_episodes=("1",)).fps == 30
    (tmp_path / "episode_0.hdf5").unlink(), (tmp_path / "episode_1.hdf5").unlink()
    (tmp_path / "second").rename(tmp_path / "episode_2.hdf5")
    notes = selected(tmp_path).notes
    assert any("fps is 30 Hz, which is not a rate" in note for note in notes) and any("50 Hz" in note for note in notes)


def test_copies_beside_the_episodes_are_left_aside(tmp_path: Path) -> None:
    for name in ("episode_0", "episode_1", "episode_2", "episode_0_backup", "demo"):
        write_aloha_episode(tmp_path / f"{name}.hdf5", 5 + int("1" in name) + 2 * int("2" in name))
    source = selected(tmp_path, episodes=("2",))
    assert source.lengths.tolist() == [7] and any("demo.hdf5, episode_0_backup.hdf5" in note for note in source.notes)


def test_numbers_that_occur_twice_are_places_and_it_is_said(tmp_path: Path) -> None:
    for number, name in enumerate(("monday/episode_0", "tuesday/episode_0")):
        write_aloha_episode(tmp_path / f"{name}.hdf5", 5 + number)
    source = selected(tmp_path, episodes=("1",))
    assert source.lengths.tolist() == [6]
    assert any("0 is monday/episode_0.hdf5, 1 is tuesday/episode_0.hdf5" in note for note in source.notes)


def test_episodes_that_claim_the_same_part_of_a_video(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (6, 5, 4), V3)

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        for row in rows:
            row[f"videos/{TOP}/from_timestamp"] = 0.0
        return pa.Table.from_pylist(rows)

    change_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet", change)
    with pytest.raises(
        UserError, match=r"2 of 3 episodes.*episode 0: camera top claims the same part of .* as episode 1"
    ):
        open_dataset(tmp_path)
    assert selected(tmp_path, cameras=("left_wrist",)).lengths.tolist() == [6, 5, 4]


def test_more_frames_than_steps_are_told(tmp_path: Path) -> None:
    note = numbered(tmp_path, 20, 26, np.arange(20) / 10).frames_note(0, "top")
    assert note is not None and "more frames than steps" in note.what


def test_fewer_frames_than_steps_are_told(tmp_path: Path) -> None:
    source = numbered(tmp_path, 20, 10, np.arange(20) / 20)
    assert said(source) == "there are fewer frames than steps: a frame is shown for several steps"
    assert shown(source)[:6] == [0, 0, 1, 1, 2, 2]


def test_as_many_frames_as_rows_whose_times_go_back(tmp_path: Path) -> None:
    times = np.r_[np.arange(10), np.arange(10)] / 10
    ordered = numbered(tmp_path / "ordered", 20, 20, times)  # frame_index tells that the clock was set
    assert shown(ordered) == list(range(20))
    source = numbered(tmp_path / "unknown", 20, 20, times)
    change_table(data_files(tmp_path / "unknown")[0], lambda table: table.drop_columns(["frame_index"]))
    with pytest.raises(UserError, match=r"20 frames for 20 steps, whose timestamps go back \(episode 0, step 10\)"):
        images(source, "top")


# H. What the files hold and nothing declares, and rows, frames and times that may be another's ---------------------


def data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.parquet") if "data" in path.relative_to(folder).parts)


def without_feature(folder: Path, key: str) -> Path:
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    change_info(folder, features={name: feature for name, feature in features.items() if name != key})
    return folder


def said(source: SelectedSource, episode: int = 0) -> str | None:
    """What is to be said of an episode's images."""
    note = source.frames_note(episode, "top")
    return None if note is None else note.what


@pytest.mark.parametrize("variant", [V2, V3, V2_IMAGES], ids=["v2", "v3", "images"])
def test_cameras_that_info_does_not_name_are_left_out(tmp_path: Path, variant: Variant) -> None:
    source = selected(without_feature(write_lerobot(tmp_path / "one", (4, 4), variant), LEFT))
    assert list(source.cameras) == ["top"] and not source.notes
    name = LEFT if variant is V2_IMAGES else "left_wrist"
    assert left_out(source)[name].kind == "image" and "not in meta/info.json" in left_out(source)[name].reason
    without_feature(write_lerobot(tmp_path / "none", (4, 4), variant, cameras=(TOP,)), TOP)
    with pytest.raises(UserError, match="has images, but none that can be used"):
        open_dataset(tmp_path / "none")
    assert not open_dataset(tmp_path / "none", selection=Selection(cameras=())).images


def test_images_of_another_type_are_images(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "bytes", (4,), V2_IMAGES, cameras=(TOP,))
    change_feature(tmp_path / "bytes", TOP, dtype="binary")
    with pytest.raises(UserError, match="has images, but none that can be used"):
        open_dataset(tmp_path / "bytes")
    write_lerobot(tmp_path / "arrays", (4,), V2, cameras=(TOP,))
    rows = pa.array(ramp(4).reshape(4, -1).tolist(), pa.list_(pa.uint8()))
    change_table(data_files(tmp_path / "arrays")[0], lambda table: table.append_column("odd", rows))
    source = selected(tmp_path / "arrays")
    assert left_out(source)["odd"] == LeftOut(
        "image", "odd", "holds 3840 numbers of uint8, and is not in meta/info.json"
    )
    assert "odd" not in source.whole.columns


def test_columns_that_only_some_files_hold(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (4, 4), V2, cameras=(TOP,))
    cells = pa.array(ramp(4).tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    texts = pa.array(["firm"] * 4)
    change_table(data_files(tmp_path)[1], lambda table: table.append_column("grip", texts).append_column("view", cells))
    change_feature(tmp_path, "view", dtype="uint8", shape=[32, 40, 3], names=None)
    reasons = {name: entry.reason for name, entry in left_out(selected(tmp_path)).items()}
    assert reasons["grip"] == "holds string, and is not in meta/info.json"
    assert reasons["view"] == "is not in data/chunk-000/episode_000000.parquet (episode 0)"


def test_videos_of_no_listed_episode_are_told(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (4, 4, 4), V2, cameras=(TOP,))
    path = tmp_path / "meta/episodes.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    notes = selected(tmp_path).notes
    assert any(
        "in the videos videos/chunk-001/observation.images.top/episode_000002.mp4: not" in note for note in notes
    )


@pytest.mark.slow
def test_rows_of_another_episode_are_a_fault(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "swapped", (4, 4, 4), V2, cameras=(TOP,))
    first, second, _ = data_files(tmp_path / "swapped")
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(UserError, match=r"2 of 3 episodes.*episode_index is 1 \(episode 0, step 0\).*_episodes 0,1,"):
        open_dataset(tmp_path / "swapped")
    kept = Selection(skip_unreadable=True)
    assert open_dataset(tmp_path / "swapped", selection=kept).episode_names == ("episode 2",)
    findings = [finding for finding in check_dataset(tmp_path / "swapped").findings if finding.code == "unreadable"]
    assert [finding.episode for finding in findings] == [0, 1]

    write_lerobot(tmp_path / "mixed", (4, 4), V2_IMAGES, cameras=(TOP,))
    first, second = data_files(tmp_path / "mixed")
    halves = pq.read_table(first).slice(0, 2), pq.read_table(second).slice(2)
    pq.write_table(pa.concat_tables(halves), first)
    with pytest.raises(UserError, match=r"episode_index is 1 \(episode 0, step 2\)"):
        open_dataset(tmp_path / "mixed")


@pytest.mark.parametrize("variant", [V2, V2_IMAGES, V3_IMAGES], ids=["v2", "v2 images", "v3 images"])
def test_rows_in_another_order_than_their_numbers_are_a_fault(tmp_path: Path, variant: Variant) -> None:
    write_lerobot(tmp_path, (4, 4), variant, cameras=(TOP,))
    change_table(data_files(tmp_path)[0], lambda table: table.take([0, 2, 1, 3, *range(4, table.num_rows)]))
    with pytest.raises(
        UserError, match=r"1 of 2 episodes.*another order than their frame_index \(episode 0, step 2\): sort them"
    ):
        open_dataset(tmp_path)


def test_rows_without_episode_numbers_are_found_by_their_index_or_refused(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (4, 5), V3, cameras=(TOP,))
    (file,) = data_files(tmp_path)
    right = selected(tmp_path).read_columns(1, ["state"])["state"]
    change_table(file, lambda table: table.drop_columns(["episode_index"]))
    change_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet", lambda table: table.slice(1))
    np.testing.assert_array_equal(selected(tmp_path).read_columns(0, ["state"])["state"], right)
    change_table(file, lambda table: table.drop_columns(["index"]))
    with pytest.raises(UserError, match="has 9 rows, meta lists 5 steps in it, and no episode_index tells whose"):
        selected(tmp_path)


def test_an_episode_in_two_files_is_a_fault(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (4, 4, 4), V3_IMAGES, cameras=(TOP,))
    content = data_files(tmp_path)[1].read_bytes()
    data_files(tmp_path)[1].unlink()
    for name in ("new", "old"):
        (tmp_path / f"data/{name}.parquet").write_bytes(content)
    (fault,) = selected(tmp_path).unusable
    assert not fault.is_missing and fault.number == 2
    assert fault.reason == "its rows are in data/new.parquet and in data/old.parquet: remove all but one of these files"


def test_splits_and_failed_episodes_are_told(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (4, 4, 4), V2, cameras=(TOP,))
    assert not selected(tmp_path).notes
    change_info(tmp_path, splits={"train": "0:2"})
    path = tmp_path / "meta/episodes.jsonl"
    listed = [json.loads(line) | {"success": number != 1} for number, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(episode) + "\n" for episode in listed))
    assert selected(tmp_path).notes == (
        "meta/info.json has one split ('train' '0:2'), and other episodes are listed: they are used too; "
        "--episodes chooses",
        "1 of 3 episodes are marked as failed and are used: --skip_failed true leaves them out",
    )


def test_images_that_become_grey_later_are_told(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (4, 4), V2_IMAGES, cameras=(TOP,))

    def change(table: pa.Table) -> pa.Table:
        cells = table[TOP].to_pylist()
        cells[2]["bytes"] = png(ramp(1)[0, :, :, 0])
        return table.set_column(table.schema.get_field_index(TOP), TOP, pa.array(cells, table.schema.field(TOP).type))

    assert said(selected(tmp_path), 1) is None
    change_table(data_files(tmp_path)[1], change)
    assert said(selected(tmp_path), 1) == "some images are grey, so that red, green and blue are the same"


def test_frames_that_no_episode_claims_are_told(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (4, 4), V3, cameras=(TOP,))
    assert selected(tmp_path).frames_note(1, "top") is None
    (video,) = tmp_path.rglob("*.mp4")
    write_video(video, (np.full((48, 64, 3), 4 * frame, np.uint8) for frame in range(11)))
    source = selected(tmp_path)
    assert source.frames_note(0, "top") is None
    assert said(source, 1) == "frames before or after the episode in its file belong to none and are not used"


def write_streams(path: Path, codec: str, pixel_format: str, count: int) -> None:
    """A video file of four frames with some streams."""
    with av.open(str(path), "w", format="mov") as container:
        streams = [container.add_stream(codec, 10) for _ in range(count)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for number in range(4):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 4), 40 * number, np.uint8), format="rgba")
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())


def test_what_is_dropped_of_a_video_is_told(tmp_path: Path) -> None:
    for name in ("streams", "transparent", "turned"):
        write_lerobot(tmp_path / name, (4,), V2, cameras=(TOP,))
    (video,) = (tmp_path / "streams").rglob("*.mp4")
    write_streams(video, "mpeg4", "yuv420p", 2)
    assert said(selected(tmp_path / "streams")) == "the file holds 2 videos, and the first one is read"
    (video,) = (tmp_path / "transparent").rglob("*.mp4")
    write_streams(video, "png", "rgba", 1)
    notes = selected(tmp_path / "transparent").notes
    assert notes == ("camera top: its images have a fourth channel, which is dropped",)
    (video,) = (tmp_path / "turned").rglob("*.mp4")
    content = bytearray(video.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = np.array([0, 65536, 0, -65536, 0, 0, 64 << 16, 0, 1 << 30], ">i4").tobytes()
    video.write_bytes(content)
    (note,) = selected(tmp_path / "turned").notes
    assert "is to be turned by 270° for display: its images are read as they are stored" in note


@pytest.mark.slow
def test_zarr_arrays_without_their_document_are_left_out(tmp_path: Path) -> None:
    def without(name: str, *keys: str) -> Path:
        arrays = replay_arrays([6, 6]) | {"arm_velocity": moving(12, 7), "top": ramp(12, 16, 24)}
        folder = write_replay(tmp_path / f"{name}.zarr", [6, 6], arrays)
        for key in keys:
            (folder / "data" / key / ".zarray").unlink()
        return folder

    complete = selected(without("complete"))
    assert len(complete.cameras) == 3 and not complete.left_out
    source = selected(without("camera", "camera_1"))
    assert list(source.cameras) == ["camera_0", "top"]
    reason = "has chunks but no .zarray or zarr.json: copy the dataset again"
    assert left_out(source)["camera_1"] == LeftOut("image", "camera_1", reason)
    with pytest.raises(UserError, match=r"has images, but none that can be used .*camera_0 has chunks.*top has chunks"):
        open_dataset(without("cameras", "camera_0", "camera_1", "top"))
    with pytest.raises(UserError, match="does not define which of its columns are the state.*it also holds state"):
        selected(without("state", "state"))


def test_zarr_arrays_that_are_links_are_left_out(tmp_path: Path) -> None:
    folder = write_replay(tmp_path / "x.zarr", [6])
    (folder / "data/camera_1").rename(tmp_path / "elsewhere")
    (folder / "data/camera_1").symlink_to(tmp_path / "elsewhere")
    (folder / "data/gone").symlink_to(tmp_path / "nowhere")
    (folder / "data/preview").mkdir()
    (folder / "data/preview/0.mp4").write_bytes(b"video")
    reason = "is a link to a folder, and links are not followed: copy the folder itself there"
    assert left_out(selected(folder)) == {
        "camera_1": LeftOut("image", "camera_1", reason),
        "gone": LeftOut("column", "gone", reason),
        "preview": LeftOut("image", "preview", "is not a zarr array"),
    }
    assert open_dataset(folder).num_steps == 6


def test_zarr_images_of_an_unknown_kind_are_images(tmp_path: Path) -> None:
    arrays = {key: array for key, array in replay_arrays([6]).items() if not key.startswith("camera")}
    folder = write_replay(tmp_path / "x.zarr", [6], arrays | {"stack": np.ones((6, 32, 40, 6), np.uint8)})
    with pytest.raises(UserError, match="has images, but none that can be used"):
        open_dataset(folder)


def test_a_rate_that_is_guessed_from_times_is_told(tmp_path: Path) -> None:
    arrays = replay_arrays([6])
    source = open_source(write_replay(tmp_path / "s.zarr", [6], arrays))
    assert source.fps == 10
    assert source.notes == (
        "no attribute specifies the control frequency: 10 Hz is taken from data/timestamp, read as seconds",
    )
    arrays["timestamp"] *= 1000
    source = open_source(write_replay(tmp_path / "ms.zarr", [6], arrays))
    assert source.fps is None and "its steps are 100 apart, which cannot be seconds): give --fps" in source.notes[0]
    assert not open_source(write_replay(tmp_path / "told.zarr", [6], attributes={"fps": 10})).notes


def test_actions_of_steps_that_no_episode_has(tmp_path: Path) -> None:
    write_aloha(tmp_path, (6, 9))
    with pytest.raises(UserError, match=r"qpos@\+6, and the shortest episode of .* has 6 steps"):
        selected(tmp_path, action_keys=("qpos@+6",))


def test_a_camera_by_its_name_in_the_files_trains(tmp_path: Path) -> None:
    from bimact.training.demonstrations import fill_from_dataset

    write_lerobot(tmp_path, (6, 5), V2)
    config = tiny_config(cameras=[TOP])
    episodes, _ = open_demonstrations(config, tmp_path, lambda line: None)
    assert fill_from_dataset(config, episodes).cameras == ["top"]


# What readers choose is said ---------------------------------------------------------------------------------------


def notes(path: Path, **choices: Any) -> str:
    return "\n".join(dataset_lines(selected(path, **choices)))


def add(folder: Path, **arrays: Any) -> Path:
    """Write arrays into all files of a folder; "__" in names stands for "/"."""
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path, "a") as file:
            for name, values in arrays.items():
                file[name.replace("__", "/")] = values
    return folder


def test_a_copy_is_of_the_step_that_was_asked_for(tmp_path: Path) -> None:
    write_aloha(tmp_path, (6, 6))
    qpos = open_source(tmp_path).read_columns(0, ["qpos"])["qpos"]
    for shift in (1, 3, 0):
        selection = Selection(action_keys=(f"qpos@+{shift}" if shift else "qpos",), state_keys=("qvel",))
        assert np.array_equal(open_dataset(tmp_path, selection=selection).actions[0:1][0], qpos[shift])


def test_other_lengths_of_pickled_observations_hide_no_fault(tmp_path: Path) -> None:
    write_dataset(tmp_path, [6, 6, 6])
    records = np.load(tmp_path / "observations.npy")
    steps = [{name: record[name] for name in records.dtype.names} for record in records]
    steps[8]["state"] = np.zeros(3)
    np.save(tmp_path / "observations.npy", np.array(steps, dtype=object), allow_pickle=True)
    assert open_dataset(tmp_path, selection=Selection(skip_unreadable=True)).episode_names == ("episode 0", "episode 2")
    np.save(tmp_path / "rollout_length.npy", np.array([9, 9]))
    assert open_dataset(tmp_path, selection=Selection(skip_unreadable=True)).episode_names == ("episode 1",)
    np.save(tmp_path / "rollout_length.npy", np.array([18]))
    with pytest.raises(UserError, match="state is damaged"):
        open_dataset(tmp_path)


def test_of_two_columns_with_the_same_name_each_is_read(tmp_path: Path) -> None:
    other = moving(6, 7, seed=5)
    add(write_aloha(tmp_path, (6, 6)), qpos=other, observations__action=other)
    source = open_source(tmp_path)
    read = source.read_columns(0, ["qpos", "root/qpos", "action", "observations/action"])
    assert np.array_equal(read["root/qpos"], other) and np.array_equal(read["observations/action"], other)
    with h5py.File(tmp_path / "episode_0.hdf5") as file:
        assert np.array_equal(read["qpos"], file["observations/qpos"]) and np.array_equal(
            read["action"], file["action"]
        )
    assert source.state_keys == ("qpos",) and source.action_keys == ("action",)


def test_of_two_cameras_with_the_same_name_each_is_read(tmp_path: Path) -> None:
    add(write_aloha(tmp_path, (6, 6)), observations__top=np.full((6, 16, 24, 3), 200, np.uint8))
    source = selected(tmp_path)
    assert (images(source, "observations.top") == 200).all() and not (images(source, "top") == 200).all()
    assert open_dataset(tmp_path).cameras == ("left_wrist", "top", "observations.top")


def test_a_column_that_is_elsewhere_in_some_files_is_read_and_said(tmp_path: Path) -> None:
    write_aloha(tmp_path, (6, 6))
    with h5py.File(tmp_path / "episode_1.hdf5", "a") as file:
        file.move("observations/qpos", "qpos")
        expected = file["qpos"][()]
    assert np.array_equal(open_source(tmp_path).read_columns(1, ["qpos"])["qpos"], expected)
    assert "qpos is /observations/qpos in some files and /qpos in others: both are treated as one" in notes(tmp_path)


def test_arrays_in_a_demonstration_beside_those_of_its_observations(tmp_path: Path) -> None:
    file = write_robomimic(tmp_path / "demo.hdf5", (6, 6))
    with h5py.File(file, "a") as handle:
        for number in range(2):
            handle[f"data/demo_{number}/agentview_image"] = RGB
            handle[f"data/demo_{number}/obs/cams/top"] = RGB[::-1]
    source = selected(file)
    assert np.array_equal(images(source, "agentview_image"), RGB) and np.array_equal(
        images(source, "cams.top"), RGB[::-1]
    )
    assert images(source, "obs.agentview_image").shape == (6, 16, 24, 3)


def test_a_choice_of_colours_that_changes_nothing_is_said(tmp_path: Path) -> None:
    write_aloha(tmp_path / "a", (6,))
    write_lerobot(tmp_path / "l", (6,), V2)
    for name in ("a", "l"):
        assert "color_order bgr has no effect" in notes(tmp_path / name, color_order="bgr")
    write_aloha(tmp_path / "j", (6,), jpegs="rows")
    assert "has no effect" not in notes(tmp_path / "j", color_order="bgr")


def test_files_that_contradict_each_other_on_colours(tmp_path: Path) -> None:
    for number, order in enumerate(("RGB", "rgb", "bgr", None)):
        attributes = {} if order is None else {"color_order": order}
        write_aloha_episode(tmp_path / f"episode_{number}.hdf5", jpegs="rows", attributes=attributes)
    text = notes(tmp_path)
    assert "Colours:  rgb\n" in text and "Damaged:  episode_2.hdf5: its attribute color_order is bgr, in most " in text
    assert "1 of 3 files do not specify color_order: rgb is assumed, as in the others" in text
    write_aloha(tmp_path / "odd", (6,), jpegs="rows", attributes={"color_order": "yuv"})
    assert "the attribute color_order is yuv, which is neither rgb nor bgr" in notes(tmp_path / "odd")
    write_aloha(tmp_path / "raw", (6,), attributes={"color_order": "bgr"})
    assert "those of camera left_wrist, top are arrays and read as RGB" in notes(tmp_path / "raw")


@pytest.mark.parametrize("kind", ["dataset", "attribute", "array"])
def test_a_rate_in_another_place_is_taken_and_said(tmp_path: Path, kind: str) -> None:
    attributes = {"attribute": {"frequency": 20}, "array": {"fps": np.array([30, 30])}}.get(kind, {})
    write_aloha(tmp_path, (6,), attributes=attributes)
    if kind == "dataset":
        add(tmp_path, fps=20.0)
    text = notes(tmp_path)
    if kind == "array":
        assert (
            "the attribute fps is no single number, which is not a rate" in text
            and "50 Hz is assumed, as for ALOHA" in text
        )
    else:
        assert selected(tmp_path).fps == 20 and "the control frequency, 20 Hz, is taken from the" in text


def test_floats_of_another_range_in_one_episode(tmp_path: Path) -> None:
    for number in range(3):
        frames = RGB.astype(np.float32) / (1 if number == 1 else 255)
        frames[0, 0, 0, 0] = frames.max() if number == 1 else 1.004  # as a filter makes it
        write_aloha_episode(tmp_path / f"episode_{number}.hdf5", images={"top": frames})
    text = notes(tmp_path)
    assert "episode_1.hdf5: camera top holds floats from 0 to 255, in most episodes from 0 to 1" in text
    assert "floats, taken to be from 0 to 1 (in 2 of 3 episodes)" in text
    values = np.concatenate([RGB / 255, RGB.astype(np.float64)]).astype(np.float32)
    folder = tmp_path / "guide"
    write_dataset(folder, [6, 6])
    records = np.load(folder / "observations.npy")
    more = np.zeros(12, [("image_odd", "<f4", RGB.shape[1:]), ("state", "<f8", (14,))])
    more["image_odd"], more["state"] = values, records["state"]
    np.save(folder / "observations.npy", more)
    text = notes(folder)
    assert "camera odd: some of its images seem to be floats from 0 to 1, others to 255" in text
    assert "state 14 (float64, read as float32)" in text and "Action:   action 14\n" in text


def test_images_in_files_that_are_not_read_are_images(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB[0]).save(stream, "BMP")
    files = np.array([stream.getvalue()] * 6, f"V{len(stream.getvalue())}")
    add(write_aloha(tmp_path / "bmp", (6,), images={}), cams__top=files)
    add(write_aloha(tmp_path / "six", (6,), images={}), cams__top=np.ones((6, 32, 40, 6), np.uint8))
    for name, reason in (("bmp", "holds BMP files"), ("six", "images have 1, 3 or 4 channels")):
        with pytest.raises(UserError, match=f"has images, but none that can be used.*{reason}"):
            open_dataset(tmp_path / name)


def test_images_that_ask_to_be_turned_are_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(RGB[0]).save(stream, "JPEG", exif=exif)
    rows = np.array([np.frombuffer(stream.getvalue(), np.uint8)] * 6)
    add(write_aloha(tmp_path, (6,), images={}), observations__images__top=rows)
    assert "EXIF data ask a viewer to turn them" in notes(tmp_path)


def test_episodes_that_failed_are_told(tmp_path: Path) -> None:
    for number in range(3):
        write_aloha_episode(tmp_path / f"episode_{number}.hdf5", attributes={"success": number == 1})
    assert "2 of 3 episodes are marked as failed and are used: --skip_failed true leaves them out" in notes(tmp_path)
    assert notes(tmp_path, skip_failed=True).count("it is marked as failed") == 2


def test_what_a_file_of_demonstrations_holds_besides_them(tmp_path: Path) -> None:
    file = write_robomimic(tmp_path / "demo.hdf5", (6, 6, 6, 6))
    with h5py.File(file, "a") as handle:
        handle.move("data/demo_1", "data/.demo_1")
        handle.move("data/demo_2", "data/extra")
        handle.copy("data/demo_0", "more")
    text = notes(file)
    assert "episodes are numbered by position" in text and "2 is extra" in text
    assert "without a leading dot in their names: data/.demo_1, more" in text
    assert "the attribute total is 24 steps, but the demonstrations have 18" in text


def test_a_damaged_file_beside_demonstrations_is_told(tmp_path: Path) -> None:
    for name in "ab":
        write_robomimic(tmp_path / f"{name}.hdf5", (6,))
    (tmp_path / "b.hdf5").write_bytes((tmp_path / "b.hdf5").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"files that cannot be read \(b.hdf5\): copy these again, or choose the file"):
        open_source(tmp_path)


def test_a_guessed_size_and_missing_rollouts_are_told(tmp_path: Path) -> None:
    write_raw(tmp_path / "guessed", [5], size=(64, 100), metadata="")
    assert "height 80 and width 80 are assumed, since an image has 6400 pixels" in notes(tmp_path / "guessed")
    write_raw(tmp_path / "listed", [5], size=(12, 16), metadata="16 12")
    assert "height 16 and width 12 are assumed, since metadata.txt lists these numbers" in notes(tmp_path / "listed")
    write_raw(tmp_path / "short", [5] * 4)
    np.save(tmp_path / "short" / "rollout_length.npy", np.array([5] * 2, np.uint16))
    text = notes(tmp_path / "short")
    assert (
        "counts 4 rollouts, but rollout_length.npy 2" in text and "counts 20 steps, but rollout_length.npy 10" in text
    )


def test_data_files_that_are_not_read_are_told(tmp_path: Path) -> None:
    write_dataset(tmp_path / "guide", [6])
    write_dataset(tmp_path / "guide" / "part2", [6])
    write_dataset(tmp_path / "guide" / "cache" / "observations-1", [6])
    (tmp_path / "guide/cache/observations-1/description.json").write_text("{}")
    write_aloha(tmp_path / "aloha" / "monday", (6,))
    write_aloha(tmp_path / "aloha" / "tuesday" / "late", (6,))
    (tmp_path / "aloha/monday/episode_1.he5").touch()
    (tmp_path / "aloha/monday/episode_0.mp4").touch()  # made to look at it
    write_replay(tmp_path / "zarr" / "a.zarr", [6])
    write_replay(tmp_path / "zarr" / "more" / "b.zarr", [6])
    expected = {
        "guide": "3 data files are in the folder and not read: part2/actions.npy, part2/observations.npy, part2/",
        "aloha": "2 data files are in the folder and not read: monday/episode_1.he5, tuesday/late/episode_0.hdf5",
        "zarr": "1 data file is in the folder and not read: more/b.zarr",
    }
    for name, sentence in expected.items():
        assert sentence in notes(tmp_path / name)
        found = [finding.sentence for finding in check_dataset(tmp_path / name, images=False).infos]
        assert any(sentence in text for text in found)


@pytest.mark.slow
def test_nothing_is_said_of_files_that_belong_to_a_dataset(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "v2", (6, 6), V2)
    write_lerobot(tmp_path / "v3", (6, 6), V3)
    (tmp_path / "v2/videos/chunk-000/observation.images.top/episode_000007.mp4").touch()
    write_aloha(tmp_path / "aloha", (6, 6))
    (tmp_path / "aloha" / "episode_1.hdf5").write_bytes(b"")  # told as damaged
    write_aloha_episode(tmp_path / "aloha" / "copy.hdf5")  # told as left aside
    write_replay(tmp_path / "x.zarr", [6])
    for name in ("v2", "v3", "aloha", "x.zarr"):
        open_dataset(tmp_path / name, selection=Selection(skip_unreadable=True))  # makes a copy beside it
        assert "in the folder and not read" not in notes(tmp_path / name)


def test_videos_beside_data_without_a_camera_are_images(tmp_path: Path) -> None:
    write_aloha(tmp_path, (6,), images={})
    (tmp_path / "episode_0.mp4").touch()
    with pytest.raises(UserError, match=r"none that can be used \(episode_0.mp4 is next to the data"):
        open_dataset(tmp_path)


def test_resized_images_and_converted_numbers_are_told_each_time(tmp_path: Path) -> None:
    write_aloha(tmp_path, (6, 6), images={"top": RGB[:, :, :32]})
    add(tmp_path, ticks=np.arange(6 * 7).reshape(6, 7) + 2**30)
    config = tiny_config(encoder={"image_size": [16, 16]}, state_keys=["qpos", "ticks"])
    for _ in range(2):
        lines: list[str] = []
        open_demonstrations(config, tmp_path, lines.append)
        assert any("camera top: its images of 32x32 are resized to" in line for line in lines)
        assert any("qpos 14, ticks 7 (float64, read as float32)" in line for line in lines)


def test_several_tasks_are_told(tmp_path: Path) -> None:
    write_lerobot(tmp_path, (6, 6), V2)
    assert "Tasks:    2: without task_conditioning only images tell them apart" in notes(tmp_path)


def test_the_python_interface_tells_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_aloha(tmp_path / "a", (6, 6), images={"top": RGB.astype(np.float32) / 255})
    open_dataset(tmp_path / "a")
    assert "Note:     camera top: its images are floats, taken to be from 0 to 1" in capsys.readouterr().out
    write_dataset(tmp_path / "g", [6])
    open_dataset(tmp_path / "g")
    assert capsys.readouterr().out == ""
