"""What is written appears whole or not at all; what cannot be written is refused before."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from conversions import COLUMNS, SmoothSource, converted, same_bits, smooth_source

from bimact.convert import writer
from bimact.convert.content import Content, short_names
from bimact.convert.dataset import FORMATS, prepare_conversion
from bimact.convert.guide_npy import GuideWriter
from bimact.convert.writer import Options
from bimact.data.selection import Selection
from bimact.data.source import Unusable
from bimact.errors import UserError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Names -------------------------------------------------------------------------------------------------


def test_names_lose_what_formats_put_before_them() -> None:
    keys = ("observation.qvel", "observations/effort", "obs/object", "observation.images.top", "next.reward")
    assert list(short_names(keys).values()) == ["qvel", "effort", "object", "top", "next.reward"]


def test_names_that_would_be_the_same_stay_whole() -> None:
    assert short_names(("obs/a", "observation.a"), taken=["b"]) == {"obs/a": "a", "observation.a": "observation.a"}
    with pytest.raises(UserError, match="would both be named 'a'"):
        short_names(("a",), taken=["a"])


# The part that is written --------------------------------------------------------------------------------


def test_other_columns_go_with_the_chosen_episodes_and_rate(tmp_path: Path) -> None:
    source = smooth_source(tmp_path, (6, 8, 3))
    selection = Selection(fps=5.0, max_episodes=2, state_dims="1:3", action_keys=("action", "qvel"))
    content = Content.of(selection.applied_to(source))
    assert content.lengths == [3, 4]
    assert list(content.columns) == ["state", "action", "tau", "count", "is_held"]
    whole = source.read_columns(1, list(COLUMNS))
    vectors = content.vectors(1)
    assert same_bits(vectors["tau"], whole["tau"][::2])
    assert same_bits(vectors["state"], np.ascontiguousarray(whole["qpos"][::2, 1:3]))
    assert same_bits(vectors["action"], np.concatenate([whole["action"], whole["qvel"]], axis=1)[::2])


def test_a_source_without_episodes_is_refused(tmp_path: Path) -> None:
    source = smooth_source(tmp_path, [], unusable=(Unusable(0, "episode_0.hdf5", "it has no steps", is_missing=True),))
    with pytest.raises(UserError, match=r"no episode that can be used: episode_0.hdf5: it has no steps"):
        Content.of(Selection().applied_to(source))


def test_an_image_that_is_missing_is_told(tmp_path: Path) -> None:
    source = ShortSource(**vars(smooth_source(tmp_path / "source", [4])))
    with pytest.raises(UserError, match=r"episode 0: camera 'top' ends at step 3"):
        converted(source, tmp_path / "out", "guide")


class ShortSource(SmoothSource):
    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        return super().read_frames(episode, camera, [step for step in steps if step < 3])


# The target ----------------------------------------------------------------------------------------------


def test_an_empty_folder_is_a_target(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert (converted(smooth_source(tmp_path / "source", [2]), tmp_path / "out", "guide") / "actions.npy").exists()


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    converted(smooth_source(tmp_path / "source", [2]), tmp_path / "a" / "b", "guide")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source", [2])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError, match="exists and is not empty: choose another folder"):
        converted(source, tmp_path / "out", "guide")
    with pytest.raises(UserError, match="exists and is not empty: choose another folder"):
        converted(source, tmp_path / "out" / "mine.txt", "guide")


@pytest.mark.parametrize("name", ["source", "source/out"])
def test_the_dataset_itself_is_no_target(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is inside the dataset"):
        converted(smooth_source(tmp_path / "source", [2]), tmp_path / name, "guide")


class Disk(NamedTuple):
    free: int


def test_a_disk_that_is_too_small_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = smooth_source(tmp_path / "source")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(1000))
    for to in FORMATS:
        with pytest.raises(UserError, match=r"needs about .* has 1.0 kB free"):
            converted(source, tmp_path / "out", to)
    assert names_in(tmp_path) == ["source"]


@pytest.mark.parametrize("to", FORMATS)
def test_the_size_is_foreseen(to: str, tmp_path: Path) -> None:
    content = Content.of(Selection().applied_to(smooth_source(tmp_path / "source", [60])))
    conversion = prepare_conversion(content, tmp_path / "out", to, Options())
    assert conversion.run() == pytest.approx(conversion.needed, rel=0.4)


@pytest.mark.parametrize(
    ("to", "options", "sentence"),
    [
        ("zarr", {"codec": "h264"}, "--codec is an option of --to lerobot"),
        ("guide", {"lossless": True}, "--lossless is an option of --to lerobot"),
        ("lerobot", {"compress": True}, "--compress is an option of --to aloha_hdf5"),
        ("lerobot", {"lossless": True, "codec": "av1"}, "--codec has no effect"),
        ("lerobot", {"codec": "mpeg2"}, "has to be av1, h264 or hevc"),
        ("guide", {"workers": 0}, "at least 1"),
    ],
)
def test_options_without_a_meaning_are_refused(to: str, options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        converted(smooth_source(tmp_path / "source", [2]), tmp_path / "out", to, **options)


# Faults and interruptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    ("fault", "sentence"), [("error", "episode 1, step 7 is damaged"), ("crash", "episode 1: .*crash")]
)
def test_a_damaged_episode_ends_it_and_leaves_nothing(fault: str, sentence: str, to: str, tmp_path: Path) -> None:
    source = smooth_source(tmp_path / "source", faults={(1, "top"): fault})
    with pytest.raises(UserError, match=sentence):
        converted(source, tmp_path / "out", to)
    assert names_in(tmp_path) == ["source"]


@pytest.fixture
def interrupted(tmp_path: Path) -> Callable[[int], subprocess.Popen[str]]:
    """Starts a conversion and sends a signal to it when it has begun to write."""

    def start(number: int) -> subprocess.Popen[str]:
        here = Path(__file__).parent
        process = subprocess.Popen(
            [sys.executable, str(here / "interrupted_conversion.py"), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.converting/*/episode_0.hdf5")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, number)
        return process

    return start


def test_ctrl_c_leaves_nothing(interrupted: Callable[[int], subprocess.Popen[str]], tmp_path: Path) -> None:
    process = interrupted(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0, said
    assert "KeyboardInterrupt" in said
    assert names_in(tmp_path) == ["source"]


@pytest.mark.slow
def test_the_next_run_removes_what_a_killed_one_has_left(
    interrupted: Callable[[int], subprocess.Popen[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = interrupted(signal.SIGSTOP)
    source = smooth_source(tmp_path / "source", [3])
    with pytest.raises(UserError, match="another process is writing"):
        converted(source, tmp_path / "out", "aloha_hdf5")
    process.kill()
    process.communicate(timeout=60)
    assert names_in(tmp_path) == [".out.converting", "source"]
    converted(source, tmp_path / "out", "aloha_hdf5")
    assert "removing the files of an interrupted conversion, and starting again" in capsys.readouterr().out
    assert names_in(tmp_path) == ["out", "source"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["episode_0.hdf5"]
    with h5py.File(tmp_path / "out" / "episode_0.hdf5") as file:
        assert len(file["action"]) == 3


def test_parts_of_long_episodes_are_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_STEPS_PER_SPAN", 4)
    content = Content.of(Selection().applied_to(smooth_source(tmp_path, (9, 4))))
    parts = GuideWriter(content, Options()).spans()
    assert [(part.episode, part.first, part.end) for part in parts] == [(0, 0, 4), (0, 4, 8), (0, 8, 9), (1, 0, 4)]
