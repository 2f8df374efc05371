"""What a target names, and the store of one that is a database.

======================  ==========================================================================
``memory://``           a node in this process that forgets everything when it is closed
``sqlite:///path``      a node in this process on a file; four slashes for an absolute path
``postgresql://…``      a node in this process on a database that any number of nodes share
``host:port``           a server, perdure's or Temporal's; also ``grpc://`` and, with TLS,
                        ``grpcs://``
======================  ==========================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from perdure.store.redacting import redacted

if TYPE_CHECKING:
    from perdure.store.contract import Store

DEFAULT_PORT: Final = 7233

_FORMS: Final = (
    "memory://, sqlite:///path/to/file.db, postgresql://user@host/database, grpc://host:7233, "
    "grpcs://host:7233, host:7233"
)
_POSTGRES: Final = "postgresql://user:password@host/database"
_KEYWORDS: Final = re.compile(r"\b(host|hostaddr|dbname|user|password|service)\s*=")


@dataclass(frozen=True, slots=True)
class Target:
    """A target, taken apart.

    Attributes:
        kind: what serves.
        address: ``host:port`` of a server; the file's path; all of a PostgreSQL target; "" for
            memory.
        tls: is it a server behind TLS?
    """

    kind: Literal["memory", "sqlite", "postgresql", "grpc"]
    address: str
    tls: bool = False


def parse_target(target: str) -> Target:
    """Take a target apart.

    Raises:
        ValueError, TypeError: it is none; the message shows the forms there are, and no password.
    """
    if not isinstance(target, str):
        raise TypeError(f"target: a string, got {type(target).__name__}")
    scheme, separator, rest = target.partition("://")
    scheme = scheme.lower()
    shown = redacted(target)
    mistake = postgres_mistake(target)
    if mistake:
        raise ValueError(f"target: {shown!r}: {mistake}")
    if not separator:
        return Target("grpc", _host_and_port(target, shown))
    if scheme == "memory" and not rest:
        return Target("memory", "")
    if scheme == "sqlite":
        return Target("sqlite", _path(rest, shown))
    if scheme in ("postgresql", "postgres"):
        return Target("postgresql", target)
    if scheme in ("grpc", "grpcs"):
        return Target("grpc", _host_and_port(rest.rstrip("/"), shown), tls=scheme == "grpcs")
    raise ValueError(f"target: {shown!r} is none of {_FORMS}")


def postgres_mistake(target: str) -> str | None:
    """What to write instead, if this means a PostgreSQL database in a form for other programs."""
    if re.match(r"(?i:postgres(ql)?)\+\w+:/", target):
        return f"perdure brings its own driver: write {_POSTGRES}"
    if re.match(r"(?i:postgres(ql)?):(?!//)", target):
        return f"two slashes are missing: write {_POSTGRES}"
    if "://" not in target and _KEYWORDS.search(target):
        return f"keywords are not understood: write a URL, {_POSTGRES}"
    if "://" not in target and re.match(r"[^/:@]{2,}:.*@", target):
        return f"the scheme is missing: write {_POSTGRES}"
    return None


def _path(rest: str, shown: str) -> str:
    if not rest.startswith("/") or not rest.strip("/"):
        raise ValueError(
            f"target: {shown!r} names no file; write sqlite:///orders.db for one in the current "
            "directory, sqlite:////var/lib/orders.db for an absolute path"
        )
    if rest == "/:memory:":
        raise ValueError(f"target: {shown!r}; a node without a file is memory://")
    return rest[1:]


def _host_and_port(text: str, shown: str) -> str:
    if re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[\w.-]+)(:\d{1,5})?", text) is None:
        raise ValueError(f"target: {shown!r} is none of {_FORMS}")
    port = text.rpartition(":")[2] if re.search(r":\d+$", text) else None
    if port is None:
        if "://" not in shown:  # a bare word is more likely a path or a mistake than a host
            raise ValueError(f"target: {shown!r} has no port, and is none of {_FORMS}")
        return f"{text}:{DEFAULT_PORT}"
    if not 0 < int(port) < 65536:
        raise ValueError(f"target: {shown!r} has the port {port}, which cannot be")
    return text


def store_of(target: Target, *, read_only: bool = False) -> Store:
    """The store of a database, still to be opened.

    Args:
        read_only: to look into it only, beside whoever else has it open; commits raise.

    Raises:
        StoreMisnamed: the connection string makes no sense.
        ImportError: PostgreSQL, and the extra ``perdure[postgres]`` is not installed.
    """
    assert target.kind != "grpc", "a server has its store itself"
    if target.kind == "postgresql":
        return _postgres(target.address, read_only)
    from perdure.store.sqlite import SqliteStore

    path = ":memory:" if target.kind == "memory" else Path(target.address)
    return SqliteStore(path, read_only=read_only)


def _postgres(dsn: str, read_only: bool) -> Store:
    try:
        from perdure.store.postgres import PostgresStore
    except ImportError as error:
        if error.name != "asyncpg":
            raise
        raise ImportError("PostgreSQL needs asyncpg: pip install 'perdure[postgres]'") from error
    return PostgresStore(dsn, read_only=read_only)
