"""A W&B server on this machine with what a run needs of it; it can be made to fail."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """Serves on `url` until `go_away`.

    Attributes:
        fails: "" or how each request fails from now on: "refuses" (401), "breaks" (500) or "hangs".
        requests: what was asked, in order: the first word after `query` or `mutation`, or the path.
        rows: the history of each run by its id.
        files: what was uploaded, by name; an artifact's under `artifact/`.
        aliases: of each artifact.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fails = ""
        self.requests: list[str] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, bytes] = {}
        self.aliases: list[set[str]] = []
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def go_away(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that a client has cut."""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data that answers a GraphQL query."""
        project = {"id": "1", "name": variables.get("project"), "entity": {"id": "2", "name": "someone"}}
        if "upsertBucket" in query:
            bucket = {"id": "3", "name": variables["name"], "displayName": variables["displayName"], "project": project}
            return {"upsertBucket": {"inserted": True, "bucket": {**bucket, "historyLineCount": 0, "config": "{}"}}}
        if "createRunFiles" in query:
            files = [{"name": name, **self._upload(name)} for name in variables["files"]]
            return {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": files}}
        if "rtifact" in query:
            return self._answer_of_artifacts(query, variables)
        if "RunResumeStatus" in query:
            return {"model": {**project, "bucket": self._resume_status(variables["name"])}}
        if "viewer" in query:
            return {"viewer": {"id": "4", "entity": "someone", "username": "someone", "flags": "{}"}}
        return {}

    def _answer_of_artifacts(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables.get("input", {})
        if "createArtifact(" in query:
            self.aliases.append({alias["alias"] for alias in given["aliases"]})
            sequence = {"artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": {"id": "5", "state": "PENDING", **sequence}}}
        if "createArtifactManifest(" in query:
            manifest = {"id": "6", "file": {"id": "7", **self._upload("manifest")}}
            return {"createArtifactManifest": {"artifactManifest": manifest}}
        if "createArtifactFiles(" in query:
            files = [
                {"storagePath": "", "artifact": {"id": "5"}, **self._upload(f"artifact/{file['name']}")}
                for file in given["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": file} for file in files]}}}
        if "commitArtifact(" in query:
            return {"commitArtifact": {"artifact": {"id": "5", "digest": "8"}}}
        return {"project": {"artifact": None}}  # no artifact of that name

    def _upload(self, name: str) -> dict[str, Any]:
        return {"uploadUrl": f"{self.url}/upload/{name}", "uploadHeaders": []}

    def _resume_status(self, run_id: str) -> dict[str, Any] | None:
        if run_id not in self.rows:
            return None
        rows = self.rows[run_id]
        tail = json.dumps([json.dumps(rows[-1])])
        counts = {"historyLineCount": len(rows), "logLineCount": 0, "eventsLineCount": 0}
        begun = json.dumps({"t": 1})  # only a run with it in its config is gone on with
        texts = {"summaryMetrics": "{}", "config": "{}", "wandbConfig": begun, "eventsTail": "[]", "historyTail": tail}
        return {"id": "3", "name": run_id, "displayName": run_id, "tags": [], **counts, **texts}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server, data = self.server, {}
        if self.path == "/graphql":
            request = json.loads(body)
            server.requests.append(request["query"].split()[1])
            data = server.answer(request["query"], request.get("variables") or {})
        else:
            server.requests.append(self.path)
            server.files[self.path.removeprefix("/upload/")] = body
        if server.fails == "hangs":
            server.released.wait()
        elif not server.fails and self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            server.rows.setdefault(self.path.split("/")[-2], []).extend(json.loads(line) for line in lines)
        answer = json.dumps({"data": data}).encode()
        self.send_response({"refuses": 401, "breaks": 500}.get(server.fails, 200))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""
