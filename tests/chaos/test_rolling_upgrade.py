"""Nodes of a former commit and of this one work on one database, and the old are replaced."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType
from tests.faults.check import check
from tests.faults.client import STOP
from tests.faults.siege import FINISH_WITHIN_S, READY_WITHIN_S, ROOT, Part, free_port

import crash_check
from perdure.store.postgres import PostgresStore

FIRST_SCHEMA = "380c3bd"
"""A commit whose nodes share a database right, and do not know the second schema. In the first ones
(from 7abb61a on) the native transport cannot reach PostgreSQL, and a query may be answered from a
worker's old copy of a run."""

FORMER = "252ce67"
"""A commit that leaves room for older nodes, and knows when it may go on itself; its nodes tell
others of a commit within it, and judge at once who is dead."""

LAST = "HEAD~1"
"""The commit before this one."""

STEPS = 8
"""So many acknowledgements are waited for in each phase."""


def former_source(commit: str, folder: Path) -> Path:
    """The package as it was."""
    packed = subprocess.run(
        ["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=False
    )
    if packed.returncode:
        pytest.skip(f"the git history does not have {commit}: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


class Upgrade:
    """Two nodes, each with a worker and a client, all processes of their own.

    Args:
        folder: where logs, books and diary are kept.
        dsn: the database of both nodes.
        former: the source of the former commit.
    """

    def __init__(self, folder: Path, dsn: str, former: Path) -> None:
        folder.mkdir()
        self.folder, self.dsn, self.former = folder, dsn, former
        self.ports = [free_port(), free_port()]
        self.parts: list[Part] = []
        self.clients: list[Part] = []

    def start_node(self, number: int, source: Path) -> Part:
        """A node of one of the commits, as soon as it listens."""
        node = self.launch(number, source)
        self.wait(lambda: "gRPC on" in node.written(), node)
        return node

    def launch(self, number: int, source: Path) -> Part:
        """A node's process."""
        command = [sys.executable, "-m", "perdure.cli", "server"]
        command += ["--db", self.dsn, "--port", str(self.ports[number])]
        node = Part(self.folder, f"node-{number}", command, {"PYTHONPATH": str(source)})
        self.parts.append(node)
        return node

    def start_others(self) -> None:
        """A worker and a client at each node."""
        for number, port in enumerate(self.ports):
            address = f"127.0.0.1:{port}"
            worker = [sys.executable, "-m", "tests.faults.worker", address, f"worker-{number}"]
            self.parts.append(Part(self.folder, f"worker-{number}", worker))
            client = [sys.executable, "-m", "tests.faults.client", address]
            client += [str(self.folder), str(number), str(number * 1000)]
            self.clients.append(Part(self.folder, f"client-{number}", client))

    def wait(self, is_done: Callable[[], bool], *alive: Part) -> None:
        """Wait for something while processes must live."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not is_done():
            for part in alive:
                part.must_live()
            assert time.monotonic() < deadline, [part.written()[-2000:] for part in self.parts]
            time.sleep(0.05)

    def work_goes_on(self, *nodes: Part) -> None:
        """Clients are told many things more."""
        until = self.told() + STEPS
        self.wait(lambda: self.told() >= until, *nodes, *self.clients)

    def told(self) -> int:
        """How many acknowledgements there were."""
        diary = self.folder / "diary.jsonl"
        return diary.read_bytes().count(b"\n") if diary.exists() else 0

    def finish(self) -> None:
        """Let the clients hear all results."""
        (self.folder / STOP).touch()
        for client in self.clients:
            assert client.process.wait(FINISH_WITHIN_S) == 0, client.written()[-3000:]


@contextmanager
def upgrading(folder: Path, dsn: str, former: Path) -> Iterator[Upgrade]:
    """An upgrade whose processes are gone at the end."""
    upgrade = Upgrade(folder, dsn, former)
    try:
        yield upgrade
    finally:
        for part in (*upgrade.clients, *upgrade.parts):
            part.kill()


def replace(upgrade: Upgrade, node: Part, number: int, source: Path) -> Part:
    """Stop a node as its supervisor does, and start the other commit's in its place."""
    stop(node)
    return upgrade.start_node(number, source)


def stop(node: Part) -> None:
    """Let a node leave."""
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(READY_WITHIN_S) == 0, node.written()[-2000:]


@pytest.mark.parametrize("commit", [FIRST_SCHEMA, FORMER])
def test_the_former_commit_is_really_run(tmp_path: Path, commit: str) -> None:
    former = former_source(commit, tmp_path / "former")
    asked = subprocess.run(
        [sys.executable, "-c", "import perdure; print(perdure.__file__)"],
        env=os.environ | {"PYTHONPATH": str(former)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(asked.stdout.strip()).is_relative_to(former)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("commit", [FORMER, LAST])
async def test_nodes_of_two_commits_share_a_database_while_the_old_are_replaced(
    tmp_path: Path, postgres_dsn: str, commit: str
) -> None:
    former, present = former_source(commit, tmp_path / "former"), ROOT / "src"
    folder = tmp_path / "upgrade"
    with upgrading(folder, postgres_dsn, former) as upgrade:
        first = upgrade.start_node(0, former)  # its schema is what the new one finds
        second = upgrade.start_node(1, former)
        upgrade.start_others()
        upgrade.work_goes_on(first, second)
        second = replace(upgrade, second, 1, present)
        upgrade.work_goes_on(first, second)
        first = replace(upgrade, first, 0, present)
        upgrade.work_goes_on(first, second)
        first = replace(upgrade, first, 0, former)  # and back, as after a bad release
        upgrade.work_goes_on(first, second)
        upgrade.finish()
    found = await check(folder, PostgresStore(postgres_dsn))
    assert not found.wrong, "\n".join(found.wrong[:20])
    assert found.told >= 4 * STEPS
    assert await runs_of_two_workers(PostgresStore(postgres_dsn)) > 0


@pytest.mark.timeout(300)
async def test_nodes_of_the_first_schema_serve_on_while_it_is_migrated(
    tmp_path: Path, postgres_dsn: str
) -> None:
    former, present = former_source(FIRST_SCHEMA, tmp_path / "former"), ROOT / "src"
    folder = tmp_path / "upgrade"
    with upgrading(folder, postgres_dsn, former) as upgrade:
        first = upgrade.start_node(0, former)
        second = upgrade.start_node(1, former)
        upgrade.start_others()
        upgrade.work_goes_on(first, second)
        second = replace(upgrade, second, 1, present)
        upgrade.work_goes_on(first, second)
        stop(first)
        first = upgrade.launch(0, former)  # it serves on, but does not start again
        assert first.process.wait(READY_WITHIN_S) == 1
        assert "schema version" in first.written()
        first = upgrade.start_node(0, present)
        upgrade.work_goes_on(first, second)
        upgrade.finish()
    found = await check(folder, PostgresStore(postgres_dsn))
    assert not found.wrong, "\n".join(found.wrong[:20])
    assert found.told >= 3 * STEPS


async def runs_of_two_workers(store: PostgresStore) -> int:
    """How many runs went on at both nodes: each node has one worker."""
    count = 0
    for run in await crash_check.read_all(store):
        workers = {
            event.activity_task_started_event_attributes.identity
            or event.workflow_task_started_event_attributes.identity
            for event in run.events
            if event.event_type
            in (
                EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED,
                EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED,
            )
        }
        count += {"worker-0", "worker-1"} <= workers
    return count
