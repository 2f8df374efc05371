"""The config file: what it sets, and what it says to what it does not understand."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import msgspec
import pytest

from perdure.engine.limits import Limits
from perdure.sdk.worker_options import WorkerOptions
from perdure.server.config import KEYS, Config, ConfigError, read
from perdure.service.settings import Settings

DOCS = Path(__file__).resolve().parents[3] / "docs" / "settings.md"


def config(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "perdure.toml"
    path.write_text(text)
    return read(path)


def test_keys_can_be_dotted_quoted_or_in_tables(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        """
        limit.blobSize.error = 4194304
        "matching.longPollExpirationInterval" = "1m30s"
        [history]
        maxInFlightUpdates = 20
        [perdure]
        searchAttributes.autoRegister = false
        """,
    )
    assert found.settings.payload_bytes_max == 4_194_304
    assert found.settings.long_poll_ns == 90_000_000_000
    assert found.settings.limits.updates_in_flight_max == 20
    assert not found.settings.auto_register_search_attributes
    assert found.settings.cached_runs_max == Settings().cached_runs_max


def test_settings_of_the_door(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        """
        frontend.keepAliveTime = 30
        frontend.shutdownDrainDuration = "500ms"
        perdure.grpc.maxMessageSize = 1_000_000
        """,
    )
    assert found.transport == {"keepalive_s": 30.0, "message_bytes_max": 1_000_000}
    assert found.grace_s == 0.5


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert config(tmp_path, "") == Config()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("limit.blobsize.eror = 1", r"no key limit\.blobsize\.eror; did you mean limit\.blobSize"),
        ("limit.zzz = 1", r"no key limit\.zzz.*docs/settings\.md"),
        ("limit.blobSize = 1", r"no key limit\.blobSize; did you mean"),
        ("limit.maxIDLength = '7'", "limit.maxIDLength: a whole number, got '7'"),
        ("limit.maxIDLength = true", "limit.maxIDLength: a whole number, got True"),
        ("limit.maxIDLength = 0", "limit.maxIDLength: 0 is not between 1 and"),
        ("limit.maxIDLength = 1001", "limit.maxIDLength: 1001 is not between 1 and 1000$"),
        ("limit.blobSize.error = -1", "-1 is not between 1 and"),
        ("limit.blobSize.error = 1e6", "a number of bytes, got 1000000.0"),
        ("matching.longPollExpirationInterval = '5 minutes'", 'a duration such as "90s"'),
        ("matching.longPollExpirationInterval = '0s'", "'?0s'? is not between 1 s and a year"),
        ("perdure.searchAttributes.autoRegister = 1", "true or false, got 1"),
        ("limit.maxIDLength", "no TOML"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as error:
        config(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / "perdure.toml"))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "perdure.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no TOML"):
        read(path)


def test_every_key_sets_something_that_exists() -> None:
    pytest.importorskip("grpc")
    from perdure.server.transports import Options

    fields = {f"settings.{name}" for name in Settings.__struct_fields__}
    fields |= {f"limits.{name}" for name in Limits.__struct_fields__}
    fields |= {f"transport.{name}" for name in Options.__dataclass_fields__} | {"grace_s"}
    named = [name for key in KEYS.values() for name in key.fields]
    assert set(named) <= fields
    assert len(named) == len(set(named))


def test_the_documented_table_is_the_real_one() -> None:
    server = DOCS.read_text().partition("## Of a worker")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", server, flags=re.MULTILINE)
    documented = dict(rows)
    assert list(documented) == list(KEYS)
    default = Config()
    known = {
        "settings": msgspec.structs.asdict(default.settings),
        "limits": msgspec.structs.asdict(default.settings.limits),
    }
    for name, key in KEYS.items():
        part, _, field = key.fields[0].rpartition(".")
        if part in known:
            assert _shown(known[part][field], key.unit) == documented[name].strip(), name


def _shown(value: float, unit: str) -> str:
    if unit == "duration":
        seconds = value / 1e9
        return f"{seconds / 3600:g}h" if seconds >= 3600 else f"{seconds:g}s"
    if unit == "flag":
        return str(value).lower()
    if unit == "bytes":
        mebibytes = value / 1024 / 1024
        return f"{mebibytes:g} MiB" if mebibytes >= 1 else f"{value / 1024:g} KiB"
    return f"{value:,}"


def test_the_documented_options_of_a_worker_are_its_limits() -> None:
    worker = DOCS.read_text().partition("## Of a worker")[2].partition("## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", worker, flags=re.MULTILINE)
    others = {"workflows", "activities", "interceptors", "identity"}
    others |= {"workflow_failure_exception_types"}
    assert set(documented) == {field.name for field in dataclasses.fields(WorkerOptions)} - others
