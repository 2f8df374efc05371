"""What PostgreSQL's and the connection's errors mean to the caller: what to do about them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from perdure.store.contract import StoreError, StoreMisnamed, StoreRefused, StoreUnavailable

UNREACHABLE = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.TargetServerAttributeNotMatched,
)

# By SQLSTATE, or its class: what the user can do.
_REMEDIES = {
    "28P01": "the password is wrong: check the connection string",
    "28000": "the server does not let this user in: check the user and pg_hba.conf",
    "3D000": "there is no such database: create it (createdb) or name another",
    "42501": "the user may not do that: it needs CREATE on the database, or to own the schema "
    "perdure, and its tables",
    "53300": "the server has no connection left: raise max_connections, or put PgBouncer before it",
    "53100": "the database server's disk is full",
    "53200": "the database server is out of memory",
    "25006": "this server only reads: if it is a replica, name all hosts, or the one that "
    "can be written (read-write); if not, turn default_transaction_read_only off",
    "55P03": "another session holds locks for too long: look in pg_stat_activity for one that is "
    "idle in transaction; idle_in_transaction_session_timeout ends such sessions",
    "57P01": "the database server is being shut down, or its administrator ended the connection",
    "57P02": "the database server crashed and restarts",
    "57P03": "the database server is starting or shutting down",
    "57014": "the statement took too long and was cancelled",
    "25P03": "the transaction was idle for too long, and the server ended it",
    "26000": "a prepared statement is not there: behind PgBouncer in transaction mode, use "
    "PgBouncer 1.21 or newer with max_prepared_statements, or add ?statement_cache_size=0",
    "42P05": "a prepared statement is there twice: behind PgBouncer in transaction mode, use "
    "PgBouncer 1.21 or newer with max_prepared_statements, or add ?statement_cache_size=0",
}
_PERMANENT = ("28", "3D", "42", "0A")
_OF_DATA = ("22", "54")  # no text, no number, out of range; more than an index row or a value takes
_LOST_A_RACE = "22012"  # a division by zero: how a commit says that versions do not match


_TIMEOUT = (
    "no answer in time: the database server is overloaded or out of reach, waits for a replica, or "
    "another session holds locks (see pg_stat_activity)"
)


_FULL_OF_NOTICES = (
    "the server's queue of notices is full: look in pg_stat_activity for a session, of any "
    "database, that listens and is idle in transaction, and end it; "
    "idle_in_transaction_session_timeout does so by itself"
)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Raise a StoreError for what the driver raises; `name` is the database.

    StoreMisnamed for what is wrong with the connection string, StoreRefused for what is wrong with
    the data, StoreUnavailable for what may be over later.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        raise _explain(error, name) from error
    except asyncpg.ClientConfigurationError as error:
        raise StoreMisnamed(f"{name}: {error}") from error
    except asyncpg.InterfaceError as error:
        if isinstance(error, ValueError):  # a parameter that no type fits: not the connection
            raise StoreRefused(f"{name}: {error}") from error
        raise StoreUnavailable(f"{name} cannot be reached: {error}") from error
    except TimeoutError as error:
        raise StoreUnavailable(f"{name}: {_TIMEOUT}") from error
    except UNREACHABLE as error:
        text = str(error) or type(error).__name__
        raise StoreUnavailable(f"{name} cannot be reached: {text}") from error


def _explain(error: asyncpg.PostgresError, name: str) -> StoreError:
    explained = _in_words(error, name)
    # After a FATAL one the server is gone, perhaps after it had written.
    explained.refused |= getattr(error, "severity_en", "") == "ERROR"
    return explained


def _in_words(error: asyncpg.PostgresError, name: str) -> StoreError:
    code = error.sqlstate or ""
    remedy = _REMEDIES.get(code)
    why = str(error).partition("\n")[0]  # the driver may add advice for programmers
    if code == "54000" and "NOTIFY" in why:  # of any language; the code has other meanings, too
        remedy = _FULL_OF_NOTICES
    text = f"{name}: {remedy} ({why})" if remedy else f"{name}: {why}"
    if code.startswith(_OF_DATA) and code != _LOST_A_RACE:
        return StoreRefused(text)
    if code.startswith(_PERMANENT):
        return StoreError(text)
    return StoreUnavailable(text)
