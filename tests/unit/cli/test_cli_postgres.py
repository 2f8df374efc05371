"""Commands on a PostgreSQL database: what they show of it, and what looking leaves alone."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
from cli_stage import Stage

from postgres import PostgresServer

LOOKING = [["list"], ["count"], ["describe", "x"], ["show", "x"], ["result", "x"]]


@pytest.fixture
def shared(file_stage: Stage, new_database: Callable[[str], str]) -> Stage:
    file_stage.environment["PERDURE_DB"] = new_database("postgres")
    return file_stage


def fetch(server: PostgresServer, stage: Stage, statement: str) -> list[Any]:
    name = stage.environment["PERDURE_DB"].split("/")[3].partition("?")[0]
    return asyncio.run(server.fetch(statement, name))


@pytest.mark.parametrize("arguments", LOOKING)
def test_looking_into_an_empty_database_makes_no_tables(
    shared: Stage, postgres_server: PostgresServer, arguments: list[str]
) -> None:
    done = shared.workflow(*arguments)
    assert done.code == 1
    assert "no tables in" in done.error
    assert "start a server or a worker first" in done.error
    schemas = "SELECT FROM pg_namespace WHERE nspname = 'perdure'"
    assert fetch(postgres_server, shared, schemas) == []


def test_looking_joins_nobody_and_takes_nothing(
    shared: Stage, postgres_server: PostgresServer
) -> None:
    assert shared.workflow("start", "Counter", "-w", "x").code == 0
    tables = ("nodes", "tasks", "messages", "letters", "states", "namespaces", "ids")
    rows = [f"SELECT * FROM perdure.{table}" for table in tables]
    before = [fetch(postgres_server, shared, statement) for statement in rows]
    for arguments in LOOKING:
        done = shared.workflow(*arguments)
        assert done.code == (arguments[0] == "result"), done.err
    assert [fetch(postgres_server, shared, statement) for statement in rows] == before


def test_a_node_tells_its_number_by_which_others_know_it(
    shared: Stage, postgres_server: PostgresServer
) -> None:
    with shared.start("server", "--port", "0") as server:
        assert server.stdout is not None
        begins = server.stdout.readline()
        server.send_signal(signal.SIGTERM)
    with shared.start("worker", "program") as worker:
        assert worker.stderr is not None
        seen = worker.stderr.readline()
        while "working on" not in seen:
            seen += worker.stderr.readline()
        [row] = fetch(postgres_server, shared, "SELECT id FROM perdure.nodes")
        worker.send_signal(signal.SIGTERM)
    assert re.search(r", node \d+\n$", begins)
    assert f"this is node {row['id']} of postgresql://" in seen


def test_a_worker_shows_no_password(shared: Stage) -> None:
    dsn = shared.environment["PERDURE_DB"].replace("@", ":topsecret@", 1)
    process = shared.start("worker", "program", "--db", dsn)
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if "working on postgresql://" in line:
            break
    process.send_signal(signal.SIGTERM)
    seen += process.stderr.read()
    assert process.wait(30) == 0
    assert "topsecret" not in seen


on_every_command = pytest.mark.parametrize(
    "command",
    [
        ["workflow", "list"],
        ["workflow", "start", "W"],
        ["worker", "program"],
        ["server", "--port", "0"],
    ],
)


@on_every_command
@pytest.mark.parametrize(
    ("db", "code", "words"),
    [
        ("postgresql+asyncpg://app:topsecret@h/d", 2, "write postgresql://"),
        ("postgresql:/app:topsecret@h/d", 2, "two slashes are missing"),
        ("app:topsecret@h/d", 2, "the scheme is missing"),
        ("host=h user=app password=topsecret", 2, "write a URL"),
        ("postgresql://app:top/secret@h/d", 2, "percent-encode"),
        ("postgresql://app:topsecret@h/d?connect_timeout=x", 2, "h/d: connect_timeout: a number"),
        ("postgresql://app:topsecret@127.0.0.1:1/d", 1, "postgresql://app@127.0.0.1:1/d cannot be"),
    ],
)  # fmt: skip
def test_what_is_no_database_is_explained_without_the_password(
    file_stage: Stage, command: list[str], db: str, code: int, words: str
) -> None:
    done = file_stage.run(*command, "--db", db)
    assert (done.code, done.out) == (code, "")
    assert words in done.error
    assert "secret" not in done.err


@on_every_command
@pytest.mark.parametrize("option", ["foo=bar", "work_mem=much"])
def test_what_is_no_option_of_a_database_is_a_wrong_use(
    shared: Stage, command: list[str], option: str
) -> None:
    done = shared.run(*command, "--db", f"{shared.environment['PERDURE_DB']}&{option}")
    assert done.code == 2, done.err
    assert f'parameter "{option.partition("=")[0]}"' in done.error


def test_a_scheme_may_be_written_in_capitals(shared: Stage) -> None:
    shared.environment["PERDURE_DB"] = shared.environment["PERDURE_DB"].replace(
        "postgresql", "PostgreSQL"
    )
    assert shared.workflow("start", "Counter", "-w", "x").code == 0
    assert shared.workflow("count").out.strip() == "1"


def test_a_node_of_the_command_has_the_settings_of_a_file(stage: Stage) -> None:
    (stage.folder / "small.toml").write_text("limit.blobSize.error = 10\n")
    refused = stage.workflow("start", "doubled", "-i", "12345678", "--config", "small.toml")
    assert refused.code == 1
    assert "10 are allowed" in refused.error
    (stage.folder / "bad.toml").write_text("limit.nothing = 1\n")
    for command in (["workflow", "list"], ["workflow", "start", "W"], ["worker", "program"]):
        wrong = stage.run(*command, "--config", "bad.toml")
        assert (wrong.code, "--config: bad.toml: there is no key" in wrong.error) == (2, True)
        remote = stage.run(*command, "--config", "small.toml", "--address", "h:7233")
        assert (remote.code, "settings of its own" in remote.error) == (2, True)
