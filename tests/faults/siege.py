"""The server, its workers and its clients, each a process of its own; and who kills them."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import outside

from .check import DATABASE, check
from .client import STOP

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
READY_WITHIN_S = 60.0
FINISH_WITHIN_S = 120.0
LIFE_S = (0.05, 3.0)
"""How long a server lives once it listens."""
BIRTH_S = (0.05, 1.5)
"""Or, now and then, how long after its start: it is killed while it opens its database."""
BIRTH_SHARE = 0.2
WORKER_KILL_SHARE = 0.25
KILLS_A_ROUND = (8, 16)


class Wrong(Exception):
    """Something is not as it must be; the message is the evidence."""


@dataclass
class Tally:
    """What was done in all rounds."""

    kills: int = 0
    worker_kills: int = 0
    rounds: int = 0
    runs: int = 0
    events: int = 0
    executions: int = 0
    told: int = 0
    again: int = 0
    faults: list[str] = field(default_factory=list)


class Part:
    """One process, with its output in a file of the folder.

    Args:
        folder: where all parts have their logs and their books.
        name: of its log.
        command: what it runs.
        more_environment: variables beside this process's own.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        command: Sequence[str],
        more_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = folder / f"{name}.log"
        self.name = name
        environment = os.environ | {outside.BOOKS_VARIABLE: str(folder / "books.jsonl")}
        environment |= more_environment or {}
        with self.log.open("ab") as log:
            self._begins_at = log.tell()
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=ROOT, env=environment
            )

    def written(self) -> str:
        """What this process wrote; the file has its predecessors' output, too."""
        return self.log.read_bytes()[self._begins_at :].decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        self.process.kill()
        self.process.wait()

    def must_live(self) -> None:
        """Nobody but the killer ends a process.

        Raises:
            Wrong: it ended by itself.
        """
        if self.process.poll() is not None:
            code = self.process.returncode
            raise Wrong(f"{self.name} ended with {code}: {self.written()[-3000:]}")


class Siege:
    """One round: one database, one port, a server that is killed some times."""

    def __init__(self, folder: Path, dice: random.Random, tally: Tally) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.dice = dice
        self.tally = tally
        self.port = free_port()
        self.server: Part | None = None
        self.workers: list[Part] = []
        self.client: Part | None = None

    # --- starting ---------------------------------------------------------------------------

    def start_server(self) -> Part:
        """The command as users type it, on the same database and the same port."""
        command = [str(Path(sys.executable).parent / "perdure"), "server"]
        command += ["--db", f"sqlite:///{self.folder / DATABASE}", "--port", str(self.port)]
        self.server = Part(self.folder, "server", command)
        return self.server

    def _python(self, name: str, module: str, *arguments: str) -> Part:
        address = f"127.0.0.1:{self.port}"
        command = [sys.executable, "-m", f"tests.faults.{module}", address, *arguments]
        return Part(self.folder, name, command)

    def start_worker(self, number: int) -> Part:
        """A worker of the official SDK."""
        return self._python(f"worker-{number}", "worker", f"worker-{number}")

    # --- the round --------------------------------------------------------------------------

    def run(self, kills: int) -> None:
        """Start all, kill, let them finish, kill once more, and check.

        Raises:
            Wrong: with the evidence.
        """
        try:
            self.start_server()
            self.workers = [self.start_worker(number) for number in range(WORKERS)]
            seed = str(self.dice.randrange(10**6))
            self.client = self._python("client", "client", str(self.folder), seed)
            self.wait_until_listening()
            self.wait_until_told()
            for _ in range(kills - 1):
                self.kill_and_restart()
            self.finish()
        finally:
            for part in (self.client, *self.workers, self.server):
                if part is not None:
                    part.kill()
        self.tally.kills += 1  # the last one: what was told last must be there, too
        self.judge()

    def kill_and_restart(self) -> None:
        """One more life of the server."""
        assert self.server is not None
        if self.dice.random() < BIRTH_SHARE:
            time.sleep(self.dice.uniform(*BIRTH_S))
        else:
            self.wait_until_listening()
            time.sleep(self.dice.uniform(*LIFE_S))
        self.all_live()
        self.server.kill()
        self.tally.kills += 1
        if self.dice.random() < WORKER_KILL_SHARE:
            number = self.dice.randrange(WORKERS)
            self.workers[number].kill()
            self.workers[number] = self.start_worker(number)
            self.tally.worker_kills += 1
        self.start_server()

    def all_live(self) -> None:
        """Has no process ended by itself?"""
        assert self.server is not None
        assert self.client is not None
        for part in (self.server, *self.workers, self.client):
            part.must_live()

    def wait_until_listening(self) -> None:
        """Wait until the server says where it listens."""
        assert self.server is not None
        deadline = time.monotonic() + READY_WITHIN_S
        while "gRPC on" not in self.server.written():
            self.server.must_live()
            if time.monotonic() > deadline:
                raise Wrong(f"no server after {READY_WITHIN_S} s: {self.server.written()}")
            time.sleep(0.02)

    def wait_until_told(self) -> None:
        """Wait until a client was told something: before that there is nothing to lose."""
        deadline = time.monotonic() + READY_WITHIN_S
        path = self.folder / "diary.jsonl"
        while not path.exists() or not path.stat().st_size:
            self.all_live()
            if time.monotonic() > deadline:
                raise Wrong(f"no client was told anything in {READY_WITHIN_S} s")
            time.sleep(0.02)

    def finish(self) -> None:
        """Leave the server alone until the clients have heard all results."""
        assert self.client is not None
        (self.folder / STOP).touch()
        try:
            code = self.client.process.wait(FINISH_WITHIN_S)
        except subprocess.TimeoutExpired as error:
            self.client.process.send_signal(signal.SIGINT)  # leaves a traceback in its log
            raise Wrong(f"the clients have not finished after {FINISH_WITHIN_S} s") from error
        if code != 0:
            raise Wrong(f"the clients ended with {code}: {self.client.written()[-3000:]}")

    def judge(self) -> None:
        """Compare the database with what everybody was told."""
        found = asyncio.run(check(self.folder))
        if found.wrong:
            raise Wrong("the check found:\n" + "\n".join(found.wrong[:20]))
        self.tally.rounds += 1
        self.tally.runs += found.runs
        self.tally.events += found.events
        self.tally.executions += found.executions
        self.tally.told += found.told
        self.tally.again += found.again


def besiege(kills: int, seed: int, keep: Path | None = None) -> Tally:
    """Rounds, one after the other, until the server was killed so many times."""
    tally = Tally()
    dice = random.Random(seed)
    base = keep or Path(tempfile.mkdtemp(prefix="perdure-faults-"))
    while tally.kills < kills and not tally.faults:
        folder = base / f"round-{tally.rounds}"
        try:
            Siege(folder, dice, tally).run(min(kills - tally.kills, dice.randint(*KILLS_A_ROUND)))
        except Wrong as error:
            tally.faults.append(f"{error}\nDatabase, diary, books and logs are in {folder}")
        else:
            if keep is None:
                shutil.rmtree(folder)
    if keep is None and not tally.faults:
        shutil.rmtree(base)
    return tally


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
