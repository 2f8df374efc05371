"""Every limit and knob of a node in one place."""

from __future__ import annotations

import msgspec

SECOND_NS = 1_000_000_000


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How large things may grow and how long they may take. All of it has a default that serves.

    Limits on requests (a request over one is refused with the argument's name, nothing stored):

    Attributes:
        id_bytes_max: workflow ids, task queue names, type names, signal names, request ids.
        payload_bytes_warn: a payload over this is noted in the log.
        payload_bytes_max: the largest input, result, memo, details or failure.
        task_queue_polls_max: polls parked on one task queue.

    Search attributes:

    Attributes:
        auto_register_search_attributes: an unknown attribute is registered by its first use, with
            the type that its payload declares; else such a start or upsert is refused.

    The cache of runs:

    Attributes:
        cached_runs_max: how many runs are kept in memory.
        cached_bytes_max: about how many bytes they may take.
        tail_bytes_max: history kept with one cached run, so that a sticky task needs no read.

    Commits:

    Attributes:
        commit_units_max: transitions written in one database transaction.
        commit_queue_max: transitions waiting for the database before callers have to wait.
        redo_max: how often a transition is redone after losing a race, before the caller is told.
        id_block: ids taken from the store at once.

    Task queues:

    Attributes:
        long_poll_ns: a poll with nothing to do is answered empty after this.
        history_poll_ns: who waits for an event, or for an update, is told after this how far it is.
        backlog_window: waiting tasks held in memory per queue; the rest stays in the store.
        sticky_alive_ns: a sticky queue whose worker did not poll for this long is passed by.
        fused_rounds_max: workflow tasks that a worker in this process may do within one transition.
        queue_idle_ns: an empty queue that nobody polls is forgotten after this.
        history_page_bytes: history sent along with a workflow task; the rest is fetched by page.

    Workers:

    Attributes:
        workers_max: workers that are remembered; the one not heard of for longest goes first.
        worker_seen_ns: a worker that sent no heartbeat for this long is forgotten.

    Background work:

    Attributes:
        alarm_batch: runs rung at once when many are due.
        outbox_window: messages to other runs held in memory.
        retry_ns: the pause before work that met a failing store is tried again.
    """

    id_bytes_max: int = 1_000
    payload_bytes_warn: int = 256 * 1024
    payload_bytes_max: int = 2 * 1024 * 1024
    task_queue_polls_max: int = 100_000
    auto_register_search_attributes: bool = True

    cached_runs_max: int = 20_000
    cached_bytes_max: int = 256 * 1024 * 1024
    tail_bytes_max: int = 512 * 1024

    commit_units_max: int = 200
    commit_queue_max: int = 20_000
    redo_max: int = 20
    id_block: int = 10_000

    long_poll_ns: int = 60 * SECOND_NS
    history_poll_ns: int = 20 * SECOND_NS
    backlog_window: int = 1_000
    sticky_alive_ns: int = 10 * SECOND_NS
    fused_rounds_max: int = 16
    queue_idle_ns: int = 3_600 * SECOND_NS
    history_page_bytes: int = 2 * 1024 * 1024

    workers_max: int = 100_000
    worker_seen_ns: int = 24 * 3_600 * SECOND_NS

    alarm_batch: int = 100  # more would find no free slot, and wait as rows
    outbox_window: int = 10_000
    retry_ns: int = SECOND_NS

    default_task_timeout_ns: int = 10 * SECOND_NS
    task_timeout_max_ns: int = 120 * SECOND_NS
