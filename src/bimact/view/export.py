"""One episode as an HTML file that needs no server."""

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
    """Write one episode as one HTML file that contains its videos.

    Args:
        path: the file.
        max_width: wider videos are scaled down to this width in pixels.

    Raises:
        UserError: the episode cannot be read.
    """
    embedded: dict[str, Any] = {
        "api/dataset": dataset_content(source, [episode]),
        f"api/episode/{episode}": episode_content(source, episode),
    }
    chosen = source.episodes[episode]
    with tempfile.TemporaryDirectory(prefix="bimact-view-") as folder:
        jobs = []
        for number, camera in enumerate(source.cameras):
            video, token = Path(folder) / f"{number}.mp4", Path(folder) / f"{number}.token"
            token.touch()
            jobs.append((source, episode, camera, video, shown_fps(source), token, max_width))
        timeout = clip_timeout(source, episode)
        with progress_bar(f"videos of {chosen.name}", len(jobs)) as progress:
            for number, _ in run_jobs(encode_clip, jobs, describe=_describe, timeout=timeout):
                progress.advance(note=jobs[number][2])
        for _, _, camera, video, *_ in jobs:
            # The characters that JavaScript's encodeURIComponent does not escape.
            name = quote(camera, safe="!~*'()")
            embedded[f"video/{episode}/{name}.mp4"] = base64.b64encode(video.read_bytes()).decode()
    write_text(path, render_page(source.path.name, embedded)[0])


def _describe(source: Source, episode: int, camera: str, *_: Any) -> str:
    return f"{source.path}, {source.episodes[episode].name}, camera {camera}"
