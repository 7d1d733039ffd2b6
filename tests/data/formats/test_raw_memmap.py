"""Raw memory maps under the names of .npy files: all of them is read, and a sentence is told of each fault."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_files import SIZE, write_raw

from bimact.data.formats.guide_npy import is_guide_npy
from bimact.data.formats.raw_memmap import FORMAT, RawMemmap, is_raw_memmap, open_raw_memmap
from bimact.data.opening import open_source
from bimact.errors import UserError


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_all(open_raw_memmap(folder, None))
    sentence = str(caught.value)
    assert "\n" not in sentence and str(folder) in sentence
    return sentence


def read_all(source: RawMemmap) -> list[np.ndarray]:
    """All that a source holds."""
    found = []
    for number, episode in enumerate(source.episodes):
        found += source.read_columns(number, tuple(source.columns)).values()
        for camera in source.cameras:
            found += source.read_frames(number, camera, range(episode.length))
    return found


# What is read --------------------------------------------------------------------------------------


def test_episodes_cameras_and_columns_are_those_that_were_recorded(tmp_path: Path) -> None:
    images, qpos, qvel, actions = write_raw(tmp_path, [4, 6, 3])
    source = pickle.loads(pickle.dumps(open_raw_memmap(tmp_path, None)))
    assert [(episode.name, episode.length) for episode in source.episodes] == [
        ("episode 0", 4),
        ("episode 1", 6),
        ("episode 2", 3),
    ]
    assert {name: (camera.height, camera.width) for name, camera in source.cameras.items()} == {
        "left": SIZE,
        "right": SIZE,
    }
    assert {key: column.size for key, column in source.columns.items()} == {"qpos": 16, "qvel": 16, "action": 14}
    assert (source.state_keys, source.action_keys, source.fps) == (("qpos",), ("action",), None)
    assert source.metadata == {"max_steps_per_rollout": 600, "skip_frames": 2} and not source.unusable
    columns = source.read_columns(1, ["action", "qvel", "qpos"])
    for key, expected in (("qpos", qpos), ("qvel", qvel), ("action", actions)):
        np.testing.assert_array_equal(columns[key], expected[4:10])
    for number, camera in enumerate(("left", "right")):
        frames = list(source.read_frames(1, camera, [0, 2, 2, 5]))
        expected_colors = np.rint(images[[4, 6, 6, 9], number] * 255).astype(np.uint8)
        np.testing.assert_array_equal(frames, expected_colors)
        assert frames[0].dtype == np.uint8


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    free=st.integers(0, 5),
)
def test_any_sizes_are_read_with_metadata(tmp_path: Path, lengths: list[int], size: tuple[int, int], free: int) -> None:
    images, qpos, _, actions = write_raw(tmp_path, lengths, size=size, space=sum(lengths) + free)
    source = open_raw_memmap(tmp_path, None)
    assert source.lengths.tolist() == lengths
    episodes = range(len(lengths))
    np.testing.assert_array_equal(np.concatenate([source.read_columns(e, ["qpos"])["qpos"] for e in episodes]), qpos)
    np.testing.assert_array_equal(
        np.concatenate([source.read_columns(e, ["action"])["action"] for e in episodes]), actions
    )
    frames = [frame for e in episodes for frame in source.read_frames(e, "right", range(lengths[e]))]
    np.testing.assert_array_equal(frames, np.rint(images[:, 1] * 255))


def test_open_source_takes_raw_memory_maps_for_what_they_are(tmp_path: Path, dataset: Path) -> None:
    write_raw(tmp_path / "raw", [3, 2])
    assert is_raw_memmap(tmp_path / "raw") and FORMAT.recognizes(tmp_path / "raw")
    assert not is_guide_npy(tmp_path / "raw")
    assert isinstance(open_source(tmp_path / "raw"), RawMemmap)
    assert is_guide_npy(dataset) and not is_raw_memmap(dataset)


def test_files_without_a_single_row_written_keep_their_header_and_are_not_taken(tmp_path: Path) -> None:
    write_raw(tmp_path, [], space=4)
    assert not is_raw_memmap(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "camera_height: 12, camera_width: 16",
        '{"camera_height": 12, "camera_width": 16}',
        "Height = 12\nWidth = 16\n",
        "7 600 12 16 0 7 2",
        "images of 12 x 16 pixels",
    ],
)
def test_metadata_in_other_words_are_understood(tmp_path: Path, text: str) -> None:
    images, *_ = write_raw(tmp_path, [4, 3], metadata=text)
    source = open_raw_memmap(tmp_path, None)
    assert (source.cameras["left"].height, source.cameras["left"].width) == (12, 16)
    np.testing.assert_array_equal(next(source.read_frames(1, "left", [0])), np.rint(images[4, 0] * 255))


@pytest.mark.parametrize("size", [(60, 80), (480, 640), (32, 32), (50, 50)])
def test_usual_image_sizes_are_found_without_metadata(tmp_path: Path, size: tuple[int, int]) -> None:
    write_raw(tmp_path, [2, 1], size=size, metadata="")
    source = open_raw_memmap(tmp_path, None)
    assert (source.cameras["right"].height, source.cameras["right"].width) == size
    assert source.lengths.tolist() == [2, 1]


@pytest.mark.parametrize("size", [(12, 16), (90, 160), (120, 120)])
def test_sizes_that_are_unusual_or_ambiguous_have_to_be_told(tmp_path: Path, size: tuple[int, int]) -> None:
    write_raw(tmp_path, [2, 1], size=size, metadata="")  # 90 x 160 pixels are as many as 120 x 120
    assert "write camera_height=... camera_width=... into" in refusal(tmp_path)


def test_a_last_rollout_that_did_not_fit_keeps_what_is_there(tmp_path: Path) -> None:
    write_raw(tmp_path, [4, 6], space=7)
    source = open_raw_memmap(tmp_path, None)
    assert source.lengths.tolist() == [4, 3]
    assert source.notes == ("episode 1 has 6 steps, but only 3 fit into the files: these are used",)
    assert len(read_all(source)) == 2 * 3 + 2 * 7


def test_rollouts_that_the_metadata_do_not_count_were_not_finished(tmp_path: Path) -> None:
    write_raw(tmp_path, [4, 6], metadata="camera_height=12 camera_width=16 rollout_count=1")
    source = open_raw_memmap(tmp_path, None)
    assert source.lengths.tolist() == [4]
    assert [episode.number for episode in source.unusable] == [1] and "not finished" in source.unusable[0].reason


def test_empty_rollouts_are_named_and_left_out(tmp_path: Path) -> None:
    _, qpos, *_ = write_raw(tmp_path, [4, 0, 3])
    source = open_raw_memmap(tmp_path, None)
    assert [episode.name for episode in source.episodes] == ["episode 0", "episode 2"]
    assert [episode.sentence for episode in source.unusable] == ["episode 1: it has no steps in the files"]
    np.testing.assert_array_equal(source.read_columns(1, ["qpos"])["qpos"], qpos[4:])


# Faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, -0.01, 1.01, 1e30])
def test_pixels_that_are_no_colours_are_named_by_episode_and_step(tmp_path: Path, value: float) -> None:
    images, *_ = write_raw(tmp_path, [4, 6])
    row_floats = images[0].size + 32
    mapped = np.memmap(tmp_path / "observations.npy", np.float32, "r+", shape=(10, row_floats))
    mapped[7, images[0, 0].size + 5] = value
    mapped.flush()
    source = open_raw_memmap(tmp_path, None)
    assert len(list(source.read_frames(1, "left", range(6)))) == 6
    with pytest.raises(UserError, match="right image of episode 1, step 3 has values outside of 0 to 1"):
        list(source.read_frames(1, "right", range(6)))


@pytest.mark.parametrize("name", ["observations.npy", "actions.npy"])
def test_files_that_are_cut_off_name_the_first_step_that_is_missing(tmp_path: Path, name: str) -> None:
    write_raw(tmp_path, [4, 6])
    content = (tmp_path / name).read_bytes()
    row = (len(content) - 128) // 10
    (tmp_path / name).write_bytes(content[: 6 * row + 3])
    assert f"{name} is cut off: it ends in episode 1, step 2, and 4 steps are missing" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["observations.npy", "actions.npy", "rollout_length.npy"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    write_raw(tmp_path, [4, 6])
    (tmp_path / name).unlink()
    assert f"has no {name}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("camera_height=12 camera_width=15 total_sample_count=10", "correct its camera_height"),
        ("camera_height=12 camera_width=0", "specifies images of 12 x 0 pixels"),
        ("camera_height=12 camera_width=999999999", "specifies images of 12 x 999999999 pixels"),
        ("camera_height=12 camera_width=160 total_sample_count=10", "is cut off"),
        ("camera_height=12 camera_width=16 total_sample_count=0", "correct its camera_height"),
    ],
)
def test_metadata_that_contradict_the_files_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    write_raw(tmp_path, [4, 6], metadata=text)
    assert sentence in refusal(tmp_path)


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [
        (np.array([4, 900, 2], np.uint16), "adds up to 906 steps, but the files have space for 10"),
        (np.array([[4, 6]], np.uint16), "has to be (episodes,) integers"),
        (np.array([4.0, 6.0]), "has to be (episodes,) integers"),
        (np.array([-4, 14]), "lengths that no dataset has"),
        (np.array([], np.uint16), "lists no episode with a step"),
        (np.array([{"a": 1}]), "holds Python objects instead of numbers"),
    ],
)
def test_lengths_that_cannot_be_are_refused(tmp_path: Path, lengths: np.ndarray, sentence: str) -> None:
    write_raw(tmp_path, [4, 6], metadata="camera_height=12 camera_width=16 total_sample_count=10")
    np.save(tmp_path / "rollout_length.npy", lengths, allow_pickle=True)
    assert sentence in refusal(tmp_path)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    write_raw(tmp_path / "d", [4, 6])
    (tmp_path / "d" / "rollout_length.npy").rename(tmp_path / "elsewhere.npy")
    (tmp_path / "d" / "rollout_length.npy").symlink_to("../elsewhere.npy")
    assert "is a link that leaves the dataset" in refusal(tmp_path / "d")


@pytest.mark.slow
def test_damaged_files_end_in_a_sentence_or_are_read(tmp_path: Path) -> None:
    write_raw(tmp_path, [4, 6], size=(2, 3))
    names = ("observations.npy", "actions.npy", "rollout_length.npy", "metadata.txt")
    whole = {name: (tmp_path / name).read_bytes() for name in names}
    draw = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        name = draw.choice(names)
        content = bytearray(whole[name])
        for _ in range(draw.choice([1, 1, 3])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        if draw.random() < 0.3:
            content = content[: draw.randrange(len(content))]
        (tmp_path / name).write_bytes(content)
        try:
            read_all(open_raw_memmap(tmp_path, None))
            outcomes["read"] += 1
        except UserError:
            outcomes["refused"] += 1
        (tmp_path / name).write_bytes(whole[name])
    assert min(outcomes.values()) > 50, outcomes
