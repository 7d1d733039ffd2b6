"""Frames of video files: always the one that belongs to a time, in its true colours, or a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot_files import SIZE, picture, shows, write_video

from bimact.data.formats.video_frames import frames_at, video_format
from bimact.errors import UserError

FPS = 10
COUNT = 40
CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "AV1 of two-frame groups": ("v.mp4", {"codec": "libsvtav1"}),
    "AV1 of one group": ("v.mp4", {"codec": "libsvtav1", "options": {"g": "300"}}),
    "H.264 with B-frames": ("v.mp4", {"options": {"g": "12", "bf": "3"}}),
    "H.264 with open groups": ("v.mp4", {"options": {"g": "12", "x264-params": "open-gop=1:bframes=3"}}),
    "H.264 of one group": ("v.mp4", {"options": {"g": "300"}}),
    "H.264 in Matroska": ("v.mkv", {"options": {"g": "12"}}),
    "H.264 without an edit list": ("v.mp4", {"options": {"g": "12"}, "container_options": {"use_editlist": "0"}}),
    "H.264 in fragments": (
        "v.mp4",
        {"options": {"g": "12"}, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    ),
    "H.264 that begins late": ("v.mp4", {"options": {"g": "12"}, "times": lambda number: 1.7 + number / FPS}),
    "HEVC": ("v.mp4", {"codec": "libx265", "options": {"g": "12", "x265-params": "open-gop=1:log-level=none"}}),
    "VP9": ("v.webm", {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime"}}),
    "MPEG-4": ("v.mp4", {"codec": "mpeg4", "options": {"g": "12"}}),
}
STEPS = {
    "all": range(COUNT),
    "some, with repetitions": [0, 0, 1, 5, 5, 6, 19, 33, 33, 39],
    "from the middle": range(17, 31),
    "far apart": [3, 20, 39],
    "the last": [39],
}


def write(path: Path, **how: Any) -> Path:
    return write_video(path, (picture(0, 0, step) for step in range(COUNT)), fps=FPS, **how)


def read(path: Path, steps: Sequence[int], start: float = 0.0) -> list[np.ndarray]:
    times = [start + step / FPS for step in steps]
    return list(frames_at(path, times, fps=FPS, describe=lambda number: f"episode 3, step {steps[number]}"))


@pytest.fixture(scope="module")
def reordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H.264 with B-frames in groups of twelve."""
    return write(tmp_path_factory.mktemp("video") / "v.mp4", options={"g": "12", "bf": "3"})


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_gives_the_frames_of_the_steps(tmp_path: Path, name: str) -> None:
    file, how = CODECS[name]
    path = write(tmp_path / file, **how)
    assert (video_format(path).height, video_format(path).width) == SIZE
    for steps in STEPS.values():
        images = read(path, steps)
        assert len(images) == len(steps)
        assert all(shows(image, 0, 0, step) for image, step in zip(images, steps))
        assert not any(shows(image, 0, 0, step + 1) for image, step in zip(images, steps))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moments=st.lists(st.floats(0, COUNT - 0.6), min_size=1, max_size=12))
def test_any_times_get_their_nearest_frames(reordered: Path, moments: list[float]) -> None:
    times = [moment / FPS for moment in sorted(moments)]
    images = list(frames_at(reordered, times, fps=FPS, describe=str))
    # At half a step either of its neighbours is right.
    for moment, image in zip(sorted(moments), images):
        nearest = {int(np.floor(moment + 0.49)), int(np.floor(moment + 0.51))}
        assert any(shows(image, 0, 0, step) for step in nearest)


def test_a_step_that_is_repeated_gives_the_same_frame(reordered: Path) -> None:
    first, second, other = read(reordered, [4, 4, 5])
    assert first is second and not np.array_equal(first, other)


def test_irregular_frames_count_for_the_times_that_they_are_near_to(tmp_path: Path) -> None:
    shifts = [0.0, 0.03, -0.03, 0.04]
    path = write(tmp_path / "v.mp4", times=lambda number: number / FPS + shifts[number % 4])
    images = read(path, range(COUNT))
    assert all(shows(image, 0, 0, step) for step, image in enumerate(images))


@pytest.mark.parametrize("count", [COUNT + 1, COUNT + 20])
def test_a_video_that_ends_early_is_told_by_time_and_step(reordered: Path, count: int) -> None:
    frames = frames_at(
        reordered, [step / FPS for step in range(count)], fps=FPS, describe=lambda n: f"episode 3, step {n}"
    )
    images = [next(frames) for _ in range(COUNT)]
    assert shows(images[-1], 0, 0, COUNT - 1)
    with pytest.raises(UserError, match=r"v\.mp4 has no frame at 4\.00 s \(episode 3, step 40\)"):
        next(frames)


def test_a_gap_in_a_video_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", times=lambda number: number / FPS if number < 10 else (number + 2) / FPS)
    with pytest.raises(UserError, match=r"no frame at 1\.00 s \(episode 3, step 10\)"):
        read(path, range(COUNT))


@pytest.mark.parametrize("time", [-1.0, float("nan"), float("inf"), 1e300])
def test_absurd_times_have_no_frame(reordered: Path, time: float) -> None:
    with pytest.raises(UserError, match="no frame"):
        list(frames_at(reordered, [time], fps=FPS, describe=str))


# Colours -------------------------------------------------------------------------------------------


def _colors() -> np.ndarray:
    """(96, 128, 3): strong colours in soft transitions."""
    y, x = np.mgrid[:96, :128]
    return np.stack([x * 255 // 127, y * 255 // 95, 255 - (x + y) * 255 // 222], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("matrix", "is_full"), [(1, False), (1, True), (5, False), (5, True), (9, False), (2, False)])
def test_colours_follow_the_matrix_and_range_of_the_video(tmp_path: Path, matrix: int, is_full: bool) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", FPS, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if is_full else 1
        frame = av.VideoFrame.from_ndarray(_colors(), format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=5 if matrix == 2 else matrix,  # without a word it is BT.601
            src_color_range=2,
            dst_color_range=2 if is_full else 1,
        )
        container.mux([*stream.encode(frame), *stream.encode()])
    (image,) = read(path, [0])
    assert np.abs(image.astype(int) - _colors()).mean() < 2


@pytest.mark.parametrize(("file", "codec", "pixel_format"), [("v.mov", "png", "rgb24"), ("v.mkv", "ffv1", "bgr0")])
def test_video_without_loss_is_read_without_loss(tmp_path: Path, file: str, codec: str, pixel_format: str) -> None:
    path = write_video(tmp_path / file, [_colors()], codec=codec, pixel_format=pixel_format)
    (image,) = read(path, [0])
    np.testing.assert_array_equal(image, _colors())


def test_odd_sizes_are_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [_colors()[:95, :127]], pixel_format="yuv444p")
    (image,) = read(path, [0])
    assert image.shape == (95, 127, 3) and (video_format(path).height, video_format(path).width) == (95, 127)


# Faults --------------------------------------------------------------------------------------------


def _containers(folder: Path) -> Iterator[Path]:
    secret = write(folder / "secret.mp4")
    playlist = folder / "playlist.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:4,\n{secret}\n#EXT-X-ENDLIST\n")
    yield playlist
    concat = folder / "concat.mp4"
    concat.write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    yield concat
    yield write_video(folder / "v.avi", [picture(0, 0, 0)])


def test_files_that_name_other_files_are_not_opened(tmp_path: Path) -> None:
    for path in _containers(tmp_path):
        with pytest.raises(UserError, match=f"{path.name} cannot be opened: it is no MP4 or Matroska video"):
            read(path, [0])


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "empty.mp4").touch()
    for name in ("text.mp4", "empty.mp4", "missing.mp4"):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name, [0])
        with pytest.raises(UserError, match=name):
            video_format(tmp_path / name)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(UserError, match=r"sound\.mp4 holds no video"):
        read(path, [0])


def test_a_file_that_is_cut_off_is_told(reordered: Path, tmp_path: Path) -> None:
    content = reordered.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.mp4 cannot be opened"):
        read(tmp_path / "cut.mp4", range(COUNT))


@pytest.mark.slow
def test_frames_larger_than_any_camera_are_not_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mov", [np.zeros((6000, 6000, 3), np.uint8)], codec="png", pixel_format="rgb24")
    with pytest.raises(UserError, match=r"v\.mov"):
        read(path, [0])
