"""The examples, on a node, on a perdure server and on a Temporal server."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from targets import environment

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import approval
import orders
import outside
import pipeline


@pytest.fixture(autouse=True)
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The books of the services that the examples call."""
    monkeypatch.setenv(outside.BOOKS_VARIABLE, str(tmp_path / "books.jsonl"))


async def test_orders() -> None:
    activities = [orders.charge, orders.refund, orders.ship, orders.ask_for_review]
    async with (
        environment() as env,
        env.client.worker(workflows=[orders.checkout], activities=activities),
    ):
        assert await orders.run(env.client, 10, quiet=True) == {"shipped": 8, "refunded": 2}
        assert await orders.run(env.client, 10, quiet=True) == {"shipped": 8, "refunded": 2}
    deeds = Counter(line["service"] for line in outside.entries() if line["kind"] == "deed")
    assert deeds == {"payments": 12, "parcels": 8, "mail": 8}


async def test_approval() -> None:
    activities = [approval.publish, approval.check_spelling]
    async with (
        environment() as env,
        env.client.worker(workflows=[approval.Approval], activities=activities),
    ):
        address = await approval.run(env.client, "notice", quiet=True)
        assert address == "https://board.example/notice"
        left = await env.client.handle("notice").query(approval.Approval.status)
        assert (left.text, left.revision) == ("the third text", 2)


async def test_pipeline(tmp_path: Path) -> None:
    activities = [pipeline.download, pipeline.count, pipeline.merge]
    async with (
        environment() as env,
        env.client.worker(workflows=[pipeline.Pipeline], activities=activities),
    ):
        job = pipeline.Job(str(tmp_path / "chunks"), 8)  # the servers under test have low limits
        assert await pipeline.run(env.client, job, quiet=True) == pipeline.expected(8)
