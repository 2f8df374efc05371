"""Requests that are sent until they are answered, with the same ids each time."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution
from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.enums.v1 import WorkflowIdConflictPolicy
from temporalio.api.update.v1 import Input, Meta, Outcome, Request, WaitPolicy
from temporalio.api.workflowservice.v1 import (
    ExecuteMultiOperationRequest,
    SignalWithStartWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.converter import PayloadConverter
from temporalio.service import RPCError, RPCStatusCode

from .diary import Diary
from .workflows import QUEUE, TASK_TIMEOUT

T = TypeVar("T")

NAMESPACE = "default"
CALL_TIMEOUT = timedelta(seconds=5)
PAUSE_S = 0.05
AGAIN_SHARE = 0.5
COMPLETED = Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
USE_EXISTING = WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING

NO_ANSWER = frozenset(
    {RPCStatusCode.UNAVAILABLE, RPCStatusCode.CANCELLED, RPCStatusCode.DEADLINE_EXCEEDED}
    | {RPCStatusCode.UNKNOWN, RPCStatusCode.INTERNAL}
)
"""What a client hears when the server is killed while it waits: tonic's words for a broken
connection. The caller cannot know whether its request was done, and sends it again."""

NO_WORKER = "worker may be down"
"""What a query hears while workers, too, have lost their servers."""

CONVERTER = PayloadConverter.default


class Caller:
    """Sends requests, notes what it was told, and asks again to hear the same."""

    def __init__(self, client: Client, diary: Diary, dice: random.Random) -> None:
        self.client = client
        self.service = client.workflow_service
        self.diary = diary
        self.dice = dice

    # --- until told -------------------------------------------------------------------------

    async def until_told(self, send: Callable[[], Awaitable[T]]) -> T:
        """The answer to a request that is sent until there is one."""
        while True:
            try:
                return await send()
            except RPCError as error:
                if error.status not in NO_ANSWER and NO_WORKER not in error.message:
                    raise
            await asyncio.sleep(PAUSE_S)

    async def twice(self, workflow_id: str, what: str, send: Callable[[], Awaitable[T]]) -> T:
        """The answer; and often the same request is sent again, which must be answered the same."""
        told = await self.until_told(send)
        if self.dice.random() < AGAIN_SHARE:
            await asyncio.sleep(self.dice.random())
            again = await self.until_told(send)
            self.diary.note("again", workflow_id, what=what)
            if again != told:
                self.wrong(workflow_id, f"{what} was answered {told!r}, then {again!r}")
        return told

    def wrong(self, workflow_id: str, text: str) -> None:
        """Note what must not be."""
        self.diary.note("wrong", workflow_id, text=text)

    # --- start ------------------------------------------------------------------------------

    async def start(self, workflow: str, workflow_id: str, *args: Any, repeated: bool) -> str:
        """Start a run and return its id; `repeated` if it may be asked for twice."""
        request = _start(workflow, workflow_id, args)
        if not repeated:
            request.workflow_id_conflict_policy = USE_EXISTING

        async def send() -> str:
            return (
                await self.service.start_workflow_execution(request, timeout=CALL_TIMEOUT)
            ).run_id

        sender = self.twice(workflow_id, "start", send) if repeated else self.until_told(send)
        run_id = await sender
        self.diary.note("start", workflow_id, run_id=run_id)
        return run_id

    async def signal_with_start(
        self, workflow: str, workflow_id: str, signal: str, *words: Any
    ) -> str:
        """Start a run with a signal whose first argument is a word of its own."""
        start = _start(workflow, workflow_id, ())
        request = SignalWithStartWorkflowExecutionRequest(
            signal_name=signal, signal_input=payloads(words)
        )
        for field in ("namespace", "workflow_id", "request_id"):
            setattr(request, field, getattr(start, field))
        for field in ("workflow_type", "task_queue", "workflow_task_timeout"):
            getattr(request, field).CopyFrom(getattr(start, field))

        async def send() -> str:
            told = await self.service.signal_with_start_workflow_execution(
                request, timeout=CALL_TIMEOUT
            )
            return told.run_id

        run_id = await self.twice(workflow_id, "signal with start", send)
        self.diary.note("start", workflow_id, run_id=run_id)
        self.diary.note("signal", workflow_id, run_id=run_id, name=signal, arguments=words)
        return run_id

    async def update_with_start(
        self, workflow: str, workflow_id: str, update: str, *words: Any
    ) -> tuple[str, Any]:
        """Start a run with an update: the run's id and the update's answer."""
        start = _start(workflow, workflow_id, ())
        start.workflow_id_conflict_policy = USE_EXISTING
        request = ExecuteMultiOperationRequest(namespace=NAMESPACE)
        request.operations.add().start_workflow.CopyFrom(start)
        request.operations.add().update_workflow.CopyFrom(_update(workflow_id, "", update, words))

        async def send() -> tuple[str, Any]:
            while True:
                told = await self.service.execute_multi_operation(request, timeout=CALL_TIMEOUT)
                outcome = told.responses[1].update_workflow.outcome
                if outcome.WhichOneof("value"):
                    return told.responses[0].start_workflow.run_id, answer(outcome)

        run_id, told = await self.twice(workflow_id, "update with start", send)
        self.diary.note("start", workflow_id, run_id=run_id)
        self._note_update(workflow_id, run_id, words, told)
        return run_id, told

    # --- messages ---------------------------------------------------------------------------

    async def signal(self, workflow_id: str, run_id: str, name: str, *words: Any) -> None:
        """Signal a run, or with "" whichever is the latest."""
        request = SignalWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
            signal_name=name,
            input=payloads(words),
            request_id=str(uuid.uuid4()),
        )

        async def send() -> None:
            await self.service.signal_workflow_execution(request, timeout=CALL_TIMEOUT)

        if name in ("close", "finish"):  # the run may be gone when it is asked for again
            await self._last(workflow_id, send)
        else:
            await self.twice(workflow_id, f"signal {words}", send)
        self.diary.note("signal", workflow_id, run_id=run_id, name=name, arguments=words)

    async def _last(self, workflow_id: str, send: Callable[[], Awaitable[None]]) -> None:
        """Send a signal that ends a run: not found is an answer, if an earlier one was lost."""
        attempts = 0

        async def counted() -> None:
            nonlocal attempts
            attempts += 1
            await send()

        try:
            await self.until_told(counted)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND or attempts == 1:
                raise

    async def update(self, workflow_id: str, run_id: str, name: str, *words: Any) -> Any:
        """Update a run and return what it answers; a refusal as text."""
        request = _update(workflow_id, run_id, name, words)

        async def send() -> Any:
            while True:
                told = await self.service.update_workflow_execution(request, timeout=CALL_TIMEOUT)
                if told.outcome.WhichOneof("value"):
                    return answer(told.outcome)

        told = await self.twice(workflow_id, f"update {words}", send)
        self._note_update(workflow_id, run_id, words, told)
        return told

    def _note_update(self, workflow_id: str, run_id: str, words: Any, told: Any) -> None:
        self.diary.note("update", workflow_id, run_id=run_id, arguments=words, answer=told)

    # --- questions --------------------------------------------------------------------------

    async def query(self, workflow_id: str, run_id: str, name: str) -> Any:
        """The answer to a query."""
        handle: Any = self.client.get_workflow_handle(workflow_id, run_id=run_id)
        return await self.until_told(lambda: handle.query(name, rpc_timeout=CALL_TIMEOUT))

    async def is_listed(self, workflow_id: str) -> bool:
        """Does a list find a workflow?"""

        async def send() -> bool:
            query = f"WorkflowId = '{workflow_id}'"
            return (await self.client.count_workflows(query, rpc_timeout=CALL_TIMEOUT)).count > 0

        return await self.until_told(send)

    async def result(self, workflow_id: str) -> Any:
        """What the workflow came to, at the end of its chain of runs."""
        handle: Any = self.client.get_workflow_handle(workflow_id)
        told = await self.until_told(handle.result)
        self.diary.note("result", workflow_id, value=told)
        return told


def payloads(values: Any) -> Payloads:
    """Arguments, as the SDK sends them."""
    return Payloads(payloads=CONVERTER.to_payloads(list(values)))


def answer(outcome: Outcome) -> Any:
    """What an update came to: its result, or the message of its failure."""
    if outcome.HasField("failure"):
        return f"refused: {outcome.failure.message}"
    return values(outcome.success.payloads)[0]


def values(found: Any) -> list[Any]:
    """Payloads as values."""
    sent: list[Payload] = list(found)
    return CONVERTER.from_payloads(sent)


def _start(workflow: str, workflow_id: str, args: Any) -> StartWorkflowExecutionRequest:
    request = StartWorkflowExecutionRequest(
        namespace=NAMESPACE,
        workflow_id=workflow_id,
        request_id=str(uuid.uuid4()),
        input=payloads(args),
    )
    request.workflow_type.name = workflow
    request.task_queue.name = QUEUE
    request.workflow_task_timeout.FromTimedelta(TASK_TIMEOUT)
    return request


def _update(workflow_id: str, run_id: str, name: str, words: Any) -> UpdateWorkflowExecutionRequest:
    """An update whose first argument is its id."""
    return UpdateWorkflowExecutionRequest(
        namespace=NAMESPACE,
        workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
        wait_policy=WaitPolicy(lifecycle_stage=COMPLETED),
        request=Request(
            meta=Meta(update_id=str(words[0]), identity="faults"),
            input=Input(name=name, args=payloads(words)),
        ),
    )
