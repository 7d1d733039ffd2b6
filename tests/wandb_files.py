"""Reads what a W&B run has written to disk: its `.wandb` file, which `wandb sync` uploads."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32768  # records are cut at the ends of blocks, as in LevelDB's log
_WHOLE, _LAST = 1, 4  # kinds of pieces that end a record


@dataclass
class WandbFile:
    """What is in the `.wandb` file of one folder `run-…` or `offline-run-…`."""

    folder: Path
    id: str = ""
    project: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    sweep: str = ""
    resumed: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the history; `_step` is W&B's step
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)  # metric or glob → metric on its horizontal axis
    artifacts: list[Any] = field(default_factory=list)  # ArtifactRecord
    system_metrics: set[str] = field(default_factory=set)
    printed: str = ""  # the copy of the terminal
    exit_code: int | None = None

    def values(self, name: str) -> dict[int, Any]:
        """A metric's value at each step where it was logged."""
        return {row["_step"]: row[name] for row in self.rows if name in row}


def read_wandb_files(run: Path) -> list[WandbFile]:
    """The W&B runs in a training run's folder, oldest first."""
    folders = sorted((run / "wandb").glob("*run-*-*"), key=lambda folder: (folder / "files").stat().st_ctime_ns)
    return [_read(folder) for folder in folders]


def _read(folder: Path) -> WandbFile:
    content = WandbFile(folder)
    (path,) = folder.glob("*.wandb")
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run" and record.run.run_id:
            run = record.run
            content.id, content.project, content.name, content.tags = (
                run.run_id,
                run.project,
                run.display_name,
                [*run.tags],
            )
            content.sweep, content.resumed = run.sweep_id, run.resume
            content.config.update({item.key: json.loads(item.value_json) for item in run.config.update})
        elif kind == "history":
            content.rows.append(_items(record.history.item))
        elif kind == "summary":
            content.summary.update(_items(record.summary.update))
        elif kind == "metric":
            content.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            content.artifacts.append(record.artifact)
        elif kind == "stats":
            content.system_metrics |= {item.key for item in record.stats.item}
        elif kind == "output_raw":
            content.printed += record.output_raw.line
        elif kind == "exit":
            content.exit_code = record.exit.exit_code
    return content


def _items(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(content: bytes) -> Iterator[Record]:
    assert content.startswith(b":W&B")
    position, pieces = 7, b""
    while position + 7 <= len(content):
        room = _BLOCK - position % _BLOCK
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        if room < 7 or kind == 0:  # the rest of the block is empty
            position += room
            continue
        pieces += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (_WHOLE, _LAST):
            yield Record.FromString(pieces)
            pieces = b""
