"""Connection strings: what is the store's own, what is the driver's."""

from __future__ import annotations

import traceback
from pathlib import Path

import asyncpg
import pytest

import perdure
from perdure.store.contract import StoreError, StoreMisnamed, StoreUnavailable
from perdure.store.postgres import PostgresStore
from perdure.store.postgres.connections import CONNECT_TIMEOUT_S, without_own_options
from perdure.store.redacting import redacted
from postgres import PostgresServer, running_server

READ_WRITE = "target_session_attrs=read-write"


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgresql://u@db/perdure", "postgresql://u@db/perdure"),
        ("postgresql://u@a,b/perdure", f"postgresql://u@a,b/perdure?{READ_WRITE}"),
        ("postgresql://u:p,q@a/perdure", "postgresql://u:p,q@a/perdure"),
        ("postgresql://u:a:b%40%2F@[::1]:5/p", "postgresql://u:a:b%40%2F@[::1]:5/p"),
        ("postgresql://u@a:1,b:2/p", f"postgresql://u@a:1,b:2/p?{READ_WRITE}"),
        ("postgresql://u@/p?host=/x,/y", f"postgresql://u@/p?host=/x,/y&{READ_WRITE}"),
        ("postgresql:///p?user=a@b&host=/x", "postgresql:///p?user=a%40b&host=/x"),
        (
            "postgresql://u@a,b/p?target_session_attrs=any&sslmode=require",
            "postgresql://u@a,b/p?target_session_attrs=any&sslmode=require",
        ),
        ("postgresql://u@db/p?statement_cache_size=0", "postgresql://u@db/p"),
        ("PostgreSQL://u@db/p", "postgresql://u@db/p"),
        (
            "postgresql://u@db/p?application_name=x&keepalives_idle=3&client_encoding=LATIN1",
            "postgresql://u@db/p?application_name=x",
        ),
        ("postgresql://u@db/p?channel_binding=prefer&gssencmode=disable", "postgresql://u@db/p"),
        (
            "postgresql://u@db/p?sslmode=verify-full&channel_binding=require",
            "postgresql://u@db/p?sslmode=verify-full",
        ),
    ],
)
def test_what_the_driver_is_given(given: str, driver: str) -> None:
    found, size, _ = without_own_options(given)
    assert found == driver
    assert size == (0 if "cache_size=0" in given else 400)


def test_the_time_to_connect_can_be_said_as_to_libpq() -> None:
    assert without_own_options("postgresql://u@db/p?connect_timeout=5") == (
        "postgresql://u@db/p", 400, 5,
    )  # fmt: skip
    assert without_own_options("postgresql://u@db/p?connect_timeout=0")[2] == CONNECT_TIMEOUT_S


ESCAPE = r"not a usable connection string: .* percent-encode .* in the password"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("postgresql://u:top/secret@h/d", ESCAPE),
        ("postgresql://u:top#secret@h/d", ESCAPE),
        ("postgresql://u:top?secret@h/d", ESCAPE),
        ("postgresql://u:top@secret@h/d", ESCAPE),
        ("postgresql://u:top[secret@h/d", ESCAPE),
        ("postgresql://u:top]secret@h/d", ESCAPE),
        ("postgresql://u:1/secret@h/d", ESCAPE),
        ("postgresql://u:1?secret@h/d", ESCAPE),
        ("postgresql://u:t@p/se:cr#1?%&@h/secret", ESCAPE),
        ("postgresql://u:secret", ESCAPE),
        ("postgresql://u:secret@h:abc/d", ESCAPE),
        ("postgresql://u:secret@[12::34::56]/d", ESCAPE),
        ("postgresql://u:secret@h/d?sslmode", ESCAPE),
        ("postgresql://u:secret@h:99999/d", "port: a number from 1 to 65535, got '99999'"),
        ("postgresql://u:secret@a,b:0/d", "port: a number"),
        ("postgresql://u:secret@/d?host=h&port=abc", "port: a number from 1 to 65535, got 'abc'"),
        ("postgresql://u:secret@/d?host=a,b,c&port=1,2", "port: 2 are named for 3 hosts"),
        ("postgresql://u:secret@h/d?target_session_attrs=nope", "attrs: one of any, .* got 'nope'"),
        ("postgresql://u:secret@h/d?sslmode=on", "sslmode: one of disable, .* got 'on'"),
        ("postgresql://u:secret@h/d?sslrootcert=/none", "sslrootcert: there is no file /none"),
        ("postgresql://u:secret@h/d?connect_timeout=soon", "u@h/d: connect_timeout: a number"),
        ("postgresql://u:secret@h/d?statement_cache_size=many", "statement_cache_size: a number"),
        (
            "postgresql://u:secret@h/d?channel_binding=require",
            "channel_binding=require: .*verify",
        ),
        ("postgresql://u:secret@h/d?gssencmode=require", "gssencmode=require: .* leave it out"),
        ("postgresql://u:secret@h/d?hostaddr=1.2.3.4", "hostaddr: the driver does not know it"),
    ],
)
async def test_what_is_no_connection_string_is_explained_without_the_password(
    given: str, words: str
) -> None:
    with pytest.raises(StoreMisnamed, match=words) as caught:
        async with perdure.connect(given):
            pass
    told = "".join(traceback.format_exception(caught.value))
    assert "secret" not in told


@pytest.mark.parametrize("variable", ["PGPORT", "PGTARGETSESSIONATTRS", "PGSSLMODE"])
async def test_what_the_environment_says_is_checked_as_well(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "nonsense")
    with pytest.raises(StoreError, match=r"target_session_attrs|sslmode|environment variable PG"):
        async with perdure.connect(postgres_dsn.replace("@/", "@localhost/").partition("?")[0]):
            pass


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("postgresql://u:secret@db:5/p?sslmode=x", "postgresql://u@db:5/p"),
        ("postgresql://u:secret@a:1,b/p", "postgresql://u@a:1,b/p"),
        ("postgresql://u:secret@[::1]:5/p", "postgresql://u@[::1]:5/p"),
        ("postgresql://u@/p?host=/x&password=secret", "postgresql://u@/x/p"),
        ("postgresql+asyncpg://u:secret@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgresql://u:se@cr/et:5#1?%&@h/d", "postgresql://…"),
        ("postgresql://u:secret", "postgresql://…"),
        ("postgresql:/u:secret@h/d", "…"),
        ("u:secret@h/d", "…"),
        ("host=h password=secret", "…"),
        ("sqlite:////home/me@work/a=b.db", "sqlite:////home/me@work/a=b.db"),
        ("localhost:7233", "localhost:7233"),
        ("SQLite:///a@b.db", "SQLite:///a@b.db"),
        ("memory://", "memory://"),
    ],
)
def test_messages_show_no_password(target: str, shown: str) -> None:
    assert redacted(target) == shown


async def test_of_several_servers_the_one_that_can_be_written_is_used(
    postgres_server: PostgresServer, postgres_dsn: str
) -> None:
    with running_server({"default_transaction_read_only": "on"}) as other:
        name = postgres_dsn.split("/")[3].partition("?")[0]
        setting_up = await asyncpg.connect(other.dsn())
        await setting_up.execute("SET default_transaction_read_only = off")
        await setting_up.execute(f"CREATE DATABASE {name}")
        await setting_up.close()
        here = f"host={postgres_server.directory}"
        assert here in postgres_dsn
        store = PostgresStore(
            postgres_dsn.replace(here, f"host={other.directory},{postgres_server.directory}")
        )
        await store.open()
        assert await store._read("SELECT current_database()") == [(name,)]
        await store.close()


async def test_a_server_that_only_reads_is_told_of_though_another_is_away(tmp_path: Path) -> None:
    with running_server({"default_transaction_read_only": "on"}) as replica:
        for hosts in (f"{replica.directory},{tmp_path}", f"{tmp_path},{replica.directory}"):
            with pytest.raises(StoreUnavailable, match=r"none that is read-write .*; of another: "):
                await PostgresStore(replica.dsn().replace(str(replica.directory), hosts)).open()
