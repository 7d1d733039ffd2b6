"""A policy server of openpi's protocol as a process of its own: `python fake_server.py PORT [NAME=VALUE …]`.

Its chunk is the observed state, ten times. `delay` seconds per answer; `key`; `run` in its metadata; `nan_at`: number
of the request whose answer holds NaN; `error_at`: that of one which it refuses.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from http import HTTPStatus
from typing import Any

import numpy as np
from fakes import metadata
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from bimact_client.wire import pack, unpack


def main(port: int, delay: float = 0.0, key: str = "", run: str = "cube", nan_at: int = -1, error_at: int = -1) -> None:
    requests = itertools.count()

    def authorize(connection: ServerConnection, request: Any) -> Any:
        if key and request.headers.get("Authorization") != f"Api-Key {key}":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong key\n")
        return None

    def handle(connection: ServerConnection) -> None:
        connection.send(pack(metadata(run=run)))
        seen = []
        try:
            for message in connection:
                obs: Any = unpack(message)  # type: ignore[arg-type]
                number = next(requests)
                seen.append(bool(obs.get("reset")))
                if number == error_at:
                    connection.send("the observation has no 'image_wrist'")
                    connection.close(1011)
                    return
                time.sleep(delay)
                actions = np.tile(obs["state"], (10, 1)).astype(np.float32)
                if number == nan_at:
                    actions[5] = np.nan
                connection.send(pack({"actions": actions, "resets": seen, "server_timing": {"infer_ms": 1000 * delay}}))
        except ConnectionClosed:
            pass

    with serve(handle, "127.0.0.1", port, process_request=authorize, compression=None, max_size=2**26) as server:
        print(server.socket.getsockname()[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[2:])
    texts = {name: given.pop(name) for name in ("key", "run") if name in given}
    main(int(sys.argv[1]), **texts, **{name: json.loads(value) for name, value in given.items()})
