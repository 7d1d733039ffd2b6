"""Serves the page on a dataset to this machine's browsers, and to nobody else's."""

from __future__ import annotations

import errno
import json
import re
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from bimact.data.source import Source
from bimact.errors import UserError
from bimact.view.background import Background
from bimact.view.clip_store import ClipStore
from bimact.view.content import dataset_content, episode_content
from bimact.view.page import render_page

ADDRESS = "127.0.0.1"
_THIS_MACHINE = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # with any port: it may be forwarded by ssh
_BLOCK = 1 << 18


class ViewServer(ThreadingHTTPServer):
    """Answers from one dataset; `serve_forever` runs it.

    Only GET is answered, and only where the browser asks this machine by a name that is always its own: a stranger's
    page whose host name is made to point here (DNS rebinding) gets nothing.

    Args:
        source: the dataset.
        folder: an empty folder for videos.
        background: findings and distributions, as far as they are known.
        port: 0: a free one.

    Raises:
        UserError: the port is taken, or not allowed.
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
        """What a browser opens."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def server_close(self) -> None:
        super().server_close()
        if hasattr(self, "clips"):  # not if the port was taken
            self.clips.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up, as it does in mid-video, is no error."""
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
            return self._send_error(HTTPStatus.FORBIDDEN, "this page is served to 127.0.0.1 and localhost alone")
        path = self.path.partition("?")[0]
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match is not None:
                try:
                    return answer(self, *match.groups())
                except UserError as error:
                    return self._send_error(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        self._send_error(HTTPStatus.NOT_FOUND, "there is nothing of this name")

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""

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
            "Cross-Origin-Resource-Policy": "same-origin",  # no other site's page can show what is here
            "Referrer-Policy": "no-referrer",
        }
        for name, value in {**usual, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_file(self, file: BinaryIO, kind: str) -> None:
        """A whole file, or the part that the browser asks for: it seeks so."""
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
    """The part (begin, end) of a file that a Range header asks for, empty if there is no such part; None: all of it.

    One range of bytes is understood (RFC 9110, section 14.2); of several, the whole file is a right answer too.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    end = min(size, int(match[2]) + 1) if match[2] else size
    return min(int(match[1]), size), end
