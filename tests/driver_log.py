"""What the driver sends to PostgreSQL, as the driver itself notes it."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest


class DriverLog:
    """Every statement of connections that are made while it is there.

    Attributes:
        queries: what the driver's own loggers are told: ``query`` is the text, ``args`` are the
            parameters.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.queries: list[Any] = []
        self._connect = asyncpg.connect
        patch.setattr(asyncpg, "connect", self._connect_logged)

    async def _connect_logged(self, *arguments: Any, **options: Any) -> Any:
        connection = await self._connect(*arguments, **options)
        connection.add_query_logger(self.queries.append)
        return connection
