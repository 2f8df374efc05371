"""Record the histories of ``runtime_programs.py`` on a Temporal server.

    temporal server start-dev --headless --port 7400
    python tests/unit/sdk_runtime/record_histories.py localhost:7400

Needs the package's ``grpc`` extra.
"""

# ruff: noqa: PT017  (these are no tests: workflow code may assert in an `except`)
from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path
from typing import Any

import grpc
from temporalio.api.history.v1 import History
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest, service_pb2_grpc

sys.path.insert(0, str(Path(__file__).parent))

import runtime_programs as programs

from perdure.api.errors import RPCError
from perdure.sdk.client import Client
from perdure.sdk.runtime.replayer import replay, to_json

PLACE = Path(__file__).parent / "histories"


class Remote:
    """The service behind a channel, as the SDK wants it."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        stub = service_pb2_grpc.WorkflowServiceStub(self._channel)
        for name in vars(stub):
            snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)[1:]
            setattr(self, snake, self._method(getattr(stub, name)))

    @staticmethod
    def _method(call: Any) -> Any:
        async def method(request: Any, **extra: Any) -> Any:
            try:
                return await call(request, timeout=70)
            except grpc.aio.AioRpcError as error:
                raise RPCError.of(error.code().value[0], error.details() or "") from None

        return method


async def talk_to_approval(client: Client) -> Any:
    handle = await client.start(programs.Approval, "draft", id=f"approval-{uuid.uuid4()}")
    assert await handle.query(programs.Approval.status) == "open"
    await handle.signal(programs.Approval.note, "first")
    assert await handle.update(programs.Approval.amend, "better") == 6
    try:
        await handle.update(programs.Approval.amend, "")
    except Exception as error:
        assert "must not be empty" in str(error.__cause__), error.__cause__
    await handle.signal(programs.Approval.note, "second")
    await handle.signal(programs.Approval.decide, "yes")
    assert await handle.result() == "yes:better:first,second"
    assert await handle.query(programs.Approval.status) == "yes"
    return handle


async def cancel_soon(client: Client) -> Any:
    handle = await client.start(programs.until_cancelled, id=f"cancel-{uuid.uuid4()}")
    await asyncio.sleep(0.5)
    await handle.cancel()
    return handle


async def main(target: str) -> None:
    service = Remote(target)
    client = Client(service, task_queue=f"record-{uuid.uuid4()}")
    worker = client.worker(workflows=programs.WORKFLOWS, activities=programs.ACTIVITIES)
    plain: list[tuple[Any, tuple[Any, ...]]] = [
        (programs.sequence, (programs.Order("o", 5), 3)),
        (programs.primitives, ()),
        (programs.failures, ()),
        (programs.cancels, ()),
        (programs.nature, ()),
        (programs.parent, ()),
        (programs.counter, (0,)),
        (programs.quick, ()),
        (programs.properties, ()),
    ]
    async with worker:
        for workflow, args in plain:
            handle = await client.start(workflow, *args, id=f"{workflow.name}-{uuid.uuid4()}")
            await show(workflow.name, handle)
            await save(service, workflow.name, handle)
        handle = await talk_to_approval(client)
        await save(service, "Approval", handle)
        handle = await cancel_soon(client)
        await show("until_cancelled", handle)
        await save(service, "until_cancelled", handle)


async def show(name: str, handle: Any) -> None:
    try:
        print(name, "->", await asyncio.wait_for(handle.result(), 30))
    except Exception as error:
        print(name, "raised", repr(error), "|", repr(error.__cause__))


async def save(service: Any, name: str, handle: Any) -> None:
    history = History()
    request = GetWorkflowExecutionHistoryRequest(namespace="default")
    request.execution.workflow_id = handle.id
    request.execution.run_id = getattr(handle, "first_run_id", "") or ""
    while True:
        page = await service.get_workflow_execution_history(request)
        history.events.extend(page.history.events)
        request.next_page_token = page.next_page_token
        if not page.next_page_token:
            break
    (PLACE / f"{name}.json").write_text(to_json(history) + "\n")
    replay(history, programs.WORKFLOWS)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
