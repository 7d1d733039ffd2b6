"""Serves the page on a dataset to the browsers of this machine only."""

from __future__ import annotations

import errno
import json
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote

import numpy as np

from bimact.data.source import Source
from bimact.errors import UserError
from bimact.progress import progress_bar
from bimact.view.clips import ClipStore
from bimact.view.content import dataset_content, episode_content
from bimact.view.distributions import Histogram, read_distributions
from bimact.view.page import render_page

if TYPE_CHECKING:
    from bimact.check.findings import Finding

ADDRESS = "127.0.0.1"
_THIS_MACHINE = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # with any port, which ssh may forward
_BLOCK = 1 << 18
_MOST_FINDINGS = 5000  # that are sent to the page, with the counts of all
_SECONDS_TO_END = 2.0


class Background:
    """Reads a whole dataset in a thread: first the distributions of its values, then the findings of `bimact check`.

    Args:
        source: the dataset.
        check: returns all findings; raises a `UserError` if the dataset cannot be checked.

    Attributes:
        distributions, findings: the answers for the page, replaced as a whole: the server's threads read them.
    """

    def __init__(self, source: Source, check: Callable[[], Sequence[Finding]]) -> None:
        self._source = source
        self._check = check
        lengths = {
            **Histogram.of(source.lengths, lowest_exponent=0).content(),
            "low": int(source.lengths.min()),
            "high": int(source.lengths.max()),
            "median": float(np.median(source.lengths)),
        }
        self.distributions: dict[str, Any] = {
            "state": "running",
            "done": 0,
            "of": len(source.episodes),
            "lengths": lengths,
        }
        self.findings: dict[str, Any] = {"state": "running"}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._is_wanted = True

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End as soon as possible; child processes that are being started finish starting first."""
        self._is_wanted = False
        self._thread.join(_SECONDS_TO_END)

    def _run(self) -> None:
        # One after the other: each uses all cores, and a terminal shows one progress bar.
        try:
            with progress_bar("reading state and action", len(self._source.episodes)) as progress:
                for done, found in read_distributions(self._source):
                    if not self._is_wanted:
                        return
                    progress.advance(done - self.distributions["done"])
                    joints = {what: [distribution.content() for distribution in of] for what, of in found.items()}
                    self.distributions = {**self.distributions, "done": done, "joints": joints}
            self.distributions = {**self.distributions, "state": "done"}
        except UserError as error:
            self.distributions = {**self.distributions, "state": "failed", "error": str(error)}
        if not self._is_wanted:
            return
        try:
            findings = self._check()
        except UserError as error:
            self.findings = {"state": "failed", "error": str(error)}
            return
        of_episodes: dict[int, Counter[str]] = {}
        for finding in findings:
            if finding.episode is not None:
                of_episodes.setdefault(finding.episode, Counter())[finding.severity.value] += 1
        self.findings = {
            "state": "done",
            "counts": Counter(finding.severity.value for finding in findings),
            "episodes": of_episodes,
            "findings": [finding.as_json() for finding in findings[:_MOST_FINDINGS]],
        }


class ViewServer(ThreadingHTTPServer):
    """Answers from one dataset; `serve_forever` runs it.

    Only GET is answered, and only under a host name that always means this machine: an untrusted page whose host name
    is made to resolve to it (DNS rebinding) gets nothing.

    Args:
        source: the dataset.
        folder: an empty one, for videos.
        background: findings and distributions so far.
        port: 0: a free one.

    Raises:
        UserError: the port is in use, or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, source: Source, folder: Path, background: Background, port: int = 0) -> None:
        try:
            super().__init__((ADDRESS, port), _Handler)
        except PermissionError:
            raise UserError(f"port {port} needs a system administrator's rights: choose another --port") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise UserError(f"port {port} is in use: choose another --port, or leave it out for a free one") from None
        self.source = source
        self.background = background
        self.clips = ClipStore(source, folder)

    @property
    def address(self) -> str:
        """URL of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def server_close(self) -> None:
        super().server_close()
        if hasattr(self, "clips"):  # not if the port was in use
            self.clips.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes the connection, as in the middle of a video, is not an error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, socket.timeout)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = "bimact"
    sys_version = ""
    timeout = 60  # seconds that a silent connection is kept

    def do_GET(self) -> None:
        if not _THIS_MACHINE.fullmatch(self.headers.get("Host", "")):
            return self._send_error(HTTPStatus.FORBIDDEN, "this page is served to 127.0.0.1 and localhost only")
        path = self.path.partition("?")[0]
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match is not None:
                try:
                    return answer(self, *match.groups())
                except UserError as error:
                    return self._send_error(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        self._send_error(HTTPStatus.NOT_FOUND, "not found")

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""

    # Answers ---------------------------------------------------------------------------------------

    def page(self) -> None:
        page, policy = render_page(self.server.source.path.name)
        policy += "; frame-ancestors 'none'"
        self._send(page.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def dataset(self) -> None:
        self._send_json(dataset_content(self.server.source))

    def episode(self, number: str) -> None:
        if self._has_episode(number):
            self._send_json(episode_content(self.server.source, int(number)))

    def clips(self, number: str) -> None:
        if self._has_episode(number):
            self._send_json(self.server.clips.progress(int(number)))

    def findings(self) -> None:
        self._send_json(self.server.background.findings)

    def distributions(self) -> None:
        self._send_json(self.server.background.distributions)

    def video(self, number: str, camera: str) -> None:
        camera = unquote(camera)
        if camera not in self.server.source.cameras:
            return self._send_error(HTTPStatus.NOT_FOUND, "there is no camera of this name")
        if self._has_episode(number):
            with self.server.clips.path(int(number), camera).open("rb") as file:
                self._send_file(file, "video/mp4")

    # Sending ---------------------------------------------------------------------------------------

    def _has_episode(self, number: str) -> bool:
        if int(number) < len(self.server.source.episodes):
            return True
        self._send_error(HTTPStatus.NOT_FOUND, f"there is no episode {number}")
        return False

    def _send_json(self, content: Any) -> None:
        self._send(json.dumps(content, allow_nan=False).encode(), "application/json")

    def _send_error(self, status: HTTPStatus, sentence: str) -> None:
        self._send(json.dumps({"error": sentence}).encode(), "application/json", status=status)

    def _send(
        self, body: bytes, kind: str, headers: dict[str, str] | None = None, status: HTTPStatus = HTTPStatus.OK
    ) -> None:
        self._begin(status, kind, len(body), headers or {})
        self.wfile.write(body)

    def _begin(self, status: HTTPStatus, kind: str, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        usual = {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",  # no other site's page can show the answers
            "Referrer-Policy": "no-referrer",
        }
        for name, value in {**usual, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_file(self, file: BinaryIO, kind: str) -> None:
        """A whole file, or the range that the browser asks for in order to seek."""
        size = file.seek(0, 2)
        asked = _asked_range(self.headers.get("Range", ""), size)
        begin, end = asked or (0, size)
        headers = {"Accept-Ranges": "bytes"}
        if begin >= end:
            headers["Content-Range"] = f"bytes */{size}"
            return self._begin(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, kind, 0, headers)
        status = HTTPStatus.OK
        if asked is not None:
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self._begin(status, kind, end - begin, headers)
        file.seek(begin)
        while begin < end and (block := file.read(min(_BLOCK, end - begin))):
            self.wfile.write(block)
            begin += len(block)


_ROUTES: tuple[tuple[str, Callable[..., None]], ...] = (
    (r"/", _Handler.page),
    (r"/api/dataset", _Handler.dataset),
    (r"/api/episode/(\d{1,9})", _Handler.episode),
    (r"/api/clips/(\d{1,9})", _Handler.clips),
    (r"/api/findings", _Handler.findings),
    (r"/api/distributions", _Handler.distributions),
    (r"/video/(\d{1,9})/([^/]+)\.mp4", _Handler.video),
)


def _asked_range(header: str, size: int) -> tuple[int, int] | None:
    """The range (begin, end) of a file in a Range header, empty if the file has no such range; None: all of it.

    One range of bytes is understood (RFC 9110, section 14.2); for several, the whole file is a valid answer.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    end = min(size, int(match[2]) + 1) if match[2] else size
    return min(int(match[1]), size), end
