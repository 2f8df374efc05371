"""Notices of other nodes, as they come: one connection that does nothing but listen.

Nothing tells such a connection from one that the network has forgotten, or that a pooler gave to
others. So every beat sends an echo with it: a notice of this node to itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import asyncpg

from perdure.api.trouble import Trouble
from perdure.store.postgres.connections import CONNECT_TIMEOUT_S, connect, without_own_options
from perdure.store.postgres.errors import UNREACHABLE

log = logging.getLogger("perdure.store")

CHANNEL: Final = "perdure"
ECHO: Final = "echo"
_PAUSE_S: Final = 1.0
_HEARD_WITHIN_S: Final = 4.5  # so that the beat after the one that sent an echo misses it
_MORE_PATIENCE_MAX_S: Final = 60.0


class Listening:
    """Calls `hear` with what other nodes tell; with "" whenever something may have been missed."""

    def __init__(self, dsn: str, hear: Callable[[str], None]) -> None:
        self._dsn, _, self._connect_timeout_s = without_own_options(dsn)
        self._hear = hear
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._heard_at_s = 0.0  # when the last echo came
        self._missed_since_s: float | None = None  # when the first was sent that did not come since
        self._patience_s = _HEARD_WITHIN_S  # from then on, until another connection is tried
        self.node = 0
        self._trouble = Trouble(log, "notices of other nodes cannot be heard")

    @property
    def deaf(self) -> bool:
        """Whether notices do not come through."""
        since_s = self._missed_since_s
        return since_s is not None and _now_s() >= since_s + _HEARD_WITHIN_S

    def echo_sent(self, at_s: float) -> None:
        """A beat sent an echo, at this time of the loop or later."""
        if self._heard_at_s >= at_s:
            return
        if self._missed_since_s is None:
            self._missed_since_s, self._patience_s = at_s, _HEARD_WITHIN_S
        if _now_s() < self._missed_since_s + self._patience_s:
            return
        if self._patience_s == _HEARD_WITHIN_S:
            log.warning(
                "no notices come through: the connection fell silent, or a pooler in transaction "
                "mode is between; until they do, work from other nodes is looked for twice a second"
            )
        self._patience_s += min(self._patience_s, _MORE_PATIENCE_MAX_S)
        self.reconnect()

    def reconnect(self) -> None:
        """Listen on another connection."""
        self._lost.set()

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
                self._trouble.met(error)
            except Exception:
                log.exception("listening for notices of other nodes failed")
            connection = None
            await asyncio.sleep(_PAUSE_S)

    async def _connect(self) -> Any:
        return await connect(
            self._dsn, timeout=self._connect_timeout_s, command_timeout=CONNECT_TIMEOUT_S,
            statement_cache_size=0,
        )  # fmt: skip

    async def _listen(self, connection: Any) -> None:
        """Listen until the connection is lost, or is to be replaced."""
        lost = self._lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, self._on_notice)
            self._trouble.over()
            self._hear("")  # what was said before
            await lost.wait()
            if connection.is_closed():  # its echo went with it
                self._missed_since_s = None
        finally:
            connection.terminate()

    def _on_notice(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        sender, _, notice = payload.partition(" ")
        is_mine = sender == str(self.node)
        if notice == ECHO:
            if is_mine:
                self._heard_at_s = _now_s()
                self._missed_since_s = None
        elif not is_mine:
            self._hear(notice)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
