"""The PostgreSQL server of the benchmarks, and what work on it costs.

The server is the one of the tests, as durable as in production (fsync, synchronous_commit and
full_page_writes are on), with memory and autovacuum as a small production server has them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.postgres import PostgresServer, running_server

SETTINGS = {
    "shared_preload_libraries": "pg_stat_statements",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
    "autovacuum_naptime": "10s",
    "shared_buffers": "'1GB'",
    "max_wal_size": "'4GB'",
    "max_connections": "200",
}
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Database:
    """A database of the benchmark's own."""

    server: PostgresServer
    name: str

    @property
    def dsn(self) -> str:
        return self.server.dsn(self.name)

    @contextmanager
    def session(self) -> Iterator[psycopg.Connection]:
        """A connection that commits each statement."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            yield connection

    def used(self) -> Used:
        """What was used so far, by all work on the server."""
        with self.session() as session:
            session.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            row = session.execute(
                "SELECT pg_current_wal_lsn() - '0/0', "
                "(SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE dbid = o.oid), "
                "(SELECT coalesce(sum(total_exec_time), 0) FROM pg_stat_statements "
                "WHERE dbid = o.oid), o.pid "
                "FROM (SELECT d.oid, pg_backend_pid() AS pid FROM pg_database AS d "
                "WHERE datname = current_database()) AS o"
            ).fetchone()
            assert row is not None
            wal_bytes, calls, executing_ms, pid = row
            cpu_s = _server_cpu_s(pid)  # while the session is there: its parent is the postmaster
        return Used(float(wal_bytes), float(calls), executing_ms / 1e3, cpu_s)


@dataclass(frozen=True)
class Used:
    """WAL written, statements made, their time, and CPU of all the server's processes."""

    wal_bytes: float
    statements: float
    executing_s: float
    cpu_s: float

    def per(self, before: Used, count: int, what: str = "step") -> dict[str, float]:
        """What one of so many pieces of work used since `before`."""
        return {
            f"wal_bytes_per_{what}": (self.wal_bytes - before.wal_bytes) / count,
            f"statements_per_{what}": (self.statements - before.statements) / count,
            f"executing_us_per_{what}": (self.executing_s - before.executing_s) / count * 1e6,
            f"database_cpu_us_per_{what}": (self.cpu_s - before.cpu_s) / count * 1e6,
        }


def _server_cpu_s(backend: int) -> float:
    """CPU of the server's processes, those that ended included."""
    postmaster = int(_stat(backend)[1])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    own, ended = _ticks(_stat(postmaster))
    return (own + ended + sum(_ticks(_stat(int(child)))[0] for child in children)) / _TICKS


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _ticks(stat: list[str]) -> tuple[int, int]:
    """CPU of a process, and of its children that ended."""
    if not stat:
        return 0, 0
    user, system, ended_user, ended_system = map(int, stat[11:15])
    return user + system, ended_user + ended_system


@contextmanager
def running(more_settings: dict[str, str] | None = None) -> Iterator[PostgresServer]:
    """The server, until the block ends."""
    with running_server(SETTINGS | (more_settings or {})) as server:
        yield server


@contextmanager
def created(server: PostgresServer, name: str) -> Iterator[Database]:
    """A new database, dropped when the block ends."""
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        session.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield Database(server, name)
        finally:
            session.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
