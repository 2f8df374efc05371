"""What workers were acknowledged, noted where they are told."""

from __future__ import annotations

from typing import Any

from perdure.service import tokens

from .workload import Ledger


class WatchedService:
    """A service; notes what workers were acknowledged."""

    def __init__(self, service: Any, ledger: Ledger) -> None:
        self._service, self._ledger = service, ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    async def respond_activity_task_completed(self, request: Any) -> Any:
        answer = await self._service.respond_activity_task_completed(request)
        token = tokens.decode(request.task_token, tokens.ACTIVITY)
        self._ledger.completed.append((token.key, token.scheduled_event_id))
        return answer
