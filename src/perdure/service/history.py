"""History: its events by page, as they come, or backwards.

All that is shown was committed: pages are read from the store, never from a run in memory that may
be ahead of it. A long poll watches the run first and reads then, so no commit slips between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import HistoryEventFilterType
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
    GetWorkflowExecutionHistoryReverseRequest,
    GetWorkflowExecutionHistoryReverseResponse,
)

from perdure.api.caller import until
from perdure.api.errors import InvalidArgument
from perdure.engine import workflow_tasks
from perdure.service import pages, waiting
from perdure.service.pages import END, Page, PageToken
from perdure.service.reading import reading

if TYPE_CHECKING:
    from perdure.service.node import Node

CLOSE_EVENT = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT


class HistoryRPCs:
    """The RPCs that read history, as a part of the service."""

    node: Node

    async def get_workflow_execution_history(
        self, request: GetWorkflowExecutionHistoryRequest
    ) -> GetWorkflowExecutionHistoryResponse:
        """A page of events, oldest first.

        With `wait_new_event`, the page after the last committed event is waited for, and the token
        of a run that is still open is never empty. With the CLOSE_EVENT filter only the event that
        closed the run is answered.

        Raises:
            InvalidArgument: no or a wrong execution, or a page token of another run.
            NotFound: no such run.
        """
        self.node.namespaces.get(request.namespace)
        if not request.HasField("execution"):
            raise InvalidArgument("Execution is not set on request.")
        token = await self._token(request.namespace, request.execution, request.next_page_token)
        if request.history_event_filter_type == CLOSE_EVENT:
            return await self._close_event(token, wait=request.wait_new_event)
        max_events = self._events_on_page(request.maximum_page_size)
        if request.wait_new_event:
            return await self._new_events(token, max_events)
        return await self._stored_events(token, max_events)

    async def get_workflow_execution_history_reverse(
        self, request: GetWorkflowExecutionHistoryReverseRequest
    ) -> GetWorkflowExecutionHistoryReverseResponse:
        """A page of events, newest first."""
        self.node.namespaces.get(request.namespace)
        if not request.HasField("execution"):
            raise InvalidArgument("Execution is not set on request.")
        execution, raw = request.execution, request.next_page_token
        token = await self._token(request.namespace, execution, raw, reverse=True)
        max_events = self._events_on_page(request.maximum_page_size)
        with reading():
            events, more = await pages.read_reverse(
                self.node.store,
                token.key,
                1,
                token.next_event_id,
                max_events=max_events,
                max_bytes=self.node.settings.history_page_bytes,
            )
        answer = GetWorkflowExecutionHistoryReverseResponse()
        answer.history.events.extend(events)
        if more:
            before = events[-1].event_id - 1
            answer.next_page_token = pages.encode_token(
                PageToken(token.run_id, token.key, before, reverse=True)
            )
        return answer

    # -- where to read -----------------------------------------------------------------------------

    def _events_on_page(self, asked: int) -> int:
        return pages.size(asked, self.node.settings.history_page_events_max)

    async def _token(
        self, namespace: str, execution: WorkflowExecution, raw: bytes, *, reverse: bool = False
    ) -> PageToken:
        """The place a request names: its page token, or the start of its run's history."""
        executions = self.node.executions
        if raw:
            token = pages.decode_token(raw, execution.run_id, reverse=reverse)
            key = await executions.resolve(namespace, execution.workflow_id, token.run_id)
            if key != token.key:
                raise InvalidArgument("Invalid NextPageToken.")
            return token
        key = await executions.resolve(namespace, execution.workflow_id, execution.run_id)
        entry = await executions.read(key)  # a run that is not stored yet has no history
        run_id = entry.run.info.run_id
        return PageToken(run_id, key, END if reverse else 1, reverse=reverse)

    async def _read(self, token: PageToken, max_events: int) -> Page:
        with reading():
            return await pages.read(
                self.node.store,
                token.key,
                token.next_event_id,
                token.last_event_id or END,
                max_events=max_events,
                max_bytes=self.node.settings.history_page_bytes,
            )

    # -- what to answer ----------------------------------------------------------------------------

    async def _stored_events(
        self, token: PageToken, max_events: int
    ) -> GetWorkflowExecutionHistoryResponse:
        page = await self._read(token, max_events)
        answer = GetWorkflowExecutionHistoryResponse()
        answer.history.MergeFromString(page.events)
        if page.more:
            follow = PageToken(token.run_id, token.key, page.last_event_id + 1, token.last_event_id)
            answer.next_page_token = pages.encode_token(follow)
        else:
            answer.history.MergeFromString(await self._transient(token, page))
        return answer

    async def _transient(self, token: PageToken, page: Page) -> bytes:
        """The events of a started workflow task that history does not hold yet.

        A worker that fetches the history of a transient or speculative task needs them at its end.
        """
        if token.last_event_id and token.last_event_id <= page.last_event_id:
            return b""
        entry = await self.node.executions.entry(token.key)
        task = entry.run.state.workflow_task
        if task is None or not task.started_ns:
            return b""
        if task.scheduled_event_id != page.last_event_id + 1:
            return b""  # it is in history, or history has moved on since
        return workflow_tasks.transient_events(entry.run)

    async def _new_events(
        self, token: PageToken, max_events: int
    ) -> GetWorkflowExecutionHistoryResponse:
        """The page from the token on, once there is one; an empty one when nothing came in time."""
        node = self.node
        deadline_ns = until(node.clock.now_ns(), node.settings.history_poll_ns)
        while True:
            with waiting.watching(node.executions, token.key) as changed:
                page = await self._read(token, max_events)
                if page.events or not await waiting.happened(changed, node.clock, deadline_ns):
                    break
        answer = GetWorkflowExecutionHistoryResponse()
        answer.history.MergeFromString(page.events)
        if page.more or not (page.events and answer.history.events[-1].event_type in pages.CLOSING):
            follow = PageToken(token.run_id, token.key, page.last_event_id + 1)
            answer.next_page_token = pages.encode_token(follow)
        return answer

    async def _close_event(
        self, token: PageToken, *, wait: bool
    ) -> GetWorkflowExecutionHistoryResponse:
        """The event that closed the run; none while it is open.

        Who looks at a paused run without waiting gets its last event instead, as from Temporal:
        its command line takes a run that is not running for closed, and wants an event to show.
        """
        node = self.node
        deadline_ns = until(node.clock.now_ns(), node.settings.history_poll_ns)
        while True:
            with waiting.watching_close(node.executions, token.key) as changed:
                event = await self._committed_close(token.key)
                if (
                    event
                    or not wait
                    or not await waiting.happened(changed, node.clock, deadline_ns)
                ):
                    break
        if not event and not wait:
            run = (await node.executions.read(token.key)).run
            if run.is_held:
                event = await self._stored_event(token.key, run.state.next_event_id - 1)
        answer = GetWorkflowExecutionHistoryResponse()
        answer.history.MergeFromString(event)
        if wait and not event:
            answer.next_page_token = pages.encode_token(token)
        return answer

    async def _committed_close(self, key: int) -> bytes:
        """The closing event, framed; b"" unless the close is durable."""
        entry = await self.node.executions.entry(key)
        if not entry.close_is_stored:
            return b""
        close_event_id = entry.run.state.close_event_id
        kept = entry.events(close_event_id, [])
        return await self._stored_event(key, close_event_id) if kept is None else kept

    async def _stored_event(self, key: int, event_id: int) -> bytes:
        with reading():
            [batch] = await self.node.store.history(key, event_id, END, limit=1)
        return pages.trimmed(batch, event_id, event_id).events
