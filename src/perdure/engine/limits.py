"""How much one run may hold. The defaults are those that Temporal's users know."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one run. Sizes in bytes; 0 switches a bound off.

    Attributes:
        payload_bytes_max: input, result, details or failure of one command.
        id_bytes_max: ids, type names, task queue names, in UTF-8. More than 1,000 may not fit into
            the rows of PostgreSQL's indexes.
        history_suggest_events, history_suggest_bytes: from here on continue-as-new is suggested.
        history_events_max, history_bytes_max: here the run is terminated, with a clear reason.
        pending_*_max: pending items of one kind.
        signals_max: signals in one run.
        updates_max: updates in one run.
        updates_in_flight_max: updates not completed at one time.
        task_retry_pause_ns, task_retry_pause_max_ns: between failing tasks, from the third on.
    """

    payload_bytes_max: int = 2 * 1024 * 1024
    id_bytes_max: int = 1_000
    history_suggest_events: int = 4_096
    history_suggest_bytes: int = 4 * 1024 * 1024
    history_events_max: int = 51_200
    history_bytes_max: int = 50 * 1024 * 1024
    pending_activities_max: int = 2_000
    pending_children_max: int = 2_000
    pending_signals_max: int = 2_000
    pending_cancels_max: int = 2_000
    signals_max: int = 10_000
    updates_max: int = 2_000
    updates_in_flight_max: int = 10
    task_retry_pause_ns: int = 5_000_000_000
    task_retry_pause_max_ns: int = 600_000_000_000

    def fault_of_id(self, value: str) -> str:
        """What is wrong with an id or a name; empty when nothing is."""
        limit = self.id_bytes_max
        if len(value) * 4 > limit > 0 and len(value.encode()) > limit:
            return f"exceeds length limit. Length={len(value.encode())} Limit={limit}"
        if "\0" in value:  # PostgreSQL has no such text
            return f"contains a NUL character: {value[:100]!r}"
        return ""

    @property
    def updates_suggest(self) -> int:
        """From here on continue-as-new is suggested: nine tenths of what one run takes."""
        return self.updates_max * 9 // 10


DEFAULT = Limits()
