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
from bimact.evaluation.saliency import drawn, occlusion_map, write_saliency
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
    encoded: list[int] = []
    encode = loaded.network.encode_images
    with monkeypatch.context() as patch:
        patch.setattr(
            loaded.network, "encode_images", lambda given: (encoded.extend(map(len, given.values())), encode(given))[1]
        )
        found = occlusion_map(loaded, obs, camera)
    other_cameras, patches = len(loaded.network.cameras) - 1, 3 * (found.shape[1] - 1)
    assert sum(encoded) == other_cameras + 1 + patches, "the other cameras are encoded once"

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
    assert f"Pictures of which parts of the images matter: {run_dir}/saliency; " in capsys.readouterr().out
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
    assert "--saliency 2" in page  # among the commands that repeat this
    bimact.evaluate(run_dir, device="cpu", checkpoint="last")
    assert "--checkpoint last --saliency 6" in write_report(run_dir).read_text()  # the command that draws them


def test_more_moments_than_steps_other_folders_and_odd_names(run_dir: Path, tmp_path: Path) -> None:
    loaded = replace(load_run(run_dir, "last", "cpu"), folder=tmp_path)
    episodes = open_dataset(loaded.config.dataset_dir or "")
    index = WindowIndex.over(episodes, np.array([2, 1]), loaded.config.temporal_context, loaded.config.chunk_size)
    loaded.network.cameras, names = ("../left",), loaded.network.cameras
    images = {**episodes.images, "../left": episodes.images[names[0]]}
    dataset = WindowDataset(replace(episodes, images=images), index, ("../left", *names))
    (tmp_path / "saliency").mkdir()
    (tmp_path / "saliency" / "left-3.png").touch()  # of an earlier evaluation
    policy = loaded.network.forward
    loaded.network.forward = lambda obs: policy({**obs, f"image_{names[0]}": obs["image_../left"]})  # type: ignore
    loaded.network.cameras = ("../left",)
    pictures = write_saliency(loaded, dataset, 50)
    assert [picture["step"] for picture in pictures] == list(range(7))
    assert sorted(path.name for path in (tmp_path / "saliency").iterdir()) == [
        f"..%2Fleft-{step}.png" for step in range(7)
    ]


def test_with_ensembling_only_the_chunks_that_are_averaged_count(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_run(run_dir, "last", "cpu")
    camera = loaded.network.cameras[0]

    def late(obs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
        """A network whose fourth step alone depends on the image."""
        chunks = torch.zeros(len(obs["state"]), loaded.config.chunk_size, loaded.config.action_dim or 0)
        chunks[:, 3] = obs[f"image_{camera}"].float().mean(dim=(1, 2, 3, 4))[:, None]
        return chunks, None

    monkeypatch.setattr(loaded.network, "forward", late)
    for window, matters in ((3, False), (4, True), (None, True)):
        config = replace(loaded.config, execute_steps=None, temporal_ensemble=True, ensemble_window=window)
        assert occlusion_map(replace(loaded, config=config), observation(loaded), camera).any() == matters


@pytest.mark.parametrize("shade", [0, 40, 128, 220])
def test_pictures_are_brighter_where_more_depends(shade: int) -> None:
    heat = np.repeat(np.linspace(0, 1, 48)[None], 12, axis=0)
    picture = np.asarray(drawn(np.full((24, 96, 3), shade, np.uint8), heat).convert("L")).astype(int)
    brightness = picture[60, 10:-10]
    assert (np.diff(brightness) >= -1).all() and brightness[-1] > brightness[0] + 80


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"saliency": -1}, "--saliency is -1, it has to be a number of moments, from 0"),
        ({"saliency": 2, "task": "transfer_cube"}, "leave the task out, or give --dataset_dir too"),
    ],
)
def test_faulty_settings(run_dir: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        bimact.evaluate(run_dir, **settings)


def test_a_crop_of_one_pixel(run_dir: Path) -> None:
    loaded = load_run(run_dir, "last", "cpu")
    encoder = replace(loaded.config.encoder, crop=[0.0, 0.0, 0.01, 0.5])
    narrow = replace(loaded, config=replace(loaded.config, encoder=encoder))
    with pytest.raises(UserError, match="the encoder sees 1x12 pixels, --saliency needs 2x2 or more"):
        occlusion_map(narrow, observation(loaded), loaded.network.cameras[0])


def test_a_policy_without_images(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [9, 12, 7, 10])
    config = tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), num_epochs=1, cameras=[])
    run = train_run(prepare_run(config)).run.path
    with pytest.raises(UserError, match="--saliency is of colour images, and this policy sees none"):
        bimact.evaluate(run, saliency=1, device="cpu")
