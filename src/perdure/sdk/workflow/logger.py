"""The logger of workflow code."""

from __future__ import annotations

from collections.abc import MutableMapping
from logging import LoggerAdapter, getLogger
from typing import Any

from perdure.sdk.runtime.context import current, state


class WorkflowLogger(LoggerAdapter[Any]):
    """Adds which run it is to every record, and drops records of a replay."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        run = current()
        if run is None:
            self.logger.log(level, msg, *args, **kwargs)
            return
        if run.replaying or not self.logger.isEnabledFor(level):
            return
        guarded, state.guarded = state.guarded, None  # handlers may open files
        try:
            kwargs.setdefault("stacklevel", 1)
            kwargs["stacklevel"] += 1
            text, added = self.process(msg, kwargs)
            self.logger.log(level, text, *args, **added)
        finally:
            state.guarded = guarded

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        run = current()
        if run is None:
            return msg, kwargs
        facts = {
            "workflow_id": run.workflow_id,
            "workflow_run_id": run.run_id,
            "workflow_type": run.type_name,
        }
        kwargs["extra"] = {**(kwargs.get("extra") or {}), "perdure": facts}
        return f"{msg} ({run.type_name}, workflow {run.workflow_id})", kwargs


LOGGER = WorkflowLogger(getLogger("perdure.workflow"), {})
