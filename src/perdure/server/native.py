"""The transport on ``pygrpc-native``: HTTP/2 and gRPC in Rust, on threads of its own.

Each call reaches the loop as an event with the bytes of its request, many events at a time, and is
answered by its number. Services that stream both ways (reflection) go to a grpcio server behind a
Unix socket; that one is not made for speed.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import threading
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc.aio
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from perdure.api.errors import Internal, RPCError, StatusCode
from perdure.server.door import Handler, shutting_down
from perdure.server.driving import Driven, Started
from perdure.server.statuses import DETAILS_KEY, Status, status_of
from perdure.server.transports import taken

if TYPE_CHECKING:
    from perdure.server.transports import Adder, Options

log = logging.getLogger("perdure.server")

_BATCH: Final = 64
_IO_THREADS: Final = 1
_FLUSH_S: Final = 0.4
_CANCELLED: Final = Status(int(StatusCode.CANCELLED), "The call was cancelled.", b"")


class NativeTransport:
    """See `perdure.server.transports.Transport`."""

    def __init__(
        self, handlers: Sequence[Handler], extras: Sequence[Adder], options: Options
    ) -> None:
        self._handlers = list(handlers)
        self._extras = list(extras)
        self._options = options
        self._front: Any = None
        self._behind: Any = None
        self._folder = ""
        self._running: dict[int, Driven[bytes] | asyncio.Task[bytes]] = {}
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None

    def bind(self, address: str) -> int:
        """See `Transport`."""
        options = self._options
        try:
            self._front = NativeGrpcFront(
                address,
                [],
                io_threads=_IO_THREADS,
                call_details=True,
                delay_stream_headers=True,
                keepalive_time_ms=int(options.keepalive_s * 1000),
                keepalive_timeout_ms=int(options.keepalive_timeout_s * 1000),
                keepalive_permit_without_calls=True,
                max_concurrent_streams=options.streams_max,
                max_metadata_size=options.metadata_bytes_max,
            )
        except OSError:
            raise taken(address) from None
        port: int = self._front.bound_port
        return port

    async def start(self) -> None:
        """See `Transport`."""
        self._loop = asyncio.get_running_loop()
        await self._start_behind()
        paths = [(f"/{h.rpc.service}/{h.rpc.name}", False) for h in self._handlers]
        numbers = self._front.add_methods(paths)
        assert numbers == list(range(len(paths)))
        self._front.start()
        self._thread = threading.Thread(target=self._receive, name="perdure-grpc", daemon=True)
        self._thread.start()

    async def _start_behind(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="perdure-")
        path = str(Path(self._folder) / "grpc.sock")
        self._behind = grpc.aio.server()
        for add in self._extras:
            add(self._behind)
        self._behind.add_insecure_port(f"unix:{path}")
        await self._behind.start()
        self._front.set_fallback(path)

    async def stop(self, grace_s: float) -> None:
        """See `Transport`."""
        self._stopping = True
        await self._finish(grace_s)
        await asyncio.sleep(min(grace_s, _FLUSH_S))  # closing cuts off answers on their way
        if self._behind is not None:
            await self._behind.stop(0)
        await self._loop.run_in_executor(None, self._front.close)
        if self._thread is not None:
            await self._loop.run_in_executor(None, self._thread.join)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _finish(self, grace_s: float) -> None:
        """Let calls end by themselves, then cancel them."""
        tasks = [_task(running) for running in self._running.values()]
        if not tasks:
            return
        if grace_s > 0:
            await asyncio.wait(tasks, timeout=grace_s)
        for running in list(self._running.values()):
            running.cancel()
        await asyncio.wait(tasks)

    # -- calls -------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """On a thread of its own: pass events on to the loop, until the front is closed."""
        front, loop = self._front, self._loop
        while (events := front.recv_batch_details(_BATCH)) is not None:
            try:
                loop.call_soon_threadsafe(self._on_events, events)
            except RuntimeError:  # the loop was closed without stop()
                front.close()
                return

    def _on_events(self, events: list[tuple[Any, ...]]) -> None:
        for kind, call_id, method_id, body, _, details in events:
            if kind == EVENT_CANCEL:
                running = self._running.get(call_id)
                if running is not None:
                    running.cancel()
            elif self._stopping:
                self._fail(call_id, status_of(shutting_down()))
            elif len(body) > self._options.message_bytes_max:
                self._fail(call_id, self._too_large(len(body)))
            else:
                handler = self._handlers[method_id]
                call = handler.call(body, details[2])
                if handler.rpc.waits:
                    self._hold(call_id, self._loop.create_task(call))
                else:
                    self._drive(call_id, call)

    def _drive(self, call_id: int, call: Coroutine[Any, Any, bytes]) -> None:
        """Run a call as far as it comes by itself."""
        try:
            waited_for = call.send(None)
        except StopIteration as end:
            self._front.respond(call_id, end.value)
        except RPCError as error:
            self._fail(call_id, status_of(error))
        else:
            self._hold(call_id, Driven(Started(call, waited_for), self._loop))

    def _hold(self, call_id: int, running: Driven[bytes] | asyncio.Task[bytes]) -> None:
        """Answer a call when it has ended."""
        self._running[call_id] = running
        _task(running).add_done_callback(partial(self._ended, call_id))

    def _ended(self, call_id: int, task: asyncio.Task[bytes]) -> None:
        del self._running[call_id]
        if task.cancelled():
            self._fail(call_id, _CANCELLED)
            return
        error = task.exception()
        if error is None:
            self._front.respond(call_id, task.result())
        elif isinstance(error, RPCError):
            self._fail(call_id, status_of(error))
        else:
            log.error("a call failed in its transport", exc_info=error)
            self._fail(call_id, status_of(Internal("perdure failed; its log says why.")))

    def _fail(self, call_id: int, status: Status) -> None:
        code, message, details = status
        trailers = [(DETAILS_KEY, details)] if details else None
        self._front.fail(call_id, code, message, trailing_metadata=trailers)

    def _too_large(self, size_bytes: int) -> Status:
        limit = self._options.message_bytes_max
        message = f"The request has {size_bytes} bytes, the limit is {limit}."
        return Status(int(StatusCode.RESOURCE_EXHAUSTED), message, b"")


def _task(running: Driven[bytes] | asyncio.Task[bytes]) -> asyncio.Task[bytes]:
    return running.task if isinstance(running, Driven) else running
