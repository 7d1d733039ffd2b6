"""Generates the page on all settings, `docs/configuration.md`, from their schema.

To update it, run `python -m bimact.config_reference` in the project's root.
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

# The first key of each group.
_GROUPS = {
    "dataset_dir": "Data",
    "chunk_size": "Policy",
    "encoder.name": "Image encoder",
    "task_conditioning": "Several tasks",
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
_TYPES = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", Any: "see meaning"}

_INTRODUCTION = f"""\
# Settings

<!-- Generated from src/bimact/config.py by `{COMMAND}`: edit the texts there. -->

If a setting is given in several places, the last one counts:

1. the **default** in the tables below;
2. the environment variable `ACT_DATASET_DIR`, for `dataset_dir` only;
3. the **YAML file** given by `--config` (default: `configs/policy_act.yaml`, or when resuming the run's own
   `config.yaml`). It only needs the keys that differ from their defaults; the encoder's keys are indented under
   `encoder:`, or written as `encoder.name:`;
4. the **command line**: `--lr 5e-6` or `--lr=5e-6`, the encoder's keys as `--encoder.freeze false`. A bare `--use_vae`
   means true, lists are comma-separated (`--cameras left,right`), and `null` means no value. `bimact train --help`
   lists all settings.

**Text remains text.** The value of a setting of type text, or list of text, is exactly what is written; it is never
converted to a number or boolean.

- On the **command line** it is taken literally: `--wandb_name 007`, `--output_dir "runs/try #2"`,
  `--cameras 012345670123` (a serial number), `--wandb_name "${{x}}"`. Only `null` means no value.
- In **YAML** it needs no quotes (`wandb_name: 007`, `mixed_precision: no`, `state_dims: 0:14`), except where YAML
  requires them: around text that contains ` #`, `: ` or brackets. Unquoted `null`, `~` and an empty value mean no
  value. `${{...}}` is replaced by the value of another key (`output_dir: runs/${{wandb_name}}`) or of an environment
  variable (`${{oc.env:HOME}}/data`); a literal one is written `\\${{...}}`.
- A **list** is `a,b` or `[a,b]`; in YAML it may also be a list. An item that contains a comma is written in double
  quotes (`"a,b",c`). `--cameras ""` is the empty list: no camera.
- A leading `~` in a **path** is the home directory.

`encoder.pretrained` is true, false or null if written so, and text otherwise. `OmegaConf.load`, which the training
guide uses for `R/config.yaml`, converts an unquoted `007` to the number 7, which is refused as the value of a text
setting. The files written by bimact quote such text.

An unknown name is refused with the nearest setting (`no setting named 'chunksize'; did you mean 'chunk_size'?`), and so
is a value out of range. The complete settings of a run are in its `config.yaml`. Three configs are provided:
`configs/policy_act.yaml`, `configs/policy_act_pri3d.yaml` and `configs/demo.yaml`.
"""


def configuration_page() -> str:
    """The page in Markdown: how to give settings, then a table of keys per group."""
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
    """The allowed values of a setting: its choices, or its type with its range; and null, if allowed."""
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
        sys.exit(f"{PAGE} has no directory here: run `{COMMAND}` from the project's root")
    write_text(PAGE, configuration_page())
