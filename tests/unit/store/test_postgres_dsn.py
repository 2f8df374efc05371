"""Connection strings: what is the store's own, what is the driver's."""

from __future__ import annotations

import asyncpg
import pytest

from perdure.store.postgres import PostgresStore
from perdure.store.postgres.connections import display_name, without_own_options
from postgres import PostgresServer, running_server

READ_WRITE = "target_session_attrs=read-write"


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgresql://u@db/perdure", "postgresql://u@db/perdure"),
        ("postgresql://u@a,b/perdure", f"postgresql://u@a,b/perdure?{READ_WRITE}"),
        ("postgresql://u:p,q@a/perdure", "postgresql://u:p,q@a/perdure"),
        ("postgresql://u@a:1,b:2/p", f"postgresql://u@a:1,b:2/p?{READ_WRITE}"),
        ("postgresql://u@/p?host=/x,/y", f"postgresql://u@/p?host=/x,/y&{READ_WRITE}"),
        (
            "postgresql://u@a,b/p?target_session_attrs=any&sslmode=require",
            "postgresql://u@a,b/p?target_session_attrs=any&sslmode=require",
        ),
        ("postgresql://u@db/p?statement_cache_size=0", "postgresql://u@db/p"),
    ],
)
def test_what_the_driver_is_given(given: str, driver: str) -> None:
    found, size = without_own_options(given)
    assert found == driver
    assert size == (0 if "cache_size=0" in given else 400)


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="statement_cache_size: a number"):
        without_own_options("postgresql://u@db/p?statement_cache_size=many")


def test_messages_show_no_password() -> None:
    assert display_name("postgresql://u:secret@db:5/p?sslmode=x") == "postgresql://u@db:5/p"


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
