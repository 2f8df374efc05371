"""A way to PostgreSQL that breaks on purpose, at a place that the test names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

SOCKET = ".s.PGSQL.5432"


class Way:
    """One connection through the proxy.

    Attributes:
        said: what the client sent.
        silent: no byte goes through any more, and nobody is told.
    """

    def __init__(self) -> None:
        self.said = b""
        self.silent = False


class Proxy:
    """Passes bytes on between clients and a server, each in a directory with its socket.

    Attributes:
        cuts: how many connections it broke.
    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self._word = b""
        self._with_answer = False
        self._patient = True
        self._left: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed_for_s = 0.0
        self._opens_at = 0.0
        self._ways: list[Way] = []
        self.cuts = 0

    def silence(self, word: str) -> None:
        """Let nothing through any more, and end nothing, where a client sent this before."""
        for way in self._ways:
            way.silent |= word.encode() in way.said

    def cut_at(self, word: str, *, after: bool, closed_for_s: float = 0.0) -> None:
        """Break the next connection that sends this: before the server gets it, or after it has
        done it, its answer swallowed. Then let nobody connect for a while."""
        self._word, self._with_answer, self._closed_for_s = word.encode(), after, closed_for_s
        self._patient = True

    def leave_at(self, word: str) -> None:
        """Break the next connection that sends this at once, while the server, which has got it and
        does not notice, goes on."""
        self.cut_at(word, after=True)
        self._patient = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._opens_at:
            writer.close()
            return
        there, back = await asyncio.open_unix_connection(str(self._server / SOCKET))
        swallow = asyncio.Event()
        way = Way()
        self._ways.append(way)
        answers = asyncio.create_task(self._answers(there, writer, swallow, way))
        self._tasks.add(answers)
        with suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                if self._word and self._word in data:
                    self._word = b""
                    self.cuts += 1
                    self._opens_at = loop.time() + self._closed_for_s
                    if self._with_answer:
                        swallow.set()
                        back.write(data)
                        if not self._patient:
                            self._left.append(back)
                            writer.transport.abort()
                            return
                        await answers  # until the server has answered
                    break
                way.said += data
                if not way.silent:
                    back.write(data)
        answers.cancel()
        writer.transport.abort()
        back.transport.abort()

    async def _answers(
        self,
        there: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        swallow: asyncio.Event,
        way: Way,
    ) -> None:
        with suppress(ConnectionError):
            while data := await there.read(1 << 20):
                if swallow.is_set():
                    return
                if not way.silent:
                    writer.write(data)
        if not swallow.is_set():
            writer.close()


@asynccontextmanager
async def proxy_of(server: Path, directory: Path) -> AsyncIterator[Proxy]:
    """A proxy whose socket is in a directory of its own."""
    proxy = Proxy(server)
    listener = await asyncio.start_unix_server(proxy.serve, str(directory / SOCKET))
    try:
        yield proxy
    finally:
        listener.close()
