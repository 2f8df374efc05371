"""Waiting for something on a node's clock, with an end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from perdure.service.clock import Clock

if TYPE_CHECKING:
    from perdure.service.executions import Executions


@contextmanager
def watching(executions: Executions, key: int) -> Iterator[asyncio.Future[None]]:
    """A future for the next commit of a run; look at the run inside, so that none is missed."""
    future = executions.watch(key)
    try:
        yield future
    finally:
        future.cancel()


@contextmanager
def watching_close(executions: Executions, key: int) -> Iterator[asyncio.Future[None]]:
    """The same for the commit that closes the run."""
    future = executions.watch_close(key)
    try:
        yield future
    finally:
        future.cancel()


async def happened(future: asyncio.Future[Any], clock: Clock, deadline_ns: int) -> bool:
    """Wait until the future is done, or cancel it when the time has come.

    Returns whether it was done in time. Its result, or its error, is the caller's to fetch.
    """

    def give_up() -> None:
        future.cancel()

    alarm = clock.call_at(deadline_ns, give_up)
    try:
        await asyncio.wait([future])
    finally:
        alarm.cancel()
    return not future.cancelled()
