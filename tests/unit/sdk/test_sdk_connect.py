"""Targets, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import perdure
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
