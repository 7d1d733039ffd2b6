"""The connection to a policy server: one observation out, one chunk of actions back."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Mapping, Sequence

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect
from websockets.version import version as websockets_version

from bimact_client.wire import keep_freed_blocks, pack, unpack

PROTOCOL_VERSION = 1
# What has to be the same after the server was started again, or the robot would change its policy as it moves.
_POLICY = ("run", "checkpoint", "weights_sha256", "action_names", "state_names", "cameras", "chunk_size")
_REFUSALS = (1002, 1003, 1007, 1008, 1009, 1011)  # codes of a server that would refuse the same again
_OPTIONS: dict[str, Any] = {"compression": None, "max_size": None, "close_timeout": 1}
if int(websockets_version.split(".")[0]) >= 15:
    _OPTIONS["proxy"] = None  # a robot's server is in its own network


class ServerError(Exception):
    """What went wrong between robot and server, in one sentence: the server refused, or failed."""


class ServerUnreachable(ServerError, ConnectionError):
    """No server, or the connection broke; the next call connects again."""


class ServerTimeout(ServerUnreachable, TimeoutError):
    """No answer in time."""


class PolicyClient:
    """A policy on a server: `bimact serve`, or any other of openpi's protocol.

    It connects at once, and again when the connection is lost, with back-off. Several threads take turns.

    Args:
        host: name or address; what begins with `ws://` or `wss://` is a whole address.
        port: of the server.
        api_key: of the server; None: the variable BIMACT_API_KEY, or none.
        timeout: seconds until a connection, or an answer, is given up.
        ssl_context: for `wss://` with a certificate of your own; None: the system's certificates.

    Raises:
        ServerUnreachable: if there is no server within `timeout`.
        ServerError: if it wants another key, or speaks another protocol.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        timeout: float = 5.0,
        ssl_context: Any = None,
    ) -> None:
        name = f"[{host}]" if ":" in host else host
        self.uri = host if host.startswith(("ws://", "wss://")) else f"ws://{name}:{port}"
        self.timeout = timeout
        self._options = dict(_OPTIONS, **({} if ssl_context is None else {"ssl": ssl_context}))
        api_key = os.environ.get("BIMACT_API_KEY") if api_key is None else api_key
        if api_key:
            self._options["additional_headers"] = {"Authorization": f"Api-Key {api_key}"}
        self._connection: ClientConnection | None = None
        self._metadata: dict[str, Any] | None = None
        self._reset = True
        self._lock = threading.RLock()
        keep_freed_blocks()
        self.connect()

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server says of its policy (docs/deployment.md lists it)."""
        return dict(self._metadata or {})

    @property
    def connected(self) -> bool:
        """Whether the last call left a connection."""
        return self._connection is not None

    def connect(self) -> None:
        """Connect if there is no connection, with back-off until `timeout`.

        Raises:
            ServerUnreachable: if there is no server by then.
            ServerError: if it wants another key, speaks another protocol, or has another policy than before.
        """
        deadline = time.monotonic() + self.timeout
        pause = 0.05
        while not self.connected:
            try:
                self._connect(deadline)
            except (OSError, EOFError, InvalidHandshake, ConnectionClosed) as error:
                self._disconnect()
                if isinstance(error, InvalidStatus) and error.response.status_code in (401, 403):
                    raise ServerError(f"the policy server {self.uri} wants another API key") from error
                pause = min(2 * pause, 2.0)
                wait = pause * random.uniform(0.5, 1.0)
                if time.monotonic() + wait >= deadline:
                    what = f"({error or type(error).__name__})"
                    raise ServerUnreachable(
                        f"no policy server at {self.uri} within {self.timeout:g} s {what}"
                    ) from error
                time.sleep(wait)
            except BaseException:
                self._disconnect()
                raise

    def _connect(self, deadline: float) -> None:
        try:
            opening = connect(self.uri, open_timeout=max(deadline - time.monotonic(), 0.01), **self._options)
            self._connection = opening.__enter__()  # closed by `_disconnect`
        except InvalidURI as error:
            raise ServerError(f"{self.uri} is no address of a policy server") from error
        frame = self._connection.recv(timeout=max(deadline - time.monotonic(), 0.01))
        metadata = self._unpacked(frame)
        version = metadata.get("protocol_version", PROTOCOL_VERSION)
        if version != PROTOCOL_VERSION:
            raise ServerError(
                f"the server {self.uri} speaks version {version} of the protocol, this client {PROTOCOL_VERSION}: "
                "install the bimact-client of the server's bimact"
            )
        changed = [name for name in _POLICY if self._metadata and metadata.get(name) != self._metadata.get(name)]
        if changed:
            raise ServerError(
                f"the server {self.uri} has another policy than before ({', '.join(changed)} changed): "
                "make a new PolicyClient"
            )
        self._metadata = metadata

    def reset(self) -> None:
        """Begin a new episode: the next observation tells the server to forget those before."""
        self._reset = True

    def infer(self, obs: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """Ask for the next actions.

        Args:
            obs: `state` (S,) and `image_<camera>` (H, W, 3) uint8 for each camera in `metadata`.
            earlier: observations of the steps since the last call, oldest first, for a policy whose `temporal_context`
                T is above 1; those of the last T - 1 steps are enough. Only `bimact serve` takes them.

        Returns:
            the server's reply: `actions` (H, A) in the robot's units, `server_timing` in milliseconds, …

        Raises:
            ServerTimeout: if no answer came within `timeout`.
            ServerUnreachable: if the connection broke. The observation is not sent again, since it is old by then: call
                again with a new one.
            ServerError: the server's own sentence, such as of a camera that is missing.
        """
        with self._lock:
            self.connect()
            connection = self._connection
            assert connection is not None
            is_first, self._reset = self._reset, False
            requests = [*({**observation, "observe": True} for observation in earlier), dict(obs)]
            if is_first:
                requests[0]["reset"] = True
            deadline = time.monotonic() + self.timeout
            # A send waits without a limit for a network that takes nothing; this ends it.
            alarm = threading.Timer(self.timeout, _cut, [connection.socket])
            alarm.daemon = True
            alarm.start()
            try:
                for request in requests:
                    connection.send(pack(request))
                alarm.cancel()
                for _ in requests:  # one reply each
                    reply = self._unpacked(connection.recv(timeout=max(deadline - time.monotonic(), 0.0)))
                if not hasattr(reply.get("actions"), "shape"):
                    raise ServerError(f"the reply of {self.uri} has no actions")
                return reply
            except BaseException as error:
                # A reply may still come, which the next call must not take for its own.
                self._disconnect()
                self._reset = self._reset or is_first
                if not isinstance(error, (OSError, EOFError, ConnectionClosed)):
                    raise
                if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
                    sentence = f"the policy server {self.uri} has not answered in {self.timeout:g} s"
                    raise ServerTimeout(sentence) from error
                closing = error.rcvd if isinstance(error, ConnectionClosed) else None
                if closing is not None and closing.code in _REFUSALS:
                    reason = closing.reason or f"code {int(closing.code)}"
                    raise ServerError(f"the policy server refused the observation ({reason})") from error
                raise ServerUnreachable(f"the connection to {self.uri} broke ({error})") from error
            finally:
                alarm.cancel()

    def _unpacked(self, frame: str | bytes) -> dict[str, Any]:
        if isinstance(frame, str):  # the server closes after it
            raise ServerError(f"the policy server says: {frame.strip()}")
        try:
            content = unpack(frame)
        except ValueError as error:
            raise ServerError(f"{self.uri} is no policy server: {error}") from error
        if not isinstance(content, dict):
            raise ServerError(f"{self.uri} is no policy server: it sent {type(content).__name__}, not a map")
        return content

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _cut(connection.socket)
            connection.close()

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
