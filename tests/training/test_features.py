"""Training on cached tokens of a frozen encoder: the same losses, less work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from guide_files import write_dataset

from bimact.config import Config, load_config
from bimact.encoder.conv import ConvEncoder
from bimact.errors import UserError
from bimact.run_directory import read_metrics
from bimact.training.act_trainer import ActTrainer, train_run
from bimact.training.prepare import prepare_run

FROZEN = {"freeze": True}


def config_of(dataset: Path, run: Path, **changes: Any) -> Config:
    return tiny_config(dataset_dir=str(dataset), output_dir=str(run), encoder=FROZEN, mixed_precision="no", **changes)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the encoder sees at each call."""
    calls: list[int] = []
    original = ConvEncoder.features

    def features(self: ConvEncoder, images: torch.Tensor) -> torch.Tensor:
        if images.device.type != "meta":
            calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(ConvEncoder, "features", features)
    return calls


def losses(run: Path) -> list[dict[str, float]]:
    wanted = ("total_loss", "action_loss", "kl_loss", "val_loss")
    return [{name: record[name] for name in wanted if name in record} for record in read_metrics(run / "metrics.jsonl")]


@pytest.mark.parametrize("fuse", ["tokens", "mean"])
def test_losses_are_those_without_the_cache(dataset: Path, tmp_path: Path, seen: list[int], fuse: str) -> None:
    for name, cached in (("cached", None), ("anew", False)):
        config = config_of(dataset, tmp_path / name, feature_cache=cached)
        config.encoder.fuse = fuse
        train_run(prepare_run(config))
        if cached is None:
            assert sum(seen) == 2 * 38  # each image of both cameras once, in two epochs with validation
    assert sum(seen) > 300
    with_cache, without = losses(tmp_path / "cached"), losses(tmp_path / "anew")
    assert len(with_cache) == len(without) > 5
    for one, other in zip(with_cache, without):
        assert one == pytest.approx(other, rel=1e-5)
    weights = [torch.load(tmp_path / name / "checkpoint/act-train-last.pth") for name in ("cached", "anew")]
    assert weights[0].keys() == weights[1].keys()


def test_a_short_training_encodes_only_what_it_sees(dataset: Path, tmp_path: Path, seen: list[int]) -> None:
    train_run(prepare_run(config_of(dataset, tmp_path / "run", num_steps=2, val_split=0.0)))
    assert not list(dataset.glob(".bimact_cache/features-*"))
    assert load_config(tmp_path / "run" / "config.yaml").feature_cache is False


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_it_began(dataset: Path, tmp_path: Path, seen: list[int]) -> None:
    train_run(
        prepare_run(config_of(dataset, tmp_path / "short", num_steps=8, batch_size=1, num_epochs=1, val_split=0.0))
    )
    train_run(prepare_run(config_of(dataset, tmp_path / "long")))
    assert load_config(tmp_path / "long" / "config.yaml").feature_cache is True
    seen.clear()
    train_run(prepare_run(config_of(dataset, tmp_path / "long", num_epochs=3), tmp_path / "long"))
    assert not seen
    short = config_of(dataset, tmp_path / "short", num_steps=100, batch_size=1, num_epochs=1, val_split=0.0)
    train_run(prepare_run(short, tmp_path / "short"))
    assert seen


def test_resumed_with_weights_that_only_the_checkpoint_has(dataset: Path, tmp_path: Path) -> None:
    """The tokens are those of the encoder in the checkpoint, not of one with first weights."""
    config = config_of(dataset, tmp_path / "run")
    train_run(prepare_run(config))
    weights = tmp_path / "run/checkpoint/act-train-last.pth"
    state = {name: 2 * x if name.startswith("image_encoder.") else x for name, x in torch.load(weights).items()}
    (tmp_path / "alone").mkdir()
    torch.save(state, tmp_path / "alone" / "weights.pth")
    trainer = ActTrainer(prepare_run(config_of(dataset, tmp_path / "next"), tmp_path / "alone" / "weights.pth"))
    rows = np.arange(4)
    images = torch.from_numpy(np.array(trainer.data.episodes.images["left"][rows])).permute(0, 3, 1, 2)
    tokens = trainer.unwrapped_policy.image_encoder(images)
    cached = torch.from_numpy(trainer.data.episodes.features["left"][rows]).flatten(1, 2)
    torch.testing.assert_close(cached, tokens)


def test_an_encoder_that_learns_cannot_be_cached(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", [9, 12])
    config = tiny_config(dataset_dir=str(dataset), output_dir=str(tmp_path / "run"), feature_cache=True)
    with pytest.raises(UserError, match="feature_cache: true needs encoder.freeze: true"):
        ActTrainer(prepare_run(config))


@pytest.mark.slow
def test_the_largest_batch_is_found_with_tokens(dataset: Path, tmp_path: Path, seen: list[int]) -> None:
    trainer = ActTrainer(prepare_run(config_of(dataset, tmp_path / "run", auto_batch_size=True)))
    assert sum(seen) == 2 * 38 and trainer.config.batch_size >= 4


# Augmented views -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_augmented_views_are_encoded_once_and_a_run_resumes_exactly(
    dataset: Path, tmp_path: Path, seen: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Three epochs at once, and one epoch followed by two in a run that is resumed: the same losses."""
    changes: dict[str, Any] = {"augment": True, "feature_views": 2, "feature_cache": True, "num_epochs": 3}
    train_run(prepare_run(config_of(dataset, tmp_path / "whole", **changes)))
    assert sum(seen) == 2 * 38 * 3  # both cameras, each image and two views of it
    assert "2 augmented views of each image are encoded once" in capsys.readouterr().out
    train_run(prepare_run(config_of(dataset, tmp_path / "parts", **{**changes, "num_epochs": 1})))
    resumed = config_of(dataset, tmp_path / "parts", **changes)
    train_run(prepare_run(resumed, resume_from=tmp_path / "parts"))
    assert sum(seen) == 2 * 38 * 3
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    train_run(prepare_run(config_of(dataset, tmp_path / "plain", num_epochs=3)))
    assert losses(tmp_path / "plain") != losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"augment": True}, "at each step instead of once: augmented images differ each time; --feature_views 4"),
        ({"augment": True, "feature_views": 64}, "fewer images than 64 views of each have to be encoded"),
        ({"feature_views": 2}, "feature_views: 2 does nothing without augment: true"),
        ({"augment": True, "feature_views": 2, "encoder": {"freeze": False}}, "the encoder is trained"),
    ],
)
def test_a_line_says_why_images_are_encoded_at_each_step(
    changes: dict[str, Any], line: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(
        **{"dataset_dir": str(dataset), "output_dir": str(tmp_path / "run"), "encoder": FROZEN} | changes
    )
    prepare_run(config)
    assert line in capsys.readouterr().out
