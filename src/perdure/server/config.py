"""The config file of a server: settings under the names that Temporal's operators know.

A TOML file of keys as in Temporal's dynamic configuration, and of keys of perdure's own:

    limit.blobSize.error = 4194304
    matching.longPollExpirationInterval = "30s"

    [history]
    maxInFlightUpdates = 20
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from perdure.engine.limits import Limits
from perdure.service.settings import Settings

Unit = Literal["count", "bytes", "duration", "flag"]
_SECOND_NS: Final = 1_000_000_000
_UNITS_S: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LONGEST_S: Final = 365 * 86_400.0
_LARGEST: Final = 2**31 - 1


class ConfigError(ValueError):
    """The config file makes no sense; the message names the file, the key and what is wrong."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a key sets.

    Attributes:
        fields: ``settings.…``, ``limits.…``, ``transport.…`` or ``grace_s``.
        unit: how a value is written.
        least: the smallest value (in bytes, seconds or pieces).
        most: the largest value in bytes or pieces.
    """

    fields: tuple[str, ...]
    unit: Unit = "count"
    least: int = 1
    most: int = _LARGEST


@dataclass(frozen=True, slots=True)
class Config:
    """What a config file says; without one, the defaults.

    Attributes:
        settings: of the node, with its limits on one run.
        transport: fields of ``perdure.server.transports.Options``.
        grace_s: how long running calls may take at the end.
    """

    settings: Settings = field(default_factory=Settings)
    transport: Mapping[str, Any] = field(default_factory=dict)
    grace_s: float = 10.0


KEYS: Final[Mapping[str, Key]] = {
    "limit.maxIDLength": Key(("limits.id_bytes_max",), most=1_000),  # longer ones fit into no index
    "limit.blobSize.warn": Key(("settings.payload_bytes_warn",), "bytes"),
    "limit.blobSize.error": Key(("limits.payload_bytes_max",), "bytes"),
    "limit.historySize.warn": Key(("settings.history_bytes_warn",), "bytes", 0),
    "limit.historySize.suggestContinueAsNew": Key(("limits.history_suggest_bytes",), "bytes", 0),
    "limit.historySize.error": Key(("limits.history_bytes_max",), "bytes", 0),
    "limit.historyCount.warn": Key(("settings.history_events_warn",), least=0),
    "limit.historyCount.suggestContinueAsNew": Key(("limits.history_suggest_events",), least=0),
    "limit.historyCount.error": Key(("limits.history_events_max",), least=0),
    "limit.numPendingActivities.error": Key(("limits.pending_activities_max",), least=0),
    "limit.numPendingChildExecutions.error": Key(("limits.pending_children_max",), least=0),
    "limit.numPendingSignals.error": Key(("limits.pending_signals_max",), least=0),
    "limit.numPendingCancelRequests.error": Key(("limits.pending_cancels_max",), least=0),
    "history.maximumSignalsPerExecution": Key(("limits.signals_max",), least=0),
    "history.maxTotalUpdates": Key(("limits.updates_max",), least=0),
    "history.maxInFlightUpdates": Key(("limits.updates_in_flight_max",), least=0),
    "history.defaultWorkflowTaskTimeout": Key(("settings.default_task_timeout_ns",), "duration"),
    "history.workflowTaskRetryMaxInterval": Key(("limits.task_retry_pause_max_ns",), "duration"),
    "history.longPollExpirationInterval": Key(("settings.history_poll_ns",), "duration"),
    "history.hostLevelCacheMaxSize": Key(("settings.cached_runs_max",)),
    "history.hostLevelCacheMaxSizeBytes": Key(("settings.cached_bytes_max",), "bytes"),
    "history.MaxBufferedQueryCount": Key(("settings.queries_per_run_max",)),
    "matching.longPollExpirationInterval": Key(("settings.long_poll_ns",), "duration"),
    "matching.queryPollerUnavailableWindow": Key(("settings.query_poller_ns",), "duration"),
    "matching.PollerHistoryTTL": Key(("settings.poller_seen_ns",), "duration"),
    "frontend.historyMaxPageSize": Key(("settings.history_page_events_max",)),
    "frontend.visibilityMaxPageSize": Key(("settings.list_page_max",)),
    "frontend.searchAttributesNumberOfKeysLimit": Key(("settings.search_attributes_max",)),
    "frontend.searchAttributesSizeOfValueLimit": Key(
        ("settings.search_attribute_bytes_max",), "bytes"
    ),
    "frontend.searchAttributesTotalSizeLimit": Key(
        ("settings.search_attributes_bytes_max",), "bytes"
    ),
    "frontend.keepAliveTime": Key(("transport.keepalive_s",), "duration"),
    "frontend.keepAliveTimeout": Key(("transport.keepalive_timeout_s",), "duration"),
    "frontend.keepAliveMinTime": Key(("transport.ping_interval_s",), "duration", 0),
    "frontend.shutdownDrainDuration": Key(("grace_s",), "duration", 0),
    "perdure.grpc.maxMessageSize": Key(("transport.message_bytes_max",), "bytes", 1_024),
    "perdure.grpc.maxMetadataSize": Key(("transport.metadata_bytes_max",), "bytes", 1_024),
    "perdure.grpc.maxConcurrentStreams": Key(("transport.streams_max",)),
    "perdure.query.timeout": Key(("settings.query_timeout_ns",), "duration"),
    "perdure.query.answerTimeout": Key(("settings.query_answer_ns",), "duration"),
    "perdure.query.maxWaiting": Key(("settings.queries_max",)),
    "perdure.matching.maxPollsPerTaskQueue": Key(("settings.task_queue_polls_max",)),
    "perdure.matching.maxConfiguredTaskQueues": Key(("settings.configured_task_queues_max",)),
    "perdure.matching.backlogWindow": Key(("settings.backlog_window",)),
    "perdure.store.commitUnits": Key(("settings.commit_units_max",)),
    "perdure.store.commitBytes": Key(("settings.commit_bytes_max",), "bytes"),
    "perdure.store.commitQueue": Key(("settings.commit_queue_max",)),
    "perdure.worker.registrySize": Key(("settings.workers_max",)),
    "perdure.worker.registryTTL": Key(("settings.worker_seen_ns",), "duration"),
    "perdure.searchAttributes.maxPerNamespace": Key(("settings.custom_search_attributes_max",)),
    "perdure.searchAttributes.maxIndexed": Key(
        ("settings.indexed_search_attributes_max",), "count", 0
    ),
    "perdure.retention.sweepInterval": Key(("settings.retention_sweep_ns",), "duration"),
    "perdure.searchAttributes.autoRegister": Key(
        ("settings.auto_register_search_attributes",), "flag"
    ),
}


def read(path: Path) -> Config:
    """The config in a file.

    Raises:
        ConfigError: it is no TOML, names a key that does not exist, or has a value that cannot be.
        OSError: it cannot be read.
    """
    try:
        tree = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no TOML: {error}") from None
    try:
        return parsed(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parsed(tree: Mapping[str, Any]) -> Config:
    """The config in a tree of tables. Raises ConfigError."""
    parts: dict[str, dict[str, Any]] = {"settings": {}, "limits": {}, "transport": {}, "": {}}
    for name, value in _flat(tree, ""):
        key = KEYS.get(name)
        if key is None:
            raise ConfigError(_unknown(name))
        number = _value(name, key, value)
        for target in key.fields:
            part, _, setting = target.rpartition(".")
            parts[part][setting] = _in_unit(number, setting)
    return Config(
        Settings(**parts["settings"], limits=Limits(**parts["limits"])),
        parts["transport"],
        **parts[""],
    )


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _unknown(name: str) -> str:
    by_lower = {key.lower(): key for key in KEYS}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(by_lower[key] for key in near)}?" if near else ""
    return f"there is no key {name}{hint} (docs/settings.md lists them)"


def _value(name: str, key: Key, value: Any) -> float | bool:
    """A value in bytes, seconds or pieces, checked. Raises ConfigError."""
    if key.unit == "flag":
        if not isinstance(value, bool):
            raise ConfigError(f"{name}: true or false, got {value!r}")
        return value
    if key.unit == "duration":
        return _duration_s(name, key, value)
    if not isinstance(value, int) or isinstance(value, bool):
        what = "a number of bytes" if key.unit == "bytes" else "a whole number"
        raise ConfigError(f"{name}: {what}, got {value!r}")
    if not key.least <= value <= key.most:
        raise ConfigError(f"{name}: {value} is not between {key.least} and {key.most}")
    return value


def _duration_s(name: str, key: Key, value: Any) -> float:
    number: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", value)
        if parts and "".join(map("".join, parts)) == value:
            number = sum(float(amount) * _UNITS_S[unit] for amount, unit in parts)
    if number is None:
        raise ConfigError(f'{name}: a duration such as "90s" or "1m30s", got {value!r}')
    if not key.least <= number <= _LONGEST_S:
        raise ConfigError(f"{name}: {value} is not between {key.least} s and a year")
    return number


def _in_unit(number: float | bool, setting: str) -> Any:
    return round(number * _SECOND_NS) if setting.endswith("_ns") else number
