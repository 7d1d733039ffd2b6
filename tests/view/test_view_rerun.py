"""Episodes as Rerun recordings, read back by Rerun's own reader."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_source import BITS, CELL, JOINTS, NumberedSource, numbered_source
from PIL import Image

from bimact.data.source import Column
from bimact.errors import UserError
from bimact.view.rerun_log import save_rerun


def recorded(path: Path) -> dict[str, dict[str, list[Any]]]:
    """entity → column → values, of all chunks."""
    reader = pytest.importorskip("rerun.chunk").RrdReader(path)
    found: dict[str, dict[str, list[Any]]] = {}
    for chunk in reader.stream().to_chunks():
        columns = found.setdefault(str(chunk.entity_path), {})
        batch = chunk.to_record_batch()
        for name, values in zip(batch.schema.names, batch.columns):
            columns.setdefault(name, []).extend(values.to_pylist())
    return found


@pytest.fixture
def source() -> NumberedSource:
    source = numbered_source([7, 130], cameras=("top", "left wrist/b"), fps=25.0)
    return dataclasses.replace(source, columns={**source.columns, "action": Column(13, JOINTS[:13])})


def test_a_recording_holds_all_steps_of_joints_and_cameras(source: NumberedSource, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    save_rerun(source, 1, tmp_path / "episode.rrd")
    assert [path.name for path in tmp_path.iterdir()] == ["episode.rrd"]
    found = recorded(tmp_path / "episode.rrd")
    for kind, size in (("state", 14), ("action", 13)):
        for number in range(size):
            columns = found[f"/joints/{JOINTS[number]}/{kind}"]
            assert columns["step"] == list(range(130))
            assert [time.total_seconds() for time in columns["time"]] == pytest.approx(np.arange(130) / 25)
            values = np.ravel(columns["Scalars:scalars"])
            np.testing.assert_array_equal(values, source.vectors(1, kind)[:, number].astype(np.float64))
    assert f"/joints/{JOINTS[13]}/action" not in found
    for camera in ("/cameras/top", "/cameras/left\\ wrist\\/b"):
        columns = found[camera]
        order = np.argsort(columns["step"])
        assert [columns["step"][n] for n in order] == list(range(130))
        assert [step_of(columns["EncodedImage:blob"][n]) for n in order] == list(range(130))


def step_of(blob: Any) -> int:
    """The step that an image shows in its top edge."""
    image = np.asarray(Image.open(io.BytesIO(bytes(np.ravel(blob).astype(np.uint8)))))
    cells = image[CELL // 2, CELL // 2 :: CELL, 0] > 128
    return int(sum(1 << bit for bit in range(BITS) if cells[bit]))


def test_a_recording_that_fails_leaves_no_file(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    with pytest.raises(UserError, match="camera top has no image at step 3"):
        save_rerun(numbered_source(broken_camera="top"), 0, tmp_path / "episode.rrd")
    assert list(tmp_path.iterdir()) == []


def test_without_rerun_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)  # what Python takes for a package that is not there
    with pytest.raises(UserError, match=r"--rerun needs the package rerun-sdk: pip install 'bimact\[rerun\]'"):
        save_rerun(numbered_source(), 0, tmp_path / "episode.rrd")
