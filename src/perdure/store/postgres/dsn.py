"""Connection strings: checked before the driver sees them.

The driver's own errors would show parts of a password, or say nothing that helps; and it takes what
it does not know for settings of the server, among it parameters of libpq that hosts of databases
write into the strings they hand out.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from perdure.store.contract import StoreMisnamed
from perdure.store.redacting import HOST, redacted

_FORM: Final = re.compile(
    rf"(?i:postgres(?:ql)?)://(?:[^:/?#@\[\]]*(?::[^/?#@\[\]]*)?@)?{HOST}(?:,{HOST})*"
    r"(?:/[^?#@]*)?(?:\?(?:[\w.]+=[^&#]*(?:&|$))*)?"
)
_PORT_MAX: Final = 65_535

_WORDS: Final = {
    "target_session_attrs": (
        "any", "primary", "standby", "prefer-standby", "read-write", "read-only",
    ),
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
}  # fmt: skip
_NUMBERS: Final = ("connect_timeout", "statement_cache_size")
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")

# What libpq has and the driver has not. Left out where nothing is lost but comfort: a connection
# that falls silent is found by timeouts, and text is UTF-8 on the way whatever the program's is.
_NEEDLESS: Final = frozenset({
    "client_encoding", "fallback_application_name", "gssdelegation", "keepalives",
    "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts",
    "sslcompression", "sslsni", "tcp_user_timeout",
})  # fmt: skip
_ONLY: Final = {
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "sslcertmode": ("disable", "allow"),
}
_MISSING: Final = frozenset({"hostaddr", "replication", "require_auth", "requirepeer", "sslcrldir"})


def taken_apart(dsn: str) -> tuple[SplitResult, dict[str, str]]:
    """The parts of a connection string, and its options as far as the driver can do with them.

    Raises:
        StoreMisnamed: it makes no sense, or asks for what the driver cannot do; says what to
            change, and shows no password.
    """
    name = redacted(dsn)
    parts = _split(dsn) if _FORM.fullmatch(dsn) else None
    if parts is None:
        raise StoreMisnamed(
            f"{name} is not a usable connection string: write postgresql://user:password@host:5432/"
            "database, and percent-encode characters like @ / : # ? [ % in the password (@ is %40)"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    wrong = _wrong_port(parts, options) or _wrong_option(options)
    if wrong:
        raise StoreMisnamed(f"{name}: {wrong}")
    return parts, {
        key: value for key, value in options.items() if key not in _NEEDLESS and key not in _ONLY
    }


def _split(dsn: str) -> SplitResult | None:
    with suppress(ValueError):  # no IPv6 address between brackets
        return urlsplit(dsn)
    return None


def _wrong_port(parts: SplitResult, options: dict[str, str]) -> str | None:
    """What is wrong with the ports, and with how many there are."""
    hosts = parts.netloc.rpartition("@")[2]
    ports = re.findall(r":(\d+)(?=,|$)", hosts)
    if options.get("port"):
        ports += options["port"].split(",")
    for port in ports:
        if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) <= _PORT_MAX:
            return f"port: a number from 1 to {_PORT_MAX}, got {port!r}"
    named = options.get("port", "").count(",") + 1
    there = (hosts or options.get("host", "")).count(",") + 1
    return f"port: {named} are named for {there} hosts" if named not in (1, there) else None


def _wrong_option(options: dict[str, str]) -> str | None:
    """What is wrong with the first option that the driver cannot do with."""
    for key, value in options.items():
        if key in _WORDS and value not in _WORDS[key]:
            return f"{key}: one of {', '.join(_WORDS[key])}, got {value!r}"
        if key in _NUMBERS and not re.fullmatch(r"\d{0,9}", value, re.ASCII):
            return f"{key}: a number, got {value!r}"
        if key in _FILES and value and not Path(value).is_file():
            return f"{key}: there is no file {value}"
        if key in _MISSING:
            return f"{key}: the driver does not know it; leave it out"
        if key in _ONLY and value not in _ONLY[key] and not _is_moot(key, options):
            return f"{key}={value}: the driver cannot do that; {_remedy(key)}"
    return None


def _is_moot(key: str, options: dict[str, str]) -> bool:
    """A verified certificate says who the server is, as the binding of a channel would."""
    return key == "channel_binding" and options.get("sslmode") == "verify-full"


def _remedy(key: str) -> str:
    if key == "channel_binding":
        return (
            "to be sure of the server, have its certificate verified instead: "
            "sslmode=verify-full&sslrootcert=/etc/ssl/certs/ca-certificates.crt"
        )
    return "leave it out"
