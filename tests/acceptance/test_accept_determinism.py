"""Every rule of docs/determinism.md, on a worker: what is replaced, what is refused and how."""

from __future__ import annotations

import asyncio
import datetime as datetime_module
import os
import random
import secrets
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time as time_by_name
from typing import Any
from urllib.request import urlopen

import pytest
from temporalio.api.enums.v1 import WorkflowTaskFailedCause

import perdure
from perdure import WorkflowStatus, activity, workflow
from perdure.testing import Replayer
from targets import environment

NON_DETERMINISTIC = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR

# --- what raises at once --------------------------------------------------------------------------


def _reads() -> object:
    return Path("settings.toml").read_text()


def _writes() -> object:
    return Path("out.txt").write_text("x")


def _removes() -> object:
    return os.remove("out.txt")


def _lists() -> object:
    return os.listdir(".")


def _threads() -> object:
    threading.Thread(target=print).start()
    return None


def _pools() -> object:
    return ThreadPoolExecutor().submit(print)


def _runs() -> object:
    return subprocess.run(["true"], check=False)


def _systems() -> object:
    return os.system("true")


def _connects() -> object:
    return socket.create_connection(("localhost", 1))


def _fetches() -> object:
    return urlopen("http://localhost:1/")


def _blocks() -> object:
    time.sleep(1)
    return None


def _to_thread() -> object:
    return asyncio.to_thread(print)


def _opens_connection() -> object:
    return asyncio.open_connection("localhost", 1)


def _subprocess_async() -> object:
    return asyncio.create_subprocess_exec("true")


AGAIN = "it would happen again in every replay"
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (_reads, rf"open\(\) \('settings.toml'\) in workflow code at .*\.py:\d+: {AGAIN}"),
    (_writes, rf"open\(\) \('out.txt'\) in workflow code at .*: {AGAIN}"),
    (_removes, rf"os.remove\(\).* in workflow code at .*: {AGAIN}"),
    (_lists, rf"os.listdir\(\).* in workflow code at .*: {AGAIN}"),
    (_threads, rf"starting a thread in workflow code at .*: {AGAIN}"),
    (_pools, rf"starting a thread in workflow code at .*: {AGAIN}"),
    (_runs, rf"subprocess.Popen\(\).* in workflow code at .*: {AGAIN}"),
    (_systems, rf"os.system\(\).* in workflow code at .*: {AGAIN}"),
    (_connects, rf"socket.getaddrinfo\(\).* in workflow code at .*: {AGAIN}"),
    (_fetches, rf"in workflow code at .*: {AGAIN}"),
    (_blocks, r"time.sleep\(\) in workflow code blocks every workflow .* `await asyncio.sleep"),
    (_to_thread, r"loop.run_in_executor\(\) was called in workflow code, .* do not replay"),
    (_opens_connection, r"loop.create_connection\(\) was called in workflow code, .* not replay"),
    (_subprocess_async, r"loop.subprocess_exec\(\) was called in workflow code"),
]


@workflow(name="rules")
async def breaks(number: int) -> str:
    outcome = REFUSED[number][0]()
    if asyncio.iscoroutine(outcome):
        await outcome
    return "done"


@workflow(name="rules")
async def mended(number: int) -> str:
    return "mended"


@workflow(name="rules")
async def swallows(number: int) -> str:
    try:
        outcome = REFUSED[number][0]()
        if asyncio.iscoroutine(outcome):
            await outcome
    except Exception:
        pass
    return "swallowed"


async def _task_failure(handle: perdure.WorkflowHandle[Any]) -> Any:
    for _ in range(2000):
        for event in (await handle.fetch_history()).events:
            if event.HasField("workflow_task_failed_event_attributes"):
                return event.workflow_task_failed_event_attributes
        await asyncio.sleep(0.005)
    raise AssertionError("no workflow task failed")


@pytest.mark.only_on("embedded", reason="it is the worker that refuses; some of them run below")
@pytest.mark.parametrize(
    ("number", "says"), [pytest.param(n, s, id=f.__name__) for n, (f, s) in enumerate(REFUSED)]
)
async def test_what_is_refused_fails_the_task_and_mended_code_goes_on(
    number: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with environment() as env:
        handle = await env.client.start(breaks, number)
        async with env.client.worker(workflows=[breaks], activities=[]):
            failed = await _task_failure(handle)
            assert failed.cause == NON_DETERMINISTIC
            flat = failed.failure.message.replace("\n", " ")
            with pytest.raises(AssertionError, match=says):
                raise AssertionError(flat)
            assert failed.failure.application_failure_info.type == "NonDeterminismError"
            assert (await handle.describe()).status is WorkflowStatus.RUNNING
        assert not os.listdir(tmp_path)
        async with env.client.worker(workflows=[mended], activities=[]):
            assert await handle.result() == "mended"


@pytest.mark.parametrize("number", [0, 4, 10])
async def test_what_is_refused_cannot_be_swallowed_unseen(number: int) -> None:
    async with environment() as env:
        handle = await env.client.start(breaks, number)
        async with env.client.worker(workflows=[swallows], activities=[]):
            assert (await _task_failure(handle)).cause == NON_DETERMINISTIC
            await handle.terminate()


# --- what is made deterministic -------------------------------------------------------------------


@activity
async def echo(n: int) -> int:
    return n


def _looks() -> dict[str, Any]:
    """One look at all that is replaced."""
    return {
        "time": [time.time(), time.time_ns(), time_by_name(), workflow.time_ns()],
        "now": [
            datetime.now(UTC).isoformat(),
            datetime_module.datetime.now().isoformat(),
            workflow.now().isoformat(),
            datetime.now().astimezone(UTC).isoformat(),
            time.strftime("%Y-%m-%d %H:%M:%S"),
            list(time.gmtime())[:6],
        ],
        "clocks": [time.monotonic(), time.perf_counter(), time.process_time_ns()],
        "random": [random.random(), random.randint(0, 9), random.choice("abc")],
        "own": [random.Random().random(), workflow.random("named").random()],
        "ids": [str(uuid.uuid4()), str(uuid.uuid1()), str(workflow.uuid4())],
        "secret": [secrets.token_hex(4), os.urandom(4).hex()],
    }


@workflow
async def looks_around() -> list[dict[str, Any]]:
    seen = [_looks(), _looks()]
    await asyncio.sleep(1)
    seen.append(_looks())
    await echo(1)
    seen.append(_looks())
    return seen


@pytest.mark.parametrize("cached", [0, 100])
async def test_what_is_replaced_replays(cached: int) -> None:
    async with (
        environment() as env,
        env.client.worker(workflows=[looks_around], activities=[echo], max_cached_runs=cached),
    ):
        handle = await env.client.start(looks_around)
        seen = await handle.result()
        # Time stands still within a task, and moves with history between.
        assert seen[0]["time"] == seen[1]["time"]
        assert seen[0]["clocks"] == seen[1]["clocks"]
        assert seen[2]["time"][0] - seen[0]["time"][0] >= 1
        assert seen[2]["clocks"][0] - seen[0]["clocks"][0] >= 1
        assert seen[0]["time"][0] == seen[0]["time"][2]
        for kind in ("random", "own", "ids", "secret"):
            drawn = [str(look[kind]) for look in seen]
            assert len(set(drawn)) == len(drawn), kind
        # The same values in a replay, which ends in the same result, or it is no replay.
        Replayer(workflows=[looks_around]).replay((await handle.fetch_history()).to_json())
        again = await env.client.start(looks_around)
        other = await again.result()
        assert other[0]["random"] != seen[0]["random"]  # each run draws its own


def test_outside_of_workflows_they_are_the_originals() -> None:
    assert time.time() <= time.time_ns() / 1e9 <= time.time()
    assert random.Random(1).random() == random.Random(1).random()
    assert uuid.uuid1() != uuid.uuid1()


# --- ways around ----------------------------------------------------------------------------------

CALLS: list[int] = []


def _count() -> int:
    CALLS.append(1)
    return len(CALLS)


@workflow
async def goes_around() -> list[Any]:
    first = workflow.side_effect(_count, int)
    await asyncio.sleep(0.1)
    with workflow.unsafe():
        real = time.time()
        Path("metrics.txt").write_text("x")  # noqa: ASYNC240
    await asyncio.sleep(0.1)
    return [first, workflow.side_effect(_count, int), real > 0]


@pytest.mark.parametrize("cached", [0, 100])
async def test_ways_around(cached: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CALLS.clear()
    async with (
        environment() as env,
        env.client.worker(workflows=[goes_around], activities=[], max_cached_runs=cached),
    ):
        handle = await env.client.start(goes_around)
        assert await handle.result() == [1, 2, True]
        assert len(CALLS) == 2
        assert (tmp_path / "metrics.txt").exists()
        Replayer(workflows=[goes_around]).replay((await handle.fetch_history()).to_json())
        assert len(CALLS) == 2


# --- changed code ---------------------------------------------------------------------------------


@activity
async def charge() -> None: ...


@activity
async def check_fraud() -> None: ...


@workflow(name="checkout")
async def first_version() -> str:
    await charge()
    await asyncio.sleep(2)
    return "first"


@workflow(name="checkout")
async def changed() -> str:
    await check_fraud()
    await charge()
    await asyncio.sleep(2)
    return "changed"


@workflow(name="checkout")
async def patched() -> str:
    if workflow.patched("check-fraud"):
        await check_fraud()
    await charge()
    await asyncio.sleep(2)
    return "patched"


@workflow(name="checkout")
async def deprecated() -> str:
    workflow.deprecate_patch("check-fraud")
    await check_fraud()
    await charge()
    await asyncio.sleep(2)
    return "deprecated"


def _checkout(client: perdure.Client, version: Any) -> Any:
    return client.worker(workflows=[version], activities=[charge, check_fraud])


async def _asleep(env: Any, workflow_id: str, version: Any) -> perdure.WorkflowHandle[Any]:
    async with _checkout(env.client, version):
        handle: perdure.WorkflowHandle[Any] = await env.client.start(
            "checkout", id=workflow_id, task_timeout=timedelta(seconds=1)
        )
        for _ in range(2000):
            events = (await handle.fetch_history()).events
            if events[-1].HasField("timer_started_event_attributes"):
                return handle
            await asyncio.sleep(0.005)
    raise AssertionError("it never slept")


async def test_changed_code_is_told_with_a_diff_and_a_patch_mends_it() -> None:
    async with environment() as env:
        old = await _asleep(env, "old", first_version)
        await env.sleep(timedelta(seconds=2))
        async with _checkout(env.client, changed):
            failed = await _task_failure(old)
            message = failed.failure.message
            assert failed.cause == NON_DETERMINISTIC
            for part in (
                "does not match its history",
                "history holds: event 5, ActivityTaskScheduled",
                "activity_type='charge'",
                "activity_type='check_fraud'",
                "test_accept_determinism.py:",
                "in changed",
                "workflow.patched(...)",
            ):
                assert part in message, message
            assert (await old.describe()).status is WorkflowStatus.RUNNING
        async with _checkout(env.client, patched):
            assert await old.result() == "patched"
        new = await _asleep(env, "new", patched)
        async with _checkout(env.client, deprecated):
            assert await new.result() == "deprecated"
        kinds = [
            event.activity_task_scheduled_event_attributes.activity_type.name
            for event in (await new.fetch_history()).events
            if event.HasField("activity_task_scheduled_event_attributes")
        ]
        assert kinds == ["check_fraud", "charge"]
