"""A server process, and a network between it and the client that is slow or breaks."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any


class ServerProcess:
    """A process of `fake_server.py`, whose port stays the same when it is started again."""

    def __init__(self, **settings: Any) -> None:
        self.port = 0
        self.start(**settings)

    def start(self, **settings: Any) -> None:
        arguments = [f"{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "fake_server.py", str(self.port), *arguments]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


class SlowNetwork:
    """Passes bytes on between a port of its own and that of a server.

    Args:
        port: of the server.
        delay: seconds that each piece takes.
        jitter: largest additional delay, in seconds.
        loss: share of pieces that are lost once: they take `resend` seconds longer, as TCP sends them again.
    """

    def __init__(
        self, port: int, delay: float = 0.0, jitter: float = 0.0, loss: float = 0.0, resend: float = 0.2
    ) -> None:
        self.target, self.delay, self.jitter, self.loss, self.resend = port, delay, jitter, loss, resend
        self.blocked = False  # takes bytes from nobody
        self._random = random.Random(0)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._writers: list[asyncio.StreamWriter] = []
        self._loop.run_until_complete(asyncio.start_server(self._accept, sock=listener, limit=2**16))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers += [writer, back]
        with suppress(asyncio.CancelledError):
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while not reader.at_eof():
                while self.blocked:
                    await asyncio.sleep(0.01)
                piece = await reader.read(2**16)
                is_lost = self._random.random() < self.loss
                await asyncio.sleep(self.delay + self._random.uniform(0, self.jitter) + self.resend * is_lost)
                writer.write(piece)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Break all connections."""
        writers, self._writers = self._writers, []
        self._loop.call_soon_threadsafe(lambda: [writer.transport.abort() for writer in writers])

    def __enter__(self) -> SlowNetwork:
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
