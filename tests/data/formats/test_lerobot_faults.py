"""LeRobotDatasets that are damaged, contradict themselves or lead elsewhere: each fault has its sentence."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_files import (
    ACTION,
    LEFT,
    LENGTHS,
    STATE,
    TOP,
    V2,
    V2_IMAGES,
    V3,
    V3_IMAGES,
    VARIANTS,
    Variant,
    assert_as_written,
    change_table,
    episode_of,
    picture,
    shows,
    vectors,
    write_lerobot,
    write_video,
)
from refusals import read_as_training_does, skipped

from bimact.data.formats.lerobot import FORMAT, LeRobotSource, open_lerobot
from bimact.data.selection import Selection
from bimact.data.workers import run_apart
from bimact.errors import UserError

DATA_V2, DATA_V3 = "data/chunk-000/episode_000001.parquet", "data/chunk-000/file-000.parquet"
VIDEO_V2 = f"videos/chunk-000/{TOP}/episode_000001.mp4"
VIDEO_V3 = f"videos/{LEFT}/chunk-000/file-000.mp4"


def open_lerobot_with_all(folder: Path) -> LeRobotSource:
    """Open a dataset none of whose episodes may be left out."""
    source = open_lerobot(folder)
    if skipped(source):
        raise UserError("; ".join(skipped(source)))
    return source


def read_all(folder: Path) -> int:
    """Open a dataset and read all of it."""
    source = open_lerobot(folder)
    if not source.state_keys or not source.action_keys:
        return len(source.episodes)
    selected = Selection(skip_unreadable=True).applied_to(source)
    for number, episode in enumerate(selected.episodes):
        selected.read_columns(number, ["state", "action"])
        selected.read_timestamps(number)
        for camera in selected.cameras:
            assert sum(1 for _ in selected.read_frames(number, camera, range(episode.length))) == episode.length
    return len(selected.episodes)


# Episodes that cannot be used ----------------------------------------------------------------------


def _shorten(path: Path) -> None:
    change_table(path, lambda table: table.slice(0, table.num_rows - 1))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("variant", "file", "change", "left", "sentence"),
    [
        (V2, DATA_V2, Path.unlink, [0, 2], f"episode 1: {DATA_V2} is missing"),
        (V2, VIDEO_V2, Path.unlink, [0, 2], f"episode 1: camera top {VIDEO_V2} is missing"),
        (V2, DATA_V2, _shorten, [0, 2], f"episode 1: {DATA_V2} has 3 rows of it, meta lists 4 steps"),
        (V2, DATA_V2, _cut, [0, 2], "cannot be read as Parquet"),
        (V3, DATA_V3, Path.unlink, [2], f"episode 1: {DATA_V3} is missing"),
        (V3, VIDEO_V3, Path.unlink, [2], f"episode 1: camera left_wrist {VIDEO_V3} is missing"),
        (V3, DATA_V3, _shorten, [0, 2], f"episode 1: {DATA_V3} has 3 rows of it, meta lists 4 steps"),
    ],
)
def test_episodes_that_cannot_be_used_are_left_out_with_a_sentence(
    tmp_path: Path, variant: Variant, file: str, change: Callable[[Path], None], left: list[int], sentence: str
) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, variant)
    change(folder / file)
    source = open_lerobot(folder)
    selected = Selection().applied_to(source)
    assert [episode_of(selected, number) for number in range(len(selected.episodes))] == left
    assert len(selected.unusable) == 3 - len(left)
    assert sentence in selected.unusable[-1].sentence
    assert {episode.is_missing for episode in selected.unusable} == {change is Path.unlink}
    if len(source.episodes) == len(left):
        assert_as_written(source)


@pytest.mark.parametrize("variant", [V2, V3])
def test_episodes_that_no_list_names_are_told(tmp_path: Path, variant: Variant) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, variant)
    if variant is V2:
        path = folder / "meta/episodes.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        unused = "no episode that meta lists is in data/chunk-001/episode_000002.parquet: not used"
    else:
        change_table(folder / "meta/episodes/chunk-000/file-000.parquet", lambda table: table.slice(0, 1))
        unused = "rows of episodes 1 are in the data files, and meta lists no such episodes: they are not used"
    notes = open_lerobot(folder).notes
    listed = 2 if variant is V2 else 1
    assert unused in notes
    assert f"meta/info.json counts {len(LENGTHS)} episodes, and {listed} are listed" in notes
    assert any(note.startswith(f"meta/info.json counts {sum(LENGTHS)} steps, and ") for note in notes)


def test_an_episode_whose_rows_are_in_several_places_is_damaged(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V3)
    first, second = LENGTHS[:2]
    order = [0, *range(first, first + second), *range(1, first)]
    change_table(folder / DATA_V3, lambda table: table.take(order))
    (unusable,) = open_lerobot(folder).unusable
    assert unusable.sentence == (
        f"episode 0: {DATA_V3} has its rows in several places: write it again, with the rows of each episode together"
    )
    assert not unusable.is_missing


@pytest.mark.parametrize("variant", [V2, V3])
def test_a_dataset_without_any_episode_that_can_be_read_is_refused(tmp_path: Path, variant: Variant) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, variant)
    shutil.rmtree(folder / "videos")
    with pytest.raises(UserError, match=r"has images, but none that can be used \(top videos.* is missing"):
        Selection().applied_to(open_lerobot(folder)).require_camera()


def test_an_episode_that_is_left_out_does_not_move_the_next_one(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V3)
    change_table(folder / DATA_V3, lambda table: table.drop(["episode_index"]))
    path = folder / "meta/episodes/chunk-000/file-000.parquet"

    def without_a_video(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0][f"videos/{TOP}/file_index"] = None
        return pa.Table.from_pylist(rows)

    change_table(path, without_a_video)
    source = Selection().applied_to(open_lerobot(folder))
    assert [episode.name for episode in source.episodes] == ["episode 1", "episode 2"]
    for number, index in enumerate((1, 2)):
        np.testing.assert_array_equal(
            source.read_columns(number, ["state"])["state"], vectors(index, LENGTHS[index])[STATE]
        )
    change_table(path, lambda table: table.drop(["dataset_from_index"]))
    assert [episode.name for episode in open_lerobot(folder).episodes] == ["episode 2"]


def test_files_whose_columns_differ_are_told(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2_IMAGES)
    change_table(folder / DATA_V2, lambda table: table.drop([ACTION]))
    change_table(folder / "data/chunk-001/episode_000002.parquet", lambda table: table.drop([TOP]))
    selected = Selection().applied_to(open_lerobot(folder))
    assert [episode.sentence for episode in selected.unusable] == ["episode 1: action is not there"]
    assert list(selected.cameras) == ["left_wrist"]  # what the last file lacks is left out
    chosen = Selection(cameras=("top",)).applied_to(open_lerobot(folder))
    assert chosen.unusable[1].sentence.startswith("episode 2: camera top is not in data/chunk-001/")


def test_a_video_that_meta_does_not_place_leaves_its_episode_out(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V3)

    def changed(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[1][f"videos/{TOP}/file_index"] = None
        return pa.Table.from_pylist(rows)

    change_table(folder / "meta/episodes/chunk-000/file-000.parquet", changed)
    selected = Selection().applied_to(open_lerobot(folder))
    (episode,) = selected.unusable
    assert episode.is_missing and f"videos/{TOP}/file_index is None" in episode.reason
    assert len(Selection(cameras=("left_wrist",)).applied_to(open_lerobot(folder)).episodes) == 3


def test_an_episode_counts_once_and_has_steps(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2)
    path = folder / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[2], lines[0], "", lines[0], '{"episode_index": 7, "tasks": [], "length": 0}']))
    source = open_lerobot(folder)
    assert [episode.name for episode in source.episodes] == ["episode 0", "episode 2"]
    assert sorted(episode.sentence for episode in source.unusable) == [
        "episode 0 (the second time): it is listed twice",
        "episode 7: it has no steps",
    ]


def test_a_video_that_ends_early_is_told_by_file_episode_and_step(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2)
    write_video(folder / VIDEO_V2, (picture(0, 1, step) for step in range(2)))
    source = open_lerobot(folder)
    with pytest.raises(UserError, match=r"episode_000001\.mp4 has no frame at 0\.20 s \(episode 1, step 2\)"):
        list(source.read_frames(1, "top", range(4)))


@pytest.mark.parametrize("variant", [V2, V2_IMAGES])
def test_images_of_another_size_are_told(tmp_path: Path, variant: Variant) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, variant)
    other = write_lerobot(tmp_path / "other", LENGTHS, variant, size=(32, 48))
    file = VIDEO_V2 if variant is V2 else DATA_V2
    shutil.copy(other / file, folder / file)
    with pytest.raises(UserError, match=r"episode 1, step 0: the image of camera top has 32×48 pixels, .* 48×64"):
        list(Selection().applied_to(open_lerobot(folder)).read_frames(1, "top", range(4)))


def test_timestamps_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2)
    times = pa.array([0.0, 0.1, float("nan"), 0.3], pa.float32())
    change_table(
        folder / DATA_V2, lambda table: table.set_column(table.schema.names.index("timestamp"), "timestamp", times)
    )
    source = open_lerobot(folder)
    note = source.frames_note(1, "top")
    assert note is not None and "NaN" in note.what
    assert all(shows(image, 0, 1, step) for step, image in enumerate(source.read_frames(1, "top", range(4))))
    write_video(folder / VIDEO_V2, (picture(0, 1, step) for step in range(6)))
    os.utime(folder / VIDEO_V2, (1, 1))
    with pytest.raises(UserError, match=r"6 frames for 4 steps, and episode 1, step 2 has no time"):
        list(open_lerobot(folder).read_frames(1, "top", range(4)))


def test_more_rows_than_a_file_can_hold_are_not_read(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V3_IMAGES, cameras=())
    zeros = pa.array(np.zeros(3_000_000, np.int8))
    pq.write_table(pa.table({"episode_index": zeros}), folder / DATA_V3, compression="zstd")
    with pytest.raises(UserError, match=r"claims 3000000 rows in \d+ bytes"):
        open_lerobot_with_all(folder)


# Faults of meta ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fps": None}, "fps is None, it has to be a number above 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": "30"}, "fps is '30'"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": True}, "fps is True"),
        ({"chunks_size": 0}, "chunks_size is 0"),
        ({"chunks_size": 1e300}, "chunks_size is"),
        ({"features": None}, "features is None"),
        ({"features": {"action": 7}}, "features.action is 7, it has to be an object"),
        ({"features": {"action": {"dtype": ["float32"]}}}, "features.action.dtype is"),
        ({"codebase_version": "v1.6"}, "codebase_version is 'v1.6'; bimact reads"),
        ({"codebase_version": "v4.0"}, "codebase_version is 'v4.0'"),
        ({"codebase_version": 3}, "codebase_version is 3, it has to be text"),
        ({"data_path": ["x"]}, "data_path is"),
        ({"data_path": "../{episode_index}"}, "leaves the dataset"),
        ({"data_path": "/etc/passwd"}, "leaves the dataset"),
        ({"data_path": "{episode_index.__class__}"}, "data_path is .* no path"),
        ({"data_path": "{episode_index:0999999999d}"}, "data_path is .* no path"),
        ({"data_path": "{episode_index!r}"}, "data_path is .* no path"),
        ({"data_path": "{0}"}, "data_path is .* no path"),
        ({"data_path": "{video_key}"}, "data_path has {video_key}"),
        ({"video_path": "{video_key:03d}"}, "video_path has {video_key:03d}"),
        ({"video_path": "../../{video_key}"}, "leaves the dataset"),
        ({"data_path": "x" * 5000}, "cannot read|is missing"),
        ({"data_path": "a\0b"}, "cannot read"),
        ({"robot_type": {}}, "robot_type is {}"),
    ],
)
def test_faults_of_info_are_told_by_key(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2)
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=sentence):
        read_as_training_does(open_lerobot(folder))


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000, '{"fps": 1' + "0" * 5000 + "}", "\udcff"])
@pytest.mark.parametrize("file", ["info.json", "episodes.jsonl", "tasks.jsonl"])
def test_meta_that_is_no_json_is_told_by_its_file(tmp_path: Path, file: str, content: str) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2)
    (folder / "meta" / file).write_bytes(content.encode(errors="surrogateescape"))
    if file == "tasks.jsonl":
        source = open_lerobot(folder)
        assert len(source.episodes) == 3 and ("tasks.jsonl" in " ".join(source.notes)) == (content != "")
        return
    with pytest.raises(UserError, match=file if content else "meta/info.json|has no episode"):
        open_lerobot(folder)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"tasks": [], "length": 4}', "line 1: episode_index is None"),
        ('{"episode_index": -1, "length": 4}', "line 1: episode_index is -1"),
        ('{"episode_index": 0, "length": "4"}', "line 1: length is '4'"),
        ('{"episode_index": 0, "length": 1e999}', "line 1: length is inf"),
        ('{"episode_index": 0, "length": 4, "tasks": [3]}', "line 1: tasks is"),
    ],
)
def test_faults_of_listed_episodes_are_told_by_line_and_key(tmp_path: Path, line: str, sentence: str) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2)
    (folder / "meta/episodes.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=sentence):
        open_lerobot(folder)


def test_missing_meta_is_told(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "v2", LENGTHS, V2)
    (folder / "meta/episodes.jsonl").unlink()
    with pytest.raises(UserError, match=r"meta/episodes\.jsonl is missing"):
        open_lerobot(folder)
    folder = write_lerobot(tmp_path / "v3", LENGTHS, V3)
    shutil.rmtree(folder / "meta/episodes")
    with pytest.raises(UserError, match=r"meta/episodes.* is empty or missing"):
        open_lerobot(folder)
    assert not FORMAT.recognizes(folder / "meta")


# Links ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["meta/info.json", "meta/episodes.jsonl", DATA_V2, VIDEO_V2])
def test_links_out_of_the_dataset_are_refused(tmp_path: Path, file: str) -> None:
    folder = write_lerobot(tmp_path / "set", LENGTHS, V2)
    (folder / file).rename(tmp_path / "outside")
    (folder / file).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leaves the dataset"):
        open_lerobot_with_all(folder)


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--someone--set/snapshots/0123"
    write_lerobot(snapshot, LENGTHS, V2)
    blobs = tmp_path / "datasets--someone--set/blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert_as_written(open_lerobot(snapshot))


# Mutations -----------------------------------------------------------------------------------------


def _mutated(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    place = draw.randrange(len(changed))
    kind = draw.random()
    if kind < 0.2:
        return bytes(changed[:place])
    if kind < 0.3:
        del changed[place : place + draw.randrange(1, 200)]
    elif kind < 0.4:
        changed[place : place + draw.choice([1, 2, 4, 8])] = draw.choice([b"\xff", b"\x7f", b"\x00"]) * 4
    else:
        for _ in range(draw.choice([1, 1, 2, 5, 20])):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def read_mutations(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Read a dataset with one mutated file after the other; how often it was read and refused."""
    draw = random.Random(seed)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "stats" not in path.name]
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        path = draw.choice(files)
        whole = path.read_bytes()
        path.write_bytes(_mutated(whole, draw))
        try:
            read_all(folder)
            outcomes["read"] += 1
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        path.write_bytes(whole)
    return dict(outcomes)


@pytest.mark.parametrize("name", VARIANTS)
def test_mutated_files_are_read_or_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    folder = write_lerobot(tmp_path / "set", (4, 3), VARIANTS[name])
    outcomes = run_apart(read_mutations, folder, 50, 1, what="mutations", timeout=120)
    assert outcomes["read"] and outcomes["refused"]
