"""Targets, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import workflow
from perdure.api.errors import InvalidArgument
from perdure.sdk.client import Client
from perdure.targets import Target, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("memory://", Target("memory", "")),
        ("sqlite:///orders.db", Target("sqlite", "orders.db")),
        ("sqlite:////var/lib/orders.db", Target("sqlite", "/var/lib/orders.db")),
        ("localhost:7233", Target("grpc", "localhost:7233")),
        ("[::1]:7233", Target("grpc", "[::1]:7233")),
        ("grpc://example.org", Target("grpc", "example.org:7233")),
        ("grpc://example.org:1/", Target("grpc", "example.org:1")),
        ("grpcs://example.org:443", Target("grpc", "example.org:443", tls=True)),
        ("MEMORY://", Target("memory", "")),
        ("SQLite:///Orders.db", Target("sqlite", "Orders.db")),
        ("GRPCs://example.org:443", Target("grpc", "example.org:443", tls=True)),
        ("PostgreSQL://u@h/D", Target("postgresql", "PostgreSQL://u@h/D")),
    ],
)
def test_targets_are_taken_apart(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("orders.db", "has no port"),
        ("", "none of"),
        ("sqlite://orders.db", "sqlite:///orders.db for one in the current directory"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "memory://"),
        ("memory://x", "none of"),
        ("redis://localhost", "none of"),
        ("host:99999", "port 99999"),
        ("two hosts:7233", "none of"),
        ("http://localhost:7233", "none of"),
    ],
)
def test_what_is_no_target_is_explained(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as caught:
        perdure.connect(text)
    assert str(caught.value).startswith(f"target: {text!r}")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("postgresql+asyncpg://app:topsecret@h/d", "write postgresql://"),
        ("postgresql+psycopg:///d?password=topsecret", "write postgresql://"),
        ("Postgres+asyncpg://app:topsecret@h/d", "write postgresql://"),
        ("POSTGRESQL:/app:topsecret@h/d", "two slashes are missing: write postgresql://"),
        ("postgresql:/app:topsecret@h/d", "two slashes are missing: write postgresql://"),
        ("app:topsecret@h/d", "the scheme is missing: write postgresql://"),
        ("host=h user=app password=topsecret dbname=d", "write a URL, postgresql://"),
        ("password = topsecret host = h", "write a URL, postgresql://"),
        ("mysql://app:topsecret@h/d", "none of"),
        ("mysql://app:top@secret@h/topsecret", "none of"),
        ("grpc://app:topsecret@h:7233", "none of"),
    ],
)
def test_no_message_shows_a_password(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as caught:
        perdure.connect(text)
    assert "secret" not in str(caught.value)
    with pytest.raises(TypeError) as mistaken:
        perdure.connect(text.encode())  # type: ignore[arg-type]
    assert "secret" not in str(mistaken.value)


def test_arguments_must_fit_the_target() -> None:
    with pytest.raises(TypeError, match="target: a string"):
        perdure.connect(Path("orders.db"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only for servers"):
        perdure.connect("memory://", api_key="secret")
    with pytest.raises(ValueError, match="not for 'postgresql://app@h/d'"):
        perdure.connect("postgresql://app:topsecret@h/d", api_key="x")
    with pytest.raises(ValueError, match=r"config: only for .*'h:7233'"):
        perdure.connect("h:7233", config="perdure.toml")
    with pytest.raises(FileNotFoundError):
        perdure.connect("memory://", config=Path("none.toml"))


@workflow
async def first_of(values: list[str]) -> str:
    return values[0]


async def test_an_embedded_node_has_the_settings_of_a_config_file(tmp_path: Path) -> None:
    file = tmp_path / "perdure.toml"
    file.write_text("limit.blobSize.error = 1000\n")
    async with (
        perdure.connect("memory://", config=file) as client,
        client.worker(workflows=[first_of], activities=[]),
    ):
        assert await client.execute(first_of, ["x"], id="small") == "x"
        with pytest.raises(InvalidArgument, match="1000 are allowed"):
            await client.execute(first_of, ["x" * 1000], id="large")
    file.write_text("limit.blobSize.eror = 1000\n")
    with pytest.raises(ValueError, match=r"perdure\.toml: .* did you mean limit\.blobSize\.error"):
        perdure.connect("memory://", config=str(file))


async def test_a_server_is_not_asked_before_it_is_needed() -> None:
    async with perdure.connect("localhost:1", namespace="n", task_queue="q") as client:
        assert isinstance(client, Client)
        assert (client.namespace, client.task_queue) == ("n", "q")
        assert client.service.target == "localhost:1"


def test_all_that_is_public_is_there_and_documented() -> None:
    for name in perdure.__all__:
        value: Any = getattr(perdure, name)
        assert value.__doc__, name
    assert sorted(perdure.__all__) == sorted(set(perdure.__all__))
