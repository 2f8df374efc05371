"""A PostgreSQL server with a streaming replica, which can be restarted and promoted."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import postgres

NAME = "chaos"
HEARD_WITHIN_S = 1.0
CAUGHT_UP_WITHIN_S = 60.0


class Server(postgres.PostgresServer):
    """One server: its files and its socket are in one directory."""

    def run(self, statement: str, database: str = "postgres") -> list[Any]:
        """The rows of one statement, with no loop running."""
        return asyncio.run(self.fetch(statement, database))


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
        # What the replica missed must still be there when it is back.
        settings = {"autovacuum": "on", "wal_keep_size": "'1GB'"}
        postgres._initialise(bin_dir, directory, settings)
        self._copy()
        self.primary.start()
        self.replica.start()
        self._let_commits_wait_for("*")
        self.primary.run(f"CREATE DATABASE {NAME}")

    def _let_commits_wait_for(self, replicas: str) -> None:
        self.primary.run(f"ALTER SYSTEM SET synchronous_standby_names = '{replicas}'")
        self.primary.run("SELECT pg_reload_conf()")

    def _copy(self) -> None:
        """Make the replica of a primary that has not been started yet; pg_basebackup is not in all
        packages of binaries."""
        where, data = self.replica.directory, self.replica.data
        shutil.copytree(self.primary.data, data)
        primary = f"host={self.primary.directory} user={postgres.SUPERUSER}"
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{where}'\nprimary_conninfo = '{primary}'\n")
        (data / "standby.signal").touch()
        user = postgres._other_user()
        if user is not None:
            for path in (data, *data.rglob("*")):
                shutil.chown(path, user)

    def restart(self) -> None:
        """The server that can be written crashes, and comes back."""
        self.now.stop()
        self.now.start()

    def lose_replica(self) -> None:
        """The replica is away: commits wait until it is back, or until they need not any more."""
        self.replica.stop()

    def go_on_alone(self) -> None:
        """As an operator decides who would rather risk the primary's disk than wait."""
        self._let_commits_wait_for("")

    def regain_replica(self) -> None:
        """The replica is back and has everything, and commits wait for it again.

        It has to catch up twice: the last commits that did not wait were made while sessions heard
        that they shall. Before that it must not be promoted.
        """
        self.replica.start()
        self._catch_up()
        self._let_commits_wait_for("*")
        time.sleep(HEARD_WITHIN_S)
        self._catch_up()

    def _catch_up(self) -> None:
        """Wait until the replica has what the primary has now."""
        [[here]] = self.primary.run("SELECT pg_current_wal_flush_lsn()::text")
        there = (
            "SELECT FROM pg_stat_replication "
            f"WHERE state = 'streaming' AND flush_lsn >= '{here}'::pg_lsn"
        )
        give_up = time.monotonic() + CAUGHT_UP_WITHIN_S
        while not self.primary.run(there):
            assert time.monotonic() < give_up, f"the replica lags behind:\n{self.replica.log()}"
            time.sleep(0.1)

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
