"""The page on all settings and the shipped configs agree with the schema and with the guide."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bimact.config import load_config, setting_names, settings
from bimact.config_reference import _GROUPS, COMMAND, PAGE, configuration_page
from bimact.errors import UserError

ROOT = Path(__file__).parents[1]
ENTRIES = settings()
# Every key that the guide shows, with the value that it gives first.
GUIDE: dict[str, Any] = {
    "chunk_size": 50,
    "temporal_context": 3,
    "hidden_dim": 512,
    "nheads": 8,
    "num_encoder_layers": 4,
    "num_decoder_layers": 7,
    "latent_dim": 32,
    "batch_size": 8,
    "lr": 1e-5,
    "num_epochs": 2000,
    "kl_weight": 10.0,
    "action_loss": "l1",
    "encoder.name": "clip_vit",
    "encoder.model_name": "ViT-B-32",
    "encoder.pretrained": "openai",
    "encoder.freeze": True,
    "encoder.fuse": "mean",
    "checkpoint_frequency": 10,
    "val_split": 0.1,
    "temporal_ensemble": False,  # it shows how to turn it on
    "ensemble_window": 10,
}


def _rows() -> dict[str, list[str]]:
    """The cells of each setting's row of the page, after its name."""
    lines = [line for line in configuration_page().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({row[0] for row in cells}) == len(cells)
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_page_is_up_to_date() -> None:
    current = (ROOT / PAGE).read_text() if (ROOT / PAGE).exists() else ""
    assert current == configuration_page(), f"{PAGE} is out of date: run `{COMMAND}` in {ROOT}"


def test_the_page_has_each_setting_once_and_nothing_is_left_blank() -> None:
    rows = _rows()
    assert list(rows) == setting_names()
    assert configuration_page().count("\n## ") == len(_GROUPS) + 1  # what runs record
    assert [name for name, cells in rows.items() if len(cells) != 4 or not all(cells)] == []


@pytest.mark.parametrize(
    ("name", "default", "values"),
    [
        ("lr", "`1e-5`", "number > 0"),
        ("val_split", "`0.1`", "number ≥ 0 and < 1"),
        ("num_workers", "`null`", "whole number ≥ 0 or `null`"),
        ("use_vae", "`true`", "`true`, `false`"),
        ("action_loss", "`l1`", "`l1`, `l2`"),
        ("cameras", "`null`", "list of names or `null`"),
        ("encoder.channels", "`[64, 128, 256]`", "list of whole numbers"),
        ("encoder.spatial", "`null`", "`true`, `false` or `null`"),
    ],
)
def test_defaults_and_values_on_the_page(name: str, default: str, values: str) -> None:
    assert _rows()[name][:2] == [default, values]


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.metadata["low"] is not None])
def test_a_value_below_the_least_one_on_the_page_is_refused(name: str) -> None:
    low = ENTRIES[name].metadata["low"]
    assert f"≥ {low:g}" in _rows()[name][1]
    with pytest.raises(UserError, match=f"setting '{name}' is -?[0-9.]+, it has to be at least {low:g}"):
        load_config(None, [f"{name}={low - 1}"])


def test_later_places_win(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("lr: 2.0e-5\nencoder:\n  fuse: gated\n")
    of_file = load_config(tmp_path / "mine.yaml")
    assert (of_file.lr, of_file.encoder.fuse, of_file.batch_size) == (2e-5, "gated", 8)
    of_line = load_config(tmp_path / "mine.yaml", ["lr=3e-5", "encoder.fuse=tokens"])
    assert (of_line.lr, of_line.encoder.fuse) == (3e-5, "tokens")


@pytest.mark.parametrize(("name", "value"), GUIDE.items())
def test_the_main_config_gives_the_guides_keys_their_values(name: str, value: Any) -> None:
    content = OmegaConf.load(ROOT / "configs" / "policy_act.yaml")
    assert OmegaConf.select(content, name, throw_on_missing=True) == value
    assert OmegaConf.select(OmegaConf.structured(load_config(ROOT / "configs" / "policy_act.yaml")), name) == value


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("policy_act*.yaml")), ids=lambda path: path.name)
def test_commented_out_keys_show_their_defaults(path: Path) -> None:
    shown = re.findall(r"^( *)# (\w+): (.+?)(?:  .*)?$", path.read_text(), re.MULTILINE)
    assert shown
    for indent, name, text in shown:
        default = ENTRIES["encoder." * bool(indent) + name].default
        if name == "model_name":
            assert text == "resnet18"  # what null stands for there
        else:
            assert OmegaConf.create(f"value: {text}").value == default, name


def test_the_pri3d_config_differs_in_the_encoder_alone() -> None:
    main, pri3d = (_content(f"policy_act{end}.yaml") for end in ("", "_pri3d"))
    assert pri3d.pop("encoder") == {"name": "pri3d", "pretrained": True, "freeze": False, "fuse": "mean"}
    main.pop("encoder")
    assert pri3d == main


def _content(name: str) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / name))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}
