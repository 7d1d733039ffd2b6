"""The Parquet tables of a LeRobotDataset v3.0: steps, episodes, tasks.

Source: lerobot_dataset.py and utils.py of LeRobot; the metadata are those of Hugging Face `datasets` and of pandas.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bimact.data.formats.lerobot_meta import TASK

Features = Mapping[str, Mapping[str, Any]]  # of meta/info.json

_ROW_GROUP_BYTES = 64 << 20  # of images: maximum held in memory
_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def schema_of(features: Features) -> pa.Schema:
    """Of data/*.parquet: videos are elsewhere."""
    stored = {key: feature for key, feature in features.items() if feature["dtype"] != "video"}
    fields: list[pa.Field] = []
    described: dict[str, Any] = {}
    for key, feature in stored.items():
        value = {"dtype": feature["dtype"], "_type": "Value"}
        (size, *_) = feature["shape"]
        if feature["dtype"] == "image":
            fields.append(pa.field(key, _IMAGE))
            described[key] = {"_type": "Image"}
        elif size == 1:
            fields.append(pa.field(key, pa.from_numpy_dtype(np.dtype(feature["dtype"]))))
            described[key] = value
        else:
            fields.append(pa.field(key, pa.list_(pa.from_numpy_dtype(np.dtype(feature["dtype"])), size)))
            described[key] = {"feature": value, "length": size, "_type": "List"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def write_rows(
    path: Path, schema: pa.Schema, vectors: Mapping[str, np.ndarray], images: Mapping[str, Iterator[np.ndarray]]
) -> None:
    """Write one episode.

    Args:
        vectors: (T, D) of all columns but the images'.
        images: column → (H, W, 3) uint8 RGB or (H, W) uint16, one at a time. They become PNG files in the table, which
            are divided into row groups; without images an episode is one row group.
    """
    steps = len(next(iter(vectors.values())))
    with _writer(path, schema) as writer:
        if not images:
            writer.write_table(_table(schema, vectors, {}))
            return
        first, size = 0, 0
        encoded: dict[str, list[dict[str, Any]]] = {key: [] for key in images}
        for step in range(steps):
            for key, frames in images.items():
                content = png(next(frames))
                encoded[key].append({"bytes": content, "path": f"frame-{step:06d}.png"})
                size += len(content)
            if size >= _ROW_GROUP_BYTES or step + 1 == steps:
                rows = {key: values[first : step + 1] for key, values in vectors.items()}
                writer.write_table(_table(schema, rows, encoded))
                first, size, encoded = step + 1, 0, {key: [] for key in images}


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)  # LeRobot's level: fast, a little larger
    return file.getvalue()


def png_bytes(frames: Sequence[np.ndarray]) -> int:
    return sum(len(png(frame)) for frame in frames)


def join(parts: Iterable[Path], path: Path, schema: pa.Schema) -> None:
    """Concatenate tables, row group by row group, and remove their files."""
    with _writer(path, schema) as writer:
        for part in parts:
            with pq.ParquetFile(part) as opened:
                for number in range(opened.num_row_groups):
                    writer.write_table(opened.read_row_group(number))
            part.unlink()


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """The table that pandas reads as a column `task_index` with the index `task`."""
    columns = [
        {"name": name, "field_name": name, "pandas_type": pandas_type, "numpy_type": numpy_type, "metadata": None}
        for name, pandas_type, numpy_type in ((TASK, "int64", "int64"), ("task", "unicode", "object"))
    ]
    index = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    described = {
        "index_columns": ["task"],
        "column_indexes": [{**index, "metadata": {"encoding": "UTF-8"}}],
        "columns": columns,
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    table = pa.table({TASK: pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(described)}), path)


def write_episodes(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of episodes; arrays in it become nested lists."""
    values = {key: [row[key] for row in rows] for key in rows[0]}
    columns = {key: [v.tolist() if isinstance(v, np.ndarray) else v for v in of_key] for key, of_key in values.items()}
    pq.write_table(pa.table(columns), path, compression="snappy")


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=True)


def _table(
    schema: pa.Schema, vectors: Mapping[str, np.ndarray], images: Mapping[str, list[dict[str, Any]]]
) -> pa.Table:
    def column(field: pa.Field) -> pa.Array:
        if field.name in images:
            return pa.array(images[field.name], _IMAGE)
        values = pa.array(np.ascontiguousarray(vectors[field.name]).reshape(-1))
        is_vector = pa.types.is_fixed_size_list(field.type)
        return pa.FixedSizeListArray.from_arrays(values, type=field.type) if is_vector else values

    return pa.table([column(field) for field in schema], schema=schema)
