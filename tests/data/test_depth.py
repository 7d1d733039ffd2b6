"""Depth images: carried to the last millimetre by three bytes, and resized without new distances."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hdf5_files import noise, write_aloha, write_aloha_episode
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from lerobot_files import LEFT, V3, V3_IMAGES, change_feature, write_lerobot
from PIL import Image

from bimact.check.dataset import check_dataset
from bimact.data.depth import DepthCodes, depth_picture, pack_depth, scale_of, unpack_depth
from bimact.data.opening import open_dataset, open_source
from bimact.data.selection import Selection
from bimact.data.source import Camera


def depth_of(length: int, size: tuple[int, int] = (16, 24), seed: int = 0) -> np.ndarray:
    """(T, H, W) uint16 millimetres with a few pixels without measurement."""
    draw = np.random.default_rng(seed)
    depth = draw.integers(300, 1500, (length, *size)).astype(np.uint16)
    depth[draw.random(depth.shape) < 0.1] = 0
    return depth


@given(arrays.arrays(np.uint16, (2, 3, 4)))
def test_millimetres_are_carried_exactly(depth: np.ndarray) -> None:
    packed = pack_depth(depth)
    assert packed.dtype == np.uint8 and packed.shape == (2, 3, 4, 3)
    assert np.array_equal(unpack_depth(packed), depth)


@given(st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_metres_become_whole_millimetres_and_what_is_no_distance_becomes_zero(metres: float) -> None:
    (found,) = unpack_depth(pack_depth(np.array([[metres]], np.float32), 1000.0)).flat
    wanted = round(float(np.float32(metres)) * 1000) if np.isfinite(metres) else 0
    assert found == min(max(wanted, 0), 65_535)


def test_the_unit_follows_from_type_and_values() -> None:
    assert scale_of(np.full((2, 2), 700, np.uint16)) == 1
    assert scale_of(np.array([[0.4, np.nan], [np.inf, 2.5]], np.float32)) == 1000
    assert scale_of(np.full((2, 2), 700.0, np.float32)) == 1


@pytest.mark.parametrize("form", ["uint16", "uint16 with a channel", "float metres", "float millimetres", "PNG"])
def test_hdf5_files_are_read_to_the_millimetre(form: str, tmp_path: Path) -> None:
    depth = depth_of(5)
    write_aloha_episode(tmp_path / "episode_0.hdf5", 5)
    stored = {
        "uint16": depth,
        "uint16 with a channel": depth[..., None],
        "float metres": depth.astype(np.float32) / 1000,
        "float millimetres": depth.astype(np.float32),
    }
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        if form == "PNG":
            rows = file.create_dataset("observations/images/top_depth", (5,), h5py.vlen_dtype(np.uint8))
            for step, image in enumerate(depth):
                stream = io.BytesIO()
                Image.fromarray(image).save(stream, "PNG")
                rows[step] = np.frombuffer(stream.getvalue(), np.uint8)
        else:
            file["observations/images/top_depth"] = stored[form]
    source = open_source(tmp_path)
    assert list(source.cameras) == ["left_wrist", "top"] and list(source.depth_cameras) == ["top_depth"]
    (told,) = [entry for entry in source.left_out if entry.name == "top_depth"]
    assert told.reason.startswith(f"is depth, in {'metres' if form == 'float metres' else 'millimetres'}")
    chosen = Selection(cameras=("top", "top_depth")).applied_to(source)
    packed = np.stack(list(chosen.read_frames(0, "top_depth", range(5))))
    assert np.array_equal(unpack_depth(packed), depth)
    assert not chosen.left_out


def test_the_copy_for_training_has_only_distances_that_were_measured(tmp_path: Path) -> None:
    depth = depth_of(6)
    write_aloha_episode(tmp_path / "episode_0.hdf5", 6, images={"top": noise(6, (16, 24), 0)})
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file["observations/images/top_depth"] = depth
    selection = Selection(cameras=("top", "top_depth"))
    episodes = open_dataset(tmp_path, selection=selection, image_size=(8, 12))
    assert episodes.depth_cameras == ("top_depth",) and episodes.images["top_depth"].shape == (6, 8, 12, 3)
    small = unpack_depth(episodes.images["top_depth"][np.arange(6)])
    assert all(set(image.flat) <= set(whole.flat) for image, whole in zip(small, depth))


def test_near_is_light_in_pictures_and_nothing_measured_is_black() -> None:
    picture = depth_picture(pack_depth(np.array([[0, 400, 1200]], np.uint16)))
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[0, 1, 0] > picture[0, 2, 0] > 0


def test_check_finds_holes_and_saturation(tmp_path: Path) -> None:
    write_aloha(tmp_path, (8, 8, 8))
    for episode in range(3):
        depth = depth_of(8, seed=episode)
        if episode == 1:
            depth[3:5] = 0
        if episode == 2:
            depth[6:, :8] = 65_535
        with h5py.File(tmp_path / f"episode_{episode}.hdf5", "a") as file:
            file["observations/images/top_depth"] = depth
    found = {finding.code: finding for finding in check_dataset(tmp_path).findings if "depth-" in finding.code}
    holes, saturated = found["depth-holes"], found["depth-saturated"]
    assert (holes.episode, holes.step, holes.count, holes.camera) == (1, 3, 2, "top_depth")
    assert "has no measurement in 100% of its pixels, usually 10%" in holes.sentence
    assert (saturated.episode, saturated.step, saturated.count) == (2, 6, 2)
    assert "50% of its pixels at 65535 mm" in saturated.sentence
    others = check_dataset(tmp_path, selection=Selection(cameras=("top",)))
    assert not [finding for finding in others.findings if "depth-" in finding.code]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "TIFF of metres", "arrays"])
def test_lerobot_tables_are_read_to_the_millimetre(form: str, tmp_path: Path) -> None:
    """Also a camera that info.json calls an image of depth."""
    folder = write_lerobot(tmp_path / "source", (4, 3), V3_IMAGES)
    depth, done = depth_of(7, (48, 64)), 0
    for path in sorted((folder / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        part = depth[done : done + len(table)]
        done += len(table)
        if form != "arrays":
            cells = []
            for image in part:
                stream = io.BytesIO()
                in_units = image if form != "TIFF of metres" else (image / 1000).astype(np.float32)
                Image.fromarray(in_units).save(stream, form.split()[0])
                cells.append({"bytes": stream.getvalue(), "path": None})
            column = pa.array(cells, table.schema.field(LEFT).type)
        else:
            column = pa.array((part.reshape(len(part), -1) / 1000).tolist(), pa.list_(pa.float32()))
        table = table.set_column(table.column_names.index(LEFT), LEFT, column)
        pq.write_table(table, path)
    info_file = folder / "meta" / "info.json"
    info = json.loads(info_file.read_text())
    info["features"][LEFT] |= {"shape": [48, 64, 1], "info": {"is_depth_map": True}}
    info["features"][LEFT] |= {"dtype": "float32"} if form == "arrays" else {}
    info_file.write_text(json.dumps(info))
    source = open_source(folder)
    assert list(source.cameras) == ["top"] and source.depth_cameras == {"left_wrist": Camera(48, 64, is_depth=True)}
    assert LEFT not in source.columns
    chosen = Selection(cameras=("top", "left_wrist")).applied_to(source)
    packed = [image for episode in (0, 1) for image in chosen.read_frames(episode, "left_wrist", range(4 - episode))]
    assert np.array_equal(unpack_depth(np.stack(packed)), depth)
    assert len(list(chosen.read_frames(1, "top", range(3)))) == 3 and chosen.frames_note(0, "left_wrist") is None


def code_of(metres: float, codes: DepthCodes) -> int:
    """As LeRobot's documentation of its depth videos says it."""
    shift = codes.shift if codes.is_logarithmic else 0.0
    low, high, value = (number + shift for number in (codes.nearest, codes.farthest, metres))
    if codes.is_logarithmic:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return min(max(round((value - low) / (high - low) * 4095), 0), 4095)


@given(
    st.floats(0, 1),
    st.floats(1.5, 50),
    st.floats(0.1, 5),
    st.booleans(),
    st.lists(st.floats(0, 60), min_size=1, max_size=20),
)
def test_numbers_of_depth_videos_are_distances(
    nearest: float, farthest: float, shift: float, is_logarithmic: bool, metres: list[float]
) -> None:
    codes = DepthCodes(nearest, farthest, shift, is_logarithmic)
    written = [code_of(value, codes) for value in metres]
    found = codes.millimetres(np.array([written], np.uint16))[0]
    for value, code, millimetres in zip(metres, written, found.tolist()):
        if code == 0:
            assert millimetres == 0  # no measurement
            continue
        kept = min(max(value, nearest), farthest)
        step = (kept + shift) * math.log((farthest + shift) / (nearest + shift)) if is_logarithmic else farthest
        assert abs(millimetres - 1000 * kept) <= 0.51 + 0.51 * 1000 * step * 1.01 / 4095


def test_depth_videos_of_lerobot(tmp_path: Path) -> None:
    """12 bits a pixel, without loss; info.json says what the numbers mean."""
    folder = write_lerobot(tmp_path / "source", (4, 3), V3)
    (path,) = (folder / "videos" / LEFT).rglob("*.mp4")
    codes = np.random.default_rng(0).integers(0, 4096, (7, 48, 64)).astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", 10, options={"x265-params": "lossless=1:log-level=none"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "gray12le"
        for number, image in enumerate(codes):
            frame = av.VideoFrame(64, 48, "gray12le")
            frame.planes[0].update(image.tobytes())
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    told = {"is_depth_map": True, "video.depth_min": 0.01, "video.depth_max": 10.0, "video.shift": 3.5}
    change_feature(folder, LEFT, info=told)
    assert not open_source(folder).depth_cameras  # nothing says whether the numbers are logarithms
    change_feature(folder, LEFT, info={**told, "video.use_log": True})
    source = open_source(folder)
    assert list(source.cameras) == ["top"] and source.depth_cameras == {"left_wrist": Camera(48, 64, is_depth=True)}
    (left_out,) = [entry for entry in source.left_out if entry.name == "left_wrist"]
    assert left_out.reason.startswith("is depth, in millimetres: name it in --cameras")
    chosen = Selection(cameras=("top", "left_wrist")).applied_to(source)
    packed = [image for episode in (0, 1) for image in chosen.read_frames(episode, "left_wrist", range(4 - episode))]
    share = codes / 4095
    metres = np.exp(np.log(3.51) + share * (np.log(13.5) - np.log(3.51))) - 3.5
    expected = np.where(codes == 0, 0, np.rint(1000 * metres))
    assert np.abs(unpack_depth(np.stack(packed)).astype(int) - expected).max() <= 1
    assert chosen.video_frames(0, "left_wrist", range(4)) is None
    assert chosen.video_frames(0, "top", range(4)) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"video.depth_min": 11.0},
        {"video.depth_max": float("nan")},
        {"video.shift": -1.0},
        {"video.use_log": 1},
        {"video.depth_min": "0.1"},
        {"video.depth_max": 10**400},
    ],
)
def test_depth_videos_whose_numbers_mean_nothing_are_left_out(wrong: dict[str, Any], tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "source", (3,), V3)
    told = {"video.depth_min": 0.01, "video.depth_max": 10.0, "video.shift": 3.5, "video.use_log": True}
    change_feature(folder, LEFT, info={"is_depth_map": True, **told, **wrong})
    source = open_source(folder)
    assert list(source.cameras) == ["top"] and not source.depth_cameras
