"""Maps of what the images contribute, against a plain loop and a network whose answer is known; and their pictures."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset
from PIL import Image

import bimact
from bimact.data.opening import open_dataset
from bimact.data.windows import WindowDataset, WindowIndex
from bimact.errors import UserError
from bimact.evaluation import saliency
from bimact.evaluation.report import write_report
from bimact.evaluation.saliency import occlusion_map
from bimact.policy.loading import LoadedPolicy, load_run
from bimact.training.act_trainer import train_run
from bimact.training.prepare import prepare_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saliency")
    dataset = write_dataset(folder / "dataset", [9, 12, 7, 10])
    config = tiny_config(dataset_dir=str(dataset), output_dir=str(folder / "run"), num_epochs=1, execute_steps=2)
    return train_run(prepare_run(config)).run.path


def observation(loaded: LoadedPolicy) -> dict[str, torch.Tensor]:
    episodes = open_dataset(loaded.config.dataset_dir or "")
    index = WindowIndex.over(episodes, np.array([1]), loaded.config.temporal_context, loaded.config.chunk_size)
    return WindowDataset(episodes, index).__getitems__([5])[0]


@pytest.mark.parametrize("crop", [None, [0.25, 0.25, 0.5, 0.5]])
def test_a_map_against_a_loop(run_dir: Path, crop: list[float] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_run(run_dir, "last", "cpu")
    loaded = replace(loaded, config=replace(loaded.config, encoder=replace(loaded.config.encoder, crop=crop)))
    loaded.network.action_normalizer.std.copy_(torch.linspace(0.5, 2, loaded.config.action_dim or 0))
    monkeypatch.setattr(saliency, "_ROWS", 4)
    obs = observation(loaded)
    camera = loaded.network.cameras[0]
    found = occlusion_map(loaded, obs, camera)

    images = obs[f"image_{camera}"]
    height, width = images.shape[-2:]
    top, left, bottom, right = (0, 0, height, width)
    if crop is not None:
        top, left, bottom, right = height // 4, width // 4, height - height // 4, width - width // 4
    columns = round(4 * (right - left) / (bottom - top))
    y = [round(top + (bottom - top) * row / 4) for row in range(5)]
    x = [round(left + (right - left) * column / columns) for column in range(columns + 1)]
    with torch.no_grad():
        plain = loaded.network(obs)[0][0, :2]
    changes: dict[tuple[int, int], list[float]] = {(row, column): [] for row in range(4) for column in range(columns)}
    for row in range(3):
        for column in range(columns - 1):
            covered = images.clone()
            for time in range(images.shape[1]):
                for channel in range(3):
                    mean = images[0, time, channel, top:bottom, left:right].float().mean()
                    covered[0, time, channel, y[row] : y[row + 2], x[column] : x[column + 2]] = int(mean.round())
            with torch.no_grad():
                chunk = loaded.network({**obs, f"image_{camera}": covered})[0][0, :2]
            change = float(((chunk - plain).abs() / loaded.network.action_normalizer.std).mean())
            for cell in ((row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)):
                changes[cell].append(change)
    for (row, column), values in changes.items():
        assert found[row, column] == pytest.approx(np.mean(values), rel=1e-3, abs=1e-6)
    assert found.shape == (4, columns) and found.max() > 0


def test_only_what_decides_is_bright(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that looks at one spot of one camera's newest image."""
    loaded = load_run(run_dir, "last", "cpu")
    left, other = loaded.network.cameras[:2]

    def looks(obs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
        spot = obs[f"image_{left}"][:, -1, :, :4, -4:].float().mean(dim=(1, 2, 3))
        return spot[:, None, None].expand(-1, loaded.config.chunk_size, loaded.config.action_dim or 0), None

    monkeypatch.setattr(loaded.network, "forward", looks)
    obs = observation(loaded)
    found = occlusion_map(loaded, obs, left)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert found.max() > 0 and row < 4 and column > found.shape[1] - 5
    assert not found[6:].any() and not found[:, :-6].any()
    assert not occlusion_map(loaded, obs, other).any()


def test_pictures_are_written_and_in_the_report(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bimact.cli import main

    with pytest.raises(SystemExit):
        main(["evaluate", "--run", str(run_dir), "--saliency", "2", "--device", "cpu"])
    assert f"Pictures of what the images contribute: {run_dir}/saliency (at most " in capsys.readouterr().out
    result: dict[str, Any] = bimact.evaluate(run_dir, saliency=2, device="cpu").offline or {}
    cameras = load_run(run_dir, "last", "cpu").network.cameras
    assert len(result["saliency"]) == 2 * len(cameras)
    page = write_report(run_dir).read_text()
    for picture in result["saliency"]:
        path = run_dir / picture["picture"]
        with Image.open(path) as image:
            assert image.size[0] == 480
        assert base64.b64encode(path.read_bytes()).decode() in page
    assert "No pictures." not in page
    bimact.evaluate(run_dir, device="cpu")
    assert "--saliency 4" in write_report(run_dir).read_text()  # the command that draws them


@pytest.mark.parametrize("settings", [{"saliency": -1}, {"saliency": 2, "task": "transfer_cube"}])
def test_faulty_settings(run_dir: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="a number of moments of a demonstration, without a task"):
        bimact.evaluate(run_dir, **settings)


def test_a_policy_without_images(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [9, 12, 7, 10])
    config = tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), num_epochs=1, cameras=[])
    run = train_run(prepare_run(config)).run.path
    with pytest.raises(UserError, match="--saliency is of colour images, and this policy sees none"):
        bimact.evaluate(run, saliency=1, device="cpu")
