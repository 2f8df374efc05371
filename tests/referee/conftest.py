"""Fixtures of the referee tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from referee.program import Again, Outcome, Outcomes, Program, Servers, run_all
from referee.servers import (
    add_search_attributes,
    free_port,
    perdure_command,
    running,
    temporal_command,
)

HERE = Path(__file__).parent
FILE_TIMEOUT_S = 240
"""The first test of a file waits for all programs of the file, which run at the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the referee tests their time."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(FILE_TIMEOUT_S))


@pytest.fixture(scope="session")
def servers(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    new_database: Callable[[str], str],
) -> Iterator[Servers]:
    """Both servers, ready."""
    folder = tmp_path_factory.mktemp("referee")
    with contextlib.ExitStack() as stack:
        port = free_port()
        temporal = running(temporal_command(port), port, folder / "temporal.log")
        temporal_address = stack.enter_context(temporal)
        port = free_port()
        database = new_database(request.config.getoption("--store"))
        perdure = running(perdure_command(port, folder, database), port, folder / "perdure.log")
        perdure_address = stack.enter_context(perdure)
        asyncio.run(add_search_attributes(perdure_address))
        yield Servers(temporal=temporal_address, perdure=perdure_address)


@pytest.fixture(scope="module")
def outcomes(servers: Servers, request: pytest.FixtureRequest) -> Outcomes:
    """What the selected programs of this file left behind, on both servers."""
    programs = [
        item.function.program
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and hasattr(item.function, "program")
    ]
    return run_all(request.module, programs, servers)


@pytest.fixture(scope="module")
def again(servers: Servers, request: pytest.FixtureRequest) -> Again:
    """Runs one program of this file once more."""

    def run(program: Program, attempt: int) -> Outcome:
        return run_all(request.module, [program], servers, attempt)[program.name]

    return run
