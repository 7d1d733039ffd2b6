"""Copies of datasets whose formats cannot be mapped: right to the last bit, whole or not at all, gone on with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import SyntheticSource, synthetic_source
from torch.nn import functional as F

from bimact.data.cached_copy import cached_copy, resize
from bimact.data.episodes import Episodes
from bimact.data.selection import Selection
from bimact.errors import UserError


def copy(
    source: SyntheticSource, cache: Path, selection: Selection | None = None, size: tuple[int, int] | None = None
) -> Episodes:
    return cached_copy((selection or Selection()).applied_to(source), cache, size)[0]


def assert_is_copy(episodes: Episodes, source: SyntheticSource) -> None:
    assert episodes.lengths.tolist() == source.lengths.tolist()
    for episode, length in enumerate(source.lengths.tolist()):
        rows = episodes.rows_of(episode)
        columns = source.read_columns(episode, ["qpos", "action"])
        assert np.array_equal(episodes.state[rows], columns["qpos"].astype(np.float32))
        assert np.array_equal(episodes.actions[rows], columns["action"].astype(np.float32))
        for camera in source.cameras:
            frames = np.stack([source.frame(episode, camera, step) for step in range(length)])
            assert np.array_equal(episodes.images[camera][rows], frames)


def test_all_that_is_selected_is_copied(tmp_path: Path) -> None:
    source = synthetic_source(tmp_path / "data", [5, 18, 3])
    episodes = copy(source, tmp_path / "cache")
    assert_is_copy(episodes, source)
    assert episodes.fps == 10 and episodes.task == "pour tea" and episodes.joint_names == ("a", "b", "c", "d")
    assert episodes.state.dtype == np.float32


def test_second_opening_decodes_nothing(tmp_path: Path) -> None:
    source = synthetic_source(tmp_path / "data", log=tmp_path / "log")
    copy(source, tmp_path / "cache")
    before = (tmp_path / "log").read_text()
    assert_is_copy(copy(source, tmp_path / "cache"), source)
    assert (tmp_path / "log").read_text().count("\n") == before.count("\n") == 6


def test_other_selections_have_copies_of_their_own(tmp_path: Path) -> None:
    source = synthetic_source(tmp_path / "data")
    copy(source, tmp_path / "cache")
    part = copy(
        source,
        tmp_path / "cache",
        Selection(cameras=("wrist",), state_keys=("tau", "qpos"), state_dims="0,2:4", max_episodes=2),
    )
    assert part.cameras == ("wrist",) and part.lengths.tolist() == [5, 8]
    columns = source.read_columns(1, ["tau", "qpos"])
    expected = np.concatenate([columns["tau"], columns["qpos"][:, 1:3]], axis=1).astype(np.float32)
    assert np.array_equal(part.state[part.rows_of(1)], expected)
    assert len(list(tmp_path.glob("cache/*/arrays-*"))) == 2


def test_a_changed_dataset_is_copied_anew_and_the_old_copy_goes(tmp_path: Path) -> None:
    source = synthetic_source(tmp_path / "data", log=tmp_path / "log")
    copy(source, tmp_path / "cache")
    (tmp_path / "data" / "recording.bin").write_bytes(b"more")
    copy(source, tmp_path / "cache")
    assert (tmp_path / "log").read_text().count("\n") == 12
    assert len(list(tmp_path.glob("cache/*/arrays-*"))) == 1


def test_images_are_stored_as_the_encoders_would_resize_them(tmp_path: Path) -> None:
    source = synthetic_source(tmp_path / "data", [2], size=(120, 160))
    episodes = copy(source, tmp_path / "cache", size=(48, 72))
    assert episodes.images["top"].shape == (2, 48, 72, 3)
    assert episodes.recorded_sizes == {"top": (120, 160), "wrist": (60, 80)}
    image = torch.from_numpy(source.frame(0, "top", 1)).permute(2, 0, 1)[None].float()
    expected = F.interpolate(image, (48, 72), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(episodes.images["top"][1] - expected).max() < 1.01


def test_images_are_never_enlarged(tmp_path: Path) -> None:
    source = synthetic_source(tmp_path / "data", [2], size=(40, 60))
    episodes = copy(source, tmp_path / "cache", size=(32, 32))
    assert episodes.images["top"].shape[1:3] == (32, 32)
    assert episodes.images["wrist"].shape[1:3] == (20, 30)


def test_resize_keeps_a_constant_image() -> None:
    image = np.full((30, 40, 3), (10, 200, 77), np.uint8)
    assert np.array_equal(resize(image, (12, 9)), image[:12, :9])


@pytest.mark.parametrize(
    "fault, words",
    [
        ("error", "episode 2, step 2 is damaged: copy it again"),
        ("crash", "episode 2: reading it crashes the library"),
        ("memory", "episode 2: reading asks for more than"),
    ],
)
def test_a_fault_leaves_no_copy_and_what_is_done_counts(tmp_path: Path, fault: str, words: str) -> None:
    source = synthetic_source(tmp_path / "data", log=tmp_path / "log", faults={(2, "top"): fault})  # the last one
    with pytest.raises(UserError, match=words):
        copy(source, tmp_path / "cache")
    assert not [entry for entry in tmp_path.glob("cache/*/arrays-*") if not entry.name.endswith(".unfinished")]
    (tmp_path / "log").write_text("")
    mended = synthetic_source(tmp_path / "data", log=tmp_path / "log")
    assert_is_copy(copy(mended, tmp_path / "cache"), mended)
    assert (tmp_path / "log").read_text().count("\n") < 6


KILLED = """
import sys; sys.path[:0] = [{tests!r}]
from pathlib import Path
from synthetic import synthetic_source
from bimact.data.cached_copy import cached_copy
from bimact.data.selection import Selection
if __name__ == "__main__":
    source = synthetic_source(Path({data!r}), [4] * 6, log=Path({log!r}), seconds_a_frame=0.05)
    cached_copy(Selection().applied_to(source), Path({cache!r}), None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_conversion_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        KILLED.format(
            tests=str(Path(__file__).parents[1]),
            data=str(tmp_path / "data"),
            log=str(tmp_path / "log"),
            cache=str(tmp_path / "cache"),
        )
    )
    process = subprocess.Popen([sys.executable, program], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(len(p.read_text().splitlines()) >= 3 for p in tmp_path.glob("cache/*/arrays-*/done.txt")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(30) != 0
    workers = {int(line.split()[2]) for line in (tmp_path / "log").read_text().splitlines()}
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # children end with their parent
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert list(tmp_path.glob("cache/*/arrays-*.unfinished"))
    source = synthetic_source(tmp_path / "data", [4] * 6, log=tmp_path / "again")
    assert_is_copy(copy(source, tmp_path / "cache"), source)
    assert 0 < (tmp_path / "again").read_text().count("\n") < 11
    assert not list(tmp_path.glob("cache/*/*.unfinished"))


def test_a_copy_that_does_not_fit_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    source = synthetic_source(tmp_path / "data", log=tmp_path / "log")
    with pytest.raises(UserError, match=r"needs 0\.000 GB and .* has 0\.000 GB free"):
        copy(source, tmp_path / "cache")
    assert not (tmp_path / "log").exists()


def test_work_is_shared_by_several_processes(tmp_path: Path) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core")
    source = synthetic_source(tmp_path / "data", [4] * 6, log=tmp_path / "log", seconds_a_frame=0.03)
    copy(source, tmp_path / "cache")
    assert len({line.split()[2] for line in (tmp_path / "log").read_text().splitlines()}) >= 2
