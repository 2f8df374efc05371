"""Which target a test runs on; see targets.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

import targets
from postgres import postgres_dsn, postgres_server
from referee.servers import free_port, perdure_command, running, temporal_command

__all__ = ["postgres_dsn", "postgres_server"]


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    line = "only_on(*targets, reason): the test cannot run on the other targets, for this reason"
    config.addinivalue_line("markers", line)


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
def server_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Addresses of servers by their names; each is started once, when it is first asked for."""
    folder = tmp_path_factory.mktemp("targets")
    known: dict[str, str] = {}
    with ExitStack() as stack:

        def address(name: str) -> str:
            if name not in known:
                known[name] = stack.enter_context(_running(name, folder))
            return known[name]

        yield address


def _running(name: str, folder: Path) -> AbstractContextManager[str]:
    port = free_port()
    command = temporal_command(port) if name == "temporal" else perdure_command(port, folder)
    return running(command, port, folder / f"{name}.log")


@pytest.fixture(autouse=True)
def target(
    request: pytest.FixtureRequest, server_address: Callable[[str], str]
) -> Iterator[targets.Target]:
    """Where the test runs."""
    name = getattr(request, "param", targets.EMBEDDED)
    address = server_address(name) if name in targets.SERVERS else None
    chosen = targets.Target(name, address)
    targets.go_to(chosen)
    yield chosen
    targets.go_to(targets.Target(targets.EMBEDDED))
