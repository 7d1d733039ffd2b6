"""The policy server: openpi's wire protocol over WebSockets, so that `bimact-client` and `openpi-client` connect.

On connect the server sends the policy's metadata; then each binary observation gets one binary reply.
`docs/deployment.md` describes the messages. Nothing that a client sends is executed, unpickled, or taken for a path.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import signal
import ssl
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from bimact.errors import UserError, in_words

PROTOCOL_VERSION = 1
_SLACK = 1 << 20  # bytes of a message besides its images
_ANY_SIZE = 64 << 20  # bytes of the images of a policy that takes any size
_WINDOW = 2000  # requests whose latency the percentiles are of


class Session(Protocol):
    """A policy with an observation history of its own: `bimact.policy.inference.Policy`, or an exported model."""

    def reset(self) -> None: ...

    def observe(self, observation: Mapping[str, Any]) -> None: ...

    def act(self, observation: Mapping[str, Any]) -> np.ndarray: ...

    def predict_chunk(self, observation: Mapping[str, Any]) -> np.ndarray: ...


@dataclass(frozen=True)
class Served:
    """What the server needs to know of a policy.

    Attributes:
        new_session: makes a session for a connection.
        metadata: what clients get on connect (`served_metadata`).
    """

    new_session: Callable[[], Session]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class ServerSettings:
    """How a policy is served.

    Attributes:
        host: address to listen at; without a key only a loopback address.
        port: 0: any that is free.
        api_key: what clients have to send as `Authorization: Api-Key KEY`; None: nothing.
        resize: of images of another size than the training's: `stretch`, `pad` (keeping the aspect ratio, black
            borders), or None: they are refused.
        certfile: certificate for TLS, with its key in the same file or in `keyfile`.
        keyfile: key of the certificate.
        max_connections: clients at once.
        idle_timeout: seconds without an observation after which a connection is closed.
        handshake_timeout: seconds for a client to become one.
        prints_metrics: whether a line of latencies is printed each minute.
        debug: whether tracebacks of unexpected errors are printed.

    Raises:
        UserError: for an address that others can reach without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    resize: str | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    max_connections: int = 64
    idle_timeout: float = 600.0
    handshake_timeout: float = 10.0
    prints_metrics: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        if not self.api_key and not _is_loopback(self.host):
            raise UserError(
                f"--host {self.host} can be reached from other machines: set a key by BIMACT_API_KEY or --api_key, or "
                "serve at 127.0.0.1"
            )
        if self.keyfile is not None and self.certfile is None:
            raise UserError("--keyfile is the key of a certificate: give --certfile too")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def served_metadata(policy: Mapping[str, Any], weights_sha256: str) -> dict[str, Any]:
    """The metadata that clients get, of numbers, text, lists and maps.

    Args:
        policy: `PolicyMetadata.as_dict()`.
        weights_sha256: of the weights file, as hexadecimal digits.
    """
    ensembles, context = policy["temporal_ensemble"], policy["temporal_context"]
    needs = "nothing: each observation stands alone"
    if ensembles:
        needs = "an observation at each control step, since overlapping chunks are averaged; reset: true at the first"
    elif context > 1:
        needs = (
            f"an observation at each control step, since the policy sees the last {context} (observe: true where no "
            "actions are needed); reset: true at the first"
        )
    return {
        "protocol_version": PROTOCOL_VERSION,
        "run": policy["name"],
        "checkpoint": policy["checkpoint"],
        "weights_sha256": weights_sha256,
        "task": policy["task"],
        "action_names": None if policy["action_names"] is None else list(policy["action_names"]),
        "state_names": None if policy["state_names"] is None else list(policy["state_names"]),
        "action_dim": policy["action_dim"],
        "state_dim": policy["state_dim"],
        "control_hz": policy["control_frequency"],
        "cameras": {
            camera: {
                "height": None if size is None else int(size[0]),
                "width": None if size is None else int(size[1]),
                "color_order": policy["color_order"],
            }
            for camera, size in policy["cameras"].items()
        },
        "chunk_size": policy["chunk_size"],
        "temporal_context": context,
        "max_delay": policy["max_delay"],
        "execution": {
            "mode": "temporal_ensemble" if ensembles else "chunk",
            "execute_steps": policy["execute_steps"],
            "temporal_ensemble": ensembles,
        },
        "action_ranges": _ranges(policy["action_range"]),
        "state_ranges": _ranges(policy["state_range"]),
        "needs_reset": bool(ensembles or context > 1),
        "needs": needs,
        "tasks": None if policy.get("tasks") is None else list(policy["tasks"]),
        "prompt": "ignored: the policy is not told its task"
        if policy.get("tasks") is None
        else "one of `tasks`, with each observation",
    }


def _ranges(ranges: Any) -> dict[str, list[float]] | None:
    return None if ranges is None else {name: [float(pair[at]) for pair in ranges] for at, name in enumerate(_ENDS)}


_ENDS = ("low", "high")


@dataclass
class Metrics:
    """Counts since the start, and latencies in milliseconds of the last requests."""

    requests: int = 0
    errors: int = 0
    connections: int = 0
    infer_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    total_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    seconds: float = 0.0

    def line(self) -> str:
        if not self.total_ms:
            return f"requests 0 · errors {self.errors} · connections {self.connections}"
        total, infer = (np.percentile(values, [50, 90, 99]) for values in (self.total_ms, self.infer_ms))
        return (
            f"requests {self.requests} · errors {self.errors} · connections {self.connections} · reply in "
            f"{total[0]:.1f} ms median, {total[1]:.1f} p90, {total[2]:.1f} p99 · inference {infer[0]:.1f} ms median"
        )

    def prometheus(self) -> str:
        """The text form of Prometheus."""
        lines = [
            "# TYPE bimact_requests_total counter",
            f"bimact_requests_total {self.requests}",
            "# TYPE bimact_errors_total counter",
            f"bimact_errors_total {self.errors}",
            "# TYPE bimact_connections gauge",
            f"bimact_connections {self.connections}",
            "# TYPE bimact_reply_seconds summary",
        ]
        for quantile in (0.5, 0.9, 0.99) if self.total_ms else ():
            value = float(np.quantile(self.total_ms, quantile)) / 1000
            lines.append(f'bimact_reply_seconds{{quantile="{quantile}"}} {value:.6f}')
        lines += [f"bimact_reply_seconds_sum {self.seconds:.6f}", f"bimact_reply_seconds_count {self.requests}"]
        return "\n".join(lines) + "\n"


class PolicyServer:
    """Serves one policy to any number of clients; one inference runs at once, in the order in which requests come.

    Args:
        policy: what is served.
        settings: how.
    """

    def __init__(self, policy: Served, settings: ServerSettings) -> None:
        try:  # a client and its server share the messages' form
            from bimact_client.wire import keep_freed_blocks, pack, unpack
        except ImportError as error:
            raise UserError(
                "bimact-client is not installed, or older than bimact: pip install ./packages/bimact-client in the "
                "project's root"
            ) from error

        keep_freed_blocks()
        self._pack, self._unpack = pack, unpack
        self.policy, self.settings = policy, settings
        self.metrics = Metrics()
        self.port = settings.port
        self._draining = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "inference")  # so that pings and /healthz are answered meanwhile
        sizes = [(camera["height"], camera["width"]) for camera in policy.metadata["cameras"].values()]
        is_known = settings.resize is None and all(None not in size for size in sizes)
        self._max_size = _SLACK + (sum(3 * height * width for height, width in sizes) if is_known else _ANY_SIZE)

    async def run(self, started: Callable[[PolicyServer], None] | None = None, *, handles_signals: bool = True) -> None:
        """Serve until SIGTERM, Ctrl-C or `stop`; requests that run are answered first.

        Args:
            started: called when the server listens; `port` is known then.
            handles_signals: False: in a thread, where Python takes no signals.

        Raises:
            UserError: if the address cannot be listened at, or the certificate cannot be read.
        """
        settings, loop = self.settings, asyncio.get_running_loop()
        self._loop = loop
        context = None
        if settings.certfile is not None:
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(settings.certfile, settings.keyfile)
            except (OSError, ssl.SSLError) as error:
                raise UserError(f"cannot read the certificate {settings.certfile} ({in_words(error)})") from error
        try:
            server = await serve(
                self._serve,
                settings.host,
                settings.port,
                ssl=context,
                compression=None,
                max_size=self._max_size,
                max_queue=2,
                open_timeout=settings.handshake_timeout,
                process_request=self._process_request,
                server_header=None,
            )
        except OSError as error:
            raise UserError(f"cannot listen at {settings.host}:{settings.port} ({error.strerror or error})") from error
        self.port = next(iter(server.sockets)).getsockname()[1]
        signals = (signal.SIGTERM, signal.SIGINT) if handles_signals else ()
        for number in signals:
            loop.add_signal_handler(number, self._draining.set)
        printing = asyncio.create_task(self._print_metrics()) if settings.prints_metrics else None
        try:
            if started is not None:
                started(self)
            await self._draining.wait()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            if printing is not None:
                printing.cancel()
            server.close(close_connections=False)
            await server.wait_closed()  # each connection ends by itself after its reply
            self._thread.shutdown()

    def stop(self) -> None:
        """End `run` as SIGTERM does."""
        self._draining.set()

    async def _print_metrics(self) -> None:
        while True:
            await asyncio.sleep(60)
            print(self.metrics.line(), flush=True)

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP requests, and refuse clients without the key, before there is a WebSocket."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self.settings.api_key:
            given = request.headers.get("Authorization", "")
            kind, _, key = given.partition(" ")
            expected = self.settings.api_key.encode()
            is_right = hmac.compare_digest(key.strip().encode("utf-8", "surrogateescape"), expected)
            if not (is_right and kind in ("Api-Key", "Bearer")):
                return connection.respond(HTTPStatus.UNAUTHORIZED, "the API key is missing or wrong\n")
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self.metrics.prometheus())
        if self.metrics.connections >= self.settings.max_connections:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        """One client, from its connection to its end."""
        self.metrics.connections += 1
        draining = asyncio.create_task(self._draining.wait())
        try:
            await connection.send(self._pack(self.policy.metadata))
            episode = _Episode(self.policy, self.settings.resize)
            previous: float | None = None
            while not draining.done():
                receiving = asyncio.create_task(connection.recv())
                done, _ = await asyncio.wait(
                    {receiving, draining},
                    timeout=self.settings.idle_timeout,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if receiving not in done:
                    receiving.cancel()
                    with suppress(asyncio.CancelledError, ConnectionClosed):
                        await receiving
                    if not done:
                        await connection.close(1000, "no observation for a long time")
                        return
                    break
                began = time.perf_counter()
                previous = await self._answer(connection, receiving.result(), episode, previous, began)
                if previous is None:
                    return
            await connection.close(1001, "the server stops")
        except ConnectionClosed:
            pass
        finally:
            draining.cancel()
            self.metrics.connections -= 1

    async def _answer(
        self,
        connection: ServerConnection,
        message: str | bytes,
        episode: _Episode,
        previous: float | None,
        began: float,
    ) -> float | None:
        """Reply to an observation; returns the milliseconds that it took, None if the connection was closed."""
        metrics = self.metrics
        try:
            if isinstance(message, str):
                raise UserError("an observation has to be a binary message")
            try:
                content = self._unpack(message)
            except ValueError as error:
                raise UserError(str(error)) from None
            actions, infer_ms = await asyncio.get_running_loop().run_in_executor(self._thread, episode.infer, content)
        except UserError as error:
            metrics.errors += 1
            await connection.send(str(error))
            await connection.close(1011, "the observation was refused")
            return None
        except Exception as error:
            metrics.errors += 1
            if self.settings.debug:
                traceback.print_exc()
            await connection.send(f"the server failed: {type(error).__name__}: {in_words(error)}")
            await connection.close(1011, "the server failed")
            return None
        timing = {"infer_ms": infer_ms} | ({} if previous is None else {"prev_total_ms": previous})
        reply: dict[str, Any] = {"server_timing": timing, "policy_timing": {"infer_ms": infer_ms}}
        if actions is not None:
            reply["actions"] = actions
        await connection.send(self._pack(reply))
        total = 1000 * (time.perf_counter() - began)
        metrics.requests += 1
        metrics.seconds += total / 1000
        metrics.infer_ms.append(infer_ms)
        metrics.total_ms.append(total)
        return total


class _Episode:
    """A connection's own state: the policy's history, and the number of the last step."""

    def __init__(self, policy: Served, resize: str | None) -> None:
        self._metadata, self._resize = policy.metadata, resize
        self._session = policy.new_session()
        self._session.reset()
        self._step: int | None = None

    def infer(self, content: Any) -> tuple[np.ndarray | None, float]:
        """In the inference thread: an observation as it was sent → actions (H, A) float32, and milliseconds.

        Raises:
            UserError: if it is not what the policy was trained on.
        """
        began = time.perf_counter()
        observation = self._observation(content)
        self._begin_if_new(content)
        if _flag(content, "observe"):
            self._session.observe(observation)
            return None, 1000 * (time.perf_counter() - began)
        if self._metadata["execution"]["temporal_ensemble"]:
            actions = self._session.act(observation)[None]
        else:
            actions = self._session.predict_chunk(observation)
        return np.ascontiguousarray(actions, np.float32), 1000 * (time.perf_counter() - began)

    def _begin_if_new(self, content: Mapping[str, Any]) -> None:
        """Forget what is of another episode, or of steps that are not followed by this one."""
        step = content.get("step")
        if step is not None:
            if isinstance(step, bool) or not isinstance(step, (int, np.integer)):
                raise UserError(f"the observation's 'step' is {type(step).__name__}, it has to be a whole number")
            step = int(step)
        follows = step is None or (self._step is not None and step == self._step + 1)
        if _flag(content, "reset") or not follows:
            self._session.reset()
        self._step = step

    def _observation(self, content: Any) -> dict[str, Any]:
        """`state` and `image_<camera>` from either form: bimact's own, and openpi's with `images`."""
        if not isinstance(content, dict):
            raise UserError(f"an observation has to be a map, not {type(content).__name__}")
        observation: dict[str, Any] = {}
        for name in ("state", "given_actions"):
            if name in content:
                observation[name] = content[name]
        images = content.get("images", {})
        if not isinstance(images, dict):
            raise UserError(f"the observation's 'images' is {type(images).__name__}, it has to be a map of cameras")
        given = {str(camera): image for camera, image in images.items()}
        for name, value in content.items():
            if isinstance(name, str) and name.startswith("image_"):
                given[name.removeprefix("image_")] = value
        for camera, image in given.items():
            size = self._metadata["cameras"].get(camera)
            if size is None:
                continue  # what the policy does not take; a camera that it misses is told below
            if not isinstance(image, np.ndarray):
                raise UserError(f"the observation's 'image_{camera}' is {type(image).__name__}, it has to be an array")
            observation[f"image_{camera}"] = self._resized(image, camera, size)
        if self._metadata.get("tasks") is not None:
            observation |= {name: content[name] for name in ("task", "prompt") if name in content}
        missing = [camera for camera in self._metadata["cameras"] if f"image_{camera}" not in observation]
        if missing or "state" not in observation:
            takes = ["state", *(f"image_{camera}" for camera in self._metadata["cameras"])]
            has = [*(["state"] if "state" in content else []), *(f"image_{camera}" for camera in given)]
            lacks = f"image_{missing[0]}" if missing else "state"
            raise UserError(
                f"the observation has no '{lacks}': the policy takes {', '.join(takes)}, the observation has "
                f"{', '.join(has) or 'nothing'}"
            )
        return observation

    def _resized(self, image: np.ndarray, camera: str, wanted: Mapping[str, Any]) -> np.ndarray:
        size = (wanted["height"], wanted["width"])
        if self._resize is None or None in size or image.ndim != 3 or image.dtype != np.uint8:
            return image
        pixels = image if image.shape[2] == 3 else np.moveaxis(image, 0, -1)
        if pixels.shape[2] != 3 or pixels.shape[:2] == size:
            return image
        return resized(pixels, size, self._resize)


def resized(pixels: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """An image (H, W, 3) uint8 in another height and width, by an antialiased bilinear filter.

    Args:
        mode: `stretch`, or `pad`: with its aspect ratio, in the middle of a black image (openpi's `resize_with_pad`).
    """
    height, width = size
    whole = Image.fromarray(np.ascontiguousarray(pixels))
    if mode == "stretch":
        return np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR))
    ratio = max(pixels.shape[1] / width, pixels.shape[0] / height)
    inner = (max(1, int(pixels.shape[1] / ratio)), max(1, int(pixels.shape[0] / ratio)))
    padded = Image.new("RGB", (width, height))
    padded.paste(whole.resize(inner, Image.Resampling.BILINEAR), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.asarray(padded)


def _flag(content: Mapping[str, Any], name: str) -> bool:
    value = content.get(name, False)
    if not isinstance(value, (bool, np.bool_)):
        raise UserError(f"the observation's '{name}' is {type(value).__name__}, it has to be true or false")
    return bool(value)


def api_key(given: str | None) -> str | None:
    """The key that is given, or that of the environment's BIMACT_API_KEY."""
    return given or os.environ.get("BIMACT_API_KEY") or None
