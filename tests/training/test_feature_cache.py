"""Tokens of a frozen encoder on disk: the same as computed anew, made once, and made anew when anything changes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guide_files import write_dataset

from bimact.config import AugmentationConfig, EncoderConfig
from bimact.data.episodes import Episodes, SelectedRows
from bimact.data.opening import open_dataset
from bimact.data.selection import Selection
from bimact.data.windows import WindowDataset, WindowIndex
from bimact.encoder.base import ImageEncoder
from bimact.errors import UserError
from bimact.training import feature_cache
from bimact.training.augmentation import NUMBERS, augment_images
from bimact.training.feature_cache import FeatureCache, Workers


class Pixels(ImageEncoder):
    """Means over places, times a weight; counts the images that it has seen."""

    def __init__(self, config: EncoderConfig | None = None, weight: float = 2.0) -> None:
        super().__init__(config or EncoderConfig(), out_dim=3)
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.description["class"] = "Pixels"  # also of those that fail
        self.seen = 0
        self.finish()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return self.weight * torch.nn.functional.adaptive_avg_pool2d(images, (2, 3)).flatten(2).transpose(1, 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return 2, 3


@pytest.fixture
def episodes(tmp_path: Path) -> Episodes:
    return open_dataset(write_dataset(tmp_path / "data", [9, 12, 7]))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(feature_cache, "_PIECE", 10)
    monkeypatch.setattr(feature_cache, "_AT_ONCE", {"cpu": 4})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def fill(encoder: ImageEncoder, episodes: Episodes, **settings: Any) -> Episodes:
    cache = FeatureCache(encoder, episodes, episodes.cameras, **settings)
    cache.fill(contextlib.nullcontext)
    return cache.opened()


def expected(episodes: Episodes, camera: str) -> np.ndarray:
    images = torch.from_numpy(np.array(episodes.images[camera][np.arange(episodes.num_steps)])).permute(0, 3, 1, 2)
    return Pixels()(images).unflatten(1, (2, 3)).detach().numpy()


def test_tokens_are_those_of_the_encoder(episodes: Episodes, capsys: pytest.CaptureFixture[str]) -> None:
    encoded = fill(Pixels(), episodes)
    for camera in ("left", "right"):
        assert encoded.features[camera].shape == (28, 2, 3, 3)
        np.testing.assert_allclose(encoded.features[camera][np.arange(28)], expected(episodes, camera), atol=1e-6)
    said = capsys.readouterr().out
    assert "Encoding images once" in said and "28 frames of left, right" in said
    assert "encoding images: 56/56" in said


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision(episodes: Episodes, dtype: torch.dtype, tolerance: float) -> None:
    rows = fill(Pixels(), episodes, dtype=dtype).features["left"][np.arange(28)]
    assert rows.dtype.itemsize == 2
    tokens = torch.from_numpy(rows).view(dtype).float().numpy()
    np.testing.assert_allclose(tokens, expected(episodes, "left"), rtol=tolerance)


def test_nothing_is_computed_twice(episodes: Episodes) -> None:
    fill(Pixels(), episodes)
    encoder = Pixels()
    assert FeatureCache(encoder, episodes, ["left"]).is_whole
    fill(encoder, episodes)
    assert encoder.seen == 0


def test_another_camera_takes_only_its_own_images(episodes: Episodes) -> None:
    FeatureCache(Pixels(), episodes, ["left"]).fill(contextlib.nullcontext)
    encoder = Pixels()
    fill(encoder, episodes)
    assert encoder.seen == 28


@pytest.mark.parametrize(
    "encoder, settings",
    [
        (lambda: Pixels(weight=2.5), {}),
        (lambda: Pixels(EncoderConfig(crop=[0.0, 0.0, 0.5, 0.5])), {}),
        (lambda: Pixels(EncoderConfig(image_size=[8, 8])), {}),
        (lambda: Pixels(EncoderConfig(image_mean=[0.5, 0.5, 0.5])), {}),
        (Pixels, {"dtype": torch.bfloat16}),
    ],
    ids=["weights", "crop", "size", "normalisation", "precision"],
)
def test_what_decides_over_the_tokens_is_in_the_key(episodes: Episodes, encoder: Any, settings: dict[str, Any]) -> None:
    fill(Pixels(), episodes)
    other = encoder()
    fill(other, episodes, **settings)
    assert other.seen == 56


def test_other_rows_of_the_dataset_have_another_key(episodes: Episodes) -> None:
    fill(Pixels(), episodes)
    part = open_dataset(episodes.path, selection=Selection(max_episodes=2))
    assert isinstance(part.images["left"], SelectedRows)
    encoder = Pixels()
    assert len(fill(encoder, part).features["left"]) == 21 and encoder.seen == 42


def test_images_that_change_are_encoded_anew_and_the_old_tokens_go(episodes: Episodes) -> None:
    fill(Pixels(), episodes)
    before = set((episodes.path / ".bimact_cache").glob("features-*"))
    file = episodes.path / "observations.npy"
    os.utime(file, ns=(0, 0))
    encoder = Pixels()
    fill(encoder, open_dataset(episodes.path))
    after = set((episodes.path / ".bimact_cache").glob("features-*"))
    assert encoder.seen == 56 and len(after) == 2 and not before & after


class Failing(Pixels):
    def features(self, images: torch.Tensor) -> torch.Tensor:
        if self.seen >= 30:
            raise RuntimeError("stop")
        return super().features(images)


def test_an_interrupted_run_goes_on(episodes: Episodes) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        fill(Failing(), episodes)
    encoder = Pixels()
    assert not FeatureCache(encoder, episodes, episodes.cameras).is_whole
    encoded = fill(encoder, episodes)
    assert encoder.seen == 56 - 28  # all of the first camera was done
    for camera in ("left", "right"):
        np.testing.assert_allclose(encoded.features[camera][np.arange(28)], expected(episodes, camera), atol=1e-6)


def test_several_processes_share_the_work(episodes: Episodes) -> None:
    encoders = [Pixels(), Pixels(), Pixels()]
    caches = [FeatureCache(encoder, episodes, episodes.cameras) for encoder in encoders]

    others = iter([(1, caches[1]), (2, caches[2])])

    def let_others_work() -> None:  # at the first meeting: all has begun
        for number, cache in others:
            cache.fill(contextlib.nullcontext, Workers(number, 3, prints=False))

    caches[0].fill(contextlib.nullcontext, Workers(0, 3, let_others_work))
    assert [encoder.seen for encoder in encoders] == [20, 20, 16]
    encoded = caches[0].opened()
    np.testing.assert_allclose(encoded.features["right"][np.arange(28)], expected(episodes, "right"), atol=1e-6)


def test_a_full_disk_is_told_before(episodes: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(episodes.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UserError, match="GB free"):
        fill(Pixels(), episodes)
    assert not list((episodes.path / ".bimact_cache").glob("features-*"))


# Augmented views -----------------------------------------------------------------------------------------


class Thumbnails(Pixels):
    """The images themselves, in large pixels: two changes of an image differ."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return torch.nn.functional.adaptive_avg_pool2d(images, (4, 6)).flatten(2).transpose(1, 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return 4, 6


STRONG = AugmentationConfig(translate=0.2, brightness=[0.5, 1.5], hue=[-0.3, 0.3], max_num_transforms=3)


def test_views_are_changes_that_depend_on_view_and_frame_alone(episodes: Episodes) -> None:
    encoded = fill(Thumbnails(), episodes, views=2, augmentation=STRONG)
    assert len(encoded.views) == 2
    clean, one, two = (its["left"][np.arange(28)] for its in (encoded.features, *encoded.views))
    assert np.array_equal(clean, fill(Thumbnails(), episodes).features["left"][np.arange(28)])
    for view in (one, two):
        assert (np.abs(view - clean).max(axis=(1, 2, 3)) > 0.01).mean() > 0.9
    assert (np.abs(one - two).max(axis=(1, 2, 3)) > 0.01).mean() > 0.9
    # One by one, with the numbers of its piece of ten frames.
    images = np.array(episodes.images["left"][np.arange(28)])
    for number in (0, 9, 10, 27):
        first = number // 10 * 10
        drawn = np.random.default_rng([1, zlib.crc32(b"left"), first]).random(
            (min(10, 28 - first), NUMBERS), np.float32
        )
        image = torch.from_numpy(images[number : number + 1].copy()).permute(0, 3, 1, 2)
        augment_images(image, torch.from_numpy(drawn[number - first : number - first + 1]), STRONG)
        expected_tokens = Thumbnails().trunk(image)[0].detach().numpy()
        np.testing.assert_allclose(one[number], expected_tokens, atol=1e-5)


def test_an_episode_has_one_change_where_the_history_has(episodes: Episodes) -> None:
    settings = AugmentationConfig(translate=0, brightness=[0.2, 0.6], contrast=None, saturation=None, hue=None)
    settings = dataclasses.replace(settings, sharpness=None, same_cameras=True)
    encoded = fill(Thumbnails(), episodes, views=1, augmentation=settings, by_episode=True)
    black = float(Thumbnails().trunk(torch.zeros(1, 3, 16, 24, dtype=torch.uint8)).mean())
    factors = {}
    for camera in ("left", "right"):
        clean, view = (its[camera][np.arange(28)].mean(axis=(1, 2, 3)) for its in (encoded.features, encoded.views[0]))
        factors[camera] = (view - black) / (clean - black)
    assert np.allclose(factors["left"], factors["right"], atol=0.02)
    parts = np.split(factors["left"], np.cumsum(episodes.lengths)[:-1])
    assert all(np.ptp(part) < 0.02 for part in parts)
    assert np.ptp([part.mean() for part in parts]) > 0.05


def test_more_views_encode_only_the_new_ones(episodes: Episodes) -> None:
    fill(Thumbnails(), episodes, views=1, augmentation=STRONG)
    encoder = Thumbnails()
    fill(encoder, episodes, views=3, augmentation=STRONG)
    assert encoder.seen == 2 * 2 * 28
    other = Thumbnails()
    fill(other, episodes, views=1, augmentation=dataclasses.replace(STRONG, erasing=0.5))
    assert other.seen == 2 * 28


def test_a_sample_has_the_tokens_of_its_view(episodes: Episodes) -> None:
    encoded = fill(Thumbnails(), episodes, views=2, augmentation=STRONG)
    dataset = WindowDataset(encoded, WindowIndex.over(encoded, np.arange(3), 2, 4))
    windows, views = [3, 3, 3, 11, 0], [0, 2, 1, 2, 0]
    obs, actions = dataset.__getitems__([window + view * 28 for window, view in zip(windows, views)])
    plain, same_actions = dataset.__getitems__(windows)
    assert torch.equal(actions, same_actions) and torch.equal(obs["state"], plain["state"])
    for number, (window, view) in enumerate(zip(windows, views)):
        source = (encoded.features, *encoded.views)[view]["right"]
        rows = dataset.index.observations(np.array([window]))[0]
        assert np.array_equal(obs["features_right"][number].numpy(), source[rows])
