"""A client that says whatever a test wants over HTTP/2, right or wrong."""

from __future__ import annotations

import asyncio
import struct
from types import TracebackType
from typing import Any

import h2.config
import h2.connection
import h2.events

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
    ("te", "trailers"),
]
GRPC = "application/grpc"


def frame(body: bytes, *, compressed: bool = False, size_bytes: int | None = None) -> bytes:
    """A gRPC message; `size_bytes` is what its prefix claims."""
    return struct.pack(">BI", compressed, len(body) if size_bytes is None else size_bytes) + body


class Raw:
    """One connection. Use as an async context manager."""

    def __init__(self, address: str, *, window: int | None = None) -> None:
        host, _, port = address.rpartition(":")
        self._where = (host, int(port))
        self._window = window
        self.http = h2.connection.H2Connection(
            h2.config.H2Configuration(validate_outbound_headers=False)
        )
        self.answers: dict[int, dict[str, str]] = {}
        self.reset: set[int] = set()
        self.received_bytes = 0
        self.pings = 0
        self.closed = False

    async def __aenter__(self) -> Raw:
        self.reader, self.writer = await asyncio.open_connection(*self._where)
        self.http.initiate_connection()
        if self._window is not None:
            self.http.update_settings({4: self._window})
        self.flush()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.writer.close()

    def flush(self) -> None:
        """Send what the HTTP/2 state machine has."""
        self.writer.write(self.http.data_to_send())

    def open(self, path: str, content_type: str = GRPC, **headers: str) -> int:
        """Begin a call; the stream's number."""
        stream = self.http.get_next_available_stream_id()
        more = [(name.replace("_", "-"), value) for name, value in headers.items()]
        lines = [(":path", path), ("content-type", content_type), *more]
        self.http.send_headers(stream, [*HEADERS[:3], lines[0], *HEADERS[3:], *lines[1:]])
        self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """Send a body as flow control allows."""
        while data:
            room = min(self.http.local_flow_control_window(stream), 16_384)
            if room <= 0:
                if not await self.listen():
                    return
                continue
            self.http.send_data(stream, data[:room])
            data = data[room:]
            self.flush()
            await self.writer.drain()
        if end:
            self.http.end_stream(stream)
            self.flush()

    async def call(self, path: str, data: bytes, **headers: str) -> dict[str, str] | None:
        """The headers and trailers of the answer; None if stream or connection were closed."""
        stream = self.open(path, **headers)
        try:
            await self.send(stream, data)
        except h2.exceptions.StreamClosedError:
            pass  # refused before all was sent
        return await self.answer(stream)

    async def answer(self, stream: int, *, patience_s: float = 0) -> dict[str, str] | None:
        """The headers and trailers of a stream's answer; None without one.

        TimeoutError if nothing comes, but None if `patience_s` was given.
        """
        try:
            async with asyncio.timeout(patience_s or 20):
                while not self.closed and stream not in self.reset:
                    answer = self.answers.get(stream, {})
                    if "ended" in answer:
                        return answer
                    await self.listen()
        except TimeoutError:
            if not patience_s:
                raise
        return None

    async def listen(self, *, acknowledge: bool = True) -> bool:
        """Take in what arrives next. False when the connection is closed."""
        try:
            data = await self.reader.read(65_536)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return False
        for event in self.http.receive_data(data):
            self._note(event, acknowledge)
        self.flush()
        return not self.closed

    def _note(self, event: Any, acknowledge: bool) -> None:
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            found = self.answers.setdefault(event.stream_id, {})
            found.update((_text(name), _text(value)) for name, value in event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.received_bytes += len(event.data)
            if acknowledge:
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.answers.setdefault(event.stream_id, {})["ended"] = "yes"
        elif isinstance(event, h2.events.StreamReset):
            self.reset.add(event.stream_id)
        elif isinstance(event, h2.events.PingReceived):
            self.pings += 1  # answered by what receives it
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.closed = True


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
