"""`bimact edit`: what remains is what was recorded, to the last bit, and nothing else changes."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
from conversions import COLUMNS, images_of, same_bits, smooth_source
from guide_files import write_dataset
from hdf5_files import write_aloha
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot_files import V2, V2_IMAGES, write_lerobot

from bimact.check.dataset import check_dataset
from bimact.cli import main
from bimact.convert.content import Content
from bimact.convert.edit import Edits, edit
from bimact.convert.video_copy import begins_at_key_frame, copy_frames
from bimact.data.depth import unpack_depth
from bimact.data.formats.guide_npy import observation_dtype
from bimact.data.formats.video_frames import frames_at, video_listing
from bimact.data.opening import open_source
from bimact.data.selection import Selection
from bimact.data.source import Camera, Column, Source
from bimact.errors import UserError
from bimact.files import write_json
from bimact.video import VideoWriter


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["edit", *map(str, arguments)])
    return int(end.value.code or 0)


def digest_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path} {path.stat().st_mtime_ns}".encode() + path.read_bytes())
    return digest.hexdigest()


# What remains ------------------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[list[int]], list[int], dict[int, tuple[int, int]], dict[int, list[int]]]:
    """Lengths of one or two datasets; what is dropped, trimmed and split of the first one."""
    lengths = draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=2))
    first = range(len(lengths[0]))
    dropped = draw(st.lists(st.sampled_from(first), unique=True, max_size=len(first) - 1)) if len(first) > 1 else []
    trim, split = {}, {}
    for episode in set(first) - set(dropped):
        begin, end = 0, lengths[0][episode]
        if draw(st.booleans()):
            begin = draw(st.integers(0, end - 1))
            end = draw(st.integers(begin + 1, end))
            trim[episode] = begin, end
        if end - begin > 1 and draw(st.booleans()):
            split[episode] = draw(st.lists(st.integers(begin + 1, end - 1), unique=True, min_size=1, max_size=3))
    return lengths, dropped, trim, split


@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_episodes_are_the_recorded_steps(plan: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    lengths, dropped, trim, split = plan
    place = tmp_path_factory.mktemp("source")
    sources = [smooth_source(place / str(number), its) for number, its in enumerate(lengths)]
    first = Selection(exclude_episodes=tuple(map(str, dropped)) or None).applied_to(sources[0])
    others = [Selection().applied_to(source) for source in sources[1:]]
    edits = Edits(
        trim={str(episode): span for episode, span in trim.items()},
        split={str(episode): tuple(steps) for episode, steps in split.items()},
        rename={"top": "front", "qvel": "speed"},
        drop_features=("wrist", "tau"),
    )
    edited, _ = edit([first, *others], edits, copies_videos=False)

    expected = []  # dataset, episode, step of each step, by episode
    for number, its in enumerate(lengths):
        for episode, length in enumerate(its):
            if number == 0 and episode in dropped:
                continue
            begin, end = trim.get(episode, (0, length)) if number == 0 else (0, length)
            edges = sorted({begin, end, *(split.get(episode, []) if number == 0 else [])})
            expected += [(number, episode, range(*pair)) for pair in zip(edges, edges[1:])]  # noqa: RUF007
    assert edited.lengths.tolist() == [len(steps) for _, _, steps in expected]
    assert list(edited.cameras) == ["front"] and set(edited.columns) == {"qpos", "speed", "count", "is_held", "action"}
    for place_, (number, episode, steps) in enumerate(expected):
        whole = sources[number].read_columns(episode, ["qvel", "action"])
        part = edited.read_columns(place_, ["action", "speed"])
        assert same_bits(part["speed"], whole["qvel"][steps.start : steps.stop])
        assert same_bits(part["action"], whole["action"][steps.start : steps.stop])
        frames = list(edited.read_frames(place_, "front", range(len(steps))))
        assert np.array_equal(frames, list(sources[number].read_frames(episode, "top", steps)))
        times = sources[number].read_timestamps(episode)
        assert times is not None and np.array_equal(edited.read_timestamps(place_), times[steps.start : steps.stop])


@pytest.mark.slow
@pytest.mark.parametrize("to", ["guide", "aloha_hdf5", "zarr", "lerobot"])
def test_a_dataset_stays_in_its_format_and_unchanged(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dropping an episode and trimming another gives the same steps in each format, and SRC is not touched."""
    guide = write_dataset(tmp_path / "guide", [6, 4, 5])
    source = guide
    if to != "guide":
        with pytest.raises(SystemExit):
            main(["convert", str(guide), str(tmp_path / "source"), "--to", to, "--workers", "1"]
                 + (["--lossless"] if to == "lerobot" else []))  # fmt: skip
        source = tmp_path / "source"
    before = digest_of(source)
    assert run(source, tmp_path / "out", "--drop_episodes", 1, "--trim", "2@1:4", "--workers", 1) == 0
    assert digest_of(source) == before
    told = capsys.readouterr().out
    assert "Note: episodes left out: 1\n" in told and f"{tmp_path / 'out'}, 2 episodes, 9 steps" in told
    whole, part = open_source(guide), open_source(tmp_path / "out")
    assert part.format == open_source(source).format and part.lengths.tolist() == [6, 3]
    assert np.array_equal(images_of(part, "left", 1), images_of(whole, "left", 2)[1:4])
    for number, (episode, steps) in enumerate([(0, slice(0, 6)), (2, slice(1, 4))]):
        for keys, its in ((whole.state_keys, part.state_keys), (whole.action_keys, part.action_keys)):
            expected = whole.read_columns(episode, keys)[keys[0]][steps]
            assert np.array_equal(part.read_columns(number, its)[its[0]], expected)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"guide", "source", "out"}


@pytest.mark.slow
def test_what_cannot_be_read_leaves_nothing_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_lerobot(tmp_path / "source", (5, 5, 5), V2)
    video = folder / "videos" / "chunk-000" / "observation.images.top" / "episode_000001.mp4"
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert run(folder, tmp_path / "out", "--rename", "top=front") == 2
    assert "leave them out by --drop_episodes 1 or --skip_unreadable" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert run(folder, tmp_path / "out", "--rename", "top=front", "--skip_unreadable") == 0
    assert list(open_source(tmp_path / "out").lengths) == [5, 5]


# Datasets together ---------------------------------------------------------------------------------------


def test_datasets_that_do_not_agree_are_refused_with_what_differs(tmp_path: Path) -> None:
    one = smooth_source(tmp_path / "one")
    other = smooth_source(tmp_path / "other", cameras={"high": Camera(64, 96), "wrist": Camera(32, 40)}, fps=25.0)
    parts = [Selection().applied_to(source) for source in (one, other)]
    with pytest.raises(UserError) as error:
        edit(parts, Edits(), copies_videos=False)
    for differs in ("fps: 10 | 25", "camera top: 64x96 | none", "camera wrist: 32x48 | 32x40"):
        assert differs in str(error.value)
    alike = smooth_source(tmp_path / "alike", cameras={"high": Camera(64, 96), "wrist": Camera(32, 48)})
    parts = [Selection().applied_to(source) for source in (one, alike)]
    edited, _ = edit(parts, Edits(rename={"high": "top"}), copies_videos=False)
    assert list(edited.cameras) == ["top", "wrist"] and len(edited.episodes) == 6
    assert np.array_equal(images_of(edited, "top", 4), images_of(alike, "high", 1))


def test_columns_that_only_one_has_are_left_out_and_told(tmp_path: Path) -> None:
    one = smooth_source(tmp_path / "one", columns={**COLUMNS, "force": Column(2)})
    parts = [Selection().applied_to(source) for source in (one, smooth_source(tmp_path / "other"))]
    edited, _ = edit(parts, Edits(), copies_videos=False)
    content = Content.of(Selection().applied_to(edited))
    assert content.odd == ("force",) and "force" not in content.columns
    assert len(content.lengths) == 6


# Videos ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reordered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A video of 30 frames with a key frame every 10 and B-frames, and its frames as they are decoded."""
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    options = {"g": "10", "bf": "2", "sc_threshold": "0", "crf": "20", "x264-params": "open-gop=0:keyint=10"}
    with VideoWriter(path, 30, "libx264", options) as video:
        for step in range(30):
            image = np.full((48, 64, 3), 8 * step, np.uint8)
            image[step : step + 8, step : step + 16] = 255 - image[0, 0]
            video.add(image)
    frames = list(frames_at(path, np.arange(30) / 30, fps=30, describe=str))
    return path, frames


@pytest.mark.parametrize(("first", "end"), [(0, 30), (10, 30), (10, 20), (20, 30), (0, 10)])
def test_frames_from_a_key_frame_on_are_copied(
    first: int, end: int, reordered: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    path, frames = reordered
    assert copy_frames(path, np.arange(first, end) / 30, tmp_path / "copy.mp4", 50.0) is not None
    assert np.allclose(video_listing(tmp_path / "copy.mp4").times, np.arange(end - first) / 50, atol=1e-6)
    copied = list(frames_at(tmp_path / "copy.mp4", np.arange(end - first) / 50, fps=50, describe=str))
    assert np.array_equal(copied, frames[first:end])


@pytest.mark.parametrize("numbers", [range(9, 20), range(11, 20), range(0, 30, 2), [0, 1, 1, 2], range(10, 19)])
def test_what_depends_on_other_frames_is_not_copied(
    numbers: Any, reordered: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    path, frames = reordered
    times = np.array(list(numbers)) / 30
    copy = copy_frames(path, times, tmp_path / "copy.mp4", 30.0)
    if copy is not None:  # the encoder may have used no later frame: then the copy is right
        assert list(numbers) == list(range(10, 19))
        copied = list(frames_at(tmp_path / "copy.mp4", np.arange(9) / 30, fps=30, describe=str))
        assert np.array_equal(copied, frames[10:19])


def test_key_frames_are_where_a_copy_may_begin(reordered: tuple[Path, list[np.ndarray]]) -> None:
    found = np.flatnonzero(begins_at_key_frame(reordered[0], np.arange(30) / 30))
    assert found.tolist() == [0, 10, 20]


def decoded(source: Source, camera: str) -> list[np.ndarray]:
    return [images_of(source, camera, episode) for episode in range(len(source.episodes))]


@pytest.mark.slow
def test_videos_of_a_lerobot_dataset_are_copied_where_cuts_allow_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_lerobot(tmp_path / "source", (20, 12, 9))
    other = write_lerobot(tmp_path / "other", (7,), V2)
    with av.open(str(next((folder / "videos").rglob("*.mp4")))) as container:
        keys = [packet.pts for packet in container.demux(video=0) if packet.dts is not None and packet.is_keyframe]
        unit = float(container.streams.video[0].time_base or 1)
    steps = [round(pts * unit * 10) for pts in keys]
    assert 1 not in steps
    assert run(folder, tmp_path / "out", "--trim", "1@1:", "--drop_episodes", 2, "--merge", other) == 0
    told = capsys.readouterr().out
    assert "Videos copied without encoding: 4 of 6; encoded again, since they begin between key frames: " in told
    whole, added, out = open_source(folder), open_source(other), open_source(tmp_path / "out")
    for camera in whole.cameras:
        expected, found = decoded(whole, camera), decoded(out, camera)
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[2], decoded(added, camera)[0])
        assert found[1].shape == expected[1][1:].shape
        assert np.abs(found[1].astype(int) - expected[1][1:]).mean() < 3
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    assert info["features"]["observation.images.top"]["info"]["video.codec"] == "h264"
    assert {episode.task for episode in out.episodes} == {
        episode.task for episode in (*whole.episodes, *added.episodes)
    }


def test_images_in_tables_stay_images(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "source", (4, 3), V2_IMAGES)
    assert run(folder, tmp_path / "out", "--episodes", "1", "--workers", 1) == 0
    out = open_source(tmp_path / "out")
    assert not (tmp_path / "out" / "videos").exists()
    assert np.array_equal(images_of(out, "top", 0), images_of(open_source(folder), "top", 1))


# What `bimact check` finds -------------------------------------------------------------------------------


def faulty(folder: Path) -> Path:
    """A guide dataset: episode 1 begins with 60 idle steps, episode 3 is a copy of episode 2, in 5 a hand is still."""
    draw = np.random.default_rng(0)
    states, actions, images = [], [], []
    for episode in range(7):
        phase = np.linspace(0, 6 + 0.3 * episode, 100)[:, None] + np.arange(14) + episode
        action = np.sin(phase).astype(np.float32)
        action[:, [6, 13]] = (np.sin(phase[:, [6, 13]] * 2) > 0) * 0.8
        if episode == 5:
            action[:, 6] = 0.4
        state = np.concatenate([action[:1], action[:1], action[:-2]]) + 0.002 * draw.normal(size=action.shape)
        picture = draw.integers(0, 256, (100, 8, 12, 3), dtype=np.uint8)
        if episode == 1:
            idle = 60
            state = np.concatenate([np.repeat(state[:1], idle, 0), state])
            action = np.concatenate([np.repeat(action[:1], idle, 0), action])
            picture = draw.integers(0, 256, (160, 8, 12, 3), dtype=np.uint8)
        if episode == 3:
            state, action, picture = states[2], actions[2], images[2]
        states.append(state.astype(np.float32))
        actions.append(action)
        images.append(picture)
    folder.mkdir()
    rows = np.zeros(sum(map(len, states)), observation_dtype({"top": (8, 12)}, 14))
    rows["state"], rows["image_top"] = np.concatenate(states), np.concatenate(images)
    np.save(folder / "observations.npy", rows)
    np.save(folder / "actions.npy", np.concatenate(actions))
    np.save(folder / "rollout_length.npy", np.array([len(state) for state in states]))
    write_json(folder / "metadata.json", {"fps": 50})
    return folder


def test_what_check_finds_is_repaired_by_the_command_that_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = faulty(tmp_path / "cups")
    with pytest.raises(SystemExit) as end:
        main(["check", str(folder)])
    assert end.value.code == 1
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if line.startswith("To repair: ")]
    assert "(still-gripper: 5; duplicate-episode: 3)" in told and "idle" in told
    command = shlex.split(line.removeprefix("To repair: "))
    assert command == ["bimact", "edit", str(folder), f"{folder}_repaired", "--drop_episodes", "3,5", "--trim_idle"]
    with pytest.raises(SystemExit) as end:
        main(command[1:])
    assert not end.value.code
    repaired = check_dataset(tmp_path / "cups_repaired")
    assert repaired.repair is None
    assert not repaired.errors and not repaired.warnings
    assert repaired.summary is not None and repaired.summary.lengths.tolist() == [100, 109, 100, 100, 100]


# Sentences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "nothing to change"),
        (("--drop_episodes", "9"), "edit: --drop_episodes: "),
        (("--episodes", "9"), "has no episode '9'; it has episodes 0 to 3"),
        (("--drop_episodes", "0:"), "leave no episode"),
        (("--trim", "1:3"), "--trim is '1:3', it has to look like 7@120:400"),
        (("--trim", "1@3:99"), "--trim 1@3:99: "),
        (("--split", "2@0"), "cut within them"),
        (("--split", "x@1"), "--split: "),
        (("--rename", "left"), "--rename is 'left'"),
        (("--rename", "head=front"), "has no camera or column 'head'; it has left, right"),
        (("--rename", "left=right"), "would both be named 'right'"),
        (("--drop_features", "state"), "leaves no state"),
        (("--trim_idle", "--to", "zarr", "--codec", "av1"), "--codec is an option of --to lerobot"),
    ],
)
def test_wrong_edits_are_refused_in_a_sentence(
    options: tuple[str, ...], sentence: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset, tmp_path / "out", *options) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def with_depth(folder: Path, lengths: tuple[int, ...]) -> list[np.ndarray]:
    """ALOHA's files with a depth camera; its distances (T, H, W) uint16 in each episode."""
    write_aloha(folder, lengths)
    depth = [np.random.default_rng(length).integers(0, 1 << 16, (length, 40, 56), np.uint16) for length in lengths]
    for episode, images in enumerate(depth):
        with h5py.File(folder / f"episode_{episode}.hdf5", "a") as file:
            file["observations/images/top_depth"] = images
    return depth


def depth_in(source: Source, episode: int, camera: str) -> np.ndarray:
    frames = source.read_frames(episode, camera, range(source.episodes[episode].length))
    return np.stack([unpack_depth(frame) for frame in frames])


@pytest.mark.parametrize(
    "options", [("--to", "zarr"), ("--to", "lerobot", "--codec", "h264"), (), ("--compress",)], ids=str
)
def test_depth_is_kept(options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "source"
    depth = with_depth(folder, (3, 6))
    edits = ("--trim", "1@1:5", "--rename", "top_depth=head", "--task", "lift")
    assert run(folder, tmp_path / "out", *edits, "--workers", 1, *options) == 0
    assert "Note: depth (head) is written as whole millimetres, 16 bits per pixel" in capsys.readouterr().out
    source = open_source(tmp_path / "out")
    assert source.depth_cameras == {"head": Camera(40, 56, is_depth=True)}
    assert np.array_equal(depth_in(source, 0, "head"), depth[0])
    assert np.array_equal(depth_in(source, 1, "head"), depth[1][1:5])


def test_statistics_of_depth_in_a_lerobot_dataset_are_in_millimetres(tmp_path: Path) -> None:
    depth = np.concatenate(with_depth(tmp_path / "source", (3, 6)))
    assert run(tmp_path / "source", tmp_path / "out", "--drop_features", "qvel", "--to", "lerobot", "--workers", 1) == 0
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    feature = info["features"]["observation.images.top_depth"]
    assert feature["dtype"] == "image" and feature["shape"] == [40, 56, 1]
    assert feature["info"] == {"is_depth_map": True, "depth_unit": "mm"}
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())["observation.images.top_depth"]
    assert stats["count"] == [9]
    expected = {"min": depth.min(), "max": depth.max(), "mean": depth.mean(), "std": depth.std()}
    for name, value in expected.items():
        np.testing.assert_allclose(stats[name], [[[value]]], rtol=1e-12)
    assert abs(stats["q50"][0][0][0] - np.median(depth)) < 1000  # averaged over episodes


def test_the_guides_format_leaves_depth_out_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_depth(tmp_path / "source", (3, 4))
    assert run(tmp_path / "source", tmp_path / "out", "--drop_episodes", 0, "--to", "guide", "--workers", 1) == 0
    assert "Left out: top_depth (depth)" in capsys.readouterr().out
    assert not open_source(tmp_path / "out").depth_cameras
