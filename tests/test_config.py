"""The schema: types, ranges, neighbours, the guide's spellings, files that read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bimact.config import Config, load_config, save_config, setting_names, to_config
from bimact.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    "path", sorted(set(CONFIGS.glob("*.yaml")) - {CONFIGS / "sweep.yaml"}), ids=lambda path: path.name
)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_overrides_win_and_take_the_guides_spellings() -> None:
    config = load_config(
        None,
        ["lr=5e-6", "encoder.freeze=false", "wandb_tags=clip,baseline,rtx5090", "encoder.pretrained=null"],
    )
    assert config.lr == 5e-6
    assert config.encoder.freeze is False
    assert config.wandb_tags == ["clip", "baseline", "rtx5090"]
    assert config.encoder.pretrained is None


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lr: 1e-6\n")
    assert load_config(tmp_path / "c.yaml").lr == 1e-6


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("learning_rat=1", "no setting named 'learning_rat'"),
        ("chunksize=1", "did you mean 'chunk_size'"),
        ("encoder.frezee=true", "did you mean 'encoder.freeze'"),
        ("batch_size=many", "setting 'batch_size'"),
        ("batch_size=0", "at least 1"),
        ("val_split=1", "less than 1"),
        ("lr=0", "more than 0"),
        ("action_loss=l3", "l1 or l2"),
        ("encoder.fuse=sum", "mean or concat_mlp or gated or tokens"),
        ("nheads=7", "multiple of nheads"),
        ("execute_steps=51", "cannot be more than chunk_size"),
        ("encoder.crop=0.5,0,0.6,1", "encoder.crop"),
        ("encoder.image_size=224", "encoder.image_size"),
        ("image_size=0,3", "image_size is"),
        ("encoder.image_mean=0.5", "encoder.image_mean is"),
        ("encoder.image_mean=0,0,.inf", "encoder.image_mean is"),
        ("encoder.image_std=1,1,0", "more than 0"),
        ("cameras=[a", "cannot read"),
    ],
)
def test_faults_are_named(setting: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config(None, [setting])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config file not found"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="no readable YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="no `key: value` lines"):
        load_config(tmp_path / "list.yaml")


def test_saved_config_reads_back(tmp_path: Path) -> None:
    config = to_config({"lr": 3e-4, "encoder": {"name": "conv", "crop": [0, 0, 0.5, 1]}, "wandb_tags": ["a"]})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    loaded = OmegaConf.load(tmp_path / "config.yaml")
    assert loaded.encoder.name == "conv" and loaded.chunk_size == config.chunk_size


def test_every_setting_has_a_meaning() -> None:
    import dataclasses

    from bimact.config import EncoderConfig

    for schema in (Config, EncoderConfig):
        for entry in dataclasses.fields(schema):
            assert entry.name == "encoder" or entry.metadata["meaning"]
    assert "encoder.freeze" in setting_names() and "lr" in setting_names()


@pytest.mark.parametrize("spelling", ["no", "'no'", '"no"', "false"])
def test_no_precision_in_all_spellings(spelling: str, tmp_path: Path) -> None:
    """YAML 1.1 reads a bare `no` as false."""
    (tmp_path / "config.yaml").write_text(f"mixed_precision: {spelling}\n")
    assert load_config(tmp_path / "config.yaml").mixed_precision == "no"
    assert load_config(None, [f"mixed_precision={spelling}"]).mixed_precision == "no"


def test_two_ways_of_acting_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"execute_steps \(5\) has no meaning"):
        load_config(None, ["temporal_ensemble=true", "execute_steps=5"])
