"""One episode as a page that needs no server: to be sent to somebody, or kept."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bimact.data.source import Source
from bimact.data.workers import run_jobs
from bimact.files import write_text
from bimact.progress import progress_bar
from bimact.view.clips import clip_timeout, encode_clip
from bimact.view.content import dataset_content, episode_content, shown_fps
from bimact.view.page import render_page


def export_page(source: Source, episode: int, path: Path, max_width: int) -> None:
    """Write one episode as one HTML file: its videos are in it.

    Args:
        path: the file.
        max_width: wider videos are scaled down to so many pixels.

    Raises:
        UserError: the episode cannot be read.
    """
    embedded: dict[str, Any] = {
        "api/dataset": dataset_content(source, [episode]),
        f"api/episode/{episode}": episode_content(source, episode),
    }
    with tempfile.TemporaryDirectory(prefix="bimact-view-") as folder:
        for camera, video in _videos(source, episode, Path(folder), max_width).items():
            # The characters that JavaScript's encodeURIComponent leaves as they are.
            name = quote(camera, safe="!~*'()")
            embedded[f"video/{episode}/{name}.mp4"] = base64.b64encode(video.read_bytes()).decode()
    write_text(path, render_page(source.path.name, embedded)[0])


def _videos(source: Source, episode: int, folder: Path, max_width: int) -> dict[str, Path]:
    """Made at the same time; camera → file."""
    jobs = []
    for number, camera in enumerate(source.cameras):
        path, ticket = folder / f"{number}.mp4", folder / f"{number}.ticket"
        ticket.touch()
        jobs.append((source, episode, camera, path, shown_fps(source), ticket, max_width))
    timeout = clip_timeout(source, episode)
    with progress_bar(f"videos of {source.episodes[episode].name}", len(jobs)) as progress:
        for number, _ in run_jobs(encode_clip, jobs, describe=_describe, timeout=timeout):
            progress.advance(note=jobs[number][2])
    return {job[2]: job[3] for job in jobs}


def _describe(source: Source, episode: int, camera: str, *_: Any) -> str:
    return f"{source.path}, {source.episodes[episode].name}, camera {camera}"
