"""A record of what a robot did, as a dataset that `bimact view` and `bimact check` open.

The directory has the four files of the training guide's format; each run of the loop is an episode. Beside them,
`chunks/episode_N.npz` has what the policy predicted: `chunks` (K, H, A), `steps` (K,) of the observations, `latency_ms`
(K,) from observation to answer; and `fresh` (N,), false at steps at which the robot held its last action.
"""

from __future__ import annotations

import io
import json
import os
import queue
import threading
from pathlib import Path
from typing import Any, BinaryIO, Mapping, Sequence

import numpy as np

_FLUSH_STEPS = 50
_WAITING_STEPS = 100  # in memory; a disk that is slower ends the recording


class Recording:
    """One episode, written by a thread of its own, since a disk may be slow.

    Args:
        folder: new, or a recording of the same observations, to which an episode is added.
        fps: steps per second.
        action_names: of the actions.
        state_names: of the state.
        task: what the robot should do.

    Raises:
        ValueError: if the directory holds anything else.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        fps: float,
        action_names: Sequence[str],
        state_names: Sequence[str] | None = None,
        task: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        described = {"fps": fps, "joint_names": list(action_names), "state_names": state_names, "task": task}
        self._metadata = {name: value for name, value in described.items() if value is not None}
        self._lengths: list[int] = []
        files = [self.folder / name for name in ("observations.npy", "actions.npy", "rollout_length.npy")]
        self._observations, self._actions = (_Rows(path) for path in files[:2])
        self._has_episodes = any(path.exists() for path in files)
        if self._has_episodes:
            if not all(path.exists() for path in files) or not (self.folder / "metadata.json").exists():
                raise ValueError(f"{self.folder} is no complete recording: record into a new directory")
            before = json.loads((self.folder / "metadata.json").read_text())
            if {name: before.get(name) for name in described} != described:
                raise ValueError(
                    f"{self.folder} is a recording of another robot, rate or task: record into a new directory"
                )
            self._lengths = np.load(files[2]).tolist()
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty: record into a new directory")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.failure: str | None = None
        self._steps = 0
        self._fresh: list[bool] = []
        self._chunks: list[tuple[int, np.ndarray, float]] = []
        self._waiting: queue.Queue[tuple[Mapping[str, Any], np.ndarray] | None] = queue.Queue(_WAITING_STEPS)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def chunk(self, step: int, actions: np.ndarray, latency_ms: float) -> None:
        """Add a prediction (H, A) and the step of this episode at which it was observed."""
        self._chunks.append((step, actions, latency_ms))

    def step(self, obs: Mapping[str, Any], action: np.ndarray, fresh: bool) -> None:
        """Add a step: what was observed, and the action (A,) that was sent."""
        self._fresh.append(fresh)
        if self.failure is None:
            try:
                self._waiting.put_nowait((obs, np.array(action, np.float32)))
            except queue.Full:
                self.failure = (
                    f"{self.folder}: the disk is too slow, so the recording ends at step {len(self._fresh) - 1}"
                )

    def close(self) -> None:
        """Write what is left.

        Raises:
            ValueError: if the recording is not complete.
        """
        self._waiting.put(None)
        self._thread.join()
        if self._chunks and self._steps:
            (self.folder / "chunks").mkdir(exist_ok=True)
            longest = max(len(actions) for _, actions, _ in self._chunks)
            chunks = np.full((len(self._chunks), longest, self._chunks[0][1].shape[1]), np.nan, np.float32)
            for place, (_, actions, _) in enumerate(self._chunks):
                chunks[place, : len(actions)] = actions
            np.savez(
                self.folder / "chunks" / f"episode_{len(self._lengths)}.npz",
                steps=np.array([step for step, _, _ in self._chunks]),
                chunks=chunks,
                latency_ms=np.array([latency for _, _, latency in self._chunks]),
                fresh=np.array(self._fresh[: self._steps]),
            )
        if self.failure is not None:
            raise ValueError(self.failure)

    def _work(self) -> None:
        try:
            while True:
                item = self._waiting.get()
                if item is None:
                    break
                obs, action = item
                images = {name: value for name, value in obs.items() if name.startswith("image_")}
                fields = [(name, np.uint8, value.shape) for name, value in images.items()]
                record = np.zeros(1, np.dtype([*fields, ("state", np.float32, obs["state"].shape)]))
                for name in record.dtype.names or ():
                    record[0][name] = obs[name]
                if not self._steps:
                    for rows, row in ((self._observations, record), (self._actions, action[None])):
                        rows.open(row.dtype, row.shape[1:], sum(self._lengths))
                    _replace(self.folder / "metadata.json", json.dumps(self._metadata, indent=2).encode())
                self._observations.append(record)
                self._actions.append(action[None])
                self._steps += 1
                if self._steps % _FLUSH_STEPS == 0:
                    self._flush()
            if self._steps:
                self._flush()
        except Exception as error:
            self.failure = f"{self.folder}: the recording ends at step {self._steps} ({error})"
            while self._waiting.get() is not None:  # the loop's `close` waits for room
                pass
        finally:
            self._observations.close()
            self._actions.close()

    def _flush(self) -> None:
        """Make the files a dataset, as far as they go."""
        self._observations.flush()
        self._actions.flush()
        lengths = io.BytesIO()
        np.save(lengths, np.array([*self._lengths, self._steps], np.int64))
        _replace(self.folder / "rollout_length.npy", lengths.getvalue())


class _Rows:
    """Appends rows to a .npy file, whose header has room for any number of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def open(self, dtype: np.dtype[Any], shape: tuple[int, ...], rows: int) -> None:
        """Begin after the given number of rows of the file, which is created if it does not exist."""
        self._dtype, self._shape, self._rows = dtype, shape, rows
        if not self._path.exists():
            self._file = self._path.open("w+b")
            self._write_header()
            return
        self._file = self._path.open("r+b")
        there: np.ndarray = np.load(self._path, mmap_mode="r")
        if there.dtype != dtype or there.shape[1:] != shape or self._file.read(10)[6:8] != b"\x01\x00":
            raise ValueError(f"{self._path.name} has other observations or actions")
        if len(there) < rows:
            raise ValueError(f"{self._path.name} is cut off")
        self._file.seek(there.offset + rows * dtype.itemsize * int(np.prod(shape)))  # type: ignore[attr-defined]
        self._file.truncate()

    def append(self, row: np.ndarray) -> None:
        assert self._file is not None
        self._file.write(row.tobytes())
        self._rows += len(row)

    def _write_header(self) -> None:
        assert self._file is not None
        described = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._shape),
        }
        text = repr(described)
        # Room for numbers of 20 digits, to a multiple of 64 bytes as the format asks.
        room = 64 * -(-(10 + len(repr({**described, "shape": (10**19, *self._shape)})) + 1) // 64) - 10
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + text.ljust(room - 1).encode() + b"\n")

    def flush(self) -> None:
        assert self._file is not None
        self._write_header()
        self._file.seek(0, os.SEEK_END)
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _replace(path: Path, content: bytes) -> None:
    """A small file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
