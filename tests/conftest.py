"""Which target a test runs on; see targets.py."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import targets
from postgres import PostgresServer, postgres_dsn, postgres_server
from referee.servers import free_port, perdure_command, running, temporal_command

__all__ = ["postgres_dsn", "postgres_server"]


LONG = (
    "tests/chaos/test_chaos.py",
    "tests/simulation/test_cluster.py",
    "tests/chaos/test_rolling_upgrade.py",
    "tests/acceptance/test_crash.py",
    "tests/integration/server/test_server_command.py",
    "tests/acceptance/test_docs.py",
    "tests/faults/test_server_crash.py",
)
"""Files that take a minute and more: they begin first, so that none is left for the end, when
nothing goes on beside it."""

NODES = 2
"""Servers of the target `cluster`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the servers of the tests keep their data elsewhere."""
    parser.addoption(
        "--store", choices=["sqlite", "postgres"], default="sqlite",
        help="where perdure servers that are started for several tests keep their data",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    line = "only_on(*targets, reason): the test cannot run on the other targets, for this reason"
    config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long."""
    items.sort(key=lambda item: item.location[0] not in LONG)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that use `targets.environment` on every target, unless a marker says otherwise."""
    used = getattr(metafunc.module, "environment", None)
    if used is not targets.environment:
        return
    names = targets.TARGETS
    for marker in metafunc.definition.iter_markers("only_on"):
        assert marker.kwargs.get("reason"), f"{metafunc.definition.nodeid}: only_on has no reason"
        names = tuple(name for name in names if name in marker.args)
    metafunc.parametrize("target", names, indirect=True)


@pytest.fixture(scope="session")
def new_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Makes databases, each for servers that run as long as the session: what ``--db`` takes."""

    def make(store: str) -> str:
        if store == "sqlite":
            return f"sqlite:///{tmp_path_factory.mktemp('database') / 'perdure.db'}"
        server: PostgresServer = request.getfixturevalue("postgres_server")
        name = f"servers_{uuid.uuid4().hex}"
        asyncio.run(server.execute(f"CREATE DATABASE {name}"))
        return server.dsn(name)

    return make


@pytest.fixture(scope="session")
def server_addresses(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    new_database: Callable[[str], str],
) -> Iterator[Callable[[str], list[str]]]:
    """Addresses of a target's servers, started once, when they are first asked for, or the database
    of its node."""
    folder = tmp_path_factory.mktemp("targets")
    known: dict[str, list[str]] = {}
    with ExitStack() as stack:

        def start(name: str) -> list[str]:
            if name == "temporal":
                return [_start(stack, temporal_command, folder / "temporal.log")]
            if name == targets.ON_POSTGRES:
                return [new_database("postgres")]
            is_cluster = name == targets.CLUSTER
            store = "postgres" if is_cluster else request.config.getoption("--store")
            database = new_database(store)
            return [
                _start(
                    stack,
                    lambda port: perdure_command(port, folder, database),
                    folder / f"{name}-{number}.log",
                )
                for number in range(NODES if is_cluster else 1)
            ]

        def addresses(name: str) -> list[str]:
            if name not in known:
                known[name] = start(name)
            return known[name]

        yield addresses


def _start(stack: ExitStack, command: Callable[[int], list[str]], log: Path) -> str:
    port = free_port()
    return stack.enter_context(running(command(port), port, log))


@pytest.fixture(autouse=True)
def target(
    request: pytest.FixtureRequest, server_addresses: Callable[[str], list[str]]
) -> Iterator[targets.Target]:
    """Where the test runs."""
    name = getattr(request, "param", targets.EMBEDDED)
    chosen = targets.Target(name, () if name == targets.EMBEDDED else server_addresses(name))
    targets.go_to(chosen)
    yield chosen
    targets.go_to(targets.Target(targets.EMBEDDED))
