"""Every limit and knob of a node in one place; docs/settings.md says which an operator can set."""

from __future__ import annotations

import msgspec

from perdure.api.times import SECOND_NS
from perdure.engine.limits import DEFAULT, Limits


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How large things may grow and how long they may take. All of it has a default that serves.

    Limits on requests (a request over one is refused with the argument's name, nothing stored):

    Attributes:
        limits: of one run, which the engine keeps; those of ids and payloads hold for all requests.
        payload_bytes_warn: a payload over this is noted in the log.
        history_events_warn, history_bytes_warn: so is a run whose history outgrows this; 0 never.
        task_queue_polls_max: polls parked on one task queue.
        list_page_max: runs on one page of a list.
        list_page_bytes: a page of runs ends where it would get larger, unless it is one run; below
            the 4 MiB that many clients of gRPC take.
        history_page_events_max: events on one page of a history.
        reset_followers_max: runs after the one to reset that are looked through for signals and
            updates.

    Search attributes:

    Attributes:
        auto_register_search_attributes: an unknown attribute is registered by its first use, with
            the type that its payload declares; else such a start or upsert is refused.
        search_attributes_max: attributes of one run.
        search_attribute_bytes_max: one value.
        search_attributes_bytes_max: names and values of one run together.
        custom_search_attributes_max: attributes registered in one namespace.
        indexed_search_attributes_max: attributes, of all namespaces, that PostgreSQL indexes.

    The cache of runs:

    Attributes:
        cached_runs_max: how many runs are kept in memory.
        cached_bytes_max: about how many bytes they may take.
        tail_bytes_max: history kept with one cached run, so that a sticky task needs no read.

    Commits:

    Attributes:
        commit_units_max: transitions written in one database transaction.
        commit_bytes_max: no more of them once they have so many bytes of payloads.
        commit_queue_max: transitions waiting for the database before callers have to wait.
        redo_max: how often a transition is redone after losing a race, before the caller is told.
        id_block: ids taken from the store at once.

    Task queues:

    Attributes:
        long_poll_ns: a poll with nothing to do is answered empty after this.
        history_poll_ns: who waits for an event, or for an update, is told after this how far it is.
        backlog_window: waiting tasks held in memory per queue; the rest stays in the store.
        configured_task_queues_max: task queues of one namespace that an operator has configured.
        sticky_alive_ns: a sticky queue whose worker did not poll for this long is passed by.
        fused_rounds_max: workflow tasks that a worker in this process may do within one transition.
        queue_idle_ns: an empty queue that nobody polls is forgotten after this.
        history_page_bytes: history sent along with a workflow task; the rest is fetched by page.

    Queries:

    Attributes:
        query_timeout_ns: how long a query waits for its answer; its caller may give up earlier.
        query_poller_ns: how long it waits for a worker where none polled for this long.
        query_answer_ns: how long a worker may take to answer before another one is asked.
        queries_max: queries that workers of this node hold.
        queries_per_run_max: queries that wait for one run's workflow task.

    Workers:

    Attributes:
        poller_seen_ns: a poller is shown with its task queue until it did not poll for this long.
        workers_max: workers that are remembered; the one not heard of for longest goes first.
        worker_seen_ns: a worker that sent no heartbeat for this long is forgotten.

    Background work:

    Attributes:
        alarm_batch: runs rung at once when many are due.
        outbox_window: messages to other runs held in memory.
        retention_sweep_ns: between two looks for closed runs whose retention is over.
        retry_ns: the pause before work that met a failing store is tried again.

    Workflow tasks:

    Attributes:
        default_task_timeout_ns: the timeout of a workflow task where the start names none.
        task_timeout_max_ns: the longest that a start can name.
    """

    limits: Limits = DEFAULT
    payload_bytes_warn: int = 256 * 1024
    history_events_warn: int = 10_240
    history_bytes_warn: int = 10 * 1024 * 1024
    task_queue_polls_max: int = 100_000
    list_page_max: int = 1_000
    list_page_bytes: int = 3 * 1024 * 1024
    history_page_events_max: int = 1_000
    reset_followers_max: int = 1_000

    auto_register_search_attributes: bool = True
    search_attributes_max: int = 100
    search_attribute_bytes_max: int = 2 * 1024
    search_attributes_bytes_max: int = 40 * 1024
    custom_search_attributes_max: int = 1_000
    indexed_search_attributes_max: int = 30

    cached_runs_max: int = 20_000
    cached_bytes_max: int = 256 * 1024 * 1024
    tail_bytes_max: int = 512 * 1024

    commit_units_max: int = 200
    commit_bytes_max: int = 32 * 1024 * 1024
    commit_queue_max: int = 20_000
    redo_max: int = 20
    id_block: int = 10_000

    long_poll_ns: int = 60 * SECOND_NS
    history_poll_ns: int = 20 * SECOND_NS
    backlog_window: int = 1_000
    configured_task_queues_max: int = 1_000
    sticky_alive_ns: int = 10 * SECOND_NS
    fused_rounds_max: int = 16
    queue_idle_ns: int = 3_600 * SECOND_NS
    history_page_bytes: int = 2 * 1024 * 1024

    query_timeout_ns: int = 30 * SECOND_NS
    query_poller_ns: int = 10 * SECOND_NS
    query_answer_ns: int = 10 * SECOND_NS
    queries_max: int = 10_000
    queries_per_run_max: int = 100

    poller_seen_ns: int = 300 * SECOND_NS
    workers_max: int = 100_000
    worker_seen_ns: int = 24 * 3_600 * SECOND_NS

    alarm_batch: int = 100  # more would find no free slot, and wait as rows
    outbox_window: int = 10_000
    retention_sweep_ns: int = 3_600 * SECOND_NS
    retry_ns: int = SECOND_NS

    default_task_timeout_ns: int = 10 * SECOND_NS
    task_timeout_max_ns: int = 120 * SECOND_NS

    @property
    def id_bytes_max(self) -> int:
        """The longest workflow id, task queue name, type name, signal name or request id."""
        return self.limits.id_bytes_max

    @property
    def payload_bytes_max(self) -> int:
        """The largest input, result, memo, details or failure."""
        return self.limits.payload_bytes_max
