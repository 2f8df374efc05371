"""Bad input: a clear error, and nothing stored."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.workflowservice.v1 import (
    RespondActivityTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    StartWorkflowExecutionRequest,
)

import perdure
from perdure import (
    ActivityError,
    ConversionError,
    RetryPolicy,
    RPCError,
    WorkflowFailedError,
    activity,
    workflow,
)
from perdure.testing import environment


@dataclass
class Order:
    id: str
    cents: int


@activity
async def takes_int(n: int) -> int:
    return n


@workflow
async def takes_order(order: Order) -> str:
    return order.id


@workflow
async def unknown_activity() -> Any:
    return await workflow.execute_activity(
        "no_such_activity",
        start_to_close_timeout=timedelta(seconds=1),
        retry=RetryPolicy(maximum_attempts=1),
    )


async def _count(client: perdure.Client) -> int:
    return (await client.count()).count


async def test_an_unknown_activity_type_is_named_with_those_there_are() -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[unknown_activity], activities=[takes_int]),
    ):
        with pytest.raises(WorkflowFailedError) as caught:
            await env.client.execute(unknown_activity)
        assert isinstance(caught.value.cause, ActivityError)
        assert "no_such_activity" in str(caught.value.cause.cause)
        assert "takes_int" in str(caught.value.cause.cause)


async def test_an_unknown_workflow_type_leaves_the_run_open_and_is_named() -> None:
    async with environment() as env, env.client.worker(workflows=[takes_order], activities=[]):
        handle = await env.client.start("no_such_workflow")
        await env.sleep(timedelta(seconds=5))
        assert (await handle.describe()).status.name == "RUNNING"
        failures = [
            event.workflow_task_failed_event_attributes.failure.message
            for event in (await handle.fetch_history()).events
            if event.HasField("workflow_task_failed_event_attributes")
        ]
        assert failures
        assert "no_such_workflow" in failures[0]


@pytest.mark.parametrize("value", [3, {"id": "a"}, None])
async def test_arguments_that_do_not_convert_are_refused_at_the_start(value: Any) -> None:
    async with environment() as env:
        with pytest.raises((ConversionError, TypeError), match="order"):
            await env.client.start(takes_order, value)
        assert await _count(env.client) == 0


async def test_too_many_and_unknown_arguments() -> None:
    async with environment() as env:
        with pytest.raises(TypeError, match="takes_order"):
            await env.client.start(takes_order)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="identifier"):
            await env.client.start(takes_order, Order("a", 1), identifier="x")  # type: ignore[call-arg]
        assert await _count(env.client) == 0


async def test_an_id_over_the_limit_is_named() -> None:
    async with environment() as env:
        with pytest.raises(ValueError, match="id: 1001 bytes"):
            await env.client.start(takes_order, Order("a", 1), id="x" * 1001)
        assert await _count(env.client) == 0


def _start(**fields: Any) -> StartWorkflowExecutionRequest:
    request = StartWorkflowExecutionRequest(
        namespace="default", workflow_id="w", request_id="r", identity="me"
    )
    request.workflow_type.name = "t"
    request.task_queue.name = "q"
    for name, value in fields.items():
        setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"workflow_id": "x" * 1001}, "(?i)workflow_?id"),
        ({"workflow_id": ""}, "(?i)workflow_?id"),
        ({"request_id": "x" * 1001}, "(?i)request_?id"),
        ({"cron_schedule": "61 * * * *"}, "(?i)cron"),
        ({"namespace": "nowhere"}, "nowhere"),
        ({"identity": "x" * 1001}, "(?i)identity"),
    ],
)
async def test_raw_starts_are_checked(fields: dict[str, Any], says: str) -> None:
    async with environment() as env:
        with pytest.raises(RPCError, match=says):
            await env.client.service.start_workflow_execution(_start(**fields))
        assert await _count(env.client) == 0


async def test_empty_names_are_refused() -> None:
    async with environment() as env:
        for part in ("workflow_type", "task_queue"):
            request = _start()
            getattr(request, part).name = ""
            with pytest.raises(RPCError, match="(?i)" + part.replace("_", "[_ ]?")):
                await env.client.service.start_workflow_execution(request)
        assert await _count(env.client) == 0


async def test_a_payload_over_the_limit_is_refused() -> None:
    async with environment() as env:
        request = _start()
        request.input.payloads.append(Payload(data=b"x" * (2 * 1024 * 1024 + 1)))
        with pytest.raises(RPCError, match=r"(?i)size|large|limit|bytes"):
            await env.client.service.start_workflow_execution(request)
        assert await _count(env.client) == 0


@pytest.mark.parametrize("token", [b"", b"rubbish", b"\xff" * 40, b"\x00", b"{}" * 500])
async def test_wrong_task_tokens(token: bytes) -> None:
    async with environment() as env:
        service = env.client.service
        for method, kind in (
            ("respond_activity_task_completed", RespondActivityTaskCompletedRequest),
            ("respond_workflow_task_completed", RespondWorkflowTaskCompletedRequest),
        ):
            with pytest.raises(RPCError, match=r"(?i)token"):
                await getattr(service, method)(kind(namespace="default", task_token=token))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("WorkflowType = ", "14|end"),
        ("WorkflowType == 'x' AND AND", "AND"),
        ("Nonsense = 1", "Nonsense"),
        ("ExecutionStatus = 'Rnning'", "Rnning"),
        ("StartTime > 'yesterday'", "yesterday"),
        ("WorkflowType = 'x'; DROP TABLE executions", "semicolon"),
        ("(WorkflowType = 'x'", r"\)|end"),
        ("WorkflowType = 'x", "column 16"),
        ("ORDER BY", "end|ORDER"),
        ("(" * 5000, "."),
    ],
)
async def test_a_filter_that_cannot_be_read_says_where(text: str, says: str) -> None:
    async with environment() as env:
        with pytest.raises(RPCError, match=says):
            [run async for run in env.client.list(text)]
        with pytest.raises(RPCError, match=says):
            await env.client.count(text)


# --- the file -------------------------------------------------------------------------------------


def _url(path: Path) -> str:
    return f"sqlite:///{path}"


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    async with perdure.connect(_url(path)):
        pass
    with sqlite3.connect(path) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        assert version > 0
        database.execute("PRAGMA user_version = 9999")
    with pytest.raises(Exception, match="9999"):
        async with perdure.connect(_url(path)):
            pass


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("this is no database\n" * 500)
    with pytest.raises(Exception, match=r"text.db"):
        async with perdure.connect(_url(path)):
            pass
    assert path.read_text().startswith("this is no database")


async def test_another_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (a)")
    with pytest.raises(Exception, match=r"other.db"):
        async with perdure.connect(_url(path)):
            pass


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="missing"):
        async with perdure.connect(_url(tmp_path / "missing" / "a.db")):
            pass


async def test_a_second_process_is_told_who_holds_the_file(tmp_path: Path) -> None:
    path = tmp_path / "held.db"
    code = (
        "import asyncio, perdure\n"
        "async def main():\n"
        f"    async with perdure.connect({_url(path)!r}): pass\n"
        "asyncio.run(main())\n"
    )
    async with perdure.connect(_url(path)):
        second = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert second.returncode != 0
        assert str(os.getpid()) in second.stderr.splitlines()[-1]
        with pytest.raises(Exception, match="this same process"):
            async with perdure.connect(_url(path)):
                pass
    third = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], check=False, timeout=60
    )
    assert third.returncode == 0
