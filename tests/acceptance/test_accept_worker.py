"""The worker: its cache of runs, its slots, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import CancellationReason, activity, workflow
from perdure.testing import Replayer
from targets import environment

SECOND = timedelta(seconds=1)


# --- the cache ------------------------------------------------------------------------------------


@activity
async def echo(n: int) -> int:
    return n


@workflow
class Mixed:
    """Time, randomness, activities, timers and messages, in an order that must replay."""

    def __init__(self) -> None:
        self.told: list[int] = []

    @workflow.run
    async def run(self, n: int) -> list[Any]:
        out: list[Any] = [random.random(), str(uuid.uuid4()), time.time()]
        for step in range(5):
            out.append(await echo(step * n))
            await asyncio.sleep(step / 20)
            out += [random.randint(0, 1000), time.time()]
        await workflow.wait_condition(lambda: len(self.told) == 2)
        return [*out, *self.told]

    @workflow.signal
    def tell(self, n: int) -> None:
        self.told.append(n)

    @workflow.query
    def now(self) -> list[int]:
        return self.told


@pytest.mark.parametrize("cached", [0, 1, 3, 1000])
async def test_evicted_runs_give_the_same_results(cached: int) -> None:
    async with environment() as env:
        worker = env.client.worker(workflows=[Mixed], activities=[echo], max_cached_runs=cached)
        async with worker:
            handles = [await env.client.start(Mixed, n, id=f"m-{n}") for n in range(8)]
            for told in (1, 2):
                for handle in handles:
                    await handle.signal(Mixed.tell, told)
                    assert (await handle.query(Mixed.now))[-1] == told
                for _ in range(100):  # the last answer may be on its way to a server
                    if worker._workflow_worker.cached_runs <= cached:
                        break
                    await asyncio.sleep(0.01)
                assert worker._workflow_worker.cached_runs <= cached
            for n, handle in enumerate(handles):
                out = await handle.result()
                assert out[-2:] == [1, 2]
                assert out[3::3][:5] == [0, n, 2 * n, 3 * n, 4 * n]
                history = (await handle.fetch_history()).to_json()
                Replayer(workflows=[Mixed]).replay(history)
                assert "EVENT_TYPE_WORKFLOW_TASK_FAILED" not in history


# --- slots ----------------------------------------------------------------------------------------


class Gauge:
    """How many run now, and how many ran at a time at most."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.now -= 1


GAUGE = Gauge()


@activity
async def measured(n: int) -> int:
    with GAUGE:
        await asyncio.sleep(0.01)
    return n


@activity
def measured_in_thread(n: int) -> int:
    with GAUGE:
        time.sleep(0.01)
    return n


@workflow
async def fans_out(n: int, threads: bool, local: bool) -> int:
    call: Any = measured_in_thread if threads else measured
    if local:
        call = call.local
    return sum(await asyncio.gather(*[call(k) for k in range(n)]))


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("local", [False, True])
async def test_no_more_activities_run_than_there_are_slots(threads: bool, local: bool) -> None:
    GAUGE.most = 0
    async with (
        environment() as env,
        env.client.worker(
            workflows=[fans_out],
            activities=[measured, measured_in_thread],
            max_concurrent_activities=3,
            max_concurrent_local_activities=3,
        ),
    ):
        assert await env.client.execute(fans_out, 20, threads, local) == sum(range(20))
    assert GAUGE.most <= 3
    if local:  # others come as fast as a server gives them out
        assert GAUGE.most == 3


# --- the end of a worker --------------------------------------------------------------------------

BEGAN: dict[str, asyncio.Event] = {}
SEEN: list[str] = []


@activity(start_to_close_timeout=timedelta(hours=1))
async def finishes(key: str) -> str:
    BEGAN[key].set()
    while not activity.is_worker_shutting_down():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)  # it takes its time within the grace period
    return f"finished in attempt {activity.info().attempt}"


@activity(start_to_close_timeout=timedelta(hours=1))
async def is_cut_off(key: str) -> str:
    if activity.info().attempt > 1:
        return f"attempt {activity.info().attempt} after {list(activity.info().heartbeat_details)}"
    activity.heartbeat("half")
    BEGAN[key].set()
    try:
        await asyncio.sleep(3600)
    finally:
        reason = activity.cancellation_reason()
        SEEN.append("" if reason is None else reason.name)
    return "never"


@activity(start_to_close_timeout=timedelta(hours=1))
def thread_is_cut_off(key: str) -> str:
    if activity.info().attempt > 1:
        return f"attempt {activity.info().attempt} after {list(activity.info().heartbeat_details)}"
    activity.heartbeat("half")
    asyncio.run_coroutine_threadsafe(_began(key), LOOP[0])
    try:
        while True:
            activity.heartbeat("half")
            time.sleep(0.005)
    finally:
        reason = activity.cancellation_reason()
        SEEN.append("" if reason is None else reason.name)


@activity(start_to_close_timeout=timedelta(hours=1))
def thread_ignores(key: str) -> str:
    if activity.info().attempt > 1:
        return f"attempt {activity.info().attempt} after {list(activity.info().heartbeat_details)}"
    with activity.shield():
        activity.heartbeat("half")
    asyncio.run_coroutine_threadsafe(_began(key), LOOP[0])
    RELEASED.wait(60)
    return "too late"


LOOP: list[asyncio.AbstractEventLoop] = []
RELEASED = threading.Event()


async def _began(key: str) -> None:
    BEGAN[key].set()


@workflow
async def calls(kind: str, key: str) -> str:
    return await workflow.execute_activity(
        kind, key, result_type=str, start_to_close_timeout=timedelta(hours=1)
    )


ENDING = [finishes, is_cut_off, thread_is_cut_off, thread_ignores]


@pytest.mark.parametrize(
    ("kind", "grace", "expected", "seen"),
    [
        ("finishes", 10 * SECOND, "finished in attempt 1", []),
        (
            "is_cut_off",
            0 * SECOND,
            "attempt 2 after ['half']",
            [CancellationReason.WORKER_SHUTDOWN.name],
        ),
        (
            "thread_is_cut_off",
            0 * SECOND,
            "attempt 2 after ['half']",
            [CancellationReason.WORKER_SHUTDOWN.name],
        ),
        ("thread_ignores", 0 * SECOND, "attempt 2 after ['half']", []),
    ],
)
async def test_what_runs_is_finished_or_handed_to_the_next_worker(
    kind: str, grace: timedelta, expected: str, seen: list[str], tmp_path: Path
) -> None:
    SEEN.clear()
    RELEASED.clear()
    LOOP[:] = [asyncio.get_running_loop()]
    BEGAN[kind] = asyncio.Event()
    async with perdure.connect(f"sqlite:///{tmp_path}/ends.db") as client:
        async with client.worker(
            workflows=[calls], activities=ENDING, graceful_shutdown_timeout=grace
        ):
            handle = await client.start(calls, kind, kind)
            await BEGAN[kind].wait()
        assert seen == SEEN
        async with client.worker(workflows=[calls], activities=ENDING):
            # Its time limit is an hour: it does not wait for that.
            assert await asyncio.wait_for(handle.result(), 30) == expected
        RELEASED.set()
        events = (await handle.fetch_history()).events
        assert not any(e.HasField("activity_task_timed_out_event_attributes") for e in events)


async def test_a_stopped_worker_takes_nothing_more_and_its_runs_go_on_elsewhere() -> None:
    async with environment() as env:
        handle = None
        for n in range(3):
            async with env.client.worker(workflows=[Mixed], activities=[echo]):
                if handle is None:
                    handle = await env.client.start(Mixed, 1)
                await handle.signal(Mixed.tell, n)
                assert (await handle.query(Mixed.now))[-1] == n
                if n == 1:
                    break
        assert handle is not None
        async with env.client.worker(workflows=[Mixed], activities=[echo]):
            assert (await handle.result())[-2:] == [0, 1]
        worker = env.client.worker(workflows=[Mixed], activities=[])
        async with worker:
            pass
        with pytest.raises(RuntimeError, match="only once"):
            await worker.run()


STUBBORN = """
import asyncio, threading, time
import perdure
from perdure import activity, workflow

@activity
def stubborn() -> None:
    print("began", flush=True)
    while True:
        time.sleep(0.01)

@workflow
async def flow() -> None:
    await stubborn()

print("here", flush=True)
perdure.execute(flow, target="memory://")
"""


def test_a_script_that_is_interrupted_twice_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(STUBBORN)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & ignores it
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["here\n", "began\n"]
    try:
        for _ in range(40):  # two do, unless a busy machine delivers them as one
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert process.wait(1) != 0
                break
        else:
            pytest.fail("the script goes on after Ctrl-C, whatever one does")
    finally:
        process.kill()
        process.stdout.close()
