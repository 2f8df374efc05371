"""Notices of other nodes, as they come: one connection that does nothing but listen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from perdure.store.postgres.connections import CONNECT_TIMEOUT_S, without_own_options
from perdure.store.postgres.errors import UNREACHABLE

log = logging.getLogger("perdure.store")

CHANNEL: Final = "perdure"
_PAUSE_S: Final = 1.0
_ECHO: Final = "echo"
_ECHO_WITHIN_S: Final = 5.0


class Listening:
    """Calls `hear` with what other nodes tell; with "" whenever something may have been missed.

    Args:
        dsn: of the database.
        hear: see above.
        tell: sends a notice, to hear whether it comes back.

    Attributes:
        deaf: notices do not come: a pooler between hands the connection to others.
    """

    def __init__(
        self, dsn: str, hear: Callable[[str], None], tell: Callable[[str], Awaitable[None]]
    ) -> None:
        self._dsn = without_own_options(dsn)[0]
        self._hear = hear
        self._tell = tell
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._echoed = asyncio.Event()
        self.node = 0
        self.deaf = False

    async def start(self, node: int) -> None:
        """Begin to listen, as this node. Raises what the driver raises."""
        self.node = node
        connection = await self._connect()
        self._task = asyncio.get_running_loop().create_task(
            self._run(connection), name="perdure-listener"
        )

    async def close(self) -> None:
        """Stop."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self, connection: Any) -> None:
        while True:
            try:
                await self._listen(connection or await self._connect())
            except (*UNREACHABLE, asyncpg.PostgresError) as error:
                log.warning("notices of other nodes cannot be heard at the moment: %s", error)
            connection = None
            await asyncio.sleep(_PAUSE_S)

    async def _connect(self) -> Any:
        return await asyncpg.connect(
            self._dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=CONNECT_TIMEOUT_S,
            statement_cache_size=0,
        )  # fmt: skip

    async def _listen(self, connection: Any) -> None:
        """Listen until the connection is lost."""
        self._lost.clear()
        self._echoed.clear()
        try:
            connection.add_termination_listener(lambda _: self._lost.set())
            await connection.add_listener(CHANNEL, self._on_notice)
            await self._check_ears()
            self._hear("")  # what was said before
            await self._lost.wait()
        finally:
            connection.terminate()

    async def _check_ears(self) -> None:
        await self._tell(_ECHO)
        try:
            async with asyncio.timeout(_ECHO_WITHIN_S):  # wait_for may swallow a cancellation
                await self._echoed.wait()
        except TimeoutError:
            if not self.deaf:
                log.warning(
                    "notices do not come through: a pooler in transaction mode is between; work "
                    "from other nodes is looked for twice a second instead"
                )
            self.deaf = True
        else:
            self.deaf = False

    def _on_notice(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        sender, _, notice = payload.partition(" ")
        is_mine = sender == str(self.node)
        if notice == _ECHO:
            if is_mine:
                self._echoed.set()
        elif not is_mine:
            self._hear(notice)
