"""A server that speaks as much of the Hugging Face hub's interface as `snapshot_download` of a dataset needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves one dataset, "someone/cube"; "someone/gated" wants a login, all others are not there.

    Attributes:
        url: for HF_ENDPOINT.
        requests: method and path of all that came.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        requests: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                requests.append(f"{self.command} {path}")
                parts = path.strip("/").split("/")
                if parts[0] == "api":
                    self._api(parts[2:4], parts[4:])
                elif "/".join(parts[1:3]) == "someone/cube" and parts[3:5] == ["resolve", COMMIT]:
                    self._file("/".join(parts[5:]))
                else:
                    self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

            do_HEAD = do_GET

            def _api(self, name: list[str], rest: list[str]) -> None:
                if name == ["someone", "gated"]:
                    self._answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"})
                elif name != ["someone", "cube"]:
                    self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
                elif rest[0] == "revision" and rest[1] not in ("main", "v1", COMMIT):
                    self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                elif rest[0] == "revision":
                    self._json(
                        {"id": "someone/cube", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                    )
                else:
                    self._json(
                        [
                            {
                                "type": "file",
                                "path": name,
                                "size": len(content),
                                "oid": hashlib.sha1(content).hexdigest(),
                            }
                            for name, content in files.items()
                        ]
                    )

            def _json(self, content: object) -> None:
                self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

            def _file(self, name: str) -> None:
                if name not in files:
                    self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                    return
                tag = hashlib.sha1(files[name]).hexdigest()
                self._answer(200, files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "none"})

            def _answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.requests = requests
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
