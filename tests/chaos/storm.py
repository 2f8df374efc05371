"""What goes on while everything breaks: nodes, workers and clients, each a process of its own."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from tests.faults import diary
from tests.faults.check import Findings, check
from tests.faults.client import STOP
from tests.faults.siege import FINISH_WITHIN_S, READY_WITHIN_S, Part, Wrong, free_port

import crash_check
import outside
from perdure.service import records
from perdure.store.postgres import PostgresStore

from . import shop
from .databases import Databases

NODES = 3
SHOPS = 2
ORDERS_PER_S, CHUNKS_PER_S = 5, 1
PAUSE_S = (0.1, 1.5)
DOWN_S = (0.0, 3.0)
CUT_SHARES = (1, 2, 3)
FIRST_OF_CLIENT = 100_000
SHOP_BOOKS = "shop-books.jsonl"

EVENTS = {"node": 8, "worker": 3, "shop": 3, "cut": 4, "restart": 1}
"""What happens, and how often in proportion."""

ONCE = {"replica lost": 0.25, "replica back": 0.4, "promotion": 0.5}
"""What happens once, and after which part of the time."""

ALONE_AT, ALONE_SHARE = 0.3, 0.5
"""When and how often the operator lets the primary go on without the replica: else commits wait."""

NO_DATABASE = (
    "cannot be reached",
    "shutting down",
    "crashed and restarts",
    "only reads",
    "connection was closed",
)
"""What a node says that finds no database when it starts: whoever supervises it starts it again."""


NO_NODE = "Worker validation failed"
"""What the SDK says when it began to work while its node was killed again and again."""


@dataclass
class Report:
    """What was done, and what came of it."""

    events: Counter[str] = field(default_factory=Counter)
    found: Findings = field(default_factory=Findings)
    in_shops: crash_check.Findings = field(default_factory=crash_check.Findings)


class Storm:
    """One database and all that work with it.

    Args:
        folder: where logs, books and diary are kept.
        dice: decides what happens when.
    """

    def __init__(self, folder: Path, databases: Databases, dice: random.Random) -> None:
        folder.mkdir(parents=True)
        self.folder, self.databases, self.dice = folder, databases, dice
        self.report = Report()
        self.once = {"alone": ALONE_AT, **ONCE} if dice.random() < ALONE_SHARE else ONCE
        self.ports = [free_port() for _ in range(NODES)]
        self.nodes: list[Part] = []
        self.workers: list[Part] = []
        self.clients: list[Part] = []
        self.shops: list[Part] = []
        self.size = crash_check.Size()

    def _start_node(self, number: int) -> Part:
        command = [str(Path(sys.executable).parent / "perdure"), "server"]
        command += ["--db", self.databases.dsn, "--port", str(self.ports[number])]
        return Part(self.folder, f"node-{number}", command)

    def _start_worker(self, number: int) -> Part:
        return self._python(number, "worker", f"worker-{number}")

    def _start_client(self, number: int) -> Part:
        first = str(number * FIRST_OF_CLIENT)
        return self._python(
            number, "client", str(self.folder), str(self.dice.randrange(10**6)), first
        )

    def _start_shop(self, number: int) -> Part:
        """An application with a node in its own process, and with books of its own."""
        command = [sys.executable, "-m", "tests.chaos.shop", self.databases.dsn]
        command += [str(self.folder / "data"), str(self.size.orders), str(self.size.chunks)]
        books = {outside.BOOKS_VARIABLE: str(self.folder / SHOP_BOOKS)}
        return Part(self.folder, f"shop-{number}", command, books)

    def _python(self, number: int, module: str, *arguments: str) -> Part:
        """Each worker and each client has a node of its own."""
        address = f"127.0.0.1:{self.ports[number]}"
        command = [sys.executable, "-m", f"tests.faults.{module}", address, *arguments]
        return Part(self.folder, f"{module}-{number}", command)

    def run(self, seconds: float) -> Report:
        """Start all, let it storm, let them finish, and check.

        Raises:
            Wrong: with the evidence.
        """
        self.size = crash_check.Size(
            orders=int(seconds * ORDERS_PER_S), chunks=int(seconds * CHUNKS_PER_S), approvals=0
        )
        try:
            self.nodes = [self._start_node(number) for number in range(NODES)]  # all at once
            self._wait_until_listening()
            self.workers = [self._start_worker(number) for number in range(NODES)]
            self.clients = [self._start_client(number) for number in range(NODES)]
            self.shops = [self._start_shop(number) for number in range(SHOPS)]
            self._wait_until_told()
            self._storm(seconds)
            self._finish()
        finally:
            for part in (*self.clients, *self.shops, *self.workers, *self.nodes):
                part.kill()
        asyncio.run(self._check())
        wrong = [*self.report.found.wrong, *self.report.in_shops.wrong]
        if wrong:
            raise Wrong("the check found:\n" + "\n".join(wrong[:20]))
        return self.report

    async def _check(self) -> None:
        dsn = self.databases.dsn
        self.report.found = await check(self.folder, PostgresStore(dsn))
        runs = await crash_check.read_all(PostgresStore(dsn), shop.NAMESPACE)
        os.environ[outside.BOOKS_VARIABLE] = str(self.folder / SHOP_BOOKS)
        self.report.in_shops = crash_check.findings(runs, self.size, finished=True)

    def _storm(self, seconds: float) -> None:
        begin = time.monotonic()
        once = sorted((part * seconds, what) for what, part in self.once.items())
        while (passed_s := time.monotonic() - begin) < seconds:
            time.sleep(self.dice.uniform(*PAUSE_S))
            if once and passed_s > once[0][0]:
                _, what = once.pop(0)
            else:
                [what] = self.dice.choices(list(EVENTS), list(EVENTS.values()))
            self._happens(what)
            self.report.events[what] += 1
            self._supervise()

    def _happens(self, what: str) -> None:
        number = self.dice.randrange(NODES)
        match what:
            case "node":
                self.nodes[number].kill()
                time.sleep(self.dice.uniform(*DOWN_S))
                self.nodes[number] = self._start_node(number)
            case "worker":
                self.workers[number].kill()
                self.workers[number] = self._start_worker(number)
            case "shop":
                self.shops[number % SHOPS].kill()
                self.shops[number % SHOPS] = self._start_shop(number % SHOPS)
            case "cut":
                self.databases.cut(self.dice.choice(CUT_SHARES))
            case "restart":
                self.databases.restart()
            case "replica lost":
                self.databases.lose_replica()
            case "alone":
                self.databases.go_on_alone()
            case "replica back":
                self.databases.regain_replica()
            case "promotion":
                self.databases.promote()

    def _supervise_nodes(self) -> None:
        """Start nodes again that found no database; shops end when they have nothing left to do."""
        for number, node in enumerate(self.nodes):
            if node.process.poll() is not None:
                _must_have_found_no_database(node)
                self.nodes[number] = self._start_node(number)
        for number, part in enumerate(self.shops):
            if part.process.poll():
                _must_have_found_no_database(part)
                self.shops[number] = self._start_shop(number)

    def _supervise(self) -> None:
        """Start again what found no database; nothing else may end by itself."""
        self._supervise_nodes()
        for number, worker in enumerate(self.workers):
            if worker.process.poll() is not None and NO_NODE in worker.written():
                self.workers[number] = self._start_worker(number)
        for part in (*self.workers, *self.clients):
            part.must_live()

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while not all("gRPC on" in node.written() for node in self.nodes):
            self._supervise()
            if time.monotonic() > deadline:
                raise Wrong(f"nodes do not listen: {[n.written()[-500:] for n in self.nodes]}")
            time.sleep(0.02)

    def _wait_until_told(self) -> None:
        """Wait until a client was told something: before that there is nothing to lose."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not diary.read(self.folder):
            self._supervise()
            if time.monotonic() > deadline:
                raise Wrong(f"no client was told anything in {READY_WITHIN_S} s")
            time.sleep(0.05)

    def _finish(self) -> None:
        """Leave all alone until the clients have heard all results, and the shops are done."""
        (self.folder / STOP).touch()
        deadline = time.monotonic() + FINISH_WITHIN_S
        for client in (*self.clients, *self.shops):
            while client.process.poll() is None:
                self._supervise_nodes()
                if time.monotonic() > deadline:
                    client.process.send_signal(signal.SIGINT)  # leaves a traceback in its log
                    raise Wrong(
                        f"{client.name} has not finished after {FINISH_WITHIN_S} s\n"
                        + asyncio.run(what_is_open(self.databases.dsn))
                    )
                try:
                    client.process.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
            if client.process.returncode:
                raise Wrong(f"{client.name} failed: {client.written()[-3000:]}")


def _must_have_found_no_database(part: Part) -> None:
    if not any(words in part.written() for words in NO_DATABASE):
        part.must_live()


async def what_is_open(dsn: str) -> str:
    """Open runs and waiting tasks, as evidence."""
    lines = []
    for run in await crash_check.read_all(PostgresStore(dsn)):
        if run.is_open:
            state = records.execution(run.loaded).state
            last = [event.event_type for event in run.events[-4:]]
            lines.append(f"{run.workflow_id} ({run.loaded.record.key}): {state}; last {last}")
    connection = await asyncpg.connect(dsn)
    for table in ("tasks", "nodes", "messages", "letters"):
        for row in await connection.fetch(f"SELECT * FROM perdure.{table} LIMIT 30"):
            lines.append(f"{table}: {dict(row)}")
    await connection.close()
    return "\n".join(lines)


def chaos(folder: Path, seconds: float, seed: int) -> Report:
    """A storm on new databases. Raises Wrong; the logs are in the folder then."""
    databases = Databases()
    try:
        databases.start()
        report = Storm(folder, databases, random.Random(seed)).run(seconds)
    except Wrong as error:
        raise Wrong(
            f"{error}\nLogs, books and diary are in {os.fspath(folder)}, the databases in "
            f"{databases.base}"
        ) from None
    else:
        databases.remove()
        return report
    finally:
        databases.stop()
