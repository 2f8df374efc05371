"""A newer perdure migrates the database while a node is up."""

from __future__ import annotations

import asyncio
import logging

import asyncpg
import pytest

import perdure
from perdure.store.contract import StoreTooNew
from perdure.store.postgres.schema import MIGRATIONS


async def test_a_running_node_says_that_the_schema_is_newer_and_a_new_one_does_not_start(
    postgres_dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.service.neighbours.BEAT_S", 0.05)
    newer = len(MIGRATIONS) + 1
    words = f"schema version {newer} now, of a newer perdure"
    with caplog.at_level(logging.WARNING, logger="perdure.service"):
        async with perdure.connect(postgres_dsn):
            connection = await asyncpg.connect(postgres_dsn)
            await asyncio.sleep(0.2)
            assert words not in caplog.text
            await connection.execute("INSERT INTO perdure.migrations (number) VALUES ($1)", newer)
            for _ in range(1500):
                if words in caplog.text:
                    break
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)  # some beats more: it is said once
            assert caplog.text.count(words) == 1
            with pytest.raises(StoreTooNew, match=f"schema version {newer}"):
                async with perdure.connect(postgres_dsn):
                    pass
            await connection.close()
