"""What workers and clients were told, noted where they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from temporalio.api.enums.v1 import TaskQueueKind

from perdure.service import tokens

from .refusals import NOT_JUDGED, REFUSED, Refusal
from .workload import Ledger

STICKY = TaskQueueKind.TASK_QUEUE_KIND_STICKY


class WatchedService:
    """A service; notes what was acknowledged to workers, and what was refused to anybody."""

    def __init__(self, service: Any, ledger: Ledger) -> None:
        self._service, self._ledger = service, ledger

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._service, name)
        is_call = asyncio.iscoroutinefunction(method) and name not in NOT_JUDGED
        return self._watched(name, method) if is_call else method

    def _watched(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        evidence, loop = self._ledger.evidence, asyncio.get_running_loop()

        async def call(request: Any, *rest: Any, **options: Any) -> Any:
            called, called_s = evidence.chronicle.commits, loop.time()
            try:
                return await method(request, *rest, **options)
            except REFUSED as error:
                answered, answered_s = evidence.chronicle.commits, loop.time()
                evidence.refusals.append(
                    Refusal(name, request, error, called, answered, called_s, answered_s)
                )
                raise
            finally:
                if name == "poll_workflow_task_queue" and request.task_queue.kind != STICKY:
                    evidence.polls.append((called_s, loop.time()))

        return call

    async def respond_activity_task_completed(self, request: Any) -> Any:
        respond = self._service.respond_activity_task_completed
        answer = await self._watched("respond_activity_task_completed", respond)(request)
        token = tokens.decode(request.task_token, tokens.ACTIVITY)
        self._ledger.completed.append((token.key, token.scheduled_event_id))
        return answer
