"""The page on all settings, `docs/configuration.md`, made from their schema.

`python -m bimact.config_reference` renews it, from the project's root.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bimact.config import keys, settings, type_hints
from bimact.files import write_text

PAGE = Path("docs/configuration.md")
COMMAND = "python -m bimact.config_reference"

# The key that each group begins with.
_GROUPS = {
    "dataset_dir": "Data",
    "chunk_size": "Policy",
    "encoder.name": "Image encoder",
    "action_mode": "States and actions",
    "augment": "Augmentation",
    "action_loss": "Loss and optimizer",
    "eval_task": "Rollouts in training",
    "checkpoint_frequency": "What a run writes",
    "execute_steps": "Acting",
}
_RECORDS = """\
## Recorded by a run

These keys are in a run's `config.yaml` and cannot be set:
"""
_HEADER = "| key | default | values | meaning | when to touch it |\n|---|---|---|---|---|"
_TYPES = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", Any: "see the meaning"}

_INTRODUCTION = f"""\
# Settings

<!-- Made from src/bimact/config.py by `{COMMAND}`: change the texts there. -->

A setting that is given in several places has the value of the last of them:

1. the **default** in the tables below;
2. the environment variable `ACT_DATASET_DIR`, for `dataset_dir` alone;
3. the **YAML file** that `--config` names (without it `configs/policy_act.yaml`, or when resuming the run's own
   `config.yaml`). It needs no more than the keys that differ from their defaults; the encoder's keys stand indented
   under `encoder:`, or as `encoder.name:`;
4. the **command line**: `--lr 5e-6` or `--lr=5e-6`, the encoder's as `--encoder.freeze false`. A bare `--use_vae` means
   true, lists are written with commas (`--cameras left,right`), and `null` stands for nothing. `bimact train --help`
   lists them.

**Text stays text.** A setting of type text, or list of text, has the value that is written; nothing makes a number or a
truth value of it, or a shorter path.

- On the **command line** all of it counts: `--wandb_name 007`, `--output_dir "runs/try #2"`, `--cameras 012345670123`
  (a serial number), `--wandb_name "${{x}}"`. `null`, and nothing else, stands for nothing.
- In **YAML** it needs no quotes (`wandb_name: 007`, `mixed_precision: no`, `state_dims: 0:14`) but where YAML asks for
  them: around text with ` #`, `: ` or brackets in it. `null`, `~` and an empty value without quotes stand for nothing.
  `${{...}}` is replaced by another key's value (`output_dir: runs/${{wandb_name}}`) or the environment's
  (`${{oc.env:HOME}}/data`); as text it is written `\\${{...}}`.
- A **list** is `a,b` or `[a,b]`, and in YAML a list or such a text. An item with a comma stands in double quotes
  (`"a,b",c`). `--cameras ""` is the list without an item: no camera.
- A `~` at the start of a **path** is the home folder.

`encoder.pretrained` is true, false or null where it is written so, and text otherwise. `OmegaConf.load`, which the
training guide uses for `R/config.yaml`, makes the number 7 of a `007` without quotes; a number in the place of text is
refused there. The files that bimact writes have such text in quotes.

A name that is no setting is refused with the nearest one that is (`no setting named 'chunksize'; did you mean
'chunk_size'?`), and so is a value out of its range. What a run used stands complete in its `config.yaml`. There are
three configs to begin with: `configs/policy_act.yaml`, `configs/policy_act_pri3d.yaml` and `configs/demo.yaml`.
"""


def configuration_page() -> str:
    """The page as Markdown: how settings are given, then a table of keys for each group."""
    hints = type_hints()
    lines = [_INTRODUCTION.rstrip()]
    for name, entry in settings().items():
        if name in _GROUPS:
            lines.append(f"\n## {_GROUPS[name]}\n\n{_HEADER}")
        lines.append(_row(name, hints[name], entry))
    lines.append(f"\n{_RECORDS}")
    for name, entry in keys().items():
        if entry.metadata["record"]:
            lines.append(f"- `{name}`: {entry.metadata['meaning']}")
    return "\n".join(lines) + "\n"


def _row(name: str, hint: Any, entry: dataclasses.Field[Any]) -> str:
    default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
    values, texts = _values(hint, entry.metadata), (entry.metadata["meaning"], entry.metadata["advice"] or "")
    return f"| `{name}` | `{_as_yaml(default)}` | {values} | {' | '.join(texts)} |"


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def _values(hint: Any, metadata: Mapping[str, Any]) -> str:
    """What a setting may be: its choices, or its type with its range; and null, if it may."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(option for option in options if option is not type(None))
    if metadata["choices"]:
        words = ", ".join(f"`{choice}`" for choice in metadata["choices"])
    elif typing.get_origin(kind) is list and typing.get_args(kind)[0] in _TYPES:
        words = f"list of {_TYPES[typing.get_args(kind)[0]]}s".replace("texts", "names")
    else:
        words = _TYPES.get(kind, "list of datasets")
    signs = (("low", "≥"), ("above", ">"), ("high", "≤"), ("below", "<"))
    limits = [f"{sign} {metadata[name]:g}" for name, sign in signs if metadata[name] is not None]
    return " ".join([words, " and ".join(limits)]).strip() + (" or `null`" if type(None) in options else "")


if __name__ == "__main__":
    if not PAGE.parent.is_dir():
        sys.exit(f"{PAGE} has no folder here: run `{COMMAND}` from the project's root")
    write_text(PAGE, configuration_page())
