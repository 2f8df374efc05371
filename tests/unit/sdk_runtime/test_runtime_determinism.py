"""Workflow code sees the same world in every execution, and is told where it steps out of it."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from random import randint as early_randint
from time import time as early_time
from typing import Any

import pytest
from stage import FIRST_NS, Stage

from perdure.sdk.activity import activity
from perdure.sdk.runtime import clocks
from perdure.sdk.runtime.streams import MAXIMUM_STREAMS, Streams
from perdure.sdk.workflow import workflow


@activity
async def work(n: Any) -> Any:
    return n


def run_once(function: Callable[[], Any]) -> Stage:
    """A run whose only step is to call a function."""

    @workflow(name="once")
    async def once() -> Any:
        return function()

    stage = Stage(once)
    stage.task()
    return stage


# --- time -----------------------------------------------------------------------------------------

START_NS = FIRST_NS + 2 * 1_000_000_000  # when the first workflow task started


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda: time.time_ns(), START_NS),
        (lambda: time.time(), START_NS / 1e9),
        (lambda: early_time(), START_NS / 1e9),
        (lambda: time.monotonic(), 2.0),
        (lambda: time.perf_counter_ns(), 2_000_000_000),
        (lambda: asyncio.get_running_loop().time(), 2.0),
        (lambda: datetime.now(UTC).timestamp(), START_NS / 1e9),
        (lambda: datetime.now().timestamp(), START_NS / 1e9),
        (lambda: datetime.utcnow().replace(tzinfo=UTC).timestamp(), START_NS / 1e9),
        (lambda: datetime.today().timestamp(), START_NS / 1e9),
        (lambda: date.today().isoformat(), date.fromtimestamp(START_NS / 1e9).isoformat()),
        (lambda: list(time.gmtime()), list(time.gmtime(START_NS // 1_000_000_000))),
        (lambda: list(time.gmtime(0)), list(time.gmtime(0))),
        (lambda: time.strftime("%s"), str(START_NS // 1_000_000_000)),
        (lambda: time.ctime(), time.ctime(START_NS // 1_000_000_000)),
        (lambda: workflow.now().timestamp(), START_NS / 1e9),
        (lambda: workflow.time_ns(), START_NS),
    ],
)
def test_time_is_that_of_the_workflow_task(read: Callable[[], Any], expected: Any) -> None:
    assert run_once(read).result == expected


def test_outside_of_workflows_time_is_real() -> None:
    assert abs(time.time() - early_time()) < 3600
    assert datetime.now(UTC).timestamp() > START_NS / 1e9 + 86_400
    assert clocks.datetime_is_patched
    assert isinstance(datetime.now(), datetime)

    class Own(datetime):
        pass

    assert type(Own.now()) is Own
    assert type(Own.now(UTC)) is Own


def test_time_moves_with_the_tasks() -> None:
    @workflow
    async def sleeper() -> list[float]:
        before = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        return [before, asyncio.get_running_loop().time()]

    stage = Stage(sleeper)
    stage.task()
    stage.fire_timer("1")
    stage.task()
    before, after = stage.result
    assert after - before == len(stage.history) - 2 - 3  # one second an event, in this stage


# --- randomness -----------------------------------------------------------------------------------


def _draws() -> list[Any]:
    return [
        random.random(),
        early_randint(1, 10**12),
        random.choice("abcdefgh"),
        random.Random().random(),
        str(uuid.uuid4()),
        str(uuid.uuid1()),
        secrets.token_hex(8),
        os.urandom(8).hex(),
        str(workflow.uuid4()),
        workflow.random().random(),
        workflow.random("mine").random(),
    ]


def test_randomness_is_the_same_in_every_execution_of_a_run() -> None:
    first, second = run_once(_draws).result, run_once(_draws).result
    assert first == second
    assert len({str(value) for value in first}) == len(first)


def test_outside_of_workflows_randomness_is_random() -> None:
    assert uuid.uuid4() != uuid.uuid4()
    assert random.Random().random() != random.Random().random()


def test_a_draw_in_one_function_shifts_nothing_in_another() -> None:
    def other() -> float:
        return random.random()

    def mine() -> float:
        return random.random()

    alone = run_once(lambda: mine()).result
    after = run_once(lambda: [other(), other(), mine()][2]).result
    assert alone == after


def test_a_reset_draws_anew() -> None:
    streams = Streams("run-a")
    first = [streams.uuid4("x"), streams.get("y").random()]
    streams.reseed("run-b")
    assert [streams.uuid4("x"), streams.get("y").random()] != first
    streams.reseed("run-a")
    assert [streams.uuid4("x"), streams.get("y").random()] == first


def test_streams_are_limited() -> None:
    streams = Streams("run")
    for number in range(MAXIMUM_STREAMS):
        streams.get(str(number))
    with pytest.raises(ValueError, match="random streams"):
        streams.get("one more")


# --- the world ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (lambda: open("/etc/hostname"), "open()"),  # noqa: SIM115
        (lambda: Path("/etc/hostname").read_text(), "open()"),
        (lambda: os.listdir("/"), "os.listdir()"),
        (lambda: time.sleep(0), "time.sleep()"),
        (lambda: threading.Thread(target=print).start(), "starting a thread"),
        (lambda: subprocess.run(["true"]), "subprocess.Popen()"),
        (lambda: os.system("true"), "os.system()"),
        (lambda: socket.socket(), "opening a socket"),
        (lambda: socket.getaddrinfo("localhost", 1), "socket.getaddrinfo()"),
        (lambda: sqlite3.connect(":memory:"), "sqlite3.connect()"),
        (lambda: asyncio.get_running_loop().run_in_executor(None, print), "run_in_executor"),
        (lambda: asyncio.get_running_loop().call_soon_threadsafe(print), "call_soon_threadsafe"),
        (lambda: asyncio.get_running_loop().add_reader(0, print), "add_reader"),
        (lambda: asyncio.get_running_loop().stop(), "loop.stop()"),
    ],
)
def test_what_touches_the_world_is_refused_by_name(act: Callable[[], Any], name: str) -> None:
    stage = run_once(act)
    assert name in stage.error
    assert "activity" in stage.error or "asyncio.sleep" in stage.error


def test_a_refusal_names_file_and_line() -> None:
    def act() -> None:
        os.listdir("/")

    stage = run_once(act)
    assert f"{__file__}:{act.__code__.co_firstlineno + 1}" in stage.error


async def test_to_thread_is_refused() -> None:
    @workflow
    async def threads() -> None:
        await asyncio.to_thread(print)

    stage = Stage(threads)
    stage.task()
    assert "run_in_executor" in stage.error


def test_an_unsafe_block_is_outside_of_the_rules() -> None:
    def act() -> list[Any]:
        with workflow.unsafe():
            names = os.listdir("/")
            now = time.time_ns()
        return [bool(names), now > START_NS + 10**15, time.time_ns()]

    assert run_once(act).result == [True, True, START_NS]


def test_imports_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_late.py").write_text("import os\nVALUE = os.listdir('/') and 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def act() -> int:
        import imported_late  # type: ignore[import-not-found]

        return int(imported_late.VALUE)

    assert run_once(act).result == 5


def test_other_threads_are_not_disturbed() -> None:
    seen: list[bool] = []
    inside, listed = threading.Event(), threading.Event()

    def elsewhere() -> None:
        inside.wait(10)
        seen.append(bool(os.listdir("/")) and time.time_ns() > START_NS + 10**15)
        listed.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    run_once(lambda: [inside.set(), listed.wait(10)][1])
    thread.join()
    assert seen == [True]


# --- order ----------------------------------------------------------------------------------------

_ORDERS = """
import asyncio, json, sys
sys.path.insert(0, {here!r})
from stage import Stage
from perdure.sdk.activity import activity
from perdure.sdk.workflow import workflow

junk = [object() for _ in range({junk})]

@activity
async def work(n: int) -> int:
    return n

@workflow
async def orders() -> list:
    found = []
    async def call(n):
        return await work(n)
    tasks = {{asyncio.create_task(call(n), name=str(n)) for n in range(20)}}
    done, _ = await asyncio.wait(tasks)
    found.append([task.get_name() for task in done])
    async def named(n):
        found.append(n)
        await asyncio.sleep(0)
        return n
    found.append([await f for f in asyncio.as_completed({{named(n) for n in range(1)}})])
    found.append([await f for f in asyncio.as_completed([named(n) for n in range(20)])])
    groups = {{asyncio.gather(named(n)) for n in range(10)}}
    done, _ = await asyncio.wait(groups)
    found.append([group.result()[0] for group in done])
    futures = {{asyncio.get_running_loop().create_future() for _ in range(10)}}
    for number, future in enumerate(futures):
        future.set_result(number)
    done, _ = await asyncio.wait(futures)
    found.append([future.result() for future in done])
    return found

stage = Stage(orders)
stage.task()
for number in range(20):
    stage.complete_activity(str(number + 1), number)
stage.task()
print(json.dumps(stage.result))
"""


def test_sets_of_tasks_are_in_the_same_order_in_every_process() -> None:
    outputs = set()
    for number in range(3):
        code = _ORDERS.format(here=str(Path(__file__).parent), junk=number * 7919)
        environment = {**os.environ, "PYTHONHASHSEED": str(number)}
        outputs.add(
            subprocess.run(
                [sys.executable, "-c", code],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    assert len(outputs) == 1
    assert outputs.pop().startswith("[[")
