"""A disk that is full or may not be written: callers are told; runs go on when there is room."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import RetryPolicy, RPCError, activity, workflow

DONE: list[int] = []
QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=1))


@activity(retry=QUICK)
async def grow(n: int) -> str:
    DONE.append(n)
    return f"{n}" * 20_000


@workflow
class Growing:
    """Writes 20 kB a step, one for each signal."""

    def __init__(self) -> None:
        self.wanted = 0

    @workflow.run
    async def run(self, steps: int) -> list[int]:
        lengths: list[int] = []
        for n in range(steps):
            await workflow.wait_condition(lambda: self.wanted > len(lengths))
            lengths.append(len(await grow(n)))
        return lengths

    @workflow.signal
    def go(self, steps: int) -> None:
        self.wanted = max(self.wanted, steps)


def _url(path: Path) -> str:
    return f"sqlite:///{path}"


@contextmanager
def _no_room(folder: Path) -> Iterator[None]:
    """No file of this process may grow beyond what the database and its log have now."""
    sizes = [file.stat().st_size for file in folder.iterdir()]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def _fill(handle: perdure.WorkflowHandle[Any]) -> None:
    """Use up what room the database and its log have left."""
    for _ in range(200):
        await handle.signal("nothing", "x" * 10_000)


async def test_a_run_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    DONE.clear()
    async with (
        perdure.connect(_url(tmp_path / "full.db"), retry_for=timedelta(seconds=20)) as client,
        client.worker(workflows=[Growing], activities=[grow]),
    ):
        handle = await client.start(Growing, 6, id="growing")
        await handle.signal(Growing.go, 2)
        while DONE != [0, 1]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        impatient = perdure.Client(client.service, retry_for=timedelta(0))
        with _no_room(tmp_path):
            with pytest.raises(RPCError, match=r"full|disk"):
                await _fill(impatient.handle("growing"))
            with pytest.raises(RPCError, match=r"database"):
                await impatient.start(Growing, 1, id="no-room")
            # Reading goes on.
            assert (await client.count("WorkflowId = 'no-room'")).count == 0
            assert (await handle.describe()).status.name == "RUNNING"
        await handle.signal(Growing.go, 6)
        assert await asyncio.wait_for(handle.result(), 60) == [20_000] * 6
        assert sorted(set(DONE)) == list(range(6))
        await client.start(Growing, 0, id="room")
    assert _check(tmp_path / "full.db") == "ok"
    async with perdure.connect(_url(tmp_path / "full.db")) as client:
        assert await client.handle_of(Growing, "growing").result() == [20_000] * 6
        assert (await client.count()).count == 2


GATES: dict[str, asyncio.Event] = {}


@activity(retry=QUICK)
async def gated(n: int) -> str:
    DONE.append(n)
    GATES["began"].set()
    await GATES["end"].wait()
    return "x" * 20_000


@workflow
async def waits_at_gate() -> int:
    return len(await gated(1))


async def test_an_answer_is_kept_while_there_is_no_room_for_it(tmp_path: Path) -> None:
    """Longer than a client's call is tried again: the activity is not done twice."""
    DONE.clear()
    GATES.update(began=asyncio.Event(), end=asyncio.Event())
    short = timedelta(milliseconds=50)
    async with (
        perdure.connect(_url(tmp_path / "full.db"), retry_for=short) as client,
        client.worker(workflows=[waits_at_gate], activities=[gated]),
    ):
        handle = await client.start(waits_at_gate)
        await GATES["began"].wait()
        with _no_room(tmp_path):
            GATES["end"].set()
            with pytest.raises(RPCError, match=r"full|disk"):
                await _fill(handle)
            await asyncio.sleep(1)
        assert await asyncio.wait_for(handle.result(), 60) == 20_000
        assert DONE == [1]


def _check(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        return str(database.execute("PRAGMA integrity_check").fetchone()[0])


# --- files that may not be written ----------------------------------------------------------------


NOBODY = 65_534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of a user who is bound by permissions, which root is not."""
    made = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(made, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield made
    finally:
        os.seteuid(user)
        made.chmod(stat.S_IRWXU)
        shutil.rmtree(made)


async def _start(path: Path, workflow_id: str) -> None:
    async with perdure.connect(_url(path), retry_for=timedelta(0)) as client:
        await client.start(Growing, 0, id=workflow_id)


async def _ids(path: Path) -> list[str]:
    async with perdure.connect(_url(path)) as client:
        return sorted([run.id async for run in client.list()])


@pytest.mark.parametrize(
    ("what", "mode", "says"),
    [
        ("folder", 0o555, "cannot write in .*Permission denied"),
        ("file", 0o444, "runs.db is read-only: check the permissions"),
        ("file", 0o000, "cannot open .*runs.db: check the permissions"),
    ],
)
async def test_what_may_not_be_written_is_named(
    folder: Path, what: str, mode: int, says: str
) -> None:
    path = folder / "runs.db"
    await _start(path, "kept")
    thing = folder if what == "folder" else path
    thing.chmod(mode)
    with pytest.raises(Exception, match=says):
        await _start(path, "new")
    thing.chmod(stat.S_IRWXU)
    assert await _ids(path) == ["kept"]


async def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(Exception, match=r"folder\.db"):
        await _start(tmp_path / "folder.db", "new")
