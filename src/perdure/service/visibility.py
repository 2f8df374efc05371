"""List and count: runs as their rows show them, the moment a write returns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from temporalio.api.common.v1 import Memo, Payload, SearchAttributes
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.filter.v1 import (
    StartTimeFilter,
    WorkflowExecutionFilter,
    WorkflowTypeFilter,
)
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    CountWorkflowExecutionsResponse,
    GetSearchAttributesRequest,
    GetSearchAttributesResponse,
    ListClosedWorkflowExecutionsRequest,
    ListClosedWorkflowExecutionsResponse,
    ListOpenWorkflowExecutionsRequest,
    ListOpenWorkflowExecutionsResponse,
    ListWorkflowExecutionsRequest,
    ListWorkflowExecutionsResponse,
    ScanWorkflowExecutionsRequest,
    ScanWorkflowExecutionsResponse,
)

from perdure.api.errors import InvalidArgument
from perdure.api.times import datetime_of, duration, timestamp, timestamp_ns
from perdure.engine.state import RunInfo, decode_info
from perdure.service import filter as list_filter
from perdure.service import list_tokens, pages, search_attributes, validation
from perdure.service.reading import reading
from perdure.store.contract import Record
from perdure.store.query import (
    And,
    Column,
    Compare,
    Condition,
    Custom,
    Field,
    Order,
    Query,
)

if TYPE_CHECKING:
    from perdure.service.node import Node

RUNNING = int(WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING)


# -- a run as list shows it ------------------------------------------------------------------------


def execution_info(record: Record) -> WorkflowExecutionInfo:
    """The list entry of a run. Sizes and lengths are told once it has closed, as Temporal does."""
    info = WorkflowExecutionInfo()
    info.execution.workflow_id = record.workflow_id
    info.execution.run_id = record.run_id
    info.type.name = record.workflow_type
    info.task_queue = record.task_queue
    info.status = record.status  # type: ignore[assignment]
    info.start_time.CopyFrom(timestamp(record.start_ns))
    info.execution_time.CopyFrom(timestamp(record.execution_ns))
    info.first_run_id = record.first_run_id
    info.root_execution.workflow_id = record.root_workflow_id or record.workflow_id
    info.root_execution.run_id = record.root_run_id or record.run_id
    if record.parent_workflow_id:
        info.parent_execution.workflow_id = record.parent_workflow_id
        info.parent_execution.run_id = record.parent_run_id
    info.memo.CopyFrom(Memo.FromString(record.memo))
    info.search_attributes.CopyFrom(SearchAttributes.FromString(record.attributes))
    holds = record.search_attributes.get(search_attributes.PAUSE_INFO)
    if holds:  # the system's, so it is not among those that the run was given
        shown = _typed(search_attributes.KEYWORD_LIST, holds)
        info.search_attributes.indexed_fields[search_attributes.PAUSE_INFO].CopyFrom(shown)
    if record.close_ns:
        info.close_time.CopyFrom(timestamp(record.close_ns))
        info.execution_duration.CopyFrom(duration(max(0, record.close_ns - record.execution_ns)))
        info.history_length = record.history_length
        info.history_size_bytes = record.history_size_bytes
        info.state_transition_count = record.transition_count
    if record.info:
        _fill_priority(info, decode_info(record.info))
    return info


def _fill_priority(info: WorkflowExecutionInfo, run: RunInfo) -> None:
    if run.priority:
        info.priority.MergeFromString(run.priority)


# -- the older lists' filters ----------------------------------------------------------------------


def _all_of(terms: Iterable[Condition]) -> Condition | None:
    gathered = tuple(terms)
    return gathered[0] if len(gathered) == 1 else And(gathered) if gathered else None


def started_within(window: StartTimeFilter) -> list[Condition]:
    """Conditions for a StartTimeFilter; an unset end is open."""
    terms: list[Condition] = []
    if window.HasField("earliest_time"):
        terms.append(Compare(Column.START, ">=", timestamp_ns(window.earliest_time)))
    if window.HasField("latest_time"):
        terms.append(Compare(Column.START, "<=", timestamp_ns(window.latest_time)))
    return terms


def same_execution(wanted: WorkflowExecutionFilter) -> list[Condition]:
    """Conditions for a WorkflowExecutionFilter."""
    terms: list[Condition] = []
    if wanted.workflow_id:
        terms.append(Compare(Column.WORKFLOW_ID, "=", wanted.workflow_id))
    if wanted.run_id:
        terms.append(Compare(Column.RUN_ID, "=", wanted.run_id))
    return terms


def same_type(wanted: WorkflowTypeFilter) -> list[Condition]:
    """Conditions for a WorkflowTypeFilter."""
    return [Compare(Column.WORKFLOW_TYPE, "=", wanted.name)] if wanted.name else []


# -- groups of a count -----------------------------------------------------------------------------


def group_payload(field: Field, value: object, types: dict[str, int]) -> Payload:
    """A group's value as the API spells it: typed JSON."""
    if field is Column.STATUS:
        assert isinstance(value, int)
        return _typed(search_attributes.KEYWORD, status_name(value))
    if isinstance(field, Custom):
        wanted = types.get(field.name) or search_attributes.PREDEFINED.get(field.name, 0)
    else:
        wanted = _COLUMN_TYPES[field]
    if wanted == search_attributes.DATETIME and isinstance(value, int):
        value = datetime_of(value).isoformat().replace("+00:00", "Z")
    return _typed(wanted, value)


_COLUMN_TYPES = dict.fromkeys(Column, search_attributes.KEYWORD) | {
    Column.START: search_attributes.DATETIME,
    Column.EXECUTION: search_attributes.DATETIME,
    Column.CLOSE: search_attributes.DATETIME,
    Column.DURATION: search_attributes.INT,
    Column.HISTORY_LENGTH: search_attributes.INT,
    Column.HISTORY_SIZE: search_attributes.INT,
    Column.TRANSITION_COUNT: search_attributes.INT,
}


def _typed(wanted: int, value: object) -> Payload:
    payload = Payload(data=msgspec.json.encode(value))
    payload.metadata["encoding"] = b"json/plain"
    if wanted:
        payload.metadata["type"] = search_attributes.type_name(wanted).encode()
    return payload


def status_name(status: int) -> str:
    """WORKFLOW_EXECUTION_STATUS_TIMED_OUT → TimedOut."""
    name = WorkflowExecutionStatus.Name(status)  # type: ignore[arg-type]
    words = name.removeprefix("WORKFLOW_EXECUTION_STATUS_").lower().split("_")
    return "".join(word.capitalize() for word in words)


# -- RPCs ------------------------------------------------------------------------------------------


class VisibilityRPCs:
    """List, scan, count: as a part of the service."""

    node: Node

    def _runs_on_page(self, asked: int) -> int:
        return pages.size(asked, self.node.settings.list_page_max)

    async def _selected(
        self, request: ListWorkflowExecutionsRequest | ScanWorkflowExecutionsRequest
    ) -> tuple[list[WorkflowExecutionInfo], bytes]:
        """One page of what a filter selects and the token of the next."""
        token = request.next_page_token
        now_ns = (list_tokens.read(token).now_ns if token else 0) or self.node.clock.now_ns()
        query = self._parse(request.namespace, request.query, request.page_size, now_ns)
        return await self._page(query, token, now_ns)

    async def _page(
        self, query: Query, token: bytes, now_ns: int = 0
    ) -> tuple[list[WorkflowExecutionInfo], bytes]:
        """One page of runs and the token of the next.

        A page that gets too large ends early. So may the next one: not many more runs are read for
        it than have fit.
        """
        asked = list_tokens.after(query, token)
        with reading():
            ahead = msgspec.structs.replace(asked, limit=asked.limit + 1)
            found = await self.node.store.list_runs(ahead)
        shown = self._fitting(found[: asked.limit])
        if len(shown) == len(found):
            return shown, b""
        runs = 2 * len(shown) if len(shown) < query.limit else 0
        return shown, list_tokens.following(query, found[len(shown) - 1], now_ns, runs)

    def _fitting(self, records: list[Record]) -> list[WorkflowExecutionInfo]:
        """As many runs as fit a page, at least one."""
        shown: list[WorkflowExecutionInfo] = []
        size_bytes = 0
        for record in records:
            info = execution_info(record)
            size_bytes += info.ByteSize()
            if shown and size_bytes > self.node.settings.list_page_bytes:
                break
            shown.append(info)
        return shown

    async def list_workflow_executions(
        self, request: ListWorkflowExecutionsRequest
    ) -> ListWorkflowExecutionsResponse:
        """Runs that a filter selects, newest start first unless it orders them."""
        executions, token = await self._selected(request)
        return ListWorkflowExecutionsResponse(executions=executions, next_page_token=token)

    async def scan_workflow_executions(
        self, request: ScanWorkflowExecutionsRequest
    ) -> ScanWorkflowExecutionsResponse:
        """The same as list."""
        executions, token = await self._selected(request)
        return ScanWorkflowExecutionsResponse(executions=executions, next_page_token=token)

    async def list_open_workflow_executions(
        self, request: ListOpenWorkflowExecutionsRequest
    ) -> ListOpenWorkflowExecutionsResponse:
        """Running runs, newest start first."""
        self.node.namespaces.get(request.namespace)
        terms: list[Condition] = [Compare(Column.STATUS, "=", RUNNING)]
        terms += self._shared_terms(request)
        limit = self._runs_on_page(request.maximum_page_size)
        query = Query(request.namespace, _all_of(terms), limit=limit)
        executions, token = await self._page(query, request.next_page_token)
        return ListOpenWorkflowExecutionsResponse(executions=executions, next_page_token=token)

    async def list_closed_workflow_executions(
        self, request: ListClosedWorkflowExecutionsRequest
    ) -> ListClosedWorkflowExecutionsResponse:
        """Runs that have closed, latest close first."""
        self.node.namespaces.get(request.namespace)
        wanted = request.status_filter.status
        terms: list[Condition] = [
            Compare(Column.STATUS, "=", int(wanted)) if wanted else Compare(Column.CLOSE, ">", 0)
        ]
        terms += self._shared_terms(request)
        query = Query(
            request.namespace,
            _all_of(terms),
            order=(Order(Column.CLOSE, descending=True),),
            limit=self._runs_on_page(request.maximum_page_size),
        )
        executions, token = await self._page(query, request.next_page_token)
        return ListClosedWorkflowExecutionsResponse(executions=executions, next_page_token=token)

    async def count_workflow_executions(
        self, request: CountWorkflowExecutionsRequest
    ) -> CountWorkflowExecutionsResponse:
        """How many runs a filter selects; with GROUP BY, per group, the largest first."""
        now_ns = self.node.clock.now_ns()
        query = self._parse(request.namespace, request.query, 0, now_ns, counting=True)
        with reading():
            counted = await self.node.store.count_runs(query)
        answer = CountWorkflowExecutionsResponse(count=sum(count for _, count in counted))
        if query.group_by:
            types = self.node.namespaces.get(request.namespace).search_attributes
            for values, count in sorted(counted, key=lambda group: -group[1]):
                group = answer.groups.add(count=count)
                for field, value in zip(query.group_by, values, strict=True):
                    group.group_values.append(group_payload(field, value, types))
        return answer

    async def get_search_attributes(
        self, request: GetSearchAttributesRequest
    ) -> GetSearchAttributesResponse:
        """Every attribute that a filter may name: built in, predefined, and of ``default``."""
        keys = search_attributes.BUILT_IN | search_attributes.PREDEFINED
        keys = keys | self.node.namespaces.get("default").search_attributes
        return GetSearchAttributesResponse(keys=keys)  # type: ignore[arg-type]

    def _shared_terms(
        self, request: ListOpenWorkflowExecutionsRequest | ListClosedWorkflowExecutionsRequest
    ) -> list[Condition]:
        """The conditions that the older lists share.

        Raises:
            InvalidArgument: a name that no run can have.
        """
        execution, settings = request.execution_filter, self.node.settings
        validation.bounded(execution.workflow_id, "WorkflowId", settings)
        validation.bounded(execution.run_id, "RunId", settings)
        validation.bounded(request.type_filter.name, "WorkflowType", settings)
        terms = started_within(request.start_time_filter)
        return terms + same_execution(execution) + same_type(request.type_filter)

    def _parse(
        self, namespace: str, text: str, size: int, now_ns: int, *, counting: bool = False
    ) -> Query:
        types = self.node.namespaces.get(namespace).search_attributes
        known = search_attributes.PREDEFINED | types
        where, order, group_by = list_filter.parse(text, known, now_ns)
        if group_by and not counting:
            raise InvalidArgument("invalid query: 'GROUP BY' clause is only supported by count")
        return Query(
            namespace, where, order=order, group_by=group_by, limit=self._runs_on_page(size)
        )
