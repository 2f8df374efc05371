"""Calling the service: codecs at the edge, and retries of what may be retried.

A request that changes something carries a request id, so that asking twice does it once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

from google.protobuf.message import Message

from perdure.api import errors as rpc
from perdure.sdk.codecs import decode_message, encode_message
from perdure.sdk.converter import Converter

__all__ = ["TRANSIENT", "Calls", "is_remote"]

TRANSIENT: Final = (rpc.Unavailable, rpc.ResourceExhausted, rpc.Aborted)
"""Errors after which the same request may well succeed."""

_TRANSIENT_OF_QUERY: Final = (*TRANSIENT, rpc.Cancelled)
"""Temporal's server answers CANCELLED to a query whose sticky queue it closes, because the worker
left; a query changes nothing, so it may be asked again."""

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0

DEFAULT_RETRY_FOR: Final = timedelta(seconds=30)


def is_remote(service: Any) -> bool:
    """Is the service behind a connection, rather than in this process?"""
    return bool(getattr(service, "is_remote", False))


class Calls:
    """The RPCs of one service, as the parts of the SDK use them.

    Args:
        service: has one ``async`` method per RPC, in snake case.
        converter: its codec sees every payload that goes out or comes in.
        retry_for: how long a call is tried again after transient errors.
    """

    def __init__(
        self, service: Any, converter: Converter, retry_for: timedelta = DEFAULT_RETRY_FOR
    ) -> None:
        self.service = service
        self.converter = converter
        self._retry_for_s = retry_for.total_seconds()

    async def __call__(self, method: str, request: Message) -> Any:
        """Ask, and ask again while errors are transient.

        Raises:
            RPCError: the answer was an error, or the time for retries is over.
        """
        codec = self.converter.codec
        if codec is not None:
            await encode_message(codec, request)
        ask = getattr(self.service, method)
        transient = _TRANSIENT_OF_QUERY if method == "query_workflow" else TRANSIENT
        try:
            response = await ask(request)
        except transient as error:
            response = await self._asked_again(ask, request, error, transient)
        if codec is not None and response is not None:
            own = type(response)()
            own.CopyFrom(response)  # what a service in this process answers may be shared
            await decode_message(codec, own)
            return own
        return response

    async def _asked_again(
        self,
        method: Callable[[Message], Awaitable[Any]],
        request: Message,
        first: rpc.RPCError,
        transient: tuple[type[rpc.RPCError], ...],
    ) -> Any:
        give_up_at = time.monotonic() + self._retry_for_s
        pause_s = _FIRST_PAUSE_S
        while True:
            wait_s = pause_s * random.uniform(0.5, 1.0)
            if time.monotonic() + wait_s > give_up_at:
                raise first
            await asyncio.sleep(wait_s)
            try:
                return await method(request)
            except transient as error:
                first = error
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
