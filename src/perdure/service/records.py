"""A run as list and describe see it, and back."""

from __future__ import annotations

from perdure.engine import pausing, state
from perdure.engine.execution import Execution
from perdure.service import search_attributes
from perdure.service.search_attributes import Value
from perdure.store.contract import Loaded, Record


def record(run: Execution, plain_attributes: dict[str, Value]) -> Record:
    """The visible row of a run."""
    info, hot = run.info, run.state
    holds = pausing.holds(run)
    if holds:
        plain_attributes = plain_attributes | {search_attributes.PAUSE_INFO: holds}
    return Record(
        key=run.key,
        namespace=info.namespace,
        workflow_id=info.workflow_id,
        run_id=info.run_id,
        workflow_type=info.workflow_type,
        task_queue=info.task_queue,
        status=hot.status,
        start_ns=info.start_ns,
        execution_ns=hot.first_task_backoff_until_ns or info.start_ns,
        close_ns=hot.close_ns,
        history_length=hot.next_event_id - 1,
        history_size_bytes=hot.history_size_bytes,
        transition_count=hot.transition_count,
        parent_workflow_id=info.parent_workflow_id,
        parent_run_id=info.parent_run_id,
        root_workflow_id=info.root_workflow_id or info.workflow_id,
        root_run_id=info.root_run_id or info.run_id,
        first_run_id=info.first_run_id,
        search_attributes=plain_attributes,
        info=state.encode(info),
        memo=run.memo,
        attributes=run.attributes,
    )


def execution(loaded: Loaded) -> Execution:
    """A run as it was stored."""
    row = loaded.record
    hot = state.decode_state(loaded.state)
    hot.version = loaded.version
    hot.wake_at_ns = loaded.wake_at_ns
    return Execution(
        row.key,
        state.decode_info(row.info),
        hot,
        [state.decode_item(body) for _, body in loaded.items],
        memo=row.memo,
        attributes=row.attributes,
    )
