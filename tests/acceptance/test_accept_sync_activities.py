"""Plain ``def`` activities: in threads, and in child processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    ActivityCancellationType,
    ActivityError,
    ActivityNotFoundError,
    ApplicationError,
    CancellationReason,
    Client,
    RetryPolicy,
    WorkflowFailedError,
    activity,
    workflow,
)
from targets import environment

ONCE = RetryPolicy(maximum_attempts=1)
SOON = RetryPolicy(initial_interval=timedelta(milliseconds=1), maximum_attempts=3)
SECOND = timedelta(seconds=1)


class CardDeclined(Exception):
    pass


# Files tell the test what happened: they are seen from a thread and from another process alike.


def _note(folder: str, name: str, text: str = "") -> None:
    path = Path(folder, f"{name}.part")
    path.write_text(text)
    path.rename(Path(folder, name))


async def _noted(folder: Path, name: str) -> str:
    path = folder / name
    for _ in range(3000):
        if path.exists():
            return path.read_text()
        await asyncio.sleep(0.01)
    raise AssertionError(f"{name} never came")


def _where(n: int) -> tuple[int, str, int]:
    info = activity.info()
    return os.getpid(), f"{info.activity_type} {info.attempt}", n + 1


def _fail(card: str) -> None:
    try:
        raise KeyError(card)
    except KeyError as error:
        raise CardDeclined(f"no money on {card}") from error


def _refuse(card: str) -> None:
    raise ApplicationError("refused", {"card": card}, type="Refused", non_retryable=True)


def _beat_until_cancelled(folder: str) -> str:
    _note(folder, "began")
    try:
        while True:
            activity.heartbeat("alive")
            time.sleep(0.005)
    except asyncio.CancelledError:
        reason = activity.cancellation_reason()
        _note(folder, "asked", "" if reason is None else reason.name)
        raise


def _ask_until_cancelled(folder: str) -> str:
    _note(folder, "began")
    while not activity.is_cancelled():
        with activity.shield():
            activity.heartbeat()
        time.sleep(0.005)
    return "finished anyway"


def _wait_until_cancelled(folder: str) -> str:
    _note(folder, "began")
    with activity.shield():
        activity.heartbeat()
    assert activity.wait_for_cancelled_sync(timedelta(seconds=30))
    return "waited"


def _silent(folder: str) -> str:
    attempt = activity.info().attempt
    if attempt > 1:
        return f"attempt {attempt} after {list(activity.info().heartbeat_details)}"
    activity.heartbeat("half", 50)
    _note(folder, "began", str(os.getpid()))
    while not Path(folder, "released").exists():
        time.sleep(0.005)
    return "too late"


# Made by hand for both executors; a child process finds them by these names in this module.
thread_where = activity(name="thread-where")(_where)
thread_fail = activity(name="thread-fail")(_fail)
thread_refuse = activity(name="thread-refuse")(_refuse)
thread_beat = activity(name="thread-beat")(_beat_until_cancelled)
thread_ask = activity(name="thread-ask")(_ask_until_cancelled)
thread_wait = activity(name="thread-wait", auto_heartbeat=True)(_wait_until_cancelled)
thread_silent = activity(name="thread-silent")(_silent)
process_where = activity(name="process-where", executor="process")(_where)
process_fail = activity(name="process-fail", executor="process")(_fail)
process_refuse = activity(name="process-refuse", executor="process")(_refuse)
process_beat = activity(name="process-beat", executor="process")(_beat_until_cancelled)
process_ask = activity(name="process-ask", executor="process")(_ask_until_cancelled)
process_wait = activity(name="process-wait", executor="process", auto_heartbeat=True)(
    _wait_until_cancelled
)
process_silent = activity(name="process-silent", executor="process")(_silent)


@activity(executor="process", retry=SOON)
def is_killed(folder: str) -> str:
    if activity.info().attempt == 1:
        _note(folder, "pid", str(os.getpid()))
        time.sleep(3600)
    return f"attempt {activity.info().attempt}"


@activity
def thread_name() -> str:
    return threading.current_thread().name


ALL = [
    value
    for name, value in dict(globals()).items()
    if name.startswith(("thread_", "process_", "is_killed"))
]


LOCAL: dict[str, Any] = {made.name: made for made in ALL}


@workflow
async def call(kind: str, argument: Any, local: bool = False) -> Any:
    if local:
        return await LOCAL[kind].options(retry=ONCE).local(argument)
    return await workflow.execute_activity(
        kind, argument, heartbeat_timeout=SECOND * 20, retry=ONCE
    )


@workflow
async def call_retried(kind: str, folder: str, heartbeat_s: float = 20) -> Any:
    return await workflow.execute_activity(
        kind, folder, heartbeat_timeout=timedelta(seconds=heartbeat_s), retry=SOON
    )


@workflow
class Cancelling:
    """Cancels its activity when it is told to."""

    def __init__(self) -> None:
        self.go_on = False

    @workflow.run
    async def run(self, kind: str, folder: str) -> str:
        task = asyncio.create_task(
            workflow.execute_activity(
                kind,
                folder,
                result_type=str,
                heartbeat_timeout=SECOND,
                cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            )
        )
        await workflow.wait_condition(lambda: self.go_on)
        task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return "cancelled"

    @workflow.signal
    def cancel(self) -> None:
        self.go_on = True


WORKFLOWS = [call, call_retried, Cancelling]
BOTH = pytest.mark.parametrize("executor", ["thread", "process"])


def _worker(client: Client) -> Any:
    return client.worker(
        workflows=WORKFLOWS, activities=ALL, max_processes=1, graceful_shutdown_timeout=SECOND * 0
    )


async def _cause(client: Client, kind: str, local: bool) -> ApplicationError:
    """Why the activity failed, as the caller of its workflow sees it."""
    with pytest.raises(WorkflowFailedError) as caught:
        await client.execute(call, kind, "card-1", local)
    failed = caught.value.cause
    assert isinstance(failed, ActivityError)
    assert failed.activity_type == kind
    assert isinstance(failed.cause, ApplicationError)
    return failed.cause


@BOTH
async def test_what_they_are_and_how_they_fail(executor: str) -> None:
    async with environment() as env, _worker(env.client):
        for local in (False, True):
            pid, who, n = await env.client.execute(call, f"{executor}-where", 5, local)
            assert (pid == os.getpid()) is (executor == "thread")
            assert (who, n) == (f"{executor}-where 1", 6)

            declined = await _cause(env.client, f"{executor}-fail", local)
            assert (declined.type, declined.message) == ("CardDeclined", "no money on card-1")
            assert 'raise CardDeclined(f"no money on {card}") from error' in declined.stack_trace
            assert "site-packages" not in declined.stack_trace
            assert isinstance(declined.cause, ApplicationError)
            assert (declined.cause.type, declined.cause.message) == ("KeyError", "'card-1'")
            assert "raise KeyError(card)" in declined.cause.stack_trace

            refused = await _cause(env.client, f"{executor}-refuse", local)
            assert (refused.type, refused.details) == ("Refused", ({"card": "card-1"},))
            assert refused.non_retryable


async def _cancelled(client: Client, kind: str, folder: Path) -> str:
    handle = await client.start(Cancelling, kind, str(folder))
    await _noted(folder, "began")
    await handle.signal(Cancelling.cancel)
    return await handle.result()


@BOTH
async def test_cancellation_reaches_them(executor: str, tmp_path: Path) -> None:
    async with environment() as env, _worker(env.client):
        await env.client.execute(call, f"{executor}-where", 0)  # a child takes a while to start
        assert await _cancelled(env.client, f"{executor}-beat", tmp_path) == "cancelled"
        asked = await _noted(tmp_path, "asked")
        assert asked == CancellationReason.CANCEL_REQUESTED.name
        for kind, ended in (("ask", "finished anyway"), ("wait", "waited")):
            (tmp_path / "began").unlink()
            assert await _cancelled(env.client, f"{executor}-{kind}", tmp_path) == ended


@BOTH
async def test_heartbeats_reach_the_next_attempt(executor: str, tmp_path: Path) -> None:
    """An attempt that falls silent is given up, whatever it does; time skips for no activity."""
    async with environment() as env, _worker(env.client):
        await env.client.execute(call, f"{executor}-where", 0)
        handle = await env.client.start(call_retried, f"{executor}-silent", str(tmp_path), 0.3)
        await _noted(tmp_path, "began")
        while True:
            pending = (await handle.describe()).pending_activities
            if not pending or pending[0].attempt == 2:
                break
            await asyncio.sleep(0.01)
        (tmp_path / "released").touch()  # the one child process that there is
        assert await handle.result() == "attempt 2 after ['half', 50]"


async def test_a_process_that_is_killed_fails_its_attempt_and_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "perdure.activity")
    async with environment() as env, _worker(env.client):
        handle = await env.client.start(call_retried, "is_killed", str(tmp_path))
        os.kill(int(await _noted(tmp_path, "pid")), signal.SIGKILL)
        assert await handle.result() == "attempt 2"
        assert "A child process died" in caplog.text
        assert (await env.client.execute(call, "process-where", 1))[2] == 2


async def test_a_thread_cannot_be_completed_after_its_run_is_gone(tmp_path: Path) -> None:
    """The attempt is told to stop by its next heartbeat, and its answer changes nothing."""
    async with environment() as env, _worker(env.client):
        handle = await env.client.start(call_retried, "thread-beat", str(tmp_path), 0.3)
        await _noted(tmp_path, "began")
        (pending,) = (await handle.describe()).pending_activities
        await handle.terminate()
        assert await _noted(tmp_path, "asked") == CancellationReason.NOT_FOUND.name
        late = env.client.activity_handle(workflow_id=handle.id, activity_id=pending.activity_id)
        with pytest.raises(ActivityNotFoundError):
            await late.complete("late")


async def test_threads_have_names() -> None:
    @workflow
    async def asks() -> str:
        return await thread_name()

    async with (
        environment() as env,
        env.client.worker(workflows=[asks], activities=[thread_name]),
    ):
        assert (await env.client.execute(asks)).startswith("perdure-activity-")
