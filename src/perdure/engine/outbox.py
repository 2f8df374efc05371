"""Work that reaches another run.

Written with the transition that wants it, delivered at least once, applied exactly once: each
message carries the request id that its receiver remembers.
"""

from __future__ import annotations

import msgspec


class StartChild(msgspec.Struct, array_like=True, tag="start_child"):
    """Start a child; answered to the parent by children.started or children.start_failed."""

    initiated_event_id: int
    request_id: str
    run_id: str  # chosen by the parent, so that a second delivery meets the first's run
    request: bytes  # StartWorkflowExecutionRequest
    parent_close_policy: int = 0


class SignalRun(msgspec.Struct, array_like=True, tag="signal"):
    """Signal another run; answered by external.signaled or external.signal_failed."""

    initiated_event_id: int
    request_id: str
    namespace: str
    workflow_id: str
    run_id: str
    child_only: bool
    request: bytes  # SignalWorkflowExecutionRequest
    control: str = ""


class CancelRun(msgspec.Struct, array_like=True, tag="cancel"):
    """Ask another run to cancel. initiated_event_id 0: from a parent close policy, nobody waits."""

    initiated_event_id: int
    request_id: str
    namespace: str
    workflow_id: str
    run_id: str
    child_only: bool
    reason: str = ""
    control: str = ""


class TerminateRun(msgspec.Struct, array_like=True, tag="terminate"):
    """Terminate a child, by its parent's close policy."""

    namespace: str
    workflow_id: str
    run_id: str
    reason: str


class ChildClosed(msgspec.Struct, array_like=True, tag="child_closed"):
    """Tell the parent that this run, its child, has closed (children.closed)."""

    parent_key: int
    initiated_event_id: int
    child_workflow_id: str
    child_run_id: str
    event_type: int  # ChildWorkflowExecution… event
    attributes: bytes  # its result, failure or details: event attributes without ids


Message = StartChild | SignalRun | CancelRun | TerminateRun | ChildClosed
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Message).decode
