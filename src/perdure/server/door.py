"""The gRPC door: bytes of a request in, bytes of a response out, around a service's methods.

It knows no transport. A transport calls ``Handler.call`` for each call that comes in, sends what it
returns, or the status of the RPCError that it raises, and cancels it when the caller is gone.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from perdure.api.caller import CALLER, Caller
from perdure.api.errors import Internal, InvalidArgument, RPCError, Unavailable, Unimplemented
from perdure.server.rpcs import RPC, rpcs
from perdure.store.contract import StoreError

log = logging.getLogger("perdure.server")

_SECOND_NS: Final = 1_000_000_000
_FOREVER_S: Final = 365 * 86_400.0
_ELSEWHERE: Final = Caller(in_process=False)


class Door:
    """The calls of other processes to one service.

    Args:
        service: one async method per RPC, that takes the request and returns the response.
        now_ns: the service's clock.
    """

    def __init__(self, service: Any, now_ns: Callable[[], int]) -> None:
        self._service = service
        self._now_ns = now_ns
        self._running = 0
        self._waiting: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    def handlers(self) -> list[Handler]:
        """What a transport has to serve."""
        return [Handler(self, rpc, self._method(rpc)) for rpc in rpcs()]

    def _method(self, rpc: RPC) -> Callable[[Any], Awaitable[Any]]:
        found = getattr(self._service, rpc.method, None)
        if found is not None:
            method: Callable[[Any], Awaitable[Any]] = found
            return method

        async def unimplemented(request: Any) -> Any:
            raise Unimplemented(f"perdure does not offer {rpc.name}.")

        return unimplemented

    # -- one call ----------------------------------------------------------------------------------

    def caller(self, left_s: float | None) -> Caller:
        """Who calls, given the seconds that it has left."""
        if left_s is None or left_s > _FOREVER_S:
            return _ELSEWHERE
        return Caller(False, self._now_ns() + int(left_s * _SECOND_NS))

    def enter(self) -> None:
        """A call begins. Raises Unavailable when the server shuts down."""
        if self._draining:
            raise shutting_down()
        self._running += 1
        self._idle.clear()

    def leave(self) -> None:
        """A call ended."""
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def wait(self, method: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
        """A call that may wait for others: it is told when the server shuts down."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            return await method(request)
        except asyncio.CancelledError:
            if self._draining:
                raise shutting_down() from None
            raise
        finally:
            self._waiting.discard(task)

    # -- the end -----------------------------------------------------------------------------------

    def refuse(self) -> None:
        """Let no new calls in, and tell those that wait for others to come again elsewhere."""
        self._draining = True
        for task in self._waiting:
            task.cancel()

    async def idle(self, grace_s: float) -> bool:
        """Wait until the calls that are in have ended. False when it takes too long."""
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Handler:
    """One RPC of a door.

    Attributes:
        rpc: which one.
    """

    def __init__(self, door: Door, rpc: RPC, method: Callable[[Any], Awaitable[Any]]) -> None:
        self.rpc = rpc
        self._door = door
        self._method = method

    async def call(self, body: bytes, left_s: float | None) -> bytes:
        """Serve one call.

        Args:
            body: the serialised request.
            left_s: how many seconds the caller waits; None for ever.

        Raises:
            RPCError: the call's end, if it is not a response; nothing else but CancelledError.
        """
        door = self._door
        door.enter()
        try:
            request = self._request(body)
            CALLER.set(door.caller(left_s))
            if self.rpc.waits:
                response = await door.wait(self._method, request)
            else:
                response = await self._method(request)
            answer: bytes = response.SerializeToString()
            return answer
        except RPCError:
            raise
        except StoreError as error:
            raise Unavailable(f"The database did not serve {self.rpc.name}: {error}") from error
        except Exception as error:
            raise self._defect(error) from error
        finally:
            door.leave()

    def _request(self, body: bytes) -> Any:
        try:
            return self.rpc.parse(body)
        except DecodeError as error:
            raise InvalidArgument(f"The request is no {self.rpc.name}Request: {error}") from None

    def _defect(self, error: Exception) -> Internal:
        """What the caller hears of a defect: nothing but where the log tells more."""
        reference = secrets.token_hex(4)
        log.error("%s failed (%s)", self.rpc.name, reference, exc_info=error)
        return Internal(
            f"{self.rpc.name} failed inside perdure; the server's log says why under {reference}."
        )


def shutting_down() -> Unavailable:
    """What a caller hears once the door closes."""
    return Unavailable("The server is shutting down.")
