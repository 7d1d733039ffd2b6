"""A server that speaks as much of the Hugging Face hub's interface as downloads and uploads of small files need."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretsecretsecret"


@dataclass
class Repository:
    """Its files, and whether only its owner may see it."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    messages: list[str] = field(default_factory=list)  # of the commits


def hub_environment(home: Path, endpoint: str, **more: str) -> dict[str, str]:
    """The environment of a process that takes the server for the hub, and `home` for huggingface_hub's folder."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
    }
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    return {**kept, **settings, **more}


class HubServer:
    """Serves the dataset "someone/cube", and whatever is uploaded with `TOKEN` to names that begin with "someone/".

    "someone/gated" wants a login; all other names are not there.

    Attributes:
        url: for HF_ENDPOINT.
        requests: method and path of all that came.
        repositories: (type, name) → what is there.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        requests: list[str] = []
        repositories = {("dataset", "someone/cube"): Repository(dict(files))}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                requests.append(f"{self.command} {path}")
                parts = path.strip("/").split("/")
                if parts[0] == "api":
                    self._api(parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:])
                    return
                kind = "dataset" if parts[0] == "datasets" else "model"
                name = parts[1:] if kind == "dataset" else parts
                found = repositories.get((kind, "/".join(name[:2])))
                if found is not None and name[2] == "resolve" and name[3] in (COMMIT, "main"):
                    self._file(found, "/".join(name[4:]))
                else:
                    self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

            do_HEAD = do_GET

            def do_POST(self) -> None:
                path = unquote(urlsplit(self.path).path)
                requests.append(f"POST {path}")
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self._answer(401, b"", {})
                    return
                parts = path.strip("/").split("/")[1:]  # without "api"
                if parts == ["repos", "create"]:
                    self._create(json.loads(body))
                    return
                if parts == ["validate-yaml"]:  # of a card
                    self._json({"errors": [], "warnings": []})
                    return
                found = repositories[parts[0].removesuffix("s"), "/".join(parts[1:3])]
                if parts[3] == "preupload":
                    asked = json.loads(body)["files"]
                    self._json(
                        {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
                    )
                else:
                    self._commit(found, [json.loads(line) for line in body.splitlines()])

            def _create(self, asked: dict[str, Any]) -> None:
                owner = asked.get("organization") or "someone"
                if owner != "someone":
                    self._answer(403, b'{"error": "you may not write there"}', {})
                    return
                private = asked.get("visibility", "public") == "private" or asked.get("private", False)
                name = f"{owner}/{asked['name']}"
                repositories[asked.get("type", "model"), name] = Repository(private=private)
                folder = "datasets/" if asked.get("type") == "dataset" else ""
                self._json({"url": f"http://{self.headers['Host']}/{folder}{name}", "name": name})

            def _commit(self, found: Repository, lines: list[dict[str, Any]]) -> None:
                for line in lines:
                    value = line["value"]
                    if line["key"] == "header":
                        found.messages.append(value["summary"])
                    elif line["key"] == "file":
                        found.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "deletedFile":
                        del found.files[value["path"]]
                self._json(
                    {
                        "commitUrl": f"http://{self.headers['Host']}/someone/x/commit/{COMMIT}",
                        "commitOid": COMMIT,
                        "commitMessage": "",
                    }
                )

            def _api(self, kind: str, name: str, rest: list[str]) -> None:
                found = repositories.get((kind, name))
                if name == "someone/gated":
                    self._answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"})
                elif found is None or (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
                    self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
                elif rest[:1] == ["revision"] and rest[1] not in ("main", "v1", COMMIT):
                    self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                elif not rest or rest[0] == "revision":
                    siblings = [{"rfilename": name} for name in found.files]
                    self._json({"id": name, "sha": COMMIT, "private": found.private, "siblings": siblings})
                else:
                    self._json(
                        [
                            {
                                "type": "file",
                                "path": name,
                                "size": len(content),
                                "oid": hashlib.sha1(content).hexdigest(),
                            }
                            for name, content in found.files.items()
                        ]
                    )

            def _json(self, content: object) -> None:
                self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

            def _file(self, found: Repository, name: str) -> None:
                if name not in found.files:
                    self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                    return
                content = found.files[name]
                tag = hashlib.sha1(content).hexdigest()
                self._answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "none"})

            def _answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.requests = requests
        self.repositories = repositories
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
