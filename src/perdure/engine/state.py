"""What a run is made of, besides its history.

``RunInfo`` never changes after the start. ``RunState`` is the hot part, written with every
transition, so it is kept small. All that can be many per run is an *item*, stored as a row of its
own: pending activities, timers, children, requests to other runs, updates, buffered events, seen
request ids.
All are msgspec structs, stored as MessagePack. Times are nanoseconds since the epoch, lengths of
time nanoseconds; 0 means "none". ``bytes`` fields named after a message hold it serialised.
None refers to another one that refers back, so the cyclic garbage collector need not look at them
(``gc=False``): with many runs in memory it would look at little else.
"""

from __future__ import annotations

import msgspec


class RetryPolicy(msgspec.Struct, array_like=True, gc=False):
    """temporal.api.common.v1.RetryPolicy.

    maximum_attempts 0 is unlimited; maximum_interval 0 is 100 times the initial interval.
    """

    initial_interval_ns: int
    backoff_coefficient: float
    maximum_interval_ns: int
    maximum_attempts: int
    non_retryable_types: list[str] = []


class RunInfo(msgspec.Struct, array_like=True, gc=False):
    """What a start decides once for a run."""

    namespace: str
    namespace_id: str
    workflow_id: str
    run_id: str
    first_run_id: str
    original_run_id: str
    workflow_type: str
    task_queue: str
    start_request_id: str  # of the start to which the chain of runs goes back
    start_ns: int
    execution_timeout_ns: int = 0
    run_timeout_ns: int = 0
    task_timeout_ns: int = 10_000_000_000
    execution_deadline_ns: int = 0
    run_deadline_ns: int = 0
    attempt: int = 1
    retry: RetryPolicy | None = None
    cron_schedule: str = ""
    continued_from_run_id: str = ""
    parent_namespace: str = ""
    parent_workflow_id: str = ""
    parent_run_id: str = ""
    parent_key: int = 0
    parent_initiated_event_id: int = 0
    root_workflow_id: str = ""
    root_run_id: str = ""
    priority: bytes = b""


class WorkflowTask(msgspec.Struct, array_like=True, gc=False):
    """The one workflow task of a run, scheduled or started.

    A *transient* task (attempt > 1) and a *speculative* one (made only to carry an update) have no
    events in history until they complete; their event ids are the ones they will have.
    """

    scheduled_event_id: int
    scheduled_ns: int
    queue: str
    sticky: bool = False
    attempt: int = 1
    stamp: int = 0
    started_event_id: int = 0
    started_ns: int = 0
    timeout_ns: int = 0
    request_id: str = ""
    identity: str = ""
    speculative: bool = False
    original_scheduled_ns: int = 0
    history_size_bytes: int = 0
    suggest_continue_as_new: bool = False
    in_process: bool = False  # held by a worker that dies with a node's process
    due_ns: int = 0  # not handed out before: a retry is paced
    suggest_reasons: tuple[int, ...] = ()  # numbers of SuggestContinueAsNewReason
    holder: int = 0  # the node whose process that worker lives in


class RunState(msgspec.Struct, array_like=True, gc=False):
    """The hot part: what most transitions change."""

    status: int = 1
    next_event_id: int = 1
    next_item_id: int = 1
    version: int = 0
    history_size_bytes: int = 0
    transition_count: int = 0
    wake_at_ns: int = 0
    close_ns: int = 0
    workflow_task: WorkflowTask | None = None
    task_stamp: int = 0
    last_task_started_event_id: int = 0  # of the last *completed* workflow task
    last_task_completed_event_id: int = 0
    failed_task_attempts: int = 0
    event_id_after_failure: int = 0  # next_event_id when the last workflow task failed
    first_task_backoff_until_ns: int = 0
    sticky_queue: str = ""
    sticky_timeout_ns: int = 0
    sticky_worker: bytes = b""
    cancel_requested: bool = False
    cancel_request_id: str = ""
    signal_count: int = 0
    update_count: int = 0
    assigned_build_id: str = ""
    successor_run_id: str = ""
    close_event_id: int = 0
    reset_run_id: str = ""
    in_process_activities: int = 0  # started ones that such workers hold


class Item(msgspec.Struct, array_like=True, gc=False, tag=True):
    """A row of its own; `id` counts up within the run (RunState.next_item_id)."""

    id: int


class Activity(Item, array_like=True, gc=False, tag=1):
    scheduled_event_id: int
    activity_id: str
    activity_type: str
    queue: str
    scheduled_ns: int
    input: bytes = b""
    header: bytes = b""
    schedule_to_close_ns: int = 0
    schedule_to_start_ns: int = 0
    start_to_close_ns: int = 0
    heartbeat_ns: int = 0
    retry: RetryPolicy | None = None
    attempt: int = 1
    stamp: int = 0
    due_ns: int = 0  # when the present attempt became, or will become, ready for a worker
    started_ns: int = 0  # 0: not started
    started_identity: str = ""
    request_id: str = ""
    in_process: bool = False
    last_heartbeat_ns: int = 0
    heartbeat_details: bytes = b""
    last_failure: bytes = b""
    last_worker_identity: str = ""
    last_attempt_complete_ns: int = 0
    cancel_requested: bool = False
    cancel_requested_event_id: int = 0
    workflow_task_completed_event_id: int = 0
    paused_ns: int = 0
    pause_identity: str = ""
    pause_reason: str = ""
    priority: bytes = b""
    user_metadata: bytes = b""
    waiting: bool = False  # the pause before the present attempt is not over
    pause_request_id: str = ""
    reset: bool = False  # the attempt that runs counts as the first
    reset_heartbeat: bool = False  # the next attempt does not get the heartbeat details
    holder: int = 0  # the node whose process the worker lives in, if in_process


class Timer(Item, array_like=True, gc=False, tag=2):
    started_event_id: int
    timer_id: str
    due_ns: int


class Child(Item, array_like=True, gc=False, tag=3):
    initiated_event_id: int
    namespace: str
    workflow_id: str
    workflow_type: str
    parent_close_policy: int
    request_id: str  # of the start, so that it is done once
    run_id: str = ""
    started_event_id: int = 0
    key: int = 0


class ExternalSignal(Item, array_like=True, gc=False, tag=4):
    initiated_event_id: int
    request_id: str


class ExternalCancel(Item, array_like=True, gc=False, tag=5):
    initiated_event_id: int
    request_id: str


class Update(Item, array_like=True, gc=False, tag=6):
    """An update that was accepted; kept for the life of the run, so that its id stays known."""

    update_id: str
    accepted_event_id: int
    completed_event_id: int = 0
    outcome: bytes = b""


class BufferedEvent(Item, array_like=True, gc=False, tag=7):
    """An event that arrived while a workflow task ran; it gets its id when that task ends."""

    event_type: int
    attributes: bytes
    time_ns: int
    initiated_event_id: int = 0  # what it answers, to pair a start with its end
    extra: bytes = b""


class SeenRequest(Item, array_like=True, gc=False, tag=8):
    """A request id that was applied (a signal's, say): the same request again does nothing."""

    request_id: str


class StartAttributes(Item, array_like=True, gc=False, tag=9):
    """The started event's attributes, kept where a retry or cron run will need them again."""

    attributes: bytes


class Pause(Item, array_like=True, gc=False, tag=10):
    """Who holds the run, since when, and why; there while it is held."""

    paused_ns: int
    identity: str
    reason: str
    request_id: str


AnyItem = (
    Activity
    | Timer
    | Child
    | ExternalSignal
    | ExternalCancel
    | Update
    | BufferedEvent
    | SeenRequest
    | StartAttributes
    | Pause
)


def payload_bytes(item: AnyItem) -> int:
    """How large the payloads in an item are."""
    if isinstance(item, Activity):
        size_bytes = len(item.input) + len(item.header) + len(item.heartbeat_details)
        return size_bytes + len(item.last_failure)
    if isinstance(item, (BufferedEvent, StartAttributes)):
        return len(item.attributes)
    return len(item.outcome) if isinstance(item, Update) else 0


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_info = msgspec.msgpack.Decoder(RunInfo).decode
decode_state = msgspec.msgpack.Decoder(RunState).decode
decode_item = msgspec.msgpack.Decoder(AnyItem).decode
