"""A newer perdure migrates the database while a node is up."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

import perdure
from perdure import workflow
from perdure.api.errors import FailedPrecondition
from perdure.store.postgres.schema import MIGRATIONS

NEWER = len(MIGRATIONS) + 1
PATIENCE_S = 30


@workflow
async def one() -> int:
    return 1


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.service.neighbours.BEAT_S", 0.05)


async def migrated(dsn: str, oldest: int) -> None:
    """What a newer perdure leaves behind."""
    connection = await asyncpg.connect(dsn)
    statement = "INSERT INTO perdure.migrations (number, oldest) VALUES ($1, $2)"
    await connection.execute(statement, NEWER, oldest)
    await connection.close()


async def until(happened: Callable[[], bool]) -> None:
    for _ in range(50 * PATIENCE_S):
        if happened():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


async def test_a_schema_that_leaves_room_is_noted_once_and_used(
    postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    words = f"schema version {NEWER}, of a newer perdure: this node can go on"
    with caplog.at_level(logging.WARNING, logger="perdure.service"):
        async with perdure.connect(postgres_dsn) as client:
            await asyncio.sleep(0.2)
            assert words not in caplog.text
            await migrated(postgres_dsn, NEWER - 1)
            await until(lambda: words in caplog.text)
            await asyncio.sleep(0.2)  # some beats more: it is said once
            assert caplog.text.count(words) == 1
            async with client.worker(workflows=[one], activities=[]):
                assert await client.execute(one, id="one") == 1


async def test_an_embedded_node_says_that_the_schema_is_too_new_and_stops(
    postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        perdure.connect(postgres_dsn) as client,
        client.worker(workflows=[one], activities=[]),
    ):
        assert await client.execute(one, id="before") == 1
        await migrated(postgres_dsn, NEWER)
        await until(lambda: "this node stops" in caplog.text)
        for call in (client.start(one, id="after"), client.execute(one, id="as-well")):
            with pytest.raises(FailedPrecondition, match=f"schema version {NEWER}"):
                await asyncio.wait_for(call, PATIENCE_S)
    assert caplog.text.count("this node stops") == 1
    assert "install the newer perdure" in caplog.text


def test_a_server_says_so_and_ends(postgres_dsn: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perdure.cli", "server", "--db", postgres_dsn, "--port", "0"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=os.environ)
    try:
        assert server.stdout is not None
        assert b"gRPC on" in server.stdout.readline()
        asyncio.run(migrated(postgres_dsn, NEWER))
        assert server.wait(PATIENCE_S) == 1
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGKILL)
            server.wait()
    said = (tmp_path / "log").read_text()
    assert f"schema version {NEWER}" in said
    assert "install the newer perdure" in said
    assert "Traceback" not in said
