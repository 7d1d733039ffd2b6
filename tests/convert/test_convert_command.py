"""`bimact convert` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from guide_files import write_dataset

from bimact.cli import main
from bimact.data.opening import open_source


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["convert", *map(str, arguments)])
    return int(end.value.code or 0)


def test_it_says_what_it_reads_writes_and_leaves_out(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(dataset, "lerobot", "--to", "lerobot", "--lossless", "--workers", 1) == 0
    said = capsys.readouterr().out
    assert f"From:    {dataset}" in said
    assert f"To:      {tmp_path / 'lerobot'} (LeRobotDataset v3.0)" in said
    assert "Content: 4 episodes, 38 steps\nCameras: left 16x24, right 16x24\nColumns: state 14, action 14\n" in said
    assert "State:   state 14\nAction:  action 14\n" in said
    assert " needed, " in said
    assert "Note: 4 episodes have no task description: pass one by --task\n" in said
    assert f"Written: {tmp_path / 'lerobot'}, 4 episodes, 38 steps, " in said
    assert said.endswith("Train on it: bimact train --dataset_dir lerobot\n")


def test_what_is_left_out_is_said_before_and_after(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset, tmp_path / "aloha", "--to", "aloha_hdf5") == 0
    capsys.readouterr()
    assert run(tmp_path / "aloha", tmp_path / "guide", "--to", "guide", "--max_episodes", 1) == 0
    said = capsys.readouterr().out
    assert said.count("eft out: qvel, which the format cannot store") == 2
    assert "Content: 1 episode, 9 steps" in said


def test_the_part_that_is_chosen_is_written(dataset: Path, tmp_path: Path) -> None:
    options = ("--cameras", "right", "--max_episodes", 2, "--action_dims", "7:14", "--fps", 25, "--task", "pour tea")
    assert run(dataset, tmp_path / "out", "--to", "aloha_hdf5", *options) == 0
    source, whole = open_source(tmp_path / "out"), open_source(dataset)
    assert list(source.cameras) == ["right"]
    assert source.lengths.tolist() == [5, 6]
    assert source.fps == 25
    assert source.episodes[0].task == "pour tea"
    expected = whole.read_columns(1, ["action"])["action"][::2, 7:]
    assert np.array_equal(source.read_columns(1, ["action"])["action"], expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--to", "lerobot", "--cameras", "top"), "has no camera 'top'; it has left, right"),
        (("--to", "guide", "--codec", "h264"), "--codec is an option of --to lerobot"),
        (("--to", "zarr", "--max_episodes", "0"), "setting 'max_episodes' is 0"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(
    options: tuple[str, ...], sentence: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset, tmp_path / "out", *options) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lerobot_asks_for_a_rate_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_dataset(tmp_path / "dataset", [3])
    (dataset / "metadata.json").unlink()
    assert run(dataset, tmp_path / "out", "--to", "lerobot") == 2
    assert "pass --fps N" in capsys.readouterr().err
    assert run(dataset, tmp_path / "out", "--to", "lerobot", "--fps", 30) == 0
    assert json.loads((tmp_path / "out" / "meta" / "info.json").read_text())["fps"] == 30


def test_a_folder_that_cannot_be_written_is_told(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run(dataset, tmp_path / "file" / "out", "--to", "guide") == 2
    assert "cannot write" in capsys.readouterr().err
