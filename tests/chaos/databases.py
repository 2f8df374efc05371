"""A PostgreSQL server with a streaming replica, which can be restarted and promoted."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import asyncpg

import postgres

NAME = "chaos"
STOP_LIMIT_S = 30


class Server:
    """One server: its files and its socket are in one directory."""

    def __init__(self, bin_dir: Path, directory: Path) -> None:
        self.bin_dir = bin_dir
        self.directory = directory
        self.data = directory / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin_dir / "postgres", "-D", self.data],
                user=postgres._other_user(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        postgres._wait_until_ready(self._process, self.directory, self.data)

    def stop(self) -> None:
        """Let it end at once, as a crash does: what is committed is recovered from its log."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def run(self, statement: str, database: str = "postgres") -> list[Any]:
        """The rows of one statement."""

        async def fetch() -> list[Any]:
            dsn = f"postgresql://{postgres.SUPERUSER}@/{database}?host={self.directory}"
            connection = await asyncpg.connect(dsn)
            try:
                rows: list[Any] = await connection.fetch(statement)
                return rows
            finally:
                await connection.close()

        return asyncio.run(fetch())


class Databases:
    """A primary, and a replica that has everything that was acknowledged.

    Attributes:
        now: the server that can be written.
    """

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="perdure-"))  # short: a socket's path has a limit
        self.base.chmod(0o755)
        bin_dir = postgres._reachable(postgres.binaries(), self._directory("bin"))
        self.primary = Server(bin_dir, self._directory("a"))
        self.replica = Server(bin_dir, self._directory("b"))
        self.now = self.primary

    def _directory(self, name: str) -> Path:
        made = self.base / name
        made.mkdir()
        user = postgres._other_user()
        if user is not None:
            shutil.chown(made, user)
        return made

    @property
    def dsn(self) -> str:
        """Names both servers; whoever connects finds the one that can be written."""
        hosts = f"{self.primary.directory},{self.replica.directory}"
        where = f"host={hosts}&target_session_attrs=read-write"
        return f"postgresql://{postgres.SUPERUSER}@/{NAME}?{where}"

    def start(self) -> None:
        """Both servers, where a commit waits for the replica's disk."""
        bin_dir, directory = self.primary.bin_dir, self.primary.directory
        postgres._initialise(bin_dir, directory, {"autovacuum": "on"})
        self.primary.start()
        copy = ["-h", str(directory), "-U", postgres.SUPERUSER, "-D", str(self.replica.data)]
        postgres._run(
            bin_dir, "pg_basebackup", *copy, "-R", "-X", "stream", "-c", "fast",
            cwd=self.replica.directory,
        )  # fmt: skip
        with (self.replica.data / "postgresql.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{self.replica.directory}'\n")
        self.replica.start()
        self.primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.run("SELECT pg_reload_conf()")
        self.primary.run(f"CREATE DATABASE {NAME}")

    def restart(self) -> None:
        """The server that can be written crashes, and comes back."""
        self.now.stop()
        self.now.start()

    def promote(self) -> None:
        """The primary is lost for good, and the replica takes its place."""
        assert self.now is self.primary
        self.primary.stop()
        self.replica.run("SELECT pg_promote()")
        self.now = self.replica

    def cut(self, share: int) -> int:
        """Break every so manieth connection; how many.

        None while the replica is away: a backend that is ended as it waits for the replica leaves
        its commit to be seen (PostgreSQL says so in a warning), and what others then build on it is
        lost if the primary is lost before the replica is back. A network that breaks does not.
        """
        is_away = (
            "EXISTS (SELECT WHERE current_setting('synchronous_standby_names') <> '') "
            "AND NOT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')"
        )
        return len(
            self.now.run(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE NOT ({is_away}) "
                f"AND datname = '{NAME}' AND pid % {share} = 0 AND pid <> pg_backend_pid() "
                "AND wait_event IS DISTINCT FROM 'SyncRep'",
                NAME,
            )
        )

    def stop(self) -> None:
        """Stop both."""
        self.primary.stop()
        self.replica.stop()

    def remove(self) -> None:
        """Stop both, and remove their files."""
        self.stop()
        shutil.rmtree(self.base, ignore_errors=True)
