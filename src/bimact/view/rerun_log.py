"""An episode for the Rerun viewer, https://rerun.io (the extra `rerun`)."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bimact.data.source import Source
from bimact.data.workers import run_apart, run_jobs
from bimact.errors import UserError
from bimact.progress import progress_bar
from bimact.view.content import joints_of, read_vectors, shown_fps

if TYPE_CHECKING:
    import rerun

_STEPS_PER_JOB = 100
_SECONDS_PER_JOB = 600.0
_JPEG_QUALITY = 90  # images as JPEG: the viewer shows H.264 only where ffmpeg is installed
_COLORS = {"state": (29, 95, 194), "action": (184, 89, 11)}


def save_rerun(source: Source, episode: int, path: Path) -> None:
    """Write one episode as a Rerun recording: cameras, state and action over steps and seconds.

    Args:
        path: the .rrd file; it appears when it is complete.

    Raises:
        UserError: rerun-sdk is not installed, or the episode cannot be read.
    """
    try:
        import rerun
    except ImportError:
        raise UserError("--rerun needs the package rerun-sdk: pip install 'bimact[rerun]'") from None
    name = source.episodes[episode].name
    stream = rerun.RecordingStream(f"bimact view {source.path.name}", recording_id=f"{source.path} {name}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        stream.save(partial, default_blueprint=_blueprint(rerun, source))
        stream.send_recording_name(name)
        if task := source.episodes[episode].task:
            stream.log("task", rerun.TextDocument(task), static=True)
        _log_joints(rerun, stream, source, episode)
        _log_cameras(rerun, stream, source, episode)
        stream.flush()
        stream.disconnect()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def show_in_rerun(source: Source, episode: int) -> None:
    """Open one episode in the Rerun viewer; returns when the viewer is closed.

    Raises:
        UserError: as `save_rerun`; or the viewer cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="bimact-view-") as folder:
        path = Path(folder) / "episode.rrd"
        save_rerun(source, episode, path)
        # By default its server listens on all network interfaces.
        ended = subprocess.run([sys.executable, "-m", "rerun", str(path), "--bind", "127.0.0.1"])
    if ended.returncode:
        raise UserError(
            f"the Rerun viewer ended with status {ended.returncode}: it needs a display; "
            "`--rerun FILE.rrd` saves a file for another machine"
        )


def _log_joints(rerun: Any, stream: rerun.RecordingStream, source: Source, episode: int) -> None:
    what = f"{source.path}, {source.episodes[episode].name}"
    state, action = run_apart(read_vectors, source, episode, what=what)
    times = _times(rerun, source, 0, len(state))
    for joint in joints_of(source):
        for kind, dimension, values in (("state", joint.state, state), ("action", joint.action, action)):
            if dimension is not None:
                entity = rerun.new_entity_path(["joints", joint.name, kind])
                line = rerun.SeriesLines(colors=[_COLORS[kind]], names=[kind])
                stream.log(entity, line, static=True)
                scalars = rerun.Scalars.columns(scalars=values[:, dimension])
                stream.send_columns(entity, times, scalars)


def _log_cameras(rerun: Any, stream: rerun.RecordingStream, source: Source, episode: int) -> None:
    length = source.episodes[episode].length
    jobs = [
        (source, episode, camera, begin, min(begin + _STEPS_PER_JOB, length))
        for camera in source.cameras
        for begin in range(0, length, _STEPS_PER_JOB)
    ]
    with progress_bar("images", length * len(source.cameras)) as progress:
        for number, images in run_jobs(_jpegs, jobs, describe=_describe, timeout=_SECONDS_PER_JOB):
            _, _, camera, begin, end = jobs[number]
            columns = rerun.EncodedImage.columns(blob=images, media_type=["image/jpeg"] * len(images))
            stream.send_columns(rerun.new_entity_path(["cameras", camera]), _times(rerun, source, begin, end), columns)
            progress.advance(end - begin)


def _times(rerun: Any, source: Source, begin: int, end: int) -> list[Any]:
    steps = np.arange(begin, end)
    return [rerun.TimeColumn("step", sequence=steps), rerun.TimeColumn("time", duration=steps / shown_fps(source))]


def _jpegs(source: Source, episode: int, camera: str, begin: int, end: int) -> list[bytes]:
    encoded = []
    for image in islice(source.read_frames(episode, camera, range(begin, end)), end - begin):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=_JPEG_QUALITY)
        encoded.append(file.getvalue())
    return encoded


def _describe(source: Source, episode: int, camera: str, begin: int, end: int) -> str:
    return f"{source.path}, {source.episodes[episode].name}, camera {camera}, steps {begin} to {end - 1}"


def _blueprint(rerun: Any, source: Source) -> Any:
    """Cameras above, a plot for each joint below."""
    from rerun import blueprint

    cameras = [
        blueprint.Spatial2DView(origin=rerun.new_entity_path(["cameras", name]), name=name) for name in source.cameras
    ]
    plots = [
        blueprint.TimeSeriesView(origin=rerun.new_entity_path(["joints", joint.name]), name=joint.name)
        for joint in joints_of(source)
    ]
    rows: list[Any] = [blueprint.Horizontal(*cameras)] if cameras else []
    rows += [blueprint.Grid(*plots)] if plots else []
    return blueprint.Blueprint(blueprint.Vertical(*rows), collapse_panels=True)
